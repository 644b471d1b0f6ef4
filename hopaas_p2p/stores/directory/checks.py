"""What `hopaas-p2p doctor` checks in a directory: its file system, write-once names, clock and free space."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Iterator
from typing import Final

from hopaas_p2p.net.findings import Finding, clock
from hopaas_p2p.stores.directory.files import Directory
from hopaas_p2p.stores.directory.mounts import NFS
from hopaas_p2p.stores.directory.store import DirectoryStore
from hopaas_p2p.stores.objects.race import race
from hopaas_p2p.stores.objects.store import FORMAT

_ROOM: Final = 100 << 20  # bytes: about 100,000 trials
_SHOWN: Final = ("vers", "proto", "nolock", "nocto", "noac", "actimeo", "lookupcache", "soft", "softerr", "hard", "ro")


def checks(store: DirectoryStore) -> Iterator[Finding]:
    """The findings about this directory."""
    yield Finding("format", f"{FORMAT}, store {store.objects.uuid}")
    yield file_system(store.objects)
    yield race(store.objects, "beats/race-").finding("commits would be lost; use a directory on another file system")
    key = f"beats/clock-{secrets.token_hex(6)}"
    try:
        before = time.time()
        store.objects.put(key, b"")
        yield clock((store.objects.modified(key) or before) - before)
    finally:
        store.objects.delete([key])
    room = shutil.disk_usage(store.path).free
    cure = "free some space; a commit that does not fit waits, and training waits with it"
    yield Finding("room", f"{room / (1 << 30):.1f} GiB free", passed=room > _ROOM, cure=cure)


def file_system(objects: Directory) -> Finding:
    """The finding about the file system: its type, and the mount options that matter."""
    mount = objects.mount
    if not mount.kind:
        return Finding("file system", "the system does not report its type")
    options = ", ".join(one for one in mount.options if one.partition("=")[0] in _SHOWN)
    where = f"{mount.kind} from {mount.source}" if mount.shared else f"{mount.kind}, on this machine only"
    detail = f"{where}{f' ({options})' if options and mount.shared else ''}"
    looks_anew = mount.kind not in NFS or mount.option("nocto") is None
    cure = "mount it without nocto; for up to a minute, this machine may see removed files"
    return Finding("file system", detail, passed=looks_anew, cure=cure)
