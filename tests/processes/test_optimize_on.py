"""`study.optimize(objective, on=executor)`: workers of real executors, killed, interrupted, and out of work."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest

import hopaas_p2p
from hopaas_p2p.errors import (
    ConfigurationError,
    InvalidInput,
    NothingSucceeded,
    NoWork,
    StoreUnreachable,
    StudyDeleted,
    WorkersLost,
)
from hopaas_p2p.storage.options import open_peer
from hopaas_p2p.storage.storage import Storage
from hopaas_p2p.study import Study
from hopaas_p2p.study.progress import ProgressLog
from hopaas_p2p.study.trial import Trial
from hopaas_p2p.study.workers import WatchedWorkers, WorkOrder, take_part
from tests.support.processes import campaign, environment, script, states, until
from tests.support.slurm_fixtures import Slurm, slurm

__all__ = ["slurm"]


def quick(trial: Trial) -> float:
    return float(trial.params["lr"])


def together(folder: str, trial: Trial) -> float:
    """Ends when two processes have begun a trial, so that each of two workers runs some."""
    (Path(folder) / f"began-{os.getpid()}").touch()
    until(lambda: len(list(Path(folder).glob("began-*"))) >= 2, 300)
    return quick(trial)


def slow(trial: Trial) -> float:
    for step in range(600):
        trial.report(1.0, step)
        if trial.should_prune():
            raise optuna.TrialPruned
        time.sleep(0.1)
    return 1.0


def broken(trial: Trial) -> float:
    raise ZeroDivisionError("the objective's own fault")


def killed_once(folder: str, trial: Trial) -> float:
    """The first trial kills its process."""
    with contextlib.suppress(FileExistsError):
        (Path(folder) / "killed").touch(exist_ok=False)
        os.kill(os.getpid(), signal.SIGKILL)
    return float(trial.params["lr"])


def second_is_killed(folder: str, trial: Trial) -> float:
    """When two processes have begun a trial, the one that began later kills itself; another one takes its place."""
    mine = Path(folder) / f"began-{os.getpid()}"
    with contextlib.suppress(FileExistsError):
        mine.touch(exist_ok=False)
    until(lambda: len(list(Path(folder).glob("began-*"))) >= 2, 300)
    began = sorted(Path(folder).glob("began-*"), key=lambda path: path.stat().st_mtime_ns)
    if began[1] == mine:
        os.kill(os.getpid(), signal.SIGKILL)
    return float(trial.params["lr"])


def terminated_once(folder: str, trial: Trial) -> float:
    """SIGTERM comes in the first trial, and to this process alone."""
    with contextlib.suppress(FileExistsError):
        (Path(folder) / "terminated").touch(exist_ok=False)
        os.kill(os.getpid(), signal.SIGTERM)
    return float(trial.params["lr"])


class SlowToStart(ProcessPoolExecutor):
    """It has looked which processes there are before the newest one begins."""

    def __init__(self) -> None:
        super().__init__(2, mp_context=multiprocessing.get_context("spawn"))

    def _adjust_process_count(self) -> None:
        time.sleep(1.0)
        super()._adjust_process_count()  # type: ignore[misc]


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Study]:
    made = campaign(tmp_path, budget=8, lease_ttl=120.0)  # what is done at once does not wait for it
    yield made
    made.close()


def spawned(count: int = 2) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"))


def workers_of(study: Study) -> set[str]:
    return {info["worker"] for info in study.state.peers.values() if "worker" in info}


def test_every_worker_of_a_process_pool_is_a_peer_and_the_budget_is_exact(
    study: Study, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.INFO, "hopaas_p2p")
    with spawned() as pool:
        study.optimize(partial(together, str(tmp_path)), on=pool)
    assert states(study) == ["COMPLETE"] * 8
    assert workers_of(study) == {"0", "1"}
    assert len({trial.owner for trial in study.state.trials}) == 2
    shown = [record.getMessage() for record in caplog.records if record.getMessage().startswith("trial ")]
    assert len(shown) == 8


@pytest.mark.parametrize("freshness", [0.0, 60.0])
def test_n_trials_are_shared_out_and_callbacks_run_here(
    study: Study, monkeypatch: pytest.MonkeyPatch, freshness: float
) -> None:
    monkeypatch.setattr(study.storage.peer.store, "freshness", freshness)  # reads may be as old as that
    seen: list[int] = []
    with ThreadPoolExecutor(3) as pool:
        study.optimize(quick, 5, on=pool, callbacks=[lambda _, trial: seen.append(trial.number)])
    assert states(study) == ["COMPLETE"] * 5
    assert sorted(seen) == [0, 1, 2, 3, 4]


def test_a_killed_worker_is_replaced_and_its_trial_is_run_again_at_once(study: Study, tmp_path: Path) -> None:
    study.optimize(partial(killed_once, str(tmp_path)), on=spawned)
    counted = states(study)
    assert counted.count("COMPLETE") == 8
    assert counted.count("FAIL") == 1
    lost = next(trial for trial in study.state.trials if trial.state.name == "FAIL")
    assert lost.reason == "its worker was lost"
    assert lost.retried_by is not None


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_worker_that_was_terminated_once_runs_the_next_task(study: Study, tmp_path: Path, method: str) -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        study.optimize(partial(terminated_once, str(tmp_path)), on=pool)
    assert states(study) == ["COMPLETE"] * 8


def test_the_death_of_the_newest_process_of_a_pool_is_noticed_at_once(study: Study, tmp_path: Path) -> None:
    study.optimize(partial(second_is_killed, str(tmp_path)), on=SlowToStart)
    lost = [trial for trial in study.state.trials if trial.state.name == "FAIL"]
    assert {trial.reason for trial in lost} == {"its worker was lost"}
    assert states(study).count("COMPLETE") == 8


def test_an_executor_that_cannot_start_another_worker_says_what_to_give_instead(study: Study, tmp_path: Path) -> None:
    with spawned() as pool, pytest.raises(WorkersLost, match="on=lambda"):
        study.optimize(partial(killed_once, str(tmp_path)), on=pool)


def test_what_the_objective_raises_is_raised_here(study: Study) -> None:
    with spawned() as pool, pytest.raises(ZeroDivisionError, match="own fault"):
        study.optimize(broken, on=pool)
    assert set(states(study)) == {"FAIL"}


class CannotCancel(ThreadPoolExecutor):
    """Like parsl's: its futures raise NotImplementedError when they are cancelled. Here the others begin only then."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self.asked = threading.Event()
        self._submitted = 0

    def submit(self, function: Any, /, *arguments: Any, **options: Any) -> Future[Any]:
        self._submitted += 1
        begin = super().submit
        future = begin(function, *arguments) if self._submitted == 1 else begin(self._later, function, *arguments)
        future.cancel = self._refuse  # type: ignore[method-assign]
        return future

    def _later(self, function: Any, *arguments: Any) -> Any:
        assert self.asked.wait(300)
        return function(*arguments)

    def _refuse(self) -> bool:
        self.asked.set()
        raise NotImplementedError("Cancel not implemented")


