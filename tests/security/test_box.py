"""The folder through which a store is served: who on the node may read and write there."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import hopaas_p2p
from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.remote import protocol
from hopaas_p2p.remote.box import Box
from hopaas_p2p.remote.client import RemoteStore
from hopaas_p2p.remote.protocol import StoreRequest
from hopaas_p2p.stores.base import read_all
from hopaas_p2p.stores.directory.store import DirectoryStore
from hopaas_p2p.testing.commits import append, outgoing
from tests.support.box_world import STUDY, World, world
from tests.support.processes import as_nobody, until
from tests.support.served import FolderProcess


def test_a_folder_that_a_server_makes_is_its_users_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = os.umask(0)
    try:
        Box.make(tmp_path / "box", "file:///far")
    finally:
        os.umask(before)

    assert (tmp_path / "box").stat().st_mode & 0o777 == 0o700
    assert caplog.text == ""


@pytest.mark.parametrize(("mode", "who"), [(0o770, "its group"), (0o755, "every user"), (0o700, None)])
def test_of_a_folder_that_others_may_enter_the_server_warns(
    mode: int, who: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "box").mkdir()
    (tmp_path / "box").chmod(mode)

    Box.make(tmp_path / "box", "file:///far")

    assert (f"is open to {who}" in caplog.text) if who else (caplog.text == "")
    assert (tmp_path / "box").stat().st_mode & 0o777 == mode  # it is the user's choice


def test_somebody_who_may_only_read_there_is_told_so_at_once(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    (tmp_path / "box").mkdir()
    box = Box.make(tmp_path / "box", "file:///far")

    said = as_nobody(
        """
        import sys
        from hopaas_p2p.errors import Denied
        from hopaas_p2p.open import open_store
        try:
            open_store(sys.argv[1]).catalog().exchange(None, 0)
        except Denied as error:
            print(error)
        """,
        box.url,
    )

    assert said.startswith("you may not write to ")


def test_no_link_in_the_folder_leads_a_server_or_a_peer_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2")
    box = Box.make(tmp_path / "box", "file:///far")
    for folder in ("requests", "answers", "files"):
        (tmp_path / "box" / folder).mkdir()
        (tmp_path / "box" / folder / "name").symlink_to(tmp_path / "secret")

    found = box.request("name")
    assert found is not None
    assert b"hunter2" not in found.data
    assert not box.objects.download("files/name", tmp_path / "got")
    box.answer("name", b"x")
    assert (tmp_path / "secret").read_text() == "hunter2"


@contextlib.contextmanager
def _served(folder: Path, store: str) -> Iterator[FolderProcess]:
    hopaas_p2p.open_storage(str(folder / store)).close()
    server = FolderProcess(folder / "box", str(folder / store), folder).start()
    try:
        yield server
    finally:
        server.kill()


def _works(made: World) -> None:
    """Whoever asks through the folder is answered."""
    store = made.store(timeout=20.0)
    append(store.log(STUDY), outgoing(f"w{time.monotonic_ns()}"))
    store.artifacts().put(f"{STUDY}/file", Path(__file__))
    assert store.artifacts().keys(f"{STUDY}/")


@pytest.mark.parametrize("folder", ["requests", "answers", "files", "beats"])
def test_folders_in_each_other_end_no_server(tmp_path: Path, folder: str) -> None:
    with world(tmp_path) as made:
        _works(made)
        server = made.servers[0]
        path = os.open(made.box / folder, os.O_RDONLY)
        for _ in range(2500):  # longer than a path may be
            os.mkdir("d", dir_fd=path)
            above, path = path, os.open("d", os.O_RDONLY, dir_fd=path)
            os.close(above)
        os.close(path)
        made.store().connections.sweep(f"beats/{server.server._id}")  # type: ignore[union-attr]
        _works(made)
        assert made.servers == [server]
        subprocess.run(["rm", "-rf", made.box / folder / "d"], check=True)


def test_what_is_no_request_is_removed_and_keeps_nobody_waiting(tmp_path: Path) -> None:
    with world(tmp_path) as made:
        _works(made)
        requests = made.box / "requests"
        os.mkfifo(requests / "0-fifo")
        with socket.socket(socket.AF_UNIX) as left_behind, contextlib.chdir(requests):  # a socket's path has 100 bytes
            left_behind.bind("0-socket")
        for number in range(2000):
            (requests / f"0-{number}").touch()
        _works(made)
        until(lambda: not made.waiting(), 60)


def test_what_the_server_may_not_read_is_refused_and_not_tried_for_ever() -> None:
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o777)
        said = as_nobody(
            """
            import sys
            from pathlib import Path
            from hopaas_p2p.errors import Denied
            from hopaas_p2p.remote import protocol
            from tests.support.box_world import world
            from tests.support.processes import until
            with world(Path(sys.argv[1])) as made:
                made.store(timeout=20.0).catalog().exchange(None, 0)
                for folder in ("requests", "files", "answers"):
                    (made.box / folder).mkdir(exist_ok=True)
                (made.box / "requests" / "0-closed").touch(mode=0)
                (made.box / "files" / "0-file").touch(mode=0)
                objects = made.servers[0].server.box.objects
                objects.put_new("requests/0-file", protocol.encode(protocol.StoreRequest("put", "s/file")))
                until(lambda: not made.waiting(), 60)
                for name in ("0-closed", "0-file"):
                    def answer():
                        found = objects.get(f"answers/{name}", limit=1 << 20)
                        return found and found.data  # a name is visible before its bytes are
                    try:
                        protocol.result_of("put", until(answer, 60))
                    except Denied:
                        print("refused", name)
            """,
            place,
        )
    assert said.split("\n") == ["refused 0-closed", "refused 0-file", ""]


def test_a_file_with_hardly_anything_in_it_is_not_carried(tmp_path: Path) -> None:
    """It would fill the disk of the server's node, and the store."""
    with _served(tmp_path, "store"):
        box = Box(tmp_path / "box")
        (tmp_path / "box/files").mkdir(exist_ok=True)
        for size, takes in ((1 << 40, False), (8 << 20, True)):
            request = StoreRequest("put", f"{STUDY}/file/{'ab' * 16}")
            name = box._name(request)
            with (tmp_path / "box/files" / name).open("wb") as file:
                file.write(b"a few bytes")
                file.truncate(size)
            with contextlib.nullcontext() if takes else pytest.raises(InvalidInput, match="mostly holes"):
                box._result_of(request, name)
        assert not list((tmp_path / "box/files").iterdir())


