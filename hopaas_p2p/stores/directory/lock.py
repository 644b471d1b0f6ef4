"""The lock of a directory store: the file system's own where it excludes, else a lock file; see `directory`."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import secrets
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Final

import filelock

from hopaas_p2p.errors import StoreUnreachable

_LOCK_TIMEOUT: Final = 30.0  # seconds; the holder has a stopped process or a dead disk
_SPINS: Final = 20
_LOCK_LIFETIME: Final = 20.0  # seconds after which a lock file of a node that died is broken; a write takes some 10 ms
_LOCAL_LOCKS: Final = frozenset({"nolock", "localflock", "local_lock=all", "local_lock=flock"})
"""Mount options (NFS, Lustre) with which flock excludes nobody on other nodes."""
NOT_MOUNTED: Final = "the store is not there; is its file system mounted?"


class Lock:
    """Mutual exclusion of the writers of one log, on every node that sees the directory."""

    def __init__(self, path: Path, *, store: Path, hard: bool) -> None:
        self._path = path
        self._store = store
        self._hard = hard
        self._fd = -1
        self._soft: filelock.SoftFileLock | None = None
        self._since = 0.0

    def __enter__(self) -> None:
        try:
            self._wait()
        except BaseException:  # Ctrl-C, perhaps behind the call that took it: others would wait for this process's end
            self.__exit__()
            raise

    def _wait(self) -> None:
        deadline = time.monotonic() + _LOCK_TIMEOUT
        for attempt in range(1 << 30):
            self._since = time.monotonic()
            if self._try():
                return
            if time.monotonic() > deadline:
                raise StoreUnreachable(f"{self._path} was held by another writer for {_LOCK_TIMEOUT:.0f} s")
            time.sleep(0 if attempt < _SPINS else random.uniform(0.0005, 0.004))

    def __exit__(self, *_: object) -> None:
        if self._hard:
            if self._fd >= 0:
                filelock.unlock_descriptor(self._fd)
        elif self._soft is not None:
            self._soft.release()

    def _try(self) -> bool:
        if self._hard:
            if self._fd < 0:
                self._make_room()
                self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            return filelock.lock_descriptor(self._fd, blocking=False)
        self._make_room()
        if self._soft is None:
            with warnings.catch_warnings():  # filelock warns that a stopped holder may wake up; see `still_held`
                warnings.simplefilter("ignore")
                self._soft = filelock.SoftFileLock(self._path, thread_local=False, lifetime=_LOCK_LIFETIME)
        try:
            self._soft.acquire(blocking=False)
        except filelock.Timeout:
            return False
        return True

    def _make_room(self) -> None:
        """The log's directory, if the store is there: never below a mount point where nothing is mounted."""
        if not self._store.is_dir():
            raise FileNotFoundError(errno.ENOENT, NOT_MOUNTED)
        self._path.parent.mkdir(parents=True, exist_ok=True)

    def still_held(self) -> None:
        """See that nobody can have broken this lock, before anything is written.

        Raises:
            StoreUnreachable: this process stood still for so long that others may take it for dead.

        """
        if not self._hard and time.monotonic() - self._since > _LOCK_LIFETIME / 2:
            raise StoreUnreachable(f"{self._path} was held for too long; nothing was written")

    def forget(self) -> None:
        """Close the descriptor: a forked child that keeps it would hold its parent's lock."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._soft = -1, None

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if self._fd >= 0:  # at the end of the program `os` may be gone already
            close(self._fd)
            self._fd = -1


def hard_locks_work(directory: Path) -> bool:
    """Whether flock excludes here: a second descriptor must not get what the first one holds, on no node."""
    if _LOCAL_LOCKS & _mount_options(directory):
        return False
    path = directory / f".lock-check-{secrets.token_hex(6)}"
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    first = os.open(path, flags, 0o666)
    second = os.open(path, flags, 0o666)
    try:
        return filelock.lock_descriptor(first, blocking=False) and not filelock.lock_descriptor(second, blocking=False)
    except OSError:
        return False
    finally:
        os.close(second)
        os.close(first)
        path.unlink(missing_ok=True)


def _mount_options(directory: Path, mounts: Path = Path("/proc/self/mountinfo")) -> frozenset[str]:
    """The options of the mount that holds this directory, as far as the system tells."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        rows = [line.split(" ") for line in mounts.read_text(errors="replace").splitlines()]
        points = {re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), row[4]): row for row in rows}
        resolved = directory.resolve()
        row = next(points[str(path)] for path in (resolved, *resolved.parents) if str(path) in points)
        return frozenset(f"{row[5]},{row[-1]}".split(","))
    return frozenset()
