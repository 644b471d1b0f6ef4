"""Stores that are served over HTTPS: by a server in this process, and by the command, as at a computing centre."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from hopaas_p2p import access
from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.open import open_store
from hopaas_p2p.remote import client
from hopaas_p2p.remote.box import Box
from hopaas_p2p.remote.certificate import Certificate
from hopaas_p2p.remote.client import RemoteStore
from hopaas_p2p.remote.folder import FolderServer
from hopaas_p2p.remote.https import HttpsServer
from hopaas_p2p.remote.server import ListedService, PostgresService, Service
from hopaas_p2p.testing.commits import outgoing
from tests.support.ports import free_port
from tests.support.postgres import Server
from tests.support.service_process import ServiceProcess

HOST = "localhost"
PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy", "HTTP_PROXY", "http_proxy")

Serve = Callable[[str], RemoteStore]
Through = Callable[[str], RemoteStore]


class Authority:
    """A certificate authority, and certificates of it in files."""

    def __init__(self, folder: Path) -> None:
        self._ca = trustme.CA()
        self._folder = folder
        self.file = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.file))

    def certificate(self, *names: str, days: float = 365.0, name: str = "server") -> tuple[Path, Path]:
        """(certificate with its chain, key) for these names."""
        until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
        issued = self._ca.issue_cert(*(names or (HOST, "127.0.0.1")), not_after=until.replace(tzinfo=None))
        chain, key = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        chain.write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
        key.write_bytes(issued.private_key_pem.bytes())
        return chain, key


def forget_servers() -> None:
    """As if this process had not dialled a server yet."""
    client._busy_until.clear()
    client._avoided_until.clear()


# --- in this process ---------------------------------------------------------------------------------------------


class Served:
    """A server in a thread."""

    def __init__(self, service: Callable[[], Service], authority: Authority) -> None:
        self._service = service
        self._certificate = Certificate(*authority.certificate())
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self.port = 0

    async def _run(self) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        self.server = HttpsServer(self._service(), certificate=self._certificate)
        self.port = await self.server.start("127.0.0.1", 0)
        self._started.set()
        await self._ended.wait()
        self.server.hurry()
        await self.server.drain()

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


def administrator(url: str, user: str = "operator") -> str:
    """A token of a user, who is made; in a directory or bucket, one that may do everything."""
    access.add_user(url, user, administrator=not url.startswith("postgresql"))
    return access.create_token(url, user).secret.reveal()


def service_of(url: str) -> Callable[[], Service]:
    """What serves the store at this URL."""
    if not url.startswith("postgresql"):
        return lambda: ListedService(open_store(url))
    scheme, _, rest = url.partition("://")
    return lambda: PostgresService(f"{scheme}://{rest.rpartition('@')[2]}")


@pytest.fixture
def serve(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Serves the store at a URL; gives it as a user with a token has it."""
    authority = Authority(tmp_path_factory.mktemp("authority"))
    for name in (*PROXIES, "HOPAAS_TOKEN_FILE", "PGPASSWORD", "PGPASSFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOPAAS_CA_FILE", str(authority.file))
    forget_servers()
    with contextlib.ExitStack() as stack:

        def make(url: str) -> RemoteStore:
            monkeypatch.setenv("HOPAAS_TOKEN", administrator(url))
            served = Served(service_of(url), authority).start()
            stack.callback(served.stop)
            store = RemoteStore(served.url)
            stack.callback(store.close)
            return store

        yield make


class ServedFolder:
    """A server of a box in a thread."""

    def __init__(self, box: Box, url: str) -> None:
        self._box, self._url = box, url
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        assert self._started.wait(30)

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        service = Service(lambda _: open_store(self._url))
        server = FolderServer(self._box, service, pace=service.store.freshness)
        self._started.set()
        await server.run(self._stop)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)


@pytest.fixture
def through(tmp_path: Path) -> Iterator[Through]:
    """Serves the store at a URL through a folder; gives it as it is there."""
    with contextlib.ExitStack() as stack:

        def make(url: str) -> RemoteStore:
            store = open_store(url)
            box = Box.make(tmp_path / "box", store.url)
            store.close()
            stack.callback(ServedFolder(box, url).stop)
            made = RemoteStore(box.url)
            assert isinstance(made.connections, Box)
            made.connections.timeout = 60.0
            return made

        yield make


