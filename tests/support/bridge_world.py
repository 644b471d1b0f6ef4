"""Two stores in memory, bridges between them, and a clock that passes while somebody waits: all in one thread."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable

from hopaas_p2p.core import codec, snapshot
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.records import Record
from hopaas_p2p.core.state import State, Verdict
from hopaas_p2p.errors import StoreUnreachable
from hopaas_p2p.peer.log_client import LogClient, study_client
from hopaas_p2p.stores.base import Artifacts, Beat, Entry, Log, Store
from hopaas_p2p.stores.bridge.bridge import Bridge
from hopaas_p2p.stores.bridge.store import BridgedStore
from hopaas_p2p.stores.memory import MemoryStore
from hopaas_p2p.testing.commits import everything
from hopaas_p2p.testing.faults import Crash, Fault, FaultyLog, FaultyStore
from tests.support.scribe import defined

STUDY = "study"


class _LinkLog(FaultyLog):
    """Tells nothing without a round trip, as a log far away."""

    def changed(self, since: int) -> bool | None:
        return None


class _Link(FaultyStore):
    """A store far away: while the link is cut, nothing reaches it."""

    cut = False

    def next_fault(self) -> Fault | None:
        return Fault.REFUSE if self.cut else super().next_fault()

    def catalog(self) -> FaultyLog:
        return _LinkLog(self, self.inner.catalog())

    def log(self, uuid: str) -> FaultyLog:
        return _LinkLog(self, self.inner.log(uuid))

    def beat(self, beat: Beat) -> None:
        if self.cut:
            raise StoreUnreachable
        super().beat(beat)

    def beats(self, peers: Iterable[str]) -> dict[str, str]:
        if self.cut:
            raise StoreUnreachable
        return super().beats(peers)

    def artifacts(self) -> Artifacts:
        if self.cut:
            raise StoreUnreachable
        return super().artifacts()


class World:
    """A near side, a far side, and bridges.

    Args:
        near_faults, far_faults: what the bridges meet at each exchange with either side.
        bridges: how many there are.
        pool: further handles on the far side, for each bridge; they meet the far faults, too.
        pace: seconds between rounds of a bridge.
        seed: decides whose turn it is.

    """

    def __init__(
        self,
        *,
        near_faults: Iterable[Fault | None] = (),
        far_faults: Iterable[Fault | None] = (),
        bridges: int = 1,
        pool: int = 0,
        pace: float = 0.05,
        seed: int = 0,
    ) -> None:
        self.now = 1000.0
        self.pace = pace
        self.random = random.Random(seed)
        self.near, self.far = MemoryStore("near"), MemoryStore("far")
        self.near_side: Store = FaultyStore(self.near, near_faults)
        self.far_side = _Link(self.far, far_faults)
        self.pool = [self.far_side] * pool
        self.crashes = 0
        self.down = False
        """Whether no bridge is running."""
        self.bridges = [self.new_bridge() for _ in range(bridges)]

    def break_off(self, how: str) -> None:
        """The bridge is down, or only its link."""
        self.down, self.far_side.cut = how == "bridge", how == "link"

    def restore(self) -> None:
        self.down = self.far_side.cut = False

    def new_bridge(self) -> Bridge:
        return Bridge(self.near_side, self.far_side, pool=self.pool, pace=self.pace, clock=lambda: self.now)

    def sleep(self, seconds: float) -> None:
        """Time passes, and a bridge works."""
        self.now += seconds
        self.step()

    def step(self) -> None:
        """One bridge takes a step; one that dies is replaced."""
        if self.down or not self.bridges:
            return
        index = self.random.randrange(len(self.bridges))
        try:
            self.bridges[index].step()
        except StoreUnreachable:
            self.now += 0.5  # of the near side; a real bridge pauses
        except Crash:
            self.crashes += 1
            self.bridges[index] = self.new_bridge()

    def settle(self, seconds: float = 60.0) -> None:
        """Let the bridges work for so long."""
        until = self.now + seconds
        while self.now < until:
            self.sleep(0.25)

    def store(self, *, timeout: float = 5.0) -> BridgedStore:
        """The near side, as one process opens it."""
        return BridgedStore(self.near, timeout=timeout, clock=lambda: self.now, sleep=self.sleep)

    def near_peer(self, name: str) -> Peer:
        return Peer(self, name, self.store().log(STUDY))

    def far_peer(self, name: str) -> Peer:
        return Peer(self, name, self.far.log(STUDY))

    def mirror(self) -> list[Entry]:
        """What local peers see of the study."""
        return self.store().log(STUDY).exchange(None, 0).entries


class Peer:
    """A writer of the study, at either side."""

    def __init__(self, world: World, name: str, log: Log) -> None:
        self.name = name
        self._world = world
        self._times = itertools.count(1)
        self.replica: LogClient[State] = study_client(log, writer=name, now_us=lambda: next(self._times))

    def say(self, *records: Record) -> Verdict:
        """Exchange until the log has decided; the verdict on the last record."""
        ticket = self.replica.put(self.name, *records)
        while ticket.verdicts is None:
            try:
                self.replica.exchange()
            except StoreUnreachable:
                self._world.sleep(0.5)
        return ticket.verdicts[-1]

    def read(self) -> State:
        while True:
            try:
                self.replica.exchange()
            except StoreUnreachable:
                self._world.sleep(0.5)
            else:
                return self.replica.state


def founded(world: World, **policy: object) -> None:
    """Define the study, at the far side."""
    world.far_peer("founder").say(defined(**policy))


def replayed(entries: Iterable[Entry]) -> State:
    state = State()
    for entry in entries:
        apply(state, entry.lsn, codec.decode(entry.payload), entry.stamp)
    return state


def same_study_on_both_sides(world: World) -> State:
    """That the mirror is the far log, entry by entry; the study's state."""
    far, near = everything(world.far.log(STUDY)), world.mirror()
    assert [entry.lsn for entry in near] == list(range(1, len(near) + 1))
    assert near == far
    state = replayed(far)
    assert snapshot.digest(state) == snapshot.digest(replayed(near))
    return state
