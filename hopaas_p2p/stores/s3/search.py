"""Chooses where to look for the end of a log whose objects also show earlier commits.

A reader expects some number of new commits, and requests one object at a time: the one that is as likely to be before
the end of the log as after it. Each answer halves the possibilities, so fifteen new commits take three or four GETs
instead of sixteen. The last answer must not be old, because a write follows it. If one place is left, the free place
after it is therefore requested again in the same round. A wrong guess costs one more GET, and nothing else.
"""

from __future__ import annotations

import math
from typing import Final

from hopaas_p2p.stores.objects.carried import MOST

WIDEST: Final = 16
"""The maximum number of concurrent GETs."""
_FAR: Final = 2.0 * MOST  # expected commits beyond which they are read in windows
ABREAST: Final = 4  # objects at once for a peer that must not be late
_RUSH: Final = 8  # rounds of such reads, after which it reads windows, of which the last includes the end
_LONG: Final = 20  # rounds after which it leaps, and accepts the end as seen; a log may grow faster than one reads
_SPREAD: Final = 0.35  # variance of the number of new commits, per expected commit; from test_write_scheduler.py
_SHARE: Final = 0.5  # probability that the end lies beyond the offset that is read; from the same test
_SURE: Final = 0.98  # probability that the expectation is of any use; from the same test


class EndSearch:
    """One search. Offsets count from the last commit that the reader knows.

    Args:
        expected: how many commits are probably new; None if unknown, as on the first read.
        behind: how many more commits are certainly new.
        hurried: whether to request several at once, because commits that arrive during the search come first. An end
            seen some rounds ago is then requested again, as long as that does not make the search endless.

    """

    def __init__(self, expected: float | None, *, behind: int = 0, hurried: bool = False) -> None:
        self._expected = None if expected is None or expected + behind > _FAR else expected
        self._behind = behind
        self._hurried = hurried and self._expected is not None
        self._known = 0
        self._free: int | None = None
        self._checked = True
        """Whether the free offset was found free in the last round."""
        self._width = 1
        self._stride = 1
        self._rounds = 0

    def following(self) -> list[int]:
        """The offsets to read next, ascending; empty when the end is known."""
        self._hurried = self._hurried and self._rounds < _RUSH
        if self._free == self._known + 1 and (self._checked or not self._hurried):
            return []
        self._checked = False
        self._rounds += 1
        if self._expected is None or self._rounds > _RUSH:
            return self._window()
        if self._hurried:
            return self._several(self._expected)
        if self._free == self._known + 2:
            return [self._known + 1, self._free]
        return [self._likeliest(self._expected, _SHARE)]

    def found(self, offset: int, *, carries: int = 0) -> None:
        """Record that everything up to this offset was read; the object there carries this many commits."""
        self._known = max(self._known, offset)
        self._stride = carries + 1
        if self._free is not None and self._free <= self._known:
            self._free = None

    def free(self, offset: int) -> None:
        """Record that there is no commit at this offset."""
        self._free = offset if self._free is None else min(offset, self._free)
        self._checked = True

    def _window(self) -> list[int]:
        late = self._rounds > _RUSH
        if self._free is not None:
            if late and self._free - self._known <= WIDEST:
                return list(range(self._known + 1, self._free + (self._rounds <= _LONG)))
            return [(self._known + self._free) // 2]
        leap = 1 << max(0, self._rounds - _LONG)
        first, width, step = self._known + self._stride, self._width, self._stride * leap
        self._width = min(2 * width, WIDEST)
        return list(range(first, first + width * step, step))

    def _several(self, expected: float) -> list[int]:
        if self._free is not None and self._free - self._known <= ABREAST:
            return list(range(self._known + 1, self._free + 1))
        shares = ((ABREAST - place - 0.5) / ABREAST for place in range(ABREAST))
        return sorted({self._likeliest(expected, share) for share in shares})

    def _likeliest(self, expected: float, share: float) -> int:
        """The offset that the log has reached with probability `share`, given all that is known."""
        most, least = self._reached(expected, self._known), self._reached(expected, self._free)
        offset, before = self._known + 1, 1.0
        while True:
            chance = (self._reached(expected, offset) - least) / (most - least) if most > least else 0.0
            if chance <= share or offset + 1 == self._free:
                break
            offset, before = offset + 1, chance
        return offset - 1 if offset > self._known + 1 and before - share < share - chance else offset

    def _reached(self, expected: float, offset: int | None) -> float:
        """The probability that the log has reached this offset."""
        if offset is None:
            return 0.0
        offset -= self._behind
        if offset <= 0:
            return 1.0
        deviation = math.sqrt(_SPREAD * expected + 0.05)
        near = 0.5 * math.erfc((offset - 0.5 - expected) / deviation / math.sqrt(2.0))
        return _SURE * near + (1.0 - _SURE) / (offset + 1) ** 2
