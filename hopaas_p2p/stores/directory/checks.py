"""What `hopaas-p2p doctor` looks at in a directory: the lock, the clock, and the room that is left."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from typing import Final

from hopaas_p2p.stores.directory.lock import hard_locks_work
from hopaas_p2p.stores.directory.store import DirectoryStore
from hopaas_p2p.stores.findings import Finding

_ROOM: Final = 100 << 20  # bytes; some 100,000 trials
_CLOCKS_AGREE: Final = 60.0  # seconds


def checks(store: DirectoryStore) -> Iterator[Finding]:
    """The findings about this directory."""
    root = store.path / "v1"
    said = json.loads((root / "meta.json").read_text())
    yield Finding("format", passed=True, detail=f"{said['format']}, store {said['uuid']}")
    yield _lock(store, agreed=str(said["lock"]))
    yield _clock(store)
    room = shutil.disk_usage(store.path).free
    cure = "" if room > _ROOM else "make room: a commit that does not fit waits, and training with it"
    yield Finding("room", passed=room > _ROOM, detail=f"{room / (1 << 30):.1f} GiB free", cure=cure)


def _lock(store: DirectoryStore, *, agreed: str) -> Finding:
    if agreed != "flock":
        return Finding("lock", passed=True, detail="lock files, since flock did not exclude when the store was made")
    works = hard_locks_work(store.path / "v1")
    detail = "flock, which excludes" if works else "flock was agreed on, and does not exclude from this node"
    cure = "" if works else "mount with locking (NFS: without nolock), or use the store from other nodes only"
    return Finding("lock", passed=works, detail=detail, cure=cure)


def _clock(store: DirectoryStore) -> Finding:
    path = store.path / "v1" / f".clock-{secrets.token_hex(6)}"
    try:
        before = time.time()
        path.write_bytes(b"")
        theirs = os.stat(path).st_mtime  # noqa: PTH116
    finally:
        path.unlink(missing_ok=True)
    apart = theirs - before
    agree = abs(apart) < _CLOCKS_AGREE
    cure = "" if agree else "nothing depends on it, but times are shown wrongly; run NTP"
    return Finding("clock", passed=agree, detail=f"the file system is {apart:+.1f} s from ours", cure=cure)
