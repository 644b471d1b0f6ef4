"""Writes files completely or not at all, reads files that others may have planted, and finds a user's own folders."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from hopaas_p2p.errors import ConfigurationError, explained
from hopaas_p2p.runtime.arguments import expanded
from hopaas_p2p.runtime.ownership import closing_fd, doubt, open_named, opened, own_folder

READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
"""How to open a file where others may write: no link is followed, and a FIFO does not block."""
_CHUNK: Final = 1 << 20  # bytes read at once
_LARGEST_TEXT: Final = 1 << 20  # bytes of a file of settings, or of a secret
_SMALL: Final = 16 << 20
_RATIO: Final = 32
"""A file's size may be up to _SMALL + _RATIO times the bytes that it occupies."""


def state_folder() -> Path:
    """The folder in which this user's processes on this machine keep shared files.

    Raises:
        RuntimeError: the user has no home directory.

    """
    base = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not base.is_absolute():  # otherwise it would depend on the working directory
        base = Path.home() / ".local" / "state"
    return base / "hopaas-p2p"


@contextlib.contextmanager
def replace_atomically(path: Path, *, private: bool = False, sync: bool = False) -> Iterator[Path]:
    """A draft to write to, which replaces `path` when the block ends without an error.

    A link at `path` is replaced, not followed. If others may write beside `path`, the draft is in a folder of this user
    only, so that nobody can put a link in the draft's place.

    Args:
        path: the file, in a directory that exists.
        private: only the owner may read the file.
        sync: the bytes are on disk before the name is.

    Raises:
        PermissionError: another user's link is in the place of the directory.
        OSError: the draft cannot be created or renamed, or `path` is a device or a pipe. The error names `path`, and no
            draft is left behind.

    """
    name = f".{secrets.token_hex(8)}.draft"
    if path.exists() and not path.is_file() and not path.is_dir():  # root would replace /dev/null for everybody
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    try:
        with _private_folder(path.parent, name) as (folder, parent):
            draft = folder / name
            try:
                if private:
                    draft.touch(mode=0o600, exist_ok=False)
                yield draft
                if sync:
                    with draft.open("rb") as file:
                        os.fsync(file.fileno())
                os.replace(draft, path.name, dst_dir_fd=parent)
            finally:
                with contextlib.suppress(OSError):
                    draft.unlink(missing_ok=True)
    except OSError as error:
        full = error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT)  # `write` names no file
        if full or name in str(error.filename) or error.filename == str(path.parent):
            error.filename = str(path)
        raise


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user may read, in a folder that is created if it is missing; raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with replace_atomically(path, private=True) as draft:
        draft.write_text(text, encoding="utf-8", errors="surrogateescape")


@contextlib.contextmanager
def scratch(name: str = "file") -> Iterator[Path]:
    """A path for a temporary file, in its own directory, which is removed at the end of the block."""
    with tempfile.TemporaryDirectory(prefix="hopaas-") as directory:
        yield Path(directory, name)


@contextlib.contextmanager
def _private_folder(path: Path, name: str) -> Iterator[tuple[Path, int]]:
    """A folder of this user only (`path`, or a new one in it while the block lasts), and a descriptor of `path`."""
    with closing_fd(open_named(path)) as fd:
        folder = opened(fd, path)
        if doubt(os.fstat(fd), path) is None:
            yield folder, fd
            return
        with own_folder(folder / name) as made:
            try:
                yield made, fd
            finally:
                with contextlib.suppress(OSError):
                    (folder / name).rmdir()


def open_regular(path: str | Path, flags: int = READ, *, named: bool = False) -> int:
    """A descriptor of a regular file that somebody else may have put there. Opening a FIFO does not block.

    Symbolic links are followed only if the user has named the path. A file to be written must be this user's, with only
    one name.

    Raises:
        OSError: the file does not exist, is not a regular file, or is a link that is not followed; or a file to be
            written belongs to somebody else or has another name.

    """
    try:
        fd = os.open(path, ((flags | READ) & ~os.O_TRUNC) & ~(os.O_NOFOLLOW if named else 0), 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "is a symbolic link, which is not followed", str(path)) from None
        raise
    status = os.fstat(fd)
    written = flags & os.O_ACCMODE != os.O_RDONLY
    if not stat.S_ISREG(status.st_mode):
        pipe = ", but a pipe. Put the text into a file of mode 600, and name that file"
        why = f"{path} is not a regular file{pipe * (named and stat.S_ISFIFO(status.st_mode))}"
    elif written and (status.st_uid, status.st_nlink) != (os.geteuid(), 1):
        why = f"{path} belongs to somebody else, or has another hard link"
    else:
        if flags & os.O_TRUNC:
            os.ftruncate(fd, 0)
        return fd
    os.close(fd)
    raise OSError(errno.EINVAL, why)


