"""The directory store: write-once names, packs, deletion, stores made before, misconfiguration."""

from __future__ import annotations

import base64
import errno
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace
from optuna.study import StudyDirection

import hopaas_p2p
from hopaas_p2p.core import codec
from hopaas_p2p.core.records import Commit
from hopaas_p2p.errors import (
    BrokenChain,
    ConfigurationError,
    Denied,
    InvalidInput,
    NewerFormat,
    StoreCorrupt,
    StoreUnreachable,
    StudyDeleted,
)
from hopaas_p2p.open import open_store
from hopaas_p2p.stores.base import Beat, Outgoing
from hopaas_p2p.stores.directory import files, packs
from hopaas_p2p.stores.directory.files import Directory
from hopaas_p2p.stores.directory.log import FolderLog
from hopaas_p2p.stores.directory.mounts import Mount, mount_of
from hopaas_p2p.stores.directory.store import DirectoryStore
from hopaas_p2p.stores.objects.contract import Found
from hopaas_p2p.stores.objects.log import clocks
from hopaas_p2p.stores.objects.scheduler import SpreadScheduler
from hopaas_p2p.testing.commits import append, append_many, everything, outgoing, study_snapshot
from tests.support.processes import as_nobody, campaign

STUDY = Path("v1/study/study")


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Does not wait for the disk, in tests of long logs."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def a_log(root: Path) -> FolderLog:
    return DirectoryStore(root).log("study")


def single(root: Path, lsn: int) -> Path:
    return root / STUDY / "commits" / f"{packs.first_of(lsn):020d}" / f"{lsn:020d}"


def pack(root: Path, lsn: int) -> Path:
    return root / STUDY / "packs" / f"{packs.first_of(lsn):020d}"


def bodies(log: FolderLog) -> list[bytes]:
    return [entry.payload[4:] for entry in everything(log)]


def names(count: int, since: int = 0) -> list[bytes]:
    return [b"c-%d" % number for number in range(since, count)]


def make_old(*paths: Path) -> None:
    """As if minutes had passed on the file system's clock."""
    for path in paths:
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 3600))


# --- write-once names --------------------------------------------------------------------------------------------


def test_a_commit_is_the_text_of_a_link_that_is_never_followed(tmp_path: Path) -> None:
    append_many(a_log(tmp_path), "c", 2)
    text = str(single(tmp_path, 2).readlink())
    assert text.isprintable()
    assert base64.urlsafe_b64decode(text.removeprefix("hopaas:")) == outgoing("c-1").payload


def test_a_tool_that_follows_a_link_finds_nothing_and_no_error(tmp_path: Path) -> None:
    append(a_log(tmp_path), outgoing("long", 2_900))
    assert len(str(single(tmp_path, 1).readlink())) > 3_800
    assert not single(tmp_path, 1).exists()
    assert len(bodies(a_log(tmp_path))[0]) == 2_904


@pytest.mark.parametrize("size", [2_900, 3_100, 100_000])
def test_a_commit_of_any_size_is_one_object(tmp_path: Path, size: int) -> None:
    append(a_log(tmp_path), outgoing("large", size))
    assert bodies(a_log(tmp_path)) == [b"large" + b"." * size]
    beside = [path.name for path in single(tmp_path, 1).parent.iterdir() if path.name.startswith(".")]
    assert len(beside) == (0 if size < 3_000 else 1)


def test_a_file_system_that_takes_short_links_only_gets_files_for_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    symlink = os.symlink

    def as_on_xfs(text: str, path: Any, *rest: Any, **options: Any) -> None:
        if len(text) > 1023:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        symlink(text, path, *rest, **options)

    monkeypatch.setattr(os, "symlink", as_on_xfs)
    log = a_log(tmp_path)
    for lsn, size in enumerate((100, 2_000, 100, 2_000)):
        assert log.exchange(outgoing(f"c-{lsn}", size), lsn).entries[-1].lsn == lsn + 1
    assert [len(body) for body in bodies(a_log(tmp_path))] == [103, 2_003, 103, 2_003]


def test_of_two_that_come_second_with_large_commits_nothing_is_left(tmp_path: Path) -> None:
    first, second = a_log(tmp_path), a_log(tmp_path)
    everything(second)
    append(first, outgoing("first", 10_000))
    append(second, outgoing("second", 10_000))
    beside = [path for path in single(tmp_path, 1).parent.iterdir() if path.name.startswith(".")]
    assert len(beside) == 2
    assert sorted(single(tmp_path, lsn).readlink().name for lsn in (1, 2)) == sorted(path.name for path in beside)


@pytest.mark.parametrize(
    "text", ["/etc/passwd", "hopaas:not base64!", ".x.000000000000/../../../meta.json", "x" * 4000]
)
def test_a_link_that_is_not_ours_is_content_and_is_not_followed(tmp_path: Path, text: str) -> None:
    append_many(a_log(tmp_path), "c", 1)
    single(tmp_path, 2).symlink_to(text)
    assert [entry.payload for entry in everything(a_log(tmp_path))][1] == text.encode()


def test_a_file_a_pipe_or_a_folder_in_the_place_of_a_commit_holds_nobody_up(tmp_path: Path) -> None:
    append_many(a_log(tmp_path), "c", 1)
    os.mkfifo(single(tmp_path, 2))
    single(tmp_path, 3).mkdir()
    single(tmp_path, 4).write_bytes(b"a file")
    assert [entry.payload for entry in everything(a_log(tmp_path), 1)] == [b"", b"", b"a file"]
    assert append(a_log(tmp_path), outgoing("new")).entries[-1].lsn == 5


def test_a_missing_commit_with_others_behind_it_is_damage_and_nothing_is_written(tmp_path: Path) -> None:
    append_many(a_log(tmp_path), "c", 5)
    single(tmp_path, 3).unlink()
    for commit in (None, outgoing("new")):
        with pytest.raises(StoreCorrupt, match="dangling links"):
            a_log(tmp_path).exchange(commit, 0)
    assert not single(tmp_path, 3).is_symlink()


def test_a_commit_that_goes_missing_behind_the_end_that_was_seen_is_noticed(tmp_path: Path) -> None:
    log = a_log(tmp_path)
    append_many(log, "c", 5)
    single(tmp_path, 4).unlink()
    with pytest.raises(StoreCorrupt, match="dangling links"):
        log.exchange(outgoing("new"), 2)
    assert not single(tmp_path, 4).is_symlink()


