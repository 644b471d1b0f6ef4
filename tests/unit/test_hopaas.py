"""Scripts written for hopaas_client run on a shared log: whole ones, in the style of its users, as processes."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest

import hopaas_p2p
import hopaas_p2p.hopaas as hpc
from hopaas_p2p.core.records import Distribution
from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.study import Study
from tests.support.processes import ROOT, cli, environment, script, states

HEAD = """
import os, sys, time
import hopaas_p2p.hopaas as hpc
"""


def run(command: list[str], directory: Path, *, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
    """A script, in a home of its own."""
    env = {"HOPAAS_STORE": "store", "HOME": str(directory), **env}
    return subprocess.run(
        command, cwd=directory, env=environment(**env), capture_output=True, text=True, timeout=120, check=check
    )


def opened(directory: Path, store: str = "store") -> Study:
    """The one study of the store, to look at."""
    storage = hopaas_p2p.open_storage(str(directory / store))
    (found,) = storage.get_all_studies()
    return hopaas_p2p.open_study(storage, found.study_name, create=False)


def joined(directory: Path, name: str = "s", **more: Any) -> hpc.Study:
    """A study in this process."""
    options = {"properties": {"x": hpc.suggestions.Float(0, 1)}, "client": hpc.Client(str(directory / "store"))}
    return hpc.Study(name, **{**options, **more})


@pytest.fixture
def study(tmp_path: Path) -> hpc.Study:
    return joined(tmp_path)


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("HOPAAS_") and name != "HOPAAS_TEST_REQUIRE"]:
        monkeypatch.delenv(name)
    yield
    hpc.Client(str(tmp_path / "store")).close()


# --- whole scripts ---


FOR_EVER = (
    HEAD
    + """
study = hpc.Study("Iris GBDT v7", properties=dict(
    n_estimators=hpc.suggestions.Int(2, 20),
    learning_rate=0.1,
    max_depth=hpc.suggestions.Int(2, 5),
  ),
  sampler=hpc.samplers.TPESampler(),
  pruner=hpc.pruners.MedianPruner(),
)
while True:
  with study.trial() as trial:
    assert trial.learning_rate == 0.1
    trial.loss = 1. - trial.n_estimators * trial.max_depth / 100
"""
)


def test_loops_for_ever_share_a_study_and_end_well_when_its_budget_does(tmp_path: Path) -> None:
    command = script(tmp_path, FOR_EVER)
    same = joined(
        tmp_path,
        name="Iris GBDT v7",
        properties={"n_estimators": "optuna#int(2,20)", "learning_rate": 0.1, "max_depth": "optuna#int(2,5)"},
        pruner=hpc.pruners.MedianPruner(),
    )
    with same.trial() as trial:
        trial.loss = 1.0
    cli("study", "set", same.store_name, "-s", "store", "--budget", "30", cwd=tmp_path)

    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(HOPAAS_STORE="store"), stderr=subprocess.PIPE, text=True
    ) as one:
        other = run(command, tmp_path)
        errors = one.communicate(timeout=60)[1] + other.stderr

    study = opened(tmp_path)
    assert one.returncode == 0, errors
    assert errors.count("budget is used up") == 2
    assert "Traceback" not in errors
    assert states(study) == ["COMPLETE"] * 30
    assert study.state.user == {"learning_rate": "0.1"}
    study.close()


ONE_A_JOB = (
    HEAD
    + """
import socket, yaml
client = hpc.Client(server=os.environ["SERVER"], token="an old token") if "SERVER" in os.environ else hpc.Client()
properties = {
    "algo": hpc.suggestions.Categorical(["gan", "wgan", "cramer-gan"]),
    "lip_exp": hpc.suggestions.Int(-2, 2, step=1),
    "g_lr": "optuna#float(1e-4,1e-3)",
}
properties.update({"train_ratio": 0.75, "epochs": 500})
study = hpc.Study(
    name="PIDGAN::GanAlgo::v0",
    properties=properties,
    special_properties={"address": "127.0.0.1", "node_name": os.environ["NODE"]},
    direction="minimize",
    pruner=hpc.pruners.NopPruner(),
    sampler=hpc.samplers.TPESampler(n_startup_trials=50),
    client=client,
)
with study.trial() as trial:
    print(f"trial {trial.id:04d} of suid{study.study_id[:8]}")
    assert trial.epochs == 500 and trial.train_ratio == 0.75
    lipschitz_penalty = float(f"1e{trial.lip_exp}")
    trial.loss = trial.g_lr * lipschitz_penalty
