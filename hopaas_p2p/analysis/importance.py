"""Parameter importance of a study, by PED-ANOVA: what distinguishes the better trials, counted on a grid per parameter.

Watanabe, Bansal, Hutter: PED-ANOVA (IJCAI 2023); for parameters that only some trials have, Conditional PED-ANOVA (KDD
2026, theorem 4.2). The results equal those of `optuna.importance.PedAnovaImportanceEvaluator`, as a test checks; but
that package loads scikit-learn for another evaluator, which takes seconds.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from hopaas_p2p.analysis.facts import is_better, scored
from hopaas_p2p.core.state import State, Trial

if TYPE_CHECKING:
    import numpy as np
    from optuna.distributions import BaseDistribution

    from hopaas_p2p.core.records import Distribution

    Array = np.ndarray[Any, np.dtype[Any]]

_FEWEST: Final = 10
"""With fewer complete trials the shares are chance."""
_BETTER: Final = 0.1
"""The share of the trials that count as the better ones."""
_STEPS: Final = 50
"""Maximum number of cells of a grid."""
_FEWEST_ALIKE: Final = 2
"""With fewer trials of the same distribution, a parameter is ignored."""
_TINY: Final = 1e-12
_NARROWEST: Final = 0.5 / 1.64  # cells; 90 % of a kernel's mass is in its own cell


class Importance(NamedTuple):
    """Shares that add up to 1, largest first; or a note that says why there are none."""

    shares: tuple[tuple[str, float], ...]
    note: str


def importance(state: State, *, objective: int = 0, numbers: Container[int] | None = None) -> Importance:
    """Parameter importance for one objective, over all complete trials or those with these numbers."""
    complete = [
        (value, trial) for value, trial in scored(state, objective) if numbers is None or trial.number in numbers
    ]
    if len(complete) < _FEWEST:
        return Importance((), f"Needs {_FEWEST} complete trials; there are {len(complete)}.")
    assert state.define is not None
    directions = state.define.directions
    sign = -1.0 if is_better(1.0, 0.0, directions[objective]) else 1.0
    try:
        shares = _ped_anova([trial for _, trial in complete], [sign * value for value, _ in complete], state)
    except Exception as error:  # noqa: BLE001  # whatever a strange log causes, the rest of the report is shown
        return Importance((), f"Could not be computed: {type(error).__name__}.")
    if not shares:
        return Importance((), "No varying parameter clearly separates the better trials from the others.")
    which = "" if len(directions) == 1 else f", for objective {objective + 1}"
    return Importance(
        tuple(shares.items()), f"PED-ANOVA over {len(complete):,} complete trials{which}. Shares add up to 100%."
    )


def _ped_anova(trials: Sequence[Trial], losses: Sequence[float], state: State) -> dict[str, float]:
    """Share by parameter, largest first, adding up to 1; empty if no parameter sets the better trials apart.

    Args:
        trials: complete ones.
        losses: their finite losses; smaller is better.
        state: the study.
    """
    import numpy as np

    losses_ = np.asarray(losses)
    last = math.ceil(_BETTER * len(losses)) - 1
    better = losses_ <= np.partition(losses_, last)[last]
    params = [trial.params for trial in trials]
    own = [(place, trial.dists) for place, trial in enumerate(trials) if trial.dists]
    found = {
        name: sum(
            _divergence(dist, values[those], better[those], total_better=int(better.sum()), total=len(trials))
            for dist, values, those in _regimes(name, params, own, state)
        )
        for name in sorted({name for names in set(map(tuple, params)) for name in names})
    }
    total = sum(found.values())
    ordered = sorted(found.items(), key=lambda item: -item[1])
    return {name: value / total for name, value in ordered} if total > 0 and math.isfinite(total) else {}


def _regimes(
    name: str, params: Sequence[dict[str, Any]], own: Sequence[tuple[int, dict[str, Distribution]]], state: State
) -> Iterator[tuple[BaseDistribution, Array, Array]]:
    """Each distribution of the parameter, its value in every trial, and which trials drew from this distribution.

    Args:
        name: the parameter.
        params: of every trial.
        own: the trials, by their place there, that have other distributions than the study.
        state: the study.
    """
    import numpy as np

    from hopaas_p2p.translate import to_optuna

    values = np.fromiter((one.get(name, math.nan) for one in params), float, len(params))
    kinds = {state.dists[name]: 0}
    kind = np.where(np.isnan(values), -1, 0)
    for place, dists in own:
        if name in dists:
            kind[place] = kinds.setdefault(dists[name], len(kinds))
    for dist, number in kinds.items():
        those = kind == number
        if np.count_nonzero(those) >= _FEWEST_ALIKE:
            yield to_optuna(dist), values, those


def _divergence(dist: BaseDistribution, values: Array, better: Array, *, total_better: int, total: int) -> float:
    """Pearson's divergence of the better trials' density from that of all, weighted by their numbers.

    Args:
        dist: what the values were drawn from.
        values: of the trials that drew from it.
        better: which of them are among the better trials.
        total_better: how many of all trials are.
        total: how many trials there are.
    """
    best = values[better]
    if dist.single() or not len(best):
        return 0.0
    above = _density(dist, best) + _TINY
    below = _density(dist, values) + _TINY
    weight = (len(best) / total_better) ** 2 / (len(values) / total)
    return weight * float(below @ ((above / below - 1) ** 2))


def _density(dist: BaseDistribution, values: Array) -> Array:
    """The density on the cells of the parameter's grid: a kernel per value, and a wide one as the prior."""
    import numpy as np
    from optuna.distributions import CategoricalDistribution

    if isinstance(dist, CategoricalDistribution):
        counts = np.bincount(values.astype(int), minlength=len(dist.choices))
        kinds = np.count_nonzero(counts)
        prior = 1 / (kinds + 1)
        row = prior * len(counts)
        own = np.where(counts > 0, counts / (1 + row), 0.0)
        density: Array = (own + counts.sum() * prior / (1 + row) + 1 / len(counts)) / (counts.sum() + 1)
        return density
    counts = _counted(dist, values)
    cells = len(counts)
    at = np.flatnonzero(counts)
    weights = counts[at]
    own, wide = _kernels(at, _width(at, weights), cells), _kernels(np.array([(cells - 1) / 2]), float(cells), cells)
    smooth: Array = (own @ weights + wide[:, 0]) / (weights.sum() + 1)
    return smooth


