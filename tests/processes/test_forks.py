"""Processes that fork while their threads report: nobody waits for ever, and both go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hopaas_p2p
from hopaas_p2p.core import codec
from hopaas_p2p.core.records import Commit, TrialCreate
from hopaas_p2p.core.state import State
from hopaas_p2p.peer.peer import Peer
from hopaas_p2p.peer.session import LogClient
from hopaas_p2p.runtime import process
from hopaas_p2p.stores.base import Outgoing
from hopaas_p2p.stores.memory import MemoryStore
from tests.support.processes import ROOT, environment, until
from tests.support.scribe import defined

SECONDS = 30.0


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Peer]:
    monkeypatch.setattr(process, "_peers", weakref.WeakSet())  # those of other tests have no part in these
    peer = with_two_studies()
    yield peer
    peer.close()


def with_two_studies() -> Peer:
    store = MemoryStore()
    for uuid in ("first", "second"):
        commit = Commit("founder", 1, "founder", 0, (defined(),))
        store.log(uuid).exchange(Outgoing("f", codec.encode(commit)), 0)
    return Peer(store, linger=3600.0, describe=dict)


class Told:
    """A lock that tells when somebody begins to wait for it."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self.wanted = threading.Event()

    def acquire(self, *arguments: Any) -> bool:
        self.wanted.set()
        return bool(self._lock.acquire(*arguments))

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def report(peer: Peer, driver: LogClient[State], step: int) -> None:
    """As the storage does: under the lock of the replica, with the first draft waking the thread."""
    with driver.lock:
        driver.session.draft(0, 1, peer.uuid).reports[step] = 1.0
        peer.note_draft(driver)


def test_a_fork_and_a_first_report_do_not_wait_for_each_other(peer: Peer) -> None:
    driver = peer.log("first")
    lock = driver.lock = Told(driver.lock)  # type: ignore[assignment]
    forker = threading.Thread(target=process.before_fork, daemon=True)
    reported = threading.Event()

    def reporter() -> None:
        with lock:
            lock.wanted.clear()
            forker.start()
            assert lock.wanted.wait(SECONDS)  # the fork holds whatever it takes before this lock
            peer.note_draft(driver)  # starts the thread
            peer.log("second")
        reported.set()

    thread = threading.Thread(target=reporter, daemon=True)
    thread.start()
    assert reported.wait(SECONDS)
    thread.join(SECONDS)
    forker.join(SECONDS)
    assert not forker.is_alive()
    driver.lock = lock._lock
    for replica in process._held:  # its thread is gone, and holds their locks for ever
        replica.lock = threading.RLock()
    process._held.clear()


def test_a_study_opened_while_the_process_forks_is_left_alone(peer: Peer) -> None:
    peer.log("first")
    process.before_fork()
    peer.log("second")
    process.after_fork_in_parent()
    assert process._held == []
    for replica in peer.all_logs():
        threads = threading.Thread(target=replica.lock.acquire, daemon=True)
        threads.start()
        threads.join(SECONDS)
        assert not threads.is_alive(), "nobody holds it"


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def in_a_new_process(code: str) -> None:
    """What other tests have imported may have hooks of its own."""
    env = environment(
        PYTHONPATH=str(ROOT),
        PYTHONWARNINGS="error,ignore:This process:DeprecationWarning",  # is multi-threaded: that is the point
    )
    program = [sys.executable, "-c", f"from tests.processes import test_forks; {code}"]
    done = subprocess.run(program, env=env, capture_output=True, text=True, check=False, timeout=2 * SECONDS)
    assert (done.returncode, done.stderr) == (0, "")


def test_replicas_are_locked_before_hooks_of_modules_that_were_imported_earlier() -> None:
    in_a_new_process("test_forks.fork_with_an_earlier_hook()")


def fork_with_an_earlier_hook() -> None:
    held = []
    for when in ("before", "after_in_parent"):
        os.register_at_fork(**{when: lambda: held.append(len(process._held))})
    peer = with_two_studies()
    peer.log("first")
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    assert held == [len(list(peer.all_logs()))] * 2
    peer.close()


def test_threads_that_report_and_threads_that_fork_all_get_on() -> None:
    in_a_new_process("test_forks.report_and_fork()")


def report_and_fork() -> None:
    peer = with_two_studies()
    studies = [peer.log(uuid) for uuid in ("first", "second")]
    for driver in studies:
        peer.commit(driver, TrialCreate())
    done = threading.Event()
    reported, forked = [0, 0], [0, 0]

    def reporter(index: int) -> None:
        while not done.is_set():
            report(peer, studies[index], reported[index])
            reported[index] += 1
            peer.pull(studies[index])

    def forker(index: int) -> None:
        while not done.is_set():
            child = os.fork()
            if child == 0:
                os._exit(0 if peer.uuid and not process._held else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            forked[index] += 1

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for work in (reporter, forker) for i in (0, 1)]
    for thread in threads:
        thread.start()
    try:
        deadline = time.monotonic() + SECONDS
        until(lambda: min(forked) >= 20 and min(reported) >= 20, deadline - time.monotonic())
    finally:
        done.set()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive()
    peer.close()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_samples_although_a_thread_of_its_parent_was_sampling_during_the_fork(tmp_path: Path) -> None:
    samplers = {"tpe": hopaas_p2p.samplers.TPESampler(), "study's own": None}
    for name, sampler in samplers.items():
        study = hopaas_p2p.open_study(
            tmp_path / "store",
            name,
            space={"x": hopaas_p2p.Float(0, 1)},
            sampler=sampler,
            policy=hopaas_p2p.StudyPolicy(lease_ttl=600.0),
        )
        study.tell(study.ask(), 0.5)
        locks: list[Any] = [study.sampler._lock, study._proposer._lock]  # type: ignore[attr-defined]
        held, done = threading.Event(), threading.Event()

        def hold(locks: list[Any] = locks, held: threading.Event = held, done: threading.Event = done) -> None:
            with locks[0], locks[1]:
                held.set()
                done.wait(120)

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait(60)
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)  # a child that hangs ends by it
            try:
                study.tell(study.ask(), 0.25)
            finally:
                os._exit(0 if len(study.trials) == 2 else 1)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        done.set()
        thread.join()
        assert code == 0, name
        assert study.ask().number == 2