def test_a_reader_a_few_commits_behind_an_end_that_was_seen_lists_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a server reads for its peers, each of which is behind the others."""
    log = a_log(tmp_path)
    append_many(log, "c", 20)
    monkeypatch.setattr(os, "scandir", None)
    assert len(log.exchange(None, 10).entries) == 10
    assert len(log.exchange(outgoing("new"), 15).entries) == 6


def test_a_folder_that_cannot_be_looked_at_is_not_taken_for_a_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = a_log(tmp_path)
    append_many(log, "a", 5)
    folder, stat_ = str(single(tmp_path, 1).parent), os.stat

    def fails(path: Any, *args: Any, **options: Any) -> os.stat_result:
        if path == folder:
            raise OSError(errno.EIO, "Input/output error")
        return stat_(path, *args, **options)

    monkeypatch.setattr(os, "stat", fails)
    with pytest.raises(StoreUnreachable, match="Input/output error"):
        log.exchange(None, 5)


def test_a_log_whose_first_commits_are_gone_is_damage_and_not_an_empty_study(tmp_path: Path) -> None:
    append_many(a_log(tmp_path), "c", 5)
    single(tmp_path, 1).unlink()
    with pytest.raises(StoreCorrupt):
        everything(a_log(tmp_path))


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("gone", ["link", "pack"])
def test_a_range_that_begins_with_a_missing_commit_is_damage_and_nothing_is_written(tmp_path: Path, gone: str) -> None:
    append_many(a_log(tmp_path), "c", 300 if gone == "link" else 520)
    if gone == "link":
        single(tmp_path, 257).unlink()
    else:
        a_log(tmp_path).objects.remove_folder(f"study/study/commits/{257:020d}")
        pack(tmp_path, 257).unlink()
        a_log(tmp_path).objects.remove_folder(f"study/study/commits/{513:020d}")
        pack(tmp_path, 513).write_bytes(b"")
    for since in (0, 256):
        with pytest.raises(StoreCorrupt, match="is missing"):
            a_log(tmp_path).exchange(outgoing("new"), since)
    assert not single(tmp_path, 257).is_symlink()


def test_a_file_that_somebody_left_among_the_commits_is_no_commit(tmp_path: Path) -> None:
    for folder in ("commits", "packs"):
        (tmp_path / STUDY / folder).mkdir(parents=True)
        (tmp_path / STUDY / folder / "nohup.out").write_text("left here")
    append_many(a_log(tmp_path), "c", 2)
    (single(tmp_path, 1).parent / "nohup.out").write_text("left here")
    assert append(a_log(tmp_path), outgoing("new")).entries[-1].lsn == 3


def test_a_writer_whose_range_is_gone_without_a_pack_is_told_and_does_not_begin_it_anew(tmp_path: Path) -> None:
    log = a_log(tmp_path)
    append_many(log, "c", 3)
    (tmp_path / STUDY / "commits").rename(tmp_path / "elsewhere")
    with pytest.raises(BrokenChain, match="commit 3, which a peer has read, is gone from the log"):
        log.exchange(outgoing("new"), 3)
    assert not single(tmp_path, 1).parent.exists()
    (tmp_path / "elsewhere").rename(tmp_path / STUDY / "commits")
    assert log.exchange(outgoing("new"), 3).entries[-1].lsn == 4


# --- the disk ----------------------------------------------------------------------------------------------------


_TROUBLE = ("ENOSPC", "EDQUOT", "EIO", "ESTALE", "EFBIG", "EROFS", "EMFILE", "ENOMEM", "ETIMEDOUT", "EREMOTEIO")


@pytest.mark.parametrize("size", [0, 10_000], ids=["link", "file"])
@pytest.mark.parametrize("code", [getattr(errno, name) for name in _TROUBLE], ids=_TROUBLE)
def test_a_disk_in_trouble_is_a_store_out_of_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, size: int
) -> None:
    log = a_log(tmp_path)
    log._timeout = 0.1
    append_many(log, "c", 2)

    def fails(*_: object, **__: object) -> int:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write" if size else "symlink", fails)
        with pytest.raises(StoreUnreachable, match="Nothing acknowledged is lost"):
            log.exchange(outgoing("new", size), 2)
    assert log.exchange(outgoing("new", size), 2).entries[-1].lsn == 3
    assert [body[:3] for body in bodies(a_log(tmp_path))] == [b"c-0", b"c-1", b"new"]


@pytest.mark.parametrize("size", [0, 10_000], ids=["link", "file"])
def test_an_answer_that_is_lost_is_settled_by_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """As with a soft mount: the server did it, and the call ended with an error."""
    log = a_log(tmp_path)
    append_many(log, "c", 2)
    symlink, calls = os.symlink, []

    def loses_its_answer(*arguments: Any, **options: Any) -> None:
        calls.append(arguments)
        symlink(*arguments, **options)
        if len(calls) == 1:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "symlink", loses_its_answer)
    assert log.exchange(outgoing("new", size), 2).entries[-1].lsn == 3
    assert len(calls) == 1
    assert [body[:3] for body in bodies(a_log(tmp_path))] == [b"c-0", b"c-1", b"new"]


@pytest.mark.parametrize("size", [0, 10_000])
def test_a_commit_whose_folder_could_not_be_synced_is_written_anew_before_it_is_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Linux takes what it could not write for written after it has said so once: the next sync succeeds."""
    log = a_log(tmp_path)
    append_many(log, "c", 2)
    fsync, symlink = os.fsync, os.symlink
    calls: list[str] = []

    def fails_once(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            calls.append("sync")
            if calls.count("sync") == 1:
                raise OSError(errno.EIO, "disk on fire")
        fsync(fd)

    def noted(text: str, path: str, **options: Any) -> None:
        calls.append("link")
        symlink(text, path, **options)

    monkeypatch.setattr(os, "fsync", fails_once)
    monkeypatch.setattr(os, "symlink", noted)
    assert log.exchange(outgoing("new", size), 2).entries[-1].lsn == 3
    assert calls == ["link", "sync", "link", "sync"]
    assert len(bodies(a_log(tmp_path))) == 3
    assert len([one for one in single(tmp_path, 3).parent.iterdir() if not one.name.startswith(".")]) == 3


@pytest.mark.parametrize("size", [0, 10_000])
def test_a_commit_that_took_a_name_which_a_failed_sync_has_lost_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """The next range begins behind it, and makes the last name before it safe."""
    theirs: list[str] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda _: None)
    log, other = a_log(tmp_path), a_log(tmp_path)
    append_many(log, "c", packs.SPAN - 1)

    def fails_once(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode) and not theirs:
            theirs.append("")
            single(tmp_path, packs.SPAN).unlink()
            other.exchange(outgoing("theirs"), packs.SPAN - 1)
            theirs[0] = str(single(tmp_path, packs.SPAN).readlink())
            raise OSError(errno.EIO, "disk on fire")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", fails_once)
    assert log.exchange(outgoing("mine", size), packs.SPAN - 1).entries[-1].lsn == packs.SPAN + 1
    assert str(single(tmp_path, packs.SPAN).readlink()) == theirs[0]
    assert [body[:6] for body in bodies(a_log(tmp_path))[-2:]] == [b"theirs", outgoing("mine", size).payload[4:10]]


