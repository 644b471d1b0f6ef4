"""A forward to one target for nodes that reach nothing else: an HTTP proxy that knows CONNECT, one login, one target.

It runs on a login node. Compute nodes name it in HTTPS_PROXY, and everything that knows a proxy works through it: the
tunnel to a gateway, S3, `doctor`. TLS runs end to end inside, so it sees the name of the target and encrypted bytes.
It is no open proxy: whoever has the login gets to that one target, and nobody else gets anywhere.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import logging
import os
import secrets
import socket
import stat
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from hopaas_p2p.errors import ConfigurationError, HopaasError
from hopaas_p2p.settings import Secret
from hopaas_p2p.tunnel import plainly, proxies

_log: Final = logging.getLogger("hopaas_p2p")
USER: Final = "relay"
_HEAD: Final = 8192  # bytes of a request
_PATIENCE: Final = 10.0  # seconds for a request to come, and for the target to be reached
_CHUNK: Final = 1 << 16
CONNECTIONS: Final = 1024
_REASONS: Final = {
    400: "Bad Request",
    403: "Forbidden",
    407: "Proxy Authentication Required",
    502: "Bad Gateway",
    503: "Service Unavailable",
}


class Target(NamedTuple):
    """Where the relay leads."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{proxies.bracketed(self.host)}:{self.port}"


def targets_of(url: str) -> list[Target]:
    """What may be connected to for this URL: the gateways of a `postgresql+https://`, a bucket's endpoint, an https://.

    Raises:
        ConfigurationError: nothing that can be reached through an HTTP proxy; the message says what to use instead.

    """
    scheme = url.partition("://")[0]
    if scheme == "postgresql+https":
        from hopaas_p2p.stores.postgres.connect import Address
        from hopaas_p2p.tunnel.dialect import gateways_of

        return [Target(gateway.host.lower(), gateway.port) for gateway in gateways_of(Address(url).sqlalchemy_url)]
    if scheme == "s3":
        from hopaas_p2p.stores.s3 import address as s3_address

        address = s3_address.parse(url)
        found = _of_https(address.endpoint)
        return [found, Target(f"{address.bucket}.{found.host}", found.port)] if address.virtual else [found]
    if scheme == "https":
        return [_of_https(url)]
    raise ConfigurationError(
        "a relay leads to a gateway (postgresql+https://…), a bucket (s3://…) or an https://… address. For a database "
        "without a gateway use: hopaas-p2p bridge, which needs no network on compute nodes at all"
    )


def _of_https(url: str) -> Target:
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname:
        raise ConfigurationError(f"{url!r}: a relay leads to https only, since what it carries must be encrypted")
    return Target(parts.hostname, parts.port or 443)


def login_in(path: Path) -> Secret:
    """The password in a file that holds the relay's address, as HTTPS_PROXY takes it; a new one if there is no file.

    Raises:
        ConfigurationError: others may read the file, or it holds something else.

    """
    try:
        text = path.read_text().strip()
    except FileNotFoundError:
        return Secret(secrets.token_urlsafe(24))
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigurationError(f"{path} can be read by others, and holds a login. Run: chmod 600 {path}")
    password = urlsplit(text).password
    if not password or urlsplit(text).username != USER:
        raise ConfigurationError(f"{path} does not hold the address of a relay; name another file, or remove it")
    return Secret(password)


