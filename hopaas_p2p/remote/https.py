"""Carries requests to a `Service` over HTTPS. One coroutine per connection answers one request after another.

    TLS ── head ── is the token valid? ── body ── answer ── head, or the end
     └ deadline ┴ 401 403 429 503 ──────── 408 413

A request's body is not read before its token is known to be valid, and nothing that a caller sent is logged except the
name of an accepted token.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http
import ipaddress
import logging
import math
import re
import shutil
import time
from asyncio.sslproto import SSLProtocol
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import h11

from hopaas_p2p.errors import ConfigurationError, InvalidInput, StoreUnreachable
from hopaas_p2p.net.checks import SOON
from hopaas_p2p.net.listening import listening_on, stop_listening
from hopaas_p2p.net.proxies import configure
from hopaas_p2p.remote import protocol
from hopaas_p2p.remote.certificate import Certificate
from hopaas_p2p.remote.log import event
from hopaas_p2p.remote.protocol import LARGEST, PATH, StoreRequest
from hopaas_p2p.remote.rate_limit import RequestRefused
from hopaas_p2p.remote.server import Service, Token
from hopaas_p2p.remote.tokens import TokenStatus
from hopaas_p2p.runtime.atomic import scratch
from hopaas_p2p.runtime.settings import Secret

Networks = Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]
PENDING: Final = 512
"""The most connections that have sent no valid token yet. One more closes the oldest of the address with the most."""
LOOPBACK: Final[Networks] = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
_BACKLOG: Final = 1024
_FRAME: Final = 1 << 16  # bytes
_HEAD: Final = 16 << 10  # bytes
_HELD: Final = 512 << 20  # bytes of requests and answers of all callers at a time; a quarter of that per token
_SLOWEST: Final = 16 << 10  # bytes per second of a body, after the first ten seconds
_STALLED: Final = 60.0  # seconds after which a caller that reads nothing of its answer is disconnected
_LAST_WORDS: Final = 5.0  # seconds for a caller to read a last answer
_PIECE: Final = 1 << 18  # bytes
_LINES: Final = 20  # rejected addresses logged per second
_WHERE: Final = re.compile(rf"(?:(?!{PATH}/files/)/[A-Za-z0-9._~-]+)*{PATH}(?:/files/(?P<key>[A-Za-z0-9_/-]+))?")
"""Anyone can send a path, so no part of one matches in two ways, which could make a match take very long."""
_TEXT: Final = "text/plain; charset=utf-8"

SSLProtocol.max_size = 1 << 14  # one TLS record; the default receive buffer takes 256 KiB per connection


def is_within(address: str, networks: Networks) -> bool:
    """Whether an address is in one of these networks; an IPv4 address may be written as IPv6."""
    with contextlib.suppress(ValueError):
        found = ipaddress.ip_address(address)
        mapped = getattr(found, "ipv4_mapped", None)
        return any((mapped or found) in network for network in networks)
    return False


class HttpsLimits(NamedTuple):
    """The limits of a server."""

    connections: int = 1000
    per_token: int = 256
    """Connections."""
    head: float = 10.0
    """Seconds for TLS and the head of a connection's first request, and for each later head from its first byte."""
    idle: float = 300.0
    """Seconds that a connection stays open without a request."""
    drain: float = 30.0
    """Seconds for answering requests when the server stops."""
    largest_file: int = 64 << 30
    """Bytes."""