@pytest.mark.parametrize("failing", ["fsync", "close"])
def test_after_an_error_of_sync_or_close_the_same_pages_are_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    log = a_log(tmp_path)
    append_many(log, "c", 2)
    real, failed = getattr(os, failing), []

    def fails_for_the_first_file(fd: int) -> None:
        regular = stat.S_ISREG(os.fstat(fd).st_mode)
        real(fd)
        if regular and not failed:
            failed.append(fd)
            raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, failing, fails_for_the_first_file)
    written: set[Path] = set()
    write = os.write

    def notes(fd: int, data: bytes) -> int:
        written.add(Path(f"/proc/self/fd/{fd}").readlink())
        return write(fd, data)

    monkeypatch.setattr(os, "write", notes)
    assert log.exchange(outgoing("new", 10_000), 2).entries[-1].lsn == 3
    assert failed
    assert len(written) == 2  # a draft of its own for each attempt
    assert len([path for path in single(tmp_path, 3).parent.iterdir() if path.name.startswith(".")]) == 1


def test_every_commit_and_its_name_are_synced_before_it_is_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = a_log(tmp_path)
    append_many(log, "c", 1)
    done: list[str] = []
    fsync, symlink = os.fsync, os.symlink
    monkeypatch.setattr(os, "symlink", lambda *a, **b: (done.append("name"), symlink(*a, **b)))
    monkeypatch.setattr(
        os, "fsync", lambda fd: (done.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file"), fsync(fd))
    )
    log.exchange(outgoing("small"), 1)
    assert done == ["name", "folder"]
    done.clear()
    log.exchange(outgoing("large", 10_000), 2)
    assert done == ["file", "name", "folder"]


@pytest.mark.usefixtures("hasty")
def test_the_first_commit_of_a_range_makes_the_range_before_it_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut could take commit 256, which nobody acknowledged yet, and leave 257."""
    append_many(a_log(tmp_path), "c", 256)
    log = a_log(tmp_path)
    everything(log)
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(str(Path(f"/proc/self/fd/{fd}").readlink())))
    log.exchange(outgoing("next"), 256)
    assert str(single(tmp_path, 1).parent) in synced
    assert str(single(tmp_path, 257).parent) in synced


_WRITER = """
import sys
from hopaas_p2p.open import open_store
from hopaas_p2p.testing.commits import append, outgoing
log, since = open_store(sys.argv[1]).log("study"), 0
for number in range(10**6):
    since = append(log, outgoing(f"{sys.argv[2]}-{number}", int(sys.argv[3])), since).entries[-1].lsn
    print(number, flush=True)
"""


@pytest.mark.parametrize("size", [0, 5_000], ids=["links", "files"])
def test_a_process_that_is_killed_in_the_middle_of_a_write_loses_only_what_it_was_not_told_is_safe(
    tmp_path: Path, size: int
) -> None:
    DirectoryStore(tmp_path)
    for life in range(4):
        command = [sys.executable, "-c", _WRITER, str(tmp_path), str(life), str(size)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(20 + 7 * life):
                told = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
            told = max([told, *map(int, process.stdout.read().split())])
        found = [body.rstrip(b".") for body in bodies(a_log(tmp_path))]
        mine = [b"%d-%d" % (life, number) for number in range(told + 2)]
        assert [body for body in found if body.startswith(b"%d-" % life)] in (mine[:-1], mine)
        append(a_log(tmp_path), outgoing(f"after {life}"))


def test_a_process_that_is_stopped_holds_nobody_up_and_its_commit_counts_once(tmp_path: Path) -> None:
    DirectoryStore(tmp_path)
    command = [sys.executable, "-c", _WRITER, str(tmp_path), "stopped", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        append_many(a_log(tmp_path), "others", 300)
        process.send_signal(signal.SIGCONT)
        for _ in range(20):
            process.stdout.readline()
        process.kill()
    found = bodies(a_log(tmp_path))
    assert len(found) == len(set(found))


# --- packs -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("hasty")
def test_whoever_commits_the_last_of_256_packs_them_and_old_folders_go(tmp_path: Path) -> None:
    log = a_log(tmp_path)
    append_many(log, "c", 320)
    assert pack(tmp_path, 1).is_file()
    assert len(list(single(tmp_path, 1).parent.iterdir())) == 256
    make_old(pack(tmp_path, 1))
    append_many(log, "d", 64, 320)
    assert not single(tmp_path, 1).parent.exists()
    assert bodies(a_log(tmp_path)) == [*names(320), *(b"d-%d" % number for number in range(64))]


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("removed", [False, True], ids=["folder there", "folder gone"])
def test_a_packed_log_is_read_from_anywhere(tmp_path: Path, removed: bool) -> None:
    append_many(a_log(tmp_path), "c", 520)
    if removed:
        for lsn in (1, 257):
            a_log(tmp_path).objects.remove_folder(f"study/study/commits/{lsn:020d}")
    for since in (0, 1, 255, 256, 257, 511, 512, 513, 519, 520):
        assert [entry.payload[4:] for entry in everything(a_log(tmp_path), since)] == names(520, since)


@pytest.mark.usefixtures("hasty")
def test_a_reader_that_stood_still_while_its_folder_went_goes_on_in_the_pack(tmp_path: Path) -> None:
    log, slow = a_log(tmp_path), a_log(tmp_path)
    append_many(log, "c", 100)
    everything(slow)
    append_many(log, "d", 200, 100)
    log.objects.remove_folder(f"study/study/commits/{1:020d}")
    assert slow.changed(100)
    assert [entry.lsn for entry in everything(slow, 100)] == list(range(101, 301))


@pytest.mark.usefixtures("hasty")
def test_a_range_that_its_last_writer_did_not_pack_is_packed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = a_log(tmp_path)
    append_many(log, "c", 255)
    with monkeypatch.context() as patch:
        patch.setattr(FolderLog, "_tidy", lambda *_: None)  # dies here
        append(a_log(tmp_path), outgoing("last"), 255)
    assert not pack(tmp_path, 1).exists()
    append_many(a_log(tmp_path), "d", 64)
    assert pack(tmp_path, 1).is_file()
    a_log(tmp_path).objects.remove_folder(f"study/study/commits/{1:020d}")
    assert len(bodies(a_log(tmp_path))) == 320


@pytest.mark.usefixtures("hasty")
def test_a_writer_that_slept_while_its_range_was_packed_and_removed_writes_behind_the_others(tmp_path: Path) -> None:
    log, zombie = a_log(tmp_path), a_log(tmp_path)
    append_many(log, "c", 100)
    everything(zombie)
    append_many(log, "d", 200, 100)
    log.objects.remove_folder(f"study/study/commits/{1:020d}")
    assert append(zombie, outgoing("late"), 100).entries[-1].lsn == 301
    assert not single(tmp_path, 1).parent.exists()
    assert bodies(a_log(tmp_path))[-1] == b"late"


@pytest.mark.usefixtures("hasty")
def test_what_a_writer_puts_into_a_removed_range_while_it_sleeps_is_not_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worst moment: between the look for a pack and the write."""
    log, zombie = a_log(tmp_path), a_log(tmp_path)
    append_many(log, "c", 100)
    everything(zombie)
    symlink = os.symlink

    append(zombie, outgoing("proven"), 100)

    def sleeps(text: str, path: str, **options: Any) -> None:
        monkeypatch.undo()
        append_many(log, "d", 200, 101)
        log.objects.remove_folder(f"study/study/commits/{1:020d}")
        single(tmp_path, 1).parent.mkdir()  # another zombie, which has not looked yet
        zombie.history.clocks = lambda: clocks()._replace(boot=clocks().boot + 3600)
        symlink(text, path, **options)

    monkeypatch.setattr(os, "symlink", sleeps)
    with pytest.raises(StoreUnreachable):
        zombie.exchange(outgoing("late"), 101)
    assert append(zombie, outgoing("late"), 101).entries[-1].lsn == 302
    assert bodies(a_log(tmp_path))[101] == b"d-0"


@pytest.mark.usefixtures("hasty")
def test_what_an_idle_writer_puts_into_a_range_that_goes_at_that_moment_is_not_acknowledged(tmp_path: Path) -> None:
    """Its machine still shows the folder of the range, which another one has taken away and is about to empty."""
    log, idle = a_log(tmp_path), a_log(tmp_path)
    append_many(log, "c", 100)
    append(idle, outgoing("proven"), 100)
    append_many(log, "d", 200, 101)
    for lsn in range(102, 257):
        single(tmp_path, lsn).unlink()
    idle.history.clocks = lambda: clocks()._replace(boot=clocks().boot + 400)
    assert append(idle, outgoing("late"), 101).entries[-1].lsn == 302
    assert bodies(a_log(tmp_path))[-1] == b"late"


@pytest.mark.usefixtures("hasty")
def test_what_a_process_that_died_has_taken_out_of_the_way_is_removed_with_the_next_folder(tmp_path: Path) -> None:
    log = a_log(tmp_path)
    append_many(log, "c", 320)
    left = tmp_path / STUDY / "commits" / ".removed-0123456789ab"
    left.mkdir()
    (left / "link").symlink_to("nothing")
    make_old(pack(tmp_path, 1))
    append_many(log, "d", 64, 320)
    assert [path.name for path in (tmp_path / STUDY / "commits").iterdir()] == [f"{257:020d}"]


def test_a_process_that_only_reads_keeps_no_commits_for_a_pack(tmp_path: Path) -> None:
    append_many(a_log(tmp_path), "c", 10)
    reader = a_log(tmp_path)
    everything(reader)
    assert not reader._recent


@pytest.mark.usefixtures("hasty")
def test_a_process_that_writes_keeps_the_commits_of_one_range_for_its_pack(tmp_path: Path) -> None:
    ours, theirs = a_log(tmp_path), a_log(tmp_path)
    for number in range(600):  # the others write every commit at which a writer tidies
        if number % 64 == 10:
            append(ours, outgoing(f"c-{number}"), number)
        else:
            append(theirs, outgoing(f"c-{number}"), number)
            ours.exchange(None, number)
    assert sorted(ours._recent) == list(range(513, 601))
    assert ours._size == sum(map(len, ours._recent.values()))


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("count", [255, 256, 512])
def test_an_idle_look_costs_the_same_wherever_the_log_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr("hopaas_p2p.stores.directory.files.mount_of", lambda _: Mount("nfs4", "server:/", ()))
    usual = os.umask(0o022)  # folders that a group may write to are looked at again and again
    try:
        append_many(a_log(tmp_path), "c", count)
    finally:
        os.umask(usual)
    reader = a_log(tmp_path)
    everything(reader)
    calls: list[str] = []
    for name in ("open", "readlink", "stat", "lstat", "scandir", "listdir"):
        real = getattr(os, name)

        def counted(*arguments: Any, name: str = name, real: Any = real, **options: Any) -> Any:
            calls.append(name)
            return real(*arguments, **options)

        monkeypatch.setattr(os, name, counted)
    assert reader.exchange(None, count).entries == []
    assert calls == ["open", "readlink"]


def test_a_write_to_a_file_server_that_comes_second_is_followed_by_the_next_write_and_not_by_a_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hopaas_p2p.stores.directory.files.mount_of", lambda _: Mount("nfs4", "server:/", ()))
    ours, theirs = a_log(tmp_path), a_log(tmp_path)
    append_many(ours, "ours", 1)
    create, look = ours._create, ours._look
    looks: list[int] = []

    def second(lsn: int, *given: Any) -> bytes | None:
        if lsn in (2, 3):
            append(theirs, outgoing(f"theirs-{lsn}"), lsn - 1)
        return create(lsn, *given)

    def counted(since: int, deadline: float, *, certain: bool) -> Any:
        looks.append(since)
        return look(since, deadline, certain=certain)

    monkeypatch.setattr(ours, "_create", second)
    monkeypatch.setattr(ours, "_look", counted)
    monkeypatch.setattr(SpreadScheduler, "look_first", lambda *_: True)  # as in a log that is never quiet
    receipt = append(ours, outgoing("ours-1"), 1)
    assert [entry.payload[4:] for entry in receipt.entries] == [b"theirs-2", b"theirs-3", b"ours-1"]
    assert looks == []


def test_a_write_that_comes_second_to_a_commit_of_another_history_is_not_repeated_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = a_log(tmp_path)
    append_many(ours, "ours", 2)
    create, total = ours._create, 0
    for entry in everything(ours):
        total = codec.following(total, entry.payload)
    other = codec.attach(codec.encode(Commit("theirs", 1, "theirs", 0, ())), total + 1)

    def second(lsn: int, *given: Any) -> bytes | None:
        ours.objects.put_new(ours.key(3), other)  # as when a backup is restored in between
        return create(lsn, *given)

    monkeypatch.setattr(ours, "_create", second)
    receipt = ours.exchange(replace(outgoing("late"), chain=total), 2)
    assert ([entry.lsn for entry in receipt.entries], receipt.more) == ([3], True)
    assert [entry.lsn for entry in everything(a_log(tmp_path))] == [1, 2, 3], "nothing was written there"


@pytest.mark.parametrize("others", [0, 1])
def test_a_peer_looks_at_its_last_commit_unless_it_has_just_read_what_follows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    ours = a_log(tmp_path)
    monkeypatch.setattr(ours.history, "every", 30.0)
    stored, looked_at = ours._stored, []

    def counted(lsn: int) -> bytes | None:
        looked_at.append(lsn)
        return stored(lsn)

    monkeypatch.setattr(ours.history, "_stored", counted)
    append_many(ours, "ours", 1)
    for _ in range(others):
        append(a_log(tmp_path), Outgoing("theirs:1", codec.encode(Commit("theirs", 1, "theirs", 0, ()))), 0)
    ours.exchange(None, 1)
    append(ours, outgoing("ours-1"), 1 + others)
    assert looked_at == ([] if others else [1])


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("code", [errno.EPERM, errno.EXDEV, 524], ids=["EPERM", "EXDEV", "ENOTSUPP of NFS"])
def test_a_store_is_made_where_there_are_no_hard_links_whatever_the_file_system_calls_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, "no links")

    monkeypatch.setattr(os, "link", refuse)
    files.describe(tmp_path / "meta.json", {"format": 1})
    assert json.loads((tmp_path / "meta.json").read_text()) == {"format": 1}
    assert [one.name for one in tmp_path.iterdir()] == ["meta.json"]


