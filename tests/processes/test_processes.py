"""Many processes at once: killed, forked, pickled, threaded."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

import hopaas_p2p
from hopaas_p2p.storage import Storage
from tests.support.sigkill import massacre, verify, work_with_the_study_api

optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.mark.path
def test_eight_processes_killed_at_random_lose_no_acknowledged_tell(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    storage = hopaas_p2p.open_storage(url, lease_ttl=1.5)
    optuna.create_study(study_name="massacre", storage=storage)
    storage.close()

    outcome = massacre(url, tmp_path, seed=1, workers=8, total=400, kills=12)
    trials = verify(url, outcome)

    assert outcome.kills == 12
    assert len(outcome.acknowledged) >= 400 - outcome.kills
    assert sum(trial.state is TrialState.COMPLETE for trial in trials) >= 400


def test_the_budget_is_exact_though_processes_are_killed(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    study = hopaas_p2p.open_study(
        url, "massacre", budget=240, policy=hopaas_p2p.StudyPolicy(lease_ttl=1.5, attempts=50)
    )
    study.storage.close()

    outcome = massacre(url, tmp_path, seed=2, work=work_with_the_study_api, workers=6, total=240, kills=8)
    trials = verify(url, outcome)

    ends = [trial.state for trial in trials]
    assert ends.count(TrialState.COMPLETE) + ends.count(TrialState.PRUNED) == 240
    assert outcome.kills == 8


# --- fork --------------------------------------------------------------------------------------------------------


def run_trials(storage: Storage, name: str, count: int) -> list[int]:
    study = optuna.load_study(study_name=name, storage=storage, sampler=optuna.samplers.RandomSampler())
    numbers = []
    for _ in range(count):
        trial = study.ask()
        x = trial.suggest_float("x", 0.0, 1.0)
        trial.report(x, 0)
        study.tell(trial, x)
        numbers.append(trial.number)
    return numbers


def forked(task: object, *arguments: object) -> int:
    """Run this in a fork of the present process; the child's pid."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        task(*arguments)  # type: ignore[operator]
        status = 0
    finally:
        os._exit(status)


def test_four_forked_children_share_a_storage_made_before_the_fork(tmp_path: Path) -> None:
    storage = hopaas_p2p.open_storage(str(tmp_path / "store"))
    optuna.create_study(study_name="s", storage=storage)
    run_trials(storage, "s", 3)

    def child(index: int) -> None:
        numbers = run_trials(storage, "s", 10)
        (tmp_path / f"child-{index}").write_text(" ".join(map(str, numbers)))

    children = [forked(child, index) for index in range(4)]
    own = run_trials(storage, "s", 10)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * 4

    numbers = [*range(3), *own]
    for index in range(4):
        numbers += map(int, (tmp_path / f"child-{index}").read_text().split())
    assert sorted(numbers) == list(range(53))
    trials = optuna.load_study(study_name="s", storage=storage).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 53
    state = storage.handle(0).state
    assert len({trial.owner for trial in state.trials}) == 5
    storage.close()


def test_a_fork_sends_nothing_of_its_parents_and_loses_nothing_of_them(tmp_path: Path) -> None:
    storage = hopaas_p2p.open_storage(str(tmp_path / "store"), linger=60.0)
    study = optuna.create_study(study_name="s", storage=storage)
    trial = study.ask()
    trial.suggest_float("x", 0.0, 1.0)
    trial.report(0.5, 1)

    child = forked(lambda: run_trials(storage, "s", 2))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    trial.report(0.25, 2)
    study.tell(trial, 1.0)

    first, *others = study.trials
    assert first.intermediate_values == {1: 0.5, 2: 0.25}
    assert len(others) == 2
    storage.close()


# --- a trial that travels ----------------------------------------------------------------------------------------


def finish(trial: optuna.Trial, study: optuna.Study) -> int:
    """In another process: report on a trial that was asked for here, and end it."""
    trial.report(0.5, 7)
    trial.set_user_attr("pid", os.getpid())
    study.tell(trial, 2.0)
    return os.getpid()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_trial_asked_here_is_reported_on_and_finished_in_a_child(tmp_path: Path, method: str) -> None:
    storage = hopaas_p2p.open_storage(str(tmp_path / "store"))
    study = optuna.create_study(study_name="s", storage=storage)
    trials = [study.ask() for _ in range(2)]
    xs = [trial.suggest_float("x", 0.0, 1.0) for trial in trials]

    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        pids = list(pool.map(finish, trials, [study, study]))

    assert os.getpid() not in pids
    for trial, x in zip(study.trials, xs, strict=True):
        assert (trial.state, trial.value, trial.params) == (TrialState.COMPLETE, 2.0, {"x": x})
        assert (trial.intermediate_values, trial.user_attrs) == ({7: 0.5}, {"pid": pids[0]})
    storage.close()


def test_a_trial_asked_here_is_finished_in_a_fork_that_pickled_nothing(tmp_path: Path) -> None:
    storage = hopaas_p2p.open_storage(str(tmp_path / "store"), linger=3600.0)
    study = optuna.create_study(study_name="s", storage=storage)
    trial = study.ask()
    x = trial.suggest_float("x", 0.0, 1.0)

    child = forked(finish, trial, study)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    fresh = hopaas_p2p.open_storage(str(tmp_path / "store"))
    for reader in (fresh, storage):
        (found,) = optuna.load_study(study_name="s", storage=reader).trials
        assert (found.state, found.params, found.intermediate_values) == (TrialState.COMPLETE, {"x": x}, {7: 0.5})
        reader.close()


def report(trial: hopaas_p2p.Trial) -> None:
    """In another process: report on a trial that goes on here."""
    trial.report(99.0, 7)
    trial.set_user_attr("pid", os.getpid())
    trial.storage.flush()


def test_what_a_child_says_of_a_trial_that_was_lent_to_it_is_heard_here(tmp_path: Path) -> None:
    study = hopaas_p2p.open_study(str(tmp_path / "store"), "s", space={"x": hopaas_p2p.Float(0, 1)})
    study.pruner = optuna.pruners.ThresholdPruner(upper=10.0)
    trial = study.ask()
    trial.report(0.5, 1)
    assert not trial.should_prune()

    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(report, trial).result()

    assert trial.intermediate_values == {1: 0.5, 7: 99.0}
    assert trial.should_prune()
    assert trial.user_attrs.keys() == {"pid"}
    assert study.trials[0].intermediate_values == {1: 0.5, 7: 99.0}
    study.tell(trial, state="pruned")
    assert study.trials[0].value == 99.0
    study.close()


# --- threads -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["memory", "directory"])
def test_four_threads_of_one_study_get_numbers_of_their_own(tmp_path: Path, scheme: str) -> None:
    url = f"memory://{tmp_path.name}" if scheme == "memory" else str(tmp_path / "store")
    storage = hopaas_p2p.open_storage(url)
    study = optuna.create_study(storage=storage, pruner=optuna.pruners.MedianPruner(n_startup_trials=3))

    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0.0, 1.0)
        for step in range(5):
            trial.report(x + step, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        trial.set_user_attr("x", x)
        return x

    study.optimize(objective, n_trials=60, n_jobs=4)

    trials = study.trials
    assert [trial.number for trial in trials] == list(range(60))
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    for trial in trials:
        if trial.state is TrialState.COMPLETE:
            assert trial.value == trial.params["x"] == trial.user_attrs["x"]
            assert len(trial.intermediate_values) == 5
    storage.close()
