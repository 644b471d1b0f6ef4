"""Variants of Optuna's pruners that also use running trials in a study's first wave; see `hopaas_p2p.pruners`."""

from __future__ import annotations

import math

import numpy as np
import numpy.ma  # noqa: F401  # if a thread imported it at its first pruning, a child forked meanwhile would hang
import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

_COMPARED = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)


class PercentilePruner(optuna.pruners.PercentilePruner):
    """A variant of `optuna.pruners.PercentilePruner` that does not wait for complete trials.

    While fewer than `n_startup_trials` trials are complete, a trial is compared with all others that have reported at
    its step, including running ones, and with the last report of those pruned before that step, so that survivors are
    not compared only with other survivors. Nothing is pruned unless there are at least `n_startup_trials` such others.
    Once that many trials are complete, the pruner behaves like Optuna's.

    Args:
        percentile: the percentage of trials that are kept, from 0 to 100.
        n_startup_trials: with fewer trials to compare with, none is pruned.
        n_warmup_steps: before this step, none is pruned.
        interval_steps: steps between two decisions about a trial.
        n_min_trials: with fewer trials that have reported at the step, none is pruned.

    """

    def __init__(
        self,
        percentile: float,
        n_startup_trials: int = 5,
        n_warmup_steps: int = 0,
        interval_steps: int = 1,
        *,
        n_min_trials: int = 1,
    ) -> None:
        super().__init__(percentile, n_startup_trials, n_warmup_steps, interval_steps, n_min_trials=n_min_trials)
        self._kept = percentile
        self._fewest = max(n_startup_trials, n_min_trials, 1)
        self._enough_complete = max(n_startup_trials, 1)
        self._warmup, self._interval = n_warmup_steps, interval_steps

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if len(complete) >= self._enough_complete:
            return super().prune(study, trial)
        step, reported = trial.last_step, trial.intermediate_values
        if step is None or step < self._warmup:
            return False
        due = (step - self._warmup) // self._interval * self._interval + self._warmup
        if max((one for one in reported if one != step), default=-1) >= due:  # the decision was made at that report
            return False
        others = study.get_trials(deepcopy=False, states=_COMPARED)
        values = [value for one in others if one.number != trial.number and (value := _at(one, step)) is not None]
        if len(values) < self._fewest:
            return False
        reports = np.array(list(reported.values()), dtype=float)
        values = [value for value in values if not math.isnan(value)]
        if np.isnan(reports).all() or not values:
            return bool(values)
        if study.direction == StudyDirection.MAXIMIZE:
            return bool(np.nanmax(reports) < np.percentile(values, 100 - self._kept))
        return bool(np.nanmin(reports) > np.percentile(values, self._kept))


def _at(trial: FrozenTrial, step: int) -> float | None:
    """A trial's report at this step, or its last report if it was pruned earlier; None if it has not reached the
    step.
    """
    reports = trial.intermediate_values
    if step in reports:
        return reports[step]
    last = trial.last_step
    return reports[last] if trial.state is TrialState.PRUNED and last is not None and last < step else None


class MedianPruner(PercentilePruner):
    """A variant of `optuna.pruners.MedianPruner` that does not wait for complete trials; see `PercentilePruner`.

    Args:
        n_startup_trials: with fewer trials to compare with, none is pruned.
        n_warmup_steps: before this step, none is pruned.
        interval_steps: steps between two decisions about a trial.
        n_min_trials: with fewer trials that have reported at the step, none is pruned.

    """

    def __init__(
        self, n_startup_trials: int = 5, n_warmup_steps: int = 0, interval_steps: int = 1, *, n_min_trials: int = 1
    ) -> None:
        super().__init__(50.0, n_startup_trials, n_warmup_steps, interval_steps, n_min_trials=n_min_trials)


class SuccessiveHalvingPruner(optuna.pruners.SuccessiveHalvingPruner):
    """A variant of `optuna.pruners.SuccessiveHalvingPruner` whose `min_resource="auto"` needs no complete trial.

    Until a trial is complete, the first rung is at a hundredth of the steps of the longest trial so far, and at least
    at one step. If your trials have many hundreds of steps, set `min_resource` yourself.

    Args:
        min_resource: the step of the first rung, or "auto" for a hundredth of the longest trial's steps.
        reduction_factor: of the trials that reach a rung, one in this many continues.
        min_early_stopping_rate: the number of rungs to skip.
        bootstrap_count: the number of trials that must have reached a rung before one continues; not with "auto".

    """

    def __init__(
        self,
        min_resource: str | int = "auto",
        reduction_factor: int = 4,
        min_early_stopping_rate: int = 0,
        bootstrap_count: int = 0,
    ) -> None:
        super().__init__(min_resource, reduction_factor, min_early_stopping_rate, bootstrap_count)
        self._waits = min_resource == "auto"
        self._factor, self._left_out = reduction_factor, min_early_stopping_rate

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        if not self._waits:
            return super().prune(study, trial)
        trials = study.get_trials(deepcopy=False)
        if any(one.state is TrialState.COMPLETE and one.intermediate_values for one in trials):
            self._waits = False
            return super().prune(study, trial)
        longest = max((one.last_step or 0 for one in (*trials, trial)), default=0)
        first = max(longest // 100, 1)
        return optuna.pruners.SuccessiveHalvingPruner(first, self._factor, self._left_out).prune(study, trial)
