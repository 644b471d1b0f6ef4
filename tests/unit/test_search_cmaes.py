"""CMA-ES without pickles: what the log holds decides, and nothing in a log can harm it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import Trial, TrialState

import hopaas_p2p
from hopaas_p2p.core.attributes import CMAES
from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.samplers import CmaEsSampler
from hopaas_p2p.search.cmaes import UnitCube


def bowl(trial: Trial) -> float:
    x, y = trial.suggest_float("x", -5.0, 5.0), trial.suggest_float("y", 1e-4, 1.0, log=True)
    return (x - 2) ** 2 + (y - 0.1) ** 2 + abs(trial.suggest_int("n", 1, 40) - 30) / 10


def test_it_finds_the_bottom_of_a_bowl() -> None:
    study = optuna.create_study(sampler=CmaEsSampler(seed=3))
    study.optimize(bowl, n_trials=300)
    assert study.best_value < 0.01


def test_it_maximizes_too() -> None:
    study = optuna.create_study(sampler=CmaEsSampler(seed=3), direction="maximize")
    study.optimize(lambda trial: -bowl(trial), n_trials=300)
    assert study.best_value > -0.01


def test_a_peer_that_comes_later_works_out_the_same_distribution(tmp_path: Path) -> None:
    """The same from a directory, with a new sampler for every trial, as from one process and memory."""
    found = []
    for lasting in (True, False):
        storage = None if lasting else hopaas_p2p.open_storage(tmp_path)
        study = optuna.create_study(sampler=CmaEsSampler(seed=5), storage=storage)
        for _ in range(60):
            if not lasting:
                study.sampler = CmaEsSampler(seed=5)
            study.optimize(bowl, n_trials=1)
        found.append([trial.params for trial in study.trials])
        if storage is not None:
            storage.close()
    assert found[0] == found[1]


def test_peers_that_ask_at_once_agree_on_what_made_a_generation() -> None:
    first, second = CmaEsSampler(seed=1, population_size=4), CmaEsSampler(seed=1, population_size=4)
    study = optuna.create_study(sampler=first)
    running = []
    for number in range(80):
        study.sampler = (first, second)[number % 2]
        trial = study.ask()
        running.append((trial, bowl(trial)))
        if len(running) > 6:
            study.tell(*running.pop(number * 5 % 7))
    late = CmaEsSampler(seed=1, population_size=4)
    drawn = []
    for sampler in (first, second, late):
        study.sampler = sampler
        trial = study.ask()
        bowl(trial)
        drawn.append(study.trials[-1].system_attrs[CMAES])
        study.tell(trial, state=TrialState.FAIL)
    assert drawn[0] == drawn[1] == drawn[2]
    assert drawn[0]["generation"] > 5


@pytest.mark.parametrize(
    "origin",
    [7, "x", {}, {"generation": True, "parents": []}, {"generation": 1, "parents": "no"},
     {"generation": 1, "parents": [0, 0, 0, 0]}, {"generation": 1, "parents": [1, 2, 3, 999]},
     {"generation": -1, "parents": []}, {"generation": 10**30, "parents": [1, 2, 3, 4]}],
)  # fmt: skip
def test_what_others_write_about_generations_stops_nobody(origin: object) -> None:
    study = optuna.create_study(sampler=CmaEsSampler(seed=1, population_size=4))
    study.optimize(bowl, n_trials=2)
    study.add_trial(
        optuna.trial.create_trial(
            value=float("inf"), system_attrs={CMAES: origin}, params=study.trials[0].params,
            distributions=study.trials[0].distributions,
        )
    )  # fmt: skip
    study.optimize(bowl, n_trials=40)
    assert study.trials[-1].system_attrs[CMAES]["generation"] > 5


def test_it_starts_again_when_it_has_converged() -> None:
    study = optuna.create_study(sampler=CmaEsSampler(seed=1, population_size=4))
    study.optimize(lambda trial: float(trial.suggest_float("x", 0, 1) > 2), n_trials=400)
    late = [len(trial.system_attrs[CMAES]["parents"]) for trial in study.trials[300:]]
    assert max(late) > 4


def test_parameters_that_are_not_numbers_are_drawn_by_another_sampler() -> None:
    study = optuna.create_study(sampler=CmaEsSampler(seed=1))

    def objective(trial: Trial) -> float:
        return bowl(trial) + (trial.suggest_categorical("kind", "ab") == "a")

    study.optimize(objective, n_trials=30)
    assert {trial.params["kind"] for trial in study.trials} == {"a", "b"}


def test_a_pickled_sampler_draws_the_same() -> None:
    study = optuna.create_study(sampler=CmaEsSampler(seed=1, x0={"x": 1.0, "y": 0.5, "n": 3}))
    study.optimize(bowl, n_trials=30)
    copied = pickle.loads(pickle.dumps(study.sampler))
    frozen = study.trials[-1]
    space = study.sampler.infer_relative_search_space(study, frozen)
    number = study.ask().number
    trial = study.trials[number]
    drawn = study.sampler.sample_relative(study, trial, space)
    assert copied.sample_relative(study, trial, space) == drawn


def test_every_point_of_the_cube_is_in_the_space() -> None:
    space = {"a": FloatDistribution(0.1, 3.0, log=True), "b": FloatDistribution(0, 1, step=0.25)}
    cube = UnitCube({**space, "c": IntDistribution(1, 100, log=True), "d": IntDistribution(-3, 9, step=3)})
    for place in (0.0, 0.3, 0.5, 0.999, 1.0):
        params = cube.params([place] * 4)
        assert all(one._contains(one.to_internal_repr(params[name])) for name, one in cube.space.items())
    assert cube.params(cube.point(params)) == params
    assert cube.point({"a": 50, "b": 0.5, "c": 0, "d": 3}).tolist()[0] == 1.0


def test_several_objectives_are_refused() -> None:
    study = optuna.create_study(sampler=CmaEsSampler(), directions=["minimize", "minimize"])
    with pytest.raises(InvalidInput, match="one objective"):
        study.optimize(lambda trial: (bowl(trial), 1.0), n_trials=3)


@pytest.mark.parametrize("arguments", [{"sigma0": 0.0}, {"population_size": 1}])
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(arguments))):
        CmaEsSampler(**arguments)


def test_one_sampler_serves_several_studies() -> None:
    sampler = CmaEsSampler(seed=1)
    for _ in range(2):
        study = optuna.create_study(sampler=sampler)
        study.optimize(lambda trial: trial.suggest_float("x", -1, 1) ** 2, n_trials=8)
        assert len(study.trials) == 8
