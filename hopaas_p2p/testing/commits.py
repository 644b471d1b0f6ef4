"""Commits for tests: made, appended as a peer does it, read back whole, by many at once."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable
from typing import Any, Final

import msgspec

from hopaas_p2p.stores.base import Entry, Log, Outgoing, Receipt

PATIENCE: Final = 60.0
"""Seconds after which a thread or process of a test counts as stuck."""


def sealed(body: bytes) -> bytes:
    """A payload as a log takes it: any bytes, behind their checksum."""
    return zlib.crc32(body).to_bytes(4, "little") + body


def outgoing(name: str, size: int = 0) -> Outgoing:
    """A commit's bytes, different for every name."""
    return Outgoing(name, sealed(name.encode() + b"." * size))


def outgoing_of(writer: str, name: str) -> Outgoing:
    """The same, with its writer where peers' commits have theirs: by that, peers of one bucket take turns."""
    return Outgoing(name, sealed(msgspec.msgpack.encode([1, writer, name])))


def everything(log: Log, since: int = 0) -> list[Entry]:
    """All commits after `since`, however many exchanges that takes."""
    entries: list[Entry] = []
    more = True
    while more:
        receipt = log.exchange(None, entries[-1].lsn if entries else since)
        entries += receipt.entries
        more = receipt.more
    return entries


def append(log: Log, commit: Outgoing, since: int = 0) -> Receipt:
    """Exchange until the commit is among the entries; the receipt of the last exchange."""
    while True:
        receipt = log.exchange(commit, since)
        if any(entry.payload == commit.payload for entry in receipt.entries):
            return receipt
        assert receipt.more, "the commit is not among the entries, and there are no more"
        since = receipt.entries[-1].lsn


def append_many(log: Log, name: str, count: int, since: int = 0) -> list[int]:
    """Append commits as a peer does, each after what the one before brought; their lsns."""
    lsns = []
    for i in range(count):
        commit = outgoing(f"{name}-{i}")
        receipt = append(log, commit, since)
        lsns += [entry.lsn for entry in receipt.entries if entry.payload == commit.payload]
        since = receipt.entries[-1].lsn
    return lsns


def together(*tasks: Callable[[], Any]) -> list[Any]:
    """Run these at the same moment, in threads; their results. The first error is raised."""
    barrier = threading.Barrier(len(tasks))
    results: list[Any] = [None] * len(tasks)
    errors: list[BaseException] = []

    def run(index: int, task: Callable[[], Any]) -> None:
        try:
            barrier.wait(PATIENCE)
            results[index] = task()
        except BaseException as error:  # noqa: BLE001  # it is raised again below
            errors.append(error)

    threads = [threading.Thread(target=run, args=item, daemon=True) for item in enumerate(tasks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), "a thread is stuck"
    return results
