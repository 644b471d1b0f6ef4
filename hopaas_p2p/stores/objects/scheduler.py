"""Decides when a peer writes to a log on a server, whether it reads first, and how long reports wait.

A peer knows the other writers only from their commits. Its estimates affect the cost of a commit, never whether the
commit counts.

`SpreadScheduler` is for a directory on a file server, where a lost write costs less than a read. A peer that has
committed pauses for as long as the others need for one commit each; a peer whose write lost writes again at once. So a
peer that has lost is ahead of one that has just won, without any communication.

`TurnScheduler` (see `s3.scheduler`) is for a bucket, where peers take turns while the log is busy.

A peer that writes without a break would always be first and never see the others, so both schedulers let it pause from
time to time.
"""

from __future__ import annotations

import math
import random
from collections import deque
from typing import Final, NamedTuple

from hopaas_p2p.core import codec
from hopaas_p2p.stores.objects.log import WriteScheduler

GAP: Final = 5.0
"""Slots for which a peer pauses after a run of commits. A peer with slow reads finds the end in two or three slots, and
then writes."""
ME: Final = None
_MEMORY: Final = 20.0  # seconds after which an observation counts for a third
_LATELY_SEEN: Final = 10.0  # seconds for which a writer to a directory also counts as waiting
_ALONE: Final = (16, 256)  # first and largest number of own commits in a row, in a full log, before a pause
_CROWD: Final = 60.0  # seconds for which a writer counts as reporting
_SHARE: Final = 0.2  # share of a log's commits left for reports
_LONGEST_INTERVAL: Final = 30.0  # seconds by which other peers' pruners may see reports late


class Sight(NamedTuple):
    """A commit of another peer, or of this one (`ME`)."""

    writer: str | None
    modified: float
    """When the commit was written, by the server's clock."""
    seen: float
    """When the commit was seen, by this machine's monotonic clock."""


class CrowdScheduler(WriteScheduler):
    """One peer's observations of the other writers: their names, how often they commit, and how long a write takes."""

    at_once = False
    slot_bounds: tuple[float, float]
    """Bounds of the assumed duration of a write, in seconds."""
    look_when: float
    """The number of expected commits of others above which a read before the write pays off."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()
        self._others = 0.0
        self._seconds = 0.0
        self._head_at: float | None = None
        self._write = min(0.05, self.slot_bounds[1])
        self._look = 0.0
        self._recent: deque[Sight] = deque(maxlen=256)
        self._own: deque[tuple[str, float]] = deque(maxlen=256)
        """The writers whose commits this process wrote, and when; a server has several."""
        self._alone, self._run = 0, _ALONE[0]

    def saw(self, payload: bytes, modified: float, now: float) -> None:
        self._recent.append(Sight(codec.writer_of(payload), modified, now))
        self._alone, self._run = 0, _ALONE[0]

    def reached_head(self, others: int, now: float) -> None:
        if self._head_at is not None:
            elapsed = max(now - self._head_at, 1e-3)
            fading = math.exp(-elapsed / _MEMORY)
            self._others = self._others * fading + others
            self._seconds = self._seconds * fading + elapsed
        self._head_at = now

    def won(self, now: float, took: float, writer: str = "") -> None:
        self.reached_head(0, now)
        self._own.append((writer, now))
        self._alone += 1
        self._write = min(max(0.7 * self._write + 0.3 * took, self.slot_bounds[0]), self.slot_bounds[1])

    def lost(self, now: float, took: float) -> None:
        self._others += 1.0

    @property
    def _slot(self) -> float:
        """Seconds to plan per commit: those of a write, or of a read if that is slower."""
        return max(self._write, self._look)

    def expected(self, now: float) -> float:
        """Expected number of other peers' commits since the end of the log was last seen; 1 if it never was."""
        if self._head_at is None:
            return 1.0
        return self._others / max(self._seconds, 1.0) * (now - self._head_at)

    def look_first(self, now: float) -> bool:
        return self.expected(now) > self.look_when

    def _lets_go(self) -> bool:
        """Whether this peer made so many commits in a row that it should check for other writers."""
        if self._alone < self._run:
            return False
        self._alone, self._run = 0, min(2 * self._run, _ALONE[1])
        return True

    def flush_interval(self, now: float) -> float:
        sights = tuple(self._recent)  # another thread may be in the middle of an exchange
        crowd = {sight.writer for sight in sights if now - sight.seen <= _CROWD}
        served = {writer for writer, at in tuple(self._own) if now - at <= _CROWD}
        return min((len(crowd) + max(len(served) - 1, 0)) * self._slot / _SHARE, _LONGEST_INTERVAL)


class SpreadScheduler(CrowdScheduler):
    """Makes a peer pause after a commit; see the module."""

    slot_bounds = (0.0005, 0.25)
    look_when = 0.6  # a lost write costs one call to the server, a read two or three
    _away_until = 0.0

    def won(self, now: float, took: float, writer: str = "") -> None:
        super().won(now, took, writer)
        others = {sight.writer for sight in self._recent if now - sight.seen <= _LATELY_SEEN}
        slots = GAP if self._lets_go() else len(others)
        self._away_until = now + slots * self._slot * self._rng.uniform(0.7, 1.3)

    def look_first(self, now: float) -> bool:
        return now >= self._away_until and super().look_first(now)  # otherwise it reads when it comes back

    def pause(self, now: float) -> float:
        return max(self._away_until - now, 0.0)