"""
)


@pytest.mark.parametrize("how", ["server", "variable", "address of the old server"])
def test_one_trial_a_job_wherever_the_store_is_said(tmp_path: Path, how: str) -> None:
    env = {
        "server": {"SERVER": "./store", "HOPAAS_STORE": ""},
        "variable": {"HOPAAS_STORE": "./store"},
        "address of the old server": {"SERVER": "https://hopaas.example.org:443", "HOPAAS_STORE": "./store"},
    }[how]
    command = script(tmp_path, ONE_A_JOB)

    said = [run(command, tmp_path, NODE=f"node{job}", **env).stdout.strip() for job in range(2)]

    study = opened(tmp_path)
    assert [line.split(" of ")[0] for line in said] == ["trial 0000", "trial 0001"]
    assert len({line.split(" of ")[1] for line in said}) == 1
    assert [trial.user_attrs["node_name"] for trial in study.trials] == ["node0", "node1"]
    assert states(study) == ["COMPLETE"] * 2
    study.close()


@pytest.mark.parametrize("env", [{}, {"SERVER": "http://hopaas.example.org"}], ids=["nothing said", "an old server"])
def test_a_job_without_a_store_is_told_what_to_say_and_never_asked(tmp_path: Path, env: dict[str, str]) -> None:
    done = run(script(tmp_path, ONE_A_JOB), tmp_path, check=False, NODE="n", **{"HOPAAS_STORE": "", **env})

    assert done.returncode == 1
    assert "HopaasServerError" in done.stderr.splitlines()[-1]
    assert "HOPAAS_STORE" in done.stderr.splitlines()[-1]


KERAS = (
    HEAD
    + """
class Callback:  # as Keras calls one
    def set_model(self, model): self.model = model
    def on_train_begin(self, logs=None): pass
    def on_epoch_end(self, epoch, logs=None): pass
    def on_train_end(self, logs=None): pass

class Model:
    def fit(self, epochs, callbacks, losses):
        self.stop_training = False
        for callback in callbacks:
            callback.set_model(self)
            callback.on_train_begin()
        for epoch in range(epochs):
            logs = {"val_loss": losses(epoch)}
            for callback in callbacks: callback.on_epoch_end(epoch, logs)
            if self.stop_training: break
        for callback in callbacks: callback.on_train_end(logs)

class Reporter(Callback):  # reports every `step` epochs, and prunes
    def __init__(self, trial, loss, pruning=False, step=1):
        self._trial, self._loss, self._pruning, self._step = trial, loss, pruning, step
    def on_epoch_end(self, epoch, logs=None):
        if self._pruning and (epoch + 1) % self._step == 0:
            self._trial.loss = logs.get(self._loss)
            if self._trial.should_prune:
                self.model.stop_training = True
    def on_train_end(self, logs=None):
        if not self._pruning:
            self._trial.loss = logs.get(self._loss)
        elif self._trial.should_prune:
            print(f"trial {self._trial.id} pruned at step {self._trial.step}")

class StopWatch(Callback):
    def __init__(self, seconds): self._seconds = seconds
    def on_train_begin(self, logs=None): self._began = CLOCK[0]
    def on_epoch_end(self, epoch, logs=None):
        CLOCK[0] += 60
        if CLOCK[0] - self._began >= self._seconds: self.model.stop_training = True

CLOCK = [0]
"""
)


def test_a_keras_callback_reports_every_five_epochs_and_prunes(tmp_path: Path) -> None:
    body = """
study = hpc.Study("Keras", properties={"lr": hpc.suggestions.LogUniform(1e-4, 1e-1), "epochs": 20},
    pruner=hpc.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=1))
for bad in (0, 0, 1, 0):
    with study.trial() as trial:
        callback = Reporter(trial, "val_loss", pruning=True, step=5)
        Model().fit(trial.epochs, [callback], lambda epoch: 1 / (epoch + 1) + 5 * bad - (2 if trial.id == 3 else 0))
"""
    done = run(script(tmp_path, KERAS + body), tmp_path)

    study = opened(tmp_path)
    assert states(study) == ["COMPLETE", "COMPLETE", "PRUNED", "COMPLETE"]
    assert "trial 2 pruned at step 1" in done.stdout
    assert study.trials[0].intermediate_values == {0: 1 / 5, 1: 1 / 10, 2: 1 / 15, 3: 1 / 20}
    assert study.trials[0].value == 1 / 20
    assert study.trials[2].intermediate_values == {0: 5 + 1 / 5, 1: 5 + 1 / 10}
    study.close()


def test_a_stop_watch_callback_ends_the_training_and_the_loss_is_told(tmp_path: Path) -> None:
    body = """
