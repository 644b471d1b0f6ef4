"""The gateway's log: a line of JSON for each event.

What a client sent is never in it, but for the name of a role that was let in.
"""

from __future__ import annotations

import datetime
import json
import logging
from typing import Final

LOGGER: Final = logging.getLogger("hopaas_p2p.gateway")


def event(what: str, *, level: int = logging.INFO, **about: object) -> None:
    """Note that something happened."""
    if LOGGER.isEnabledFor(level):
        LOGGER.log(level, what, extra={"about": about})


class Lines(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        line = {
            "at": at,
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "about", {}),
        }
        return json.dumps(line, default=str, ensure_ascii=False)


def to_stderr(level: int = logging.INFO) -> None:
    """Write the log to stderr, where systemd and containers collect it."""
    handler = logging.StreamHandler()
    handler.setFormatter(Lines())
    LOGGER.handlers[:] = [handler]
    LOGGER.setLevel(level)
    LOGGER.propagate = False
