"""Ctrl-C at any call: no trial is left running, no lock is left taken, and the program ends."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, ModuleType
from typing import Final

import optuna
import pytest

import hopaas_p2p
from hopaas_p2p.runtime import interrupts
from hopaas_p2p.runtime.interrupts import noticed_at_once
from hopaas_p2p.study import Study
from tests.support.processes import until

optuna.logging.set_verbosity(optuna.logging.WARNING)

_OURS: Final = str(Path(hopaas_p2p.__file__).parent)
_STEP: Final = 1 if os.environ.get("HOPAAS_TEST_REQUIRE") == "all" else 13
"""Every place is tried in CI; elsewhere every 13th, which takes a few seconds."""


class CtrlC:
    """Raises KeyboardInterrupt at the n-th place where the interpreter would: as a call of our code begins or ends.

    Python 3.14 raises also between the taking of a lock and the block that releases it, in every program: a loop over
    `with lock: pass` shows it. Nothing can be done about that place here.
    """

    def __init__(self, at: int) -> None:
        self._left = at

    def __call__(self, frame: FrameType, event: str, what: object) -> None:
        entered = event == "c_return" and getattr(what, "__name__", "") == "__enter__"
        if entered and sys.version_info >= (3, 14):
            return
        if event in ("call", "c_return") and frame.f_code.co_filename.startswith(_OURS):
            self._left -= 1
            if self._left == 0:
                sys.setprofile(None)
                raise KeyboardInterrupt


def work_in_a_loop(study: Study) -> None:
    study.optimize(lambda trial: trial.params["x"], n_trials=2)


def work_in_blocks(study: Study) -> None:
    for _ in range(2):
        with study.trial() as trial:
            trial.report(trial.params["x"], 1)


def interrupted(study: Study, work: Callable[[Study], None], at: int) -> bool:
    """Work, and press Ctrl-C at that place; whether it came to that."""
    sys.setprofile(CtrlC(at))
    try:
        work(study)
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
    return False


@pytest.mark.parametrize("work", [work_in_a_loop, work_in_blocks])
def test_wherever_ctrl_c_comes_no_trial_is_left_running_and_no_lock_taken(
    tmp_path: Path, work: Callable[[Study], None]
) -> None:
    at, came = 1, True
    while came:
        study, other = two_peers(tmp_path / str(at))
        came = interrupted(study, work, at)
        study.storage.flush()
        left = [trial.number for trial in other.trials if trial.state is optuna.trial.TrialState.RUNNING]
        assert not left, f"at place {at}"
        other.tell(other.ask(), 0.5)  # it would wait for a lock that is still taken
        for one in (study, other):
            one.close()
        at += _STEP
    assert at > 20 * _STEP


def test_a_read_that_ctrl_c_interrupts_is_made_good_by_the_next(tmp_path: Path) -> None:
    at, came = 1, True
    while came:
        study, other = two_peers(tmp_path / str(at))
        for number in range(4):
            study.trials  # noqa: B018  # the fourth is new to it, the others are not
            other.tell(other.ask(), float(number))
        came = interrupted(study, lambda reader: list(reader.trials), at)
        other.tell(other.ask(), 4.0)
        assert [(trial.number, trial.value) for trial in study.trials] == [(n, float(n)) for n in range(5)], f"at {at}"
        for one in (study, other):
            one.close()
        at += 3
    assert at > 20


def two_peers(store: Path) -> tuple[Study, Study]:
    """Of one new study; what the first does in this thread is all that it does."""
    study, other = [
        hopaas_p2p.open_study(store, "s", space={"x": hopaas_p2p.Float(0, 1)}, patience=0.0) for _ in range(2)
    ]
    study.storage.peer.jobs.allowed = False
    return study, other


def test_a_signal_is_noticed_at_once_although_the_main_thread_is_in_a_long_call() -> None:
    happened: list[str] = []
    before = signal.signal(signal.SIGUSR1, lambda *_: happened.append("handled"))
    sender = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1))
    try:
        with noticed_at_once([signal.SIGUSR1], lambda: happened.append("noticed")):
            sender.start()
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000)  # no step of Python
            happened.append("returned")
            sender.join()
            until(lambda: len(happened) == 3)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert happened.index("noticed") < happened.index("handled")
    assert happened[0] == "noticed"


def test_a_signal_to_a_forked_child_is_none_to_its_parent() -> None:
    noticed: list[None] = []
    with noticed_at_once([signal.SIGINT], lambda: noticed.append(None)):
        child = os.fork()
        if child == 0:
            with contextlib.suppress(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
            os._exit(0)
        os.waitpid(child, 0)
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        until(lambda: noticed)
    assert len(noticed) == 1


def test_a_signal_is_noticed_although_the_block_before_could_not_wait_for_the_thread_that_notices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Slow(frozenset[int]):
        def __contains__(self, number: object) -> bool:
            time.sleep(0.1)
            return super().__contains__(number)

    def occupy_the_thread() -> None:
        occupied.set()
        go_on.wait(60)

    noticed: list[str] = []
    occupied, go_on = threading.Event(), threading.Event()
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with noticed_at_once([signal.SIGUSR1], occupy_the_thread):
            os.kill(os.getpid(), signal.SIGUSR1)
            occupied.wait(60)
            monkeypatch.setattr(interrupts, "_SETTLED", 0.0)
        monkeypatch.setattr(interrupts, "_SETTLED", 60.0)
        with noticed_at_once(Slow([signal.SIGUSR1]), lambda: noticed.append("noticed")):
            os.kill(os.getpid(), signal.SIGUSR1)
            go_on.set()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert noticed == ["noticed"]


def test_a_program_that_is_told_of_signals_itself_stays_so() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        signal.set_wakeup_fd(theirs.fileno())
        try:
            with noticed_at_once([signal.SIGINT], lambda: None), contextlib.suppress(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
            assert ours.recv(1) == bytes([signal.SIGINT])
        finally:
            assert signal.set_wakeup_fd(-1) == theirs.fileno()


@pytest.mark.parametrize(
    ("number", "ends", "hurried"), [(signal.SIGTERM, SystemExit, True), (signal.SIGINT, KeyboardInterrupt, False)]
)
def test_calls_wait_for_a_silent_store_after_ctrl_c_but_not_after_sigterm(
    number: int, ends: type[BaseException], hurried: bool
) -> None:
    def interrupted(_: hopaas_p2p.Trial) -> float:
        os.kill(os.getpid(), number)
        raise AssertionError

    study = hopaas_p2p.open_study("memory://interrupted", "s", space={"x": hopaas_p2p.Float(0, 1)})
    with pytest.raises(ends):
        study.optimize(interrupted)
    if hurried:
        until(lambda: study.storage.peer.give_up_at < math.inf)  # a second thread says it
    assert (study.storage.peer.give_up_at < math.inf) is hurried
    study.close()


def test_wherever_ctrl_c_comes_python_writes_no_signals_to_a_file_that_is_closed() -> None:
    at, came = 1, True
    with noticed_at_once([signal.SIGINT], lambda: None):
        pass
    before = descriptors(), threading.active_count()
    while came:
        came = False
        sys.setprofile(CtrlC(at))
        try:
            with noticed_at_once([signal.SIGINT], lambda: None):
                pass
        except KeyboardInterrupt:
            came = True
        finally:
            sys.setprofile(None)
        left = signal.set_wakeup_fd(-1)
        if left != -1:
            os.fstat(left)  # raises for one that was closed
        at += 1
    assert at > 10
    assert (descriptors(), threading.active_count()) == before


def test_a_forked_child_that_leaves_the_block_goes_on_and_notices_its_own_signals() -> None:
    child = parent = os.getpid()
    noticed: list[None] = []
    try:
        with noticed_at_once([signal.SIGINT], lambda: None):
            child = os.fork()
        if child == 0:
            with noticed_at_once([signal.SIGINT], lambda: noticed.append(None)), contextlib.suppress(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        if os.getpid() != parent:
            os._exit(len(noticed))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def descriptors() -> int:
    """How many this process has."""
    return len(list(Path("/dev/fd").iterdir()))


def test_blocks_within_one_another_all_notice_a_signal_and_a_storm_of_others_hides_none() -> None:
    noticed: list[str] = []
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with (
            noticed_at_once([signal.SIGINT], lambda: noticed.append("outer")),
            noticed_at_once([signal.SIGINT], lambda: noticed.append("inner")),
        ):
            for _ in range(1000):
                os.kill(os.getpid(), signal.SIGUSR1)
            with contextlib.suppress(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert sorted(noticed) == ["inner", "outer"]


def test_optimize_runs_where_no_thread_and_no_file_can_be_opened_to_notice_signals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def exhausted(*_: object) -> tuple[int, int]:
        raise OSError(errno.EMFILE, "Too many open files")

    study = hopaas_p2p.open_study("memory://exhausted", "s", space={"x": hopaas_p2p.Float(0, 1)})
    monkeypatch.setattr(interrupts, "_reader", None)
    monkeypatch.setattr(os, "pipe", exhausted)
    study.optimize(lambda trial: trial.params["x"], n_trials=1)
    monkeypatch.undo()
    study.close()
    assert len(study.trials) == 1


def test_a_program_that_handles_ctrl_c_itself_waits_for_a_silent_store_afterwards() -> None:
    def interrupted(trial: hopaas_p2p.Trial) -> float:
        os.kill(os.getpid(), signal.SIGINT)
        until(lambda: study.storage.peer.give_up_at < math.inf)
        return float(trial.params["x"])

    study = hopaas_p2p.open_study("memory://handled", "s", space={"x": hopaas_p2p.Float(0, 1)})
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        study.optimize(interrupted, n_trials=1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert study.storage.peer.give_up_at == math.inf
    study.close()


def test_a_trial_that_ctrl_c_ends_while_another_thread_imports_asyncio_is_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = hopaas_p2p.open_study("memory://importing", "s", space={"x": hopaas_p2p.Float(0, 1)})
    monkeypatch.setitem(sys.modules, "asyncio", ModuleType("asyncio"))  # nothing is in it yet
    with pytest.raises(KeyboardInterrupt), study.trial():
        raise KeyboardInterrupt
    assert [trial.state.name for trial in study.state.trials] == ["WAITING"]
    study.close()
