"""CMA-ES whose state is recomputed from the finished trials of the log, so no state is pickled.

Every trial records its generation, and the trials of the previous generation from which it was computed. If several
peers begin a generation at once, the trial with the lowest number determines its parents, so all peers that read the
same log compute the same distribution. Each trial is drawn from this distribution with a seed derived from the
sampler's seed and the trial's number.

The strategy itself is the `cmaes` package (Hansen, arXiv:1604.00772). After it has converged, it restarts elsewhere
with twice the population (IPOP; Auger and Hansen, 2005).
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from hopaas_p2p.analysis.table import Floats
from hopaas_p2p.core.attributes import CMAES
from hopaas_p2p.search.surrogate import values_at

if TYPE_CHECKING:
    from cmaes import CMA

_LARGEST: Final = 1e300  # replaces infinite values, whose differences would be NaN

Parents = tuple[int, ...]


class UnitCube:
    """A search space of numbers mapped to the unit cube, with names in alphabetical order."""

    def __init__(self, space: Mapping[str, BaseDistribution]) -> None:
        self.space = {
            name: one for name, one in sorted(space.items()) if isinstance(one, FloatDistribution | IntDistribution)
        }

    def point(self, params: Mapping[str, Any]) -> Floats:
        """The point of these parameters, or the nearest point of the cube."""
        point = []
        for name, one in self.space.items():
            (low, high), value = _range(one), float(params[name])
            point.append(((math.log(max(value, 1e-300)) if one.log else value) - low) / (high - low))
        return np.asarray(np.clip(point, 0.0, 1.0))

    def params(self, point: Floats) -> dict[str, Any]:
        """The parameters at this point."""
        places = zip(self.space.items(), np.reshape(point, (-1, 1)), strict=True)
        return {name: one.to_external_repr(values_at(one, place).item()) for (name, one), place in places}


def _range(one: FloatDistribution | IntDistribution) -> tuple[float, float]:
    half = 0.0 if one.step is None else one.step / 2
    low, high = one.low - half, one.high + half
    return (math.log(low), math.log(high)) if one.log else (low, high)


class Evolution:
    """The strategy of one study in one search space, generation by generation.

    Args:
        cube: the search space.
        start: the starting point.
        sigma: the first standard deviation, as a fraction of the cube's side.
        population: the number of trials per generation; by default 4 + 3 ln(parameters).
        seed: determines where the strategy restarts.
        maximize: whether larger values are better.

    """

    def __init__(
        self, cube: UnitCube, start: Floats, sigma: float, population: int | None, *, seed: int, maximize: bool
    ) -> None:
        self._cube = cube
        self._sigma = sigma
        self._seed = seed
        self._sign = -1.0 if maximize else 1.0
        self.strategy = self._started(start, population)
        self._populations = [self.strategy.population_size]
        self._parents: list[Parents] = []

    @property
    def origin(self) -> dict[str, Any]:
        """The attribute `CMAES` of a trial drawn now."""
        return {"generation": len(self._parents), "parents": list(self._parents[-1] if self._parents else ())}

    def follow(self, trials: Sequence[FrozenTrial]) -> bool:
        """Take the steps that these trials allow. Returns False if they contradict an earlier step, so a new object is
        needed.
        """
        members, claims = _generations(trials, self._cube.space.keys())
        for generation in itertools.count():
            parents = _parents(members[generation], claims[generation + 1], self._populations[generation])
            taken = generation < len(self._parents)
            if taken and parents != self._parents[generation]:
                return False
            if parents is None:
                return True
            if not taken:
                self._step([members[generation][number] for number in parents])
                self._parents.append(parents)
        raise AssertionError

    def draw(self, number: int) -> dict[str, Any]:
        """The parameters of the trial of this number."""
        self.strategy.reseed_rng(zlib.crc32(f"{self._seed} {number}".encode()))
        return self._cube.params(self.strategy.ask())

    def _step(self, parents: Sequence[FrozenTrial]) -> None:
        costs = [min(max(self._sign * (one.value or 0.0), -_LARGEST), _LARGEST) for one in parents]
        points = [self._cube.point(one.params) for one in parents]
        self.strategy.tell(list(zip(points, costs, strict=True)))
        if self.strategy.should_stop():
            random = np.random.RandomState(zlib.crc32(f"{self._seed} again {len(self._parents)}".encode()))
            self.strategy = self._started(random.rand(len(self._cube.space)), 2 * self._populations[-1])
        self._populations.append(self.strategy.population_size)

    def _started(self, start: Floats, population: int | None) -> CMA:
        from cmaes import CMA

        bounds = np.tile([0.0, 1.0], (len(start), 1))
        return CMA(start.copy(), self._sigma, bounds, seed=self._seed, population_size=population)


def _generations(
    trials: Sequence[FrozenTrial], names: Set[str]
) -> tuple[dict[int, dict[int, FrozenTrial]], dict[int, list[Parents]]]:
    """For each generation, its COMPLETE trials by number, and the parents that its trials claim, in the order of the
    trials.
    """
    members: dict[int, dict[int, FrozenTrial]] = defaultdict(dict)
    claims: dict[int, list[Parents]] = defaultdict(list)
    for trial in trials:
        origin = trial.system_attrs.get(CMAES)  # may be anything in Optuna's storages
        if not isinstance(origin, dict):
            continue
        generation, parents = origin.get("generation"), origin.get("parents")
        if type(generation) is not int or not isinstance(parents, list) or not all(type(one) is int for one in parents):
            continue
        claims[generation].append(tuple(parents))
        if trial.state is TrialState.COMPLETE and names <= trial.params.keys():
            members[generation][trial.number] = trial
    return members, claims


def _parents(members: Mapping[int, FrozenTrial], claims: Sequence[Parents], population: int) -> Parents | None:
    """The parents of the next generation: the first valid claim, or else the first trials of this one.

    None if there are too few trials. Claims are validated, because anyone who may write to the study can write one.
    """
    for claim in claims:
        if len(claim) == population == len(set(claim)) and all(number in members for number in claim):
            return claim
    if len(members) < population:
        return None
    return tuple(itertools.islice(members, population))
