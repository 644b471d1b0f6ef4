"""Remembers the stores that this user has seen on this machine, so that none is recreated while it is unmounted.

A note per store, in `$XDG_STATE_HOME/hopaas-p2p/stores`, says which store was in which directory, and on which mount.
If the directory is now empty and on another mount, the store's file system is not mounted, and the store counts as
unreachable. If the mount is the same, somebody has removed the store, and a new one may be created.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
from pathlib import Path
from typing import Final

import msgspec

from hopaas_p2p.errors import StoreAway, waits_for
from hopaas_p2p.runtime.atomic import read_regular, replace_atomically, state_folder
from hopaas_p2p.runtime.ownership import own_folder
from hopaas_p2p.stores.directory.mounts import mount_of

_LIMIT: Final = 1 << 16  # bytes of a note


class KnownStore(msgspec.Struct, frozen=True):
    """A store in a directory, as last found."""

    uuid: str
    mount: tuple[str, str]
    """The mount point of the store's file system, and the type of that file system."""


def remember(path: Path, uuid: str) -> None:
    """Record that this store exists. If the note cannot be written, the store is not recognized later."""
    seen = KnownStore(uuid, mount_point(path))
    with contextlib.suppress(OSError, RuntimeError, StoreAway):
        if known(path) != seen:
            note = _note(path)
            with own_folder(note.parent) as folder, replace_atomically(folder / note.name, private=True) as draft:
                draft.write_bytes(msgspec.json.encode(seen))


def check_not_away(path: Path) -> None:
    """Check a directory before a store is created in it, or reported missing.

    Raises:
        StoreAway: the directory had a store, on a file system that is not mounted now.

    """
    seen = known(path)
    if seen is not None and seen.mount != mount_point(path):
        raise StoreAway(
            f"{path} has no store now. This machine has seen one there, when {seen.mount[0]} was mounted "
            f"({seen.mount[1]}), so no store is created in its place. Mount it again; if that store is no "
            f"longer wanted, remove {_note(path)}"
        )


def known(path: Path) -> KnownStore | None:
    """The store that was last found in this directory; None if there was none.

    Raises:
        StoreAway: the note cannot be read at the moment, so there may have been a store.

    """
    with contextlib.suppress(OSError, RuntimeError, msgspec.MsgspecError):
        note = _note(path)
        with waits_for(f"this machine's note about {path}, in {note},", StoreAway):
            return msgspec.json.decode(read_regular(note, limit=_LIMIT), type=KnownStore)
    return None


def mount_point(path: Path) -> tuple[str, str]:
    """Where the file system of this path is mounted, and its type."""
    mount = mount_of(path)
    return mount.point, mount.kind


def _note(path: Path) -> Path:
    name = hashlib.blake2b(
        f"{socket.gethostname()}:{path}".encode(errors="surrogateescape"), digest_size=12
    ).hexdigest()
    return state_folder() / "stores" / f"{name}.json"