def test_the_sums_of_the_newest_commits_are_known_also_after_a_joiner_has_read_the_log_from_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = a_log(tmp_path)
    for lsn in range(1, 601):
        log.exchange(Outgoing(f"w:{lsn}", codec.encode(Commit("w", lsn, "w", 0, ()))), lsn - 1)
    log.exchange(None, 0)
    log.exchange(None, 600)
    told = [a_log(tmp_path).sum_at(lsn) for lsn in range(590, 601)]
    monkeypatch.setattr(FolderLog, "exchange", lambda *_: pytest.fail("the log is read again"))
    assert [log.sum_at(lsn) for lsn in range(590, 601)] == told


def test_a_damaged_pack_is_told_and_nothing_is_written(tmp_path: Path) -> None:
    append_many(a_log(tmp_path), "c", 260)
    a_log(tmp_path).objects.remove_folder(f"study/study/commits/{1:020d}")
    sound = pack(tmp_path, 1).read_bytes()
    for damage in (sound[:-1], sound[:100], sound[:50] + b"?" + sound[51:], b""):
        pack(tmp_path, 1).write_bytes(damage)
        with pytest.raises(StoreCorrupt, match="damaged"):
            a_log(tmp_path).exchange(outgoing("new"), 0)
        assert pack(tmp_path, 1).read_bytes() == damage


