"""Each private name of Optuna that the search uses, so that a new Optuna which renames one is named here."""

from __future__ import annotations

import inspect
from pathlib import Path

import optuna
import pytest
from optuna.samplers._tpe import parzen_estimator, probability_distributions
from optuna.search_space import group_decomposed

from hopaas_p2p.search import optuna_internals as internals
from tests.unit.test_optuna_internals import PACKAGE, private_names

CURE = "Optuna has changed: mend hopaas_p2p/search/optuna_internals.py, the only file that uses this name"


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study()


@pytest.mark.parametrize("name", ["_storage", "_study_id", "_get_trials"])
def test_a_study_has_this_name(study: optuna.Study, name: str) -> None:
    assert hasattr(study, name), CURE


@pytest.mark.parametrize(
    "name",
    [
        "_n_startup_trials", "_rng", "_random_sampler", "_constant_liar", "_n_ei_candidates", "_group", "_gamma",
        "_parzen_estimator_parameters", "_parzen_estimator_cls", "_warn_independent_sampling", "_is_multivariate",
        "_get_params", "_sample", "_sample_relative", "_search_space_group",
    ],
)  # fmt: skip
def test_optunas_sampler_has_this_name(name: str) -> None:
    assert hasattr(optuna.samplers.TPESampler(), name), CURE


def test_a_state_of_random_numbers_has_this_name() -> None:
    sampler = optuna.samplers.RandomSampler(seed=1)
    before = sampler._rng.rng
    assert sampler._rng._rng is before, CURE
    internals.reseed_in_child(sampler)
    assert sampler._rng.rng is not before, CURE


def test_what_is_announced_of_a_trial_is_written(study: optuna.Study) -> None:
    study.ask()
    assert hasattr(study.trials[0], "_trial_id"), CURE
    internals.announce(study, study.trials[0], "key", [1])
    assert study.trials[0].system_attrs == {"key": [1]}, CURE


@pytest.mark.parametrize("name", ["consider_magic_clip", "prior_weight", "consider_endpoints", "weights"])
def test_an_estimator_is_told_this(name: str) -> None:
    assert name in parzen_estimator._ParzenEstimatorParameters._fields, CURE


@pytest.mark.parametrize("name", ["_call_weights_func", "sample", "log_pdf"])
def test_an_estimator_has_this_name(name: str) -> None:
    assert hasattr(parzen_estimator._ParzenEstimator, name), CURE


def test_a_mixture_has_these_parts() -> None:
    assert probability_distributions._MixtureOfProductDistribution._fields == ("weights", "distributions"), CURE
    assert probability_distributions._BatchedCategoricalDistributions._fields == ("weights",), CURE
    assert "_mixture_distribution" in inspect.getsource(parzen_estimator), CURE
    assert probability_distributions._BatchedTruncNormDistributions._fields[:2] == ("mu", "sigma"), CURE


def test_groups_of_parameters_have_this_name() -> None:
    assert group_decomposed._SearchSpaceGroup()._search_spaces == [], CURE


def test_a_grid_has_these_points_and_says_them_of_a_trial(study: optuna.Study) -> None:
    study.sampler = optuna.samplers.GridSampler({"x": [0, 1], "c": ["a"]})
    assert sorted(study.sampler._param_names) == ["c", "x"] and len(study.sampler._all_grids) == 2, CURE
    space = {"x": optuna.distributions.IntDistribution(0, 3), "c": optuna.distributions.CategoricalDistribution("ba")}
    points = internals.grid_points(study.sampler, space)
    assert points is not None and sorted(points, key=lambda one: one["x"]) == [{"c": 1, "x": 0}, {"c": 1, "x": 1}], CURE
    study.ask()
    assert study.trials[0].system_attrs.keys() == set(internals.GRID), CURE
    assert internals.grid_points(study.sampler, {"x": space["x"]}) is None
    assert internals.grid_points(optuna.samplers.RandomSampler(), space) is None


def test_a_sampler_that_fixes_parameters_names_them() -> None:
    sampler = optuna.samplers.PartialFixedSampler({"x": 1}, optuna.samplers.RandomSampler())
    assert hasattr(sampler, "_fixed_params"), CURE
    assert internals.fixed_names(sampler) == {"x"}
    assert internals.fixed_names(optuna.samplers.RandomSampler()) == frozenset()


def test_hyperband_shows_a_sampler_a_part_of_the_study(study: optuna.Study) -> None:
    trial = study.ask()
    study.pruner = optuna.pruners.HyperbandPruner(max_resource=9)
    study.tell(trial, 1.0)
    part = optuna.pruners._filter_study(study, study.trials[0])
    assert internals.is_part_of_a_study(part), CURE
    assert not internals.is_part_of_a_study(study)


def test_every_private_name_is_tested_here_and_used_nowhere_else() -> None:
    used = private_names(Path(inspect.getfile(internals)))
    here = Path(__file__).read_text()
    assert all(name in here for name in used), used
    for path in (PACKAGE / "search").rglob("*.py"):
        if path.name != "optuna_internals.py":
            assert not private_names(path), path
