"""A store that fails on purpose: replies are lost, requests arrive twice, late or never, and processes die.

    store = FaultyStore(MemoryStore(), at_random(seed=7, likelihood=0.2))

An iterable gives the fault of each exchange. Use a list to test one fault, and `at_random` for many, which can be
reproduced with the same seed.
"""

from __future__ import annotations

import enum
import itertools
import random
import threading
from collections import Counter
from collections.abc import Iterable, Iterator

from msgspec.structs import replace

from hopaas_p2p.errors import StoreUnreachable
from hopaas_p2p.stores.base import Artifacts, Beat, ExchangeResult, Log, Outgoing, Store, read_all


class Fault(enum.Enum):
    """A possible fault of an exchange."""

    REFUSE = "the request never reaches the store"
    LOSE_REPLY = "the store handles the request, and the reply is lost"
    DUPLICATE = "the request reaches the store twice, the second time too late to be recognized"
    DELAY = "the caller gives up, and the request reaches the store after the next exchange"
    CRASH_BEFORE = "the process dies before the request is sent"
    CRASH_AFTER = "the process dies after the store has handled the request"


SURVIVABLE = (Fault.REFUSE, Fault.LOSE_REPLY, Fault.DUPLICATE, Fault.DELAY)
"""Network faults, after which the process tries again."""


class Crash(BaseException):
    """The process has died. Discard all objects of that process."""


def at_random(seed: int, likelihood: float = 0.2, faults: Iterable[Fault] = SURVIVABLE) -> Iterator[Fault | None]:
    """An endless sequence of faults. Each exchange fails with this probability, in one of these ways."""
    random_ = random.Random(seed)
    kinds = tuple(faults)
    while True:
        yield random_.choice(kinds) if random_.random() < likelihood else None


class FaultyStore(Store):
    """A store that wraps another one and injects the given faults into its exchanges. Thread-safe.

    Only exchanges have faults. Optional methods, such as `Log.wait_turn`, have their defaults instead of those of
    `inner`.

    Args:
        inner: the store that does the work.
        faults: one item per exchange, None for no fault; after the last one there are no more faults.

    """

    def __init__(self, inner: Store, faults: Iterable[Fault | None]) -> None:
        self.inner = inner
        self.url = inner.url
        self.freshness = inner.freshness
        self.piggybacks_heartbeats = inner.piggybacks_heartbeats
        self.snapshots = inner.snapshots
        self.happened: Counter[Fault] = Counter()
        self.sent: list[Outgoing] = []
        """Every commit that a caller tried to append, in order."""
        self._faults = itertools.chain(faults, itertools.repeat(None))
        self._lock = threading.Lock()

    def next_fault(self) -> Fault | None:
        """The fault of the next exchange; call it once per exchange."""
        with self._lock:
            fault = next(self._faults)
            if fault is not None:
                self.happened[fault] += 1
            return fault

    def catalog(self) -> FaultyLog:
        return FaultyLog(self, self.inner.catalog())

    def log(self, uuid: str) -> FaultyLog:
        return FaultyLog(self, self.inner.log(uuid))

    def beat(self, beat: Beat) -> None:
        self.inner.beat(beat)

    def beats(self, peers: Iterable[str]) -> dict[str, str]:
        return self.inner.beats(peers)

    def artifacts(self) -> Artifacts:
        return self.inner.artifacts()

    def after_fork(self) -> None:
        self.inner.after_fork()

    def close(self) -> None:
        self.inner.close()


class FaultyLog(Log):
    """A log whose exchanges have the faults of its store."""

    def __init__(self, store: FaultyStore, inner: Log) -> None:
        self._store = store
        self._inner = inner
        self._delayed: list[Outgoing] = []

    def exchange(self, outgoing: Outgoing | None, since: int, beat: Beat | None = None) -> ExchangeResult:
        if outgoing is not None:
            self._store.sent.append(outgoing)
        fault = self._store.next_fault()
        if fault is Fault.CRASH_BEFORE:
            raise Crash
        if fault is Fault.REFUSE:
            raise StoreUnreachable
        if fault is Fault.DELAY:
            if outgoing is not None:
                self._delayed.append(outgoing)
            raise StoreUnreachable
        receipt = self._inner.exchange(outgoing, since, beat)
        if fault is Fault.DUPLICATE and outgoing is not None:
            self._append_unrecognized(outgoing)
        while self._delayed:
            self._append_unrecognized(self._delayed.pop())
        if fault is Fault.CRASH_AFTER:
            raise Crash
        if fault is Fault.LOSE_REPLY:
            raise StoreUnreachable
        return receipt

    def _append_unrecognized(self, outgoing: Outgoing) -> None:
        """Append these bytes so late that the store cannot recognize that it already has them."""
        self._inner.exchange(replace(outgoing, chain=None), sum(1 for _ in read_all(self._inner)))

    def changed(self, since: int) -> bool | None:
        return self._inner.changed(since)

    def newest_snapshot(self, *, before: int | None = None) -> tuple[int, bytes] | None:
        return self._inner.newest_snapshot(before=before)

    def put_snapshot(self, lsn: int, data: bytes) -> None:
        self._inner.put_snapshot(lsn, data)

    def destroy(self) -> None:
        self._inner.destroy()
