"""Who goes on and who waits: asynchronous successive halving by promotion (arXiv 1810.05934), without a master.

A configuration runs up to its next rung and pauses there. Whoever is free takes the best configuration that a rung
promotes, the highest rung first, and otherwise begins a new one. A rung promotes the best 1/eta of all configurations
that have reached it, whether they wait, run on, or are finished, so the first wave of a study is cut as well.

A configuration belongs to one bracket for life. Bracket b begins at the b-th rung, so a bracket with a high first rung
protects configurations that start slowly. Brackets get configurations by turns. Hyperband gives most to the lowest one;
where curves cross, that takes several times as long as no pruning, and by turns it takes less (docs/benchmarks.md).

With three brackets or more, the first configurations do not pause until `whole` of them were trained to the end, and
later one of 32 never does. A rung at which the best of those stood behind is passed for as long as that is so, and what
waits there goes on in the order in which it began.

This file knows numbers only: no trials, no log. `chains` derives from a study's trials where each configuration stands.
"""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Collection
from typing import Final, NamedTuple

import msgspec

from hopaas_p2p.core.standings import Ranking, RungCount, RungStanding, Standings, TrialChain, first, remove

_MOST_RUNGS: Final = 64
_HEDGED: Final = 3
"""With this many brackets or more, a rung must show that it predicts the final value."""
_MOST_WHOLE: Final = 1000
_AT_FIRST: Final = 8
"""The first `whole` times this many configurations do not pause until `whole` of them have ended."""
_ONE_WHOLE: Final = 32
"""One in this many configurations never pauses."""
_NEWEST: Final = 64
"""How many of the configurations that were trained to the end are compared, the newest first."""
LARGEST: Final = 1 << 53
AT_RUNG: Final = "it has come to a rung: save a checkpoint, and end"
"""Why a program is to leave its trial."""


class Rungs(msgspec.Struct, frozen=True, omit_defaults=True, tag="rungs"):
    """A study's trials pause at rungs, and the best of those that wait go on.

    A rung is at `min`, `min * eta`, `min * eta**2`, … epochs, as far as these are below `max`, the length of a whole
    training. "Epoch" stands for whatever your steps are.
    """

    min: int = 1
    """Epochs before the first rung."""
    max: int = 27
    """Epochs of a whole training: there is no rung from here on."""
    eta: int = 3
    """One of so many configurations that reach a rung is promoted."""
    brackets: int = 1
    """How many first rungs there are. With 2, some configurations pause at the second rung first, and so on."""
    first_step: int = 0
    """What `trial.report` calls the first epoch: 0, or 1."""
    whole: int = 8
    """With three brackets or more: how many configurations are trained to the end first. They show which rungs mislead;
    those are passed. 0: none are."""

    def epochs(self, step: int) -> int:
        """How many epochs are done after this step."""
        return step - self.first_step + 1

    @property
    def levels(self) -> tuple[int, ...]:
        """The rungs, in epochs."""
        return _levels(self.min, self.max, self.eta)

    def impossible(self) -> str | None:
        """What is wrong with these numbers, or None."""
        if not 1 <= self.min < self.max <= LARGEST:
            return f"min and max must be epochs with 1 <= min < max, got {self.min} and {self.max}"
        if not 2 <= self.eta <= LARGEST:
            return f"eta must be at least 2, got {self.eta}"
        if not 1 <= self.brackets <= len(self.levels) + 1:
            return f"with {len(self.levels)} rungs, brackets must be 1 to {len(self.levels) + 1}, got {self.brackets}"
        if self.first_step not in (0, 1):
            return f"first_step must be 0 or 1, got {self.first_step}"
        if not 0 <= self.whole <= _MOST_WHOLE:
            return f"whole must be 0 to {_MOST_WHOLE}, got {self.whole}"
        return None


@functools.lru_cache
def _levels(first: int, last: int, eta: int) -> tuple[int, ...]:
    levels: list[int] = []
    while first < last and len(levels) < _MOST_RUNGS:
        levels.append(first)
        first *= eta
    return tuple(levels)


