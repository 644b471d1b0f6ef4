"""The directory store: cut at any byte, damaged, locked by the dead, deleted, misconfigured."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hopaas_p2p.errors import ConfigurationError, NewerFormat, StoreCorrupt, StoreUnreachable, StudyDeleted
from hopaas_p2p.stores.directory import lock as directory_lock
from hopaas_p2p.stores.directory import log as directory_log
from hopaas_p2p.stores.directory import store as directory
from hopaas_p2p.stores.directory.lock import hard_locks_work
from hopaas_p2p.stores.directory.log import DirectoryLog
from hopaas_p2p.stores.directory.store import DirectoryStore
from hopaas_p2p.stores.url import open_store
from hopaas_p2p.testing.commits import append, append_many, everything, outgoing

NOBODY = 65534


@pytest.fixture(params=["flock", "lockfile"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "lockfile":
        monkeypatch.setattr(directory, "hard_locks_work", lambda _: False)
    return str(request.param)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Does not wait for the disk, in tests of long logs."""
    monkeypatch.setattr(os, "fdatasync", lambda _: None)


def a_log(root: Path) -> DirectoryLog:
    return DirectoryStore(root).log("study")


def segment(root: Path, first: int = 1) -> Path:
    return root / "v1" / "study" / "study" / "log" / f"{first:020d}"


def bodies(log: DirectoryLog) -> list[bytes]:
    return [entry.payload[4:] for entry in everything(log)]


# --- cut at every byte -------------------------------------------------------------------------------------------


def frame_ends(data: bytes) -> list[int]:
    ends, position = [], 0
    while (end := directory_log._frame_end(data, position)) is not None:
        ends.append(end)
        position = end
    return ends


def test_a_log_cut_at_any_byte_of_its_last_five_commits_loses_no_commit_before_the_cut(tmp_path: Path) -> None:
    append_many(a_log(tmp_path), "commit", 8)
    file = segment(tmp_path)
    whole = file.read_bytes()
    ends = frame_ends(whole)
    assert len(ends) == 8
    for cut in range(ends[2], len(whole) + 1):
        file.write_bytes(whole[:cut])
        sound = sum(end <= cut for end in ends)

        (*before, own) = append(a_log(tmp_path), outgoing("new")).entries

        assert own.lsn == sound + 1
        assert [entry.payload for entry in before] == [outgoing(f"commit-{i}").payload for i in range(sound)]
        assert frame_ends(file.read_bytes())[-1] == file.stat().st_size
        assert bodies(a_log(tmp_path)) == [*[b"commit-%d" % i for i in range(sound)], b"new"]


def test_a_reader_of_a_log_cut_at_any_byte_sees_what_is_sound_and_changes_nothing(tmp_path: Path) -> None:
    append_many(a_log(tmp_path), "commit", 4)
    file = segment(tmp_path)
    whole = file.read_bytes()
    ends = frame_ends(whole)
    for cut in range(len(whole) + 1):
        file.write_bytes(whole[:cut])
        assert len(everything(a_log(tmp_path))) == sum(end <= cut for end in ends)
        assert file.read_bytes() == whole[:cut]


def test_a_reader_that_waits_at_a_torn_tail_goes_on_when_it_is_mended(tmp_path: Path) -> None:
    append_many(a_log(tmp_path), "commit", 3)
    reader, file = a_log(tmp_path), segment(tmp_path)
    file.write_bytes(file.read_bytes()[:-5])
    assert len(everything(reader)) == 2
    append(a_log(tmp_path), outgoing("new"))
    assert [entry.payload[4:] for entry in everything(reader, 2)] == [b"new"]


@pytest.mark.parametrize(
    "tail", [b"\0" * 4096, b"0000", b"garbage\n" * 9, b"\xff" * 70], ids=["zeros", "head", "text", "ff"]
)
def test_whatever_a_power_cut_leaves_at_the_end_is_written_over(tmp_path: Path, tail: bytes) -> None:
    append_many(a_log(tmp_path), "commit", 3)
    with segment(tmp_path).open("ab") as file:
        file.write(tail)
    assert append(a_log(tmp_path), outgoing("new")).entries[-1].lsn == 4
    assert len(bodies(a_log(tmp_path))) == 4


