"""What `hopaas-p2p doctor` looks at in a directory: its file system, the names that it rests on, clock and room."""

from __future__ import annotations

import json
import secrets
import shutil
import time
from collections.abc import Iterator
from typing import Final

from hopaas_p2p.net.findings import Finding
from hopaas_p2p.runtime.atomic import read_regular
from hopaas_p2p.stores.directory.files import DESCRIPTION, Directory, links_work
from hopaas_p2p.stores.directory.store import DirectoryStore
from hopaas_p2p.stores.objects.race import race

_ROOM: Final = 100 << 20  # bytes; some 100,000 trials
_CLOCKS_AGREE: Final = 60.0  # seconds
_SHOWN: Final = ("vers", "proto", "nolock", "nocto", "noac", "actimeo", "lookupcache", "soft", "softerr", "hard", "ro")


def checks(store: DirectoryStore) -> Iterator[Finding]:
    """The findings about this directory."""
    root = store.path / "v1"
    said = json.loads(read_regular(root / "meta.json", limit=DESCRIPTION))
    yield Finding("format", f"{said['format']}, store {said['uuid']}")
    yield file_system(store.objects)
    works = links_work(root)
    cure = "commits would be lost; use a directory on another file system"
    detail = "a name can be created only once" if works else "symbolic links do not work, or can be created twice"
    yield Finding("write-once names", detail, passed=works, cure=cure)
    yield race(store.objects, "beats/race-", cure=cure)
    yield _clock(store)
    room = shutil.disk_usage(store.path).free
    cure = "free some space: a commit that does not fit waits, and training waits with it"
    yield Finding("room", f"{room / (1 << 30):.1f} GiB free", passed=room > _ROOM, cure=cure)


def file_system(objects: Directory) -> Finding:
    """Its type and the options that matter."""
    mount = objects.mount
    if not mount.kind:
        return Finding("file system", "the system does not say which")
    options = ", ".join(one for one in mount.options if one.partition("=")[0] in _SHOWN)
    where = f"{mount.kind} from {mount.source}" if mount.shared else f"{mount.kind}, on this machine only"
    detail = f"{where}{f' ({options})' if options and mount.shared else ''}"
    looks_anew = not mount.nfs or mount.option("nocto") is None
    cure = "mount without nocto: for up to a minute, this machine may see what is no longer there"
    return Finding("file system", detail, passed=looks_anew, cure=cure)


def _clock(store: DirectoryStore) -> Finding:
    key = f"beats/clock-{secrets.token_hex(6)}"
    try:
        before = time.time()
        store.objects.put(key, b"")
        theirs = store.objects.modified(key) or before
    finally:
        store.objects.delete([key])
    apart = abs(theirs - before)
    detail = f"the clock of the file system differs from ours by {apart:.1f} s"
    cure = "nothing depends on it, but times are shown wrongly; run NTP"
    return Finding("clock", detail, passed=apart < _CLOCKS_AGREE, cure=cure)
