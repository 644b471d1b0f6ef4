"""When a log on a server writes, how far it looks first, and how long reports wait.

A peer sees the other writers only by their commits. What it remembers of these is a guess: it decides what a commit
costs, never whether it counts.

`SpreadScheduler` is for a directory on a file server, where a write that comes second costs less than a look. A peer
that has committed stays away for as long as the others need for a commit each; a peer whose write came second writes
again at once. So a peer that has lost is ahead of one that has just won, without a word between them.

`TurnScheduler` is for a bucket, where a PUT costs 12 times as much as a GET. While the log has room, everybody writes
at once, and a peer that comes second waits for a random moment. When it has none, that would let every other PUT come
second. Then the peers take turns: the one that has waited longest since its last commit goes next, as all can tell
from the log. A turn that nobody takes passes by itself. A turn is as long as a PUT, or as a GET where that is slower:
or whoever has just written, and need not look, would be first for seconds on end.

A peer that writes without a break would always be first and never see the others, so in both it lets go now and then.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import deque
from typing import Final, NamedTuple

from hopaas_p2p.core import codec
from hopaas_p2p.stores.objects.search import EndSearch

_MEMORY: Final = 20.0  # seconds after which an observation counts for a third
_LATELY_SEEN: Final = 10.0  # seconds for which a writer to a directory counts as one that is waiting, too
_SPREAD: Final = (0.0005, 0.25)  # seconds that each of them is taken to need for a commit
_RECENT: Final = 1.5  # seconds, by the server's clock, which tells whole ones
_SLOT: Final = (0.005, 0.5)  # seconds
_LATELY: Final = 3.0  # seconds, by the server's clock, over which commits are counted
_FULL: Final = 0.4  # of the time somebody's PUT is under way: no room for peers that write whenever they want
_LOSING: Final = 0.5  # of this peer's PUTs, as far as it remembers: no room either
_TURN: Final = 1.5  # slots for which a turn is left to whose it is
_ROUND: Final = 1.9  # slots per writer in a round; tried out, as the rest, in tests/stores/test_write_scheduler.py
_LATEST: Final = 3.0  # slots for each writer ahead, after which this peer goes
_STORM: Final = 6.0  # seconds after which a lost PUT counts for a third
_HIDDEN: Final = 1.6  # times as busy as this peer loses is the log, if it looks less so
_ALONE: Final = (16, 256)  # commits in a full log without another's, after which it lets go: less and less often
_LOOKS: Final = 2.0  # looks that a search lasts, on the average
_GAP: Final = 5.0  # slots for which it does: a peer whose looks are slow finds the end in two or three, and then writes
_LONGEST_WAIT: Final = 16  # slots
_POLL: Final = 0.2  # slots between looks for whose turn it is
_CROWD: Final = 60.0  # seconds for which a writer counts as one that reports
_SHARE: Final = 0.2  # of a log's commits that are left for reports
_LONGEST_INTERVAL: Final = 30.0  # seconds; pruners of others see reports that late
_ME: Final = None


class _Sight(NamedTuple):
    writer: str | None
    modified: float
    """By the server's clock."""
    seen: float
    """By this machine's monotonic one."""


