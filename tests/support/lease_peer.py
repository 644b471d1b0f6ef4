"""What a peer does in the tests of leases, in a process of its own: it dies at a named point, or waits to be told."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from hopaas_p2p.errors import LeaseLost, StoreUnreachable
from hopaas_p2p.storage.handle import StudyHandle
from hopaas_p2p.stores.directory.files import Directory
from hopaas_p2p.stores.directory.store import DirectoryStore
from hopaas_p2p.stores.objects.log import WriteOnceLog
from hopaas_p2p.stores.objects.store import ObjectArtifacts
from hopaas_p2p.study import Study
from tests.support.processes import in_environment
from tests.support.studies import opened_study

STEPS = 3
NOTHING, RETRIED, TOLD = "no trial was started", "its parameters are run again", "its result is there"


class Point(NamedTuple):
    """Where a peer dies, and what has to be left."""

    phase: str
    call: str | None
    when: str
    left: str
    resume: int | None = None
    """The step of the checkpoint that the retry finds."""


POINTS = {
    "before its first beat": Point("join", "beat", "before", NOTHING),
    "in its first beat": Point("join", "rename", "before", NOTHING),
    "before the ask is written": Point("ask", "append", "before", NOTHING),
    "when the ask is written but not on disk": Point("ask", "sync", "before", RETRIED),
    "when the ask stands and nobody knows": Point("ask", "append", "after", RETRIED),
    "when it has its trial": Point("asked", None, "", RETRIED),
    "when it has reported": Point("reported", None, "", RETRIED),
    "before its reports are written": Point("flush", "append", "before", RETRIED),
    "when its reports stand": Point("flush", "append", "after", RETRIED),
    "before the checkpoint's file": Point("checkpoint", "put", "before", RETRIED, 2),
    "when the checkpoint's file has another name yet": Point("checkpoint", "rename", "before", RETRIED, 2),
    "between the checkpoint's file and its record": Point("checkpoint", "record", "before", RETRIED, 2),
    "when the checkpoint's record stands": Point("checkpoint", "append", "after", RETRIED, 3),
    "before the oldest checkpoint is removed": Point("checkpoint", "remove", "before", RETRIED, 3),
    "before the tell is queued": Point("tell", "finish", "before", RETRIED, 3),
    "before the tell is written": Point("tell", "append", "before", RETRIED, 3),
    "when the tell is written but not on disk": Point("tell", "sync", "before", TOLD),
    "when the tell stands and nobody knows": Point("tell", "append", "after", TOLD),
    "when the tell has returned": Point("told", None, "", TOLD),
}
_CALLS: dict[str, tuple[Any, str]] = {
    "append": (WriteOnceLog, "_append"),
    "sync": (Directory, "_sync"),
    "beat": (DirectoryStore, "beat"),
    "rename": (os, "replace"),
    "put": (ObjectArtifacts, "put"),
    "remove": (ObjectArtifacts, "delete"),
    "record": (StudyHandle, "checkpoint"),
    "finish": (StudyHandle, "finish"),
}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class _Life:
    """The phases of a peer's life, and the point where it ends."""

    def __init__(self, point: Point) -> None:
        self._point = point
        self._phase = ""
        self._appending = threading.local()
        if point.call == "sync":
            WriteOnceLog._append = self._noted(WriteOnceLog._append)  # type: ignore[method-assign]
        if point.call is not None:
            owner, name = _CALLS[point.call]
            setattr(owner, name, self._deadly(getattr(owner, name)))

    def enter(self, phase: str) -> None:
        self._phase = phase
        if self._point.call is None and phase == self._point.phase:
            die()

    def _concerns_the_log(self) -> bool:
        """Heartbeats, which another thread writes, are synced too."""
        return self._point.call != "sync" or getattr(self._appending, "now", False)

    def _noted(self, append: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **options: Any) -> Any:
            self._appending.now = True
            try:
                return append(*args, **options)
            finally:
                self._appending.now = False

        return called

    def _deadly(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **options: Any) -> Any:
            here = self._phase == self._point.phase and self._concerns_the_log()
            if here and self._point.when == "before":
                die()
            result = real(*args, **options)
            if here:
                die()
            return result

        return called


def join(store: str, **options: Any) -> Study:
    return opened_study(store, "s", create=False, **options)


def die_at(store: str, name: str) -> None:
    """Run one trial, and die at the point of that name."""
    life = _Life(POINTS[name])
    study = join(store, linger=60.0)
    life.enter("join")
    study.storage.peer.put(study.handle.log)  # introduces itself
    study.storage.flush()
    life.enter("ask")
    trial = study.ask()
    life.enter("asked")
    for step in range(1, STEPS + 1):
        trial.report(step / 10, step)
        life.enter("reported")
        life.enter("flush" if step == 1 else "")
        study.storage.flush()
        life.enter("checkpoint" if step == STEPS else "")
        trial.checkpoint(f"weights {step}".encode(), step=step)
    life.enter("tell")
    study.tell(trial, trial.params["lr"])
    life.enter("told")


def run_until_told_to_tell(store: str, pipe: Connection, reports: int = 0) -> None:
    """Start a trial, say its number, wait for a value, tell it, and say how that went."""
    study = join(store)
    trial = study.ask()
    for step in range(reports):
        trial.report(step / 10, step)
    study.storage.flush()
    pipe.send((trial.number, study.storage.peer.uuid))
    value = pipe.recv()
    held, valid = trial.lease_held, trial.lease_valid
    try:
        study.tell(trial, value)
    except LeaseLost as lost:
        pipe.send(("lost", lost.kept_as, held, valid))
    else:
        pipe.send(("told", None, held, valid))
    study.close()


def claim_and_die(store: str, number: int, pipe: Connection) -> None:
    """Take over a waiting trial, report once more, and die when told to."""
    study = join(store)
    trial_id = study.storage.get_trial_id_from_study_id_trial_number(study.study_id, number)
    assert study.handle.claim(number)
    study.storage.set_trial_intermediate_value(trial_id, number, float(number))
    study.storage.flush()
    pipe.send(number)
    pipe.recv()


def tell_while_the_store_is_away(store: str, pipe: Connection) -> None:
    """Start a trial; lose the store on request; tell; find it again on request, or be killed."""
    study = join(store, patience=0.2)
    trial = study.ask()
    pipe.send((trial.number, study.storage.peer.uuid))
    assert pipe.recv() == "lose it"
    with store_away():
        pipe.send("lost")
        assert pipe.recv() == "tell"
        valid = trial.lease_valid
        study.tell(trial, 0.5)
        pipe.send(valid)
        assert pipe.recv() == "find it"
    pipe.send("found")
    assert pipe.recv() == "end"
    study.close()


@contextmanager
def store_away() -> Iterator[None]:
    """In this process, the directory does not answer: as with a file server that is down."""

    def refuse(*_: object, **__: object) -> None:
        raise StoreUnreachable("the file server does not answer.")

    calls = [(WriteOnceLog, "exchange"), (DirectoryStore, "beat"), (DirectoryStore, "beats")]
    real = [(owner, name, getattr(owner, name)) for owner, name in calls]
    for owner, name in calls:
        setattr(owner, name, refuse)
    try:
        yield
    finally:
        for owner, name, function in real:
            setattr(owner, name, function)


_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["optuna", "hopaas_p2p.study", "tests.support.lease_peer"])


def start(role: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Run one of the functions above in a process of its own."""
    process = _context.Process(target=in_environment, args=(dict(os.environ), role, *arguments), daemon=True)
    process.start()
    return process


def pipe() -> tuple[Connection, Connection]:
    """Two ends to talk through."""
    return _context.Pipe()