def test_another_process_goes_on_after_a_torn_tail(tmp_path: Path) -> None:
    append_many(a_log(tmp_path), "commit", 6)
    file = segment(tmp_path)
    file.write_bytes(file.read_bytes()[:-7])
    code = (
        "import sys\n"
        "from hopaas_p2p.stores.url import open_store\n"
        "from hopaas_p2p.testing.commits import append, outgoing\n"
        "print(append(open_store(sys.argv[1]).log('study'), outgoing('new')).entries[-1].lsn)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "6"
    assert bodies(a_log(tmp_path)) == [*[b"commit-%d" % i for i in range(5)], b"new"]


def test_a_process_that_is_killed_in_the_middle_of_a_write_loses_only_what_it_was_not_told_is_safe(
    tmp_path: Path,
) -> None:
    append_many(a_log(tmp_path), "commit", 3)
    code = (
        "import os, signal, sys\n"
        "from hopaas_p2p.stores.url import open_store\n"
        "from hopaas_p2p.testing.commits import append, outgoing\n"
        "write = os.pwrite\n"
        "def dying(fd, data, at):\n"
        "    write(fd, data[: len(data) // 2], at)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.pwrite = dying\n"
        "append(open_store(sys.argv[1]).log('study'), outgoing('never'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert segment(tmp_path).stat().st_size > frame_ends(segment(tmp_path).read_bytes())[-1]
    assert append(a_log(tmp_path), outgoing("new")).entries[-1].lsn == 4
    assert bodies(a_log(tmp_path)) == [b"commit-0", b"commit-1", b"commit-2", b"new"]


# --- damage ------------------------------------------------------------------------------------------------------


def test_damage_with_sound_commits_behind_it_is_told_and_nothing_is_written(tmp_path: Path) -> None:
    append_many(a_log(tmp_path), "commit", 5)
    file = segment(tmp_path)
    whole = file.read_bytes()
    first, second = frame_ends(whole)[:2]
    for position in range(first, second):
        damaged = whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :]
        file.write_bytes(damaged)
        with pytest.raises(StoreCorrupt, match=f"damaged at byte {first}"):
            append(a_log(tmp_path), outgoing("new"))
        with pytest.raises(StoreCorrupt, match="backup"):
            everything(a_log(tmp_path))
        assert file.read_bytes() == damaged


def test_a_hole_in_the_middle_is_damage(tmp_path: Path) -> None:
    append_many(a_log(tmp_path), "commit", 5)
    file = segment(tmp_path)
    whole = file.read_bytes()
    ends = frame_ends(whole)
    file.write_bytes(whole[: ends[0]] + whole[ends[0] + 3 :])
    with pytest.raises(StoreCorrupt):
        append(a_log(tmp_path), outgoing("new"))


@pytest.mark.usefixtures("hasty")
def test_a_segment_that_ends_early_with_another_behind_it_is_damage(tmp_path: Path) -> None:
    append_many(a_log(tmp_path), "commit", 260)
    file = segment(tmp_path)
    cut = file.read_bytes()[:-5]
    file.write_bytes(cut)
    with pytest.raises(StoreCorrupt):
        append(a_log(tmp_path), outgoing("new"))
    assert file.read_bytes() == cut


def test_a_log_that_became_shorter_than_what_was_read_is_damage(tmp_path: Path) -> None:
    log = a_log(tmp_path)
    append_many(log, "commit", 5)
    file = segment(tmp_path)
    file.write_bytes(file.read_bytes()[:30])
    with pytest.raises(StoreCorrupt, match="shorter"):
        log.exchange(outgoing("new"), 5)


def test_a_log_shorter_than_a_snapshot_of_it_is_damage(tmp_path: Path) -> None:
    append_many(a_log(tmp_path), "commit", 5)
    with pytest.raises(StoreCorrupt, match="snapshot"):
        a_log(tmp_path).exchange(outgoing("new"), 9)
    assert len(bodies(a_log(tmp_path))) == 5


# --- segments ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("hasty")
def test_a_new_file_begins_every_256_commits_whoever_writes(tmp_path: Path) -> None:
    logs = [a_log(tmp_path), a_log(tmp_path)]
    since = 0
    for number in range(600):
        since = append(logs[number % 2 if number % 5 else 0], outgoing(f"c-{number}"), since).entries[-1].lsn
    assert sorted(int(path.name) for path in segment(tmp_path).parent.iterdir()) == [1, 257, 513]
    assert [len(frame_ends(segment(tmp_path, n).read_bytes())) for n in (1, 257, 513)] == [256, 256, 88]
    expected = [b"c-%d" % i for i in range(600)]
    for since in (0, 1, 255, 256, 257, 300, 511, 512, 513, 599, 600):
        assert [entry.payload[4:] for entry in everything(a_log(tmp_path), since)] == expected[since:]


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("length", [254, 255, 256, 257, 258])
def test_a_log_that_ends_near_a_files_end_can_be_cut_anywhere_too(tmp_path: Path, length: int) -> None:
    append_many(a_log(tmp_path), "c", length)
    last = segment(tmp_path, 257 if length > 256 else 1)
    whole = last.read_bytes()
    for lost in range(1, 25):
        last.write_bytes(whole[:-lost] if lost < len(whole) else b"")
        sound = (256 if length > 256 else 0) + len(frame_ends(last.read_bytes()))
        assert append(a_log(tmp_path), outgoing(f"new-{lost}"), 0).entries[-1].lsn == sound + 1
        last.write_bytes(whole)


@pytest.mark.usefixtures("hasty")
def test_the_last_commit_of_a_file_sent_again_is_known(tmp_path: Path) -> None:
    append_many(a_log(tmp_path), "c", 256)
    for log in (a_log(tmp_path), a_log(tmp_path)):
        assert append(log, outgoing("c-255"), 250).entries[-1].lsn == 256
    assert len(bodies(a_log(tmp_path))) == 256


# --- the disk ----------------------------------------------------------------------------------------------------


def test_a_disk_that_takes_half_a_commit_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = a_log(tmp_path)
    append_many(log, "c", 2)
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:7], at))
    with pytest.raises(StoreUnreachable, match="full"):
        log.exchange(outgoing("new"), 2)
    monkeypatch.undo()
    assert log.exchange(outgoing("new"), 2).entries[-1].lsn == 3
    assert bodies(a_log(tmp_path)) == [b"c-0", b"c-1", b"new"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EFBIG, errno.EROFS])
