"""The courier's thread gets the interpreter when it has something to do, however busy the program is."""

from __future__ import annotations

import statistics
import threading
import time

import numpy as np
import pytest

import hopaas_p2p
from hopaas_p2p.peer.background import Background
from hopaas_p2p.peer.turn import Turn
from tests.processes import until


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
    background = Background(clockwork.tick)
    background.start()
    until(lambda: clockwork.ticks == 1 and background._due > time.monotonic())
    monkeypatch.setattr("hopaas_p2p.peer.background.time.sleep", lambda _seconds: pytest.fail("paused for nothing"))
    background.let_work()
    background.stop(within=5.0)
    background.let_work()


def test_a_thread_that_is_woken_is_let_work_by_a_program_that_never_rests() -> None:
    clockwork = _Clockwork()
    background = Background(clockwork.tick)
    background.start()
    source = np.random.RandomState(0)
    tries = []
    for woken in range(1, 22):
        until(lambda woken=woken: clockwork.ticks == woken and background._due > time.monotonic())
        background.wake()
        tries.append(0)
        while clockwork.ticks == woken:
            source.uniform(0.0, 1.0, size=1)  # lets go of the interpreter, and takes it again at once
            background.let_work()
            tries[-1] += 1
    background.stop(within=5.0)
    assert statistics.median(tries) <= 3, tries  # without a pause, some fifty


def test_whoever_has_waited_for_the_store_lets_the_thread_work(monkeypatch: pytest.MonkeyPatch) -> None:
    study = hopaas_p2p.open_study("memory://let-work", "s")
    paused: list[Background] = []
    monkeypatch.setattr(Background, "let_work", lambda background: paused.append(background))
    study.tell(study.ask(), 1.0)
    assert len(paused) == 2  # outside of the turn, once for the ask and once for the tell
    study.close()


def test_without_a_thread_nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    background = Background(_Clockwork().tick, allowed=False)
    background.start()
    background.wake()
    monkeypatch.setattr("hopaas_p2p.peer.background.time.sleep", lambda _seconds: pytest.fail("there is no thread"))
    background.let_work()


def test_a_turn_passes_to_one_that_waits_and_to_none_whose_ticket_is_decided() -> None:
    class Ticket:
        decided = False

    turn, ticket, came = Turn(), Ticket(), []

    def take_and_give() -> None:
        came.append(("turn", turn.take()))
        turn.give()

    assert turn.take()
    waiting = [
        threading.Thread(target=lambda: came.append(("decided", turn.take(ticket)))),
        threading.Thread(target=take_and_give),
    ]
    for thread in waiting:
        thread.start()
    until(lambda: turn._waiting == 2)
    ticket.decided = True
    turn.give()
    for thread in waiting:
        thread.join(10)
    assert sorted(came) == [("decided", False), ("turn", True)]
    assert turn.take()


def test_a_turn_that_an_interrupted_thread_kept_without_knowing_is_free_again_when_it_takes_one() -> None:
    turn, came = Turn(), []
    assert turn.take()  # and Ctrl-C came before it could be given
    assert turn.take()
    turn.give()
    other = threading.Thread(target=lambda: came.append(turn.take()))
    other.start()
    other.join(10)
    assert came == [True]
