"""Reads on in a log whose objects carry copies of earlier commits: an object here and there, up to the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from hopaas_p2p.core.records import UNSTAMPED, Stamp
from hopaas_p2p.errors import BrokenChain
from hopaas_p2p.stores.objects.contract import Found
from hopaas_p2p.stores.s3.search import WIDEST, EndSearch


class ReadCommit(NamedTuple):
    """A commit that was read, from its own object or as a copy in a later one."""

    lsn: int
    payload: bytes
    before: int | None
    """The sum of the log before it; None if it was stored without."""
    modified: float
    """When the server took the object in which it was found."""
    stamp: Stamp = UNSTAMPED


class PiggybackReader:
    """One look for the end of a log.

    Args:
        fetch: the objects of these lsns, or None for each that is not there.
        once_more: the object of one lsn, read again.
        taken_apart: the commit in the object of an lsn, last, and before it the copies that this carries.
        enough: bytes of commits that are held at a time; a batch of objects is read before that is noticed.

    """

    def __init__(
        self,
        fetch: Callable[[Sequence[int]], Sequence[Found | None]],
        once_more: Callable[[int], Found | None],
        taken_apart: Callable[[int, Found], list[ReadCommit]],
        enough: int,
    ) -> None:
        self._fetch = fetch
        self._once_more = once_more
        self._taken_apart = taken_apart
        self._enough = enough
        self.stopped = False
        """Whether it went no further because what lies before the object it had found is enough by itself."""
        self.hole = 0
        """The first lsn at which there is nothing, although there are objects behind it; 0: none was seen."""

    def read(self, since: int, search: EndSearch) -> Iterator[list[ReadCommit]]:
        """The commits after `since`, some at a time, in order and without a gap.

        Raises:
            BrokenChain: two objects differ about a commit.

        """
        known = since
        while offsets := search.following():
            lsns = [since + offset for offset in offsets]
            window = self._fetch(lsns)
            for place, (lsn, one) in enumerate(zip(lsns, window, strict=True)):
                beyond = any(window[place:])
                found = self._once_more(lsn) if one is None and beyond else one  # it was free when it was asked for
                pieces = [] if found is None else self._taken_apart(lsn, found)
                carries = len(pieces) - 1
                missing = self._fill(known, lsn, pieces) if pieces else lsn
                if missing:
                    self.hole = missing if beyond else self.hole
                    search.free(missing - since)
                    break
                search.found(lsn - since, carries=carries)
                yield pieces
                if self.stopped:
                    return
                known = lsn

    def _fill(self, known: int, top: int, pieces: list[ReadCommit]) -> int:
        """Complete these, of the object at `top`, by what is before them and not known; the lsn of a hole, or 0.

        If that is too much to be held, they become what comes first instead.
        """
        step = len(pieces)
        found = {piece.lsn: piece for piece in pieces if piece.lsn > known}
        while missing := [lsn for lsn in range(known + 1, top) if lsn not in found]:
            if sum(len(piece.payload) for piece in found.values()) > self._enough:
                return self._from_below(known, top, pieces)
            lsns = missing[::-step][:WIDEST]
            for lsn, one in zip(lsns, self._fetch(lsns), strict=True):
                there = self._once_more(lsn) if one is None else one
                if there is None:
                    return lsn
                for piece in self._taken_apart(lsn, there):
                    if piece.lsn > known and found.setdefault(piece.lsn, piece).payload != piece.payload:
                        raise BrokenChain(
                            f"this log has two histories: commit {lsn} and a later one differ about commit "
                            f"{piece.lsn}. Nothing was changed. Look with: hopaas-p2p doctor URL"
                        )
        pieces[:] = [found[lsn] for lsn in range(known + 1, top + 1)]
        return 0

    def _from_below(self, known: int, top: int, pieces: list[ReadCommit]) -> int:
        """Replace these by the commits behind `known`, one object after the other, as far as they are enough."""
        self.stopped = True
        pieces.clear()
        size = 0
        for lsn in range(known + 1, top):
            there = self._once_more(lsn)
            if there is None:
                self.stopped = bool(pieces)
                return 0 if pieces else lsn
            pieces.append(self._taken_apart(lsn, there)[-1])
            size += len(pieces[-1].payload)
            if size >= self._enough:
                break
        return 0
