"""How busy a log is, as one peer sees it: whether to look before it writes, how far, and whose turn it is.

S3 tells nobody that something changed, and a PUT that comes second costs as much as one that comes first. So a peer
remembers who committed lately, how often, and how long a PUT takes. All are guesses: they decide what a commit costs,
never what becomes of it.

While a log has room, everybody writes at once and who comes second waits a little, at random. When it has none, that
would let every other PUT come second. Then the peers take turns, without a word between them: who has waited the
longest since its last commit goes next, as all can tell from the log. A turn that nobody takes passes by itself.

Who writes without a break to a server nearby is always first, and never sees the others. So it lets go now and then.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import deque
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec

WIDEST: Final = 16
"""GETs under way at once, at most."""
_MEMORY: Final = 20.0  # seconds after which an observation counts for a third
_LOOK: Final = 0.1  # commits of others to be expected for which a GET is worth it: a PUT costs 12 times as much
_RECENT: Final = 1.5  # seconds, by the server's clock, which tells whole ones
_SLOT: Final = (0.005, 0.5)  # seconds
_LATELY: Final = 3.0  # seconds, by the server's clock, over which commits are counted
_FULL: Final = 0.4  # of the time somebody's PUT is under way: no room for those who come as they please
_LOSING: Final = 0.5  # of this peer's PUTs, as far as it remembers: no room either
_TURN: Final = 1.5  # slots for which a turn is left to whose it is
_ROUND: Final = 1.9  # slots that a round has for each writer; as the rest, tried out in tests/test_s3_tempo.py
_LATEST: Final = 3.0  # slots for each writer ahead, after which this peer goes
_STORM: Final = 6.0  # seconds after which a lost PUT counts for a third
_HIDDEN: Final = 1.6  # times as busy as this peer loses is the log, if it looks less so
_ALONE: Final = (16, 256)  # commits in a full log without another's, after which it lets go: less and less often
_GAP: Final = 3.0  # slots for which it does: a look and a PUT of somebody else
_LONGEST_WAIT: Final = 16  # slots
_POLL: Final = 0.2  # slots between looks of who is next
_CROWD: Final = 60.0  # seconds for which a writer counts as one of those who report
_SHARE: Final = 0.2  # of a log's commits that are left for reports
_LONGEST_LINGER: Final = 30.0  # seconds; pruners of others see reports that late
_ME: Final = None


class _Writer(msgspec.Struct, array_like=True, frozen=True):
    """The first two elements of a commit, see `core.codec`."""

    format: int
    writer: str


_peek: Final = msgspec.msgpack.Decoder(_Writer)


class _Sight(NamedTuple):
    writer: str | None
    modified: float
    """By the server's clock."""
    seen: float
    """By this machine's monotonic one."""