class HttpsServer:
    """Serves one store. Used inside one event loop.

    Args:
        service: the store.
        certificate: for TLS; None behind a proxy that terminates it.
        behind: networks of such proxies. Only they may connect without TLS, and only their X-Forwarded-* headers count.
        metrics_from: networks that may read /metrics.
        limits: sizes, counts and times.

    """

    def __init__(
        self,
        service: Service,
        *,
        certificate: Certificate | None = None,
        behind: Networks = (),
        metrics_from: Networks = LOOPBACK,
        limits: HttpsLimits | None = None,
    ) -> None:
        if certificate is None and not behind:
            raise ConfigurationError("a server needs TLS: give --tls-cert and --tls-key, or --behind-proxy NETWORK")
        self.service, self.behind, self.limits = service, behind, limits or HttpsLimits()
        self.certificate, self._metrics_from = certificate, metrics_from
        self.draining = False
        self.counted: Counter[tuple[str, str]] = Counter({("requests_total", 'status="200"'): 0})
        """Counters by name and label of a metric."""
        self.turned_away: Counter[tuple[str, int]] = Counter()
        """Rejections since the last tick, by address and status. With a line for each, a guesser could fill the log."""
        self.held: Counter[Token] = Counter()
        """Bytes of requests being read, and of answers not yet received."""
        self.by_token: Counter[Token] = Counter()
        self.sessions: set[HttpsSession] = set()
        self.empty = asyncio.Event()
        self._warned = float("-inf")
        self._server: asyncio.Server | None = None
        self._ticker: asyncio.Task[None] | None = None

    # --- life ---

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port.

        Raises:
            ConfigurationError: the address is in use, belongs to another machine, or needs more rights.

        """

        def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Awaitable[None]:
            return HttpsSession(self, reader, writer).run()

        with listening_on(host, port):
            self._server = await asyncio.start_server(serve, host, port, limit=_FRAME // 2, backlog=_BACKLOG)
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(  # for callbacks, without details
            lambda _, context: event("failed", level=logging.ERROR, why=type(context.get("exception")).__name__)
        )
        self._ticker = loop.create_task(self._tick())
        bound = int(self._server.sockets[0].getsockname()[1])
        event("listening", host=host, port=bound, tls=self.certificate is not None)
        return bound

    async def drain(self) -> None:
        """Stop listening, answer pending requests, and close every connection."""
        assert self._server is not None
        await stop_listening(self._server)
        self.draining = True
        event("draining", connections=len(self.sessions))
        self.service.end_waits()
        for session in list(self.sessions):
            if not session.asking:
                session.end()
        if self.sessions:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.empty.wait(), self.limits.drain)
        for session in list(self.sessions):
            session.end()
        if self._ticker is not None:
            self._ticker.cancel()
        self.service.close()
        event("stopped")

    def hurry(self) -> None:
        """End `drain` without waiting any longer."""
        self.empty.set()

    # --- called by the sessions ---

    def let_in(self, session: HttpsSession) -> None:
        """Register a new connection. Ends it if only proxies may connect, or ends another if too many have no token."""
        self.sessions.add(session)
        self.empty.clear()
        if self.certificate is None and not is_within(session.address, self.behind):
            session.end("not a proxy")
            return
        pending = [other for other in self.sessions if other.token is None]
        if len(pending) > PENDING:
            busiest = Counter(other.address for other in pending).most_common(1)[0][0]
            min((one for one in pending if one.address == busiest), key=lambda one: one.began).end("crowd")

    def has_room(self, token: Token) -> bool:
        """Whether one more connection may use this token."""
        return self.by_token[token] < self.limits.per_token and self.by_token.total() < self.limits.connections

    def page(self, path: str, address: str) -> tuple[int, str]:
        """(status, text) of a page for machines."""
        if path == "/healthz":
            return (503, "draining\n") if self.draining else (200, "ok\n")
        if path != "/metrics" or not is_within(address, self._metrics_from):
            return 404, ""
        # in Prometheus' text format, without roles, addresses or secrets, because many people can read metrics
        gauges: dict[str, float] = {
            "connections": self.by_token.total(),
            "pending": sum(session.token is None for session in self.sessions),
            "draining": int(self.draining),
            **self.service.gauges(),
        }
        if self.certificate is not None:
            gauges["certificate_expiry_seconds"] = int(self.certificate.expires)
        lines = [f"hopaas_server_{name} {value}" for name, value in gauges.items()]
        lines += [f"hopaas_server_{name}{{{label}}} {value}" for (name, label), value in sorted(self.counted.items())]
        return 200, "\n".join(lines) + "\n"

    # --- once per second ---

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            now = time.monotonic()
            for (address, status), count in self.turned_away.most_common(_LINES):
                event("turned away", address=address, status=status, times=count)
            self.turned_away.clear()
            for session in [one for one in self.sessions if not one.asking]:
                if now - session.idle_since > self.limits.idle:
                    session.end("idle")
            await self.service.tick(now)
            if self.certificate is not None:
                self._check_certificate(self.certificate, now)

    def _check_certificate(self, certificate: Certificate, now: float) -> None:
        try:
            if certificate.reload():
                event("certificate loaded", days_left=round(certificate.days_left, 1))
                self._warned = float("-inf")
        except ConfigurationError as error:
            event("certificate not loaded; the old one stays in use", level=logging.ERROR, why=str(error))
        if certificate.days_left < SOON and now - self._warned > 86400.0:
            self._warned = now
            ends = "HAS EXPIRED" if certificate.days_left < 0 else f"EXPIRES IN {certificate.days_left:.0f} DAYS"
            event(f"THE CERTIFICATE {ends}: renew it", level=logging.WARNING, days_left=round(certificate.days_left, 1))


class HttpsSession:
    """One connection of a client, from its first byte to its last."""

    def __init__(self, server: HttpsServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._server, self._limits, self._reader, self._writer = server, server.limits, reader, writer
        self.began = asyncio.get_running_loop().time()
        self.address = str((writer.get_extra_info("peername") or ("",))[0])
        self.token: Token | None = None
        """The token of this connection, once known."""
        self.asking = False
        """Whether there is an unanswered request."""
        self.idle_since = math.inf
        """When the last request was answered; infinite once bytes of another have come."""
        self._caller = ""
        """The client's address; behind a proxy, the one that the proxy reports."""
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD)
        self._held = 0
        self.on_disk = 0
        """Bytes of the file that is coming or going."""
        self._ended = False

    def end(self, shed: str = "") -> None:
        """Close the connection at once; `shed` is the cause to count, if any."""
        if shed and not self._ended:
            self._server.counted["shed_total", f'cause="{shed}"'] += 1
        self._ended = True
        with contextlib.suppress(AttributeError):  # asyncio fails on a transport that is already lost
            self._writer.transport.abort()
        self._server.sessions.discard(self)
        if not self._server.sessions:
            self._server.empty.set()

    async def run(self) -> None:
        """Answer one request after another, until one side ends the connection."""
        self._server.let_in(self)
        try:
            configure(self._writer.get_extra_info("socket"))
            until = self.began + self._limits.head
            if self._server.certificate is not None:
                plain = self._writer.transport
                try:
                    async with asyncio.timeout_at(until):
                        await self._writer.start_tls(self._server.certificate.context)
                except AttributeError:  # asyncio has no transport if the other side is gone
                    self._writer._transport = plain  # type: ignore[attr-defined]  # noqa: SLF001
                    return
                self._writer.transport.set_read_buffer_limits(high=_FRAME)  # type: ignore[attr-defined]
            self._writer.transport.set_write_buffer_limits(high=_FRAME)
            while not self._ended and await self._request(until):
                until = 0.0
        except TimeoutError:
            self.end("deadline")
        except OSError:
            pass
        except Exception as error:  # noqa: BLE001  # the other connections continue
            event("failed", level=logging.ERROR, why=type(error).__name__)
        finally:
            self.end()
            self._release()

    # --- requests ---

    async def _event(self, until: float) -> Any:
        """The next event of a request; raises TimeoutError."""
        while (found := self._http.next_event()) is h11.NEED_DATA:
            async with asyncio.timeout_at(until):
                self._http.receive_data(await self._reader.read(_FRAME))
        return found

    async def _request(self, until: float) -> bool:
        """Answer one request, whose head must arrive by `until` unless that is 0. Returns whether to continue."""
        try:
            if not until and not self._http.trailing_data[0]:
                self._http.receive_data(await self._reader.read(_FRAME))  # the server's tick ends idle connections
            self.idle_since = math.inf
            head = await self._event(until or asyncio.get_running_loop().time() + self._limits.head)
            if not isinstance(head, h11.Request):  # the other side has closed the connection
                return False
            self.asking = True
            await self._answer(head)
        except h11.RemoteProtocolError as error:
            await self._respond(error.error_status_hint)
        except RequestRefused as refusal:
            await self._respond(refusal.status, retry=refusal.retry)
        except Exception as error:
            if isinstance(error, ConnectionError | TimeoutError) or error is self._reader.exception():
                raise
            event("failed", level=logging.ERROR, why=type(error).__name__)  # such as a full disk
            await self._respond(500)
        self._hold(0)
        self.asking = False
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
            self.idle_since = time.monotonic()
            return True
        self._writer.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS):
                await self._writer.wait_closed()
        return False

    async def _answer(self, request: h11.Request) -> None:
        """Answer a request whose head has arrived.

        Raises RequestRefused if the request is invalid or forbidden, or must be sent again later.
        """
        headers: dict[bytes, list[str]] = {}
        for name, value in request.headers:
            headers.setdefault(name, []).append(value.decode("latin-1"))
        method, server = request.method.decode("latin-1"), self._server
        path = request.target.decode("latin-1").partition("?")[0]
        forwarded = headers.get(b"x-forwarded-for", [])
        self._caller = self.address
        if forwarded and is_within(self.address, server.behind):
            self._caller = forwarded[-1].rpartition(",")[2].strip()[:64]
        where = _WHERE.fullmatch(path)
        if where is None:
            code, text = server.page(path, self._caller) if method == "GET" else (404, "")
            await self._respond(code, text.encode(), kind=_TEXT)
            return
        key = where["key"]
        if method not in (("PUT", "GET") if key else ("POST",)):
            raise RequestRefused(405)
        if server.certificate is None and headers.get(b"x-forwarded-proto", [""])[-1].lower() != "https":
            raise RequestRefused(403)
        if b"transfer-encoding" in headers:  # two parsers could disagree about the body's end
            raise RequestRefused(411)
        length = int(headers.get(b"content-length", ["0"])[0])  # h11 has checked that it is a number
        if length > (self._limits.largest_file if key else LARGEST):
            raise RequestRefused(413)
        token = _bearer_token(headers.get(b"authorization", []))
        if token is None:
            raise RequestRefused(401)
        status = await self._admit(token)
        if key:
            try:
                await self._carry_file(token, method, key, length)
            finally:
                self.on_disk = 0
            return
        self._hold(length)
        body = bytearray()
        await self._receive(body.extend)
        try:
            found = await server.service.answer(token, protocol.decode_request(bytes(body)), status, self._is_gone)
        except InvalidInput as error:
            found = protocol.refused(error)
        self._hold(len(found))
        await self._respond(200, found)

    def _is_gone(self) -> bool:
        """Whether the client has closed the connection, or was killed, while it waited for news."""
        return self._reader.at_eof() or self._reader.exception() is not None

    async def _admit(self, token: Token) -> TokenStatus:
        """Check that the token is valid, and that there is room, before the body is read."""
        server = self._server
        if server.draining:
            raise RequestRefused(503, 1.0)
        if token != self.token and not server.has_room(token):
            raise RequestRefused(429, 5.0)
        try:
            status = await server.service.status(token, self._caller)
        except StoreUnreachable as error:
            event("the store cannot be reached", why=str(error))
            raise RequestRefused(503, 2.0) from None
        if not status.valid:
            raise RequestRefused(401)
        if token != self.token:
            self._release()
            if not server.has_room(token):
                raise RequestRefused(429, 5.0)
            self.token = token
            server.by_token[token] += 1
            event("opened", token=token[0], address=self._caller)
        return status

    async def _receive(self, take: Callable[[bytes], object]) -> None:
        """Pass the body to `take` piece by piece, as it arrives."""
        came, began = 0, asyncio.get_running_loop().time()
        while True:
            try:
                found = await self._event(began + self._limits.head + came / _SLOWEST)
            except TimeoutError:
                self._server.counted["shed_total", 'cause="deadline"'] += 1
                raise RequestRefused(408) from None
            if not isinstance(found, h11.Data):
                return
            came += len(found.data)
            take(found.data)

    async def _carry_file(self, token: Token, method: str, key: str, length: int) -> None:
        """Receive a file and give it to the store, or vice versa, through a folder on this machine."""
        service = self._server.service
        with scratch() as path:
            if method == "PUT":
                request = StoreRequest("put", key, (length,))
                found = await service.carry_out(token, request)  # judged before any byte is stored
                if protocol.refusal(found):
                    await self._receive(len)
                else:
                    self._keep(length, path.parent)
                    with path.open("wb") as file:  # noqa: ASYNC230  # a piece at a time
                        await self._receive(file.write)
                    found = await service.carry_out(token, request, path)
                await self._respond(200, found)
                return
            await self._receive(len)
            found = await service.carry_out(token, StoreRequest("get", key), path)
            if protocol.refusal(found):
                await self._respond(200, found)
                return
            with path.open("rb") as file:  # noqa: ASYNC230
                size = file.seek(0, 2)
                self._keep(size, path.parent)
                file.seek(0)
                self._writer.write(self._http.send(_response(200, size, protocol.FILE, self._server.draining)) or b"")
                while data := file.read(_PIECE):
                    self._writer.write(self._http.send(h11.Data(data=data)) or b"")
                    await self._taken()
            await self._finish(200, self._http.send(h11.EndOfMessage()) or b"")

    def _keep(self, size: int, folder: Path) -> None:
        """Reserve room for a file of this connection. Raises RequestRefused if the files of its token would take more
        than a quarter of the room, unless this is the only one.
        """
        self.on_disk = size
        sessions = self._server.sessions
        mine = sum(one.on_disk for one in sessions if one.token == self.token)
        if size < mine > (shutil.disk_usage(folder).free + sum(one.on_disk for one in sessions)) // 4:
            raise RequestRefused(503, 5.0)

    # --- answers ---

    async def _respond(
        self, status: int, body: bytes = b"", *, kind: str = "application/msgpack", retry: float | None = None
    ) -> None:
        """Answer the current request; the connection ends if the request's body was not read."""
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            raise ConnectionError
        more = [] if retry is None else [("Retry-After", str(max(1, round(retry + 0.5))))]
        if status == 401:
            more.append(("WWW-Authenticate", "Bearer"))
        if status in (401, 403, 429):
            self._server.turned_away[self._caller, status] += 1
        head = _response(status, len(body), kind, self._server.draining or status != 200, *more)
        parts = [head, h11.Data(data=body), h11.EndOfMessage()]
        await self._finish(status, b"".join(self._http.send(part) or b"" for part in parts))

    async def _finish(self, status: int, data: bytes) -> None:
        self._server.counted["requests_total", f'status="{status}"'] += 1
        self._writer.write(data)
        await self._taken()

    async def _taken(self) -> None:
        """Wait until the client has received almost everything; end a connection on which it receives nothing."""
        left = self._writer.transport.get_write_buffer_size()
        while left > _FRAME:
            before = left
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_STALLED):
                    await self._writer.drain()
            left = self._writer.transport.get_write_buffer_size()
            if left > _FRAME and left >= before:
                self.end("stalled")
                raise ConnectionError

    def _hold(self, size: int) -> None:
        """Reserve `size` bytes of memory for this connection; raises RequestRefused if a limit would be exceeded."""
        if self.token is not None:
            held = self._server.held
            before, self._held = self._held, size
            held[self.token] += size - before
            if size > before and (held[self.token] > _HELD // 4 or held.total() > _HELD):
                raise RequestRefused(503, 2.0)

    def _release(self) -> None:
        if self.token is not None:
            self._server.held[self.token] -= self._held
            self._server.by_token[self.token] -= 1
            if not self._server.by_token[self.token]:
                del self._server.by_token[self.token], self._server.held[self.token]
            self.token, self._held = None, 0


@functools.lru_cache(maxsize=1024)  # h11 takes longer to check a response than to send it
def _response(status: int, size: int, kind: str, last: bool, *more: tuple[str, str]) -> h11.Response:
    headers = [("Hopaas-Server", str(protocol.VERSION)), ("Content-Type", kind), ("Content-Length", str(size)), *more]
    headers += [("Connection", "close")] if last else []
    return h11.Response(status_code=status, reason=http.HTTPStatus(status).phrase.encode(), headers=headers)


def _bearer_token(headers: list[str]) -> Token | None:
    """(name, secret) of an Authorization header, or None."""
    if len(headers) != 1:
        return None
    scheme, _, text = headers[0].partition(" ")
    token = protocol.decode_header(text) if scheme.lower() == "bearer" and len(text) <= 2048 else ""
    name, _, secret = token.partition(":")
    return (name, Secret(secret)) if name and secret and "\0" not in token else None