class WriteScheduler:
    """What one peer has seen of the other writers: which they are, how often they commit, how long a write takes.

    Times are seconds on the caller's monotonic clock, except for `modified`, which is the server's.
    """

    slot_bounds: tuple[float, float]
    """Bounds of the seconds that a write is taken to need."""
    look_when: float
    """Commits of others to be expected for which a look before the write pays."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()
        self._others = 0.0
        self._seconds = 0.0
        self._head_at: float | None = None
        self._lost_at: float | None = None
        """When a write of this peer last came second, and the commit was read that came first."""
        self._write = min(0.05, self.slot_bounds[1])
        self._look = 0.0
        self._recent: deque[_Sight] = deque(maxlen=256)
        self._alone, self._run = 0, _ALONE[0]

    def saw(self, payload: bytes, modified: float, now: float) -> None:
        """A commit of another peer was read."""
        self._recent.append(_Sight(codec.writer_of(payload), modified, now))
        self._alone, self._run = 0, _ALONE[0]

    def reached_head(self, others: int, now: float) -> None:
        """Everything was read up to the end of the log, `others` commits since the last time."""
        if self._head_at is not None:
            elapsed = max(now - self._head_at, 1e-3)
            fading = math.exp(-elapsed / _MEMORY)
            self._others = self._others * fading + others
            self._seconds = self._seconds * fading + elapsed
        self._head_at = now

    def won(self, now: float, took: float) -> None:
        """A write of this peer became a commit."""
        self.reached_head(0, now)
        self._alone += 1
        self._write = min(max(0.7 * self._write + 0.3 * took, self.slot_bounds[0]), self.slot_bounds[1])

    @property
    def _slot(self) -> float:
        """Seconds that a commit of a peer takes which has seen the others: a write, or a look where that is slower."""
        return max(self._write, self._look)

    def looked(self, took: float) -> None:
        """A look at one commit took so many seconds."""

    def lost(self, now: float, took: float) -> None:
        """A write of this peer came second."""
        self._others += 1.0

    def expected(self, now: float) -> float:
        """Commits of others that are probably there by now."""
        if self._head_at is None:
            return 1.0
        return self._others / max(self._seconds, 1.0) * (now - self._head_at)

    def look_first(self, now: float) -> bool:
        """Whether a look before the write pays."""
        return self.expected(now) > self.look_when

    def search(self, now: float) -> EndSearch:
        """How to look for the end of the log, where objects carry earlier commits."""
        if self._head_at is None:
            return EndSearch(None)
        known_at = self._head_at if self._lost_at is None else max(self._head_at, self._lost_at)
        expected = self.expected(now + _LOOKS * self._look) - self.expected(known_at)
        return EndSearch(expected, hurried=self._hurried)

    @property
    def _hurried(self) -> bool:
        """Whether what others write during a search would come first."""
        return False

    def pause(self, now: float) -> float:
        """Seconds after which to look again, because this peer should not write yet; 0 if it may."""
        raise NotImplementedError

    def after_losing(self) -> float:
        """Seconds to stay away after another's write came first."""
        return 0.0

    def _lets_go(self) -> bool:
        """Whether so many commits in a row were this peer's that it should make sure that there are no others."""
        if self._alone < self._run:
            return False
        self._alone, self._run = 0, min(2 * self._run, _ALONE[1])
        return True

    def flush_interval(self, now: float) -> float:
        """Seconds for which reports should wait for company, so that those of all fill a fifth of the log at most."""
        sights = tuple(self._recent)  # another thread may be in the middle of an exchange
        crowd = {sight.writer for sight in sights if now - sight.seen <= _CROWD}
        return min(len(crowd) * self._slot / _SHARE, _LONGEST_INTERVAL)


class SpreadScheduler(WriteScheduler):
    """Stay away after a commit; see the module."""

    slot_bounds = _SPREAD
    look_when = 0.6  # a write that comes second costs one call of the server, a look two or three

    def __init__(self, rng: random.Random | None = None) -> None:
        super().__init__(rng)
        self._away_until = 0.0

    def won(self, now: float, took: float) -> None:
        super().won(now, took)
        others = {sight.writer for sight in self._recent if now - sight.seen <= _LATELY_SEEN}
        slots = _GAP if self._lets_go() else len(others)
        self._away_until = now + slots * self._slot * self._rng.uniform(0.7, 1.3)

    def look_first(self, now: float) -> bool:
        return now >= self._away_until and super().look_first(now)  # else it looks when it comes back

    def pause(self, now: float) -> float:
        return max(self._away_until - now, 0.0)