def test_a_disk_in_trouble_is_a_store_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    log = a_log(tmp_path)
    append_many(log, "c", 2)

    def fails(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "pwrite", fails)
    with pytest.raises(StoreUnreachable, match="Nothing acknowledged is lost"):
        log.exchange(outgoing("new"), 2)


def test_a_commit_that_could_not_be_synced_is_synced_before_it_is_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = a_log(tmp_path)
    append_many(log, "c", 2)
    synced: list[int] = []
    fdatasync = os.fdatasync

    def fails_once(fd: int) -> None:
        synced.append(fd)
        if len(synced) == 1:
            raise OSError(errno.EIO, "disk on fire")
        fdatasync(fd)

    monkeypatch.setattr(os, "fdatasync", fails_once)
    with pytest.raises(StoreUnreachable):
        log.exchange(outgoing("new"), 2)
    assert log.exchange(outgoing("new"), 2).entries[-1].lsn == 3
    assert len(synced) == 2
    assert len(bodies(a_log(tmp_path))) == 3


def test_every_commit_is_synced_before_it_is_acknowledged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    fdatasync = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (sizes.append(os.fstat(fd).st_size), fdatasync(fd)))
    log = a_log(tmp_path)
    for number in range(3):
        log.exchange(outgoing(f"c-{number}"), number)
        assert sizes[-1] == segment(tmp_path).stat().st_size
    assert len(sizes) == 3


# --- the lock ----------------------------------------------------------------------------------------------------

_HOLDER = """
import os, sys, time
from hopaas_p2p.stores.directory import store as directory
if sys.argv[2] == "lockfile":
    directory.hard_locks_work = lambda _: False
from hopaas_p2p.stores.url import open_store
from hopaas_p2p.testing.commits import append, outgoing
def hold(fd):
    print("holding", flush=True)
    time.sleep(600)
os.fdatasync = hold
append(open_store(sys.argv[1]).log("study"), outgoing("held"))
"""


