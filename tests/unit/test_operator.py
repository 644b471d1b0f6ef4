"""An operator ends trials that other peers run: by hand, after a restart, and through optuna-dashboard."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState
from optuna_dashboard import ChoiceWidget, register_objective_form_widgets, wsgi
from optuna_dashboard.preferential import create_study

import hopaas_p2p
import hopaas_p2p.errors
from hopaas_p2p.errors import InvalidInput, LeaseLost, NotYourTrial
from hopaas_p2p.storage import Storage
from hopaas_p2p.study import Study
from hopaas_p2p.study.audit import audit
from tests.support.processes import SPACE


@pytest.fixture
def url(tmp_path: Path) -> str:
    return str(tmp_path / "store")


@pytest.fixture
def study(url: str) -> Iterator[Study]:
    """The peer that runs trials."""
    made = hopaas_p2p.open_study(url, "s", space=SPACE, budget=5)
    yield made
    made.close()


@pytest.fixture
def operator(url: str, study: Study) -> Iterator[Study]:
    made = hopaas_p2p.open_study(hopaas_p2p.open_storage(url, operator=True, create=False), "s", create=False)
    yield made
    made.close()


def test_a_trial_of_another_peer_is_ended_and_the_log_says_by_whom(study: Study, operator: Study) -> None:
    _trial = study.ask()
    operator.tell(0, 0.25, reason="looked good\nas the log of its job says")
    assert study.trials[0].state is TrialState.COMPLETE
    assert study.trials[0].value == 0.25
    (line,) = [line for line in audit(operator) if line["kind"] == "trial.take_over"]
    info = operator.storage.peer.describe()
    assert line["detail"] == f"COMPLETE 0.25 by {info['user']}@{info['host']} looked good"
    assert study.state.trials[0].history[-1].why == f"taken over by {info['user']}@{info['host']}"
    assert study.provenance(0)["pid"] == info["pid"], "who ran it"


def test_the_owner_hears_that_it_lost_the_trial_and_its_result_is_kept(study: Study, operator: Study) -> None:
    trial = study.ask()
    operator.tell(0, state="pruned")
    with pytest.raises(LeaseLost) as lost:
        study.tell(trial, 0.5)
    assert lost.value.kept_as == 1
    assert [one.state.name for one in study.trials] == ["PRUNED", "COMPLETE"]
    assert study.state.used() == 2


def test_only_an_operator_may_and_only_what_runs(study: Study, operator: Study, url: str) -> None:
    _trial = study.ask()
    other = hopaas_p2p.open_study(url, "s", create=False)
    with pytest.raises(NotYourTrial, match="operator=True"):
        other.tell(0, 1.0)
    other.close()
    operator.tell(0, state="fail", reason="hangs")
    with pytest.raises(UpdateFinishedTrialError):
        operator.tell(0, 1.0)
    _trial = study.ask()
    for values, state in ((None, "complete"), (1.0, "pruned"), (float("nan"), "complete"), ((1.0, 2.0), None)):
        with pytest.raises(InvalidInput):
            operator.tell(1, values, state=state)
    assert study.trials[1].state is TrialState.RUNNING


def test_with_plain_optuna_a_trial_is_told_after_a_restart(url: str) -> None:
    first = hopaas_p2p.open_storage(url)
    number = optuna.create_study(storage=first, study_name="plain").ask().number
    second = hopaas_p2p.open_storage(url, operator=True)
    optuna.load_study(storage=second, study_name="plain").tell(number, 3.0)
    assert optuna.load_study(storage=first, study_name="plain").trials[number].value == 3.0
    for storage in (first, second):
        storage.close()


def test_an_operator_who_runs_trials_itself_tells_them_as_ever(url: str) -> None:
    storage = hopaas_p2p.open_storage(url, operator=True)
    study = optuna.create_study(storage=storage, study_name="plain")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3
    storage.close()


# --- optuna-dashboard ------------------------------------------------------------------------------------------------


def asks(storage: Storage, method: str, path: str, content: object = None) -> tuple[int, Any]:
    """Ask optuna-dashboard's own application, as a browser does."""
    data = json.dumps(content).encode()
    environ = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(data)),
        "wsgi.input": io.BytesIO(data),
        "wsgi.errors": io.StringIO(),
        "wsgi.url_scheme": "http",
    }
    status: list[str] = []
    body = b"".join(wsgi(storage)(environ, lambda line, _headers, *_: status.append(line)))
    return int(status[0].split()[0]), json.loads(body or b"null") if body[:1] in b"{[" else None


@pytest.fixture
def both(url: str) -> Iterator[tuple[Storage, Storage]]:
    """The storage of a script that asks for trials, and that of the dashboard which we start."""
    script, dashboard = hopaas_p2p.open_storage(url), hopaas_p2p.open_storage(url).as_operator()
    yield script, dashboard
    for storage in (script, dashboard):
        storage.close()


def test_a_person_rates_the_trials_of_a_script_in_optuna_dashboard(both: tuple[Storage, Storage]) -> None:
    script, dashboard = both
    study = optuna.create_study(storage=script, study_name="rated")
    register_objective_form_widgets(study, [ChoiceWidget(choices=["good", "bad"], values=[0.0, 1.0])])
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    script.flush()
    assert (
        asks(dashboard, "POST", f"/api/trials/{trial._trial_id}/user-attrs", {"user_attrs": {"note": "sharp"}})[0]
        == 204
    )
    told = {"state": "complete", "values": [0.0]}
    assert asks(dashboard, "POST", f"/api/trials/{trial._trial_id}/tell", told)[0] == 204
    (seen,) = study.trials
    assert (seen.state, seen.value, seen.user_attrs) == (TrialState.COMPLETE, 0.0, {"note": "sharp"})
    assert len(study.get_trials(states=(TrialState.RUNNING,))) == 0


def test_a_script_of_preferences_goes_on_as_a_person_compares(both: tuple[Storage, Storage]) -> None:
    script, dashboard = both
    sampler = optuna.samplers.RandomSampler()  # the default one needs BoTorch
    study = create_study(n_generate=3, storage=script, study_name="liked", sampler=sampler)
    for _ in range(3):
        assert study.should_generate()
        study.ask().suggest_float("x", 0, 1)
    script.flush()
    assert not study.should_generate()
    study_id = study._study._study_id
    worst = {"mode": "ChooseWorst", "candidates": [0, 1, 2], "clicked": 2}
    code, _ = asks(dashboard, "POST", f"/api/studies/{study_id}/preference", worst)
    assert code == 204
    assert [(better.number, worse.number) for better, worse in study.preferences] == [(0, 2), (1, 2)]
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3
    assert study.should_generate()
    assert {trial.number for trial in study.best_trials} == {0, 1}


def test_without_the_operator_optuna_dashboard_cannot_tell_for_others(url: str) -> None:
    script, dashboard = hopaas_p2p.open_storage(url), hopaas_p2p.open_storage(url)
    trial = optuna.create_study(storage=script, study_name="rated").ask()
    with pytest.raises(hopaas_p2p.errors.NotYourTrial):
        dashboard.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [0.0])
    for storage in (script, dashboard):
        storage.close()