@pytest.mark.usefixtures("hasty")
def test_bytes_that_were_no_commit_stay_what_they_are_in_a_pack(tmp_path: Path) -> None:
    append_many(a_log(tmp_path), "c", 10)
    single(tmp_path, 11).symlink_to("by a stranger")
    append_many(a_log(tmp_path), "d", 245)
    a_log(tmp_path).objects.remove_folder(f"study/study/commits/{1:020d}")
    assert [entry.payload for entry in everything(a_log(tmp_path))][10] == b"by a stranger"


@pytest.mark.usefixtures("hasty")
def test_what_is_too_large_for_a_commit_is_the_same_in_a_pack(tmp_path: Path) -> None:
    append_many(a_log(tmp_path), "c", 10)
    with single(tmp_path, 11).open("wb") as file:
        file.truncate(packs.LARGEST + 1)
    append_many(a_log(tmp_path), "d", 200)
    append_many(a_log(tmp_path), "e", 45, 211)  # this writer has not seen the whole range, and reads it for the pack
    assert pack(tmp_path, 1).stat().st_size < 100_000
    a_log(tmp_path).objects.remove_folder(f"study/study/commits/{1:020d}")
    assert [entry.payload for entry in everything(a_log(tmp_path))][10] == b""


def test_the_largest_commits_fit_into_a_pack() -> None:
    assert packs.SPAN * len(packs.frame(bytes(packs.LARGEST))) <= packs.LARGEST_PACK


# --- deletion ----------------------------------------------------------------------------------------------------


def test_a_zombie_of_a_deleted_study_is_told_whatever_it_does(tmp_path: Path) -> None:
    zombie, sleeper = a_log(tmp_path), a_log(tmp_path)
    append_many(zombie, "c", 3)
    everything(sleeper)
    DirectoryStore(tmp_path).log("study").destroy()

    assert zombie.changed(3)
    with pytest.raises(StudyDeleted):
        zombie.exchange(outgoing("late"), 3)
    assert sleeper.changed(3)
    with pytest.raises(StudyDeleted):
        sleeper.exchange(None, 3)
    assert sorted(path.name for path in (tmp_path / STUDY).iterdir()) == ["boundary"]


def test_a_folder_that_goes_while_a_large_commit_is_read_is_a_deleted_study_and_no_other_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, reader = a_log(tmp_path), a_log(tmp_path)
    append(log, outgoing("first", 10_000))
    everything(reader)
    append(log, outgoing("second", 10_000), 1)
    read = Directory._read_file

    def goes(self: Directory, path: str, limit: int) -> Found | None:
        monkeypatch.setattr(Directory, "_read_file", read)
        a_log(tmp_path).destroy()
        return read(self, path, limit)

    monkeypatch.setattr(Directory, "_read_file", goes)
    with pytest.raises(StudyDeleted):
        reader.exchange(None, 1)


def test_a_damaged_study_can_be_deleted(tmp_path: Path) -> None:
    append_many(a_log(tmp_path), "c", 10)
    single(tmp_path, 5).unlink()
    a_log(tmp_path).destroy()
    assert sorted(path.name for path in (tmp_path / STUDY).iterdir()) == ["boundary"]
    with pytest.raises(StudyDeleted):
        everything(a_log(tmp_path))


def test_a_folder_a_pipe_or_a_socket_in_the_place_of_an_artifact_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifacts = DirectoryStore(tmp_path / "store").artifacts()
    (tmp_path / "source").write_bytes(b"weights")
    artifacts.put("study/1/model", tmp_path / "source")
    os.mkfifo(tmp_path / "store/v1/artifacts/study/1/pipe")
    monkeypatch.chdir(tmp_path / "store/v1/artifacts/study/1")  # a socket's path has 107 characters at most
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
    for key in ("study/1", "study/1/pipe", "study/1/socket"):
        with pytest.raises(KeyError):
            artifacts.get(key, tmp_path / "target")


