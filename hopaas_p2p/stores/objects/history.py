"""What one handle on a log knows about its past, and whether that still holds: the sums, and the removals.

A commit is stored with the sum of the log before it (see `core.chain`), and what is read must follow what was read
before. In a directory on a local file system, checking the last commit costs some microseconds, so it precedes every
write: a backup that is restored under running peers is noticed before anything is written beside it. On a file server
the check happens once per second. In a bucket, the next commit reveals it.

A free key is the end of the log only for a process that was awake: `gc` leaves everything in a bucket for a day, and a
folder of a directory stays for minutes beside its pack. If some clock of a process's machine has advanced by more than
that since the last contact, the process checks for removals before it trusts a free key, and before it acknowledges
what it wrote.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final, NamedTuple, NoReturn

from hopaas_p2p.core import chain
from hopaas_p2p.errors import BehindRetention, BrokenChain, StudyDeleted
from hopaas_p2p.stores.objects.contract import ObjectStore, lsn_of

DELETED: Final = "deleted"
EVERY: Final = 1.0  # seconds between checks of the last commit where each may cost a call to a server
_ADVICE: Final = "Was a backup restored under running peers? Nothing was changed. Look with: hopaas-p2p doctor URL"


class Clocks(NamedTuple):
    """This machine's clocks: at least one of them advances, whatever sleeps."""

    wall: float
    boot: float


_BOOT: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def clocks() -> Clocks:
    """Their current readings."""
    return Clocks(time.time(), time.clock_gettime(_BOOT))


class History:
    """See the module. An exchange is between `begin` and `end`.

    Args:
        objects: where the log is.
        root: of the log.
        stored: reads what is stored at an lsn; None if there is certainly nothing.
        asleep: seconds without contact after which this process may have slept through a removal.

    """

    def __init__(
        self, objects: ObjectStore, root: str, stored: Callable[[int], bytes | None], *, asleep: float
    ) -> None:
        self._objects, self._root, self._stored, self._asleep = objects, root, stored, asleep
        self.every = math.inf
        """Seconds between two checks that the last commit is still there; infinite: the next commit reveals it."""
        self._lsn = 0
        self._sum: int | None = 0
        """The sum of the log up to that lsn, if it is known."""
        self._checked_at = 0.0
        self.contradicted = False
        """Whether something read since `begin` does not follow what was read before."""
        self.clocks: Callable[[], Clocks] = clocks
        self.last: Clocks | None = None
        """The last moment at which this process's knowledge of the log's end was true."""
        self._began = self.clocks()
        self._known: Clocks | None = None
        """The same as `last` for this exchange, which may yet fail."""

    # --- did this process sleep? ---

    def begin(self, since: int, known: int | None = None) -> bool:
        """Begin an exchange of a peer that has read up to `since`, with this sum; return whether it may have slept.

        Raises:
            BehindRetention: some later commits have been removed.
            StudyDeleted: all have been removed.

        """
        self._began, self._known = self.clocks(), self.last
        woke = self.slept(now=self._began)
        if since and woke:
            self._check_retained(since)
        self.contradicted = False
        if known is not None:
            self._lsn, self._sum = since, known
        return woke

    def saw_end(self) -> None:
        """Record that the end of the log was seen after this exchange had begun."""
        self._known = self._began

    def end(self, since: int) -> None:
        """End the exchange: a peer that slept during it may have written where `gc` has been. Raises like `begin`."""
        if self.slept(self._began):
            self._check_retained(since)
        self.last = self._known

    def slept(self, then: Clocks | None = None, now: Clocks | None = None) -> bool:
        """Whether this process may have slept since then, or else since the end of the log was last seen."""
        then, now = then or self._known, now or self.clocks()
        return then is None or max(abs(now.wall - then.wall), now.boot - then.boot) > self._asleep

    def _check_retained(self, since: int) -> None:
        if self.truncation_point() > since:
            raise BehindRetention

    def truncation_point(self) -> int:
        """The lsn up to which commits were removed. Raises StudyDeleted."""
        keys = self._objects.listed(f"{self._root}boundary/")
        if f"{self._root}boundary/{DELETED}" in keys:
            raise StudyDeleted
        return max((lsn_of(key) or 0 for key in keys), default=0)

    # --- what came before? ---

    def before(self, lsn: int) -> int | None:
        """The sum of the log before this lsn, if it is known."""
        return self._sum if self._lsn == lsn - 1 else None

    def follow(self, lsn: int, payload: bytes, before: int | None = None) -> None:
        """Record that this commit was read, with its writer's sum, or written."""
        known = self.before(lsn)
        if before is None:
            before = known
        elif known is not None and known != before:
            self.contradicted = True
        elif known is not None:
            self._checked_at = time.monotonic()  # as good as checking the last commit
        if before is not None:
            self._lsn, self._sum = lsn, chain.following(before, payload)
        elif lsn > self._lsn:
            self._lsn, self._sum = lsn, None

    @staticmethod
    def gone(lsn: int) -> NoReturn:
        """Raise because this commit is missing, although a peer's state depends on it."""
        raise BrokenChain(f"commit {lsn}, which a peer has read, is gone from the log. {_ADVICE}")

    def check_last(self, since: int) -> None:
        """Before a write, check that the last commit that the peer has read is still there, unchanged.

        Raises:
            BrokenChain: it is missing or different.

        """
        now = time.monotonic()
        if not since or since != self._lsn or now - self._checked_at < self.every:
            return
        self._checked_at, lsn = now, since
        stored = self._stored(lsn)
        if stored is None:
            self.gone(lsn)
        payload, before = chain.detach(stored)
        known = self._sum if self._lsn == lsn else None
        if before is None or known is None or chain.following(before, payload) == known:
            return
        there, read = chain.shown(chain.following(before, payload)), chain.shown(known)
        raise BrokenChain(
            f"this log has two histories: up to commit {lsn} a peer read the sum {read}, and it is {there}. {_ADVICE}"
        )
