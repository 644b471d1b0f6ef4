"""What a child of a fork may do whatever the threads of its parent were at, and what it leaves to its parent."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

import hopaas_p2p
import hopaas_p2p.errors
from hopaas_p2p.core.state import State
from hopaas_p2p.study import study as study_module
from tests.support.processes import until

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
SECONDS = 30.0


def ask_in_a_fork(study: hopaas_p2p.Study) -> int:
    """Let a child ask for a trial and tell it; its exit code. One that waits for ever is ended by a signal."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        code = 1
        try:
            study.tell(study.ask(), 0.25)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextlib.contextmanager
def held_by_a_thread(locks: Iterable[Any]) -> Iterator[None]:
    """In this block another thread holds these locks."""
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with contextlib.ExitStack() as stack:
            for lock in locks:
                stack.enter_context(lock)
            held.set()
            done.wait(120)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(SECONDS)
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize(
    "make",
    [
        lambda: hopaas_p2p.samplers.TPESampler(),
        lambda: optuna.samplers.RandomSampler(),
        lambda: optuna.samplers.NSGAIISampler(),
        lambda: optuna.samplers.PartialFixedSampler({}, optuna.samplers.TPESampler()),
    ],
    ids=["TPE", "random", "NSGA-II", "within another"],
)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_child_draws_although_numpy_was_drawing_in_its_parent_during_the_fork(
    tmp_path: Path, make: Callable[[], optuna.samplers.BaseSampler]
) -> None:
    sampler = make()
    study = hopaas_p2p.open_study(tmp_path / "store", "s", space={"x": hopaas_p2p.Float(0, 1)}, sampler=sampler)
    study.tell(study.ask(), 0.5)
    study.tell(study.ask(), 0.5)
    with held_by_a_thread(locks_of_numpy(sampler)):
        assert ask_in_a_fork(study) == 0
    assert [trial.values for trial in study.trials] == [[0.5], [0.5], [0.25]]


def locks_of_numpy(sampler: optuna.samplers.BaseSampler) -> list[Any]:
    """The locks that numpy takes as the sampler, or one within it, draws a number."""
    states = [part.rng for part in vars(sampler).values() if type(part).__name__ == "LazyRandomState"]
    within = [part for part in vars(sampler).values() if isinstance(part, optuna.samplers.BaseSampler)]
    locks = [state._bit_generator.lock for state in states]
    return locks + [lock for one in within for lock in locks_of_numpy(one)]


