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
import json
import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from hopaas_p2p.core.records import FORMAT
from hopaas_p2p.errors import ConfigurationError, NewerFormat, StoreCorrupt, StoreUnreachable
from hopaas_p2p.stores.base import Beat
from hopaas_p2p.stores.directory.artifacts import DirectoryArtifacts
from hopaas_p2p.stores.directory.files import reaching, replace
from hopaas_p2p.stores.directory.lock import Lock, hard_locks_work
from hopaas_p2p.stores.directory.log import DirectoryLog

BRIDGE: Final = "bridge.json"
_LOCKS: Final = ("flock", "lockfile")
_PEER: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


class DirectoryStore:
    """Logs, snapshots and beats under one directory, which it creates if its parent exists.

    Raises:
        ConfigurationError: a file stands where the directory should be, or nothing where its parent should; it cannot
            be read or created, or it was made with another kind of lock than this node can keep.
        NewerFormat: a newer version wrote it.

    """

    freshness = 0.0
    beats_ride = False
    snapshots = True

    def __init__(self, path: str | os.PathLike[str], *, create: bool = True) -> None:
        self.path = Path(path).expanduser().absolute()
        self.url = self.path.as_uri()
        self._root = self.path / "v1"
        self._logs: dict[Path, DirectoryLog] = {}
        self._locks: dict[Path, Lock] = {}
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
            if not self.path.parent.is_dir():  # a typo, or a file system that is not mounted here
                raise ConfigurationError(
                    f"there is no directory {self.path.parent} to make the store {self.path.name!r} in; "
                    f"is its file system mounted? Else: mkdir -p {self.path.parent}"
                )
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

    @property
    def bridged_to(self) -> str | None:
        """The store whose studies are mirrored here, if this is one end of a bridge; see `stores.bridged`."""
        try:
            return str(json.loads((self._root / BRIDGE).read_text())["to"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            raise ConfigurationError(f"{self._root / BRIDGE} cannot be read; start the bridge anew") from None

    def bridge_to(self, url: str) -> None:
        """Make this one end of a bridge, for good."""
        replace(self._root / BRIDGE, json.dumps({"to": url}).encode() + b"\n")

    def catalog(self) -> DirectoryLog:
        return self._log(self._root / "studies")

    def log(self, uuid: str) -> DirectoryLog:
        if not _PEER.fullmatch(uuid):
            raise StoreCorrupt(f"{uuid!r} is not a study's uuid")
        return self._log(self._root / "study" / uuid)

    def _log(self, root: Path) -> DirectoryLog:
        if root not in self._logs:
            self._locks[root] = Lock(root / "lock", store=self._root, hard=self._hard)
            self._logs[root] = DirectoryLog(root, self._locks[root])
        return self._logs[root]

    def beat(self, beat: Beat) -> None:
        with reaching(self.path):
            replace(self._beat_path(beat.peer), beat.value.encode())

    def beats(self, peers: Iterable[str]) -> dict[str, str]:
        found = {}
        with reaching(self.path):
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
