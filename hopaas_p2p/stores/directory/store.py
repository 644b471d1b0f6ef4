"""A store in a directory, on a local file system or one that several machines share.

`stores.objects.store` and `stores.objects.log` define the names of objects, and `files` writes them. There is no lock.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shlex
import time
from pathlib import Path
from typing import Final

from hopaas_p2p.core.names import valid_name
from hopaas_p2p.errors import TEMPORARY, ConfigurationError, NoStore, StoreAway
from hopaas_p2p.runtime.arguments import expanded
from hopaas_p2p.runtime.atomic import read_regular
from hopaas_p2p.stores.directory import seen
from hopaas_p2p.stores.directory.files import (
    DESCRIPTION,
    Directory,
    describe,
    links_work,
    look_anew,
    make_folder,
    not_permitted,
    reaching,
)
from hopaas_p2p.stores.directory.log import FolderLog
from hopaas_p2p.stores.directory.mounts import mount_of
from hopaas_p2p.stores.objects.store import FORMAT, META, ObjectBackedStore, uuid_in

_NO_FILE: Final = (errno.EINVAL, errno.EFBIG, errno.ELOOP)
"""The errors of `read_regular` for something that is not a file."""
_LOOK_EVERY: Final = 1.0  # seconds between reads of a directory on a file server
_BEATS: Final = 40 * 86_400.0  # seconds; the longest silence that a peer may ask for is 30 days
_SWEEP_EVERY: Final = 86_400.0  # seconds
_WRITTEN_WITHIN: Final = 2.0  # seconds within which the creator of a description writes it


def _is_there(path: Path) -> bool:
    """Whether something with that name exists; raises an OSError if that cannot be determined."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        path.lstat()
        return True
    return False


class DirectoryStore(ObjectBackedStore[Directory]):
    """Logs, snapshots and beats under one directory, which is created (with `create`) if its parent exists.

    Raises:
        ConfigurationError: there is a file at this path, or its parent is missing; it cannot be read or created,
            or its file system has no symbolic links.
        NewerFormat: a newer version of this program created the store.
        Denied: the store's permissions keep this user out.
        NoStore: there is no store, and `create` is False.
        StoreAway: there was a store, and its file system is not mounted or cannot be read now.

    """

    logs_kept = 1000

    def __init__(self, path: str | os.PathLike[str], *, create: bool = True) -> None:
        super().__init__()
        self.path = expanded(path).absolute()
        self.url = self.path.as_uri()
        self._root = self.path / "v1"
        self._proven = False
        self._sweep_at = time.monotonic()
        try:
            self._prepare(create=create)
        except OSError as error:
            if error.errno in TEMPORARY and seen.known(self.path) is not None:
                raise StoreAway(f"{self.path}: {error.strerror}. Nothing was created in its place") from None
            if isinstance(error, PermissionError) and os.path.lexists(self.path) and not os.access(self._root, os.R_OK):
                raise not_permitted(self.path, "not read it") from None
            said = error.strerror or str(error)
            if error.errno in _NO_FILE and error.filename:
                said = f"{Path(error.filename).name} {said}"
            raise ConfigurationError(f"cannot use {self.path} as a store: {said}") from None

    def _prepare(self, *, create: bool) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise ConfigurationError(f"{self.path} is a file; a store is a directory. Choose another path.")
        meta = self._root / META
        look_anew(str(self._root))
        if self._root.is_symlink():
            raise ConfigurationError(f"{self._root} is a symbolic link that somebody put there: remove it")
        if not _is_there(meta):
            seen.check_not_away(self.path)
            if not create:
                cure = f"hopaas-p2p study create NAME -s {shlex.quote(str(self.path))}"
                raise NoStore(f"there is no store in {self.path}; run: {cure}")
            if not self.path.parent.is_dir():  # a typo, or a file system that is not mounted here
                raise ConfigurationError(
                    f"there is no directory {self.path.parent} to make the store {self.path.name!r} in; "
                    f"is its file system mounted? Otherwise: mkdir -p {self.path.parent}"
                )
            for folder in (self.path, self._root):
                make_folder(folder)
            self._prove()
            describe(meta, {"format": FORMAT, "uuid": secrets.token_hex(16)})
        self.objects = Directory(self._root, meta=META)
        deadline = time.monotonic() + _WRITTEN_WITHIN
        while not (text := read_regular(meta, limit=DESCRIPTION)) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.objects.uuid = uuid_in(text, meta)
        seen.remember(self.path, self.objects.uuid)
        self.freshness = _LOOK_EVERY if self.objects.shared else 0.0
        self.immediate = not self.objects.shared

    def remove_beat(self, peer: str) -> None:
        if valid_name(peer):
            self.objects.delete([f"beats/{peer}"])

    def sweep_beats(self) -> None:
        """Remove beats 40 days older than the newest one, by the file system's clock, at most once per day."""
        if time.monotonic() < self._sweep_at:
            return
        self._sweep_at = time.monotonic() + _SWEEP_EVERY
        beaten = {key: self.objects.modified(key) or 0.0 for key in self.objects.listed("beats/")}
        newest = max(beaten.values(), default=0.0)
        self.objects.discard([key for key, at in beaten.items() if 0.0 < at < newest - _BEATS])

    def _prove(self) -> None:
        """Prove once, before this process writes, that exactly one of several creators of a name succeeds."""
        if not self._proven and not links_work(self._root):
            kind = mount_of(self._root).kind or "of this kind"
            raise ConfigurationError(
                f"{self.path} is on a file system ({kind}) without symbolic links, which a store needs. Use a "
                "directory on a local disk, NFS, CephFS or GlusterFS, or another store"
            )
        self._proven = True

    # --- logs ---

    def _new_log(self, root: str) -> FolderLog:
        return FolderLog(self, root)

    def prove(self, root: str) -> bool:
        with reaching(self._root / META):
            self._prove()
        return True