class Ladder(Standings):
    """The rungs of a study, and where its configurations stand.

    Args:
        policy: its rungs.
        maximize: whether large values are good.

    """

    def __init__(self, policy: Rungs, *, maximize: bool = False) -> None:
        super().__init__(maximize=maximize)
        self.policy = policy
        self._bracket: dict[int, int] = {}
        self._hedged = policy.brackets >= _HEDGED and policy.whole > 0
        self._rungs = [[_Rung([], []) for _ in policy.levels] for _ in range(len(policy.levels) + 1)]
        """For each bracket all rungs; it pauses at none that is below its first."""
        self._whole: list[int] = []
        """The configurations that were trained to the end without a pause, in order."""
        self._passed: frozenset[int] = frozenset()
        """The rungs, from 0, that mislead, so that none pauses there."""
        self._first: set[int] = set()
        """The configurations that do not pause until the rungs are proved."""
        self._owed: Ranking = []
        """Configurations that wait at no rung that is still ahead of them: the rungs were changed."""
        self._best: dict[bool, int | None] = {}

    # --- configurations ---

    def admit(self, number: int) -> int:
        bracket = len(self._bracket) % self.policy.brackets
        if self._hedged and len(self._bracket) % _ONE_WHOLE == _ONE_WHOLE - 1:
            bracket = len(self.policy.levels)  # all rungs are below its first
        if self._hedged and len(self._bracket) < _AT_FIRST * self.policy.whole:
            self._first.add(number)
        self._bracket[number] = bracket
        self._standing[number] = RungStanding()
        return bracket

    def bracket(self, number: int) -> int:
        return self._bracket[number]

    def pauses_at(self, number: int) -> int | None:
        if number in self._first and self.is_unproved():
            return None
        begin, levels = max(self._standing[number].promoted, self._bracket[number]), self.policy.levels
        return next((levels[at] for at in range(begin, len(levels)) if at not in self._passed), None)

    def may_pause_at(self, number: int) -> int | None:
        begin, levels = max(self._standing[number].promoted, self._bracket[number]), self.policy.levels
        return levels[begin] if begin < len(levels) else None

    def ranking(self, number: int, at: int) -> Ranking:
        return self._rungs[self._bracket[number]][at].reached

    def _placed(self, number: int, before: RungStanding, to: RungStanding) -> None:
        self._best.clear()
        self._queue(number, before, waits=False)
        self._queue(number, to, waits=True)
        if before.end is not None:
            self._whole.remove(number)
        if to.end is not None:
            bisect.insort(self._whole, number)
        if before.end is not None or to.end is not None:
            self._judge()

    def _waits_at(self, number: int, standing: RungStanding) -> int | None:
        """The rung, from 0, at which a paused one waits; None if all of its rungs are behind it, or still ahead."""
        height = len(standing.reached)
        return height - 1 if height > max(standing.promoted, self._bracket[number]) else None

    def _queue(self, number: int, standing: RungStanding, *, waits: bool) -> None:
        if not standing.waits:
            return
        ranking, entry, at = self._owed, (0.0, number), self._waits_at(number, standing)
        if at is not None:
            key = self._key(standing.reached[-1])
            if key == math.inf:  # it diverged, and is not worth a continuation
                return
            ranking = self._rungs[self._bracket[number]][at].waiting
            entry = 0.0 if at in self._passed else key, number
        if waits:
            bisect.insort(ranking, entry)
        else:
            remove(ranking, entry)

    def is_unproved(self) -> bool:
        """Whether it is still to be seen which rungs mislead."""
        return self._hedged and len(self._whole) < self.policy.whole

    def _judge(self) -> None:
        """Find out which rungs mislead."""
        ends = [self._standing[number] for number in self._whole[-max(_NEWEST, self.policy.whole) :]]
        judged, passed = self._hedged and not self.is_unproved(), set()
        for at in range(len(self.policy.levels)) if judged else ():
            pairs = [
                (self._key(one.reached[at]), self._key(math.nan if one.end is None else one.end))
                for one in ends
                if len(one.reached) > at
            ]
            if _misleads(pairs):
                passed.add(at)
        if passed == self._passed:
            return
        waiting = [(number, one) for number, one in self._standing.items() if one.waits]
        for number, standing in waiting:
            self._queue(number, standing, waits=False)
        self._passed = frozenset(passed)
        for number, standing in waiting:
            self._queue(number, standing, waits=True)

    # --- who is promoted ---

    def best(self, *, closing: bool = False, room: bool = False, skip: Collection[int] = ()) -> int | None:  # noqa: ARG002
        if skip:
            return self._find_best(closing=closing, skip=skip)
        if closing not in self._best:
            self._best[closing] = self._find_best(closing=closing, skip=skip)
        return self._best[closing]

    def _find_best(self, *, closing: bool, skip: Collection[int]) -> int | None:
        for height in reversed(range(len(self.policy.levels))):
            found: list[tuple[float, int]] = []
            for bracket in range(min(height, self.policy.brackets - 1) + 1):
                rung = self._rungs[bracket][height]
                entry = first(rung.waiting, skip)
                if entry is None:
                    continue
                rank = bisect.bisect_left(rung.reached, entry)
                if height in self._passed or rank < max(len(rung.reached) // self.policy.eta, int(closing)):
                    found.append(entry)
            if found:
                return min(found)[1]
        owed = first(self._owed, skip)
        return None if owed is None else owed[1]

    def may_be_continued(self, number: int, chain: TrialChain, trial: int, *, used: int, most: int | None) -> bool:  # noqa: ARG002
        return chain.paused == trial and self.may_be_promoted(number, most=most)

    def may_be_promoted(self, number: int, *, most: int | None) -> bool:
        """Whether one that waits may yet be among the best of its rung, if `most` configurations come at most."""
        standing = self._standing[number]
        if not standing.waits or not standing.reached or self._key(standing.reached[-1]) == math.inf:
            return standing.waits and not standing.reached
        at = self._waits_at(number, standing)
        if most is None or at is None or at in self._passed:
            return True
        rung = self._rungs[self._bracket[number]][at]
        rank = bisect.bisect_left(rung.reached, (self._key(standing.reached[-1]), number))
        return rank < max(-(-max(most, len(rung.reached)) // self.policy.eta), 1)

    # --- for people ---

    def waiting(self) -> int:
        return len(self._owed) + sum(len(rung.waiting) for rungs in self._rungs for rung in rungs)

    def places(self) -> list[RungCount]:
        promoted: dict[tuple[int, int], int] = {}
        for number, standing in self._standing.items():
            for at in range(min(standing.promoted, len(standing.reached))):
                place = self._bracket[number], at
                promoted[place] = promoted.get(place, 0) + 1
        return [
            RungCount(
                bracket,
                level,
                len(rung.reached),
                len(rung.waiting),
                promoted.get((bracket, at), 0),
                len(rung.reached) if at in self._passed else len(rung.reached) // self.policy.eta,
                at in self._passed,
            )
            for bracket, rungs in enumerate(self._rungs[: self.policy.brackets])
            for at, (level, rung) in enumerate(zip(self.policy.levels, rungs, strict=True))
            if at >= bracket
        ]


def _misleads(pairs: list[tuple[float, float]]) -> bool:
    """Whether the eighth that is best by the second numbers stands, by the first, in the worse half on average."""
    first = sorted([by for by, _ in pairs])
    best = sorted(pairs, key=lambda pair: pair[1])[: -(-len(pairs) // 8)]
    twice = [
        bisect.bisect_left(first, by) + bisect.bisect_right(first, by) - 1 for by, _ in best
    ]  # equals share a rank
    return sum(twice) >= len(best) * (len(pairs) - 1) > 0


class _Rung(NamedTuple):
    """The configurations of one bracket that have reached one rung, and those that wait there."""

    reached: Ranking
    waiting: Ranking
