"""A store, a box before it, servers of the box in a thread, and peers on both sides."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from hopaas_p2p.core import codec, snapshot
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.records import Record
from hopaas_p2p.core.state import State, Verdict
from hopaas_p2p.errors import StoreUnreachable
from hopaas_p2p.peer.session import LogClient, study_client
from hopaas_p2p.remote.box import Box
from hopaas_p2p.remote.client import RemoteStore
from hopaas_p2p.remote.folder import FolderServer
from hopaas_p2p.remote.server import Service
from hopaas_p2p.stores.base import Artifacts, Beat, Entry, Log, Store
from hopaas_p2p.stores.memory import MemoryStore
from hopaas_p2p.testing.commits import everything
from hopaas_p2p.testing.faults import Crash, Fault, FaultyLog, FaultyStore
from tests.support.processes import until
from tests.support.scribe import defined

STUDY = "study"


class _LinkLog(FaultyLog):
    """Tells nothing without a round trip, as a log far away."""

    def changed(self, since: int) -> bool | None:
        return None

    def snapshot_head(self, before: int | None) -> tuple[int, bytes] | None:
        self._store.check()  # type: ignore[attr-defined]
        return self._inner.snapshot_head(before)

    def blocks(self, names: list[str]) -> dict[str, bytes]:
        return self._inner.blocks(names)

    def block_names(self) -> set[str]:
        return self._inner.block_names()

    def put_block(self, name: str, data: bytes) -> None:
        self._inner.put_block(name, data)

    def put_snapshot_head(self, lsn: int, head: bytes) -> None:
        self._inner.put_snapshot_head(lsn, head)


class Link(FaultyStore):
    """A store far away: while the link is cut, nothing reaches it. A crash ends the server that made the call."""

    cut = False
    crashed: Callable[[], None]

    def __init__(self, inner: Store, faults: Iterable[Fault | None]) -> None:
        super().__init__(inner, faults)
        self.asked: list[str] = []
        """The calls that came."""

    def check(self) -> None:
        if self.cut:
            raise StoreUnreachable("the link is cut")

    def next_fault(self) -> Fault | None:
        self.asked.append("exchange")
        self.check()
        return super().next_fault()

    def catalog(self) -> FaultyLog:
        return _LinkLog(self, self.inner.catalog())

    def log(self, uuid: str) -> FaultyLog:
        return _LinkLog(self, self.inner.log(uuid))

    def beat(self, beat: Beat) -> None:
        self.asked.append("beat")
        self.check()
        super().beat(beat)

    def beats(self, peers: Iterable[str]) -> dict[str, str]:
        self.asked.append("beats")
        self.check()
        return super().beats(peers)

    def artifacts(self) -> Artifacts:
        self.check()
        return super().artifacts()


class _Server:
    """One server, in a thread; a crash in a call of the store ends it without another word."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._ended = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        service = Service(lambda _: self._world.far_side)
        act = service._carried_out

        def carried_out(*arguments: object) -> bytes:
            try:
                return act(*arguments)  # type: ignore[arg-type]
            except Crash:
                self._world.crashes += 1
                self._loop.call_soon_threadsafe(running.cancel)
                raise StoreUnreachable from None

        service._carried_out = carried_out  # type: ignore[method-assign]
        server = FolderServer(Box(self._world.box), service, pace=self._world.pace)
        self.server = server
        running = self._loop.create_task(server.run(self._stop))
        with contextlib.suppress(asyncio.CancelledError):
            await running
        self._ended.set()

    @property
    def alive(self) -> bool:
        return not self._ended.is_set()

    def stop(self) -> None:
        until(lambda: hasattr(self, "_stop"))
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)