def test_workers_that_cannot_be_cancelled_before_they_begin_find_that_the_study_is_over(study: Study) -> None:
    with CannotCancel(3) as pool:
        study.optimize(quick, on=pool, workers=3)
        assert pool.asked.is_set()
    assert states(study) == ["COMPLETE"] * 8


def test_an_error_is_raised_here_though_the_other_workers_cannot_be_cancelled(study: Study) -> None:
    with CannotCancel(3) as pool, pytest.raises(ZeroDivisionError, match="own fault"):
        study.optimize(broken, on=pool, workers=3)
    assert pool.asked.is_set()


class LosesTheFirst(ThreadPoolExecutor):
    """Its first worker ends so many trials, begins another and is lost."""

    def __init__(self, ended: int = 0) -> None:
        super().__init__(1)
        self._ended = ended
        self.lost: Study | None = None
        self.replaced = 0

    def submit(self, function: Any, /, *arguments: Any, **options: Any) -> Future[Any]:
        if self.lost is not None:
            self.replaced += 1
            return super().submit(function, *arguments, **options)
        order, about, *_ = arguments
        self.lost = hopaas_p2p.open_study(Storage(order.options, open_peer(order.options)), order.study, create=False)
        self.lost._be_worker(about)
        for _ in range(self._ended):
            self.lost.tell(self.lost.ask(), 0.5)
        self.lost.ask()
        future: Future[Any] = Future()
        future.set_exception(OSError("its node is down"))
        return future


