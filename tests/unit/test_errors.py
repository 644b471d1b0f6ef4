"""Errors as people see them: one screen, and a word on what was refused."""

from __future__ import annotations

import errno
import math
import os
import socket
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

import hopaas_p2p
from hopaas_p2p.core.records import TrialCreate, TrialState, TrialTakeOver
from hopaas_p2p.errors import (
    NO_THREAD,
    ConfigurationError,
    Denied,
    HopaasError,
    InvalidInput,
    LeaseLost,
    StoreAway,
    StoreUnreachable,
)
from hopaas_p2p.ports.socket import PREFIX, TrialSocketServer, request
from hopaas_p2p.ports.verbs import Reply, TrialVerbs
from hopaas_p2p.study import Study
from hopaas_p2p.study.study import as_values
from hopaas_p2p.study.trial import Trial
from tests.support.processes import SPACE, until

SCREEN = 45  # lines
REVOKED = "your token was revoked; ask the study's owner for a new one"


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Study]:
    made = hopaas_p2p.open_study(str(tmp_path / "store"), "s", space=SPACE)
    yield made
    made.close()


def revoke_after(study: Study, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the store deny everything from the exchange after so many on."""
    log = study.handle.log.log
    exchange, left = log.exchange, [calls]

    def denied(*args: Any, **more: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise Denied(REVOKED)
        return exchange(*args, **more)

    monkeypatch.setattr(log, "exchange", denied)


def shown(study: Study, work: Any) -> list[str]:
    """The lines that a person sees."""
    with pytest.raises(HopaasError) as raised:
        work(study)
    lines = "".join(traceback.format_exception(raised.value)).splitlines()
    return [line for line in lines if line.strip(" ~^")]  # newer Pythons underline more


def optimized(study: Study) -> None:
    study.optimize(lambda trial: trial.params["lr"], n_trials=20)


def in_a_with_block(study: Study) -> None:
    for _ in range(9):
        with study.trial() as trial:
            trial.tell(1.0)


def asked_and_told(study: Study) -> None:
    for _ in range(9):
        study.tell(study.ask(), 1.0)


def by_optuna(study: Study) -> None:
    plain = optuna.load_study(study_name=study.name, storage=study.storage)
    plain.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=20)


@pytest.mark.parametrize("work", [optimized, in_a_with_block, asked_and_told, by_optuna], ids=lambda one: one.__name__)
def test_a_revoked_token_is_one_traceback_on_one_screen(
    study: Study, monkeypatch: pytest.MonkeyPatch, work: Any
) -> None:
    revoke_after(study, 3, monkeypatch)
    lines = shown(study, work)
    assert len(lines) <= SCREEN
    assert sum(line.startswith("Traceback") for line in lines) == 1
    assert sum(REVOKED in line for line in lines) == 1


def test_the_objectives_own_error_is_shown_beside_that_of_the_store(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    def objective(trial: Trial) -> float:
        revoke_after(study, 0, monkeypatch)
        raise ValueError("mine")

    lines = shown(study, lambda study: study.optimize(objective, n_trials=1))
    assert len(lines) <= SCREEN
    assert "ValueError: mine" in lines, "\n".join(lines)
    assert REVOKED in lines[-1]


def test_an_error_of_ours_keeps_what_it_arose_from_unless_that_is_ours() -> None:
    def nested() -> None:
        try:
            try:
                raise OSError("no route")
            except OSError as error:
                raise StoreUnreachable("first") from error
        except StoreUnreachable:
            raise StoreUnreachable("second")  # noqa: B904  # that is what this is about

    with pytest.raises(StoreUnreachable, match="second") as raised:
        nested()
    assert isinstance(raised.value.__cause__, OSError)


# --- refusals ---


def test_a_refusal_says_how_many_values_are_expected(study: Study) -> None:
    with pytest.raises(InvalidInput, match=r"^1 value expected, got 3$"):
        as_values((1.0, 2.0, 3.0), expected=1)
    with pytest.raises(InvalidInput, match=r"^the COMPLETE trial was refused: 1 value expected, got 3$"):
        study.handle.bring(TrialCreate(TrialState.COMPLETE, values=(1.0, 2.0, 3.0)))
    with pytest.raises(InvalidInput, match=r"^the COMPLETE trial was refused: a value must be a number, got nan$"):
        study.handle.bring(TrialCreate(TrialState.COMPLETE, values=(math.nan,)))
    trial = study.ask()
    with pytest.raises(InvalidInput, match=r"^1 value expected, got 2$"):
        study.handle.say(TrialTakeOver(trial.number, 1, TrialState.COMPLETE, (1.0, 2.0)))
    with pytest.raises(InvalidInput, match=r"^trial 0 was refused: 1 value expected, got 2$"):
        study.handle.finish(trial.number, optuna.trial.TrialState.COMPLETE, (1.0, 2.0), None)


@pytest.mark.parametrize(
    "kind",
    [InvalidInput, StoreUnreachable, StoreAway, LeaseLost, Denied, ConfigurationError],
    ids=lambda one: one.__name__,
)
def test_what_a_worker_says_is_the_error_that_it_met(
    study: Study, monkeypatch: pytest.MonkeyPatch, kind: type[HopaasError]
) -> None:
    verbs = TrialVerbs(study, study.ask())
    server = TrialSocketServer(verbs)
    monkeypatch.setattr(verbs, "do", lambda _: (_ for _ in ()).throw(kind("why")))
    with pytest.raises(HopaasError, match=r"^why$") as found:
        request(server.ticket, "renew")
    server.close()
    assert (found.type, found.value.exit_code) == (kind, kind.exit_code)


def test_a_worker_without_a_descriptor_left_answers_its_command_when_it_has_one_again(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept, failed = socket.socket.accept, threading.Event()

    def fails_at_first(listener: socket.socket) -> object:
        if not failed.is_set():
            failed.set()
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", fails_at_first)
    server = TrialSocketServer(TrialVerbs(study, study.ask()))
    assert failed.wait(10)
    replies: list[Reply] = []
    asking = threading.Thread(target=lambda: replies.append(request(server.ticket, "renew")), daemon=True)
    asking.start()
    asking.join(10)
    assert [one["ok"] for one in replies] == [True]
    server.close()


def test_a_worker_without_a_thread_left_answers_its_command_when_it_has_one_again(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, failed = threading.Thread.start, threading.Event()

    def fail_at_first(thread: threading.Thread) -> None:
        if thread.name == "hopaas-trial" and not failed.is_set():
            failed.set()
            raise RuntimeError(NO_THREAD)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail_at_first)
    server = TrialSocketServer(TrialVerbs(study, study.ask()))
    assert request(server.ticket, "renew")["ok"]
    assert failed.is_set()
    server.close()


def test_a_command_that_is_killed_before_its_reply_leaves_no_traceback(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    verbs, killed = TrialVerbs(study, study.ask()), threading.Event()

    def slowly(_: str) -> Reply:
        assert killed.wait(10)
        return {"ok": True}

    monkeypatch.setattr(verbs, "do", slowly)
    broken: list[object] = []
    monkeypatch.setattr(threading, "excepthook", broken.append)
    server = TrialSocketServer(verbs)
    with socket.socket(socket.AF_UNIX) as command:
        command.connect(server.ticket.removeprefix(PREFIX))
        command.sendall(b'{"do": "renew"}\n')
        until(lambda: [one for one in threading.enumerate() if one.name == "hopaas-trial" and one.is_alive()])
    (serving,) = [one for one in threading.enumerate() if one.name == "hopaas-trial"]
    killed.set()
    serving.join(10)
    server.close()
    assert not broken