study = hpc.Study("Clock", properties={"lr": hpc.suggestions.Float(0, 1)}, pruner=hpc.pruners.ThresholdPruner(upper=0))
with study.trial() as trial:
    Model().fit(100, [Reporter(trial, "val_loss"), StopWatch(seconds=600)], lambda epoch: epoch)
"""
    run(script(tmp_path, KERAS + body), tmp_path)

    study = opened(tmp_path)
    assert [(one.state.name, one.value) for one in study.trials] == [("COMPLETE", 9.0)]
    study.close()


def test_a_pool_of_processes_shares_the_study_it_was_forked_with(tmp_path: Path) -> None:
    body = """
from multiprocessing import get_context
def perform(_):
    study = hpc.Study("Pool", dict(some_value=2, x=hpc.suggestions.Uniform(0, 1)))
    with study.trial() as trial:
        for i in range(5):
            trial.loss = trial.some_value + i
        return trial.loss
if __name__ == "__main__":
    mine = hpc.Study("Pool", dict(some_value=2, x="optuna#uniform(0,1)"))
    with mine.trial() as trial:
        trial.loss = 1
    with get_context(sys.argv[1]).Pool(3) as pool:
        assert set(pool.map(perform, range(9))) == {6.0}
    assert len(mine.trials) == 10 and mine.best_trial_id == 0
"""
    for method in ("fork", "spawn"):
        run([*script(tmp_path, HEAD + body), method], tmp_path, HOPAAS_STORE=method, PYTHONWARNINGS="")
        study = opened(tmp_path, method)
        assert states(study) == ["COMPLETE"] * 10
        assert all(len(trial.intermediate_values) == 5 for trial in study.trials[1:])
        study.close()


ENDS = (
    HEAD
    + """
study = hpc.Study("Ends", {"x": hpc.suggestions.Float(0, 1)})
print(study.study_id, study.is_initialized)
while True:
    with study.trial() as trial:
        trial.loss = 0.5
        if sys.argv[1] == "raise": raise ValueError("out of memory")
        if sys.argv[1] == "nan": trial.loss = float("nan")
        if sys.argv[1] == "nothing": trial._loss = None
        print("ready", flush=True)
        for _ in range(3000 * (sys.argv[1] == "wait")): time.sleep(0.1)  # one long sleep may miss a signal
    if sys.argv[1] == "nan": break
"""
)


def test_an_exception_fails_the_trial_with_its_reason_and_goes_on_its_way(tmp_path: Path) -> None:
    done = run([*script(tmp_path, ENDS), "raise"], tmp_path, check=False)

    study = opened(tmp_path)
    (trial,) = study.state.trials
    assert done.stderr.splitlines()[-1] == "ValueError: out of memory"
    assert (trial.state.name, trial.values, trial.reports) == ("FAIL", None, {0: 0.5})
    same = joined(tmp_path, name="Ends")
    assert [(one.state, one.loss) for one in same.trials.values()] == [("FAIL", None)]
    assert trial.reason is not None
    assert trial.reason.startswith("ValueError: out of memory")
    study.close()


def test_a_loss_that_is_no_number_fails_the_trial(tmp_path: Path) -> None:
    run([*script(tmp_path, ENDS), "nan"], tmp_path)

    study = opened(tmp_path)
    assert states(study) == ["FAIL"]
    assert study.state.trials[0].reason == "a value must be a number, got NaN"
    study.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_stops_the_loop_and_gives_the_trial_back(tmp_path: Path, number: signal.Signals) -> None:
    command = [*script(tmp_path, ENDS), "wait"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment(HOPAAS_STORE="store", HOME=str(tmp_path)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "None False\n"
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        process.communicate(timeout=60)

    study = opened(tmp_path)
    (trial,) = study.state.trials
    assert process.returncode in (143, -signal.SIGINT)
    assert (trial.state.name, trial.values) == ("WAITING", None)
    study.close()


def test_the_originals_modules_have_their_names(tmp_path: Path) -> None:
    text = """