def write_address(path: Path, host: str, port: int, password: Secret) -> None:
    """Put the relay's address into the file, for its owner only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(f"http://{USER}:{password.reveal()}@{proxies.bracketed(host)}:{port}\n")
    draft.replace(path)


class Relay:
    """Serves CONNECT to these targets for who knows the password. Lives in one event loop."""

    def __init__(self, targets: Iterable[Target], password: Secret, *, limit: int = CONNECTIONS) -> None:
        self.targets = frozenset(targets)
        self.carried = 0
        """Connections that were made for clients."""
        self.refused = 0
        self._expected = f"{USER}:{password.reveal()}".encode()
        self._limit = limit
        self._open = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self, host: str, port: int) -> int:
        """Listen on TCP; the port.

        Raises:
            ConfigurationError: that address is taken, not ours, or needs more rights.

        """
        try:
            self._server = await asyncio.start_server(self._accept, host, port, limit=_HEAD)
        except OSError as error:
            raise ConfigurationError(f"cannot listen on {host}:{port}: {plainly(error)}") from None
        return int(self._server.sockets[0].getsockname()[1])

    async def listen_at(self, path: Path) -> None:
        """Listen on a Unix socket, for processes of this user, who need no login.

        Raises:
            ConfigurationError: something else stands there, or it cannot be made.

        """
        before = os.umask(0o177)
        try:
            _clear(path)
            self._server = await asyncio.start_unix_server(self._accept, path, limit=_HEAD)
        except OSError as error:
            raise ConfigurationError(f"cannot listen on {path}: {plainly(error)}") from None
        finally:
            os.umask(before)

    async def close(self) -> None:
        """End, and cut all connections."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._open += 1
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._serve(reader, writer)
        finally:
            self._open -= 1
            self._tasks.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._open > self._limit:
            await self._refuse(writer, 503)
            return
        try:
            async with asyncio.timeout(_PATIENCE):
                head = await reader.readuntil(b"\r\n\r\n")
        except (TimeoutError, asyncio.LimitOverrunError):
            await self._refuse(writer, 400)
            return
        status, target = self._judge(head, trusted=_same_user(writer))
        if target is None:
            await self._refuse(writer, status)
            return
        try:
            made = await asyncio.to_thread(proxies.reach, target.host, target.port, timeout=_PATIENCE)
        except HopaasError as error:
            _log.warning("%s", error)
            await self._refuse(writer, 502)
            return
        made.setblocking(False)  # noqa: FBT003
        there = await asyncio.open_connection(sock=made)
        self.carried += 1
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await _join((reader, writer), there)

    def _judge(self, head: bytes, *, trusted: bool) -> tuple[int, Target | None]:
        """The target that a request may have, or the status that says why not."""
        lines = head.decode("latin-1").split("\r\n")
        words = lines[0].split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return 400, None
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
        }
        if not trusted and not self._knows(headers.get("proxy-authorization", "")):
            return 407, None
        host, _, port = words[1].rpartition(":")
        asked = Target(host.strip("[]").lower(), int(port) if port.isdecimal() else 0)
        if words[0] != "CONNECT" or asked not in self.targets:
            return 403, None
        return 200, asked

    def _knows(self, given: str) -> bool:
        scheme, _, encoded = given.partition(" ")
        try:
            login = base64.b64decode(encoded, validate=True)
        except ValueError:  # no base64, or no ASCII
            return False
        return scheme.lower() == "basic" and hmac.compare_digest(login, self._expected)

    async def _refuse(self, writer: asyncio.StreamWriter, status: int) -> None:
        self.refused += 1
        asks = 'Proxy-Authenticate: Basic realm="hopaas-p2p relay"\r\n' if status == 407 else ""
        head = f"HTTP/1.1 {status} {_REASONS[status]}\r\nVia: 1.1 hopaas-p2p-relay\r\n{asks}Content-Length: 0\r\n"
        writer.write(f"{head}Connection: close\r\n\r\n".encode())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                await writer.drain()
        writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                await writer.wait_closed()


def _clear(path: Path) -> None:
    """Remove the socket that an earlier relay left; nothing else."""
    if path.is_socket():
        path.unlink()


def _same_user(writer: asyncio.StreamWriter) -> bool:
    """Whether a process of this user called, on a Unix socket."""
    peer = writer.get_extra_info("socket")
    if peer.family != socket.AF_UNIX:
        return False
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return bool(struct.unpack("3i", credentials)[1] == os.geteuid())


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _join(one: Streams, other: Streams) -> None:
    """Copy both ways until both have ended, or one has broken."""
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_copy(one[0], other[1]))
            group.create_task(_copy(other[0], one[1]))
    except* OSError:
        pass
    finally:
        other[1].transport.abort()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while data := await source.read(_CHUNK):
        target.write(data)
        await target.drain()
    if target.can_write_eof():
        target.write_eof()
