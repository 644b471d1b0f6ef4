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
and broken when its holder's process is gone, or silent for longer than any write takes. Readers take no lock.
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
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, NoReturn

import filelock

from hopaas_p2p.core import codec
from hopaas_p2p.core.records import FORMAT
from hopaas_p2p.errors import ConfigurationError, NewerFormat, StoreCorrupt, StoreUnreachable, StudyDeleted
from hopaas_p2p.stores.base import SNAPSHOT_EVERY, SNAPSHOTS_KEPT, Beat, Entry, Outgoing, Progress, Receipt

_SEGMENT: Final = SNAPSHOT_EVERY  # a snapshot's tail then begins with a file of its own
_HEAD: Final = 9
_LOCK_TIMEOUT: Final = 30.0  # seconds; the holder has a stopped process or a dead disk
_SPINS: Final = 20
_CHUNK: Final = 1 << 20  # bytes of a file copied at once
_LOCK_LIFETIME: Final = 20.0  # seconds after which a lock file of a node that died is broken; a write takes some 10 ms
_LOCKS: Final = ("flock", "lockfile")
_LOCAL_LOCKS: Final = frozenset({"nolock", "localflock", "local_lock=all", "local_lock=flock"})
"""Mount options (NFS, Lustre) with which flock excludes nobody on other nodes."""
_NOT_MOUNTED: Final = "the store is not there; is its file system mounted?"
_KEY: Final = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")
_PEER: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_UNREACHABLE: Final = frozenset(
    {errno.EIO, errno.ESTALE, errno.ENOENT, errno.EACCES, errno.EPERM, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOSPC}
    | {errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.ENOTDIR, errno.ENXIO, errno.ENODEV, errno.ENOTCONN}
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
        self._fd_writable = False

    def exchange(self, outgoing: Outgoing | None, since: int, beat: Beat | None = None) -> Receipt:
        with _reaching(self._root):
            if outgoing is None:
                return Receipt(self._read(since))
            with self._lock:
                entries = self._read(since, for_writing=True)
                found = next((entry.lsn for entry in entries if entry.payload == outgoing.payload), None)
                if found is None:
                    entries.append(self._append(outgoing.payload))
                else:  # it is there, but perhaps its writer was cut off before it was safe
                    os.fdatasync(self._open(found, for_writing=True))
            return Receipt(entries)

    def changed(self, since: int) -> bool:
        if since != self._lsn:
            return True
        try:
            if self._fd >= 0 and self._fd_segment == self._segment(since + 1):
                now = os.fstat(self._fd)
                return now.st_size != self._offset or now.st_nlink == 0
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

    def after_fork(self) -> None:
        """Forget where the last read ended: another thread of the parent may have been in the middle of one."""
        self.close()
        self._lsn = -1

    # --- frames ---

    @staticmethod
    def _segment(lsn: int) -> int:
        return (lsn - 1) // _SEGMENT * _SEGMENT + 1

    def _path(self, lsn: int) -> Path:
        return self._log / f"{self._segment(lsn):020d}"

    def _open(self, lsn: int, *, for_writing: bool, create: bool = False) -> int:
        """The descriptor of the segment that holds `lsn`, kept open between calls."""
        segment = self._segment(lsn)
        kept = self._fd_segment == segment and (self._fd_writable or not for_writing)
        if not kept or os.fstat(self._fd).st_nlink == 0:
            self.close()
            self._fd = self._open_anew(self._path(lsn), for_writing=for_writing, create=create)
            self._fd_segment = segment
        return self._fd

    def _open_anew(self, path: Path, *, for_writing: bool, create: bool) -> int:
        try:
            self._fd_writable = True
            return os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o666)
        except OSError as error:  # who may only look, looks
            if for_writing or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            self._fd_writable = False
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def _read(self, since: int, *, for_writing: bool = False) -> list[Entry]:
        """The commits after `since`, whole ones only. Leaves `_lsn` and `_offset` at the end of what is sound."""
        if since != self._lsn:
            self._seek(since)
        entries: list[Entry] = []
        while True:
            try:
                fd = self._open(self._lsn + 1, for_writing=for_writing)
            except FileNotFoundError:
                if self._lsn and not self._log.is_dir():
                    self._explain_loss()
                break
            if not self._take(fd, entries, for_writing=for_writing) or self._lsn % _SEGMENT:
                break
            self._offset = 0
        return entries

    def _explain_loss(self) -> NoReturn:
        """A log that was here is not any more."""
        if self._root.parent.is_dir():
            raise StudyDeleted
        raise FileNotFoundError(errno.ENOENT, _NOT_MOUNTED)

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
        if position < len(data):
            self._look_at_tail(fd, data[position:], for_writing=for_writing)
        return found

    def _look_at_tail(self, fd: int, tail: bytes, *, for_writing: bool) -> None:
        """See what an unsound end is: a commit being written, one that never will be, or damage."""
        if for_writing:
            self._cut(fd, tail)
        elif self._holds_more(tail):  # pages may have been read in the middle of a write; under the lock they are not
            with contextlib.suppress(StoreUnreachable, PermissionError), self._lock:
                self._refuse_damage(os.pread(fd, os.fstat(fd).st_size - self._offset, self._offset))

    def _holds_more(self, tail: bytes) -> bool:
        return _holds_frame(tail) or self._path(self._segment(self._lsn + 1) + _SEGMENT).exists()

    def _cut(self, fd: int, tail: bytes) -> None:
        """Take away what a writer left unfinished, unless there is something sound behind it."""
        self._refuse_damage(tail)
        os.ftruncate(fd, self._offset)

    def _refuse_damage(self, tail: bytes) -> None:
        if _frame_end(tail, 0) is None and self._holds_more(tail):
            where = self._path(self._lsn + 1)
            raise StoreCorrupt(
                f"{where} is damaged at byte {self._offset}, and holds sound commits behind it. "
                "Nothing was changed: bring the file back from a backup, or export the study and import it elsewhere."
            )

    def _seek(self, since: int) -> None:
        """Go to the end of commit `since` by reading its segment from the start."""
        first = self._segment(since + 1) if since else 1
        self._lsn, self._offset = first - 1, 0
        if self._lsn == since:
            return
        fd = self._open(self._lsn + 1, for_writing=False)
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
        fd = self._open(lsn, for_writing=True, create=True)
        self._lock.still_held()
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

    def __init__(self, path: Path, *, store: Path, hard: bool) -> None:
        self._path = path
        self._store = store
        self._hard = hard
        self._fd = -1
        self._soft: filelock.SoftFileLock | None = None
        self._since = 0.0

    def __enter__(self) -> None:
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
            raise FileNotFoundError(errno.ENOENT, _NOT_MOUNTED)
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