def read_regular(path: str | Path, *, limit: int, named: bool = False) -> bytes:
    """The contents of a regular file that somebody else may have put there, or written; see `open_regular`.

    Raises:
        OSError: the file does not exist, is not a regular file, or holds more than `limit` bytes.

    """
    fd = open_regular(path, named=named)
    try:
        return _contents(fd, path, limit)
    finally:
        os.close(fd)


def _contents(fd: int, path: str | Path, limit: int) -> bytes:
    size = os.fstat(fd).st_size
    found = b"" if size > limit else read_fd(fd, limit + 1)
    if max(size, len(found)) > limit:
        raise OSError(errno.EFBIG, f"has {max(size, len(found))} bytes; at most {limit} are allowed", str(path))
    return found


def read_own(path: Path, *, link: bool = True, owners: Iterable[int] = (), limit: int = _LARGEST_TEXT) -> str:
    """The text of one of this user's files.

    Args:
        path: the file.
        link: whether it may be a link. A planted link does no harm, because the file that it leads to is checked.
        owners: the users who may have written it; by default this user.
        limit: the most bytes that it may have.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the file cannot be read, is too large, or is not a regular file.
        PermissionError: somebody else may have written the file, or it is a link that is not allowed; the message says
            who or how.
        UnicodeDecodeError: the file is not text.

    """
    if not link and path.is_symlink():
        raise PermissionError(f"{path} is a link")
    with closing_fd(open_regular(path, named=link)) as fd:
        why = doubt(os.fstat(fd), path, owners=set(owners))
        for folder in {path.resolve().parent, path.parent.resolve()}:  # for the file, and for a link to it
            why = why or doubt(folder.stat(), folder, owners={os.geteuid(), 0})
        if why:
            raise PermissionError(why)
        return _contents(fd, path, limit).decode()


def read_named(path: Path) -> str:
    """The text of a file of settings or of a secret that the user named, whoever wrote it.

    Raises:
        OSError: the file cannot be read, is too large, or is not a regular file.
        UnicodeDecodeError: the file is not text.

    """
    return read_regular(expanded(path), limit=_LARGEST_TEXT, named=True).decode()


def read_secret(path: Path) -> str:
    """The text of a file that belongs to this user and only this user can read, without surrounding spaces.

    Raises:
        OSError, UnicodeDecodeError: as in `read_own`; PermissionError also if others can read it.

    """
    text = read_own(path).strip()
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise PermissionError(f"{path} can be read by others (chmod 600 {path})")
    return text


def secret_if_any(path: Path, what: str) -> str | None:
    """Like `read_secret`, but None if there is no such file.

    Raises:
        ConfigurationError: the file cannot be used; the message calls it by `what`, such as "login file", and says why.

    """
    with explained(f"the {what} {path} cannot be used"):
        try:
            return read_secret(path)
        except FileNotFoundError:
            return None
        except PermissionError as error:
            raise ConfigurationError(f"the {what} must be readable by you only: {error.strerror or error}") from None


def locked(path: Path, *, patience: float) -> contextlib.AbstractContextManager[object]:
    """Hold the lock on this file, which is created if it is missing, against other processes and threads.

    Raises:
        TimeoutError: another process or thread has held the lock for `patience` seconds.
        OSError: the file cannot be opened.

    """
    import filelock  # only here: once it is loaded, a fork at the wrong moment fails on Python 3.12 and newer

    return filelock.FileLock(path, timeout=patience, mode=0o600)


def is_mostly_holes(path: Path) -> bool:
    """Whether a file is large but occupies hardly any space, so that it is cheap to create but costly to copy."""
    data = at = 0
    try:
        with open(open_regular(path), "rb") as file:  # noqa: PTH123  # a descriptor
            size = os.fstat(file.fileno()).st_size
            while size > _SMALL + _RATIO * data:  # st_blocks may be 0 for seconds after a file was written
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
                at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
                data += at - start
    except OSError as error:  # an unreadable file does not count
        return error.errno == errno.ENXIO  # no bytes follow
    return False


def sha256_of(path: Path) -> str:
    """The checksum of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_fd(fd: int, limit: int) -> bytes:
    """The contents of an open file, up to `limit` bytes, however many are added meanwhile.

    No file object is used, because Ctrl-C before its `with` would leave one that warns when it is collected.
    """
    chunks = []
    while limit > 0 and (chunk := os.read(fd, min(_CHUNK, limit))):
        chunks.append(chunk)
        limit -= len(chunk)
    return b"".join(chunks)
