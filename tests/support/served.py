"""A store that is served over HTTPS by a server in this process, for tests that need one for each test."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator

import pytest

from hopaas_p2p import access
from hopaas_p2p.gateway.certificate import Certificate
from hopaas_p2p.open import open_store
from hopaas_p2p.remote.access import CATALOG, AccessList, GrantSet
from hopaas_p2p.remote.client import RemoteStore, _avoided_until, _busy_until
from hopaas_p2p.remote.https import HttpsLimits, HttpsServer
from hopaas_p2p.remote.server import ListedService, PostgresService, Service
from tests.support.tunnel_fixtures import HOST, PROXIES, Authority

Serve = Callable[[str], RemoteStore]


class Served:
    """A server in a thread."""

    def __init__(self, service: Callable[[], Service], authority: Authority, limits: HttpsLimits | None = None) -> None:
        self._service, self._limits = service, limits
        self._certificate = Certificate(*authority.certificate())
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.port = 0

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)

        async def main() -> None:
            self.server = HttpsServer(self._service(), certificate=self._certificate, limits=self._limits)
            self.port = await self.server.start("127.0.0.1", 0)
            self._ended = asyncio.Event()
            self._started.set()
            await self._ended.wait()
            self.server.hurry()
            await self.server.drain()

        self._loop.run_until_complete(main())
        self._loop.close()

    @property
    def url(self) -> str:
        return f"https://{HOST}:{self.port}"

    def start(self) -> Served:
        self._thread.start()
        assert self._started.wait(30)
        return self

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(60)


def user_of(url: str, user: str) -> str:
    """A token of a user, who is made; an administrator, of a directory or bucket."""
    access.add_user(url, user)
    if not url.startswith("postgresql"):
        with contextlib.closing(open_store(url)) as store:
            AccessList(store).change(GrantSet(CATALOG, user, "owner"))
    return access.create_token(url, user).secret.reveal()


def service_of(url: str) -> Callable[[], Service]:
    """What serves the store at this URL."""
    if url.startswith("postgresql"):
        return lambda: PostgresService(url, ttl=30.0, remember=None)
    return lambda: ListedService(open_store(url))


def without_login(url: str) -> str:
    """The URL of a database as a server has it."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if separator else url


@pytest.fixture
def serve(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Serves the store at a URL; gives it as a user with a token has it."""
    authority = Authority(tmp_path_factory.mktemp("authority"))
    for name in (*PROXIES, "HOPAAS_TOKEN_FILE", "PGPASSWORD", "PGPASSFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOPAAS_CA_FILE", str(authority.file))
    with contextlib.ExitStack() as stack:

        def make(url: str) -> RemoteStore:
            _avoided_until.clear()
            _busy_until.clear()
            monkeypatch.setenv("HOPAAS_TOKEN", user_of(url, "operator"))
            served = Served(service_of(without_login(url)), authority).start()
            stack.callback(served.stop)
            store = RemoteStore(served.url)
            stack.callback(store.close)
            return store

        yield make
