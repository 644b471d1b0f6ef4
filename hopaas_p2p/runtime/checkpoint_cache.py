"""Copies of checkpoints on a disk near the jobs of a site, so that a trial is resumed without a long download.

`HOPAAS_CHECKPOINT_CACHE` names a directory that the jobs of one site share, such as scratch. Without it nothing is
kept. A copy is a convenience: whoever reads it checks its sum, and what cannot be kept or read is passed over. The
copies of a user are in a folder of that user's alone, which each call opens and holds: others may replace it by a link
at any time, and nothing is read, written or removed where that leads.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Final, NamedTuple

from hopaas_p2p.runtime import settings
from hopaas_p2p.runtime.atomic import open_regular, replace_atomically
from hopaas_p2p.runtime.ownership import opened, own_folder

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_SUM: Final = re.compile("[0-9a-f]{64}")
_log: Final = logging.getLogger("hopaas_p2p")


class CheckpointCache(NamedTuple):
    """The copies of one user, by the sums of their bytes. The oldest go first."""

    folder: Path
    most: int
    """Bytes of all copies together."""

    def keep(self, sha256: str, source: Path) -> None:
        """Keep a copy of this file. Blocks while it is written; an error is logged, each cause once."""
        try:
            size = source.stat().st_size
            with own_folder(self.folder) as folder:
                if size > self.most or os.path.lexists(folder / sha256):
                    return
                kept = _kept(folder)
                _free(kept, sum(one for _, one, _ in kept) + size - self.most)
                try:
                    _copy(source, folder / sha256)
                except OSError as error:
                    if error.errno not in _FULL:
                        raise
                    _free(_kept(folder), size)  # others fill the disk: as much goes as comes
                    _copy(source, folder / sha256)
        except OSError as error:
            why = error.strerror or error
            _warn_once(f"a checkpoint was not copied to HOPAAS_CHECKPOINT_CACHE, in {self.folder}: {why}")

    def fetch(self, sha256: str, target: Path) -> bool:
        """Copy what is kept under this sum to `target`; False if nothing is. Its bytes are still to be checked."""
        if _SUM.fullmatch(sha256) is None:  # a record may say anything
            return False
        try:
            with own_folder(self.folder) as folder:
                fd = open_regular(folder / sha256)
                try:
                    shutil.copyfile(opened(fd, folder / sha256), target)
                finally:
                    os.close(fd)
                with contextlib.suppress(OSError):  # another job has made room meanwhile, or may only read
                    os.utime(folder / sha256, follow_symlinks=False)
        except OSError:
            return False
        return True

    def drop(self, sha256: str) -> None:
        """Remove a copy that was fetched, and is damaged."""
        with contextlib.suppress(OSError), own_folder(self.folder) as folder:
            (folder / sha256).unlink()


def _copy(source: Path, target: Path) -> None:
    with replace_atomically(target, private=True) as draft:
        shutil.copyfile(source, draft)


def _kept(folder: Path) -> list[tuple[float, int, Path]]:
    """When each copy was used last, its size, and where it is; the oldest first."""
    kept = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # a draft of another job that was renamed, or made room
            status = path.lstat()
            kept.append((status.st_mtime, status.st_size, path))
    return sorted(kept)


def _free(kept: list[tuple[float, int, Path]], size: int) -> None:
    """Remove the oldest of these, until so many bytes are free or none is left."""
    for _, one, path in kept:
        if size <= 0:
            return
        path.unlink(missing_ok=True)
        size -= one


def checkpoint_cache() -> CheckpointCache | None:
    """The cache that the settings name, made if it is not there; None if they name none, or it cannot be used."""
    found = settings.checkpoint_cache()
    if found is None:
        return None
    folder, most = found
    try:
        cache = CheckpointCache(folder.expanduser() / f"hopaas-checkpoints-{os.geteuid()}", most)
        with own_folder(cache.folder):
            return cache
    except (OSError, RuntimeError) as error:  # RuntimeError: no such home
        _warn_once(f"HOPAAS_CHECKPOINT_CACHE cannot be used: {error}")
        return None


@functools.cache
def _warn_once(text: str) -> None:
    _log.warning("%s", text)
