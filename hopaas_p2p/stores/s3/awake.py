"""Whether this process may have slept while commits were removed from a bucket that it has not read.

A free key is the end of the log only for who was awake: `gc` leaves everything for a day. Who finds that some clock of
its machine has gone on by more than ten minutes since the last contact looks at the boundary first, see `stores.s3.gc`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, NamedTuple

from hopaas_p2p.errors import SleptThrough, StudyDeleted
from hopaas_p2p.stores.s3.objects import ObjectStore

DELETED: Final = "deleted"
_ASLEEP: Final = 600.0  # seconds without contact after which a peer may have slept


class Clocks(NamedTuple):
    """This machine's clocks: one of them goes on whatever sleeps."""

    monotonic: float
    wall: float
    boot: float

    def furthest(self, since: Clocks) -> float:
        return max(self.monotonic - since.monotonic, abs(self.wall - since.wall), self.boot - since.boot)


def clocks() -> Clocks:
    """What they show now."""
    boot = time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
    return Clocks(time.monotonic(), time.time(), boot)


class Awake:
    """One log's contact with the bucket."""

    def __init__(self, objects: ObjectStore, root: str) -> None:
        self._objects = objects
        self._root = root
        self.clocks: Callable[[], Clocks] = clocks
        self.last: Clocks | None = None
        """When this log was last read to its end, or a snapshot of it."""

    def begin(self, since: int) -> Clocks:
        """Before an exchange of who has seen `since` commits.

        Raises:
            SleptThrough: some that come after these are gone.
            StudyDeleted: all are.
        """
        now = self.clocks()
        if since and (self.last is None or now.furthest(self.last) > _ASLEEP):
            self._check(since)
        return now

    def end(self, since: int, began: Clocks) -> None:
        """After it: who fell asleep on the way may have written where gc has been. Raises as `begin`."""
        now = self.clocks()
        if now.furthest(began) > _ASLEEP:
            self._check(since)
        self.last = now

    def _check(self, since: int) -> None:
        if self.boundary() > since:
            raise SleptThrough

    def boundary(self) -> int:
        """The lsn up to which commits were removed. Raises StudyDeleted."""
        names = [one.key.rpartition("/")[2] for one in self._objects.listed(f"{self._root}boundary/")]
        if DELETED in names:
            raise StudyDeleted
        return max((int(name) for name in names if name.isdigit()), default=0)