def test_what_a_lost_worker_began_is_run_again_though_it_was_not_read_of_yet(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LosesTheFirst() as pool:
        monkeypatch.setattr(study.storage.peer.store, "freshness", 60.0)  # reads may be as old as that
        study.optimize(quick, on=pool)
        monkeypatch.undo()
        assert [trial.reason for trial in study.state.trials if trial.state.name == "FAIL"] == ["its worker was lost"]
        assert states(study).count("COMPLETE") == 8
        assert pool.lost is not None
        pool.lost.close()


def test_a_lost_worker_that_ended_more_than_its_share_is_not_replaced(study: Study) -> None:
    """As one whose trial was taken away, and kept as another one when its result came late."""
    with LosesTheFirst(2) as pool:
        study.optimize(quick, 1, on=pool)
        assert pool.lost is not None
        assert pool.replaced == 0
        pool.lost.close()


def test_n_trials_count_what_a_lost_worker_ended_though_it_was_not_read_of_yet(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LosesTheFirst(2) as pool:
        monkeypatch.setattr(study.storage.peer.store, "freshness", 60.0)
        study.optimize(quick, 5, on=pool)
        assert sorted(states(study)) == ["COMPLETE"] * 5 + ["FAIL"]
        assert pool.lost is not None
        pool.lost.close()


def kills_its_process(_: Any) -> float:
    os._exit(3)


def test_an_objective_that_kills_every_process_is_given_up(study: Study) -> None:
    with pytest.raises(WorkersLost, match="7 workers were lost in a row"):
        study.optimize(kills_its_process, on=partial(ProcessPoolExecutor, 1), workers=1)
    assert states(study).count("RUNNING") == 0
    assert states(study).count("FAIL") <= 7


def test_an_executor_that_was_shut_down_is_named(study: Study) -> None:
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    with pytest.raises(WorkersLost, match="takes no more workers: cannot schedule new futures after shutdown"):
        study.optimize(quick, on=pool)
    assert study.trials == []


def no_value(_: Any) -> None:
    """Forget the return."""


def test_workers_of_which_all_trials_fail_end_the_call_with_the_reason(study: Study) -> None:
    with ThreadPoolExecutor(1) as pool, pytest.raises(NothingSucceeded, match="a value must be a number, got None"):
        study.optimize(no_value, on=pool)  # type: ignore[arg-type]
    assert set(states(study)) == {"FAIL"}


class LosesAll:
    """An executor whose workers never live to begin."""

    submitted = 0

    def submit(self, function: object, *arguments: object) -> Future[Any]:
        self.submitted += 1
        future: Future[Any] = Future()
        future.set_exception(OSError("node failure"))
        return future


def test_an_executor_that_loses_every_worker_is_given_up(study: Study) -> None:
    with pytest.raises(WorkersLost, match=r"(?s)node failure.*without on="):
        study.optimize(quick, on=LosesAll(), workers=2)
    assert study.state.counts[0] == 0


class Elsewhere(ThreadPoolExecutor):
    """Its workers are on a node where the store's directory is not."""

    def submit(self, function: Any, /, *arguments: Any, **options: Any) -> Future[Any]:
        order, *others = arguments
        there = order.options._replace(url="file:///not/on/this/node", store_wait=0.1)  # a worker that waits ends, too
        return super().submit(function, order._replace(options=there), *others, **options)


def test_workers_that_do_not_see_the_directory_end_the_call_at_once(
    study: Study, caplog: pytest.LogCaptureFixture
) -> None:
    with Elsewhere(1) as pool, pytest.raises(ConfigurationError, match="there is no store in /not/on/this/node"):
        study.optimize(quick, on=pool)
    assert "waiting: the store" not in caplog.text
    assert study.trials == []


@pytest.mark.parametrize(
    ("on", "options", "why"),
    [(3, {}, "has `submit`"), (LosesAll(), {}, "workers=20"), (LosesAll(), {"workers": 0}, "at least 1")],
)
def test_what_is_no_executor_is_refused(study: Study, on: object, options: dict[str, int], why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        study.optimize(quick, on=on, **options)


@pytest.mark.parametrize("info", [{}, {"worker": "x"}, {"worker": "9" * 5000}])
def test_a_peer_that_claims_to_be_one_of_the_workers_stops_nothing(study: Study, info: dict[str, str]) -> None:
    with ThreadPoolExecutor(1) as pool:
        order = WorkOrder(
            hopaas_p2p.open_study, study.storage.options, study.name, study.handle.uuid, quick, (None, None), ()
        )
        watched = WatchedWorkers(study, order, pool, 1, None, None)
    asked = study.ask()
    trial = study.state.trials[asked.number]
    assert trial.owner is not None
    study.state.peers[trial.owner] = {"crew": watched._crew, **info}

    assert watched._running() == []
    study.tell(asked, 0.5)


def test_a_worker_that_begins_when_another_study_has_the_name_runs_nothing_there(study: Study) -> None:
    space, options = study.space, study.storage.options
    order = WorkOrder(hopaas_p2p.open_study, options, study.name, study.handle.uuid, quick, (None, None), ())
    study.storage.delete_study(study.study_id)
    namesake = hopaas_p2p.open_study(study.storage, study.name, space=space)

    with pytest.raises(StudyDeleted):
        take_part(order, {}, 1, None, {})

    assert namesake.trials == []


def test_a_store_that_is_away_does_not_end_a_look_at_what_was_read_before(
    study: Study, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    order = WorkOrder(
        hopaas_p2p.open_study, study.storage.options, study.name, study.handle.uuid, quick, (None, None), ()
    )
    with ThreadPoolExecutor(1) as pool:
        watched = WatchedWorkers(study, order, pool, 1, None, None)
    study._be_worker({"crew": watched._crew, "worker": "0"})
    study.tell(study.ask(), 0.5)

    def away() -> None:
        raise StoreUnreachable("it is away")

    monkeypatch.setattr(study.handle, "refresh", away)
    watched._look(ProgressLog(study.name, study.handle, quiet=True), [])
    assert watched._ended == {0: 1}
    assert "it is away" in caplog.text


def test_an_objective_that_cannot_travel_is_refused_before_a_trial_starts(study: Study) -> None:
    with spawned() as pool, pytest.raises(InvalidInput, match="Define it in a module"):
        study.optimize(lambda trial: 1.0, on=pool)
    assert states(study) == []


@pytest.mark.parametrize(
    ("sent", "why"), [(signal.SIGINT, "KeyboardInterrupt"), (signal.SIGTERM, "SystemExit")], ids=["Ctrl-C", "SIGTERM"]
)
def test_an_interruption_gives_the_trials_back_and_ends_the_workers(
    study: Study, tmp_path: Path, sent: signal.Signals, why: str
) -> None:
    """Only the calling process gets the signal, as in a notebook."""
    program = f"""
        import sys
        import hopaas_p2p
        from tests.processes.test_optimize_on import slow, spawned
        if __name__ == "__main__":
            study = hopaas_p2p.open_study({str(tmp_path / "store")!r}, "s", create=False)
            with spawned() as pool:
                study.optimize(slow, on=pool)
    """
    with (tmp_path / "caller.err").open("w") as errors:
        caller = subprocess.Popen(
            script(tmp_path, program), env=environment(), stderr=errors, start_new_session=True, stdout=errors
        )
    until(lambda: states(study).count("RUNNING") == 2, 300, what=(tmp_path / "caller.err").read_text)
    caller.send_signal(sent)
    until(lambda: set(states(study)) == {"WAITING"}, 300, what=lambda: str(states(study)))
    reasons = {trial.history[-1].why for trial in study.state.trials}
    assert reasons == {f"interrupted: {why}"}
    assert caller.wait(300) != 0
    assert set(states(study)) == {"WAITING"}, (tmp_path / "caller.err").read_text()


def test_ctrl_c_gives_back_a_trial_that_was_not_read_of_yet(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(LosesTheFirst):
        def submit(self, function: Any, /, *arguments: Any, **options: Any) -> Future[Any]:
            super().submit(function, *arguments, **options)
            raise KeyboardInterrupt

    monkeypatch.setattr(study.storage.peer.store, "freshness", 60.0)
    with Interrupted() as pool, pytest.raises(KeyboardInterrupt):
        study.optimize(quick, on=pool)
    assert pool.lost is not None
    assert states(pool.lost) == ["WAITING"]
    with pytest.raises(NoWork, match="take no more trials"):
        pool.lost.ask()
    pool.lost.close()


def test_a_worker_that_begins_after_ctrl_c_takes_no_trial(study: Study) -> None:
    submitted: list[Any] = []

    class Interrupted:
        def submit(self, *task: Any) -> None:
            submitted.append(task)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.optimize(quick, on=Interrupted(), workers=1)
    take_part, *arguments = submitted[0]
    take_part(*arguments)
    assert states(study) == []
    study.optimize(quick)
    assert states(study) == ["COMPLETE"] * 8


def test_ctrl_c_while_the_store_is_away_says_that_the_workers_go_on(
    study: Study, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(_: WatchedWorkers) -> list[Any]:
        raise StoreUnreachable("the store is not there")

    class Interrupted:
        def submit(self, *_: object) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(WatchedWorkers, "_running", away)
    with pytest.raises(KeyboardInterrupt):
        study.optimize(quick, on=Interrupted(), workers=1)
    assert "could not be told to stop" in caplog.text
    assert "hopaas-p2p peers drain" in caplog.text


def test_workers_of_a_dask_cluster(study: Study, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        study.optimize(partial(together, str(tmp_path)), on=client)
    assert states(study) == ["COMPLETE"] * 8
    assert workers_of(study) == {"0", "1"}


def test_jobs_of_submitit_in_a_real_slurm(slurm: Slurm, study: Study, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    program = f"""
        import logging
        import submitit
        import hopaas_p2p
        from tests.processes.test_optimize_on import quick
        logging.basicConfig(level=logging.INFO)
        executor = submitit.AutoExecutor(folder={str(tmp_path / "jobs")!r}, cluster="slurm")
        executor.update_parameters(timeout_min=5, slurm_setup=["export PYTHONPATH={os.environ.get("PYTHONPATH", "")}"])
        study = hopaas_p2p.open_study({str(tmp_path / "store")!r}, "s", create=False)
        study.optimize(quick, on=executor, workers=3)
        study.close()
    """
    words = [sys.executable, *script(tmp_path, program)[1:]]
    done = subprocess.run(
        words,
        env={**slurm.environment, "PYTHONPATH": environment()["PYTHONPATH"]},
        capture_output=True,
        text=True,
        timeout=600,
        cwd=tmp_path,
        check=False,
    )
    logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in (tmp_path / "jobs").glob("*.err"))
    assert done.returncode == 0, done.stderr + logs
    assert states(study) == ["COMPLETE"] * 8
    batch = {info["batch"] for info in study.state.peers.values() if "worker" in info}
    assert batch == {"slurm"}
