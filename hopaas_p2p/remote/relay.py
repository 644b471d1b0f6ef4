"""An HTTP proxy with only CONNECT, one login and the servers of one store, for nodes that can reach nothing else.

The relay runs on a login node. Compute nodes name it in HTTPS_PROXY, and everything that can use a proxy works through
it, such as a store that is served, S3, and `doctor`. TLS runs end to end inside, so the relay sees only the target's
name and encrypted bytes. A relay is not an open proxy. With the login, a client reaches only the servers of that store,
and without it, nothing.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import http
import secrets
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from hopaas_p2p.errors import ConfigurationError, HopaasError
from hopaas_p2p.net import proxies
from hopaas_p2p.net.listening import listening_on, stop_listening
from hopaas_p2p.net.proxies import ServerAddress, server_of
from hopaas_p2p.remote.rate_limit import RequestRefused
from hopaas_p2p.runtime.atomic import secret_if_any, write_private
from hopaas_p2p.runtime.logs import LOG
from hopaas_p2p.runtime.settings import Secret

USER: Final = "relay"
_HEAD: Final = 8192  # bytes of a request
_TIMEOUT: Final = 10.0  # seconds to receive a request, and to reach the target
_CHUNK: Final = 1 << 16
CONNECTIONS: Final = 1024
"""The most connections carried at once."""
PENDING: Final = 256
"""The most connections that have not logged in yet. One more closes the oldest of the address with the most."""


def targets_of(url: str) -> list[ServerAddress]:
    """The targets for this URL: the servers of an https:// URL, or a bucket's endpoint.

    Raises:
        ConfigurationError: an HTTP proxy cannot reach such a store; the message says what to use instead.

    """
    if url.startswith("s3://"):
        from hopaas_p2p.stores.s3 import address as s3_address

        address = s3_address.parse(url)
        if not address.endpoint.startswith("https:"):
            raise ConfigurationError(
                f"{address.endpoint!r}: a relay connects only to https, since its traffic must be encrypted"
            )
        found = server_of(address.endpoint)
        return [found, found._replace(host=f"{address.bucket}.{found.host}")][: 1 + address.virtual]
    if url.startswith("https://"):
        from hopaas_p2p.remote.client import RemoteAddress

        return [one._replace(host=one.host.lower()) for one in RemoteAddress.parse(url).servers]
    raise ConfigurationError(
        "a relay connects to a store that is served (https://…) or to a bucket (s3://…). For other stores, use: "
        "hopaas-p2p serve folder, which needs no network on compute nodes at all"
    )


def read_password(path: Path) -> Secret:
    """The password of the relay's address in this file; a new one if there is no file.

    Raises:
        ConfigurationError: others may read or write the file, or it does not contain a relay's address.

    """
    text, password = secret_if_any(path, "login file"), None
    if text is None:
        return Secret(secrets.token_urlsafe(24))
    with contextlib.suppress(ValueError):  # the message of the error may show the address
        parts = urlsplit(text)
        password = parts.password if parts.username == USER else None
    if not password:
        raise ConfigurationError(f"{path} does not hold the address of a relay; name another file, or remove it")
    return Secret(password)


def write_address(path: Path, host: str, port: int, password: Secret) -> None:
    """Write the relay's address, in the form for HTTPS_PROXY, to a file that only its owner may read."""
    write_private(path, f"http://{USER}:{password.reveal()}@{ServerAddress(host, port)}\n")


class Relay:
    """Serves CONNECT to these targets for clients that know the password. Used inside one event loop."""

    def __init__(self, targets: Iterable[ServerAddress], password: Secret, *, limit: int = CONNECTIONS) -> None:
        self._targets = {str(target): target for target in targets}
        self.carried = 0
        """The number of connections made for clients."""
        self.refused = 0
        self._expected = f"{USER}:{password.reveal()}".encode()
        self._limit = limit
        self._pending: dict[asyncio.Task[None], str] = {}
        """Connections that have not logged in yet, oldest first, with their addresses."""
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self, host: str, port: int) -> int:
        """Listen on TCP; returns the port.

        Raises:
            ConfigurationError: the address is in use, belongs to another machine, or needs more rights.

        """
        with listening_on(host, port):
            self._server = await asyncio.start_server(self._accept, host, port, limit=_HEAD)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening, and end all connections."""
        if self._server is not None:
            await stop_listening(self._server)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._pending[task] = str((writer.get_extra_info("peername") or ("",))[0])
        if len(self._pending) > PENDING:
            busiest, _ = Counter(self._pending.values()).most_common(1)[0]
            oldest = next(other for other, address in self._pending.items() if address == busiest)
            del self._pending[oldest]
            self.refused += 1
            oldest.cancel()
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                try:
                    await self._serve(task, reader, writer)
                except RequestRefused as refusal:
                    await self._refuse(writer, refusal.status)
        finally:
            self._tasks.discard(task)
            self._pending.pop(task, None)
            writer.transport.abort()

    async def _serve(
        self, task: asyncio.Task[None], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            async with asyncio.timeout(_TIMEOUT):
                head = await reader.readuntil(b"\r\n\r\n")
        except (TimeoutError, asyncio.LimitOverrunError):
            raise RequestRefused(400) from None
        target = self._judge(head)
        if len(self._tasks) - len(self._pending) >= self._limit:
            raise RequestRefused(503)
        self._pending.pop(task, None)
        try:
            made = await asyncio.to_thread(proxies.connect, target, timeout=_TIMEOUT)
        except HopaasError as error:
            LOG.warning("%s", error)
            raise RequestRefused(502) from None
        made.setblocking(False)  # noqa: FBT003
        there = await asyncio.open_connection(sock=made)
        self.carried += 1
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        try:
            async with asyncio.TaskGroup() as group:  # until both directions have ended, or one has failed
                group.create_task(_copy(reader, there[1]))
                group.create_task(_copy(there[0], writer))
        except* OSError:
            pass
        finally:
            there[1].transport.abort()

    def _judge(self, head: bytes) -> ServerAddress:
        """The target of a permitted request; raises RequestRefused."""
        lines = head.decode("latin-1").split("\r\n")
        words = lines[0].split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            raise RequestRefused(400)
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
        }
        scheme, _, encoded = headers.get("proxy-authorization", "").partition(" ")
        login = b""
        with contextlib.suppress(ValueError):  # not base64, or not ASCII
            login = base64.b64decode(encoded, validate=True)
        if not (scheme.lower() == "basic" and hmac.compare_digest(login, self._expected)):
            raise RequestRefused(407)
        if words[0] != "CONNECT" or words[1].lower() not in self._targets:
            raise RequestRefused(403)
        return self._targets[words[1].lower()]

    async def _refuse(self, writer: asyncio.StreamWriter, status: int) -> None:
        self.refused += 1
        asks = 'Proxy-Authenticate: Basic realm="hopaas-p2p serve relay"\r\n' if status == 407 else ""
        head = f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\nVia: 1.1 hopaas-p2p-relay\r\n{asks}"
        writer.write(f"{head}Content-Length: 0\r\nConnection: close\r\n\r\n".encode())
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_TIMEOUT):
                await writer.drain()
                writer.close()
                await writer.wait_closed()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while data := await source.read(_CHUNK):
        target.write(data)
        await target.drain()
    if target.can_write_eof():
        target.write_eof()
