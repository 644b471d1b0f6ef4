"""The one history of a log, as far as one handle on it has read or written it. See `core.chain`.

A commit is stored with the sum of the log before it, and what is read must follow what was read before. In a directory,
a look at the last commit costs next to nothing: a backup that somebody restores under running peers is noticed before
anything is written beside it. In a bucket the next commit tells.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NoReturn

from hopaas_p2p.core import chain
from hopaas_p2p.errors import BrokenChain

_EVERY: Final = 1.0  # seconds between two looks whether the last commit is still there
_ADVICE: Final = "Was a backup restored under running peers? Nothing was changed. Look with: hopaas-p2p doctor URL"


class History:
    """See the module.

    Args:
        stored: reads what is stored at an lsn; None if nothing is, for certain.

    """

    def __init__(self, stored: Callable[[int], bytes | None]) -> None:
        self._stored = stored
        self._lsn = 0
        self._sum: int | None = 0
        """The sum of the log up to that lsn, if it is known."""
        self._checked_at = 0.0
        self.contradicted = False
        """Whether something that was read since `begin` does not follow what was read before."""

    def begin(self, since: int, known: int | None) -> None:
        """An exchange begins, of a peer that has read so many commits, with this sum."""
        self.contradicted = False
        if known is not None:
            self._lsn, self._sum = since, known

    def before(self, lsn: int) -> int | None:
        """The sum of the log before this lsn, if it is known."""
        return self._sum if self._lsn == lsn - 1 else None

    def follow(self, lsn: int, payload: bytes, before: int | None = None) -> None:
        """This commit was read, with the sum that its writer had, or written."""
        known = self.before(lsn)
        if before is None:
            before = known
        elif known is not None and known != before:
            self.contradicted = True
        if before is not None:
            self._lsn, self._sum = lsn, chain.following(before, payload)
        elif lsn > self._lsn:
            self._lsn, self._sum = lsn, None

    @staticmethod
    def gone(lsn: int) -> NoReturn:
        """There is no such commit, although a peer's state stands on it."""
        raise BrokenChain(f"commit {lsn}, which a peer has read, is gone from the log. {_ADVICE}")

    def check_last(self, since: int, now: float) -> None:
        """See now and then that the last commit which a peer has read is there, as it was.

        Raises:
            BrokenChain: it is not.

        """
        if not since or since != self._lsn or now - self._checked_at < _EVERY:
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
