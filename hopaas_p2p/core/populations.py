"""Which member copies which: decentralized population-based training (arXiv 1711.09846) with truncation selection.

A population has `size` members. Each trains for `every` epochs, pauses, and is then continued. The least advanced
member is continued first, so that members advance nearly in step. A member that ranks in the bottom `quantile` of all
that have come as far continues from the checkpoint of a member in the top `quantile`, with that member's parameters,
perturbed. The others keep their own checkpoints and parameters. No member waits for another.

A member is compared with the others' values at the rung where it pauses, even if they are ahead by now. While too few
members have reached that rung to tell which are the worst, the newest earlier rung that enough have reached is used.
Otherwise, members on fast peers, which are always among the first at a rung, would never copy. Rungs from before a
member last copied do not reflect its parameters and are ignored. A member copies the checkpoint that a better one saved
at the rung where both paused, so every schedule of parameters has one entry per interval.

These rules see numbers, not trials. `perturbation` defines how parameters change.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Collection
from typing import Final

from hopaas_p2p.core.configurations import Configurations
from hopaas_p2p.core.fidelity import Population
from hopaas_p2p.core.standings import Key, Ranking, RungCount, RungStanding, TrialChain, first, remove

_MOST_FAILURES: Final = 3
"""A member with more failures than this since its last pause is dropped."""
_ROUNDING: Final = 1e-9  # 0.29 * 100 is 28.999999999999996


class Members(Configurations):
    """The members of a population, and where they stand."""

    population: Population
    unit = "members"

    def __init__(self, policy: Population, *, maximize: bool = False) -> None:
        super().__init__(policy, maximize=maximize)
        self.population = policy
        self._levels = policy.levels
        self._reached: list[Ranking] = [[] for _ in policy.levels]
        """For each rung, the members that have reached it, the best first."""
        self._waiting: Ranking = []
        """Waiting members, the least advanced first."""
        self._training: Ranking = []
        """Unfinished members, the one that has continued from the fewest rungs first."""

    # --- members ---

    def admit(self, number: int) -> None:
        super().admit(number)
        bisect.insort(self._training, (_progress(0), number))

    def pauses_at(self, number: int) -> int | None:
        promoted = self.standing(number).promoted
        return self._levels[promoted] if promoted < len(self._levels) else None

    def _standing_of(self, chain: TrialChain, reached: tuple[float, ...], *, live: bool) -> RungStanding:
        """A failed member waits at the rung of its last pause, behind all others."""
        idle = not live and not chain.complete
        waits = idle and chain.paused >= 0
        if idle and not waits and chain.failed:
            reached = reached[: chain.promoted]
            if reached and chain.failures <= _MOST_FAILURES:
                reached, waits = (*reached[:-1], math.nan), True
        over = not waits and not live
        return RungStanding(reached, chain.promoted, waits, over, None, chain.copied, chain.infeasible)

    def _ranking(self, _number: int, at: int) -> Ranking:
        return self._reached[at]

    def _placed(self, number: int, before: RungStanding, to: RungStanding) -> None:
        if before.waits:
            remove(self._waiting, (_progress(len(before.reached)), number))
        if to.waits:
            bisect.insort(self._waiting, (_progress(len(to.reached)), number))
        if not before.over:
            remove(self._training, (_progress(before.promoted), number))
        if not to.over:
            bisect.insort(self._training, (_progress(to.promoted), number))

    # --- which member continues, and from where ---

    def best(self, *, closing: bool = False, room: bool = False, skip: Collection[int] = ()) -> int | None:  # noqa: ARG002
        found = None if room else first(self._waiting, skip)  # members are compared once all have started
        return None if found is None else found[1]

    def sources(self, number: int) -> list[int]:
        root = self.root(number)
        chain, rung = self._chains[root], len(self._standing[root].reached)
        found = [self._chains[better].pauses.get(rung) for better in self.better(root)]
        if not any(one is not None for one in found) and chain.paused < 0:  # a failed one is not repeated unchanged
            found = [chain.pauses.get(rung)]
        return [one for one in found if one is not None]

    def better(self, number: int) -> list[int]:
        """The members that a waiting one may copy, the best first; empty if it keeps its own parameters."""
        standing = self._standing[number]
        if not standing.waits or not standing.reached:
            return []
        reached, mine = self._reached[len(standing.reached) - 1], self.key(standing.reached[-1], standing)
        if mine[1] < math.inf and not self._is_among_the_worst(number, standing):
            return []
        return [one for key, one in reached[: max(self._quota(len(reached)), 1)] if key < mine]

    def _is_among_the_worst(self, number: int, standing: RungStanding) -> bool:
        for at in reversed(range(standing.copied, len(standing.reached))):
            reached = self._reached[at]
            quota = self._quota(len(reached))
            if quota:
                rank = bisect.bisect_left(reached, (self.key(standing.reached[at], standing), number))
                return rank >= len(reached) - quota
        return False

    def _quota(self, reached: int) -> int:
        """How many of the members that have reached a rung copy; as many may be copied."""
        quota = int(reached * self.population.quantile + _ROUNDING)
        return 1 if quota == 0 and reached >= self.population.size else quota

    def may_be_continued(self, number: int, *, most: int | None) -> bool:
        chain, used = self._chains[self.root(number)], self._used
        rung = next((reached for reached, one in chain.pauses.items() if one == number), None)
        if rung is None:
            return False
        few = used < self.population.size and (most is None or used < most)
        return few or chain.paused == number or (bool(self._training) and self._training[0][0] <= _progress(rung))

    # --- for display ---

    def waiting(self) -> int:
        return len(self._waiting)

    def places(self) -> list[RungCount]:
        counts = [[0, 0] for _ in self._reached]  # waiting, continued
        for standing in self._standing.values():
            height = len(standing.reached)
            if standing.waits and height:
                counts[height - 1][0] += 1
            for at in range(min(standing.promoted, height - standing.waits)):
                counts[at][1] += 1
        return [
            RungCount(0, self._levels[at], len(reached), counts[at][0], counts[at][1], len(reached))
            for at, reached in enumerate(self._reached)
            if len(reached)
        ]


def _progress(rungs: int) -> Key:
    """A sort key for members by the number of rungs that they have reached, whatever their values."""
    return False, float(rungs)