class TurnScheduler(WriteScheduler):
    """Take turns where there is no room; see the module."""

    slot_bounds = _SLOT
    look_when = 0.1  # a PUT costs 12 times as much as a GET

    def __init__(self, rng: random.Random | None = None) -> None:
        super().__init__(rng)
        self._losing = 0.0
        self._faded_at = 0.0
        self._due: float | None = None
        self._beaten = 0

    # --- what was seen ---

    def won(self, now: float, took: float) -> None:
        super().won(now, took)
        self._fade(now)
        self._losing *= 0.7
        self._beaten = 0
        self._due = None
        before = self._recent[-1] if self._recent else _Sight(_ME, 0.0, now)
        self._recent.append(_Sight(_ME, before.modified + now - before.seen, now))

    def lost(self, now: float, took: float) -> None:
        super().lost(now, took)
        self._lost_at = now
        self._fade(now)
        self._write = max(min(self._write, 2 * took), _SLOT[0])  # before it has won, it does not know a near server
        self._due = None
        self._losing = 0.7 * self._losing + 0.3
        self._beaten += 1

    def looked(self, took: float) -> None:
        self._look = min(0.7 * self._look + 0.3 * took, _SLOT[1])

    def _fade(self, now: float) -> None:
        """A storm that is over says nothing about what comes."""
        self._losing *= math.exp(-max(now - self._faded_at, 0.0) / _STORM)
        self._faded_at = now

    # --- how far to look ---

    # --- whose turn it is ---

    @property
    def _busy(self) -> float:
        """The part of the time for which somebody's PUT is under way."""
        newest = max([sight.modified for sight in self._recent], default=0.0)
        lately = sum(newest - sight.modified <= _LATELY for sight in self._recent)
        full = len(self._recent) == self._recent.maxlen
        seconds = min(newest - self._recent[0].modified, _LATELY) if full else _LATELY
        return lately / (seconds + 0.5) * self._slot

    @property
    def _full(self) -> bool:
        return self._losing >= _LOSING or self._busy >= _FULL

    @property
    def _hurried(self) -> bool:
        return self._busy >= _FULL

    def pause(self, now: float) -> float:
        self._fade(now)
        if not self._recent or not self._full:
            return 0.0
        waited = now - self._recent[-1].seen
        if self._alone >= self._run and waited < _GAP * self._slot:
            return _GAP * self._slot - waited
        self._lets_go()
        ahead = self._ahead()
        if self._due is None:
            self._due = now + _LATEST * ahead * self._slot  # a writer that seems to be in line may not be
        if not ahead or now >= self._due or waited >= ahead * _TURN * self._slot:
            return 0.0
        return max((ahead - 1) * self._slot - waited, _POLL * self._slot) * self._rng.uniform(0.8, 1.2)

    def _ahead(self) -> int:
        """How many of the writers in line have waited longer than this peer."""
        last = self._line()
        mine = last.pop(_ME, -1)
        return sum(place < mine for place in last.values())

    def _line(self) -> dict[str | None, int]:
        """The writers in line, with the place of each one's last commit among those that were seen.

        This is the largest set of writers that all committed within their last round; a writer that missed its round
        is assumed idle. Where PUTs come second, more of them are under way than succeed.
        """
        busy = max(self._busy, _HIDDEN * self._losing)
        seen: dict[str | None, int] = {}
        standing = 0
        for back, sight in enumerate(reversed(self._recent)):
            if sight.writer not in seen:
                seen[sight.writer] = len(self._recent) - 1 - back
                if back <= _ROUND * len(seen) * busy + 2:
                    standing = len(seen)
        return dict(itertools.islice(seen.items(), standing))

    def after_losing(self) -> float:
        """At random, unless this peer stands in line.

        The longer, the more often this peer has lost, but only among many writers: a peer that always loses to the
        same one tries again soon, or it would sleep whenever that one pauses.
        """
        if self._full and _ME in self._line():
            return 0.0
        writers = self.writers
        slots = max(min(2**self._beaten, writers**2 + 1, _LONGEST_WAIT), writers)
        return self._rng.uniform(0.0, slots * self._slot)

    @property
    def writers(self) -> int:
        """How many others committed lately, by the server's clock."""
        newest = max([sight.modified for sight in self._recent], default=0.0)
        return len({one.writer for one in self._recent if newest - one.modified <= _RECENT and one.writer is not _ME})
