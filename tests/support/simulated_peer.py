"""A peer of the simulator: the real one, on a clock, behind a network and at a training that are made up."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from hopaas_p2p.core.admission import Done, next_start
from hopaas_p2p.core.records import Record, TrialCreate, TrialFinish, TrialRelease, TrialSet, TrialState
from hopaas_p2p.core.state import State, Verdict
from hopaas_p2p.errors import StoreUnreachable
from hopaas_p2p.peer.outbox import PendingCommit
from hopaas_p2p.peer.peer import Peer
from hopaas_p2p.peer.session import LogClient
from hopaas_p2p.stores.base import Artifacts, Beat, ExchangeResult, Log, Outgoing, Store
from hopaas_p2p.stores.memory import MemoryStore

if TYPE_CHECKING:
    from tests.support.simulator import World

STUDY: Final = "simulated"
TTL: Final = 10.0
_DAY: Final = 86_400_000_000  # microseconds


class Link(Store):
    """One peer's way to the shared store: loses requests and replies, and may be cut for a while."""

    def __init__(self, world: World, inner: MemoryStore) -> None:
        self.world = world
        self.inner = inner
        self.url = inner.url
        self.freshness = 0.0
        self.piggybacks_heartbeats = False
        self.snapshots = True
        self.cut_until = -1.0
        self.stopped = False

    def through(self) -> None:
        """Raise if nothing gets through now. First, the process may be stopped, in the middle of anything."""
        if self.world.happens(self.world.weather.stop):
            self.stopped = True
            self.world.go_on_without(self.world.random.uniform(0.0, 3.0 * TTL))
            self.stopped = False
        self.world.operations += 1
        if self.world.now < self.cut_until or self.world.happens(self.world.weather.lose_request):
            self.world.faults += 1
            raise StoreUnreachable

    def after(self) -> None:
        """Raise if the reply is lost: what was done is done."""
        if self.world.happens(self.world.weather.lose_reply):
            self.world.faults += 1
            raise StoreUnreachable

    def catalog(self) -> Log:
        return _LinkedLog(self, self.inner.catalog())

    def log(self, uuid: str) -> Log:
        return _LinkedLog(self, self.inner.log(uuid))

    def beat(self, beat: Beat) -> None:
        self.through()
        self.inner.beat(beat)

    def beats(self, peers: Iterable[str]) -> dict[str, str]:
        self.through()
        return self.inner.beats(peers)

    def artifacts(self) -> Artifacts:
        return self.inner.artifacts()

    def after_fork(self) -> None:
        """Nothing forks here."""

    def close(self) -> None:
        """Nothing is held open."""


class _LinkedLog(Log):
    def __init__(self, link: Link, inner: Log) -> None:
        self._link, self._inner = link, inner

    def exchange(self, outgoing: Outgoing | None, since: int, beat: Beat | None = None) -> ExchangeResult:
        self._link.through()
        receipt = self._inner.exchange(outgoing, since, beat)
        for entry in receipt.entries:
            self._link.world.arrived.setdefault(entry.lsn, self._link.world.now)
        self._link.after()
        return receipt

    def changed(self, since: int) -> bool | None:
        return self._inner.changed(since)

    def newest_snapshot(self, *, before: int | None = None) -> tuple[int, bytes] | None:
        self._link.through()
        return self._inner.newest_snapshot(before=before)

    def put_snapshot(self, lsn: int, data: bytes) -> None:
        self._link.through()
        self._inner.put_snapshot(lsn, data)

    def destroy(self) -> None:
        self._inner.destroy()


class _Job(NamedTuple):
    """The trial a peer is at."""

    number: int
    epoch: int
    steps: int


class SimulatedPeer:
    """A training job: asks, reports, tells, until the study gives out no more."""

    def __init__(self, world: World, name: int) -> None:
        self.world = world
        self.name = name
        self.link = Link(world, world.store)
        skew = world.random.choice((0, 0, -_DAY, _DAY, 400 * _DAY))
        self.peer = Peer(
            self.link,
            linger=1.0,
            patience=-1.0,
            clock=lambda: world.now + 1e6 * name,  # monotonic clocks of two peers have nothing in common
            now_us=lambda: round(world.now * 1e6) + skew,
            threaded=False,
            uuid=f"peer-{name:06d}",
            jitter=world.random,
            describe=lambda: {"host": f"node{name}", "site": f"site{name % 3}"},
        )
        self.log: LogClient[State] = self.peer.log(STUDY)
        self.job: _Job | None = None
        self.told: tuple[PendingCommit, float] | None = None
        self.frozen_until = -1.0
        self.done = False
        self.idle_since: float | None = None

    def act(self) -> float | None:
        """One step of work; the seconds until the next one, None when there is nothing left to do."""
        try:
            if self.told is not None:
                return self._await_verdict()
            return self._ask() if self.job is None else self._train(self.job)
        except StoreUnreachable:
            return self.world.random.uniform(0.5, 2.0)

    def _ask(self) -> float | None:
        skip = self.peer.resting(self.log)
        (verdict,) = self.peer.start(self.log, TrialCreate(prefer_waiting=True, skip=skip)).verdicts or ()
        if not verdict.accepted:
            return self._without_work(verdict)
        assert verdict.number is not None
        self.idle_since = None
        trial = self.log.state.trials[verdict.number]
        self.world.ledger.started(verdict.number, trial.epoch, self)
        self.job = _Job(verdict.number, trial.epoch, self.world.random.randint(1, 6))
        if not trial.params:
            self._set(params={"x": self.world.random.random()})
        return self.world.random.uniform(0.1, 3.0)

    def _without_work(self, verdict: Verdict) -> float | None:
        if self.idle_since is None:
            self.idle_since = self.peer.clock()
        alive = partial(self.peer.doubted_until, self.log, since=self.idle_since)
        found = next_start(self.log.state, self.peer.uuid, alive=alive, skip=self.peer.resting(self.log))
        return None if isinstance(found, Done) or verdict.refusal != "budget" else TTL / 8

    def _set(self, *, params: dict[str, float] | None = None, reports: dict[int, float] | None = None) -> None:
        assert self.job is not None
        with self.log.lock:
            draft = self.log.session.draft(self.job.number, self.job.epoch, self.peer.uuid)
            draft.params.update(params or {})
            draft.reports.update(reports or {})
        self.peer.note_draft(self.log)

    def _train(self, job: _Job) -> float:
        if self.world.happens(self.world.weather.preempt):
            self.world.faults += 1
            self._say(TrialRelease(job.number, job.epoch, reason="pre-empted"))
            self.job = None
            return self.world.random.uniform(0.1, 1.0)
        if job.steps > 0:
            self._set(reports={job.steps: self.world.random.random()})
            self.job = job._replace(steps=job.steps - 1)
            return self.world.random.uniform(0.1, 3.0)
        value = self.world.random.random()
        self.told = self._say(TrialFinish(job.number, job.epoch, TrialState.COMPLETE, (value,))), value
        return self._await_verdict()

    def _say(self, record: Record) -> PendingCommit:
        assert self.job is not None
        draft = self.log.session.drafts.pop(self.job.number, None)
        words: tuple[TrialSet, ...] = draft.records() if draft else ()
        return self.peer.put(self.log, *words, record)

    def _await_verdict(self) -> float:
        assert self.told is not None
        assert self.job is not None
        ticket, value = self.told
        self.peer.await_commit(self.log, ticket)
        assert ticket.verdicts is not None
        self.world.ledger.acknowledged(self.job.number, value, ticket.verdicts[-1])
        self.told = self.job = None
        return self.world.random.uniform(0.0, 0.5)
