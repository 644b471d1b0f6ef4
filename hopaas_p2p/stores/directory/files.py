"""Small deeds on files that more than one part of a directory store does: replaced whole, synced, with errors told."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hopaas_p2p.errors import StoreUnreachable

_UNREACHABLE: Final = frozenset(
    {errno.EIO, errno.ESTALE, errno.ENOENT, errno.EACCES, errno.EPERM, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOSPC}
    | {errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.ENOTDIR, errno.ENXIO, errno.ENODEV, errno.ENOTCONN}
)


@contextlib.contextmanager
def reaching(path: Path) -> Iterator[None]:
    """File system trouble as our own error: it may pass, and nothing was acknowledged."""
    try:
        yield
    except OSError as error:
        if error.errno in _UNREACHABLE:
            raise StoreUnreachable(f"{path}: {error.strerror}. Nothing acknowledged is lost.") from error
        raise


def replace(path: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        draft.write_bytes(data)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def sync_directory(path: Path) -> None:
    """See that a new file in this directory, and the directory itself, survive a loss of power."""
    for directory in (path, path.parent):
        fd = os.open(directory, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # some network file systems have no fsync of directories
                os.fsync(fd)
        finally:
            os.close(fd)