def _counted(dist: Any, values: Array) -> Array:
    """The number of values in each cell; a value on the border belongs to the lower one."""
    import numpy as np
    from optuna.distributions import IntDistribution

    steps = _STEPS
    if isinstance(dist, IntDistribution) and dist.log:
        steps = min(math.ceil(math.log(dist.high - dist.low + 1) / math.log(2)) + 1, steps)
    elif dist.step is not None:
        steps = min(round((dist.high - dist.low) / dist.step) + 1, steps)
    numbers, low, high = values, float(dist.low), float(dist.high)
    if dist.log:
        numbers, low, high = np.log(numbers), math.log(low), math.log(high)
    cells = np.ceil((numbers - low) / ((high - low) / (steps - 1)) - 0.5).astype(int)
    return np.bincount(np.clip(cells, 0, steps - 1), minlength=steps)


def _width(at: Array, weights: Array) -> float:
    """The width of a kernel, by Scott's rule (Multivariate Density Estimation, 1992)."""
    import numpy as np

    cumulative = np.cumsum(weights)
    count = int(cumulative[-1])
    mean = at @ weights / count
    deviation = math.sqrt((at - mean) ** 2 @ weights / max(1, count - 1))
    first = at[np.searchsorted(cumulative, count // 4, side="left")]
    third = at[min(len(at) - 1, int(np.searchsorted(cumulative, count * 3 // 4, side="right")))]
    return float(max(1.059 * min((third - first) / 1.34, deviation) * count**-0.2, _NARROWEST))


def _kernels(centres: Array, width: float, cells: int) -> Array:
    """The mass of truncated normal distributions in each cell, one column per centre."""
    import numpy as np

    edges = (np.arange(cells + 1)[:, None] - 0.5 - centres[None, :]) / (width * math.sqrt(2))
    below = np.array([math.erf(edge) for edge in edges.ravel()]).reshape(edges.shape)
    mass: Array = np.diff(below, axis=0) / (below[-1] - below[0])
    return mass
