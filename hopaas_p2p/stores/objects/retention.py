"""Whether this process may have slept while commits that it had not read were removed.

A free key is the end of the log only for a process that was awake: `gc` leaves everything in a bucket for a day, and a
folder of a directory stays for minutes beside its pack. A process that finds that some clock of its machine has moved
on by more than that since the last contact looks before it believes, and before it acknowledges what it wrote.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, NamedTuple

from hopaas_p2p.errors import SleptThrough, StudyDeleted
from hopaas_p2p.stores.objects.contract import ObjectStore, lsn_of

DELETED: Final = "deleted"
ASLEEP: Final = 600.0  # seconds without contact after which a peer may have slept


class Clocks(NamedTuple):
    """This machine's clocks: one of them goes on whatever sleeps."""

    wall: float
    boot: float

    def furthest(self, since: Clocks) -> float:
        return max(abs(self.wall - since.wall), self.boot - since.boot)


_BOOT: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def clocks() -> Clocks:
    """What they show now."""
    return Clocks(time.time(), time.clock_gettime(_BOOT))


class RetentionGuard:
    """One log's contact with its store."""

    def __init__(self, objects: ObjectStore, root: str, *, asleep: float = ASLEEP) -> None:
        self._objects = objects
        self._root = root
        self._asleep = asleep
        self.clocks: Callable[[], Clocks] = clocks
        self.last: Clocks | None = None
        """The last moment at which what this process knew of the log's end was true."""
        self.woke = False
        """Whether this process may have slept before the exchange that began last."""

    def begin(self, since: int) -> Clocks:
        """Before an exchange of a peer that has seen `since` commits.

        Raises:
            SleptThrough: some that come after these are gone.
            StudyDeleted: all are.

        """
        now, last = self.clocks(), self.last
        self.woke = last is None or now.furthest(last) > self._asleep
        if since and self.woke:
            self._check(since)
        return now

    def end(self, since: int, began: Clocks) -> None:
        """After it: a peer that fell asleep on the way may have written where `gc` has been. Raises like `begin`."""
        if self.slept(began):
            self._check(since)

    def slept(self, last: Clocks | None) -> bool:
        """Whether this process may have slept since then."""
        return last is None or self.clocks().furthest(last) > self._asleep

    def _check(self, since: int) -> None:
        if self.boundary() > since:
            raise SleptThrough

    def boundary(self) -> int:
        """The lsn up to which commits were removed. Raises StudyDeleted."""
        keys = self._objects.listed(f"{self._root}boundary/")
        if f"{self._root}boundary/{DELETED}" in keys:
            raise StudyDeleted
        return max((lsn_of(key) or 0 for key in keys), default=0)
