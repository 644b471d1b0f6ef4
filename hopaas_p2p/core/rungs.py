"""Which trials continue and which wait: decentralized asynchronous successive halving (arXiv 1810.05934).

A configuration runs up to its next rung and pauses there. A free peer takes the best configuration that a rung
promotes, the highest rung first, or else begins a new one. A rung promotes the best 1/eta of all configurations that
have reached it, whether they are waiting, running or finished, so the first wave of a study is cut as well.

A configuration belongs to one bracket for life. Bracket b begins at rung b, both counted from 0, so a bracket with a
high first rung protects configurations that start slowly. Brackets take turns to get configurations. Hyperband
gives most configurations to the lowest bracket. Where curves cross late, Optuna's HyperbandPruner took 2.6 times as
long as no pruning or never found the best, whereas three brackets that take turns took no longer than no pruning
(tests/benchmarks/results.md).

With three brackets or more, unless `whole` is 0, the first configurations do not pause until `whole` of them have been
trained to the end, and one in 32 never pauses. A rung is skipped for as long as the configurations that were best at
the end ranked low there. Configurations that wait at a skipped rung continue in the order in which they began.

These rules see numbers, not trials; `configurations` derives from a study's trials where each configuration stands.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Collection
from typing import Final, NamedTuple

from hopaas_p2p.core.configurations import Configurations
from hopaas_p2p.core.fidelity import Rungs
from hopaas_p2p.core.standings import Key, Ranking, RungCount, RungStanding, first, remove

_HEDGED: Final = 3
"""With this many brackets or more, unless `whole` is 0, rungs that mislead are skipped."""
_AT_FIRST: Final = 8
"""The first configurations of a study, this number times `whole`, do not pause until `whole` are trained to the end."""
_ONE_WHOLE: Final = 32
"""One in this many configurations never pauses."""
_NEWEST: Final = 64
"""How many of the configurations that were trained to the end are compared, the newest first."""


class Ladder(Configurations):
    """The configurations of a study with rungs, and where they stand."""

    policy: Rungs
    unit = "configurations"

    def __init__(self, policy: Rungs, *, maximize: bool = False) -> None:
        super().__init__(policy, maximize=maximize)
        self.brackets: dict[int, int] = {}
        """The bracket of each configuration."""
        self._hedged = policy.brackets >= _HEDGED and policy.whole > 0
        self._rungs = [[_Rung([], []) for _ in policy.levels] for _ in range(len(policy.levels) + 1)]
        """All rungs of each bracket; its configurations do not pause below the bracket's first rung."""
        self._whole: list[int] = []
        """The configurations that were trained to the end without a pause, in order."""
        self._passed: frozenset[int] = frozenset()
        """The misleading rungs, counted from 0; no configuration pauses there."""
        self._first: set[int] = set()
        """The configurations that do not pause until the misleading rungs are known."""
        self._owed: Ranking = []
        """Configurations that wait at no current rung, because the rungs were changed."""
        self._queued: dict[int, tuple[Ranking, tuple[Key, int]]] = {}
        """For each waiting configuration, the list that it is in, and its entry there."""

    # --- configurations ---

    def admit(self, number: int) -> None:
        super().admit(number)
        place = len(self.brackets)
        self.brackets[number] = place % self.policy.brackets
        if self._hedged and place % _ONE_WHOLE == _ONE_WHOLE - 1:
            self.brackets[number] = len(self.policy.levels)  # above all rungs, so that it never pauses
        if self._hedged and place < _AT_FIRST * self.policy.whole:
            self._first.add(number)

    def pauses_at(self, number: int) -> int | None:
        root = self.root(number)
        if root in self._first and len(self._whole) < self.policy.whole:  # misleading rungs are not known yet
            return None
        begin, levels = max(self._standing[root].promoted, self.brackets[root]), self.policy.levels
        return next((levels[at] for at in range(begin, len(levels)) if at not in self._passed), None)

    def may_pause_at(self, number: int) -> int | None:
        root, levels = self.root(number), self.policy.levels
        begin = max(self._standing[root].promoted, self.brackets[root])
        return levels[begin] if begin < len(levels) else None

    def _ranking(self, number: int, at: int) -> Ranking:
        return self._rungs[self.brackets[number]][at].reached

    def _placed(self, number: int, before: RungStanding, to: RungStanding) -> None:
        self._queue(number)
        if before.end is not None:
            self._whole.remove(number)
        if to.end is not None:
            bisect.insort(self._whole, number)
        if before.end is not None or to.end is not None:
            self._judge()

    def _waits_at(self, number: int, standing: RungStanding) -> int | None:
        """The rung, counted from 0, where a paused configuration waits; None if it waits at no current rung."""
        height = len(standing.reached)
        return height - 1 if height > max(standing.promoted, self.brackets[number]) else None

    def _queue(self, number: int) -> None:
        """Put a configuration into the queue of the rung where it waits, if it waits."""
        before, standing = self._queued.pop(number, None), self._standing[number]
        if before is not None:
            remove(*before)
        if not standing.waits:
            return
        ranking, value, at = self._owed, 0.0, self._waits_at(number, standing)
        if at is not None:
            ranking, value = self._rungs[self.brackets[number]][at].waiting, self.key(standing.reached[-1], standing)[1]
            if value == math.inf:  # one that diverged is not worth a continuation
                return
        self._queued[number] = ranking, ((standing.infeasible, 0.0 if at in self._passed else value), number)
        bisect.insort(*self._queued[number])

    def _judge(self) -> None:
        """Determine which rungs are misleading."""
        ends = [self._standing[number] for number in self._whole[-max(_NEWEST, self.policy.whole) :]]
        judged, passed = self._hedged and len(self._whole) >= self.policy.whole, set()
        for at in range(len(self.policy.levels)) if judged else ():
            pairs = [
                (self.key(one.reached[at], one), self.key(math.nan if one.end is None else one.end, one))
                for one in ends
                if len(one.reached) > at
            ]
            if _misleads(pairs):
                passed.add(at)
        if passed == self._passed:
            return
        self._passed = frozenset(passed)
        for number in self._standing:
            self._queue(number)

    # --- which configuration is promoted ---

    def best(self, *, closing: bool = False, room: bool = False, skip: Collection[int] = ()) -> int | None:  # noqa: ARG002
        for height in reversed(range(len(self.policy.levels))):
            found: Ranking = []
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

    def may_be_continued(self, number: int, *, most: int | None) -> bool:
        root = self.root(number)
        return self._chains[root].paused == number and self.may_be_promoted(root, most=most)

    def may_be_promoted(self, number: int, *, most: int | None) -> bool:
        """Whether a waiting configuration can still be among the best of its rung, if at most `most` are started."""
        standing = self._standing[number]
        if not standing.waits or not standing.reached:
            return standing.waits
        key = self.key(standing.reached[-1], standing)
        if key[1] == math.inf:
            return False
        at = self._waits_at(number, standing)
        if most is None or at is None or at in self._passed:
            return True
        rung = self._rungs[self.brackets[number]][at]
        rank = bisect.bisect_left(rung.reached, (key, number))
        return rank < max(-(-max(most, len(rung.reached)) // self.policy.eta), 1)

    # --- for display ---

    def waiting(self) -> int:
        return len(self._queued)

    def places(self) -> list[RungCount]:
        promoted, found = Counter[tuple[int, int]](), []
        for number, standing in self._standing.items():
            promoted.update((self.brackets[number], at) for at in range(min(standing.promoted, len(standing.reached))))
        for bracket, rungs in enumerate(self._rungs[: self.policy.brackets]):
            for at, level in list(enumerate(self.policy.levels))[bracket:]:
                reached, waiting, passed = len(rungs[at].reached), len(rungs[at].waiting), at in self._passed
                quota = reached if passed else reached // self.policy.eta
                found.append(RungCount(bracket, level, reached, waiting, promoted[bracket, at], quota, passed))
        return found


def _misleads(pairs: list[tuple[Key, Key]]) -> bool:
    """Whether the eighth of the pairs with the best second keys ranks, on average, in the worse half by first keys."""
    first = sorted([by for by, _ in pairs])
    best = sorted(pairs, key=lambda pair: pair[1])[: -(-len(pairs) // 8)]
    # equal keys share a rank
    twice = [bisect.bisect_left(first, by) + bisect.bisect_right(first, by) - 1 for by, _ in best]
    return sum(twice) >= len(best) * (len(pairs) - 1) > 0


class _Rung(NamedTuple):
    """The configurations of one bracket that have reached one rung, and those that wait there."""

    reached: Ranking
    waiting: Ranking
