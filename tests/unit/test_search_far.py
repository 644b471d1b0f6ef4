"""Trials outside the search space, as those of other studies and of hostile peers may be: far away, or with more
parameters.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

import hopaas_p2p
from hopaas_p2p.samplers import CmaEsSampler, TPESampler, default_sampler
from hopaas_p2p.search.surrogate import Surrogate

_HAS_TORCH = importlib.util.find_spec("torch") is not None


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


_OWN: list[tuple[dict[str, Any], dict[str, BaseDistribution], dict[str, Any]]] = [
    ({"x": 1e300}, {"x": FloatDistribution(-1e300, 1e300)}, {}),
    ({"n": 9, "x": 0.5}, {"n": IntDistribution(1, 9), "x": FloatDistribution(0, 1)}, {}),
    ({"z": 1, "x": 0.5}, {"z": IntDistribution(1, 9), "x": FloatDistribution(0, 1)}, {}),
    ({"x": 0.5, "n": 99}, {"x": FloatDistribution(0, 1), "n": IntDistribution(1, 400)}, {}),
    ({"x": 0.5, "n": 9}, {"x": FloatDistribution(0, 1), "n": IntDistribution(1, 9)}, {"constraints": [0.0, 0.0]}),
]


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("space", [None, {"x": hopaas_p2p.Float(0, 1, step=0.5), "n": hopaas_p2p.Int(1, 9)}])
@pytest.mark.parametrize(
    "sampler",
    [
        optuna.samplers.TPESampler,
        optuna.samplers.BruteForceSampler,
        *([lambda: optuna.samplers.GPSampler(n_startup_trials=2)] if _HAS_TORCH else []),
    ],
)
@pytest.mark.parametrize(("params", "distributions", "system"), _OWN)
def test_a_trial_unlike_the_others_stops_no_sampler_of_optunas(
    tmp_path: Path,
    sampler: Callable[[], optuna.samplers.BaseSampler],
    space: dict[str, Any] | None,
    params: dict[str, Any],
    distributions: dict[str, BaseDistribution],
    system: dict[str, Any],
) -> None:
    def objective(trial: hopaas_p2p.Trial) -> float:
        return float(trial.suggest_float("x", 0, 1, step=0.5) + trial.suggest_int("n", 1, 9))

    with contextlib.closing(hopaas_p2p.open_study(tmp_path, "s", space=space, sampler=sampler())) as study:
        study.optimize(objective, n_trials=11)
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=distributions, value=0.0, system_attrs=system)
        )
        study.optimize(objective, n_trials=2)
        assert len(study.trials) == 14
        assert all(0 <= trial.params["x"] <= 1 and 1 <= trial.params["n"] <= 9 for trial in study.trials[12:])


def _add_wide(study: hopaas_p2p.Study, parameters: int, trials: int) -> None:
    """Trials of parameters that this program never suggests."""
    names = [f"p{number}" for number in range(parameters)]
    distributions: dict[str, BaseDistribution] = dict.fromkeys([*names, "x"], FloatDistribution(0, 1))
    for number in range(trials):
        params = dict.fromkeys(distributions, number / trials)
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=1.0))


@pytest.mark.parametrize("kind", [TPESampler, CmaEsSampler, *([optuna.samplers.GPSampler] if _HAS_TORCH else [])])
def test_what_only_others_trials_have_is_not_drawn_in_a_study_with_a_search_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[optuna.samplers.BaseSampler]
) -> None:
    drawn: set[str] = set()
    sampler = TPESampler(multivariate=True) if kind is TPESampler else kind()
    sample = sampler.sample_relative

    def noted(study: optuna.Study, trial: optuna.trial.FrozenTrial, space: dict[str, Any]) -> dict[str, Any]:
        drawn.update(space)
        return sample(study, trial, space)

    monkeypatch.setattr(sampler, "sample_relative", noted)
    searched = {"x": hopaas_p2p.Float(0, 1)}
    with contextlib.closing(hopaas_p2p.open_study(tmp_path, "s", space=searched, sampler=sampler)) as study:
        _add_wide(study, 30, 12)
        study.optimize(lambda trial: trial.params["x"], n_trials=2)
    assert drawn == {"x"}


@pytest.mark.parametrize(("parameters", "fitted"), [(20, True), (300, False)])
def test_no_process_is_fitted_to_hundreds_of_parameters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parameters: int, fitted: bool
) -> None:
    """It takes time in the square of their number, which any worker of a study without a space may choose."""
    fits: list[int] = []

    def counted(*given: Any, **more: Any) -> Surrogate:
        fits.append(1)
        return Surrogate(*given, **more)

    monkeypatch.setattr("hopaas_p2p.search.samplers.Surrogate", counted)
    with contextlib.closing(hopaas_p2p.open_study(tmp_path, "s")) as study:
        _add_wide(study, parameters, 12)
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    assert bool(fits) is fitted