@pytest.mark.parametrize("key", ["files/one/two", "files/one/two/three", "files/one/two/three/four"])
def test_an_object_that_would_be_in_a_file_is_refused_for_good(tmp_path: Path, key: str) -> None:
    objects = DirectoryStore(tmp_path).objects
    objects.put("files/one", b"a file")
    with pytest.raises(InvalidInput, match=f"{key} is a folder of this store, or a folder above it is a file"):
        objects.put(key, b"below it")


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "not allowed"), OSError(errno.EIO, "in trouble")])
def test_a_commit_is_acknowledged_whatever_happens_when_its_range_is_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    log = a_log(tmp_path)
    append_many(log, "c", 255)

    def failing(*_: Any) -> bool:
        raise error

    monkeypatch.setattr(files, "_make_folder", failing)
    assert append_many(log, "last", 1, 255) == [256]


def test_a_store_that_is_not_mounted_is_not_a_deleted_study(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "mount")
    log = store.log("study")
    log._timeout = store.log("another")._timeout = 0.1
    append_many(log, "c", 3)
    source = tmp_path / "source"
    source.write_bytes(b"weights")
    (tmp_path / "mount").rename(tmp_path / "elsewhere")
    (tmp_path / "mount").mkdir()
    for act in (
        lambda: log.exchange(outgoing("new"), 3),
        lambda: log.exchange(None, 3),
        lambda: store.log("another").exchange(outgoing("new"), 0),
        lambda: store.log("another").exchange(None, 0),
        lambda: store.log("another").put_snapshot(1, b"snapshot"),
        lambda: store.artifacts().put("study/1/model", source),
        lambda: store.artifacts().get("study/1/model", tmp_path / "target"),
        lambda: store.beat(Beat("ann", "1")),
        lambda: store.log("another").destroy(),
    ):
        with pytest.raises(StoreUnreachable, match="mounted"):
            act()
    assert list((tmp_path / "mount").iterdir()) == []
    (tmp_path / "mount").rmdir()
    (tmp_path / "elsewhere").rename(tmp_path / "mount")
    assert log.exchange(outgoing("new"), 3).entries[-1].lsn == 4


def test_in_another_store_that_stands_in_its_place_nothing_is_made(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "mount")
    log = store.log("study")
    log._timeout = 0.1
    append_many(log, "c", 3)
    (tmp_path / "mount").rename(tmp_path / "elsewhere")
    DirectoryStore(tmp_path / "mount")
    with pytest.raises(StoreUnreachable, match="another store"):
        log.exchange(outgoing("new"), 3)
    assert not (tmp_path / "mount" / STUDY).exists()


# --- file systems ------------------------------------------------------------------------------------------------


def test_the_mount_of_a_directory_is_the_innermost_and_the_last(tmp_path: Path) -> None:
    deep = tmp_path / "a b" / "c"
    deep.mkdir(parents=True)
    table = tmp_path / "mountinfo"
    here = str(tmp_path / "a b").replace(" ", "\\040")
    table.write_text(
        "20 1 8:1 / / rw - ext4 /dev/sda rw\n"
        f"21 20 0:5 / {here} rw - autofs systemd-1 rw\n"
        f"22 21 0:6 / {here} rw,noatime shared:1 - nfs4 server:/home rw,vers=4.2,nocto\n"
    )
    options = ("rw", "noatime", "rw", "vers=4.2", "nocto")
    assert mount_of(deep, table) == Mount("nfs4", "server:/home", options, str(tmp_path / "a b"))
    assert mount_of(deep, table).option("vers") == "4.2"
    assert mount_of(tmp_path, table).kind == "ext4"
    assert mount_of(tmp_path, tmp_path / "nowhere") == Mount("", "", ())
    loop = tmp_path / "loop"
    loop.symlink_to(loop)  # as somebody put it there after it was opened
    assert mount_of(loop, table).kind in ("", "ext4")
    assert mount_of(tmp_path, tmp_path / "nowhere").shared


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP])
def test_a_file_system_without_links_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "symlink", refuse)
    with pytest.raises(ConfigurationError, match="without symbolic links"):
        DirectoryStore(tmp_path / "store")
    assert not (tmp_path / "store" / "v1" / "meta.json").exists()


@pytest.mark.parametrize("kind", ["vfat", "exfat", "cifs", "smb3"])
def test_a_file_system_that_imitates_links_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    for module in ("files", "store"):
        monkeypatch.setattr(f"hopaas_p2p.stores.directory.{module}.mount_of", lambda _: Mount(kind, "//server/x", ()))
    with pytest.raises(ConfigurationError, match=re.escape(f"({kind})")):
        DirectoryStore(tmp_path / "store")


