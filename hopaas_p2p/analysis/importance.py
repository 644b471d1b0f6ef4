"""Computes the importance of parameters by Optuna's PED-ANOVA, which compares the better trials with all.

Watanabe, Bansal, Hutter: PED-ANOVA (IJCAI 2023); for parameters that only some trials have, Conditional PED-ANOVA (KDD
2026).
"""

from __future__ import annotations

import threading
import warnings
from typing import Any, Final, NamedTuple

import numpy as np
import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hopaas_p2p.analysis.chart import spread
from hopaas_p2p.analysis.table import Floats, Ints, Mask, TrialTable
from hopaas_p2p.core.state import State
from hopaas_p2p.translate import external, to_optuna

_FEWEST: Final = 10
"""With fewer complete trials, the shares would be random."""
_MOST: Final = 10_000
"""If there are more trials, an even sample is used, because all of them would take seconds."""
_MOST_CHOICES: Final = 256
"""A parameter with more choices is left out, because Optuna creates a matrix of trials by choices."""
_MOST_PARAMETERS: Final = 100
"""The most parameters that are compared, because Optuna reads all trials for each. The most frequent ones are
taken."""
_one_at_a_time: Final = threading.Lock()
"""A lock, because two threads that change the process's warning filters at once could leave them changed."""


class Importance(NamedTuple):
    """Shares that add up to 1, largest first, with a note that says how they were computed or why there are none."""

    shares: tuple[tuple[str, float], ...]
    note: str


class _Selected(optuna.Study):
    """Complete trials as a study with one objective to minimize; it has no storage."""

    directions = [StudyDirection.MINIMIZE]  # noqa: RUF012

    def __init__(self, trials: list[FrozenTrial]) -> None:
        self._chosen = trials

    def get_trials(self, *_: Any, **__: Any) -> list[FrozenTrial]:
        return self._chosen


def importance(state: State, trials: TrialTable, objective: int = 0, shown: Mask | None = None) -> Importance:
    """Parameter importance for one objective, over the complete trials, or over those of them in `shown`."""
    rows = np.flatnonzero(trials.complete(objective, shown) & ~trials.infeasible)
    if len(rows) < _FEWEST:
        which = "complete and feasible" if trials.infeasible.any() else "complete"
        return Importance((), f"Needs {_FEWEST} {which} trials; found {len(rows)}.")
    some = rows[spread(len(rows), _MOST)]
    names = [name for name, one in state.dists.items() if len(getattr(one, "choices", ())) <= _MOST_CHOICES]
    try:
        few = sorted(names, key=lambda name: np.isnan(trials.params[name][some]).sum())[:_MOST_PARAMETERS]
        shares = _ped_anova(state, few, some, trials.cost(objective)[some])
    except Exception as error:  # noqa: BLE001  # unusual trials must not hide the rest of the report
        return Importance((), f"Could not be computed: {type(error).__name__}.")
    if not shares:
        return Importance((), "No varying parameter clearly separates the better trials from the others.")
    which = "" if len(trials.directions) == 1 else f", for {trials.objectives[objective]}"
    sampled = f"{len(some):,} of " if len(some) < len(rows) else ""
    of = f", of the {len(few)} most frequent parameters" if len(few) < len(names) else ""
    note = f"PED-ANOVA over {sampled}{len(rows):,} complete trials{which}{of}. Shares add up to 100%."
    return Importance(tuple(shares.items()), note)


def _ped_anova(state: State, names: list[str], rows: Ints, losses: Floats) -> dict[str, float]:
    """Share by parameter, largest first, adding up to 1; empty if no parameter distinguishes the better trials."""
    first, chosen = {name: to_optuna(state.dists[name]) for name in names}, []
    for row, loss in zip(rows.tolist(), losses.tolist(), strict=True):
        trial = state.trials[row]
        known = [name for name in trial.params if name in first]
        dists = {name: to_optuna(trial.dists[name]) if name in trial.dists else first[name] for name in known}
        params = {name: external(one, trial.params[name]) for name, one in dists.items()}
        chosen.append(FrozenTrial(row, TrialState.COMPLETE, loss, None, None, params, dists, {}, {}, {}, row))
    with _one_at_a_time, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ranges that few trials have, which count for little
        found = optuna.importance.PedAnovaImportanceEvaluator().evaluate(_Selected(chosen))
    total = sum(found.values())
    return {name: value / total for name, value in found.items()} if 0 < total < np.inf else {}
