"""A store in a directory, on a local or a shared file system (NFS, Lustre, GPFS).

    v1/meta.json                                       format and uuid of the store
    v1/studies/log/…                                   the directory log
    v1/study/{uuid}/log/{lsn:020d}                     a segment: 256 commits, beginning with that lsn
    v1/study/{uuid}/snapshot/{lsn:020d}
    v1/beats/{peer}

A commit is one frame: length in 8 hex digits, a space, the bytes of `codec` (which carry a checksum), a newline. It is
appended under a lock and fsynced before it is acknowledged. A writer that dies mid-frame leaves a torn tail, at
whatever byte; the next writer cuts it off. A broken frame with a sound one behind it is not a torn tail: it is damage,
and nothing is written over it.

The lock is the file system's own (flock) where a check shows that it excludes; else a lock file, created exclusively
and broken when its holder's process is gone. Readers take no lock.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import filelock

from hopaas_p2p.core import codec
from hopaas_p2p.core.records import FORMAT
from hopaas_p2p.errors import ConfigurationError, NewerFormat, StoreCorrupt, StoreUnreachable, StudyDeleted
from hopaas_p2p.stores.base import SNAPSHOT_EVERY, SNAPSHOTS_KEPT, Beat, Entry, Outgoing, Receipt

_SEGMENT: Final = SNAPSHOT_EVERY  # a snapshot's tail then begins with a file of its own
_HEAD: Final = 9
_LOCK_TIMEOUT: Final = 30.0  # seconds; the holder has a stopped process or a dead disk
_SPINS: Final = 20
_KEY: Final = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")
_PEER: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_UNREACHABLE: Final = frozenset(
    {errno.EIO, errno.ESTALE, errno.ENOENT, errno.EACCES, errno.EPERM, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOSPC}
    | {errno.EDQUOT, errno.EROFS, errno.ENOTDIR, errno.ENXIO, errno.ENODEV, errno.ENOTCONN}
)


@contextlib.contextmanager
def _reaching(path: Path) -> Iterator[None]:
    """File system trouble as our own error: it may pass, and nothing was acknowledged."""
    try:
        yield
    except OSError as error:
        if error.errno in _UNREACHABLE:
            raise StoreUnreachable(f"{path}: {error.strerror}. Nothing acknowledged is lost.") from error
        raise


class DirectoryLog:
    """One log: segments of frames, read from where the last read ended."""

    def __init__(self, root: Path, lock: _Lock) -> None:
        self._root = root
        self._log = root / "log"
        self._snapshots = root / "snapshot"
        self._lock = lock
        self._lsn = 0
        self._offset = 0
        self._fd = -1
        self._fd_segment = -1

    def exchange(self, outgoing: Outgoing | None, since: int, beat: Beat | None = None) -> Receipt:
        with _reaching(self._root):
            if outgoing is None:
                return Receipt(self._read(since))
            with self._lock:
                entries = self._read(since, for_writing=True)
                if not any(entry.payload == outgoing.payload for entry in entries):
                    entries.append(self._append(outgoing.payload))
            return Receipt(entries)

    def changed(self, since: int) -> bool:
        if since != self._lsn:
            return True
        try:
            if self._fd >= 0 and self._fd_segment == self._segment(since + 1):
                return os.fstat(self._fd).st_size != self._offset
            return self._path(since + 1).exists()
        except OSError:
            return True

    def newest_snapshot(self) -> tuple[int, bytes] | None:
        with _reaching(self._root):
            for path in sorted(self._snapshots.glob("[0-9]" * 20), reverse=True):
                with contextlib.suppress(FileNotFoundError):
                    return int(path.name), path.read_bytes()
            return None

    def put_snapshot(self, lsn: int, data: bytes) -> None:
        with _reaching(self._root):
            self._snapshots.mkdir(parents=True, exist_ok=True)
            _replace(self._snapshots / f"{lsn:020d}", data)
            for old in sorted(self._snapshots.glob("[0-9]" * 20))[:-SNAPSHOTS_KEPT]:
                old.unlink(missing_ok=True)

    def destroy(self) -> None:
        self.close()
        gone = self._root.with_name(f".deleted-{secrets.token_hex(6)}")
        with contextlib.suppress(OSError):  # another was quicker, or a file system that cannot rename what is in use
            self._root.rename(gone)  # at one stroke, so that no zombie finds half a log and goes on writing
        for left in (gone, self._root):
            shutil.rmtree(left, ignore_errors=True)

    def close(self) -> None:
        """Close the descriptor of the segment last read."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = self._fd_segment = -1

    # --- frames ---

    @staticmethod
    def _segment(lsn: int) -> int:
        return (lsn - 1) // _SEGMENT * _SEGMENT + 1

    def _path(self, lsn: int) -> Path:
        return self._log / f"{self._segment(lsn):020d}"

    def _open(self, lsn: int, flags: int) -> int:
        """The descriptor of the segment that holds `lsn`, kept open between calls."""
        segment = self._segment(lsn)
        if self._fd_segment != segment or (self._fd >= 0 and os.fstat(self._fd).st_nlink == 0):
            self.close()
            self._fd = os.open(self._path(lsn), os.O_RDWR | os.O_CLOEXEC | flags, 0o666)
            self._fd_segment = segment
        return self._fd

    def _read(self, since: int, *, for_writing: bool = False) -> list[Entry]:
        """The commits after `since`, whole ones only. Leaves `_lsn` and `_offset` at the end of what is sound."""
        if since != self._lsn:
            self._seek(since)
        entries: list[Entry] = []
        while True:
            try:
                fd = self._open(self._lsn + 1, 0)
            except FileNotFoundError:
                if self._lsn and not self._log.is_dir() and self._root.parent.is_dir():
                    raise StudyDeleted from None
                break
            except PermissionError:
                if for_writing:
                    raise
                fd = self._open_read_only()
            if not self._take(fd, entries, for_writing=for_writing) or self._lsn % _SEGMENT:
                break
            self._offset = 0
        return entries

    def _open_read_only(self) -> int:
        self.close()
        self._fd = os.open(self._path(self._lsn + 1), os.O_RDONLY | os.O_CLOEXEC)
        self._fd_segment = self._segment(self._lsn + 1)
        return self._fd

    def _take(self, fd: int, entries: list[Entry], *, for_writing: bool) -> bool:
        """Read frames from the offset to the end of this segment; whether there was any."""
        size = os.fstat(fd).st_size
        if size < self._offset:
            raise StoreCorrupt(f"{self._path(self._lsn + 1)} became shorter than what was read from it")
        data = os.pread(fd, size - self._offset, self._offset) if size > self._offset else b""
        position, found = 0, False
        while (end := _frame_end(data, position)) is not None:
            self._lsn += 1
            entries.append(Entry(self._lsn, data[position + _HEAD : end - 1]))
            position, found = end, True
            if self._lsn % _SEGMENT == 0:
                break
        self._offset += position
        if position < len(data) and for_writing:
            self._cut(fd, data[position:])
        return found

    def _cut(self, fd: int, tail: bytes) -> None:
        """Take away what a writer left unfinished, unless there is something sound behind it."""
        if _holds_frame(tail) or self._path(self._segment(self._lsn + 1) + _SEGMENT).exists():
            where = self._path(self._lsn + 1)
            raise StoreCorrupt(
                f"{where} is damaged at byte {self._offset}, and holds sound commits behind it. "
                "Nothing was changed: bring the file back from a backup, or export the study and import it elsewhere."
            )
        os.ftruncate(fd, self._offset)

    def _seek(self, since: int) -> None:
        """Go to the end of commit `since` by reading its segment from the start."""
        first = self._segment(since + 1) if since else 1
        self._lsn, self._offset = first - 1, 0
        if self._lsn == since:
            return
        fd = self._open(self._lsn + 1, 0)
        data = os.pread(fd, os.fstat(fd).st_size, 0)
        while self._lsn < since:
            end = _frame_end(data, self._offset)
            if end is None:
                raise StoreCorrupt(
                    f"{self._path(since)} ends before commit {since}, which a peer or a snapshot has seen"
                )
            self._lsn += 1
            self._offset = end

    def _append(self, payload: bytes) -> Entry:
        lsn = self._lsn + 1
        fresh = self._offset == 0
        if fresh:
            self._log.mkdir(parents=True, exist_ok=True)
        fd = self._open(lsn, os.O_CREAT)
        frame = b"%08x %b\n" % (len(payload), payload)
        if os.pwrite(fd, frame, self._offset) != len(frame):
            raise StoreUnreachable(f"{self._path(lsn)}: the disk took only a part of a commit; is it full?")
        os.fdatasync(fd)
        if fresh:
            _sync_directory(self._log)
        self._lsn = lsn
        self._offset = self._offset + len(frame) if lsn % _SEGMENT else 0  # the next one begins a new file
        return Entry(lsn, payload)


