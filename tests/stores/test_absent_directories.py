"""A directory store whose file system is away: nothing is made in its place, and nothing is concluded from that."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

import hopaas_p2p
from hopaas_p2p.core.codec import following
from hopaas_p2p.errors import StoreAway, StoreUnreachable
from hopaas_p2p.stores.base import Beat
from hopaas_p2p.stores.directory import files, seen
from hopaas_p2p.stores.directory.store import DirectoryStore
from hopaas_p2p.testing.commits import append, chained, outgoing, outgoing_of
from tests.support.processes import environment

SPACE = {"x": hopaas_p2p.Float(0, 1)}


class Mounted:
    """A store on a file system that can be unmounted: an empty directory is left in its place."""

    def __init__(self, base: Path) -> None:
        self.path = base / "shared"
        self._elsewhere = base / "elsewhere"
        self._mount = ("/shared", "nfs4")
        self.path.mkdir()

    def mount_point(self, _path: Path) -> tuple[str, str]:
        return self._mount

    def unmount(self, *, left_behind: str = "") -> None:
        self.path.rename(self._elsewhere)
        (self.path / left_behind).mkdir(parents=True)
        self._mount = ("/", "ext4")

    def mount(self) -> None:
        self.path.rename(self.path.with_name("below"))
        self._elsewhere.rename(self.path)
        self._mount = ("/shared", "nfs4")

    def made_below(self) -> list[str]:
        """What lies in the empty mount point."""
        return sorted(str(one.relative_to(self.path)) for one in self.path.rglob("*") if not one.is_dir())


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mounted:
    mounted = Mounted(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(seen, "mount_point", mounted.mount_point)
    return mounted


@pytest.fixture(params=["", "store/v1/artifacts/study", "store/v1/study/s/commits/00000000000000000001"])
def left_behind(request: pytest.FixtureRequest) -> str:
    """What an earlier accident made in the mount point."""
    return str(request.param)


WRITES: dict[str, Callable[[DirectoryStore, Path], object]] = {
    "upload": lambda store, source: store.artifacts().put("study/model", source),
    "commit": lambda store, _: append(store.log("s"), outgoing("b"), 1),
    "beat": lambda store, _: store.beat(Beat("ann", "ann:1")),
    "snapshot": lambda store, _: store.log("s").put_snapshot(1, b"snapshot"),
    "first commit": lambda store, _: append(store.log("t"), outgoing("a")),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_nothing_is_written_into_an_empty_mount_point(
    mounted: Mounted, left_behind: str, write: Callable[[DirectoryStore, Path], object], tmp_path: Path
) -> None:
    (tmp_path / "source").write_bytes(b"model")
    store = DirectoryStore(mounted.path / "store")
    append(store.log("s"), outgoing("a"))
    mounted.unmount(left_behind=left_behind)
    with pytest.raises(StoreUnreachable, match="mounted"):
        write(store, tmp_path / "source")
    assert mounted.made_below() == []
    mounted.mount()
    write(store, tmp_path / "source")


def test_another_store_in_its_place_gets_nothing_either(mounted: Mounted) -> None:
    store = DirectoryStore(mounted.path / "store")
    append(store.log("s"), outgoing("a"))
    mounted.unmount()
    other = subprocess.run(
        [sys.executable, "-c", "import sys; from hopaas_p2p.open import open_store; open_store(sys.argv[1])",
         str(mounted.path / "store")],
        env=environment() | {"XDG_STATE_HOME": str(mounted.path.parent / "another")}, check=False,
    )  # fmt: skip
    assert other.returncode == 0
    before = mounted.made_below()
    with pytest.raises(StoreUnreachable, match="another store is in its place"):
        append(store.log("s"), outgoing("b"), 1)
    assert mounted.made_below() == before


def test_a_peer_waits_while_its_store_is_away_and_goes_on(mounted: Mounted, left_behind: str) -> None:
    study = hopaas_p2p.open_study(mounted.path / "store", "s", space=SPACE)
    with contextlib.closing(study):
        study.tell(study.ask(), 1.0)
        mounted.unmount(left_behind=left_behind)
        assert len(study.trials) == 1
        back = threading.Timer(1.0, mounted.mount)
        back.start()
        study.tell(study.ask(), 2.0)
        back.join()
        assert [trial.value for trial in study.trials] == [1.0, 2.0]


@pytest.fixture
def away(mounted: Mounted) -> Iterator[Path]:
    """A store that was seen, and is away."""
    hopaas_p2p.open_study(mounted.path / "store", "s", space=SPACE).close()
    mounted.unmount()
    yield mounted.path / "store"
    assert mounted.made_below() == []


@pytest.mark.parametrize("create", [True, False])
def test_a_store_that_is_away_is_not_begun_anew(away: Path, create: bool) -> None:
    with pytest.raises(StoreAway, match="This machine has seen one there"):
        hopaas_p2p.open_study(
            hopaas_p2p.open_storage(away, store_wait=0.1, create=create), "s", space=SPACE, create=create
        )


def test_a_store_that_is_away_is_not_begun_anew_while_its_note_cannot_be_read(
    away: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> bytes:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(seen, "read_regular", fail)  # as where the home is on a file server, too
    with pytest.raises(StoreAway, match="cannot be used at the moment"):
        hopaas_p2p.open_storage(away, store_wait=0.1)


def test_opening_waits_until_it_is_mounted_again(
    mounted: Mounted, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("hopaas_p2p.storage.options._LOOK_FOR_STORE", 0.1)
    hopaas_p2p.open_study(mounted.path / "store", "s", space=SPACE).close()
    mounted.unmount()
    back = threading.Timer(1.0, mounted.mount)
    back.start()
    with contextlib.closing(hopaas_p2p.open_study(mounted.path / "store", "s", space=SPACE, create=False)):
        assert "waiting" in caplog.text
    back.join()


def test_the_command_line_exits_with_75(away: Path) -> None:
    note = seen._note(away)
    note.write_bytes(note.read_bytes().replace(b"/shared", b"/not/mounted/here"))
    command = [
        sys.executable,
        "-c",
        "from hopaas_p2p.cli.main import main; main()",
        "study",
        "show",
        "s",
        "--store",
        str(away),
    ]
    more = {"XDG_STATE_HOME": os.environ["XDG_STATE_HOME"], "HOPAAS_PATIENCE": "0.2"}
    done = subprocess.run(command, env=environment() | more, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (75, "")
    assert "This machine has seen one there" in done.stderr


def test_a_store_that_was_removed_may_be_begun_anew(mounted: Mounted) -> None:
    first = DirectoryStore(mounted.path / "store")
    (mounted.path / "store").rename(mounted.path / "removed")
    assert DirectoryStore(mounted.path / "store").objects.uuid != first.objects.uuid


def test_a_server_that_is_gone_is_no_wrong_store(mounted: Mounted, monkeypatch: pytest.MonkeyPatch) -> None:
    DirectoryStore(mounted.path / "store")
    real = Path.lstat

    def cut_off(self: Path) -> os.stat_result:
        if self.name == "meta.json":
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        return real(self)

    monkeypatch.setattr(Path, "lstat", cut_off)
    with pytest.raises(StoreAway, match="not connected"):
        DirectoryStore(mounted.path / "store")


@pytest.mark.parametrize("write", [True, False])
def test_a_store_that_is_mounted_again_between_two_looks_has_lost_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: bool,  # noqa: FBT001
) -> None:
    path, away = tmp_path / "store", tmp_path / "away"
    log, total = DirectoryStore(path).log("s"), 0
    for since, name in enumerate("abc"):
        total = following(total, chained(log, name, since, total).payload)
    real = files._is_folder

    def mounted_a_moment_later(folder: str) -> bool:
        found = real(folder)
        if away.exists():
            away.rename(path)
        return found

    monkeypatch.setattr(files, "_is_folder", mounted_a_moment_later)
    path.rename(away)
    receipt = log.exchange(replace(outgoing_of("d", "d"), chain=total) if write else None, 3)
    assert not away.exists()
    assert [entry.lsn for entry in receipt.entries] == ([4] if write else [])
