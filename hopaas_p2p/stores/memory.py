"""A store in this process's memory, for tests and for trying things out. The store ends with the process.

After a fork, parent and child have two independent stores.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

from msgspec.structs import replace

from hopaas_p2p.core.codec import following, shown
from hopaas_p2p.errors import BrokenChain, StudyDeleted
from hopaas_p2p.stores.base import (
    SNAPSHOTS_KEPT,
    Artifacts,
    Beat,
    Entry,
    ExchangeResult,
    Log,
    Outgoing,
    Progress,
    Store,
)


class MemoryLog(Log):
    """A list of commits under a lock."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._sum = 0
        """The sum of the whole log; see `core.codec`."""
        self._snapshots: dict[int, bytes] = {}
        self._blocks: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._destroyed = False

    def exchange(self, outgoing: Outgoing | None, since: int, beat: Beat | None = None) -> ExchangeResult:
        with self._lock:
            if self._destroyed:
                raise StudyDeleted
            entries = self._entries[since:]
            receipt = ExchangeResult(entries)
            if outgoing is not None and not (entries and receipt.holds(outgoing)):
                head, total, chain, payload = len(self._entries), self._sum, outgoing.chain, outgoing.payload
                if chain is not None and chain != (entries[0].before if entries else total if since == head else None):
                    raise BrokenChain(f"commits 1 to {since} are not those that the peer has read: {shown(chain)}")
                entry = Entry(head + 1, payload, outgoing.stamp, total)
                self._entries.append(entry)
                self._sum = following(total, payload)
                if head >= since:
                    entries.append(entry)
            return receipt

    def changed(self, since: int) -> bool:
        return self._destroyed or len(self._entries) > since

    def snapshot_head(self, before: int | None) -> tuple[int, bytes] | None:
        with self._lock:
            lsn = max([one for one in self._snapshots if before is None or one < before], default=None)
            return None if lsn is None else (lsn, self._snapshots[lsn])

    def blocks(self, names: list[str]) -> dict[str, bytes]:
        return {name: self._blocks[name] for name in names if name in self._blocks}

    def block_names(self) -> set[str]:
        return set(self._blocks)

    def put_block(self, name: str, data: bytes) -> None:
        self._blocks[name] = data

    def put_snapshot_head(self, lsn: int, head: bytes) -> None:
        with self._lock:
            self._snapshots[lsn] = head
            for old in sorted(self._snapshots)[:-SNAPSHOTS_KEPT]:
                del self._snapshots[old]

    def destroy(self) -> None:
        with self._lock:
            self._destroyed = True
            self._entries.clear()
            self._sum = 0
            self._snapshots.clear()
            self._blocks.clear()

    def restore(self, base: tuple[int, bytes] | None, entries: Iterable[Entry]) -> None:
        with self._lock:
            for entry in list(entries)[len(self._entries) :]:
                self._entries.append(entry if entry.before is not None else replace(entry, before=self._sum))
                self._sum = following(self._sum, entry.payload)

    def after_fork(self) -> None:
        """Replace the lock, because a thread of the parent may have held it, and cannot release it here."""
        self._lock = threading.Lock()


class MemoryArtifacts(Artifacts):
    """Files in a dictionary."""

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}

    def put(self, key: str, source: Path) -> None:
        self._files[key] = source.read_bytes()

    def get(self, key: str, target: Path, progress: Progress | None = None) -> None:
        target.write_bytes(self._files[key])

    def delete(self, key: str) -> None:
        self._files.pop(key, None)

    def keys(self, prefix: str) -> list[str]:
        return sorted(key for key in self._files if key.startswith(prefix))


class MemoryStore(Store):
    """Logs by uuid, beats by peer."""

    freshness = 0.0
    snapshots = False
    immediate = True

    def __init__(self, name: str = "") -> None:
        self.url = f"memory://{name}"
        self._catalog = MemoryLog()
        self._logs: dict[str, MemoryLog] = {}
        self._beats: dict[str, str] = {}
        self._artifacts = MemoryArtifacts()
        self._lock = threading.Lock()

    def catalog(self) -> MemoryLog:
        return self._catalog

    def log(self, uuid: str) -> MemoryLog:
        with self._lock:
            return self._logs.setdefault(uuid, MemoryLog())

    def beat(self, beat: Beat) -> None:
        self._beats[beat.peer] = beat.value

    def beats(self, peers: Iterable[str]) -> dict[str, str]:
        return {peer: self._beats[peer] for peer in peers if peer in self._beats}

    def artifacts(self) -> MemoryArtifacts:
        return self._artifacts

    def after_fork(self) -> None:
        self._lock = threading.Lock()
        for log in (self._catalog, *self._logs.values()):
            log.after_fork()
