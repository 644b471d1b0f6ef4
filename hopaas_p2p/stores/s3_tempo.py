"""How busy a log is, as one peer sees it: whether to look before it writes, how far, and how long to stand aside.

S3 tells nobody that something changed, and a PUT that comes second costs as much as one that comes first. So a peer
keeps three numbers: how often others commit, how many they are, how long a PUT takes. All are guesses: they decide
what a commit costs, never what becomes of it.
"""

from __future__ import annotations

import math
import random
from collections import deque
from typing import Final, NamedTuple

import msgspec

WIDEST: Final = 16
"""GETs under way at once, at most."""
_MEMORY: Final = 20.0  # seconds after which an observation counts for a third
_LOOK: Final = 0.1  # commits of others to be expected for which a GET is worth it: a PUT costs 12 times as much
_RECENT: Final = 1.5  # seconds, by the server's clock, which tells whole ones
_SLOT: Final = (0.005, 0.5)  # seconds


class _Writer(msgspec.Struct, array_like=True, frozen=True):
    """The first two elements of a commit, see `core.codec`."""

    format: int
    writer: str


_peek: Final = msgspec.msgpack.Decoder(_Writer)


class _Sight(NamedTuple):
    modified: float
    writer: str


class Tempo:
    """One log's pace. Times are seconds on the caller's monotonic clock, but for `modified`, which is the server's."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()
        self._commits = 0.0
        self._seconds = 0.0
        self._head_at: float | None = None
        self._won_at = -1e9
        self._slot = 0.05
        self._recent: deque[_Sight] = deque(maxlen=64)

    def saw(self, payload: bytes, modified: float) -> None:
        """A commit of somebody else was read."""
        try:
            writer = _peek.decode(memoryview(payload)[4:]).writer
        except (msgspec.MsgspecError, ValueError):
            writer = ""
        self._recent.append(_Sight(modified, writer))

    def reached_head(self, others: int, now: float) -> None:
        """All was read up to the end of the log, `others` commits since the last time."""
        if self._head_at is not None:
            elapsed = max(now - self._head_at, 1e-3)
            fading = math.exp(-elapsed / _MEMORY)
            self._commits = self._commits * fading + others
            self._seconds = self._seconds * fading + elapsed
        self._head_at = now

    def won(self, now: float, took: float) -> None:
        """A PUT of this peer became a commit."""
        self._won_at = self._head_at = now
        self._slot = min(max(0.7 * self._slot + 0.3 * took, _SLOT[0]), _SLOT[1])

    def expected(self, now: float) -> float:
        """Commits of others that are probably there by now."""
        if self._head_at is None:
            return 1.0
        return self._rate * (now - self._head_at)

    @property
    def _rate(self) -> float:
        """Commits of others a second."""
        return self._commits / max(self._seconds, 1.0)

    def look_first(self, now: float) -> bool:
        """Whether a GET before the PUT pays."""
        return self.expected(now) > _LOOK

    def first_window(self, now: float) -> int:
        """How many commits to ask for at once: one, unless more are expected."""
        expected = min(self.expected(now), WIDEST)
        return 1 << max(math.ceil(math.log2(expected)), 0) if expected > 1.0 else 1

    @property
    def writers(self) -> int:
        """How many others committed lately, by the server's clock."""
        if not self._recent:
            return 0
        newest = max(sight.modified for sight in self._recent)
        return len({sight.writer for sight in self._recent if newest - sight.modified <= _RECENT})

    def after_losing(self) -> float:
        """Seconds to stay away from a log for which others compete."""
        return self._rng.uniform(0.0, max(self.writers, 1) * self._slot)

    def after_winning(self, now: float) -> float:
        """Seconds that the others are still to be given before this peer writes again."""
        if self._rate * self._slot < _LOOK:
            return 0.0  # nobody stands in line
        return max(self._won_at + self._rng.uniform(0.5, 1.0) * self.writers * self._slot - now, 0.0)
