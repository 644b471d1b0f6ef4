"""A campaign of up to a thousand peers in one process, on a clock of its own, with the real rules.

Core, sessions and duties are those that run in production; only the store's network, the clock and the
training are made up. Peers are killed, frozen beyond their ttl, cut off, cloned with wrong clocks; exchanges lose their
replies, or never arrive. Everything follows from one seed:

    result = simulate(seed=7, peers=50)      # raises Broken, which names the seed, if a promise was broken
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from hopaas_p2p.core import codec, snapshot
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.records import Commit, Float, Policy, StudyDefine, TrialReclaim, TrialState
from hopaas_p2p.core.state import State, Verdict
from hopaas_p2p.stores.base import Outgoing
from hopaas_p2p.stores.memory import MemoryStore
from tests.support import invariants
from tests.support.simulated_peer import STUDY, TTL, SimulatedPeer
from tests.support.ticking import tick


class Broken(AssertionError):
    """A promise was broken; the message says which, and the seed that shows it again."""


class Weather(NamedTuple):
    """How often things go wrong: probabilities an exchange, an action, or a peer's step."""

    lose_request: float = 0.02
    lose_reply: float = 0.02
    cut_off: float = 0.002
    kill: float = 0.004
    freeze: float = 0.004
    preempt: float = 0.003
    stop: float = 0.002


STORMY: Final = Weather()
CALM: Final = Weather(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


class Result(NamedTuple):
    """What a run went through."""

    seed: int
    operations: int
    faults: int
    trials: int
    reclaims: int
    late: int


class Ledger:
    """What peers were told, kept outside the store: the yardstick for what must be in it."""

    def __init__(self) -> None:
        self.tells: list[tuple[int, float, Verdict]] = []
        self.owners: dict[tuple[int, int], int] = {}
        self.broken: list[str] = []

    def started(self, number: int, epoch: int, peer: SimulatedPeer) -> None:
        before = self.owners.setdefault((number, epoch), peer.name)
        if before != peer.name:
            self.broken.append(f"trial {number}, epoch {epoch} has two owners: peers {before} and {peer.name}")

    def acknowledged(self, number: int, value: float, verdict: Verdict) -> None:
        self.tells.append((number, value, verdict))


class World:
    """Clock, randomness, store and peers of one run."""

    def __init__(self, seed: int, *, peers: int, budget: int, weather: Weather) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.weather = weather
        self.now = 0.0
        self.operations = 0
        self.faults = 0
        self.store = MemoryStore(f"simulated-{seed}")
        self.ledger = Ledger()
        self.budget = budget
        self.peers: list[SimulatedPeer] = []
        self.arrived: dict[int, float] = {}
        """When each commit arrived, by lsn."""
        self._names = itertools.count()
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._ties = itertools.count()
        self._define()
        for _ in range(peers):
            self.later(self.random.uniform(0.0, 5.0), self.arrive)

    def _define(self) -> None:
        define = StudyDefine(
            STUDY, ("minimize",), Policy(budget=self.budget, attempts=100, ttl=TTL), space={"x": Float(0.0, 1.0)}
        )
        commit = codec.encode(Commit("founder", 1, "founder", 0, (define,)))
        self.store.log(STUDY).exchange(Outgoing("founder:1", commit), 0)

    def happens(self, probability: float) -> bool:
        return self.random.random() < probability

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + seconds, next(self._ties), what))

    def arrive(self) -> None:
        """A new job starts."""
        peer = SimulatedPeer(self, next(self._names))
        self.peers.append(peer)
        self.later(0.0, lambda: self._act(peer))
        self.later(0.0, lambda: self._tick(peer))

    def _awake(self, peer: SimulatedPeer, again: Callable[[SimulatedPeer], None]) -> bool:
        """Whether the peer runs now; a frozen one goes on where it was when it thaws."""
        if peer.done:
            return False
        if peer.link.stopped:
            self.later(0.5, lambda: again(peer))
            return False
        if self.now < peer.frozen_until:
            self.later(peer.frozen_until - self.now + 0.001, lambda: again(peer))
            return False
        return True

    def _act(self, peer: SimulatedPeer) -> None:
        if not self._awake(peer, self._act):
            return
        if self._strikes(peer):
            return
        pause = peer.act()
        if pause is None:
            peer.done = True
        else:
            self.later(pause, lambda: self._act(peer))

    def _strikes(self, peer: SimulatedPeer) -> bool:
        """Whether something happened to the peer that ends this step."""
        if self.happens(self.weather.kill):
            self.faults += 1
            peer.done = True
            self.later(self.random.uniform(0.0, 20.0), self.arrive)
            return True
        if self.happens(self.weather.freeze):
            self.faults += 1
            peer.frozen_until = self.now + self.random.uniform(0.0, 4.0 * TTL)
            self.later(0.0, lambda: self._act(peer))
            return True
        if self.happens(self.weather.cut_off):
            self.faults += 1
            peer.link.cut_until = self.now + self.random.uniform(0.0, 4.0 * TTL)
        return False

    def _tick(self, peer: SimulatedPeer) -> None:
        if self._awake(peer, self._tick):
            self.later(max(0.05, tick(peer.peer)), lambda: self._tick(peer))

    def run(self, *, until: float) -> None:
        """Go on until nobody has anything to do, or the clock says `until`; then calm down and finish."""
        while self._queue and self.now < until:
            self._step()
        self.weather = CALM
        for peer in self.peers:
            peer.link.cut_until = -1.0
        self.later(0.0, self.arrive)  # somebody comes by when all is over, and finds what the dead left
        end = self.now + 3000.0
        while self._queue and self.now < end:
            self._step()

    def _step(self) -> None:
        self.now, _, what = heapq.heappop(self._queue)
        what()

    def go_on_without(self, seconds: float) -> None:
        """Let the others act for so long, while a peer is stopped within a call."""
        self.faults += 1
        end = self.now + seconds
        while self._queue and self._queue[0][0] < end:
            self._step()
        self.now = max(self.now, end)


