"""A peer that shows a study through a server is told of what is new in it, and asks for nothing meanwhile."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hopaas_p2p.errors import StoreUnreachable
from hopaas_p2p.open import open_store
from hopaas_p2p.peer.peer import Peer
from hopaas_p2p.peer.session import LogClient
from hopaas_p2p.remote.client import Connections, RemoteStore
from hopaas_p2p.testing.commits import append, outgoing
from tests.support.processes import until
from tests.support.served import PROXIES, Authority, Served, Through, administrator, forget_servers, service_of


class Viewer:
    """A peer that shows a study, in a thread, and what it asks of the server."""

    def __init__(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        ask = Connections.ask

        def counted(connections: Connections, call: str, *arguments: object, **options: object) -> object:
            if connections is self.peer.store.connections:
                self.asked.append(call)
            return ask(connections, call, *arguments, **options)

        monkeypatch.setattr(Connections, "ask", counted)
        self.peer = Peer(RemoteStore(url))
        self.log: LogClient = self.peer.log("study")
        self.peer.catch_up(self.log)
        self.over = False
        self._thread = threading.Thread(target=self._show, daemon=True)

    def _show(self) -> None:
        while not self.over:
            with contextlib.suppress(StoreUnreachable):
                self.peer.hear(self.log, 20.0)

    def show(self) -> None:
        self._thread.start()
        until(lambda: self.asked[-1] == "news")
        self.asked.clear()

    def has(self, lsn: int, within: float) -> float:
        """The seconds until it has this commit."""
        began = time.monotonic()
        until(lambda: self.log.state.lsn >= lsn, within)
        return time.monotonic() - began

    def close(self) -> None:
        self.over = True
        self.peer.close()
        self._thread.join(30)


@pytest.fixture
def place(tmp_path: Path) -> str:
    url = str(tmp_path / "store")
    with contextlib.closing(open_store(url)) as store:
        append(store.log("study"), outgoing("first"), 0)
    return url


@pytest.fixture
def served(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    authority = Authority(tmp_path)
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOPAAS_CA_FILE", str(authority.file))
    monkeypatch.setenv("HOPAAS_TOKEN", administrator(place))
    forget_servers()
    made = Served(service_of(place), authority).start()
    yield made
    with contextlib.suppress(RuntimeError):  # it is stopped
        made.stop()


@pytest.fixture
def viewer(served: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[Viewer]:
    made = Viewer(served.url, monkeypatch)
    yield made
    made.close()


def test_what_comes_through_the_server_is_told_at_once_and_nobody_looks(viewer: Viewer) -> None:
    viewer.show()
    with contextlib.closing(RemoteStore(viewer.peer.store.url)) as other:
        log, times = other.log("study"), []
        for lsn in range(2, 12):
            log.exchange(outgoing(f"n{lsn}"), lsn - 1)
            times.append(viewer.has(lsn, 30.0))
            until(lambda: viewer.asked[-1:] == ["news"])
            time.sleep(0.01)  # for the server to hold it
    assert viewer.asked == ["exchange", "news"] * 10
    assert sorted(times)[5] < 0.2


def test_what_comes_another_way_is_told_of_within_the_freshness_of_a_store(viewer: Viewer, place: str) -> None:
    viewer.show()
    with contextlib.closing(open_store(place)) as store:
        append(store.log("study"), outgoing("direct"), 1)
    assert viewer.has(2, 30.0) < 5.0
    until(lambda: viewer.asked == ["exchange", "news"])


def test_a_peer_that_closes_waits_for_nothing(viewer: Viewer) -> None:
    viewer.show()
    began = time.monotonic()
    viewer.close()
    assert time.monotonic() - began < 5.0


def test_a_child_leaves_the_wait_to_its_parent(viewer: Viewer) -> None:
    viewer.show()
    child = os.fork()
    if not child:
        viewer.peer.store.after_fork()
        viewer.peer.store.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    with contextlib.closing(RemoteStore(viewer.peer.store.url)) as other:
        other.log("study").exchange(outgoing("n"), 1)
    viewer.has(2, 30.0)
    until(lambda: viewer.asked == ["exchange", "news"])


def test_a_server_that_stops_holds_nobody(viewer: Viewer, served: Served) -> None:
    viewer.show()
    began = time.monotonic()
    served.stop()
    assert time.monotonic() - began < 5.0


def test_through_a_folder_and_in_a_directory_nobody_can_tell(through: Through, place: str) -> None:
    for store in (through(place), open_store(place)):
        peer = Peer(store)
        assert peer.hear(peer.log("study"), 20.0) is None
        peer.close()
