"""A directory that several users may write to: what somebody puts there beforehand leads nobody out of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import hopaas_p2p
from hopaas_p2p import spool
from hopaas_p2p.errors import ConfigurationError, HopaasError
from hopaas_p2p.runtime.atomic import read_regular
from hopaas_p2p.stores.base import Beat, Placed
from hopaas_p2p.stores.directory.mounts import Mount
from hopaas_p2p.stores.directory.store import DirectoryStore
from hopaas_p2p.testing.commits import append, append_many, everything, outgoing
from tests.support.processes import environment
from tests.support.spooled import keep

V1, STUDY = Path("v1"), Path("v1/study/study")
SECRET = "the user's own"


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder of the user's beside the store; nothing in it is read, written or removed."""
    folder = tmp_path / "home"
    (folder / "below").mkdir(parents=True)
    for name in (".bashrc", "key", f"{1:020d}", f"{257:020d}", "below/deep"):
        (folder / name).write_text(SECRET)
    yield folder
    assert {path.name for path in folder.rglob("*")} == {"below", ".bashrc", "key", f"{1:020d}", f"{257:020d}", "deep"}
    assert all(path.read_text() == SECRET for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store with a log, a snapshot, a beat and a file, that everybody may write to."""
    root = tmp_path / "store"
    store = DirectoryStore(root)
    log = store.log("study")
    append_many(log, "c", 3)
    log.put_snapshot(3, b"snapshot")
    store.beat(Beat("peer", "1"))
    given = tmp_path / "given"
    given.write_text("a file")
    store.artifacts().put("study-file", given)
    for folder, _, _ in os.walk(root):
        Path(folder).chmod(0o2777)
    return root


def test_a_store_that_is_made_in_everybodys_folder_is_its_users_to_write_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)  # as /tmp
    store = DirectoryStore(tmp_path / "store")
    append_many(store.log("study"), "c", 3)
    store.beat(Beat("peer", "1"))
    made = [tmp_path / "store", *(tmp_path / "store").rglob("*")]
    assert [path for path in made if not path.is_symlink() and path.stat().st_mode & 0o022] == []


FOLDERS = [V1 / "study", STUDY, STUDY / "commits", STUDY / "commits" / f"{1:020d}", STUDY / "snapshot"]
FOLDERS += [V1 / "beats", V1 / "artifacts"]


@pytest.mark.parametrize("folder", FOLDERS, ids=[str(one.relative_to(V1)) for one in FOLDERS])
@pytest.mark.parametrize("late", [False, True], ids=["before", "while it is open"])
def test_a_folder_that_is_a_link_leads_nowhere(
    folder: Path, late: bool, root: Path, outside: Path, tmp_path: Path
) -> None:
    store = DirectoryStore(root)
    log = store.log("study")
    if late:
        append(log, outgoing("mine"), 3)
    shutil.rmtree(root / folder)
    (root / folder).symlink_to(outside)

    for use in (
        lambda: append(log, outgoing("new"), 3),
        lambda: everything(log),
        lambda: log.put_snapshot(257, b"new"),
        lambda: [log.put_snapshot(lsn, b"new") for lsn in range(1, 8)],
        lambda: log.newest_snapshot(),
        lambda: store.beat(Beat("key", "2")),
        lambda: store.beats(["key"]),
        lambda: store.artifacts().put("key", root / "v1" / "meta.json"),
        lambda: store.artifacts().get("key", tmp_path / "got"),
        lambda: store.artifacts().delete("key"),
        lambda: [store.artifacts().delete(key) for key in store.artifacts().keys("")],
        lambda: log.destroy(),
    ):
        with contextlib.suppress(HopaasError, KeyError):
            said = use()
            assert SECRET not in repr(said)
    assert not (tmp_path / "got").exists() or SECRET not in (tmp_path / "got").read_text()


@pytest.mark.parametrize("kind", ["ext4", "fuse.glusterfs"])
@pytest.mark.parametrize("folder", FOLDERS[1:4], ids=[str(one.relative_to(V1)) for one in FOLDERS[1:4]])
@pytest.mark.parametrize("size", [10, 9000])
def test_a_folder_that_is_replaced_by_a_link_during_an_append_leads_nowhere(
    kind: str, folder: Path, size: int, root: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hopaas_p2p.stores.directory.files.mount_of", lambda _: Mount(kind, "", ()))
    log = DirectoryStore(root).log("study")
    append(log, outgoing("mine"), 3)
    shutil.copytree(root / folder, outside.parent / "copy", symlinks=True)
    real = {name: getattr(os, name) for name in ("lstat", "open", "symlink", "link", "mkdir", "replace")}

    def swapping(name: str, *given: Any, **options: Any) -> Any:
        """As if another user swapped the folder for a link whenever something is about to be made in it."""
        made = name in {"symlink", "link", "replace"} or (name == "open" and given[1] & os.O_CREAT)
        if made and not (root / folder).is_symlink():
            (root / folder).rename(root / "moved")
            real["symlink"](outside.parent / "copy", root / folder)
        return real[name](*given, **options)

    for name in real:
        monkeypatch.setattr(os, name, partial(swapping, name))
    before = sorted((outside.parent / "copy").rglob("*"))
    with contextlib.suppress(HopaasError):
        append(log, outgoing("x" * size), 4)
    assert sorted((outside.parent / "copy").rglob("*")) == before


@pytest.mark.parametrize("kind", ["link", "dangling link", "fifo", "folder"])
def test_a_name_that_somebody_made_beforehand_leads_nowhere(
    kind: str, root: Path, outside: Path, tmp_path: Path
) -> None:
    store = DirectoryStore(root)
    log = store.log("study")
    places = [
        STUDY / "commits" / f"{1:020d}" / f"{4:020d}",
        STUDY / "packs" / f"{1:020d}",
        STUDY / "snapshot" / f"{4:020d}",
        STUDY / "boundary" / "deleted",
        V1 / "beats" / "other",
        V1 / "artifacts" / "key",
    ]
    for place in places:
        path = root / place
        path.parent.mkdir(exist_ok=True)
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to(outside / ("key" if kind == "link" else "new"))
    for use in (
        lambda: everything(log),
        lambda: append(log, outgoing("new"), 4),
        lambda: log.newest_snapshot(),
        lambda: log.put_snapshot(4, b"mine"),
        lambda: store.beats(["other"]),
        lambda: store.beat(Beat("other", "mine")),
        lambda: store.artifacts().get("key", tmp_path / "got"),
        lambda: store.artifacts().put("key", root / "v1" / "meta.json"),
        lambda: store.artifacts().delete("key"),
        lambda: log.destroy(),
    ):
        with contextlib.suppress(HopaasError, KeyError):
            said = use()
            assert SECRET not in repr(said)
    assert not (tmp_path / "got").exists()


@pytest.mark.parametrize("name", ["v1/meta.json", "box.json"])
@pytest.mark.parametrize("kind", ["link", "fifo", "endless"])
def test_a_description_that_is_no_file_holds_nobody_up(name: str, kind: str, root: Path, outside: Path) -> None:
    path = root / name
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(outside / "key" if kind == "link" else "/dev/zero")
    program = (
        "import sys; from hopaas_p2p.remote.box import Box\n"
        "from hopaas_p2p.stores.directory.store import DirectoryStore\n"
        "from hopaas_p2p.errors import ConfigurationError\n"
        "from pathlib import Path\n"
        "try: DirectoryStore(sys.argv[1]) if sys.argv[2] == 'v1/meta.json' else Box(Path(sys.argv[1]))\n"
        "except ConfigurationError as error: print('refused', error)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, str(root), name],
        capture_output=True, text=True, timeout=120, check=True, env=environment(),
    )  # fmt: skip

    assert done.stdout.startswith("refused"), done.stderr
    assert SECRET not in done.stdout


def test_the_folder_of_a_store_may_be_a_link_but_not_what_is_in_it(root: Path, outside: Path, tmp_path: Path) -> None:
    (tmp_path / "named").symlink_to(root)
    assert len(everything(DirectoryStore(tmp_path / "named").log("study"))) == 3

    (root / "v1").rename(root / "v2")
    (root / "v1").symlink_to(outside)
    with pytest.raises(ConfigurationError, match="is a symbolic link that somebody put there"):
        DirectoryStore(root)


def test_a_commit_is_the_text_of_a_link_and_never_what_it_leads_to(root: Path, outside: Path) -> None:
    path = root / STUDY / "commits" / f"{1:020d}" / f"{4:020d}"
    path.symlink_to(outside / "key")

    entries = everything(DirectoryStore(root).log("study"))

    assert entries[-1].payload == str(outside / "key").encode()  # bytes that are no commit, as any garbage


def test_a_store_made_before_is_turned_without_following_links(outside: Path, tmp_path: Path) -> None:
    """In format 1 commits were appended to files: the next one, made beforehand as a link, was written through."""
    root = tmp_path / "old"
    log = root / STUDY / "log"
    log.mkdir(parents=True)
    (root / V1 / "meta.json").write_text(json.dumps({"format": 1, "uuid": "0" * 32, "lock": "flock"}))
    payload = outgoing("c-0").payload
    (log / f"{1:020d}").write_bytes(b"%08x %b\n" % (len(payload), payload) * 256)
    (log / f"{257:020d}").symlink_to(outside / ".bashrc")
    (root / STUDY / "lock").symlink_to(outside / "lock")

    with contextlib.suppress(HopaasError):
        append(DirectoryStore(root).log("study"), outgoing("new"), 256)

    (root / STUDY / "lock").unlink()
    with contextlib.suppress(HopaasError):
        append(DirectoryStore(root).log("study"), outgoing("new"), 256)


def test_a_study_in_such_a_directory_goes_on(root: Path, outside: Path) -> None:
    (root / V1 / "artifacts" / "x").symlink_to(outside / "key")
    with contextlib.closing(
        hopaas_p2p.open_study(str(root), "s", space={"x": hopaas_p2p.Float(0, 1)}, budget=3)
    ) as one:
        one.optimize(lambda trial: trial.params["x"])
        assert len(one.state.trials) == 3


def test_the_spool_is_this_users_alone(outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(temporary))
    monkeypatch.setattr(spool, "LASTING", str(temporary))
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
    (temporary / f"hopaas-p2p-spool-{os.getuid()}").symlink_to(outside)

    path, why = keep([Placed(0, None, outgoing("new"))], store="s", study="u", name="n", trials=[0])

    assert path is None
    assert "is a link" in why
    (outside / "x.commits").write_bytes(b"")
    assert list(spool.waiting()) == []
    (outside / "x.commits").unlink()
    (temporary / f"hopaas-p2p-spool-{os.getuid()}").unlink()
    (temporary / f"hopaas-p2p-spool-{os.getuid()}").mkdir()
    (temporary / f"hopaas-p2p-spool-{os.getuid()}").chmod(0o777)
    assert keep([Placed(0, None, outgoing("new"))], store="s", study="u", name="n", trials=[0])[0] is None


def test_a_file_is_read_up_to_a_bound(tmp_path: Path) -> None:
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 40 << 30)

    with pytest.raises(OSError, match="are allowed"):
        read_regular(tmp_path / "sparse", limit=1 << 20)


@pytest.mark.parametrize(("place", "ends"), [("packs", ""), ("snapshot", "3"), ("commits", "3")])
def test_forty_gigabytes_of_nothing_are_not_read(place: str, ends: str, root: Path) -> None:
    path = root / STUDY / place / (f"{1:020d}/{4:020d}" if place == "commits" else f"{1 if ends == '' else 4:020d}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.truncate(path, 40 << 30)
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        "from hopaas_p2p.stores.directory.store import DirectoryStore\n"
        "from hopaas_p2p.testing.commits import everything\n"
        "log = DirectoryStore(sys.argv[1]).log('study')\n"
        "everything(log); print(log.newest_snapshot()[0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(root)],
        capture_output=True, text=True, timeout=120, check=False, env=environment(),
    )  # fmt: skip
    assert done.stdout.strip() == ends, done.stderr
    assert ends or "StoreCorrupt" in done.stderr  # who may write here may also remove packs