import sys
import hopaas_p2p.hopaas as hpc
from hopaas_p2p.hopaas.Client import Client
from hopaas_p2p.hopaas.Exceptions import HopaasServerError
from hopaas_p2p.hopaas.suggestions import Uniform
import beside
study = hpc.Study("Same", {"x": Uniform(0, 1)}, client=Client())
for _ in range(int(sys.argv[1])):
    with study.trial() as trial:
        trial.loss = beside.loss(trial.x)
"""
    (tmp_path / "beside.py").write_text("def loss(x): return x ** 2\n")
    _, path = script(tmp_path, text)

    run([sys.executable, path, "3"], tmp_path)

    study = opened(tmp_path)
    assert states(study) == ["COMPLETE"] * 3
    study.close()


# --- the interface, piece by piece ---


def test_the_same_set_up_is_the_same_study_whatever_its_order_spelling_and_place(tmp_path: Path) -> None:
    text = {"x": "optuna#float(0,1)", "k": 3}
    objects = {"k": numpy.int64(3), "x": hpc.suggestions.Uniform(0.0, 1.0)}

    first = joined(tmp_path, properties=text, special_properties={"node": "a"})
    same = joined(tmp_path, properties=objects, special_properties={"node": "b"})

    assert first.store_name == same.store_name
    others = [
        joined(tmp_path, properties={**text, "k": 4}),
        joined(tmp_path, properties={**text, "x": "optuna#float(0,2)"}),
        joined(tmp_path, properties=text, direction="maximize"),
        joined(tmp_path, properties=text, pruner=hpc.pruners.MedianPruner()),
        joined(tmp_path, properties=text, sampler=hpc.samplers.TPESampler(n_startup_trials=3)),
    ]
    assert len({first.store_name, *(study.store_name for study in others)}) == 6


def test_everybodys_trials_are_shown_and_the_best_is_among_them(tmp_path: Path) -> None:
    here, there = joined(tmp_path), joined(tmp_path)
    with pytest.raises(hpc.exceptions.HopaasConsistencyError, match="start one with study"):
        _ = here.best_trial_id
    assert (here.study_id, here.is_initialized) == (None, False)

    with here.trial() as mine:
        mine.loss = 2.0
    with there.trial() as theirs:
        theirs.loss = 1.0

    assert here.is_initialized
    assert here.study_id == there.study_id
    assert here.best_trial_id == 1
    assert here.trials == there.trials
    assert here.trials[1] == hpc.FrozenTrial(str(here.study_id), 1, 1.0, {"x": theirs.x}, "COMPLETE")


def test_reading_a_deleted_study_raises_an_error_of_the_original(tmp_path: Path, study: hpc.Study) -> None:
    with study.trial() as trial:
        trial.loss = 1.0
    storage = opened(tmp_path).storage
    storage.delete_study(storage.get_study_id_from_name(study.store_name))

    with pytest.raises(hpc.exceptions.HopaasConsistencyError):
        _ = study.trials
    with pytest.raises(hpc.exceptions.HopaasConsistencyError):
        _ = study.best_trial_id
    storage.close()


def test_every_assignment_of_the_loss_counts_a_step_and_reaches_the_store(study: hpc.Study, tmp_path: Path) -> None:
    with study.trial() as trial:
        assert (trial.loss, trial.step, trial.should_prune) == (None, -1, False)
        for loss in (3, numpy.float32(2), 1.0):
            trial.loss = loss
        assert (trial.loss, trial.step) == (1.0, 2)

    looked = opened(tmp_path)
    assert looked.trials[0].intermediate_values == {0: 3.0, 1: 2.0, 2: 1.0}
    looked.close()


def test_a_final_loss_is_told_whatever_the_pruner_would_say(tmp_path: Path) -> None:
    study = joined(tmp_path, pruner=hpc.pruners.ThresholdPruner(upper=0.5))

    with study.trial() as never_asked:
        never_asked.loss = 9.0
    with study.trial() as asked_and_went_on:
        asked_and_went_on.loss = 8.0
        assert asked_and_went_on.should_prune
        asked_and_went_on.loss = 7.0
    with study.trial() as gave_up:
        gave_up.loss = 6.0
        if gave_up.should_prune:
            pass

    found = study.trials
    assert [(one.state, one.loss) for one in found.values()] == [("COMPLETE", 9.0), ("COMPLETE", 7.0), ("PRUNED", 6.0)]


def test_a_block_without_a_loss_fails_its_trial(study: hpc.Study) -> None:
    for _ in range(2):
        with study.trial():
            break

    assert [(one.state, one.loss) for one in study.trials.values()] == [("FAIL", None)]


@pytest.mark.parametrize("code", [0, None, 3, "no GPU"])
def test_leaving_the_program_inside_the_block_fails_the_trial_so_that_no_other_job_repeats_it(
    study: hpc.Study, tmp_path: Path, caplog: pytest.LogCaptureFixture, code: Any
) -> None:
    with pytest.raises(SystemExit) as left, study.trial() as trial:
        trial.loss = 0.5
        sys.exit(code)

    assert f"trial 0 fails: the script called sys.exit({code!r})" in caplog.text
    looked = opened(tmp_path)
    (told,) = looked.state.trials
    assert left.value.code == code
    assert (told.state.name, told.values) == ("FAIL", None)
    assert told.reason is not None
    assert f"the script called sys.exit({code!r})" in told.reason
    looked.close()


def test_a_lost_lease_is_a_warning_and_the_loss_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    study = joined(tmp_path)
    looker = None
    with study.trial() as trial:
        trial.loss = 1.0
        looker = opened(tmp_path)
        looker.requeue(trial.id)
        trial.loss = 2.0
    with pytest.raises(ZeroDivisionError), study.trial() as other:
        looker.requeue(other.id)
        _ = 1 / 0

    late = next(one for one in looker.state.trials if one.late_of == 0)
    assert (late.values, late.reports) == ((2.0,), {0: 1.0, 1: 2.0})
    assert sum("taken over" in record.message for record in caplog.records) == 2
    looker.close()


def test_the_end_of_the_study_is_an_error_that_can_be_caught(study: hpc.Study, tmp_path: Path) -> None:
    with study.trial() as trial:
        trial.loss = 1
    looker = opened(tmp_path)
    looker.stop_all()

    with pytest.raises(hpc.exceptions.NoMoreTrials, match="stopped") as caught, study.trial():
        pass

    assert isinstance(caught.value, hpc.exceptions.HopaasError)
    assert isinstance(caught.value, SystemExit)
    assert caught.value.code == 0
    looker.close()


def test_a_loss_after_the_block_is_refused_and_a_missing_parameter_is_no_attribute(tmp_path: Path) -> None:
    study = joined(tmp_path, properties={"x": hpc.suggestions.Float(0, 1), "_hidden": 1, "step": 5})
    with study.trial() as trial:
        trial.loss = 1
        assert trial.hidden == 1
        assert (trial.step, trial.properties["step"]) == (0, 5)
        assert not hasattr(trial, "y")

    with pytest.raises(hpc.exceptions.HopaasConsistencyError, match="has ended"):
        trial.loss = 2
    assert trial.loss == 1
    assert trial.should_prune is False


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (hpc.suggestions.Int(1, 9, step=2), "optuna#int(1,9,2,false)"),
        (hpc.suggestions.Int(1, 9, log=True), "optuna#int(1,9,1,true)"),
        (hpc.suggestions.Float(-1.5, 2), "optuna#float(-1.5,2)"),
        (hpc.suggestions.Float(1e-4, 1, log=True), "optuna#float(0.0001,1,None,true)"),
        (hpc.suggestions.Uniform(0, 1), "optuna#uniform(0,1)"),
        (hpc.suggestions.LogUniform(0.1, 10), "optuna#loguniform(0.1,10)"),
        (hpc.suggestions.DiscreteUniform(0, 1, 0.25), "optuna#discrete_uniform(0,1,0.25)"),
        (hpc.suggestions.DiscreteUniform(-10, 10), "optuna#discrete_uniform(-10,10)"),
        (hpc.suggestions.Categorical(["a", "b"]), "optuna#categorical(a,b)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_suggestion_and_its_text_are_the_same(tmp_path: Path, given: Distribution, text: str) -> None:
    assert hpc.suggestions.parse(text) == given
    study = joined(tmp_path, properties={"x": text}, pruner=hpc.pruners.HyperbandPruner(1, 9, 0))

    with study.trial() as trial:
        trial.loss = 0

    assert trial.x in ("a", "b") if "categorical" in text else -10 <= trial.x <= 10


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"properties": None}, "dictionary"),
        ({"properties": {"x": "optuna#float(1)"}}, "2 to 4 parts"),
        ({"properties": {"x": "optuna#float(a,b)"}}, "could not convert"),
        ({"properties": {"x": "optuna#normal(0,1)"}}, "not a suggestion"),
        ({"properties": {"x": "optuna#int(1,9,1,maybe)"}}, "neither true nor false"),
        ({"properties": {"x": hpc.suggestions.Float(2, 1)}}, "parameter 'x'"),
        ({"properties": {"x": object()}}, "cannot be stored"),
        ({"special_properties": {"x": {1, 2}}}, "cannot be stored"),
        ({"direction": "up"}, "'minimize' or 'maximize'"),
        ({"pruner": hpc.pruners.ThresholdPruner()}, "Threshold"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_set_up_is_refused_at_once(tmp_path: Path, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        joined(tmp_path, **wrong)


def test_a_loss_of_none_fails_the_trial_and_the_loop_goes_on(study: hpc.Study, tmp_path: Path) -> None:
    for result in (0.5, None, 0.25):
        with study.trial() as trial:
            trial.loss = 1.0
            trial.loss = result
            seen = trial.loss
        assert seen == result

    assert [(one.state, one.loss) for one in study.trials.values()] == [
        ("COMPLETE", 0.5),
        ("FAIL", None),
        ("COMPLETE", 0.25),
    ]
    opened_study = opened(tmp_path)
    assert "loss to None" in opened_study.state.trials[1].reason
    opened_study.close()


def test_a_loss_after_none_is_the_result(study: hpc.Study) -> None:
    with study.trial() as trial:
        trial.loss = None
        trial.loss = 0.5

    assert study.trials[0].loss == 0.5


def test_before_the_first_trial_there_are_none(study: hpc.Study) -> None:
    assert study.trials == {}
    assert not study.is_initialized


def test_all_samplers_and_pruners_can_be_listed_by_name() -> None:
    assert [getattr(hpc.samplers, name) for name in hpc.samplers.testables] == [hpc.samplers.TPESampler]
    assert all(getattr(hpc.pruners, name)().name == name for name in hpc.pruners.testables)


def test_a_client_of_a_directory_shows_a_url_and_an_empty_token(tmp_path: Path) -> None:
    client = hpc.Client("store")

    assert client.server == (tmp_path / "store").as_uri()
    assert client.token == ""


def test_a_client_shows_no_secret() -> None:
    client = hpc.Client("postgresql://anna:geheim@db.example.org:5433/studies", "t0p", config_filename="rc")

    assert client.server == "postgresql://anna:***@db.example.org:5433/studies"
    assert "geheim" not in repr(client) + json.dumps(client.server)
    assert client.token == "***"
    assert client.backend_version == hopaas_p2p.__version__


def test_a_study_travels_to_other_processes_without_its_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOPAAS_TOKEN", "HOPAAS_TOKEN_HOST"):  # both are as before afterwards
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    study = joined(tmp_path, client=hpc.Client(str(tmp_path / "store"), token="t0p-secret"))
    with study.trial() as trial:
        trial.loss = 1

    packed = pickle.dumps(study)
    again = pickle.loads(packed)

    assert b"t0p-secret" not in packed
    assert "HOPAAS_TOKEN" not in os.environ
    assert again.best_trial_id == 0
    pickle.dumps(hpc.Client("https://gate.example.org/db", token="for the server"))
    assert os.environ["HOPAAS_TOKEN"] == "for the server"


@pytest.mark.parametrize("kind", ["postgres_url", "s3_url"])
def test_the_store_may_be_a_database_or_a_bucket(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    client = hpc.Client(server=request.getfixturevalue(kind))
    study = joined(tmp_path, client=client)

    with study.trial() as trial:
        for loss in (3.0, 2.0):
            trial.loss = loss
            assert trial.should_prune is False

    assert [(one.state, one.loss) for one in study.trials.values()] == [("COMPLETE", 2.0)]
    client.close()


def test_a_store_out_of_reach_is_the_servers_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    study = joined(tmp_path, client=hpc.Client(str(tmp_path / "file" / "store")))

    with pytest.raises(hpc.exceptions.HopaasServerError), study.trial():
        pass


def test_the_page_names_every_part_of_the_interface() -> None:
    page = (ROOT / "docs/moving.md").read_text()
    for module in (hpc.suggestions, hpc.samplers, hpc.pruners, hpc.exceptions):
        for name, value in vars(module).items():
            if isinstance(value, type) and value.__module__ == module.__name__:
                assert f"`{name}`" in page or name in ("Sampler", "Pruner"), name
