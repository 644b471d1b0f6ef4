"""Parameter importance of a study, by PED-ANOVA: what distinguishes the better trials, counted on a grid per parameter.

Watanabe, Bansal, Hutter: PED-ANOVA (IJCAI 2023); for parameters that only some trials have, Conditional PED-ANOVA (KDD
2026, theorem 4.2). The results equal those of `optuna.importance.PedAnovaImportanceEvaluator`, as a test checks; but
that package loads scikit-learn for another evaluator, which takes seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from hopaas_p2p.analysis.table import EVERYTHING, Floats, Ints, Mask, Selection, TrialTable
from hopaas_p2p.core.state import State
from hopaas_p2p.translate import to_optuna

_FEWEST: Final = 10
"""With fewer complete trials, the shares are mere chance."""
_BETTER: Final = 0.1
"""The fraction of the trials that count as the better ones."""
_STEPS: Final = 50
"""Maximum number of cells of a grid."""
_FEWEST_ALIKE: Final = 2
"""With fewer trials of the same distribution, a parameter is ignored."""
_TINY: Final = 1e-12
_NARROWEST: Final = 0.5 / 1.64  # cells; 90 % of a kernel's mass is in its own cell


class Importance(NamedTuple):
    """Shares that add up to 1, largest first; or a note explaining why there are none."""

    shares: tuple[tuple[str, float], ...]
    note: str


def importance(state: State, trials: TrialTable, selection: Selection = EVERYTHING) -> Importance:
    """Parameter importance for one objective, over the complete trials of the selection."""
    rows, objective = np.flatnonzero(trials.selected(selection) & ~trials.infeasible), selection.objective
    if len(rows) < _FEWEST:
        which = "complete and feasible" if trials.infeasible.any() else "complete"
        return Importance((), f"Needs {_FEWEST} {which} trials; there are {len(rows)}.")
    try:
        shares = _ped_anova(state, trials, rows, trials.cost(objective)[rows])
    except Exception as error:  # noqa: BLE001  # an odd log must not hide the rest of the report
        return Importance((), f"Could not be computed: {type(error).__name__}.")
    if not shares:
        return Importance((), "No varying parameter clearly separates the better trials from the others.")
    which = "" if len(trials.directions) == 1 else f", for {trials.objectives[objective]}"
    note = f"PED-ANOVA over {len(rows):,} complete trials{which}. Shares add up to 100%."
    return Importance(tuple(shares.items()), note)


def _ped_anova(state: State, trials: TrialTable, rows: Ints, losses: Floats) -> dict[str, float]:
    """Share by parameter, largest first, adding up to 1; empty if no parameter distinguishes the better trials."""
    last = math.ceil(_BETTER * len(losses)) - 1
    better = losses <= np.partition(losses, last)[last]
    found = {}
    for name in sorted(trials.params):
        if np.isfinite(trials.params[name][rows]).any():
            found[name] = sum(
                _divergence(dist, values[those], better[those], total_better=int(better.sum()), total=len(rows))
                for dist, values, those in _regimes(name, state, trials, rows)
            )
    total = sum(found.values())
    ordered = sorted(found.items(), key=lambda item: -item[1])
    return {name: value / total for name, value in ordered} if total > 0 and math.isfinite(total) else {}


def _regimes(
    name: str, state: State, trials: TrialTable, rows: Ints
) -> Iterator[tuple[BaseDistribution, Floats, Mask]]:
    """Each distribution of the parameter, its value in every row, and which trials drew from this distribution."""
    values = trials.params[name][rows]
    kinds = {state.dists[name]: 0}
    kind = np.where(np.isnan(values), -1, 0)
    for place in np.flatnonzero(np.isin(rows, list(trials.own))).tolist():
        trial = state.trials[int(rows[place])]
        if name in trial.dists:
            values[place] = trial.params[name]  # for a choice, the index among the distribution's own choices
            kind[place] = kinds.setdefault(trial.dists[name], len(kinds))
    for dist, number in kinds.items():
        those = kind == number
        if np.count_nonzero(those) >= _FEWEST_ALIKE:
            yield to_optuna(dist), values, those


def _divergence(
    dist: BaseDistribution, values: NDArray[Any], better: NDArray[Any], *, total_better: int, total: int
) -> float:
    """Pearson's divergence of the better trials' density from that of all, weighted by their numbers.

    Args:
        dist: the distribution that the values were drawn from.
        values: those of the trials that drew from it.
        better: which of those trials are among the better ones.
        total_better: how many of all trials are among the better ones.
        total: how many trials there are.
    """
    best = values[better]
    if dist.single() or not len(best):
        return 0.0
    above = _density(dist, best) + _TINY
    below = _density(dist, values) + _TINY
    weight = (len(best) / total_better) ** 2 / (len(values) / total)
    return weight * float(below @ ((above / below - 1) ** 2))


def _density(dist: BaseDistribution, values: NDArray[Any]) -> NDArray[Any]:
    """The density on the cells of the parameter's grid: a kernel per value, and a wide one as the prior."""
    if isinstance(dist, CategoricalDistribution):
        counts = np.bincount(values.astype(int), minlength=len(dist.choices))
        kinds = np.count_nonzero(counts)
        prior = 1 / (kinds + 1)
        row = prior * len(counts)
        own = np.where(counts > 0, counts / (1 + row), 0.0)
        density: NDArray[Any] = (own + counts.sum() * prior / (1 + row) + 1 / len(counts)) / (counts.sum() + 1)
        return density
    counts = _counted(dist, values)
    cells = len(counts)
    at = np.flatnonzero(counts)
    weights = counts[at]
    own, wide = _kernels(at, _width(at, weights), cells), _kernels(np.array([(cells - 1) / 2]), float(cells), cells)
    smooth: NDArray[Any] = (own @ weights + wide[:, 0]) / (weights.sum() + 1)
    return smooth


def _counted(dist: Any, values: NDArray[Any]) -> NDArray[Any]:
    """The number of values in each cell; a value on the border belongs to the lower one."""
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


def _width(at: NDArray[Any], weights: NDArray[Any]) -> float:
    """The width of a kernel, by Scott's rule (Multivariate Density Estimation, 1992)."""
    cumulative = np.cumsum(weights)
    count = int(cumulative[-1])
    mean = at @ weights / count
    deviation = math.sqrt((at - mean) ** 2 @ weights / max(1, count - 1))
    first = at[np.searchsorted(cumulative, count // 4, side="left")]
    third = at[min(len(at) - 1, int(np.searchsorted(cumulative, count * 3 // 4, side="right")))]
    return float(max(1.059 * min((third - first) / 1.34, deviation) * count**-0.2, _NARROWEST))


def _kernels(centres: NDArray[Any], width: float, cells: int) -> NDArray[Any]:
    """The mass of truncated normal distributions in each cell, one column per centre."""
    edges = (np.arange(cells + 1)[:, None] - 0.5 - centres[None, :]) / (width * math.sqrt(2))
    below = np.array([math.erf(edge) for edge in edges.ravel()]).reshape(edges.shape)
    mass: NDArray[Any] = np.diff(below, axis=0) / (below[-1] - below[0])
    return mass
