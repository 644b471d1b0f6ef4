"""Files that are there whole or not at all, files that others may have put there, and where a user's own are."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"""How to open a file where others may write: no link is followed, and a FIFO holds nobody up."""
_CHUNK: Final = 1 << 20  # bytes read at once


def state_folder() -> Path:
    """Where this user's processes on this machine keep what they share.

    Raises:
        RuntimeError: a user without a home.

    """
    base = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not base.is_absolute():  # else it would move with the process
        base = Path.home() / ".local" / "state"
    return base / "hopaas-p2p"


@contextlib.contextmanager
def replace_atomically(path: Path, *, private: bool = False, sync: bool = False) -> Iterator[Path]:
    """A draft beside `path` to write to, which takes the place of `path` when the block ends without an error.

    Args:
        path: in a directory that exists.
        private: only the owner may read the file.
        sync: the bytes are on the disk before the name is.

    Raises:
        OSError: the draft cannot be made or renamed; it names `path`, and no draft is left behind.

    """
    draft = path.with_name(f".{secrets.token_hex(8)}.draft")
    try:
        if private:
            draft.touch(mode=0o600, exist_ok=False)
        yield draft
        if sync:
            with draft.open("rb") as file:
                os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        if error.filename == str(draft):
            error.filename = str(path)
        raise
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def read_at_most(path: Path, limit: int) -> bytes:
    """What is in a file that the user names, and that somebody else may have written.

    Raises:
        OSError: it cannot be read, or holds more than `limit` bytes.

    """
    with path.open("rb") as file:
        found = read_fd(file.fileno(), limit + 1)
    if len(found) > limit:
        raise OSError(errno.EFBIG, f"holds more than {limit:,} bytes", str(path))
    return found


@contextlib.contextmanager
def open_regular(path: str | Path, *, limit: int) -> Iterator[int]:
    """A descriptor of a file, in a directory where others may write.

    Raises:
        OSError: it is not there, is a link, a FIFO or a device, or holds more than `limit` bytes.

    """
    try:
        fd = os.open(path, READ)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "is a symbolic link, which is not followed", str(path)) from None
        raise
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is not an ordinary file", str(path))
        if status.st_size > limit:
            raise OSError(errno.EFBIG, f"holds {status.st_size} bytes, and {limit} are expected at most", str(path))
        yield fd
    finally:
        os.close(fd)


def read_regular(path: str | Path, *, limit: int) -> bytes:
    """What is in such a file. Raises OSError as `open_regular`."""
    with open_regular(path, limit=limit) as fd:
        return read_fd(fd, limit)


def sha256_of(path: Path) -> str:
    """The checksum of what is in a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_fd(fd: int, limit: int) -> bytes:
    """What is in an open file, up to so many bytes, however many are added meanwhile.

    Not by a file object: Ctrl-C before its `with` would leave one that warns when it goes.
    """
    chunks = []
    while limit > 0 and (chunk := os.read(fd, min(_CHUNK, limit))):
        chunks.append(chunk)
        limit -= len(chunk)
    return b"".join(chunks)
