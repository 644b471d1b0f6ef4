"""Postgres servers for tests: one of each version a session, a fresh store for each test that wants one."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hopaas_p2p import access
from hopaas_p2p.errors import StoreUnreachable
from hopaas_p2p.stores.base import Outgoing
from hopaas_p2p.stores.postgres.store import PostgresStore
from tests.support import needs
from tests.support.latency import Relay
from tests.support.postgres import Server, find_binaries
from tests.support.postgres_people import Place

MAJORS = tuple(sorted(find_binaries())) or (18,)
"""Every version there is: the system's, and that of the wheel which the tests install."""
OWNER = "dba"
"""The login that owns the databases: it may create roles, and is no superuser."""
_STORE = "store"
_numbers = itertools.count()


def missing(what: str) -> None:
    """Skip, or fail where everything has to be there."""
    needs.missing(f"{what} is not here")


class Servers:
    """Started when first asked for, stopped with the session."""

    def __init__(self) -> None:
        self._running: dict[int, Server] = {}
        self._found = find_binaries()

    def get(self, major: int | None = None) -> Server:
        if not self._found:
            missing("a Postgres server")
        chosen = max(self._found) if major is None else major
        if chosen not in self._found:
            missing(f"Postgres {chosen}")
        if chosen not in self._running:
            server = Server(self._found[chosen], settings={"max_connections": "250"})
            self._running[chosen] = server.start()
            server.execute(f"CREATE ROLE {OWNER} LOGIN CREATEROLE PASSWORD %s", server.password)
            server.execute(f"CREATE DATABASE {_STORE} OWNER {OWNER}")
            access.initialise(server.url(_STORE, user=OWNER))
        return self._running[chosen]

    def stop(self) -> None:
        for server in self._running.values():
            server.stop()


@pytest.fixture(scope="session")
def postgres_servers() -> Iterator[Servers]:
    servers = Servers()
    yield servers
    servers.stop()


@pytest.fixture(params=MAJORS, ids=[f"postgres{major}" for major in MAJORS])
def any_postgres(request: pytest.FixtureRequest, postgres_servers: Servers) -> Server:
    """A server of each version in turn. It is shared: leave it as you found it."""
    return postgres_servers.get(request.param)


@pytest.fixture
def postgres(postgres_servers: Servers) -> Server:
    """The newest server there is. It is shared: leave it as you found it."""
    return postgres_servers.get()


@pytest.fixture
def new_database() -> Callable[[Server], str]:
    """Makes an empty database of the owner's, without a store in it, and returns its name. Takes half a second."""

    def make(server: Server) -> str:
        name = f"database_{next(_numbers)}"
        server.execute(f"CREATE DATABASE {name} OWNER {OWNER}")
        return name

    return make


def emptied(server: Server) -> str:
    """The URL of the one store on this server, as its administrator sees it, with all that was in it removed."""
    server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", _STORE)
    users = server.execute(
        "SELECT role FROM hopaas.tokens UNION ALL SELECT username FROM hopaas.users", database=_STORE
    )
    tables = ["artifacts", "beats", "blocks", "commits", "grants", "peers", "snapshots", "tokens", "users"]
    wipe = ";".join(f"DELETE FROM hopaas.{table}" for table in tables)
    server.execute(f"{wipe}; DELETE FROM hopaas.logs WHERE uuid <> 'catalog'", database=_STORE)
    for (user,) in users:
        server.execute(f'DROP ROLE IF EXISTS "{user}"')
    return server.url(_STORE, user=OWNER)


@pytest.fixture
def postgres_url(postgres: Server) -> str:
    """An empty store, as its administrator sees it."""
    return emptied(postgres)


@pytest.fixture
def any_postgres_url(any_postgres: Server) -> str:
    """An empty store on a server of each version in turn, as its administrator sees it."""
    return emptied(any_postgres)


@pytest.fixture
def relay(postgres: Server) -> Iterator[Relay]:
    with Relay(postgres.port) as relay:
        yield relay


@pytest.fixture
def far_url(postgres: Server, postgres_url: str, relay: Relay) -> str:
    """The empty store, through the relay."""
    return postgres.url("store", user=OWNER, port=relay.port)


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers that a test may harm; the newest version there is."""
    with contextlib.ExitStack() as stack:

        def start(**settings: str) -> Server:
            if not find_binaries():
                missing("a Postgres server")
            server = Server(settings=settings)
            stack.callback(server.stop)
            server.start()
            access.initialise(server.url())
            return server

        yield start


@pytest.fixture
def place(any_postgres: Server, any_postgres_url: str) -> Iterator[Place]:
    """A store of each version in turn, with an administrator, to which people come."""
    place = Place(any_postgres, any_postgres_url)
    yield place
    place.close()


def takes(log: Any, commit: Outgoing, since: int) -> bool:
    try:
        log.exchange(commit, since)
    except StoreUnreachable:
        return False
    return True


def reads(store: PostgresStore) -> bool:
    try:
        store.catalog().exchange(None, 0)
    except StoreUnreachable:
        return False
    return True
