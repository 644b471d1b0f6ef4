"""What a child of a fork may do whatever the threads of its parent were at, and what it leaves to its parent."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

import hopaas_p2p
from hopaas_p2p.core.state import State
from hopaas_p2p.study import study as study_module

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
    "sampler",
    [
        hopaas_p2p.samplers.TPESampler(),
        optuna.samplers.RandomSampler(),
        optuna.samplers.NSGAIISampler(),
        optuna.samplers.PartialFixedSampler({}, optuna.samplers.GPSampler()),
    ],
    ids=lambda one: type(one).__name__,
)
def test_a_child_draws_although_numpy_was_drawing_in_its_parent_during_the_fork(
    tmp_path: Path, sampler: optuna.samplers.BaseSampler
) -> None:
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
    other = hopaas_p2p.open_study(tmp_path / "store", "other", space={"x": hopaas_p2p.Float(0, 1)})
    parent, inside, go_on = threading.get_ident(), threading.Event(), threading.Event()
    real = study_module.definition_of

    def definition_of(state: State, name: str) -> Any:
        if threading.get_ident() != parent:
            inside.set()
            go_on.wait(120)
        return real(state, name)

    monkeypatch.setattr(study_module, "definition_of", definition_of)
    thread = threading.Thread(target=lambda: other.space)
    thread.start()
    assert inside.wait(SECONDS)
    code = ask_in_a_fork(study)
    go_on.set()
    thread.join()
    assert code == 0
