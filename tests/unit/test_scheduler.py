"""The scheduler's thread gets the interpreter when it has something to do, however busy the program is."""

from __future__ import annotations

import statistics
import threading
import time

import numpy as np
import pytest

import hopaas_p2p
from hopaas_p2p.core.records import TrialCreate
from hopaas_p2p.core.state import Verdict
from hopaas_p2p.peer.driver import CombiningLock, Scheduler
from hopaas_p2p.peer.outbox import PendingCommit
from tests.support.processes import until


class _Clockwork:
    """Notes each tick; asks to be called again after `pause` seconds."""

    def __init__(self, pause: float = 60.0) -> None:
        self.pause = pause
        self.ticks = 0

    def tick(self) -> float:
        self.ticks += 1
        return self.pause


def test_nobody_pauses_for_a_thread_that_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    clockwork = _Clockwork()
    background = Scheduler(clockwork.tick)
    background.start()
    until(lambda: clockwork.ticks == 1 and background._due > time.monotonic())
    monkeypatch.setattr("hopaas_p2p.peer.driver.time.sleep", lambda _seconds: pytest.fail("paused for nothing"))
    background.yield_to()
    background.stop(within=5.0)
    background.yield_to()


def test_a_thread_that_is_woken_is_yield_to_by_a_program_that_never_rests() -> None:
    clockwork = _Clockwork()
    background = Scheduler(clockwork.tick)
    background.start()
    source = np.random.RandomState(0)
    tries = []
    for woken in range(1, 22):
        until(lambda woken=woken: clockwork.ticks == woken and background._due > time.monotonic())
        background.wake()
        tries.append(0)
        while clockwork.ticks == woken:
            source.uniform(0.0, 1.0, size=1)  # lets go of the interpreter, and takes it again at once
            background.yield_to()
            tries[-1] += 1
    background.stop(within=5.0)
    assert statistics.median(tries) <= 3, tries  # without a pause, some fifty


def test_whoever_has_waited_for_the_store_lets_the_thread_work(monkeypatch: pytest.MonkeyPatch) -> None:
    study = hopaas_p2p.open_study("memory://let-work", "s")
    paused: list[Scheduler] = []
    monkeypatch.setattr(Scheduler, "yield_to", lambda background: paused.append(background))
    study.tell(study.ask(), 1.0)
    assert len(paused) == 2  # outside of the turn, once for the ask and once for the tell
    study.close()


def test_without_a_thread_nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    background = Scheduler(_Clockwork().tick, allowed=False)
    background.start()
    background.wake()
    monkeypatch.setattr("hopaas_p2p.peer.driver.time.sleep", lambda _seconds: pytest.fail("there is no thread"))
    background.yield_to()


def test_a_turn_passes_to_one_that_waits_and_to_none_whose_commit_is_decided() -> None:
    turn, pending = CombiningLock(), PendingCommit("ann", (TrialCreate(),))
    came: list[tuple[str, bool]] = []

    def take_and_give() -> None:
        came.append(("turn", turn.acquire()))
        turn.release()

    assert turn.acquire()
    waiting = [
        threading.Thread(target=lambda: came.append(("decided", turn.acquire(pending)))),
        threading.Thread(target=take_and_give),
    ]
    for thread in waiting:
        thread.start()
    until(lambda: turn._waiting == 2)
    pending.decide(Verdict(True, 0))
    turn.release()
    for thread in waiting:
        thread.join(10)
    assert sorted(came) == [("decided", False), ("turn", True)]
    assert turn.acquire()


def test_a_turn_that_an_interrupted_thread_kept_without_knowing_is_free_again_when_it_takes_one() -> None:
    turn, came = CombiningLock(), []
    assert turn.acquire()  # and Ctrl-C came before it could be given
    assert turn.acquire()
    turn.release()
    other = threading.Thread(target=lambda: came.append(turn.acquire()))
    other.start()
    other.join(10)
    assert came == [True]
