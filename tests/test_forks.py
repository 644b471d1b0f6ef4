"""Processes that fork while their threads report: nobody waits for ever, and both go on."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from scribe import defined

from hopaas_p2p.core import codec
from hopaas_p2p.core.records import Commit, TrialCreate
from hopaas_p2p.core.state import State
from hopaas_p2p.peer import forks
from hopaas_p2p.peer.courier import Courier
from hopaas_p2p.peer.membership import Membership
from hopaas_p2p.stores.base import Outgoing
from hopaas_p2p.stores.memory import MemoryStore
from tests.processes import until

SECONDS = 30.0


@pytest.fixture
def courier(monkeypatch: pytest.MonkeyPatch) -> Iterator[Courier]:
    monkeypatch.setattr(forks, "_couriers", weakref.WeakSet())  # those of other tests have no part in these
    store = MemoryStore()
    for uuid in ("first", "second"):
        commit = Commit("founder", 1, "founder", 0, (defined(),))
        store.log(uuid).exchange(Outgoing("f", codec.encode(commit)), 0)
    courier = Courier(store, linger=3600.0, describe=dict)
    yield courier
    courier.close()


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


def report(courier: Courier, membership: Membership[State], step: int) -> None:
    """As the storage does: under the lock of the replica, with the first draft waking the thread."""
    with membership.replica.lock:
        membership.replica.draft(0, 1, courier.uuid).reports[step] = 1.0
        courier.note_draft(membership)


def test_a_fork_and_a_first_report_do_not_wait_for_each_other(courier: Courier) -> None:
    membership = courier.membership(0, "first")
    lock = membership.replica.lock = Told(membership.replica.lock)  # type: ignore[assignment]
    forker = threading.Thread(target=forks.before_fork, daemon=True)
    reported = threading.Event()

    def reporter() -> None:
        with lock:
            lock.wanted.clear()
            forker.start()
            assert lock.wanted.wait(SECONDS)  # the fork holds whatever it takes before this lock
            courier.note_draft(membership)  # starts the thread
            courier.membership(1, "second")
        reported.set()

    thread = threading.Thread(target=reporter, daemon=True)
    thread.start()
    assert reported.wait(SECONDS)
    thread.join(SECONDS)
    forker.join(SECONDS)
    assert not forker.is_alive()
    membership.replica.lock = lock._lock
    for replica in forks._held:  # its thread is gone, and holds their locks for ever
        replica.lock = threading.RLock()
    forks._held.clear()


def test_a_study_opened_while_the_process_forks_is_left_alone(courier: Courier) -> None:
    courier.membership(0, "first")
    forks.before_fork()
    courier.membership(1, "second")
    forks.after_fork_in_parent()
    assert forks._held == []
    for replica in courier.replicas():
        threads = threading.Thread(target=replica.lock.acquire, daemon=True)
        threads.start()
        threads.join(SECONDS)
        assert not threads.is_alive(), "nobody holds it"


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_threads_that_report_and_threads_that_fork_all_get_on(courier: Courier) -> None:
    studies = [courier.membership(number, uuid) for number, uuid in enumerate(("first", "second"))]
    for membership in studies:
        courier.commit(membership, TrialCreate())
    done = threading.Event()
    reported, forked = [0, 0], [0, 0]

    def reporter(index: int) -> None:
        while not done.is_set():
            report(courier, studies[index], reported[index])
            reported[index] += 1
            courier.pull(studies[index])

    def forker(index: int) -> None:
        while not done.is_set():
            child = os.fork()
            if child == 0:
                os._exit(0 if courier.uuid and not forks._held else 1)
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