class World:
    """Two sides and servers between them.

    Args:
        folder: an empty one.
        faults: what the servers meet at each exchange with the store.
        servers: how many there are.
        pace: seconds between two looks at a log.
        timeout: seconds for which callers wait for an answer.

    """

    def __init__(
        self,
        folder: Path,
        *,
        faults: Iterable[Fault | None] = (),
        servers: int = 1,
        pace: float = 1e-6,
        timeout: float = 5.0,
    ) -> None:
        self.pace, self.timeout = pace, timeout
        self.far = MemoryStore("far")
        self.far_side = Link(self.far, faults)
        self.crashes = 0
        self.box = folder / "box"
        Box.make(self.box, self.far.url)
        self._count = servers
        self._lock = threading.Lock()
        self.servers: list[_Server] = []
        self._keeper: threading.Thread | None = None
        self.restore()

    def break_off(self, how: str) -> None:
        """No server is there, or only the link is down."""
        self.far_side.cut = how == "link"
        if how == "server":
            self.stop()

    def restore(self) -> None:
        self.far_side.cut = False
        if not self.servers:
            self.servers = [_Server(self) for _ in range(self._count)]
            self._keeper = threading.Thread(target=self._keep, daemon=True)
            self._keeper.start()

    def _keep(self) -> None:
        """Replace those that died."""
        while self.servers:
            with self._lock:
                self.servers = [one if one.alive else _Server(self) for one in self.servers]
            time.sleep(0.005)

    def stop(self) -> None:
        with self._lock:
            ended, self.servers = self.servers, []
        if self._keeper is not None:
            self._keeper.join()
        for one in ended:
            one.stop()

    def store(self, *, timeout: float | None = None) -> RemoteStore:
        """The store, as one process opens it through the box."""
        store = RemoteStore(f"folder://{self.box}")
        assert isinstance(store.connections, Box)
        store.connections.timeout = self.timeout if timeout is None else timeout
        return store

    def near_peer(self, name: str) -> Peer:
        return Peer(name, self.store().log(STUDY))

    def far_peer(self, name: str) -> Peer:
        return Peer(name, self.far.log(STUDY))

    def waiting(self) -> int:
        return len(Box(self.box).requests())

    def settled(self) -> None:
        """Wait until nothing waits in the box."""
        until(lambda: not self.waiting(), 60)


@contextlib.contextmanager
def world(folder: Path, **options: object) -> Iterator[World]:
    made = World(folder, **options)  # type: ignore[arg-type]
    try:
        yield made
    finally:
        made.stop()


class Peer:
    """A writer of the study, at either side."""

    def __init__(self, name: str, log: Log) -> None:
        self.name = name
        times = itertools.count(1)
        self.replica: LogClient[State] = study_client(log, writer=name, now_us=lambda: next(times))

    def say(self, *records: Record) -> Verdict:
        """Exchange until the log has decided; the verdict on the last record."""
        ticket = self.replica.put(self.name, *records)
        until(lambda: self._exchanged() and ticket.verdicts is not None, 60)
        assert ticket.verdicts is not None
        return ticket.verdicts[-1]

    def read(self) -> State:
        until(self._exchanged, 60)
        return self.replica.state

    def _exchanged(self) -> bool:
        with contextlib.suppress(StoreUnreachable):
            self.replica.exchange()
            return True
        return False


def founded(made: World, **policy: object) -> None:
    """Define the study, at the far side."""
    made.far_peer("founder").say(defined(**policy))


def replayed(entries: Iterable[Entry]) -> State:
    state = State()
    for entry in entries:
        apply(state, entry.lsn, codec.decode(entry.payload), entry.stamp)
    return state


def same_study_on_both_sides(made: World) -> State:
    """That what peers read through the box is the far log, entry by entry; the study's state."""
    far = everything(made.far.log(STUDY))
    near: list[Entry] = []

    def read() -> bool:
        with contextlib.suppress(StoreUnreachable):
            near[:] = everything(made.store().log(STUDY))
        return len(near) == len(far)

    until(read, 30)
    assert [entry.lsn for entry in near] == list(range(1, len(near) + 1))
    assert near == far
    state = replayed(far)
    assert snapshot.digest(state) == snapshot.digest(replayed(near))
    return state
