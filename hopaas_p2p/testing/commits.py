"""Creates commits for tests, appends them as a peer does, and reads them back; `together` does so in many threads."""

from __future__ import annotations

import functools
import random
import threading
import zlib
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from hopaas_p2p.core import snapshot
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.codec import following
from hopaas_p2p.core.records import Commit, PeerJoin, StudyDefine, TrialCreate, TrialState
from hopaas_p2p.core.state import State
from hopaas_p2p.stores.base import Entry, ExchangeResult, Log, Outgoing, read_all

TIMEOUT: Final = 60.0
"""Seconds after which a thread or process of a test counts as stuck."""


def sealed(body: bytes) -> bytes:
    """A payload that a log accepts: a checksum, and then these bytes."""
    return zlib.crc32(body).to_bytes(4, "little") + body


def outgoing(name: str, size: int = 0) -> Outgoing:
    """A commit's bytes, different for every name."""
    return Outgoing(name, sealed(name.encode() + b"." * size))


def outgoing_of(writer: str, name: str) -> Outgoing:
    """Like `outgoing`, with the writer's name where a peer puts it. A busy bucket assigns turns by this name."""
    return Outgoing(name, sealed(msgspec.msgpack.encode([1, writer, name])))


def chained(log: Log, name: str, since: int = 0, total: int | None = None) -> Entry:
    """Append a commit with the sum of the log before it, like a peer that has read all commits; returns its entry.

    `total` is the sum of the log up to `since`; without it, the first exchange sends no sum.
    """
    commit = outgoing_of(name, name)
    while True:
        receipt = log.exchange(replace(commit, chain=total), since)
        for entry in receipt.entries:
            if entry.payload == commit.payload:
                return entry
            if total is not None:
                total = following(total, entry.payload)
        assert receipt.more, "the commit is not among the entries, and there are no more"
        since = receipt.entries[-1].lsn


def sum_of(entries: list[Entry]) -> int:
    """The sum of a log that consists of these entries."""
    return functools.reduce(lambda total, entry: following(total, entry.payload), entries, 0)


def study_snapshot(trials: int, *, waiting: Iterable[int] = ()) -> bytes:
    """The snapshot of a study with this many trials; all are complete except the waiting ones."""
    state, values = State(), random.Random(1)
    apply(state, 1, Commit("founder", 1, "founder", 0, (StudyDefine("study", ("minimize",)),)))
    waits = frozenset(waiting)
    records = tuple(
        TrialCreate(TrialState.WAITING)
        if number in waits
        else TrialCreate(TrialState.COMPLETE, values=(values.random(),))
        for number in range(trials)
    )
    apply(state, 2, Commit("founder", 2, "founder", 0, records))
    apply(state, 3, Commit("founder", 3, "founder", 0, (PeerJoin({}),)))  # a snapshot holds each peer's last verdicts
    return snapshot.dump(state)


def everything(log: Log, since: int = 0) -> list[Entry]:
    """All commits after `since`."""
    return list(read_all(log, since))


def append(log: Log, commit: Outgoing, since: int = 0) -> ExchangeResult:
    """Exchange until the commit is among the entries; returns the receipt of the last exchange."""
    while True:
        receipt = log.exchange(commit, since)
        if receipt.holds(commit):
            return receipt
        assert receipt.more, "the commit is not among the entries, and there are no more"
        since = receipt.entries[-1].lsn


def append_many(log: Log, name: str, count: int, since: int = 0) -> list[int]:
    """Append commits as a peer does, each after reading the earlier ones; returns their lsns."""
    lsns = []
    for i in range(count):
        commit = outgoing(f"{name}-{i}")
        receipt = append(log, commit, since)
        lsns += [entry.lsn for entry in receipt.entries if entry.payload == commit.payload]
        since = receipt.entries[-1].lsn
    return lsns


def together(*tasks: Callable[[], Any]) -> list[Any]:
    """Run these functions at the same time, each in a thread, and return their results in order, or raise the first
    error.
    """
    barrier = threading.Barrier(len(tasks))
    results: list[Any] = [None] * len(tasks)
    errors: list[BaseException] = []

    def run(index: int, task: Callable[[], Any]) -> None:
        try:
            barrier.wait(TIMEOUT)
            results[index] = task()
        except BaseException as error:  # noqa: BLE001  # it is raised again below
            errors.append(error)

    threads = [threading.Thread(target=run, args=item, daemon=True) for item in enumerate(tasks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), "a thread is stuck"
    return results
