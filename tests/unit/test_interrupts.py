"""Ctrl-C at any call: no trial is left running, no lock is left taken, and the program ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType, ModuleType
from typing import Final

import optuna
import pytest

import hopaas_p2p
from hopaas_p2p.study import Study

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
@pytest.mark.parametrize("threads", [True, False], ids=["threads", "alone"])
def test_wherever_ctrl_c_comes_no_trial_is_left_running_and_no_lock_taken(
    tmp_path: Path, work: Callable[[Study], None], *, threads: bool
) -> None:
    at, came, step = 1, True, _STEP if threads else 13
    while came:
        study, other = two_peers(tmp_path / str(at), threads=threads)
        came = interrupted(study, work, at)
        study.storage.flush()
        left = [trial.number for trial in other.trials if trial.state is optuna.trial.TrialState.RUNNING]
        assert not left, f"at place {at}"
        other.tell(other.ask(), 0.5)  # it would wait for a lock that is still taken
        for one in (study, other):
            one.close()
        at += step
    assert at > 15 * step


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


def two_peers(store: Path, *, threads: bool = False) -> tuple[Study, Study]:
    """Of one new study; without `threads`, what the first does in this thread is all that it does."""
    study, other = [
        hopaas_p2p.open_study(hopaas_p2p.open_storage(store, patience=0.0), "s", space={"x": hopaas_p2p.Float(0, 1)})
        for _ in range(2)
    ]
    study.storage.peer.jobs.allowed, study.storage.peer.store.immediate = threads, not threads
    return study, other


@pytest.mark.parametrize(
    ("number", "ends"),
    [(signal.SIGTERM, SystemExit), (signal.SIGHUP, SystemExit), (signal.SIGINT, KeyboardInterrupt)],
    ids=["sigterm", "sighup", "ctrl-c"],
)
def test_calls_give_a_silent_store_up_while_a_signal_ends_optimize_and_wait_for_it_afterwards(
    number: int, ends: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: hopaas_p2p.Trial) -> float:
        os.kill(os.getpid(), number)
        raise AssertionError

    study = hopaas_p2p.open_study("memory://interrupted", "s", space={"x": hopaas_p2p.Float(0, 1)})
    seen: list[bool] = []
    release = study.handle.release
    monkeypatch.setattr(
        study.handle, "release", lambda *one, **more: seen.append(study.storage.peer.hurried) or release(*one, **more)
    )
    with pytest.raises(ends):
        study.optimize(interrupted)
    assert seen == [True]
    assert not study.storage.peer.hurried
    study.close()


def test_a_sigterm_that_another_thread_receives_ends_an_optimize_of_several_threads() -> None:
    study = hopaas_p2p.open_study("memory://several", "s", space={"x": hopaas_p2p.Float(0, 1)})
    ended = threading.Event()

    def objective(_: hopaas_p2p.Trial) -> float:
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)  # as after a suspension, when any thread may get it
        ended.wait(20)
        return 0.5

    with pytest.raises(SystemExit):
        study.optimize(objective, n_trials=1, n_jobs=2)
    assert [trial.state.name for trial in study.state.trials] == ["WAITING"]
    ended.set()
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
