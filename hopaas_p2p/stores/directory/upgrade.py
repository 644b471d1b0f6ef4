"""Stores of format 1: commits were appended to files of 256, under a lock.

They are read as they are: a full file is a pack, and the last one a pack that is not full yet. The first process of
this version that writes to such a log turns it, under the old lock: the commits of the last file become single objects,
the folder `log` becomes `packs`, and a file stands in its place, so that a process of an older version that still runs
can write nothing beside it. The store's description then says format 2, and older versions refuse it with a clear word.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hopaas_p2p.atomic import READ, read_fd, read_regular
from hopaas_p2p.errors import StoreCorrupt, StoreUnreachable
from hopaas_p2p.stores.directory.files import DESCRIPTION, Directory, reaching
from hopaas_p2p.stores.objects.contract import lsn_of
from hopaas_p2p.stores.objects.packs import LARGEST, LARGEST_PACK, SPAN, Packs, damaged, frames

LOCKS: Final = ("flock", "lockfile")
FORMAT: Final = 2
"""Of a directory; commits have a format of their own."""
_LOCK_TIMEOUT: Final = 30.0  # seconds; the holder is stopped, or its disk is dead
_LIFETIME: Final = 20.0  # seconds after which a lock file of a node that died is broken
_MOVED: Final = b"This log was moved to the folder `packs` by a newer version of hopaas-p2p.\n"


class Upgrade:
    """Turns the logs of one store, each before the first write to it.

    Args:
        objects: the store's.
        meta: its description.
        lock: the kind of lock that its writers used.

    """

    def __init__(self, objects: Directory, meta: Path, lock: str) -> None:
        self._objects = objects
        self._meta = meta
        self._lock = lock
        self._done: set[str] = set()

    def log(self, root: str) -> None:
        """Turn this log, if nobody has."""
        if root in self._done:
            return
        folder = self._meta.parent / root
        with reaching(folder):
            self._describe()
            if _is_folder(folder / "log"):
                with _locked(folder / "lock", self._lock):
                    if _is_folder(folder / "log"):
                        self._turn(folder, root)
                    self._bar(root)
            else:
                self._bar(root)
        self._done.add(root)

    def _bar(self, root: str) -> None:
        """Put a file where an older version would begin a log of its own; it does not take a folder's place."""
        if not os.path.lexists(self._meta.parent / root / "log"):
            self._objects.put(f"{root}log", _MOVED)

    def _describe(self) -> None:
        said = json.loads(read_regular(self._meta, limit=DESCRIPTION))
        if said["format"] < FORMAT:
            self._objects.put(self._meta.name, json.dumps({**said, "format": FORMAT}).encode() + b"\n")

    def _turn(self, folder: Path, root: str) -> None:
        """Turn the log. What another writer adds meanwhile is turned, too.

        Lock files are broken after some seconds: a process that is stopped in the middle of this goes on beside
        writers of the older version.
        """
        packs = Packs(self._objects, root)
        while self._split(folder / "log", packs):
            pass
        (folder / "log").rename(folder / "packs")
        while self._split(folder / "packs", packs):
            pass

    def _split(self, folder: Path, packs: Packs) -> bool:
        """Make the commits of the last file single objects, unless it is full; whether there was such a file."""
        firsts = [first for one in folder.iterdir() if (first := lsn_of(one.name)) is not None]
        if not firsts:
            return False
        last = folder / f"{max(firsts):020d}"
        fd = os.open(last, READ)
        try:
            count = self._move_all(last, fd, max(firsts), packs)
            if count == SPAN:
                return False
            last.unlink()  # from now on no process writes to it
            self._move_all(last, fd, max(firsts), packs, after=count)
        finally:
            os.close(fd)
        return True

    def _move_all(self, last: Path, fd: int, first: int, packs: Packs, *, after: int = 0) -> int:
        """Make the commits in this file single objects, without the first so many, unless it is full; their number."""
        os.lseek(fd, 0, os.SEEK_SET)
        data = read_fd(fd, LARGEST_PACK)
        payloads, end = frames(data)
        if end < len(data) and damaged(data[end:]):
            raise StoreCorrupt(f"{last} is damaged at byte {end}. Nothing was changed: restore it from a backup.")
        if after or len(payloads) < SPAN:
            for lsn, payload in enumerate(payloads[after:], first + after):
                self._move(packs.key(lsn), payload, last)
        return len(payloads)

    def _move(self, key: str, payload: bytes, last: Path) -> None:
        """Make a commit of this file a single object, if an earlier turn that was interrupted has not."""
        if self._objects.put_new(key, payload):
            return
        there = self._objects.get(key, limit=LARGEST)
        if there is None or there.data != payload:  # an older version wrote on while the turn was interrupted
            raise StoreCorrupt(
                f"{last} and {key} hold different commits. Nothing was changed: stop the processes of the older "
                "version, and copy the study with: hopaas-p2p doctor STORE --rescue"
            )


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


@contextlib.contextmanager
def _locked(path: Path, kind: str) -> Iterator[None]:
    """Hold the lock of the older version.

    Raises:
        StoreUnreachable: another process held it for too long.

    """
    deadline = time.monotonic() + _LOCK_TIMEOUT
    held = StoreUnreachable(f"{path} was held by another writer for {_LOCK_TIMEOUT:.0f} s")
    if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
        raise StoreUnreachable(f"{path} is not an ordinary file. Somebody has put it there: remove it")
    if kind == "lockfile":
        import filelock  # here only: where it is loaded, one of two threads that fork at once gets a RuntimeError

        with warnings.catch_warnings():  # filelock warns that a stopped holder may wake up: it would find no log
            warnings.simplefilter("ignore")
            soft = filelock.SoftFileLock(path, thread_local=False, lifetime=_LIFETIME)
        try:
            with soft.acquire(timeout=_LOCK_TIMEOUT):
                yield
        except filelock.Timeout:
            raise held from None
        return
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    try:
        while not _try_flock(fd):
            if time.monotonic() > deadline:
                raise held
            time.sleep(0.005)
        yield
    finally:
        os.close(fd)


def _try_flock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # which of them, depends on the file system
        return False
    return True