@pytest.fixture
def holder(tmp_path: Path, kind: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of the log in tmp_path, and will not let go."""
    append_many(a_log(tmp_path), "c", 2)
    command = [sys.executable, "-c", _HOLDER, str(tmp_path), kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holding\n"
        yield process
        process.kill()


def test_the_lock_of_a_killed_process_is_free(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.kill()
    holder.wait()
    assert append(a_log(tmp_path), outgoing("new")).entries[-1].lsn == 4
    assert bodies(a_log(tmp_path)) == [b"c-0", b"c-1", b"held", b"new"]


def test_a_lock_that_is_held_for_too_long_is_a_store_out_of_reach(
    holder: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory_lock, "_LOCK_TIMEOUT", 0.2)
    before = segment(tmp_path).read_bytes()
    with pytest.raises(StoreUnreachable, match="held by another writer"):
        a_log(tmp_path).exchange(outgoing("new"), 0)
    assert segment(tmp_path).read_bytes() == before


def test_a_reader_does_not_wait_for_a_writer(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    assert len(everything(a_log(tmp_path))) >= 2


def test_a_soft_lock_is_chosen_where_flock_does_not_exclude(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_lock.filelock, "lock_descriptor", lambda _fd, blocking: True)
    assert not hard_locks_work(tmp_path)
    store = DirectoryStore(tmp_path)
    assert json.loads((tmp_path / "v1" / "meta.json").read_text())["lock"] == "lockfile"
    assert append_many(store.log("study"), "c", 3) == [1, 2, 3]


def test_a_soft_lock_is_chosen_where_flock_is_not_supported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(_fd: int, *, blocking: bool) -> bool:
        raise OSError(errno.ENOTSUP, "not on this file system")

    monkeypatch.setattr(directory_lock.filelock, "lock_descriptor", unsupported)
    assert not hard_locks_work(tmp_path)


@pytest.mark.parametrize("option", ["nolock", "local_lock=all", "local_lock=flock", "localflock"])
def test_a_soft_lock_is_chosen_where_flock_excludes_on_one_node_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    mounts = tmp_path / "mountinfo"
    point = str(tmp_path / "with space").replace(" ", "\\040")
    mounts.write_text(
        f"22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n30 22 0:40 / {point} rw - nfs4 server:/x rw,vers=4.2,{option}\n"
    )
    (tmp_path / "with space").mkdir()
    options = directory_lock._mount_options(tmp_path / "with space", mounts)
    assert option in options
    assert option not in directory_lock._mount_options(tmp_path, mounts)
    monkeypatch.setattr(directory_lock, "_mount_options", lambda _: options)
    assert not hard_locks_work(tmp_path)


def test_the_kind_of_lock_is_decided_once_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(directory, "hard_locks_work", lambda _: False)
        DirectoryStore(tmp_path)
    assert not DirectoryStore(tmp_path)._hard


def test_a_node_on_which_flock_does_not_exclude_is_kept_out_of_a_store_that_relies_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    DirectoryStore(tmp_path)
    monkeypatch.setattr(directory, "hard_locks_work", lambda _: False)
    with pytest.raises(ConfigurationError, match="mount"):
        DirectoryStore(tmp_path)


def test_a_lock_file_of_a_node_that_died_is_broken_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "hard_locks_work", lambda _: False)
    monkeypatch.setattr(directory_lock, "_LOCK_LIFETIME", 0.5)
    append_many(a_log(tmp_path), "c", 2)
    (tmp_path / "v1" / "study" / "study" / "lock").write_text("4242\na-node-that-is-no-more\n")
    assert append(a_log(tmp_path), outgoing("new")).entries[-1].lsn == 3


def test_a_writer_that_slept_on_its_lock_file_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "hard_locks_work", lambda _: False)
    log = a_log(tmp_path)
    append_many(log, "c", 2)
    before = segment(tmp_path).read_bytes()
    monkeypatch.setattr(directory_lock, "_LOCK_LIFETIME", 0.0)
    with pytest.raises(StoreUnreachable, match="too long"):
        log.exchange(outgoing("new"), 2)
    assert segment(tmp_path).read_bytes() == before


def test_a_child_does_not_inherit_its_parents_lock(tmp_path: Path, kind: str) -> None:
    store = DirectoryStore(tmp_path)
    log = store.log("study")
    append_many(log, "c", 1)
    inside, forked = threading.Event(), threading.Event()
    fdatasync = os.fdatasync

    def slow(fd: int) -> None:
        inside.set()
        assert forked.wait(30)
        fdatasync(fd)

    directory.os.fdatasync, restore = slow, fdatasync  # type: ignore[attr-defined]
    try:
        writer = threading.Thread(target=lambda: log.exchange(outgoing("parent"), 1))
        writer.start()
        assert inside.wait(30)
        child = os.fork()
        if child == 0:
            directory.os.fdatasync = restore  # type: ignore[attr-defined]
            store.after_fork()
            os._exit(0 if append(log, outgoing("child"), 1).entries[-1].lsn == 3 else 1)
        forked.set()
        writer.join(30)
    finally:
        directory.os.fdatasync = restore  # type: ignore[attr-defined]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert bodies(a_log(tmp_path)) == [b"c-0", b"parent", b"child"]


# --- deletion ----------------------------------------------------------------------------------------------------


def test_a_zombie_of_a_deleted_study_is_told_whatever_it_does(tmp_path: Path, kind: str) -> None:
    zombie, sleeper = a_log(tmp_path), a_log(tmp_path)
    append_many(zombie, "c", 3)
    everything(sleeper)
    store = DirectoryStore(tmp_path)
    store.log("study").destroy()

    assert zombie.changed(3)
    with pytest.raises(StudyDeleted):
        zombie.exchange(outgoing("late"), 3)
    assert sleeper.changed(3)
    with pytest.raises(StudyDeleted):
        sleeper.exchange(None, 3)
    assert not segment(tmp_path).exists()


def test_a_store_that_is_not_mounted_is_not_a_deleted_study(tmp_path: Path, kind: str) -> None:
    store = DirectoryStore(tmp_path / "mount")
    log = store.log("study")
    append_many(log, "c", 3)
    (tmp_path / "mount").rename(tmp_path / "elsewhere")
    (tmp_path / "mount").mkdir()
    store.close()
    for commit in (outgoing("new"), None):
        with pytest.raises(StoreUnreachable):
            log.exchange(commit, 3)
    with pytest.raises(StoreUnreachable, match="mounted"):
        store.log("another").exchange(outgoing("new"), 0)
    assert list((tmp_path / "mount").iterdir()) == []
    (tmp_path / "mount").rmdir()
    (tmp_path / "elsewhere").rename(tmp_path / "mount")
    assert log.exchange(outgoing("new"), 3).entries[-1].lsn == 4


# --- what cannot be a store --------------------------------------------------------------------------------------


def test_a_file_where_the_directory_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ConfigurationError, match="is a file; a store is a directory"):
        open_store(str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "precious"


def test_a_file_where_a_parent_of_the_directory_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ConfigurationError, match="there is no directory"):
        open_store(str(tmp_path / "file" / "store"))
    assert (tmp_path / "file").read_text() == "precious"


def test_below_a_directory_that_is_not_there_no_store_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is its file system mounted"):
        open_store(str(tmp_path / "not-mounted" / "store"))
    assert not any(tmp_path.iterdir())


def test_a_directory_that_is_no_store_is_left_alone_when_none_is_to_be_created(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no store"):
        open_store(str(tmp_path), create=False)
    assert list(tmp_path.iterdir()) == []


_AS_NOBODY = """
import os, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
from hopaas_p2p.errors import HopaasError
from hopaas_p2p.stores.url import open_store
from hopaas_p2p.testing.commits import everything, outgoing
try:
    log = open_store(sys.argv[1]).log("study")
    print(len(everything(log)), log.newest_snapshot() is not None)
    if len(sys.argv) > 2:
        print([entry.lsn for entry in everything(open_store(sys.argv[1]).log("study"), int(sys.argv[2]))])
    log.exchange(outgoing("new"), 0)
except HopaasError as error:
    print(type(error).__name__, error)
"""


def as_nobody(*arguments: str) -> str:
    if os.getuid() != 0:
        pytest.skip("needs root to become somebody else")
    # imported before the rights are dropped: the checkout may be readable by its owner only
    code = "import hopaas_p2p.stores.directory.store, hopaas_p2p.testing.commits\n" + _AS_NOBODY
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.stdout


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A directory that anybody may reach."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_directory_that_may_not_be_read(open_to_all: Path) -> None:
    append_many(a_log(open_to_all / "store"), "c", 3)
    (open_to_all / "store").chmod(0o700)
    assert as_nobody(str(open_to_all / "store")).startswith("ConfigurationError cannot use")


def test_a_directory_that_may_not_be_created(open_to_all: Path) -> None:
    said = as_nobody(str(open_to_all / "store"))
    assert said.startswith("ConfigurationError cannot use")
    assert "Permission denied" in said


@pytest.mark.usefixtures("hasty")
def test_who_may_only_read_reads_all_and_is_told_when_it_writes(open_to_all: Path) -> None:
    append_many(a_log(open_to_all), "c", 300)
    a_log(open_to_all).put_snapshot(256, b"snapshot")
    read, tail, wrote = as_nobody(str(open_to_all), "298").splitlines()
    assert (read, tail) == ("300 True", "[299, 300]")
    assert wrote.startswith("StoreUnreachable")
    assert "Permission denied" in wrote


def test_files_of_a_store_may_be_shared_with_a_group_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        append_many(a_log(tmp_path), "c", 1)
    finally:
        os.umask(before)
    assert stat.S_IMODE(segment(tmp_path).stat().st_mode) == 0o664


@pytest.mark.parametrize(
    "text",
    ["", "not json", "[]", "7", "null", "{}", '{"format": "new"}', '{"format": null}', "[" * 100_000, "\ufffe"],
    ids=["empty", "text", "list", "number", "null", "nothing in it", "format text", "no format", "deep", "binary"],
)
def test_a_description_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    append_many(a_log(tmp_path), "c", 1)
    (tmp_path / "v1" / "meta.json").write_text(text)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        open_store(str(tmp_path))
    assert (tmp_path / "v1" / "meta.json").read_text() == text


@pytest.mark.parametrize("said", [{"format": 2}, {"format": 99, "lock": "quantum"}, {"format": 2, "lock": "flock"}])
def test_a_store_of_a_newer_version_is_left_alone(tmp_path: Path, said: dict[str, object]) -> None:
    append_many(a_log(tmp_path), "c", 1)
    (tmp_path / "v1" / "meta.json").write_text(json.dumps(said))
    before = sorted(path for path in tmp_path.rglob("*"))
    with pytest.raises(NewerFormat, match="upgrade"):
        open_store(str(tmp_path))
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_a_lock_of_a_kind_nobody_knows(tmp_path: Path) -> None:
    append_many(a_log(tmp_path), "c", 1)
    (tmp_path / "v1" / "meta.json").write_text('{"format": 1, "lock": "quantum"}')
    with pytest.raises(ConfigurationError, match="quantum"):
        open_store(str(tmp_path))


def test_a_study_of_an_impossible_uuid_is_refused(tmp_path: Path) -> None:
    for uuid in ("../../etc", "", "a/b", "a" * 65, ".."):
        with pytest.raises(StoreCorrupt):
            DirectoryStore(tmp_path).log(uuid)


# --- URLs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["redis://host/0", "http://host", "ftp://x", "://x", "sqlite:///x.db"])
def test_an_unknown_scheme_is_told_with_the_known_ones(url: str) -> None:
    with pytest.raises(ConfigurationError, match="memory://"):
        open_store(url)


def test_a_password_in_a_url_is_never_shown() -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_store("redis://ann:s3cr3t@host/0")
    assert "s3cr3t" not in str(caught.value)
    assert "***" in str(caught.value)


def test_a_file_url_and_a_path_are_the_same_store(tmp_path: Path) -> None:
    append_many(open_store(str(tmp_path / "ä store")).log("study"), "c", 1)  # type: ignore[arg-type]
    url = (tmp_path / "ä store").as_uri()
    assert len(everything(open_store(url).log("study"))) == 1
    assert open_store(url).url == url


def test_a_file_url_with_a_host_is_a_typing_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="three slashes"):
        open_store("file://shared/campaign")
