"""Trials that lie far outside the search space, as those of other studies and of hostile peers may."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution

import hopaas_p2p
from hopaas_p2p.samplers import CmaEsSampler, TPESampler, default_sampler


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # Optuna's own, in a range of 2**53 integers
@pytest.mark.parametrize("sampler", [default_sampler, TPESampler, CmaEsSampler])
@pytest.mark.parametrize(
    ("searched", "far"),
    [
        (hopaas_p2p.Float(0, 1), FloatDistribution(0, 1e300)),
        (hopaas_p2p.Float(1e-5, 1, log=True), FloatDistribution(1e-300, 1e300, log=True)),
        (hopaas_p2p.Int(1, 9), IntDistribution(1, (1 << 53) - 1)),
    ],
)
def test_the_best_trials_far_outside_the_search_space_stop_no_sampler(
    tmp_path: Path,
    sampler: Callable[[], optuna.samplers.BaseSampler],
    searched: hopaas_p2p.Float,
    far: FloatDistribution,
) -> None:
    """A trial has its own ranges: it may have been made in a study with others, or by somebody who means harm."""
    with contextlib.closing(hopaas_p2p.open_study(tmp_path, "s", space={"x": searched}, sampler=sampler())) as study:
        for _ in range(20):
            study.add_trial(optuna.trial.create_trial(params={"x": far.high}, distributions={"x": far}, value=0.0))
            study.add_trial(optuna.trial.create_trial(params={"x": 1}, distributions={"x": far}, value=1.0))
        study.optimize(lambda trial: trial.params["x"], n_trials=3)
        assert all(searched.low <= trial.params["x"] <= searched.high for trial in study.trials[40:])
        assert len(study.trials) == 43
