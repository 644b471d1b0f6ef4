"""The log of a directory store: segments of frames, read without a lock and appended to under one; see `directory`."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

from hopaas_p2p.core import codec
from hopaas_p2p.errors import StoreCorrupt, StoreUnreachable, StudyDeleted
from hopaas_p2p.stores.base import SNAPSHOT_EVERY, SNAPSHOTS_KEPT, Beat, Entry, Outgoing, Receipt
from hopaas_p2p.stores.directory.files import reaching, replace, sync_directory
from hopaas_p2p.stores.directory.lock import NOT_MOUNTED, Lock

_SEGMENT: Final = SNAPSHOT_EVERY  # a snapshot's tail then begins with a file of its own
_HEAD: Final = 9


class DirectoryLog:
    """One log: segments of frames, read from where the last read ended."""

    def __init__(self, root: Path, lock: Lock) -> None:
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
        with reaching(self._root):
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

    def newest_snapshot(self, *, before: int | None = None) -> tuple[int, bytes] | None:
        with reaching(self._root):
            for path in sorted(self._snapshots.glob("[0-9]" * 20), reverse=True):
                if before is not None and int(path.name) >= before:
                    continue
                with contextlib.suppress(FileNotFoundError):
                    return int(path.name), path.read_bytes()
            return None

    def put_snapshot(self, lsn: int, data: bytes) -> None:
        with reaching(self._root):
            self._snapshots.mkdir(parents=True, exist_ok=True)
            replace(self._snapshots / f"{lsn:020d}", data)
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

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if self._fd >= 0:  # at the end of the program `os` may be gone already
            close(self._fd)
            self._fd = -1

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
        return self._look(lsn, for_writing=for_writing, create=create)[0]

    def _look(self, lsn: int, *, for_writing: bool, create: bool = False) -> tuple[int, int]:
        """The descriptor of the segment that holds `lsn`, and its size."""
        segment = self._segment(lsn)
        if self._fd_segment == segment and (self._fd_writable or not for_writing):
            now = os.fstat(self._fd)
            if now.st_nlink:
                return self._fd, now.st_size
        self.close()
        self._fd = self._open_anew(self._path(lsn), for_writing=for_writing, create=create)
        self._fd_segment = segment
        return self._fd, os.fstat(self._fd).st_size

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
                fd, size = self._look(self._lsn + 1, for_writing=for_writing)
            except FileNotFoundError:
                if self._lsn and not self._log.is_dir():
                    self._explain_loss()
                break
            if not self._take(fd, size, entries, for_writing=for_writing) or self._lsn % _SEGMENT:
                break
            self._offset = 0
        return entries

    def _explain_loss(self) -> NoReturn:
        """A log that was here is not any more."""
        if self._root.parent.is_dir():
            raise StudyDeleted
        raise FileNotFoundError(errno.ENOENT, NOT_MOUNTED)

    def _take(self, fd: int, size: int, entries: list[Entry], *, for_writing: bool) -> bool:
        """Read frames from the offset to the end of this segment, `size`; whether there was any."""
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
            self._open(lsn, for_writing=True, create=True)
        fd = self._fd  # of the segment's end, which was read under this lock
        self._lock.still_held()
        frame = b"%08x %b\n" % (len(payload), payload)
        if os.pwrite(fd, frame, self._offset) != len(frame):
            raise StoreUnreachable(f"{self._path(lsn)}: the disk took only a part of a commit; is it full?")
        os.fdatasync(fd)
        if fresh:
            sync_directory(self._log)
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
