"""The directory store on GlusterFS and CephFS, by two mounts of this machine that have caches of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from hopaas_p2p.open import open_store
from hopaas_p2p.stores.base import Beat, Log, Store
from hopaas_p2p.testing.commits import append, everything, outgoing
from hopaas_p2p.testing.conformance import AcrossProcesses, StoreConformance
from tests.support import workers
from tests.support.processes import environment, until
from tests.support.served import FolderProcess


class Mounts(NamedTuple):
    """The same new folder, as each of the two mounts has it."""

    a: Path
    b: Path


@pytest.fixture
def mounts(request: pytest.FixtureRequest, tmp_path: Path) -> Mounts:
    """Two mounts of the file system that the test's parameter or class names."""
    kind = request.param if hasattr(request, "param") else request.cls.file_system
    a, b = (mount / tmp_path.name for mount in request.getfixturevalue(kind).mounts)
    a.mkdir()
    return Mounts(a, b)


on_both = pytest.mark.parametrize("mounts", ["gluster", "cephfs"], indirect=True)


# --- the contract of stores --------------------------------------------------------------------------------------


class Mounted(StoreConformance, AcrossProcesses):
    """A store on one mount, of which every other handle is on the other."""

    commits = 10

    @pytest.fixture
    def store(self, mounts: Mounts) -> Iterator[Store]:
        self.mounts = mounts
        store = open_store(str(mounts.a / "store"))
        yield store
        store.close()

    def reopen(self, store: Store) -> Store:
        return open_store(str(self.mounts.b / "store"))

    def test_the_url_opens_the_same_store_and_holds_no_secret(self, store: Store, log: Log) -> None:
        append(log, outgoing("a"))
        assert len(everything(open_store(store.url).log("study-1"))) == 1
        assert self.reopen(store).url == store.url.replace(str(self.mounts.a), str(self.mounts.b))


class TestGluster(Mounted):
    """A file that is replaced looks as before on the other mount, for as long as that has it in its cache: a second."""

    file_system = "gluster"

    def test_a_beat_is_overwritten_and_seen_by_everyone(self, store: Store) -> None:
        other = self.reopen(store)
        for value in ("ann:1", "ann:2"):
            store.beat(Beat("ann", value))
            until(lambda value=value: other.beats(["ann"]) == store.beats(["ann"]) == {"ann": value}, 10)

    def test_artifacts_are_kept_listed_overwritten_and_removed(self, store: Store, tmp_path: Path) -> None:
        other = self.reopen(store).artifacts()
        source, target = tmp_path / "source", tmp_path / "target"

        def seen() -> bytes:
            other.get("study-1/7/model", target)
            return target.read_bytes()

        for content in (b"first", b"second" * 100_000):
            source.write_bytes(content)
            store.artifacts().put("study-1/7/model", source)
            until(lambda content=content: seen() == content, 10)
        assert other.keys("study-1/") == ["study-1/7/model"]
        store.artifacts().delete("study-1/7/model")
        until(lambda: other.keys("study-1/") == [], 10)


class TestCephFS(Mounted):
    file_system = "cephfs"


# --- peers on both mounts ----------------------------------------------------------------------------------------


