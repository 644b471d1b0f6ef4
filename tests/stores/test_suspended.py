"""A process that is stopped at any call of a commit, for as long as it likes: nobody waits for it, and nothing is lost.

What batch systems do to a job that they suspend: SIGSTOP, minutes of nothing, SIGCONT. Meanwhile others write more than
a pack, and remove the folder that the stopped process was about to write to. The minutes are on its clock only.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hopaas_p2p.errors import BehindRetention, StoreUnreachable
from hopaas_p2p.stores.directory.log import FolderLog
from hopaas_p2p.stores.directory.store import DirectoryStore
from hopaas_p2p.stores.objects.log import SPAN, clocks
from hopaas_p2p.testing.commits import TIMEOUT, append, append_many, everything, outgoing

CALLS = ("open", "symlink", "readlink", "stat", "lstat", "fsync", "mkdir", "close")
BEFORE, BETWEEN = 100, 40
_MOST = 60  # calls of one commit


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Does not wait for the disk."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def a_log(root: Path) -> FolderLog:
    return DirectoryStore(root).log("study")


def zombie(root: Path, stop_at: int, *, after: bool, answer: int) -> None:
    """In a child: append a commit, and be stopped before or after so many calls of the system. Tells the lsn."""
    log = a_log(root)
    append(log, outgoing("first"), len(everything(log)))
    since = len(everything(log))
    calls = 0

    def stopped() -> None:
        os.kill(os.getpid(), signal.SIGSTOP)
        log.history.clocks = lambda: clocks()._replace(boot=clocks().boot + 78 * 60)

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            here = calls == stop_at
            if here and not after:
                stopped()
            try:
                return real(*arguments, **named)
            finally:
                if here and after:
                    stopped()

        return call

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            entries = append(log, outgoing("late"), since).entries
            break
        except BehindRetention:
            since = 0
        except StoreUnreachable:
            if time.monotonic() > deadline:
                raise
    lsn = next(entry.lsn for entry in entries if entry.payload == outgoing("late").payload)
    os.write(answer, b"%d" % lsn)


def run_stopped(root: Path, stop_at: int, meanwhile: Callable[[], None], *, after: bool) -> tuple[bool, int]:
    """Whether the child was stopped at all, and the lsn that it was told."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            zombie(root, stop_at, after=after, answer=writing)
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    _, status = os.waitpid(child, os.WUNTRACED)
    stopped = os.WIFSTOPPED(status)
    if stopped:
        meanwhile()
        os.kill(child, signal.SIGCONT)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    said = os.read(reading, 100)
    os.close(reading)
    return stopped, int(said)


@pytest.mark.parametrize("many", [False, True], ids=["some-commits", "more-than-a-pack"])
@pytest.mark.parametrize("after", [False, True], ids=["before-the-call", "after-it"])
def test_a_process_stopped_at_any_call_of_a_commit_holds_nobody_up_and_writes_over_nothing(
    tmp_path: Path, *, after: bool, many: bool
) -> None:
    points = 0
    for stop_at in range(1, _MOST):
        root = tmp_path / f"{stop_at}"
        log = a_log(root)
        append_many(log, "c", BEFORE)
        told: dict[int, bytes] = {}

        def work(log: FolderLog = log, told: dict[int, bytes] = told) -> None:
            since = len(everything(log))
            for number in range(SPAN + BETWEEN if many else 3):
                entries = append(log, outgoing(f"d-{number}"), since).entries
                since = entries[-1].lsn
                told[since] = entries[-1].payload
            if many:
                log.objects.remove_folder(f"study/study/commits/{1:020d}")  # type: ignore[attr-defined]

        stopped, lsn = run_stopped(root, stop_at, work, after=after)
        there = {entry.lsn: entry.payload for entry in everything(a_log(root))}
        assert there[lsn] == outgoing("late").payload
        assert list(there.values()).count(outgoing("late").payload) == 1
        assert told.items() <= there.items(), "what others were told is as they left it"
        if not stopped:
            break
        points += 1
    assert points >= len(("lstat", "symlink", "open", "close"))


def test_a_write_that_stalls_holds_up_its_own_process_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file server that takes its time for one call, and then says that it failed."""
    log, other = a_log(tmp_path), a_log(tmp_path)
    append_many(log, "c", 3)
    everything(other)
    symlink = os.symlink

    def stalls(*_: object, **__: object) -> None:
        monkeypatch.setattr(os, "symlink", symlink)
        append_many(other, "d", 5, 3)
        raise OSError(errno.ETIMEDOUT, "no answer for 20 s")

    monkeypatch.setattr(os, "symlink", stalls)
    assert append(log, outgoing("late"), 3).entries[-1].lsn == 9
    assert len(everything(a_log(tmp_path))) == 9
