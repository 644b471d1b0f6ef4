"""Our pruners are Optuna's, and decide in the first wave, too."""

from __future__ import annotations

import random
from typing import Any

import optuna
import pytest

from hopaas_p2p.pruners import MedianPruner, PercentilePruner, SuccessiveHalvingPruner

PAIRS = [
    pytest.param(lambda ours: (MedianPruner if ours else optuna.pruners.MedianPruner)(), id="median"),
    pytest.param(
        lambda ours: (PercentilePruner if ours else optuna.pruners.PercentilePruner)(
            30.0, n_warmup_steps=2, interval_steps=3, n_min_trials=2
        ),
        id="percentile",
    ),
    pytest.param(
        lambda ours: (SuccessiveHalvingPruner if ours else optuna.pruners.SuccessiveHalvingPruner)(), id="halving"
    ),
    pytest.param(
        lambda ours: (SuccessiveHalvingPruner if ours else optuna.pruners.SuccessiveHalvingPruner)(2, 3, 1),
        id="halving-with-a-first-rung",
    ),
]


def study_with(pruner: Any, direction: str = "minimize") -> optuna.Study:
    return optuna.create_study(pruner=pruner, direction=direction, sampler=optuna.samplers.RandomSampler(seed=0))


def wave(study: optuna.Study, peers: int, steps: int) -> list[int]:
    """Trials that all begin before any has ended, and report step by step; how far each came."""
    trials = [study.ask() for _ in range(peers)]
    numbers = random.Random(1)
    quality = [numbers.random() for _ in trials]
    sign = -1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else 1
    came = [steps] * peers
    for step in range(1, steps + 1):
        for place, trial in enumerate(trials):
            if came[place] == steps:
                trial.report(sign * (quality[place] + numbers.random() / 100), step)
                if trial.should_prune():
                    study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                    came[place] = step - 1
    kept = [quality[place] for place in range(peers) if came[place] == steps]
    assert min(quality) in kept
    return came


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize(
    ("pruner", "least", "most"),
    [
        pytest.param(MedianPruner(), 0.3, 0.7, id="median"),
        pytest.param(PercentilePruner(25.0), 0.1, 0.45, id="percentile"),
        pytest.param(SuccessiveHalvingPruner(), 0.01, 0.4, id="halving"),
    ],
)
def test_a_first_wave_is_pruned(pruner: Any, direction: str, least: float, most: float) -> None:
    came = wave(study_with(pruner, direction), 64, 20)
    assert least <= sum(one == 20 for one in came) / 64 <= most


@pytest.mark.parametrize(
    "pruner",
    [optuna.pruners.MedianPruner(), optuna.pruners.PercentilePruner(25.0), optuna.pruners.SuccessiveHalvingPruner()],
)
def test_optunas_pruners_let_a_first_wave_go_on(pruner: Any) -> None:
    """Why there are ours."""
    assert set(wave(study_with(pruner), 64, 20)) == {20}


@pytest.mark.parametrize("pair", PAIRS)
def test_with_enough_complete_trials_ours_decide_as_optunas_do(pair: Any) -> None:
    def run(pruner: Any) -> list[Any]:
        study = study_with(pruner)
        numbers = random.Random(2)

        def objective(trial: optuna.Trial) -> float:
            level = numbers.random()
            for step in range(1, 13):
                trial.report(level + numbers.random() / 5, step)
                if trial.number >= 5 and trial.should_prune():
                    raise optuna.TrialPruned
            return level

        study.optimize(objective, n_trials=60)
        return [(one.state, one.last_step) for one in study.trials]

    assert run(pair(True)) == run(pair(False))
    assert optuna.trial.TrialState.PRUNED in {state for state, _ in run(pair(True))}


def test_before_the_warm_up_and_with_too_few_to_compare_nothing_is_pruned() -> None:
    assert set(wave(study_with(MedianPruner(n_warmup_steps=100)), 64, 20)) == {20}
    assert set(wave(study_with(MedianPruner(n_startup_trials=64)), 64, 20)) == {20}
    assert set(wave(study_with(MedianPruner(n_min_trials=64)), 64, 20)) == {20}


def test_a_trial_that_reports_only_nan_is_pruned_among_others_that_do_not() -> None:
    study = study_with(MedianPruner())
    trials = [study.ask() for _ in range(7)]
    for trial in trials[:6]:
        trial.report(1.0, 1)
    trials[6].report(float("nan"), 1)
    assert trials[6].should_prune()
    assert not trials[0].should_prune()