WAYS = tuple(f"{how} {kind}" for how in ("direct", "https", "folder") for kind in ("directory", "bucket", "postgres"))
"""Each kind of store, and how it is reached: directly, over HTTPS, or through a folder."""
each_way = pytest.mark.parametrize("store", WAYS, indirect=True)
"""For tests whose fixture `store` is a URL that `reached` gives."""


def reached(request: pytest.FixtureRequest) -> str:
    """The URL of an empty store, reached in the way that the parameter of the fixture says; else a directory's."""
    how, _, kind = getattr(request, "param", "direct directory").partition(" ")
    if kind == "directory":
        url = str(request.getfixturevalue("tmp_path") / "store")
    else:
        url = request.getfixturevalue({"bucket": "s3_url", "postgres": "postgres_url"}[kind])
    if how == "direct":
        return url
    with contextlib.closing(open_store(url)) as store:
        if kind == "bucket":
            store.log("another").exchange(outgoing("a"), 0)  # the first write makes the store
    carried: Callable[[str], RemoteStore] = request.getfixturevalue({"https": "serve", "folder": "through"}[how])
    return carried(url).url


# --- by the command ----------------------------------------------------------------------------------------------


class HttpsProcess(ServiceProcess):
    """A server, started by its command."""

    begins = "Serving on"

    def __init__(self, folder: Path, *options: str, port: int = 0, **env: str) -> None:
        self.port = port or free_port()
        listen = f"127.0.0.1:{self.port}"
        words = ("serve", "https", "--listen", listen, *options)
        super().__init__(*words, log=folder / f"server-{self.port}.log", env=env)

    def events(self, what: str) -> list[dict[str, Any]]:
        """The log's events of that name."""
        found = [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        return [one for one in found if one["event"] == what]

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait, whether it was stopped or not."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGCONT)
        super().kill()

    def metrics(self, authority: Authority) -> dict[str, float]:
        """The metrics by name and label."""
        lines = fetch(self.port, "/metrics", authority)[1].splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def fetch(port: int, path: str, authority: Authority) -> tuple[int, str]:
    """(status, text) of a page of the server."""
    import http.client
    import ssl

    context = ssl.create_default_context(cafile=authority.file)
    connection = http.client.HTTPSConnection(HOST, port, context=context, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


class Centre:
    """A computing centre with a database that it serves: what most tests need."""

    def __init__(self, server: Server, store: str, folder: Path, authority: Authority | None = None) -> None:
        self.server, self.store, self.folder = server, store, folder
        self.authority = authority or Authority(folder)
        self.pair = self.authority.certificate()
        self._servers: list[HttpsProcess] = []

    @property
    def target(self) -> str:
        return f"postgresql://127.0.0.1:{self.server.port}/store"

    def serve(self, *options: str, tls: bool = True, target: str = "", port: int = 0) -> HttpsProcess:
        """Start one more server."""
        pair = ["--tls-cert", str(self.pair[0]), "--tls-key", str(self.pair[1])] if tls else []
        made = HttpsProcess(self.folder, target or self.target, *pair, *options, port=port)
        self._servers.append(made)
        return made.start()

    def token(self, user: str = "ann", **options: Any) -> access.NewToken:
        """A token for a user, who is made if need be."""
        with contextlib.suppress(InvalidInput):
            access.add_user(self.store, user)
        return access.create_token(self.store, user, **options)

    def url(self, *ports: int) -> str:
        """Of the store through these servers."""
        return f"https://{','.join(f'{HOST}:{port}' for port in ports)}"

    def stop(self) -> None:
        for server in self._servers:
            server.kill()


@pytest.fixture
def centre(postgres: Server, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Centre]:
    """A centre without a server yet, and an environment in which its authority is trusted."""
    made = Centre(postgres, postgres_url, tmp_path)
    for name in (*PROXIES, "HOPAAS_TOKEN", "HOPAAS_TOKEN_FILE", "PGHOST", "PGPASSWORD", "PGPASSFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOPAAS_CA_FILE", str(made.authority.file))
    forget_servers()
    yield made
    made.stop()


class FolderProcess(ServiceProcess):
    """`hopaas-p2p serve folder`, restarted at will."""

    begins = "Serving "

    def __init__(self, box: Path | str, far: str, folder: Path, **env: str) -> None:
        super().__init__("serve", "folder", str(box), far, log=folder / "folder.log", env=env)
