"""Many peers search a recorded table through our real storage: real sessions, replicas and flush intervals, on a
virtual clock, over a store whose round trips take a set time.

What a peer knows when it samples is what its replica holds by then, so this shows what a store costs in evaluations.
A commit takes effect when its round trip begins.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from optuna.samplers import BaseSampler
from optuna.trial import TrialState

import hopaas_p2p
from hopaas_p2p.core.records import Policy
from hopaas_p2p.peer.peer import Peer
from hopaas_p2p.storage import Storage
from hopaas_p2p.storage.options import StorageOptions
from hopaas_p2p.stores.base import Artifacts, Beat, ExchangeResult, Log, Outgoing, Store
from hopaas_p2p.stores.memory import MemoryStore
from tests.benchmarks.search_clock import Configuration, Evaluation, Search, Table
from tests.support.ticking import tick

_SHORTEST_PAUSE: Final = 0.05  # between two looks of a peer's scheduler


class ModelledStore(NamedTuple):
    """How a store behaves: seconds, and what it promises its readers."""

    write: float
    read: float
    freshness: float
    piggybacks_heartbeats: bool = False


ZERO: Final = ModelledStore(0.0, 0.0, 0.0)
POSTGRES: Final = ModelledStore(0.030, 0.030, 1.0, piggybacks_heartbeats=True)
S3: Final = ModelledStore(0.045, 0.020, 5.0)


class _Clock:
    def __init__(self) -> None:
        self.began = 0.0
        """When the peer whose turn it is began its step."""
        self.spent = 0.0
        """What it has waited for the store since."""

    def __call__(self) -> float:
        return self.began + self.spent


class _Link(Store):
    """A peer's way to the store they share."""

    snapshots = False

    def __init__(self, inner: MemoryStore, model: ModelledStore, clock: _Clock) -> None:
        self.inner, self.model, self._clock = inner, model, clock
        self.url = inner.url
        self.freshness = model.freshness
        self.piggybacks_heartbeats = model.piggybacks_heartbeats

    def wait(self, seconds: float) -> None:
        self._clock.spent += seconds

    def catalog(self) -> Log:
        return _LinkedLog(self, self.inner.catalog())

    def log(self, uuid: str) -> Log:
        return _LinkedLog(self, self.inner.log(uuid))

    def beat(self, beat: Beat) -> None:
        self.wait(self.model.write)
        self.inner.beat(beat)

    def beats(self, peers: Iterable[str]) -> dict[str, str]:
        self.wait(self.model.read)
        return self.inner.beats(peers)

    def artifacts(self) -> Artifacts:
        return self.inner.artifacts()

    def after_fork(self) -> None:
        """Nothing forks here."""

    def close(self) -> None:
        """Nothing is held open."""


class _LinkedLog:
    def __init__(self, link: _Link, inner: Log) -> None:
        self._link, self._inner = link, inner

    def exchange(self, outgoing: Outgoing | None, since: int, beat: Beat | None = None) -> ExchangeResult:
        model = self._link.model
        self._link.wait(model.read if outgoing is None else model.write)
        return self._inner.exchange(outgoing, since, beat)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _Worker:
    """One peer: asks, trains as long as the table says, tells with the next ask."""

    def __init__(self, name: int, store: MemoryStore, model: ModelledStore, clock: _Clock, seed: int) -> None:
        link: Any = _Link(store, model, clock)
        self.name = name
        self.peer = Peer(
            link,
            clock=clock,
            now_us=lambda: round(clock() * 1e6),
            threaded=False,
            uuid=f"peer-{name:06d}",
            jitter=random.Random(1000 * seed + name),
            describe=dict,
        )
        self.storage = Storage(StorageOptions(store.url, Policy(), None, None, None, False, None), self.peer)
        self.study: Any = None
        self.trial: Any = None
        self.configuration: Configuration = ()


def search_on_store(
    table: Table,
    sampler: Callable[[int], BaseSampler],
    *,
    peers: int,
    evaluations: int,
    store: ModelledStore = ZERO,
    seed: int = 0,
    seconds: float | None = None,
    until: float | None = None,
) -> Search:
    """Let that many peers share one study, until so many evaluations are told, or one of them is as good as `until`.

    Args:
        table: what is searched.
        sampler: makes each peer's, of a seed of its own.
        seconds: the median of a trial's duration; as recorded if it is not given.

    """
    random.seed(seed)  # neighbours are drawn with it
    clock, shared = _Clock(), MemoryStore(f"search-{seed}")
    workers = [_Worker(name, shared, store, clock, seed) for name in range(peers)]
    for worker in workers:
        worker.study = hopaas_p2p.open_study(
            worker.storage, "s", space=table.space, sampler=sampler(10_000 * seed + worker.name)
        )
    scale = 1.0 if seconds is None else seconds / table.median_seconds()
    done, ties = Search([], []), itertools.count()
    queue: list[tuple[float, int, Callable[[], float]]] = []

    def step(worker: _Worker) -> float:
        if worker.trial is not None:
            value = table.records[worker.configuration].value
            worker.study._end(worker.trial.number, (value,), TrialState.COMPLETE, reason=None, defer=True)
            done.told.append(Evaluation(clock.began, worker.name, worker.configuration, value))
        worker.trial = worker.study.ask()
        worker.study.handle.settle_deferred()
        worker.configuration = tuple(int(worker.trial.params[name]) for name in table.space)
        done.proposed.append(worker.configuration)
        waited = clock.spent
        if any(log.session.urgent_at < math.inf for log in worker.peer.logs.values()):
            tick(worker.peer)  # as the scheduler's thread does, which is woken
        return waited + scale * table.records[worker.configuration].seconds

    def wake(worker: _Worker) -> float:
        return max(_SHORTEST_PAUSE, tick(worker.peer))

    for worker in workers:
        heapq.heappush(queue, (0.0, next(ties), lambda worker=worker: step(worker)))
        heapq.heappush(queue, (0.0, next(ties), lambda worker=worker: wake(worker)))
    while len(done.told) < evaluations and (until is None or not done.told or done.told[-1].value > until):
        clock.began, _, what = heapq.heappop(queue)
        clock.spent = 0.0
        heapq.heappush(queue, (clock.began + what(), next(ties), what))
    for worker in workers:
        worker.peer.users.clear()
    return done
