"""The threads that talk to a store: what is due is done, one thing by one thread, and callers can leave."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from hopaas_p2p.core import codec
from hopaas_p2p.core.records import Commit, StudyDefine, TrialCreate, TrialState
from hopaas_p2p.errors import StoreUnreachable
from hopaas_p2p.peer import caller as caller_module
from hopaas_p2p.peer import jobs as jobs_module
from hopaas_p2p.peer import peer as peer_module
from hopaas_p2p.peer.jobs import Jobs
from hopaas_p2p.peer.peer import Peer
from hopaas_p2p.stores.base import Beat, ExchangeResult, Outgoing
from hopaas_p2p.stores.memory import MemoryLog, MemoryStore
from tests.support.processes import until


class Owner:
    """Counts what was done for it."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.go_on = threading.Event()

    def quick(self) -> float:
        self.done.append("quick")
        return 0.001

    def slow(self) -> float:
        self.done.append("slow")
        self.go_on.wait(60)
        return 60.0


def test_a_slow_job_delays_no_other_and_runs_in_one_thread_at_a_time() -> None:
    owner = Owner()
    jobs = Jobs(owner, allowed=True)
    slow, quick = jobs.add(Owner.slow), jobs.add(Owner.quick)
    jobs.wake(slow)
    until(lambda: owner.done)
    jobs.wake(slow)
    jobs.wake(quick)
    until(lambda: owner.done.count("quick") >= 10)
    assert owner.done.count("slow") == 1
    owner.go_on.set()
    until(lambda: owner.done.count("slow") == 2)
    jobs.stop(within=5.0)
    assert not jobs.wake(quick)


def test_there_are_a_few_threads_at_most_and_none_when_nothing_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "_SPARE", 0.01)
    monkeypatch.setattr(jobs_module, "_NOTHING_DUE", 0.05)
    owner = Owner()
    jobs = Jobs(owner, allowed=True)
    for _ in range(20):
        jobs.wake(jobs.add(Owner.slow))
    until(lambda: len(owner.done) == 8)
    assert len(jobs._threads) == 8
    threads = jobs._threads
    for one in jobs._jobs.copy():
        jobs.remove(one)
    owner.go_on.set()
    until(lambda: not any(thread.is_alive() for thread in threads))


def test_a_forgotten_owner_is_held_by_no_thread() -> None:
    owner = Owner()
    jobs = Jobs(owner, allowed=True)
    jobs.wake(jobs.add(Owner.quick))
    done = owner.done
    until(lambda: done)
    threads = jobs._threads
    del owner
    gc.collect()
    until(lambda: not any(thread.is_alive() for thread in threads))


def test_where_no_thread_can_be_started_callers_do_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    store, peer = silent_store()
    monkeypatch.setattr(threading.Thread, "start", exhausted)
    store.go_on.set()
    log = peer.log("study")
    (verdict,) = peer.commit(log, TrialCreate())
    assert verdict.accepted
    assert peer.call(lambda: 7) == 7
    peer.close()


# --- callers that wait ---


class SilentLog(MemoryLog):
    """A log whose exchanges are answered once the store goes on."""

    def __init__(self, store: SilentStore) -> None:
        super().__init__()
        self.store = store

    def exchange(self, outgoing: Outgoing | None, since: int, beat: Beat | None = None) -> ExchangeResult:
        self.store.asked.append(threading.current_thread().name)
        self.store.go_on.wait(60)
        return super().exchange(outgoing, since, beat)


class SilentStore(MemoryStore):
    """Answers when it is told to."""

    immediate = False

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()
        self.asked: list[str] = []

    def log(self, uuid: str) -> MemoryLog:
        return self._logs.setdefault(uuid, SilentLog(self))


def silent_store() -> tuple[SilentStore, Peer]:
    store = SilentStore()
    define = Commit("creator", 1, "creator", 0, (StudyDefine("study", ("minimize",)),))
    MemoryLog.exchange(store.log("study"), Outgoing("creator:1", codec.encode(define)), 0)
    return store, Peer(store, describe=dict)


@contextlib.contextmanager
def pressed_soon(number: int) -> Iterator[None]:
    """This signal comes while the main thread waits."""
    timer = threading.Timer(0.2, os.kill, (os.getpid(), number))
    timer.start()
    try:
        yield
    finally:
        timer.join()


def test_ctrl_c_ends_the_wait_for_a_silent_store_at_once_and_the_trial_is_returned_when_it_lands() -> None:
    store, peer = silent_store()
    log = peer.log("study")
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), pressed_soon(signal.SIGINT):
        peer.start(log, TrialCreate())
    assert time.monotonic() - began < 20.0, "the store is silent for a minute"
    store.go_on.set()
    until(lambda: not log.session.has_pending)
    assert not [trial for trial in log.state.trials if trial.state is TrialState.RUNNING]
    peer.close()


def test_a_caller_in_a_hurry_leaves_a_store_that_falls_silent_and_its_result_stays_queued(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peer_module, "_SHUTDOWN_TIMEOUT", 0.2)
    monkeypatch.setattr(caller_module, "_LOOK", 0.05)
    store, peer = silent_store()
    log = peer.log("study")
    before = signal.signal(signal.SIGUSR1, lambda *_: peer.hurry_from_now_on())
    try:
        with pytest.raises(StoreUnreachable, match="does not answer"), pressed_soon(signal.SIGUSR1):
            peer.commit(log, TrialCreate())
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert log.session.has_pending
    store.go_on.set()
    peer.flush()  # a store that answers is waited for, in a hurry too
    assert len(log.state.trials) == 1
    peer.close()


@pytest.mark.parametrize("at_once", [False, True], ids=["waits for its job", "exchanges itself"])
def test_what_several_threads_queue_during_one_exchange_leaves_with_the_next(*, at_once: bool) -> None:
    store, peer = silent_store()
    store.immediate = at_once
    peer.visits = True  # an introduction would wake the job
    log = peer.log("study")
    callers = [threading.Thread(target=peer.commit, args=(log, TrialCreate()), name=f"caller {n}") for n in range(8)]
    callers[0].start()
    until(lambda: store.asked)
    for caller in callers[1:]:
        caller.start()
    until(lambda: len(log.waiting) == (7 if at_once else 8))
    store.go_on.set()
    for caller in callers:
        caller.join(60)
    assert len(log.state.trials) == 8
    assert log.state.lsn <= 3
    assert store.asked[0] == ("caller 0" if at_once else "hopaas-store")
    assert set(store.asked) <= {"caller 0", "hopaas-store"}
    peer.close()