def test_a_child_opens_a_study_although_a_thread_of_its_parent_was_opening_one_during_the_fork(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = hopaas_p2p.open_study(tmp_path / "store", "s", space={"x": hopaas_p2p.Float(0, 1)})
    hopaas_p2p.open_study(tmp_path / "store", "other", space={"x": hopaas_p2p.Float(0, 1)}).close()
    parent, inside, go_on = threading.get_ident(), threading.Event(), threading.Event()
    real = study_module.definition_of

    def definition_of(state: State, name: str) -> Any:
        if threading.get_ident() != parent:
            inside.set()
            go_on.wait(120)
        return real(state, name)

    monkeypatch.setattr(study_module, "definition_of", definition_of)
    thread = threading.Thread(target=lambda: hopaas_p2p.open_study(tmp_path / "store", "other").close())
    thread.start()
    assert inside.wait(SECONDS)
    code = ask_in_a_fork(study)
    go_on.set()
    thread.join()
    assert code == 0


def fork_and(leave: Callable[[], object]) -> None:
    """Fork a child that leaves the block that it is in; wait for it."""
    pid = os.fork()
    if pid == 0:
        leave()
    os.waitpid(pid, 0)


@pytest.mark.parametrize("how", ["exits", "raises", "is terminated"])
@pytest.mark.parametrize("block", ["optimize", "with"])
def test_a_child_that_leaves_the_objective_of_its_parent_leaves_it_the_trial(
    tmp_path: Path, how: str, block: str
) -> None:
    study = hopaas_p2p.open_study(
        tmp_path / "store", "s", space={"x": hopaas_p2p.Float(0, 1)}, policy=hopaas_p2p.StudyPolicy(lease_ttl=600.0)
    )
    seen: list[tuple[str, int]] = []
    parent = os.getpid()

    def leave() -> None:
        if how == "raises":
            raise ValueError(how)
        if how == "exits":
            sys.exit(0)
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

    def objective(trial: hopaas_p2p.Trial) -> float:
        fork_and(leave)
        logged = hopaas_p2p.open_study(tmp_path / "store", "s", create=False).state.trials[trial.number]
        seen.append((logged.state.name, logged.epoch))
        return 0.5

    try:
        if block == "optimize":
            study.optimize(objective, n_trials=1, catch=(ValueError,))
        else:
            with study.trial() as trial:
                trial.tell(objective(trial))
    finally:
        if os.getpid() != parent:
            os._exit(0)
    assert seen == [("RUNNING", 1)]
    assert [trial.values for trial in study.trials] == [[0.5]]


def test_a_trial_whose_asyncio_task_is_cancelled_is_given_back(tmp_path: Path) -> None:
    study = hopaas_p2p.open_study(tmp_path / "store", "s", space={"x": hopaas_p2p.Float(0, 1)})

    async def train() -> None:
        with study.trial():
            asyncio.current_task().cancel()  # type: ignore[union-attr]  # as asyncio.run does at Ctrl-C
            await asyncio.sleep(60)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(train())
    assert [trial.state.name for trial in study.state.trials] == ["WAITING"]


def asked_with_a_report(study: Any) -> Any:
    trial = study.ask()
    trial.report(0.125, 1)
    return trial


def test_a_trial_is_told_by_each_copy_of_the_study_that_it_set_out_from(tmp_path: Path) -> None:
    """A scheduler of Dask in the same process sends a copy of what it gets."""
    study = hopaas_p2p.open_study(tmp_path / "store", "s", space={"x": hopaas_p2p.Float(0, 1)})
    copies = [study]
    for _ in range(3):
        copies.append(pickle.loads(pickle.dumps(copies[-1])))
    with multiprocessing.get_context("fork").Pool(1) as pool:
        trials = [pool.apply(asked_with_a_report, (copies[-1],)) for _ in copies]
    for copy, trial in zip(copies, trials, strict=True):
        copy.tell(trial, 0.5)
    assert [trial.values for trial in study.trials] == [[0.5]] * 4


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_trial_that_a_child_asked_for_is_told_where_it_is_brought_back_to(tmp_path: Path, method: str) -> None:
    study = hopaas_p2p.open_study(tmp_path / "store", "s", space={"x": hopaas_p2p.Float(0, 1)})
    with multiprocessing.get_context(method).Pool(1) as pool:
        first, second, third = (pool.apply(asked_with_a_report, (study,)) for _ in range(3))
        study.tell(first, 0.5)
        study.tell(second, state="pruned")
        plain = pool.apply(asked_with_a_report, (study,))
    third.report(0.25, 2)
    study.tell(third, 0.75)
    study.tell(plain, 1.0)
    logged = hopaas_p2p.open_study(tmp_path / "store", "s", create=False).state.trials
    assert [(trial.state.name, trial.values) for trial in logged] == [
        ("COMPLETE", (0.5,)),
        ("PRUNED", (0.125,)),
        ("COMPLETE", (0.75,)),
        ("COMPLETE", (1.0,)),
    ]
    assert [trial.reports for trial in logged] == [{1: 0.125}, {1: 0.125}, {1: 0.125, 2: 0.25}, {1: 0.125}]


def test_the_lease_of_a_trial_is_kept_alive_where_it_is_brought_back_to(tmp_path: Path) -> None:
    """The child that asked for it may have ended."""
    study = hopaas_p2p.open_study(tmp_path / "store", "s", space={"x": hopaas_p2p.Float(0, 1)})
    with multiprocessing.get_context("fork").Pool(1) as pool:
        trial = pool.apply(asked_with_a_report, (study,))
    assert study.storage.peer.adopted == {study.state.trials[trial.number].owner}
    study.tell(trial, 0.5)
    assert study.storage.peer.adopted == set()


def test_a_trial_that_a_child_has_ended_takes_no_part_of_the_time_of_later_ones(tmp_path: Path) -> None:
    study = hopaas_p2p.open_study(tmp_path / "store", "s", space={"x": hopaas_p2p.Float(0, 1)})
    for end in (study.tell, give_back):
        child = multiprocessing.get_context("fork").Process(target=end, args=(study.ask(), 0.5))
        child.start()
        child.join()
    ledger = study.state.ledger
    before = ledger.total.time
    with study.trial() as trial:
        trial.tell(0.25)
    again = study.state.trials[trial.number]
    assert len(again.history) == 1
    assert ledger.total.time - before == (again.end or 0) - (again.start or 0)


def give_back(trial: hopaas_p2p.Trial, _value: float) -> None:
    trial.handle.release(trial.number)


def test_a_trial_is_told_to_its_own_study_only(tmp_path: Path) -> None:
    space = {"x": hopaas_p2p.Float(0, 1)}
    one, other = (hopaas_p2p.open_study(tmp_path / "store", name, space=space) for name in ("one", "other"))
    elsewhere = hopaas_p2p.open_study(tmp_path / "elsewhere", "one", space=space)
    trials = [study.ask() for study in (one, other, elsewhere)]
    for trial in trials[1:]:
        with pytest.raises(hopaas_p2p.errors.InvalidInput, match="trial 0 belongs to the study"):
            one.tell(trial, 0.5)
    elsewhere.storage.delete_study(elsewhere.study_id)
    with pytest.raises(hopaas_p2p.errors.NoSuchTrial):
        one.tell(trials[2], 0.5)
    (tmp_path / "link").symlink_to(tmp_path / "store")
    same = hopaas_p2p.open_study(tmp_path / "link", "one")
    with pytest.raises(hopaas_p2p.errors.NotYourTrial):
        same.tell(trials[0], 0.5)
    assert [trial.state.name for study in (one, other) for trial in study.state.trials] == ["RUNNING"] * 2


def test_a_study_that_is_unpickled_while_the_store_is_away_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a task for a pool is: `multiprocessing.Pool` waits for ever for one that cannot be unpickled."""
    monkeypatch.setattr("hopaas_p2p.storage.options._LOOK_FOR_STORE", 0.05)
    study = hopaas_p2p.open_study(tmp_path / "store", "s", space={"x": hopaas_p2p.Float(0, 1)})
    pickled, found = pickle.dumps(study), []
    (tmp_path / "store").rename(tmp_path / "away")
    thread = threading.Thread(target=lambda: found.append(pickle.loads(pickled)))
    thread.start()
    until(lambda: "is not there now" in caplog.text)
    assert found == []
    assert not (tmp_path / "store").exists(), "nothing was made in its place"
    (tmp_path / "away").rename(tmp_path / "store")
    thread.join(SECONDS)
    found[0].tell(found[0].ask(), 0.5)
    assert [trial.values for trial in study.trials] == [[0.5]]
    found[0].close()


def test_what_numpy_imports_at_its_first_use_is_there_before_a_thread_prunes() -> None:
    """A child that is forked while a thread of its parent imports a module waits for ever when it imports it, too."""
    code = """if True:
        import sys, numpy, hopaas_p2p.search.pruners
        before = set(sys.modules)
        numpy.nanpercentile([1.0, 2.0], 25), numpy.unique([1.0])
        assert set(sys.modules) == before"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_trial_imports_nothing_that_was_not_there_when_its_study_was_opened() -> None:
    code = """if True:
        import sys, hopaas_p2p
        study = hopaas_p2p.open_study("memory://imports", "s", space={"x": hopaas_p2p.Float(0, 1)})
        before = set(sys.modules)
        for _ in range(12):  # more than are drawn at random
            trial = study.ask()
            trial.report(0.5, 1)
            trial.should_prune()
            study.tell(trial, 0.5)
        assert set(sys.modules) == before, set(sys.modules) - before"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