def test_nobody_waits_for_a_file_server_that_does_not_remove_what_a_dead_node_has_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hopaas_p2p.stores.directory.files.mount_of", lambda _: Mount("nfs4", "server:/", ()))
    given_back, gone = threading.Event(), threading.Event()
    unlink = os.unlink

    def waits(path: str, *, dir_fd: int | None = None) -> None:
        if path == f"{1:020d}":
            given_back.wait(30)
            unlink(path, dir_fd=dir_fd)
            gone.set()
        else:
            unlink(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", waits)
    log = a_log(tmp_path)
    append_many(log, "c", 4)
    for lsn in (1, 2, 3, 4):
        log.put_snapshot(lsn, b"%d" % lsn)
    assert len(list((tmp_path / STUDY / "snapshot").iterdir())) == 4
    given_back.set()
    assert gone.wait(30)
    assert len(list((tmp_path / STUDY / "snapshot").iterdir())) == 3


def test_names_that_a_file_server_keeps_for_open_files_are_passed_over(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    log = store.log("study")
    append_many(log, "c", 2)
    log.put_snapshot(2, b"snapshot")
    for folder in (single(tmp_path, 1).parent, tmp_path / STUDY / "snapshot", tmp_path / STUDY / "commits"):
        (folder / ".nfs000000000000001").write_bytes(b"open somewhere")
    source = tmp_path / "source"
    source.write_bytes(b"weights")
    store.artifacts().put("study/1/model", source)
    (tmp_path / "v1/artifacts/study/1/.nfs000000000000002").write_bytes(b"open somewhere")
    assert a_log(tmp_path).newest_snapshot() == (2, b"snapshot")
    assert bodies(a_log(tmp_path)) == names(2)
    assert store.artifacts().keys("study") == ["study/1/model"]
    log.destroy()


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


_OPEN_READ_WRITE = """
import sys
from hopaas_p2p.errors import HopaasError
from hopaas_p2p.stores.directory.store import DirectoryStore
from hopaas_p2p.open import open_store
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
    assert as_nobody(_OPEN_READ_WRITE, str(open_to_all / "store")).startswith("Denied Permission denied")


def test_a_directory_that_may_not_be_created(open_to_all: Path) -> None:
    said = as_nobody(_OPEN_READ_WRITE, str(open_to_all / "store"))
    assert said.startswith("ConfigurationError cannot use")
    assert "Permission denied" in said


@pytest.mark.usefixtures("hasty")
def test_who_may_only_read_reads_all_and_is_told_when_it_writes(open_to_all: Path) -> None:
    append_many(a_log(open_to_all), "c", 300)
    a_log(open_to_all).put_snapshot(256, b"snapshot")
    read, tail, wrote = as_nobody(_OPEN_READ_WRITE, str(open_to_all), "298").splitlines()
    assert (read, tail) == ("300 True", "[299, 300]")
    assert wrote.startswith("Denied")
    assert "Permission denied" in wrote


def test_the_doctor_sends_who_may_only_read_to_the_owner_for_permission(open_to_all: Path) -> None:
    append_many(a_log(open_to_all), "c", 3)
    code = """
        import sys
        from hopaas_p2p.open import open_store
        from hopaas_p2p.stores.checks import examine
        for finding in examine(open_store(sys.argv[1])):
            print("passed" if finding.passed else finding.cure)
    """
    said = {line for line in as_nobody(code, str(open_to_all)).splitlines() if line != "passed"}
    assert said == {"read access is not enough to take part; ask the directory's owner for write permission"}


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_what_the_group_may_do_in_the_directory_it_may_do_below_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    tmp_path.chmod(0o2770)
    before = os.umask(umask)
    try:
        store = DirectoryStore(tmp_path / "store")
        append_many(store.log("study"), "c", 256)
        store.log("study").put_snapshot(256, b"snapshot")
        store.beat(Beat("ann", "1"))
    finally:
        os.umask(before)
    modes = {
        (stat.S_ISDIR(mode), oct(mode & 0o7070))
        for path in (tmp_path / "store").rglob("*")
        if not stat.S_ISLNK(mode := path.lstat().st_mode)
    }
    assert modes == {(True, "0o2070"), (False, "0o60")}


_NO_DESCRIPTIONS = {
    "empty": "",
    "text": "not json",
    "list": "[]",
    "number": "7",
    "null": "null",
    "nothing in it": "{}",
    "format text": '{"format": "new"}',
    "no format": '{"format": null}',
    "no number": '{"format": 1e400}',
    "deep": "[" * 100_000,
    "binary": "\ufffe",
}


@pytest.mark.parametrize("text", _NO_DESCRIPTIONS.values(), ids=_NO_DESCRIPTIONS)
def test_a_description_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    append_many(a_log(tmp_path), "c", 1)
    (tmp_path / "v1" / "meta.json").write_text(text)
    with pytest.raises(ConfigurationError, match="is not a valid description of a store"):
        open_store(str(tmp_path))
    assert (tmp_path / "v1" / "meta.json").read_text() == text


@pytest.mark.parametrize("said", [{"format": 3}, {"format": 99, "lock": "quantum"}, {"format": 3, "lock": "flock"}])
def test_a_store_of_a_newer_version_is_left_alone(tmp_path: Path, said: dict[str, object]) -> None:
    append_many(a_log(tmp_path), "c", 1)
    (tmp_path / "v1" / "meta.json").write_text(json.dumps(said))
    before = sorted(path for path in tmp_path.rglob("*"))
    with pytest.raises(NewerFormat, match="upgrade"):
        open_store(str(tmp_path))
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_a_study_of_an_impossible_uuid_is_refused(tmp_path: Path) -> None:
    for uuid in ("../../etc", "", "a/b", "a" * 65, ".."):
        with pytest.raises(StoreCorrupt):
            DirectoryStore(tmp_path).log(uuid)


# --- URLs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["redis://host/0", "ftp://x", "://x", "sqlite:///x.db"])
def test_an_unknown_scheme_is_told_with_the_known_ones(url: str) -> None:
    with pytest.raises(ConfigurationError, match="memory://"):
        open_store(url)


def test_a_served_store_without_encryption_is_refused_and_the_scheme_named() -> None:
    with pytest.raises(ConfigurationError, match="http://… is not encrypted; write https://host/path"):
        open_store("http://host")


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


# --- where a symbolic link may be seen half made -----------------------------------------------------------------


@pytest.fixture
def glusterfs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hopaas_p2p.stores.directory.files.mount_of", lambda _: Mount("fuse.glusterfs", "s:/", ()))


@pytest.mark.usefixtures("glusterfs")
@pytest.mark.parametrize("trouble", ["", errno.ESTALE], ids=["no text", "stale"])
def test_a_link_that_is_half_made_is_looked_at_again_and_never_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str | int
) -> None:
    append_many(a_log(tmp_path), "c", 3)
    looks: list[str] = []
    readlink = os.readlink

    def half_made(path: str) -> str:
        looks.append(path)
        if len(looks) > 5:
            return readlink(path)
        if isinstance(trouble, int):
            raise OSError(trouble, os.strerror(trouble))
        return trouble

    monkeypatch.setattr(os, "readlink", half_made)
    assert bodies(a_log(tmp_path)) == [b"c-0", b"c-1", b"c-2"]
    assert len(looks) > 5


@pytest.mark.usefixtures("glusterfs")
def test_a_link_whose_answer_was_lost_is_known_by_its_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def loses_its_answer(source: str, target: str, **options: Any) -> None:
        link(source, target, **options)
        raise FileExistsError(errno.EEXIST, "sent again by the client, and already there")

    log = a_log(tmp_path)
    append_many(log, "c", 1)
    monkeypatch.setattr(os, "link", loses_its_answer)
    assert append(log, outgoing("mine"), 1).entries[-1].lsn == 2
    assert len(bodies(log)) == 2


@pytest.mark.usefixtures("glusterfs")
@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK])
def test_without_hard_links_a_commit_is_a_symbolic_link_there_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    log = a_log(tmp_path)
    append_many(log, "linked", 2)

    def refused(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refused)
    append_many(log, "c", 2, 2)
    assert bodies(a_log(tmp_path)) == [b"linked-0", b"linked-1", b"c-0", b"c-1"]
    assert not any(path.name.startswith(".") for path in tmp_path.rglob("*"))


@pytest.mark.usefixtures("glusterfs")
def test_a_commit_that_a_cache_still_has_as_an_empty_draft_is_read_when_the_cache_has_run_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append_many(a_log(tmp_path), "c", 1)
    log, began = a_log(tmp_path), time.monotonic()
    real = Directory._read_file

    def stale(self: Directory, path: str, limit: int) -> object:
        return real(self, path, limit) if time.monotonic() > began + 1.0 else Found(b"", 0)

    monkeypatch.setattr(Directory, "_read_file", stale)
    assert bodies(log) == [b"c-0"]


@pytest.mark.usefixtures("glusterfs")
def test_a_beat_that_was_replaced_is_read_when_the_cache_has_let_go_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DirectoryStore(tmp_path)
    store.beat(Beat("ann", "ann:1"))
    stale = [1, 2, 3]
    real = os.open

    def replaced(path: str, *more: Any, **options: Any) -> int:
        if str(path).endswith("/beats/ann") and stale:
            stale.pop()
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return real(path, *more, **options)

    monkeypatch.setattr(os, "open", replaced)
    assert store.beats(["ann"]) == {"ann": "ann:1"}


@pytest.mark.parametrize("kind", ["fuse.glusterfs", "nfs4"])
def test_a_file_that_another_node_replaces_while_it_is_read_is_read_from_its_start_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("hopaas_p2p.stores.directory.files.mount_of", lambda _: Mount(kind, "s:/", ()))
    store = DirectoryStore(tmp_path / "store")
    content = b"weights" * 400_000
    (tmp_path / "source").write_bytes(content)
    store.artifacts().put("study-1/7/model", tmp_path / "source")
    replaced: list[int] = []

    def stale(size: int) -> None:
        if len(replaced) < 3:
            replaced.append(size)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    store.artifacts().get("study-1/7/model", tmp_path / "target", stale)
    assert (tmp_path / "target").read_bytes() == content
    assert len(replaced) == 3


def test_a_beat_on_nfs_is_never_opened_so_no_node_that_dies_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that others have opened is theirs for a while: their node may have a delegation of it."""
    monkeypatch.setattr("hopaas_p2p.stores.directory.files.mount_of", lambda _: Mount("nfs4", "server:/", ()))
    store = DirectoryStore(tmp_path)
    beats = tmp_path / "v1" / "beats"
    opened: list[str] = []
    real = os.open

    def watched(path: str, *more: Any, **options: Any) -> int:
        opened.append(str(path))
        return real(path, *more, **options)

    monkeypatch.setattr(os, "open", watched)
    for value in ("ann:1", "ann:2"):
        store.beat(Beat("ann", value))
        assert store.beats(["ann"]) == {"ann": value}
    assert [path.name for path in beats.iterdir()] == ["ann"]
    assert not [path for path in opened if path.startswith(f"{beats}/")]


def test_finished_trials_are_written_once_however_many_snapshots_there_are(tmp_path: Path) -> None:
    log = a_log(tmp_path)
    append_many(log, "a", 8)
    for lsn in range(1, 9):
        log.put_snapshot(lsn, study_snapshot(2048 + lsn))
    kept = tmp_path / STUDY / "snapshot"
    blocks = list((kept / "blocks").iterdir())
    assert len(blocks) == 2
    assert len({block.stat().st_mtime_ns for block in blocks}) == 2
    assert len([head for head in kept.iterdir() if head.is_file()]) == 3


def test_a_snapshot_that_lacks_a_block_is_passed_over(tmp_path: Path) -> None:
    log = a_log(tmp_path)
    append_many(log, "a", 2)
    log.put_snapshot(1, study_snapshot(1100))
    log.put_snapshot(2, study_snapshot(2100))
    next((tmp_path / STUDY / "snapshot" / "blocks").glob("00000001-*")).unlink()
    assert a_log(tmp_path).newest_snapshot() == (1, study_snapshot(1100))
    log.put_snapshot(2, study_snapshot(2100))
    assert a_log(tmp_path).newest_snapshot() == (2, study_snapshot(2100))


def test_beats_that_are_older_than_any_lease_are_swept(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    for peer in ("alive", "late", "dead"):
        store.beat(Beat(peer, "1"))
    for peer, days in (("late", 39), ("dead", 41)):
        at = (tmp_path / "v1/beats" / peer).stat().st_mtime - days * 86_400
        os.utime(tmp_path / "v1/beats" / peer, (at, at))
    store.sweep_beats()
    assert sorted(store.beats(["alive", "late", "dead"])) == ["alive", "late"]


def test_a_peer_that_ends_and_runs_nothing_leaves_no_beat(tmp_path: Path) -> None:
    study = hopaas_p2p.open_study(str(tmp_path / "store"), "s")
    study.tell(study.ask(), 1.0)
    store = DirectoryStore(tmp_path / "store")
    assert len(store.objects.listed("beats/")) == 1
    study.close()
    assert store.objects.listed("beats/") == []


def test_a_peer_that_ends_while_its_trial_runs_leaves_its_beat(tmp_path: Path) -> None:
    storage = hopaas_p2p.open_storage(str(tmp_path / "store"))
    study_id = storage.create_new_study([StudyDirection.MINIMIZE], "s")
    storage.create_new_trial(study_id)
    storage.close()
    running = hopaas_p2p.open_storage(str(tmp_path / "store"))
    left = len(running.state(study_id).running)
    running.close()
    assert len(DirectoryStore(tmp_path / "store").objects.listed("beats/")) == left


def test_a_file_system_mounted_for_reading_only_ends_optimize_and_one_in_trouble_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = campaign(tmp_path, patience=0.1)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(os, "symlink", refuse)
        patch.setattr(Path, "symlink_to", refuse)
        with pytest.raises(StoreUnreachable, match="Read-only file system"):  # as of GlusterFS without a quorum
            study.optimize(lambda _: 1.0)
        real = os.fstatvfs
        mounted = SimpleNamespace(f_flag=real(0).f_flag | os.ST_RDONLY)
        patch.setattr(os, "fstatvfs", lambda _: mounted)
        with pytest.raises(Denied, match="this node can read studies, but not take part; mount the file system for"):
            study.optimize(lambda _: 1.0)
    study.optimize(lambda _: 1.0)
    study.close()


def test_an_object_that_may_not_be_removed_keeps_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DirectoryStore(tmp_path / "store")
    for name in "abcd":
        store.objects.put(name, b"x")
    real = os.unlink

    def refuse(path: str, **options: Any) -> None:
        if path in "ac":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        real(path, **options)

    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(Denied, match="2 objects could not be removed: Permission denied"):
        store.objects.delete("abcd")
    assert [name for name in store.objects.listed("") if len(name) == 1] == ["a", "c"]


def test_a_store_that_this_user_may_only_read_says_so_at_once_and_how_to_share_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DirectoryStore(tmp_path / "store")
    append(store.log("s"), outgoing("first"))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "symlink", refuse)
    monkeypatch.setattr(Path, "symlink_to", refuse)
    for opened in (store, DirectoryStore(tmp_path / "store")):
        with pytest.raises(Denied, match=r"chmod -R g\+rwX .*store.* g\+s"):
            append(opened.log("s"), outgoing("second"))
    real = os.open

    def no_ticket(path: object, *given: Any, **options: Any) -> int:
        if str(path).endswith("meta.json"):
            refuse()
        return real(path, *given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", no_ticket)
    with pytest.raises(StoreUnreachable):  # where nothing can be read any more, a ticket has run out, and may come back
        append(store.log("s"), outgoing("second"))