def _frame_end(data: bytes, position: int) -> int | None:
    """Where the frame at `position` ends, or None when there is no whole and sound one."""
    head = data[position : position + _HEAD]
    if len(head) < _HEAD or head[8:] != b" ":
        return None
    try:
        length = int(head[:8], 16)
    except ValueError:
        return None
    end = position + _HEAD + length + 1
    if end > len(data) or data[end - 1 : end] != b"\n" or not codec.intact(data[position + _HEAD : end - 1]):
        return None
    return end


def _holds_frame(tail: bytes) -> bool:
    """Whether a sound frame begins anywhere behind the first byte."""
    starts = re.finditer(rb"(?=\n([0-9a-f]{8}) )", tail)
    return any(_frame_end(tail, match.start() + 1) is not None for match in starts)


def _replace(path: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        draft.write_bytes(data)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _sync_directory(path: Path) -> None:
    for directory in (path, path.parent):
        fd = os.open(directory, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # some network file systems have no fsync of directories
                os.fsync(fd)
        finally:
            os.close(fd)


# --- the lock ----------------------------------------------------------------------------------------------------


class _Lock:
    """Mutual exclusion of the writers of one log, on every node that sees the directory."""

    def __init__(self, path: Path, *, hard: bool) -> None:
        self._path = path
        self._hard = hard
        self._fd = -1
        self._soft: filelock.SoftFileLock | None = None

    def __enter__(self) -> None:
        deadline = time.monotonic() + _LOCK_TIMEOUT
        for attempt in range(1 << 30):
            if self._try():
                return
            if time.monotonic() > deadline:
                raise StoreUnreachable(f"{self._path} was held by another writer for {_LOCK_TIMEOUT:.0f} s")
            time.sleep(0 if attempt < _SPINS else random.uniform(0.0005, 0.004))

    def __exit__(self, *_: object) -> None:
        if self._hard:
            filelock.unlock_descriptor(self._fd)
        elif self._soft is not None:
            self._soft.release()

    def _try(self) -> bool:
        if self._hard:
            if self._fd < 0:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            return filelock.lock_descriptor(self._fd, blocking=False)
        if self._soft is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._soft = filelock.SoftFileLock(self._path, thread_local=False)
        try:
            self._soft.acquire(blocking=False)
        except filelock.Timeout:
            return False
        return True

    def forget(self) -> None:
        """Close the descriptor: a forked child that keeps it would hold its parent's lock."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._soft = -1, None


def hard_locks_work(directory: Path) -> bool:
    """Whether flock excludes here: a second descriptor must not get what the first one holds."""
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


# --- artifacts ---------------------------------------------------------------------------------------------------


class DirectoryArtifacts:
    """Files under `v1/artifacts/`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, key: str, source: Path) -> None:
        path = self._path(key)
        with _reaching(self._root):
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
            try:
                with source.open("rb") as given, draft.open("wb") as taken:
                    shutil.copyfileobj(given, taken, 1 << 20)
                    taken.flush()
                    os.fsync(taken.fileno())
                draft.replace(path)
            finally:
                draft.unlink(missing_ok=True)

    def get(self, key: str, target: Path) -> None:
        with _reaching(self._root):
            try:
                shutil.copyfile(self._path(key), target)
            except FileNotFoundError:
                raise KeyError(key) from None

    def delete(self, key: str) -> None:
        with _reaching(self._root):
            self._path(key).unlink(missing_ok=True)

    def keys(self, prefix: str) -> list[str]:
        with _reaching(self._root):
            found = [path.relative_to(self._root).as_posix() for path in self._root.rglob("[!.]*") if path.is_file()]
        return sorted(key for key in found if key.startswith(prefix))

    def _path(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise KeyError(key)  # from a hostile log: such a key was never ours
        return self._root / key


# --- the store ---------------------------------------------------------------------------------------------------


class DirectoryStore:
    """Logs, snapshots and beats under one directory, which it creates if its parent exists.

    Raises:
        ConfigurationError: a file stands where the directory should be, it cannot be read or created, or it was made
            with another kind of lock than this node can keep.
        NewerFormat: a newer version wrote it.

    """

    freshness = 0.0
    beats_ride = False

    def __init__(self, path: str | os.PathLike[str], *, create: bool = True) -> None:
        self.path = Path(path).expanduser().absolute()
        self.url = self.path.as_uri()
        self._root = self.path / "v1"
        self._logs: dict[Path, DirectoryLog] = {}
        self._locks: dict[Path, _Lock] = {}
        try:
            self._hard = self._prepare(create=create)
        except (OSError, StoreUnreachable) as error:
            raise ConfigurationError(f"cannot use {self.path} as a store: {_plainly(error)}") from None

    def _prepare(self, *, create: bool) -> bool:
        """Make the directory if need be and read which lock its users agreed on."""
        if self.path.exists() and not self.path.is_dir():
            raise ConfigurationError(f"{self.path} is a file; a store is a directory. Choose another path.")
        meta = self._root / "meta.json"
        if not meta.exists():
            if not create:
                raise ConfigurationError(f"there is no store in {self.path}; create one with: hopaas-p2p study create")
            (self._root / "beats").mkdir(parents=True, exist_ok=True)
            self._agree(meta)
        try:
            said = json.loads(meta.read_text())
            version, lock = int(said["format"]), str(said["lock"])
        except (ValueError, KeyError, TypeError):
            raise ConfigurationError(f"{meta} cannot be read as the description of a store") from None
        if version > FORMAT:
            raise NewerFormat
        return lock == "flock"

    def _agree(self, meta: Path) -> None:
        """The first to come decides for all which lock is used here; link() lets exactly one of them win."""
        lock = "flock" if hard_locks_work(self._root) else "lockfile"
        said = {"format": FORMAT, "uuid": secrets.token_hex(16), "lock": lock}
        draft = meta.with_name(f".meta.{secrets.token_hex(6)}")
        draft.write_text(json.dumps(said) + "\n")
        try:
            os.link(draft, meta)
        except FileExistsError:
            pass
        except OSError:  # no hard links on this file system
            if not meta.exists():
                draft.replace(meta)
        finally:
            draft.unlink(missing_ok=True)

    def catalog(self) -> DirectoryLog:
        return self._log(self._root / "studies")

    def log(self, uuid: str) -> DirectoryLog:
        if not _PEER.fullmatch(uuid):
            raise StoreCorrupt(f"{uuid!r} is not a study's uuid")
        return self._log(self._root / "study" / uuid)

    def _log(self, root: Path) -> DirectoryLog:
        if root not in self._logs:
            self._locks[root] = _Lock(root / "lock", hard=self._hard)
            self._logs[root] = DirectoryLog(root, self._locks[root])
        return self._logs[root]

    def beat(self, beat: Beat) -> None:
        with _reaching(self.path):
            _replace(self._beat_path(beat.peer), beat.value.encode())

    def beats(self, peers: Iterable[str]) -> dict[str, str]:
        found = {}
        with _reaching(self.path):
            for peer in peers:
                with contextlib.suppress(FileNotFoundError):
                    found[peer] = self._beat_path(peer).read_text(errors="replace")[:64]
        return found

    def _beat_path(self, peer: str) -> Path:
        if not _PEER.fullmatch(peer):
            return self._root / "beats" / "-"  # from a hostile log: a name that is no peer's never beats
        return self._root / "beats" / peer

    def artifacts(self) -> DirectoryArtifacts:
        return DirectoryArtifacts(self._root / "artifacts")

    def after_fork(self) -> None:
        self.close()

    def close(self) -> None:
        for log in self._logs.values():
            log.close()
        for lock in self._locks.values():
            lock.forget()


def _plainly(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