# --- artifacts ---------------------------------------------------------------------------------------------------


class DirectoryArtifacts:
    """Files under `v1/artifacts/`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, key: str, source: Path, progress: Progress | None = None) -> None:
        path = self._path(key)
        with _reaching(self._root):
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
            try:
                with source.open("rb") as given, draft.open("wb") as taken:
                    _copy(given, taken, progress)
                    taken.flush()
                    os.fsync(taken.fileno())
                draft.replace(path)
            finally:
                draft.unlink(missing_ok=True)

    def get(self, key: str, target: Path, progress: Progress | None = None) -> None:
        with _reaching(self._root):
            try:
                given = self._path(key).open("rb")
            except FileNotFoundError:
                raise KeyError(key) from None
            with given, target.open("wb") as taken:
                _copy(given, taken, progress)

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


def _copy(given: BinaryIO, taken: BinaryIO, progress: Progress | None) -> None:
    while chunk := given.read(_CHUNK):
        taken.write(chunk)
        if progress is not None:
            progress(len(chunk))


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
            version, lock = int(said["format"]), str(said.get("lock", "?"))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ConfigurationError(
                f"{meta} cannot be read as the description of a store; bring it back from a backup"
            ) from None
        if version > FORMAT:
            raise NewerFormat
        if lock not in _LOCKS:
            raise ConfigurationError(f"{meta} asks for a lock of the kind {lock!r}; known are {', '.join(_LOCKS)}")
        if lock == "flock" and os.access(self._root, os.W_OK) and not hard_locks_work(self._root):
            raise ConfigurationError(
                f"the users of {self.path} lock with flock, which does not exclude on this node: look at its mount "
                "options. Mount it as on the other nodes, or begin a new store from this one."
            )
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
            self._locks[root] = _Lock(root / "lock", store=self._root, hard=self._hard)
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
        for log in self._logs.values():
            log.after_fork()
        self.close()

    def close(self) -> None:
        for log in self._logs.values():
            log.close()
        for lock in self._locks.values():
            lock.forget()


def _plainly(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