def test_requests_take_only_so_much_memory_at_once(tmp_path: Path) -> None:
    """One file of 60 MB that takes 4 kB of the disk, under 40 names."""
    with _served(tmp_path, "store") as server:
        assert server.process is not None
        head = protocol.encode(StoreRequest("put_block", STUDY, ("block", b"")))[:-2] + b"\xc6"
        (tmp_path / "large").write_bytes(head + (60 << 20).to_bytes(4, "big"))
        os.truncate(tmp_path / "large", len(head) + 4 + (60 << 20))
        box = Box(tmp_path / "box")
        append(RemoteStore(box.url).log(STUDY), outgoing("w"))
        for number in range(40):
            (tmp_path / "box/requests" / f"m{number}").hardlink_to(tmp_path / "large")
        until(lambda: len(box.requests()) < 35, 60)
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        assert int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) < 1 << 20  # kB


@pytest.mark.parametrize("key", ["n" * 255, "n" * 300, f"{STUDY}/file/below"])
def test_a_file_that_has_no_place_holds_up_no_other(tmp_path: Path, key: str) -> None:
    far = DirectoryStore(tmp_path / "far")
    with world(tmp_path) as made:
        made.far_side.inner = far
        _works(made)
        with pytest.raises(InvalidInput):
            made.store().artifacts().put(key, Path(__file__))
        for call in ("get", "keys", "delete"):
            with contextlib.suppress(InvalidInput, KeyError):
                made.store().connections.ask(call, place=key)
        began = time.monotonic()
        made.settled()
        _works(made)
        assert time.monotonic() - began < 2.0


def test_a_server_reads_the_beats_of_so_many_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does so once a second, before it looks for requests."""
    box = Box.make(tmp_path / "box", "file:///far")
    box.objects.put("beats/one", b"1")
    for number in range(1000):
        (tmp_path / "box" / "beats" / f"b{number}").write_bytes(b"1")
    read = []
    get = box.objects.get
    monkeypatch.setattr(box.objects, "get", lambda key, **named: read.append(key) or get(key, **named))
    assert len(box.beats()) == len(read) <= 100


def test_what_was_copied_of_another_store_is_not_answered(tmp_path: Path) -> None:
    for secret in ("first", "second"):
        with _served(tmp_path, secret):
            store = RemoteStore(Box(tmp_path / "box").url)
            for number in range(3 if secret == "first" else 1):
                append(store.catalog(), outgoing(f"{secret}{number}"))
            said = b"".join(one.payload for one in read_all(store.catalog()))
        assert secret.encode() in said
        shutil.rmtree(tmp_path / "box")
    assert b"first" not in said


def test_a_folder_of_another_users_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "box").mkdir(mode=0o700)
    os.chown(tmp_path / "box", 65534, -1)
    Box.make(tmp_path / "box", "file:///far")
    assert "is open to its owner, who is somebody else" in caplog.text
