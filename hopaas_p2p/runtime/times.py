"""Times of the log, which are microseconds since 1970 in UTC, as `datetime` and as text."""

from __future__ import annotations

import contextlib
import datetime
from typing import Final

_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def to_utc(microseconds: int | None) -> datetime.datetime | None:
    """A time of the log in UTC; None for None, and for a time outside the calendar, which a broken peer may write."""
    if microseconds is not None:
        with contextlib.suppress(OverflowError):
            return _EPOCH + datetime.timedelta(microseconds=microseconds)
    return None


def to_iso(when: datetime.datetime | int | None) -> str | None:
    """A moment, or a time of the log, as ISO 8601 in UTC, ending in Z; None if `to_utc` returns None."""
    if isinstance(when, int):
        when = to_utc(when)
    return when.astimezone(datetime.UTC).isoformat().replace("+00:00", "Z") if when else None


def from_iso(text: str) -> int:
    """The log's time for ISO 8601 text; without an offset, it is taken as this machine's local time.

    Raises:
        ValueError: the text is not ISO 8601, or a time outside the calendar in UTC.

    """
    try:
        when = datetime.datetime.fromisoformat(text).astimezone(datetime.UTC)
    except OverflowError:
        raise ValueError(f"{text!r} is outside the calendar") from None
    return (when - _EPOCH) // datetime.timedelta(microseconds=1)