class Process:
    """One of `tests.support.workers` on this machine."""

    def __init__(self, output: Path, kind: str, store: Path | str, *words: object) -> None:
        command = [sys.executable, "-m", "tests.support.workers", kind, str(store), *map(str, words)]
        self._output = output
        with output.open("w") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file, env=environment(PYTHONWARNINGS=""))

    @property
    def output(self) -> str:
        return self._output.read_text()

    def results(self) -> int:
        """How many results it was told are safe."""
        return self.output.count("\nack ")

    def wait(self, seconds: float = 90.0) -> str:
        self.process.wait(seconds)
        return self.output


Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a `Process`; all are ended with the test."""
    started: list[Process] = []

    def begin(kind: str, store: Path | str, *words: object) -> Process:
        started.append(Process(tmp_path / f"{len(started)}.output", kind, store, *words))
        return started[-1]

    yield begin
    for one in started:
        if one.process.returncode is None:
            one.process.kill()
            one.process.wait()


def judged(start: Start, mounts: Mounts, outputs: list[str]) -> list[dict[str, Any]]:
    """What a fresh process reads on either mount."""
    lsns = [lsn for lsn, _ in workers.views(outputs).values()]
    judges = [start("judge", mount / "store", *lsns) for mount in mounts]
    return [workers.judged(judge.wait()) for judge in judges]


@on_both
def test_peers_on_two_mounts_lose_and_double_nothing_and_all_see_one_history(mounts: Mounts, start: Start) -> None:
    words = ("--peers", 2, "--seconds", 8, "--pace", 0.01)
    peers = [start("work", mount / "store", "--name", mount.parent.name, *words) for mount in mounts]
    outputs = [peer.wait() for peer in peers]

    assert workers.faults(outputs, judged(start, mounts, outputs)) == []
    assert [peer.process.returncode for peer in peers] == [0, 0]
    assert min(output.count("\nack ") for output in outputs) > 20


@on_both
def test_nodes_that_share_a_folder_only_take_part_in_a_study_that_is_kept_elsewhere(
    mounts: Mounts, start: Start, tmp_path: Path
) -> None:
    """The server of the folder is on one mount, peers are on both, and one uses the store itself."""
    kept = tmp_path / "kept"
    places = [kept, *(f"folder://{mount}/box" for mount in mounts)]
    peers = [start("work", kept, "--name", "direct", "--seconds", 60)]
    until(lambda: peers[0].results() > 0, 60, what=lambda: peers[0].output)
    server = FolderProcess(mounts.a / "box", str(kept), tmp_path, XDG_STATE_HOME=str(tmp_path / "state")).start()
    try:
        until((mounts.b / "box" / "box.json").exists)
        peers += [start("work", place, "--name", f"peer-{at}", "--seconds", 60) for at, place in enumerate(places[1:])]
        for peer in peers[1:]:
            until(lambda peer=peer: peer.results() > 3, 60, what=lambda peer=peer: peer.output)
        server.kill()
        server.start()
        for peer in peers:
            _goes_on(peer)
            peer.process.send_signal(signal.SIGUSR1)
        outputs = [peer.wait() for peer in peers]
        lsns = [lsn for lsn, _ in workers.views(outputs).values()]
        judges = [start("judge", place, *lsns) for place in places]
        assert workers.faults(outputs, [workers.judged(judge.wait()) for judge in judges]) == []
    finally:
        server.kill()


def _goes_on(peer: Process) -> None:
    before = peer.results()
    until(lambda: peer.results() > before + 2, 20, what=lambda: peer.output[-1000:])


@on_both
def test_a_peer_that_is_stopped_in_mid_write_holds_up_nobody_and_loses_nothing(mounts: Mounts, start: Start) -> None:
    words = ("--ttl", 2, "--pace", 0.01)
    others = [start("work", mount / "store", "--name", mount.parent.name, "--seconds", 60, *words) for mount in mounts]
    zombie = start("work", mounts.b / "store", "--name", "zombie", "--seconds", 15, "--stops", 7, *words)
    pid, stops = zombie.process.pid, 0
    try:
        while True:
            _, status = os.waitpid(pid, os.WUNTRACED)
            if not os.WIFSTOPPED(status):
                break
            stops += 1
            if stops == 3:  # once for longer than its lease
                time.sleep(5)
            for other in others:
                _goes_on(other)
            os.kill(pid, signal.SIGCONT)
        zombie.process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        for other in others:
            other.process.send_signal(signal.SIGUSR1)
    outputs = [process.wait() for process in (*others, zombie)]

    assert stops > 5
    assert workers.faults(outputs, judged(start, mounts, outputs)) == []
    assert zombie.results() > 0
