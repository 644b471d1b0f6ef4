"""Lets peers take turns in a bucket, where a PUT costs 12 times as much as a GET.

While the log has room, every peer writes at once, and one that loses a race waits for a random time. In a busy log,
half of the PUTs would lose. Then the peers take turns: the one that has waited longest since its last commit goes next,
as all can see from the log. A turn that nobody takes passes by itself. A turn is as long as a PUT, or a GET if that is
slower; otherwise a peer that has just written, and need not read, would be first for seconds on end.
"""

from __future__ import annotations

import itertools
import random
from typing import Final

from hopaas_p2p.stores.objects.scheduler import GAP, ME, CrowdScheduler, Sight
from hopaas_p2p.stores.s3.search import EndSearch

_RECENT: Final = 1.5  # seconds, by the server's clock, whose times are in whole seconds
_LATELY: Final = 3.0  # seconds, by the server's clock, over which commits are counted
_FULL: Final = 0.4  # share of the time with a PUT under way: no room for peers to write at will
_TURN: Final = 1.5  # slots for which a turn is left to its owner
_ROUND: Final = 1.9  # slots per writer in a round; determined, like the rest, in tests/stores/test_write_scheduler.py
_LOOKS: Final = 2.0  # average number of reads in a search
_LONGEST_WAIT: Final = 16  # slots
_POLL: Final = 0.2  # slots between checks of whose turn it is


class TurnScheduler(CrowdScheduler):
    """Takes turns if there is no room; see the module."""

    slot_bounds = (0.005, 0.5)
    look_when = 0.1  # a PUT costs 12 times as much as a GET

    def __init__(self, rng: random.Random | None = None) -> None:
        super().__init__(rng)
        self._lost_at: float | None = None
        """When a write of this peer last lost, and the winning commit was read."""
        self._beaten = 0

    # --- what was seen ---

    def won(self, now: float, took: float, writer: str = "") -> None:
        super().won(now, took, writer)
        self._beaten = 0
        before = self._recent[-1] if self._recent else Sight(ME, 0.0, now)
        self._recent.append(Sight(ME, before.modified + now - before.seen, now))

    def lost(self, now: float, took: float) -> None:
        super().lost(now, took)
        self._lost_at = now
        # before its first win, it does not know that a server is near
        self._write = max(min(self._write, 2 * took), self.slot_bounds[0])
        self._beaten += 1

    def looked(self, took: float) -> None:
        """Record that reading one commit took this many seconds."""
        self._look = min(0.7 * self._look + 0.3 * took, self.slot_bounds[1])

    # --- how far to look ---

    def search(self, now: float, behind: int = 0) -> EndSearch:
        """A search for the end of the log, for a reader that lacks `behind` of the commits seen here."""
        if self._head_at is None:
            return EndSearch(None)
        known_at = self._head_at if self._lost_at is None else max(self._head_at, self._lost_at)
        expected = self.expected(now + _LOOKS * self._look) - self.expected(known_at)
        hurried = self._full  # commits that others write during a search come before ours
        return EndSearch(expected, behind=behind, hurried=hurried)

    # --- whose turn it is ---

    @property
    def _busy(self) -> float:
        """The share of the time during which a PUT is under way."""
        newest = max([sight.modified for sight in self._recent], default=0.0)
        lately = sum(newest - sight.modified <= _LATELY for sight in self._recent)
        full = len(self._recent) == self._recent.maxlen
        seconds = min(newest - self._recent[0].modified, _LATELY) if full else _LATELY
        return lately / (seconds + 0.5) * self._slot

    @property
    def _full(self) -> bool:
        return self._busy >= _FULL

    def pause(self, now: float) -> float:
        if not self._recent or not self._full:
            return 0.0
        waited = now - self._recent[-1].seen
        if self._alone >= self._run and waited < GAP * self._slot:
            return GAP * self._slot - waited
        self._lets_go()
        line = self._line()
        mine = line.pop(ME, -1)
        ahead = sum(place < mine for place in line.values())  # writers in line that have waited longer
        if not ahead or waited >= ahead * _TURN * self._slot:
            return 0.0
        return max((ahead - 1) * self._slot - waited, _POLL * self._slot) * self._rng.uniform(0.8, 1.2)

    def _line(self) -> dict[str | None, int]:
        """The writers in line, with the place of each one's last commit among those seen.

        This is the largest set of writers that all committed within their last round; a writer that missed its round
        is assumed idle.
        """
        busy = self._busy
        seen: dict[str | None, int] = {}
        standing = 0
        for back, sight in enumerate(reversed(self._recent)):
            if sight.writer not in seen:
                seen[sight.writer] = len(self._recent) - 1 - back
                if back <= _ROUND * len(seen) * busy + 2:
                    standing = len(seen)
        return dict(itertools.islice(seen.items(), standing))

    def after_losing(self) -> float:
        """A random time, or 0 if this peer is in line.

        The time grows with this peer's losses, but only among many writers. A peer that always loses to the same writer
        tries again soon; otherwise it would sleep whenever that writer pauses.
        """
        if self._full and ME in self._line():
            return 0.0
        newest = max([sight.modified for sight in self._recent], default=0.0)
        lately = (one.writer for one in self._recent if newest - one.modified <= _RECENT)
        writers = len(set(lately) - {ME})  # by the server's clock
        slots = max(min(2**self._beaten, writers**2 + 1, _LONGEST_WAIT), writers)
        return self._rng.uniform(0.0, slots * self._slot)