class Tempo:
    """One log's pace. Times are seconds on the caller's monotonic clock, but for `modified`, which is the server's."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()
        self._others = 0.0
        self._seconds = 0.0
        self._head_at: float | None = None
        self._slot = 0.05
        self._losing = 0.0
        self._faded_at = 0.0
        self._due: float | None = None
        self._beaten = 0
        self._alone, self._run = 0, _ALONE[0]
        self._recent: deque[_Sight] = deque(maxlen=256)

    # --- what was seen ---

    def saw(self, payload: bytes, modified: float, now: float) -> None:
        """A commit of somebody else was read."""
        try:
            writer = _peek.decode(memoryview(payload)[4:]).writer
        except (msgspec.MsgspecError, ValueError):
            writer = ""
        self._recent.append(_Sight(writer, modified, now))
        self._alone, self._run = 0, _ALONE[0]

    def reached_head(self, others: int, now: float) -> None:
        """All was read up to the end of the log, `others` commits since the last time."""
        if self._head_at is not None:
            elapsed = max(now - self._head_at, 1e-3)
            fading = math.exp(-elapsed / _MEMORY)
            self._others = self._others * fading + others
            self._seconds = self._seconds * fading + elapsed
        self._head_at = now

    def won(self, now: float, took: float) -> None:
        """A PUT of this peer became a commit."""
        self.reached_head(0, now)
        self._fade(now)
        self._losing *= 0.7
        self._beaten = 0
        self._due = None
        self._slot = min(max(0.7 * self._slot + 0.3 * took, _SLOT[0]), _SLOT[1])
        self._alone += 1
        before = self._recent[-1] if self._recent else _Sight(_ME, 0.0, now)
        self._recent.append(_Sight(_ME, before.modified + now - before.seen, now))

    def lost(self, now: float, took: float) -> None:
        """A PUT of this peer came second."""
        self._fade(now)
        self._slot = max(min(self._slot, 2 * took), _SLOT[0])  # before it has won, it does not know a near server
        self._due = None
        self._others += 1.0
        self._losing = 0.7 * self._losing + 0.3
        self._beaten += 1

    def _fade(self, now: float) -> None:
        """A storm that is over says nothing about what comes."""
        self._losing *= math.exp(-max(now - self._faded_at, 0.0) / _STORM)
        self._faded_at = now

    # --- how far to look ---

    def expected(self, now: float) -> float:
        """Commits of others that are probably there by now."""
        if self._head_at is None:
            return 1.0
        return self._others / max(self._seconds, 1.0) * (now - self._head_at)

    def look_first(self, now: float) -> bool:
        """Whether a GET before the PUT pays."""
        return self.expected(now) > _LOOK

    def windows(self, now: float) -> Iterator[int]:
        """How many commits to ask for at once, time after time: as many as are probably there, then a few, then more.

        The last look before a PUT had better be a narrow one: what is written while it lasts comes first.
        """
        expected = self.expected(now)
        sure = int(expected + math.sqrt(expected) / 2)
        while sure > WIDEST:
            yield WIDEST
            sure -= WIDEST
        width = 1
        if sure > 1:
            yield sure
            width = 2
        while True:
            yield width
            width = min(2 * width, WIDEST)

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

    def pause(self, now: float) -> float:
        """Seconds after which to look again, because it is not this peer's turn to write; 0 if it is."""
        self._fade(now)
        if not self._recent or not self._full:
            return 0.0
        waited = now - self._recent[-1].seen
        if self._alone >= self._run:
            if waited < _GAP * self._slot:
                return _GAP * self._slot - waited
            self._alone, self._run = 0, min(2 * self._run, _ALONE[1])
        ahead = self._ahead()
        if self._due is None:
            self._due = now + _LATEST * ahead * self._slot  # for whoever is taken to stand in line, and does not
        if not ahead or now >= self._due or waited >= ahead * _TURN * self._slot:
            return 0.0
        return max((ahead - 1) * self._slot - waited, _POLL * self._slot) * self._rng.uniform(0.8, 1.2)

    def _ahead(self) -> int:
        """How many of those who stand in line have waited longer than this peer."""
        last = self._line()
        mine = last.pop(_ME, -1)
        return sum(place < mine for place in last.values())

    def _line(self) -> dict[str | None, int]:
        """Who stands in line, with the place of each one's last commit among those that were seen.

        The largest number of writers of whom all wrote within a round of theirs: who misses it has nothing to say just
        now. Where PUTs come second, more of them are under way than come through.
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
        """Seconds to stay away after another's PUT came first: at random, unless this peer stands in line.

        The longer, the more often it was so, but only where many are about: who is always beaten by the same one comes
        again soon, or it would sleep whenever that one lets go.
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

    # --- how long reports may wait ---

    def linger(self, now: float) -> float:
        """Seconds for which reports should wait for company, so that those of all fill a fifth of the log at most."""
        crowd = {sight.writer for sight in self._recent if now - sight.seen <= _CROWD}
        return min(len(crowd) * self._slot / _SHARE, _LONGEST_LINGER)
