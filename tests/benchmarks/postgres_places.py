"""Where the Postgres benchmarks run: one server, reached by three storages over a link that may be long."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import optuna

import hopaas_p2p
from tests.support.latency import Relay
from tests.support.ports import free_port
from tests.support.postgres import Server
from tests.support.processes import until


class Row(NamedTuple):
    """One line of the table."""

    what: str
    ours: str
    rdb: str = ""
    grpc: str = ""
    ratio: str = ""
    """Theirs to ours, RDBStorage's first."""
    asked: str = ""


def times(ours: float, *theirs: float) -> str:
    """How often ours goes into theirs."""
    return ", ".join(f"{one / ours:.2g} x" if one < 10 * ours else f"{one / ours:,.0f} x" for one in theirs)


class Places:
    """The same study server by three ways, each over a link."""

    def __init__(self, server: Server, grpc_port: int) -> None:
        self.server, self.grpc_port = server, grpc_port

    @contextlib.contextmanager
    def storage(self, kind: str, round_trip: float) -> Iterator[tuple[Relay, Callable[[], Any]]]:
        """A link, and what opens a storage over it."""
        target = self.grpc_port if kind == "grpc" else self.server.port
        with Relay(target, round_trip=round_trip) as relay:
            opened: list[Any] = []

            def connect() -> Any:
                opened.append(_open(kind, self.server, relay.port))
                return opened[-1]

            yield relay, connect
            for storage in opened:
                if hasattr(storage, "close"):
                    storage.close()
                if hasattr(storage, "engine"):
                    storage.engine.dispose()


def _open(kind: str, server: Server, port: int) -> Any:
    if kind == "ours":
        return hopaas_p2p.open_storage(server.url(port=port))
    if kind == "rdb":
        return optuna.storages.RDBStorage(rdb_url(server, port))
    return optuna.storages.GrpcStorageProxy(host="127.0.0.1", port=port)


def rdb_url(server: Server, port: int = 0) -> str:
    return server.url("rdb", port=port).replace("postgresql:", "postgresql+psycopg2:")


@contextlib.contextmanager
def grpc_proxy(server: Server) -> Iterator[int]:
    """Optuna's gRPC proxy before its RDBStorage, in a process of its own."""
    port = free_port()
    body = (
        "import sys, optuna; optuna.storages.run_grpc_proxy_server("
        "optuna.storages.RDBStorage(sys.argv[1]), host='127.0.0.1', port=int(sys.argv[2]))"
    )
    command = [sys.executable, "-W", "ignore", "-c", body, rdb_url(server), str(port)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        until(lambda: _answers(port), 60)
        yield port
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
