"""Which parameters matter: Optuna's PED-ANOVA on what the State holds."""

from __future__ import annotations

import math
import warnings
from collections.abc import Container, Sequence
from typing import Final, NamedTuple

from hopaas_p2p.core.state import COMPLETE, State, Trial
from hopaas_p2p.report.facts import is_better

_FEWEST: Final = 10
"""Complete trials below which shares are chance."""
_MOST: Final = 1500  # more trials take longer and move the shares by less than a percent


class Importance(NamedTuple):
    """Shares that add up to 1, largest first; or why there are none."""

    shares: tuple[tuple[str, float], ...]
    note: str


def importance(state: State, *, objective: int = 0, numbers: Container[int] | None = None) -> Importance:
    """Parameter importance for one objective, over all trials or those of these numbers.

    Watanabe, Bansal, Hutter: PED-ANOVA (IJCAI 2023), as Optuna implements it: what sets the better trials apart.
    """
    complete = [
        t
        for t in list(state.trials)
        if t.state is COMPLETE
        and t.values
        and math.isfinite(t.values[objective])
        and (numbers is None or t.number in numbers)
    ]
    if len(complete) < _FEWEST:
        return Importance((), f"Takes {_FEWEST} complete trials; there are {len(complete)}.")
    chosen = _sample(complete, state, objective)
    try:
        shares = _evaluate(chosen, state, objective)
    except Exception as error:  # noqa: BLE001  # whatever a strange log does to it: the rest of the report stands
        return Importance((), f"Could not be computed: {type(error).__name__}.")
    if not shares:
        return Importance((), "There is no parameter that all complete trials share and that varies.")
    of = "all" if len(chosen) == len(complete) else f"{len(chosen):,} of"
    which = "" if len(chosen[0].values or ()) == 1 else f", for objective {objective + 1}"
    return Importance(shares, f"PED-ANOVA over {of} {len(complete):,} complete trials{which}. Shares add up to 100 %.")


def _sample(complete: Sequence[Trial], state: State, objective: int) -> list[Trial]:
    """The best of all, which the method is about, and every k-th of the others."""
    if len(complete) <= _MOST:
        return list(complete)
    assert state.define is not None
    maximize = is_better(1.0, 0.0, state.define.directions[objective])
    sign = -1.0 if maximize else 1.0
    ordered = sorted(complete, key=lambda t: (sign * t.values[objective] if t.values else 0.0, t.number))
    return [ordered[index * len(ordered) // _MOST] for index in range(_MOST)]


def _evaluate(trials: Sequence[Trial], state: State, objective: int) -> tuple[tuple[str, float], ...]:
    import optuna

    from hopaas_p2p.frozen import View
    from hopaas_p2p.translate import directions_of

    view = View(0, allow_pickles=False)
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study = optuna.create_study(direction=directions_of(state)[objective])
            frozen = [view.build(trial, state) for trial in trials]
            for one, trial in zip(frozen, trials, strict=True):
                one.values = list(trial.values or ())[objective : objective + 1]
            study.add_trials(frozen)
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    finally:
        optuna.logging.set_verbosity(before)
    shares = [(name, float(share)) for name, share in found.items() if math.isfinite(share)]
    return tuple(shares) if any(share > 0 for _, share in shares) else ()