def simulate(
    seed: int, *, peers: int = 20, budget: int = 60, weather: Weather = STORMY, until: float = 300.0
) -> Result:
    """Run one campaign and check every promise.

    Raises:
        Broken: with the promise and the seed.
    """
    world = World(seed, peers=peers, budget=budget, weather=weather)
    world.run(until=until)
    state = State()
    problems = [*world.ledger.broken, *_taken_from_the_living(state, world), *_broken(state, world)]
    if problems:
        raise Broken(f"simulate(seed={seed}, peers={peers}, budget={budget}): " + "; ".join(problems))
    return Result(
        seed,
        world.operations,
        world.faults,
        len(state.trials),
        sum(1 for trial in state.trials for tenure in trial.history if "silent" in tenure.why),
        sum(1 for trial in state.trials if trial.late_of is not None),
    )


def _taken_from_the_living(state: State, world: World) -> Iterable[str]:
    """Replay the log; the trials that were reclaimed from an owner that had written within a ttl."""
    wrote: dict[str, float] = {}
    for entry in world.store.log(STUDY).exchange(None, 0).entries:
        commit, now = codec.decode(entry.payload), world.arrived.get(entry.lsn, 0.0)
        assert isinstance(commit, Commit)
        taken = [one for one in commit.records if isinstance(one, TrialReclaim)]
        silent = {one.number: now - wrote.get(state.trials[one.number].owner or "", -TTL) for one in taken}
        for record, verdict in zip(commit.records, apply(state, entry.lsn, commit), strict=False):
            if isinstance(record, TrialReclaim) and verdict.accepted and silent[record.number] < TTL:
                yield f"trial {record.number} was taken from an owner that wrote {silent[record.number]:.1f} s before"
        wrote[commit.writer] = now


def _broken(state: State, world: World) -> Iterable[str]:
    yield from (f"not true at the end: {promise}" for promise in invariants.broken(state))
    yield from (problem for tell in world.ledger.tells if (problem := _lost(state, *tell)) is not None)
    if state.counts[TrialState.RUNNING]:
        yield f"trials still running: {list(state.running)}"
    ended = state.counts[TrialState.COMPLETE] + state.counts[TrialState.PRUNED]
    if ended != world.budget:
        yield f"{ended} trials counted, with a budget of {world.budget}"
    for peer in world.peers:
        replica = peer.log.state
        if replica.lsn == state.lsn and snapshot.digest(replica) != snapshot.digest(state):
            yield f"peer {peer.name} replayed the same log to another state"
    stored = world.store.log(STUDY).newest_snapshot()
    if stored is not None and snapshot.digest(_from_snapshot(world.store, stored[1])) != snapshot.digest(state):
        yield "snapshot and tail are not the replay"


def _from_snapshot(store: MemoryStore, data: bytes) -> State:
    state = snapshot.load(data)
    for entry in store.log(STUDY).exchange(None, state.lsn).entries:
        apply(state, entry.lsn, codec.decode(entry.payload))
    return state


def _lost(state: State, number: int, value: float, verdict: Verdict) -> str | None:
    """What is missing of an acknowledged tell, if anything is."""
    if verdict.accepted:
        trial = state.trials[number]
        kept = trial.state is TrialState.COMPLETE and trial.values == (value,)
        return None if kept else f"the acknowledged result of trial {number} is not there"
    if verdict.refusal == "late":
        assert verdict.number is not None
        trial = state.trials[verdict.number]
        kept = trial.values == (value,) or "hopaas:late_values" in trial.system
        return None if kept else f"the late result of trial {number} is not kept"
    if verdict.refusal == "fenced":
        return f"trial {number} was fenced without its result being kept"
    return None
