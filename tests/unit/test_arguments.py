"""A wrong argument is refused at the call, in one line, before anything is created or started."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import yaml
from optuna.trial import TrialState

import hopaas_p2p
from hopaas_p2p import Budget, Float, Until
from hopaas_p2p.core.records import Price
from hopaas_p2p.errors import ConfigurationError, HopaasError, InvalidInput, NoSuchStudy
from hopaas_p2p.study import Study
from tests.support.studies import opened_study


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Study]:
    made = hopaas_p2p.open_study(f"memory://{tmp_path}", "s", space={"x": Float(0, 1)})
    yield made
    made.close()


def one_line(error: pytest.ExceptionInfo[HopaasError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 400
    return text


WRONG_STUDIES: list[dict[str, Any]] = [
    {"sampler": 5},
    {"sampler": "TPESampler"},
    {"sampler": optuna.samplers.TPESampler},
    {"pruner": "x"},
    {"pruner": optuna.pruners.MedianPruner},
    {"pruner": False},
    {"space": {"x": 5}},
    {"space": {"x": Float(float("nan"), 1.0)}},
    {"space": {"x": Float("a", 1.0)}},  # type: ignore[arg-type]
    {"space": 5},
    {"budget": -1},
    {"budget": True},
    {"budget": 2**70},
    {"budget": Budget(gpu_hours="x")},  # type: ignore[arg-type]
    {"budget": Budget(epochs=1.5)},  # type: ignore[arg-type]
    {"budget": Budget(until=5)},  # type: ignore[arg-type]
    {"budget": Budget(until=Until(date=2**80))},
    {"budget": Budget(euro=5, prices={"a": 5})},  # type: ignore[dict-item]
    {"attempts": 0},
    {"attempts": True},
    {"attempts": 2**70},
    {"max_failures": True},
    {"lease_ttl": 0},
    {"lease_ttl": True},
    {"lease_ttl": float("inf")},
    {"lease_ttl": "5"},
    {"progress_timeout": -1},
    {"directions": "up"},
    {"directions": 5},
    {"directions": ["minimize"] * 1000},
    {"trackers": "mlflow"},
    {"trackers": 5},
    {"trackers": [5]},
    {"patience": -1},
    {"store_wait": "x"},
    {"linger": "x"},
    {"peer_ttl": 0},
    {"peer_ttl": 31 * 86_400.0},
    {"name": ""},
    {"name": " "},
    {"name": " a"},
]


def named(wrong: object) -> str:
    """It, without addresses, which differ between the processes that share a run."""
    return re.sub(" at 0x[0-9a-f]+", "", str(wrong))


@pytest.mark.parametrize("wrong", WRONG_STUDIES, ids=named)
def test_a_wrong_argument_of_open_study_creates_nothing(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as error:
        opened_study(f"memory://{tmp_path}", **{"name": "s", **wrong})
    one_line(error)
    storage = hopaas_p2p.open_storage(f"memory://{tmp_path}")
    assert storage.study_names() == []
    storage.close()


def test_a_class_in_place_of_a_sampler_is_asked_about(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"did you mean TPESampler\(\)\?"):
        hopaas_p2p.open_study(f"memory://{tmp_path}", "s", sampler=optuna.samplers.TPESampler)  # type: ignore[arg-type]


@pytest.mark.parametrize("url", ["postgresql:db", "s3:bucket/prefix", "memory:", "file:/tmp/x", "https:host"])
def test_a_url_without_its_slashes_does_not_become_a_directory(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match="without its two slashes"):
        hopaas_p2p.open_storage(url)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_trials": "3"},
        {"n_trials": 1.5},
        {"timeout": "x"},
        {"timeout": float("nan")},
        {"catch": 5},
        {"catch": "ValueError"},
        {"catch": (5,)},
        {"catch": ValueError("x")},
        {"callbacks": 5},
        {"callbacks": [5]},
        {"callbacks": print},
        {"on": lambda: 5},
        {"on": print, "workers": 2},
    ],
    ids=named,
)
def test_a_wrong_argument_of_optimize_starts_no_trial(wrong: dict[str, Any], study: Study) -> None:
    with pytest.raises(InvalidInput) as error:
        study.optimize(operator.attrgetter("params.x"), **wrong)
    one_line(error)
    assert study.trials == []


@pytest.mark.parametrize("number", [None, "x", 1.5, True, object()], ids=named)
@pytest.mark.parametrize("call", ["tell", "stop_trial", "requeue", "provenance"])
def test_what_is_no_number_of_a_trial_is_refused(call: str, number: Any, study: Study) -> None:
    with pytest.raises(InvalidInput) as error:
        getattr(study, call)(number)
    one_line(error)


def test_a_number_of_numpy_names_a_trial(study: Study) -> None:
    trial = study.ask()
    study.tell(np.int64(trial.number), 0.5)
    assert study.provenance(np.int64(0))
    assert study.best_value == 0.5


@pytest.mark.parametrize("state", [5, "running", TrialState.WAITING, TrialState.RUNNING], ids=named)
def test_a_trial_goes_on_if_it_is_told_a_state_in_which_none_ends(state: Any, study: Study) -> None:
    trial = study.ask()
    with pytest.raises(InvalidInput, match="a trial ends as"):
        study.tell(trial, state=state)
    study.tell(trial, 1.0)
    assert study.best_value == 1.0


def test_wrong_arguments_of_other_calls_are_refused(study: Study) -> None:
    trial = study.ask()
    calls: list[Any] = [
        lambda: study.enqueue_trial(5),  # type: ignore[arg-type]
        lambda: study.enqueue_trial([("x", 0.5)]),  # type: ignore[arg-type]
        lambda: study.enqueue_trial({"x": 0.5}, user_attrs=5),  # type: ignore[arg-type]
        lambda: study.search_with(sampler=5),  # type: ignore[arg-type]
        lambda: study.search_with(pruner="x"),  # type: ignore[arg-type]
        lambda: study.drain(peer=""),
        lambda: study.drain(site=5),  # type: ignore[arg-type]
        lambda: study.set_budget(True),
        lambda: study.set_budget(2**70),
        lambda: trial.checkpoint(5, step=1),  # type: ignore[arg-type]
        lambda: trial.checkpoint(b"x", step="x"),  # type: ignore[arg-type]
        lambda: trial.checkpoint(b"x", step=1.5),  # type: ignore[arg-type]
        lambda: trial.upload(5),  # type: ignore[arg-type]
        lambda: study.artifacts().put(__file__, trial="x"),  # type: ignore[arg-type]
        lambda: study.schedule("x"),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises(InvalidInput) as error:
            call()
        one_line(error)


def test_a_budget_takes_the_numbers_of_numpy(tmp_path: Path) -> None:
    budget = Budget(
        trials=np.int64(5), gpu_hours=np.float32(2), euro=np.float64(3), prices={"*": Price(gpu_hour=np.float32(1))}
    )
    study = hopaas_p2p.open_study(f"memory://{tmp_path}", "s", budget=budget)
    assert study.state.budget == 5
    assert study.state.ledger.limits.gpu_hours == 2.0
    study.close()


def test_a_policy_of_another_kind_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"policy must be a StudyPolicy such as .*, got \{'lease_ttl': 3\}"):
        hopaas_p2p.open_study(f"memory://{tmp_path}", "s", policy={"lease_ttl": 3})  # type: ignore[arg-type]


def test_a_parameter_of_a_trial_without_any_is_refused_with_the_cure(tmp_path: Path) -> None:
    study = hopaas_p2p.open_study(f"memory://{tmp_path}", "s")
    trial = study.ask()
    cure = r"the study has no search space; call trial.suggest_float\('x', …\), or give open_study a space="
    with pytest.raises(KeyError, match=cure):
        _ = trial.params["x"]
    assert trial.params.get("x") is None
    study.close()


def test_the_parameters_of_a_trial_are_a_plain_dictionary_that_files_and_checkpoints_take(tmp_path: Path) -> None:
    study = hopaas_p2p.open_study(f"memory://{tmp_path}", "s", space={"x": Float(1, 1)})
    trial = study.ask()
    assert type(trial.params) is dict
    assert yaml.safe_load(yaml.safe_dump(trial.params)) == {"x": 1.0}
    with pytest.raises(KeyError):
        _ = trial.params["y"]
    study.close()


def test_a_study_that_is_not_there_is_asked_about_by_a_near_name(tmp_path: Path) -> None:
    storage = hopaas_p2p.open_storage(f"memory://{tmp_path}")
    hopaas_p2p.open_study(storage, "digits")
    for look in (
        lambda: hopaas_p2p.open_study(storage, "digts", create=False),
        lambda: optuna.load_study(study_name="digts", storage=storage),
        lambda: hopaas_p2p.open_study(storage, "new", learn_from=["digts"]),
    ):
        with pytest.raises(NoSuchStudy, match=r"there is no study 'digts' in .*; did you mean 'digits'\?"):
            look()
    with pytest.raises(NoSuchStudy, match="see: hopaas-p2p study list"):
        hopaas_p2p.open_study(storage, "mnist", create=False)
    storage.close()


def test_a_study_that_is_created_is_compared_with_no_names_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ten thousand studies that takes a second, and it asks the store which of them this user may see."""
    storage = hopaas_p2p.open_storage(f"memory://{tmp_path}")
    hopaas_p2p.open_study(storage, "digits")
    monkeypatch.setattr(type(storage), "listings", lambda _self: pytest.fail("it looked at all studies"))
    hopaas_p2p.open_study(storage, "digts")
    storage.close()
