"""Each private name of Optuna that we use, so that a new Optuna which renames one is named here and nowhere else."""

from __future__ import annotations

import ast
import copy
import inspect
import pickle
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hopaas_p2p.storage import optuna_internals as internals

PACKAGE = Path(__file__).parents[2] / "hopaas_p2p"
CURE = "Optuna has changed: mend hopaas_p2p/storage/optuna_internals.py, the only file that uses this name"


def private_names(path: Path) -> set[str]:
    """Names with one underscore that this file takes from other objects than its own."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            owner = node.value
            if not (isinstance(owner, ast.Name) and owner.id in ("self", "cls")):
                found.add(node.attr)
    return found


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))


def test_a_frozen_trial_has_the_fields_that_are_set_without_its_constructor() -> None:
    real = optuna.trial.create_trial(value=1.0)
    ours = internals.new_frozen(0, 0, TrialState.COMPLETE, [1.0], None, None, {}, {}, {}, {}, {})
    assert ours.__dict__.keys() == real.__dict__.keys(), CURE
    assert internals.copy_of(real) == real, CURE
    assert internals.copy_of(real).__dict__.keys() == real.__dict__.keys(), CURE
    internals.end_frozen(ours, TrialState.PRUNED, [2.0])
    assert (ours.state, ours.values) == (TrialState.PRUNED, [2.0]), CURE


def a_frozen_trial() -> FrozenTrial:
    return internals.new_frozen(
        3,
        3,
        TrialState.COMPLETE,
        [1.0],
        None,
        None,
        {"x": 0.5, "c": "u"},
        {"x": FloatDistribution(0, 1), "c": CategoricalDistribution(["u", "v"])},
        {"notes": ["one", {"two": 2}]},
        {"sampler:state": [1, 2]},
        {1: 0.3},
    )


def changeable_parts(trial: FrozenTrial) -> list[object]:
    """Every object of a trial that a program could change."""
    attributes = [trial.user_attrs, trial.user_attrs["notes"], trial.user_attrs["notes"][1]]
    attributes += [trial.system_attrs, trial.system_attrs["sampler:state"]]
    return [trial, trial.values, trial.params, trial.intermediate_values, *attributes, *trial.distributions.values()]


def test_a_deep_copy_of_a_frozen_trial_shares_nothing_that_can_be_changed() -> None:
    ours = a_frozen_trial()
    copied = copy.deepcopy(ours)
    assert (copied, repr(copied)) == (ours, repr(ours))
    assert repr(ours).startswith("FrozenTrial(number=3")
    assert not {*map(id, changeable_parts(copied))} & {*map(id, changeable_parts(ours))}


def test_a_copy_of_a_frozen_trial_shares_all_but_itself() -> None:
    ours = a_frozen_trial()
    copied = copy.copy(ours)
    copied.number = 4
    assert ours.number == 3
    assert changeable_parts(copied)[1:] == changeable_parts(ours)[1:]
    assert copied.user_attrs is ours.user_attrs


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_frozen_trial_is_pickled_as_optunas(protocol: int) -> None:
    ours = a_frozen_trial()
    pickled = pickle.dumps(ours, protocol)
    assert b"hopaas" not in pickled
    assert type(pickle.loads(pickled)) is FrozenTrial
    assert pickle.loads(pickled) == ours


@pytest.mark.parametrize("name", ["_trial_id", "_cached_frozen_trial", "_suggest"])
def test_a_trial_has_this_name(study: optuna.Study, name: str) -> None:
    assert hasattr(study.ask(), name), CURE


@pytest.mark.parametrize("name", ["_study_id", "_thread_local", "_should_skip_enqueue"])
def test_a_study_has_this_name(study: optuna.Study, name: str) -> None:
    assert hasattr(study, name), CURE


def test_a_study_caches_the_list_of_trials_under_this_name(study: optuna.Study) -> None:
    study.ask()
    study.optimize(lambda trial: trial.suggest_float("x", 0.0, 1.0), n_trials=1)
    assert hasattr(study._thread_local, "cached_all_trials"), CURE
    internals.begin(optuna.trial.Trial, study, internals.copy_of(study.trials[0]))
    assert study._thread_local.cached_all_trials is None, CURE


def test_a_trial_begins_like_optunas() -> None:
    """Its constructor asks the storage, which need not be asked for a trial that is known."""
    study = optuna.create_study()
    study.enqueue_trial({"x": 1.0})
    real, heard = study.ask(), list[FrozenTrial]()
    study.sampler.before_trial = lambda _, trial: heard.append(trial)  # type: ignore[method-assign]
    ours = internals.begin(optuna.trial.Trial, study, internals.cached_trial(real))
    assert vars(ours) == vars(real), CURE
    assert heard == [internals.cached_trial(real)]


def test_what_a_trial_believes_can_be_replaced(study: optuna.Study) -> None:
    trial = study.ask()
    internals.suggest_fixed(trial, {"x": optuna.distributions.FloatDistribution(0.0, 1.0)})
    assert 0.0 <= trial.params["x"] <= 1.0, CURE
    frozen = internals.copy_of(internals.cached_trial(trial))
    frozen.intermediate_values[7] = 0.5
    internals.become(trial, frozen)
    assert internals.cached_trial(trial) is frozen
    assert internals.trial_id_of(trial) == internals.trial_id_of(frozen) == trial._trial_id


def test_a_sampler_hears_of_the_end_as_from_study_tell(study: optuna.Study) -> None:
    assert callable(optuna.pruners._filter_study), CURE
    heard: list[tuple[FrozenTrial, TrialState, object]] = []
    study.sampler.after_trial = lambda _study, *told: heard.append(told)  # type: ignore[method-assign,assignment]
    frozen = internals.cached_trial(study.ask())
    internals.after_trial(study, frozen, TrialState.COMPLETE, (1.0,))
    assert heard == [(frozen, TrialState.COMPLETE, [1.0])]


def test_a_study_is_described_as_storages_describe_it() -> None:
    found = internals.new_study("s", [StudyDirection.MAXIMIZE], {"a": 1}, {}, 3)
    assert (found.study_name, found.directions, found.user_attrs, found._study_id) == (
        "s",
        [StudyDirection.MAXIMIZE],
        {"a": 1},
        3,
    ), CURE


def test_a_progress_bar_is_moved_and_closed(study: optuna.Study, capsys: pytest.CaptureFixture[str]) -> None:
    assert hasattr(optuna.progress_bar, "_ProgressBar"), CURE
    with internals.progress_bar(study, 1, None, shown=True) as moved:
        study.optimize(lambda trial: trial.suggest_float("x", 0.0, 1.0), n_trials=1)
        for move in moved:
            move(study.trials[0])
    assert "1/1" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_distributions_that_optuna_has_replaced_are_converted(study: optuna.Study) -> None:
    assert hasattr(optuna.distributions, "_convert_old_distribution_to_new_distribution"), CURE
    trial = study.ask()
    internals.suggest_fixed(trial, {"x": optuna.distributions.UniformDistribution(0, 1)})
    assert trial.distributions == {"x": FloatDistribution(0, 1)}


def test_a_distribution_knows_its_values() -> None:
    distribution = optuna.distributions.CategoricalDistribution(("a", "b"))
    assert hasattr(distribution, "_contains"), CURE
    assert internals.contains(distribution, "a")
    assert not internals.contains(distribution, "c")


def test_a_trial_knows_what_was_queued_and_what_was_sampled() -> None:
    study = optuna.create_study()
    study.enqueue_trial({"x": 1.0})
    trial = study.ask()
    assert hasattr(trial, "_fixed_params") and hasattr(trial, "_relative_params"), CURE  # noqa: PT018
    assert internals.fixed_params(trial) == {"x": 1.0}
    internals.sample(trial, {"x": FloatDistribution(0, 2), "y": FloatDistribution(0, 1)})
    assert trial.relative_params == {}
    assert trial.params["x"] == 1.0
    assert trial.params.keys() == {"x", "y"}


def test_every_private_name_is_tested_here_and_used_nowhere_else() -> None:
    used = private_names(Path(inspect.getfile(internals)))
    here = Path(__file__).read_text()
    dictionary = {"_number", "_values", "_datetime_start", "_params", "_user_attrs", "_system_attrs", "_distributions"}
    assert all(name in here for name in used - dictionary), used
    known = used - {"_study_id", "_trial_id", "_number", "_values"}  # ours, too
    for path in PACKAGE.rglob("*.py"):
        if path.name != "optuna_internals.py" and "training" not in path.parts:
            assert not private_names(path) & known, path
