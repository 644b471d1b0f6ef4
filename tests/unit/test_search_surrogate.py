"""The Gaussian process that ranks candidates: its algebra, its moves, and that no kind of study stops it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

import hopaas_p2p
from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.samplers import TPESampler, default_sampler
from hopaas_p2p.search import samplers, surrogate
from hopaas_p2p.search.surrogate import Cube, Surrogate

SPACE: dict[str, BaseDistribution] = {
    "x": FloatDistribution(-1.0, 3.0),
    "rate": FloatDistribution(1e-5, 1.0, log=True),
    "stepped": FloatDistribution(0.0, 1.0, step=0.25),
    "layers": IntDistribution(1, 4),
    "width": IntDistribution(8, 512, log=True),
    "kind": CategoricalDistribution(["a", "b", "c"]),
}


def points(count: int, parameters: int = 3) -> Any:
    return np.random.default_rng(1).random((count, parameters))


def unit_cube(parameters: int = 3) -> Cube:
    return Cube({f"x{place}": FloatDistribution(0.0, 1.0) for place in range(parameters)})


@pytest.mark.parametrize("count", [1, 24, 25, 200])
def test_elimination_in_blocks_is_choleskys(count: int) -> None:
    cube, places = unit_cube(), points(count)
    kernel = surrogate.kernel(cube.squares(places, places), np.ones(3))
    right = points(count, 90)
    solved, diagonal = surrogate._eliminated(kernel, 0.01, right)
    root = np.linalg.cholesky(kernel + 0.01 * np.eye(count))
    np.testing.assert_allclose(solved, np.linalg.solve(root, right), atol=1e-9)
    np.testing.assert_allclose(diagonal, np.diag(root))


def test_kernels_from_features_are_those_from_distances() -> None:
    cube, numbers = Cube(SPACE), np.random.RandomState(1)
    known, others = cube.points(cube.anywhere(numbers, 30)), cube.points(cube.anywhere(numbers, 300))
    lengths = np.array([0.1, 0.5, 1.0, 2.0, np.inf, 0.7])
    rows = cube.multipliers(known, lengths)
    found = np.concatenate(list(surrogate.correlations(rows, cube.features(others))), axis=1)
    np.testing.assert_allclose(found, surrogate.kernel(cube.squares(known, others), lengths), atol=1e-9)


def test_processes_expect_together_what_each_expects_alone() -> None:
    cube, places = unit_cube(), points(50)
    ranks = surrogate.scores(np.arange(50), 50)
    made = [
        surrogate.Process.of(cube, places[:count], ranks[:count], surrogate.Lengths(np.full(3, length), 0.05, 0))
        for count, length in ((50, 0.3), (20, np.inf), (1, 2.0))
    ]
    features = cube.features(points(400))
    alone = np.column_stack([surrogate.Processes([one]).means(features, np.ones(1)) for one in made])
    np.testing.assert_allclose(surrogate.Processes(made).means(features, np.eye(3)), alone, atol=1e-4)
    mixture = np.array([0.5, 0.2, 0.3])
    np.testing.assert_allclose(surrogate.Processes(made).means(features, mixture), alone @ mixture, atol=1e-4)


def test_candidates_near_good_trials_cost_less() -> None:
    places = points(60)
    order = np.argsort(((places - 0.3) ** 2).sum(axis=1))
    process = Surrogate(
        unit_cube(), places[order], surrogate.scores(np.arange(60), 60), np.empty((0, 3)), count=60, lengths=None
    )
    good, bad = process.costs(np.array([[0.3, 0.3, 0.3], [0.95, 0.95, 0.95]]))
    assert good < bad


def test_where_a_trial_runs_it_costs_more() -> None:
    places, found = points(10), surrogate.scores(np.arange(10), 10)
    running = np.full((1, 3), 0.5)
    without = Surrogate(unit_cube(), places, found, np.empty((0, 3)), count=10, lengths=None)
    beside = Surrogate(unit_cube(), places, found, running, count=10, lengths=without.lengths)
    assert beside.costs(running) > without.costs(running)


def test_trials_in_one_place_have_the_weight_of_one() -> None:
    alone = surrogate.declustered(np.eye(4), 4)
    np.testing.assert_allclose(alone, surrogate.scores(np.arange(4), 4))
    near = np.eye(12)
    near[:9, :9] = 1  # the nine best
    found = surrogate.declustered(near, 12)
    np.testing.assert_allclose(found[9:], alone[1:])
    np.testing.assert_allclose(found[:5], alone[0])
    assert (found[:9] < surrogate.scores(np.array([1]), 4) - 0.3).all()
    assert surrogate.declustered(np.ones((300, 300))[:200, :200], 300).tolist() == [0.0] * 200


def test_every_other_trial_leaves_the_crowd_around_the_best() -> None:
    cube = Cube({"x": FloatDistribution(0.0, 1.0), "kind": CategoricalDistribution("abcd")})
    crowd = np.column_stack([0.5 + 0.001 * np.arange(50), np.zeros(50)])
    worse = np.array([[0.1, 1.0], [0.9, 2.0], [0.2, 1.0]])
    known, lengths = np.concatenate([crowd, worse]), surrogate.Lengths(np.array([0.5, 1.0]), 0.05, 53)
    candidates = np.array([[0.5005, 0.0], [0.5, 3.0]])
    for running, crowded in ((0, False), (1, True)):
        beside = np.full((running, 2), [0.95, 2.0])
        process = Surrogate(cube, known, surrogate.scores(np.arange(53), 53), beside, count=53, lengths=lengths)
        inside, outside = process.costs(candidates)
        assert (inside < outside) == crowded


def test_a_parameter_that_does_not_matter_gets_a_long_scale() -> None:
    places = points(80, 2)
    places = places[np.argsort(np.sin(6 * places[:, 0]))]
    cube = unit_cube(2)
    lengths = surrogate.fit(cube.squares(places, places), surrogate.scores(np.arange(80), 80), 80)
    assert lengths.scales[1] > 2 * lengths.scales[0]


def test_a_local_move_changes_one_parameter_and_stays_inside() -> None:
    numbers = np.random.RandomState(1)
    cube = Cube(SPACE)
    here = cube.anywhere(numbers, 1)
    moved = cube.nearby(numbers, here, 500)
    changed = sum((moved[name] != here[name]).astype(int) for name in SPACE)
    assert (changed <= 1).all()
    assert (changed == 1).mean() > 0.95
    for values in (moved, cube.anywhere(numbers, 500)):
        for name, one in SPACE.items():
            assert all(one._contains(value) for value in values[name]), name


def test_of_many_trials_the_best_and_some_of_the_others_are_taken() -> None:
    rows = surrogate.chosen(1000)
    assert len(set(rows.tolist())) == len(rows) == surrogate.MOST
    assert rows[99] == 99
    assert rows[-1] > 990


def objective(trial: Trial) -> float:
    x, kind = trial.suggest_float("x", -5, 5), trial.suggest_categorical("kind", ["a", "b", "c"])
    width, rate = trial.suggest_int("width", 1, 512, log=True), trial.suggest_float("rate", 1e-5, 1, log=True)
    if trial.number % 7 == 3:
        trial.report(x, 1)
        raise optuna.TrialPruned
    if trial.number % 11 == 3:
        raise RuntimeError
    trial.set_constraint("too wide", width - 256.0)
    return (x - 1) ** 2 + (kind != "b") + abs(np.log10(rate) + 3)


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_pruned_failed_and_infeasible_trials_do_not_stop_it(direction: str) -> None:
    found = []
    for _ in range(2):
        study = optuna.create_study(sampler=default_sampler(seed=1), direction=direction, study_name="s")
        study.optimize(objective, n_trials=60, catch=RuntimeError)
        found.append([trial.params for trial in study.trials])
    assert found[0] == found[1]


def conditional(trial: Trial) -> float:
    if trial.suggest_categorical("kind", ["a", "b"]) == "a":
        return trial.suggest_float("a", 0, 1)
    return trial.suggest_float("b", 0, 1) + trial.suggest_int("c", 1, 5)


def test_a_conditional_space_does_not_stop_it() -> None:
    study = optuna.create_study(sampler=default_sampler(seed=1))
    study.optimize(conditional, n_trials=40)
    assert study.best_value < 0.1


def test_many_at_once_try_different_configurations() -> None:
    """32 trials run at any time, in a space of 6,912: none is proposed twice."""
    study = optuna.create_study(sampler=default_sampler(seed=1), study_name="s")
    space: dict[str, BaseDistribution] = {f"x{place}": IntDistribution(0, 11) for place in range(3)}
    space["kind"] = CategoricalDistribution(["a", "b", "c", "d"])
    running: list[Trial] = []
    for _ in range(120):
        running.append(study.ask(space))
        if len(running) > 32:
            done = running.pop(0)
            study.tell(done, sum((done.params[f"x{place}"] - 7) ** 2 for place in range(3)))
    configurations = [tuple(trial.params.values()) for trial in study.trials]
    assert len(set(configurations[32:])) == len(configurations[32:])


def test_beyond_500_trials_the_densities_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplers, "_PROCESS_UP_TO", 20)
    used: list[int] = []
    original = Surrogate.costs
    monkeypatch.setattr(
        Surrogate, "costs", lambda self, places: used.append(len(self._found)) or original(self, places)
    )
    study = optuna.create_study(sampler=default_sampler(seed=1))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=30)
    assert used == list(range(10, 21))


def test_a_study_that_names_no_sampler_has_this_one(tmp_path: Path) -> None:
    storage = hopaas_p2p.open_storage(tmp_path)
    study = hopaas_p2p.open_study(storage, "s", space={"x": FloatDistribution(0, 1)})
    sampler = study.sampler
    assert isinstance(sampler, TPESampler)
    study.optimize(lambda trial: trial.params["x"], n_trials=15)
    assert study.best_value < 0.1
    storage.close()


def test_the_process_needs_repeats_to_be_avoided() -> None:
    with pytest.raises(InvalidInput, match="together with"):
        TPESampler(model="process")
