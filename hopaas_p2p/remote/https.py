"""Carries requests to a `Service` over HTTPS: one request on a connection after the other, h11 on asyncio's transports.

    HEAD ── request ──> ADMITTING ── token is valid ──> BODY ──> ANSWERING ──> HEAD, or CLOSING
     │                      │                            │
     └ deadline, nonsense ──┴ 401 403 429 503 ───────────┴ 408 413

Nothing of a request's body is read before its token is known to be valid, and nothing that a caller sent is logged but
the name of a token that was let in.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import http
import ipaddress
import logging
import re
import signal
import ssl
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import h11

from hopaas_p2p.errors import ConfigurationError, InvalidInput, StoreUnreachable
from hopaas_p2p.net.checks import SOON
from hopaas_p2p.net.listening import cannot_listen
from hopaas_p2p.remote import protocol
from hopaas_p2p.remote.certificate import Certificate
from hopaas_p2p.remote.connection import Connection
from hopaas_p2p.remote.log import event
from hopaas_p2p.remote.metrics import Metrics
from hopaas_p2p.remote.protocol import LARGEST, PATH, StoreRequest
from hopaas_p2p.remote.rate_limit import TooManyAttempts
from hopaas_p2p.remote.server import Service, Token
from hopaas_p2p.remote.tokens import TokenStatus
from hopaas_p2p.runtime.settings import Secret

Networks = Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]
PENDING: Final = 512
"""Connections that have sent no request yet; of more, the oldest of the busiest address is closed."""
LOOPBACK: Final[Networks] = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
_BACKLOG: Final = 1024
_HEAD: Final = 16 << 10  # bytes
_HELD: Final = 512 << 20  # bytes of requests and answers at a time, of all callers; a quarter of one token
_SLOWEST: Final = 16 << 10  # bytes per second of a body, after the first ten seconds
_STALLED: Final = 60.0  # seconds for which a caller may take nothing of its answer
_LAST_WORDS: Final = 5.0  # seconds for a caller to take a last answer
_PIECE: Final = 1 << 18  # bytes
_LINES: Final = 20  # addresses turned away that are logged per second
_WHERE: Final = re.compile(rf"(?:/[A-Za-z0-9._~-]+)*{PATH}(?:/files/(?P<key>[A-Za-z0-9_/-]+))?")
_MSGPACK: Final = "application/msgpack"


def is_within(address: str, networks: Networks) -> bool:
    """Whether an address is in one of these networks; an IPv4 address may be written as IPv6."""
    with contextlib.suppress(ValueError):
        found = ipaddress.ip_address(address)
        mapped = getattr(found, "ipv4_mapped", None)
        return any((mapped or found) in network for network in networks)
    return False


class HttpsLimits(NamedTuple):
    """What a server grants at most."""

    connections: int = 1000
    per_token: int = 256
    """Connections."""
    head: float = 10.0
    """Seconds from the first byte of a connection, or of a request, to the end of its head."""
    idle: float = 300.0
    """Seconds that a connection stays open without a request."""
    drain: float = 30.0
    """Seconds that requests have to be answered when the server stops."""
    largest_file: int = 64 << 30
    """Bytes."""


class Stage(enum.Enum):
    """How far a connection's present request has come."""

    HEAD = "head"
    ADMITTING = "admitting"
    BODY = "body"
    ANSWERING = "answering"
    CLOSING = "closing"
    ENDED = "ended"


class HttpsServer:
    """Serves one store. Used inside one event loop.

    Args:
        service: the store.
        certificate: for TLS; None behind a proxy that terminates it.
        behind: networks of such proxies: only they are served in the clear, and their X-Forwarded-* headers believed.
        metrics_from: who may read /metrics.
        limits: how much of everything.

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
        self.terminated = certificate is None
        self.draining = False
        self.metrics = Metrics({("requests_total", 'status="200"'): 0})
        self.turned_away: Counter[tuple[str, int]] = Counter()
        """Since the last tick, by address and status: one line each would let a guesser fill the log."""
        self.held: Counter[Token] = Counter()
        """Bytes of requests that are read, and of answers that are not taken."""
        self.by_token: Counter[Token] = Counter()
        self._certificate, self._metrics_from = certificate, metrics_from
        self._sessions: set[HttpsSession] = set()
        self._empty = asyncio.Event()
        self._warned = float("-inf")
        self._server: asyncio.Server | None = None
        self._ticker: asyncio.Task[None] | None = None

    # --- life ---

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port.

        Raises:
            ConfigurationError: the address is in use, belongs to another machine, or needs more rights.

        """
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(self._accept, host, port, backlog=_BACKLOG)
        except OSError as error:
            raise cannot_listen(f"{host}:{port}", error) from None
        self._ticker = loop.create_task(self._tick())
        bound = int(self._server.sockets[0].getsockname()[1])
        event("listening", host=host, port=bound, tls=self._certificate is not None)
        return bound

    async def drain(self) -> None:
        """Stop listening, answer what was asked, and close every connection."""
        assert self._server is not None
        self._server.close()
        self.draining = True
        event("draining", connections=len(self._sessions))
        self.service.end_waits()
        for session in list(self._sessions):
            if session.stage is Stage.HEAD:
                session.end()
        if self._sessions:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), self.limits.drain)
        for session in list(self._sessions):
            session.end()
        if self._ticker is not None:
            self._ticker.cancel()
        self.service.close()
        event("stopped")

    def hurry(self) -> None:
        """End `drain` without waiting any longer."""
        self._empty.set()

    # --- called by the sessions ---

    def _accept(self) -> asyncio.BaseProtocol:
        session = HttpsSession(self, None if self._certificate is None else self._certificate.context)
        self._sessions.add(session)
        return session

    def connected(self, session: HttpsSession) -> None:
        """A client connected: is it one that may, and is there room?"""
        if self.terminated and not is_within(session.address, self.behind):
            session.end("not a proxy")
            return
        pending = [other for other in self._sessions if other.token is None]
        if len(pending) > PENDING:
            busiest = Counter(other.address for other in pending).most_common(1)[0][0]
            oldest = min((one for one in pending if one.address == busiest), key=lambda one: one.began)
            oldest.end("crowd")

    def remove(self, session: HttpsSession) -> None:
        """A connection is over."""
        self._sessions.discard(session)
        if not self._sessions:
            self._empty.set()

    def has_room(self, token: Token) -> bool:
        """Whether one more connection may use this token."""
        return self.by_token[token] < self.limits.per_token and self.by_token.total() < self.limits.connections

    def page(self, path: str, address: str) -> tuple[int, str]:
        """(status, text) of a page for machines."""
        if path == "/healthz":
            return (503, "draining\n") if self.draining else (200, "ok\n")
        if path == "/metrics" and is_within(address, self._metrics_from):
            gauges: dict[str, float] = {
                "connections": self.by_token.total(),
                "pending": sum(session.token is None for session in self._sessions),
                "draining": int(self.draining),
                **self.service.gauges(),
            }
            if self._certificate is not None:
                gauges["certificate_expiry_seconds"] = int(self._certificate.expires)
            return 200, self.metrics.render(gauges)
        return 404, ""

    # --- once per second ---

    async def _tick(self) -> None:
        interval = min(1.0, self.limits.head / 4, self.limits.idle / 4)
        while True:
            await asyncio.sleep(interval)
            now = time.monotonic()
            for session in list(self._sessions):
                session.tick(now)
            for (address, status), count in self.turned_away.most_common(_LINES):
                event("turned away", address=address, status=status, times=count)
            self.turned_away.clear()
            await self.service.tick(now)
            if self._certificate is not None:
                self._check_certificate(self._certificate, now)

    def _check_certificate(self, certificate: Certificate, now: float) -> None:
        try:
            if certificate.reload():
                event("certificate loaded", days_left=round(certificate.days_left, 1))
                self._warned = float("-inf")
        except ConfigurationError as error:
            event("certificate not loaded, the old one stays in use", level=logging.ERROR, why=str(error))
        if certificate.days_left < SOON and now - self._warned > 86400.0:
            self._warned = now
            ends = "HAS EXPIRED" if certificate.days_left < 0 else f"EXPIRES IN {certificate.days_left:.0f} DAYS"
            event(f"THE CERTIFICATE {ends}: renew it", level=logging.WARNING, days_left=round(certificate.days_left, 1))


class HttpsSession(Connection):
    """One connection of a client, from its first byte to its last. All of it runs in the event loop."""

    def __init__(self, server: HttpsServer, context: ssl.SSLContext | None) -> None:
        super().__init__(context)
        self._server, self._limits = server, server.limits
        self.stage = Stage.HEAD
        self.began = time.monotonic()
        """When this stage did, or the first byte of a request came."""
        self.token: Token | None = None
        """Whose connection this is, once that is known."""
        self._caller = ""
        """The address of who asks, behind a proxy as that says."""
        self._idle = False
        """Whether a request was answered and nothing of the next has come."""
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD)
        self._key: str | None = None
        self._method = ""
        self._body = bytearray()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        """Where the file is that comes, or goes."""
        self._file: IO[bytes] | None = None
        self._size = self._held = 0
        self._refused = b""
        """What the service says against a file, before any of it has come."""
        self._status = TokenStatus(valid=False)
        self._task: asyncio.Task[None] | None = None
        self._sent, self._moved = 0, self.began
        self._writable = asyncio.Event()
        self._writable.set()

    # --- called by the connection ---

    def connected(self) -> None:
        self._server.connected(self)

    def received(self, data: bytes) -> None:
        if self.stage in (Stage.HEAD, Stage.BODY):
            if self._idle:
                self._idle, self.began = False, time.monotonic()
            self._http.receive_data(data)
            self._advance()
        elif self.stage is not Stage.CLOSING:
            self._http.receive_data(data)  # some of the next request
            self.listen(False)

    def disconnected(self) -> None:
        self.end()

    def writing_paused(self, paused: bool) -> None:
        (self._writable.clear if paused else self._writable.set)()

    # --- requests ---

    def _advance(self) -> None:
        """Take what has come of a request."""
        try:
            while self.stage in (Stage.HEAD, Stage.BODY):
                found = self._http.next_event()
                if isinstance(found, h11.Request):
                    self._requested(found)
                elif isinstance(found, h11.Data):
                    self._take(bytes(found.data))
                elif isinstance(found, h11.EndOfMessage):
                    self._start(Stage.ANSWERING, self._answer())
                elif isinstance(found, h11.ConnectionClosed):
                    self.end()
                else:  # more data is needed, or a request came before the last one was answered
                    return
        except h11.RemoteProtocolError as error:
            self._respond(error.error_status_hint, close=True)

    def _requested(self, request: h11.Request) -> None:
        """The head of a request is there: is it one that a store can answer, of somebody who may ask?"""
        headers: dict[bytes, list[str]] = {}
        for name, value in request.headers:
            headers.setdefault(name, []).append(value.decode("latin-1"))
        self._method = request.method.decode("latin-1")
        path = request.target.decode("latin-1").partition("?")[0]
        forwarded = headers.get(b"x-forwarded-for", [])
        self._caller = self.address
        if forwarded and is_within(self.address, self._server.behind):
            self._caller = forwarded[-1].rpartition(",")[2].strip()[:64]
        where = _WHERE.fullmatch(path)
        if where is None:
            status, text = self._server.page(path, self._caller) if self._method == "GET" else (404, "")
            self._respond(status, text.encode(), kind="text/plain; charset=utf-8")
            return
        self._key = where["key"]
        if self._method not in (("PUT", "GET") if self._key else ("POST",)):
            self._respond(405)
            return
        if self._server.terminated and headers.get(b"x-forwarded-proto", [""])[-1].lower() != "https":
            self._respond(403, close=True)
            return
        if b"content-length" in headers and b"transfer-encoding" in headers:  # two readers could see two ends
            self._respond(400, close=True)
            return
        length = headers.get(b"content-length", ["0"])[0]
        if int(length) > (self._limits.largest_file if self._key else LARGEST):  # h11 has seen that it is a number
            self._respond(413, close=True)
            return
        self._size = 0 if self._key else LARGEST if b"transfer-encoding" in headers else int(length)
        token = _bearer_token(headers.get(b"authorization", []))
        if token is None:
            self._respond(401, close=True)
        elif token == self.token and not self._status.is_expired() and self._method != "PUT":
            self._expect_body()
        else:
            self._start(Stage.ADMITTING, self._admit(token))

    async def _admit(self, token: Token) -> None:
        """See whether the token is valid, and whether there is room; only then read on."""
        if self._server.draining or not (token == self.token or self._server.has_room(token)):
            self._respond(503 if self._server.draining else 429, retry=1.0 if self._server.draining else 5.0)
            return
        if not await self._is_valid(token):
            return
        if token != self.token:
            self._release()
            if not self._server.has_room(token):
                self._respond(429, retry=5.0)
                return
            self.token = token
            self._server.by_token[token] += 1
            event("opened", token=token[0], address=self._caller)
        if self._method == "PUT" and self._key is not None:
            said = await self._server.service.carry_out(token, StoreRequest("put", self._key))
            self._refused = said if protocol.refusal(said) else b""
        self._expect_body()
        self._advance()

    async def _is_valid(self, token: Token) -> bool:
        """Whether the service knows this token; if not, the client is told."""
        try:
            self._status = await self._server.service.status(token, self._caller)
        except TooManyAttempts as error:
            self._respond(429 if error.guessing else 503, retry=error.retry_after)
            return False
        except StoreUnreachable as error:
            event("the store cannot be reached", why=str(error))
            self._respond(503, retry=2.0)
            return False
        if not self._status.valid:
            self._respond(401, close=True)
        return self._status.valid

    def _expect_body(self) -> None:
        if not self._hold(self._size):
            self._respond(503, retry=2.0)
            return
        self.stage, self.began, self._size = Stage.BODY, time.monotonic(), 0
        if self._key:
            self._folder = tempfile.TemporaryDirectory(prefix="hopaas-")
            if self._method == "PUT" and not self._refused:
                self._file = (Path(self._folder.name) / "file").open("wb")
        self.listen(True)

    def _take(self, data: bytes) -> None:
        self._size += len(data)
        if self._file is not None:
            self._file.write(data)
        elif self._key is None:
            self._body += data
        if self._size > (self._limits.largest_file if self._key else LARGEST):
            self._respond(413, close=True)

    def _hold(self, size: int) -> bool:
        """Have this connection hold so many bytes in memory; whether its token may have that much."""
        if self.token is None:
            return True
        held = self._server.held
        held[self.token] += size - self._held
        self._held = size
        return held[self.token] <= _HELD // 4 and held.total() <= _HELD

    def _start(self, stage: Stage, work: Coroutine[None, None, None]) -> None:
        """Go on when this is done; until then nothing is read."""
        self.stage, self.began = stage, time.monotonic()
        self.listen(False)
        self._task = asyncio.get_running_loop().create_task(self._guarded(work))

    async def _guarded(self, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except Exception as error:  # noqa: BLE001  # the other connections go on
            event("failed", level=logging.ERROR, why=type(error).__name__)
            self._respond(500, close=True)

    async def _answer(self) -> None:
        token, service = self.token, self._server.service
        assert token is not None
        if not await self._is_valid(token):
            return
        if self._key is None or self._folder is None:
            try:
                request = protocol.decode_request(bytes(self._body))
                self.listen(request.call == "news")  # whose caller may go at any time
                answer = await service.answer(token, request, self._status)
            except InvalidInput as error:
                answer = protocol.refused(error)
            self._respond(200, answer) if self._hold(len(answer)) else self._respond(503, retry=2.0)
            return
        if self._refused:
            self._respond(200, self._refused)
            return
        path = Path(self._folder.name) / "file"
        if self._file is not None:
            self._file.close()
            self._respond(200, await service.carry_out(token, StoreRequest("put", self._key), path))
            return
        found = await service.carry_out(token, StoreRequest("get", self._key), path)
        if protocol.refusal(found):
            self._respond(200, found)
            return
        with path.open("rb") as file:
            await self._send_file(file)

    async def _send_file(self, file: IO[bytes]) -> None:
        size = file.seek(0, 2)
        file.seek(0)
        head = h11.Response(status_code=200, headers=self._headers(size, protocol.FILE))
        self.send(self._http.send(head) or b"")
        while data := file.read(_PIECE):
            await self._writable.wait()
            if self.stage is not Stage.ANSWERING:
                return
            self.send(self._http.send(h11.Data(data=data)) or b"")
        self._finish(200, self._http.send(h11.EndOfMessage()))

    # --- answers ---

    def _headers(self, size: int, kind: str, *more: tuple[str, str]) -> list[tuple[str, str]]:
        return [
            ("Hopaas-Server", str(protocol.VERSION)),
            ("Content-Type", kind),
            ("Content-Length", str(size)),
            *more,
            *([("Connection", "close")] if self._server.draining else []),
        ]

    def _respond(
        self, status: int, body: bytes = b"", *, kind: str = _MSGPACK, retry: float | None = None, close: bool = False
    ) -> None:
        """Answer the present request; the connection ends if its body was not read, or `close` says so."""
        if self.stage in (Stage.CLOSING, Stage.ENDED):
            return
        more = [("Connection", "close")] if close and not self._server.draining else []
        if retry is not None:
            more.append(("Retry-After", str(max(1, round(retry + 0.5)))))
        if status == 401:
            more.append(("WWW-Authenticate", "Bearer"))
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.end()
            return
        reason = http.HTTPStatus(status).phrase.encode()
        head = h11.Response(status_code=status, reason=reason, headers=self._headers(len(body), kind, *more))
        parts = [self._http.send(head), self._http.send(h11.Data(data=body)), self._http.send(h11.EndOfMessage())]
        if status in (401, 403, 429):
            self._server.turned_away[self._caller, status] += 1
        self._finish(status, b"".join(part or b"" for part in parts))

    def _finish(self, status: int, data: bytes | None) -> None:
        """The answer is complete: wait for the next request, or end."""
        self._server.metrics["requests_total", f'status="{status}"'] += 1
        self.send(data or b"")
        self._forget()
        self.began = time.monotonic()
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
            self.stage, self._idle = Stage.HEAD, True
            self.listen(True)
            if self._http.trailing_data[0]:
                self._idle = False
                asyncio.get_running_loop().call_soon(self._advance)
        else:
            self.stage = Stage.CLOSING
            self.close()

    def _forget(self) -> None:
        """Let go of the present request's body."""
        self._hold(self.unsent)
        self._body, self._refused = bytearray(), b""
        if self._file is not None:
            self._file.close()
        if self._folder is not None:
            self._folder.cleanup()
        self._file = self._folder = None

    def _release(self) -> None:
        if self.token is not None:
            self._hold(0)
            self._server.by_token[self.token] -= 1
            if not self._server.by_token[self.token]:
                del self._server.by_token[self.token], self._server.held[self.token]
            self.token = None

    # --- the end ---

    def tick(self, now: float) -> None:
        """Once per second: check the deadline of this stage."""
        waited = now - self.began
        if self.sent != self._sent or not self.unsent:
            self._sent, self._moved = self.sent, now
        if self.stage is Stage.HEAD:
            self._hold(self.unsent)
        if self.stage is Stage.HEAD and waited > (self._limits.idle if self._idle else self._limits.head):
            self.end("idle" if self._idle else "deadline")
        elif self.stage is Stage.BODY and waited > self._limits.head + self._size / _SLOWEST:
            self._server.metrics["shed_total", 'cause="deadline"'] += 1
            self._respond(408, close=True)
        elif now - self._moved > _STALLED or (self.stage is Stage.CLOSING and waited > _LAST_WORDS):
            self.end("stalled")

    def end(self, shed: str = "") -> None:
        """Close the connection at once; `shed` says why, where that is counted."""
        if shed:
            self._server.metrics["shed_total", f'cause="{shed}"'] += 1
        if self.stage is Stage.ENDED:
            return
        self.stage = Stage.ENDED
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        self._forget()
        self.abort()
        self._release()
        self._server.remove(self)


def _bearer_token(headers: list[str]) -> Token | None:
    """(name, secret) of an Authorization header, or None."""
    if len(headers) != 1:
        return None
    scheme, _, text = headers[0].partition(" ")
    if scheme.lower() != "bearer" or not 0 < len(text) <= 2048:
        return None
    token = protocol.decode_header(text)
    name, _, secret = token.partition(":")
    if not name or not secret or "\0" in token:
        return None
    return name, Secret(secret)


# --- as a process ---


def raise_descriptor_limit(connections: int) -> None:
    """Let this process have a descriptor for each of so many connections, and for those that are not admitted yet."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + PENDING + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        possible = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
        if possible < wanted:
            event("few descriptors", level=logging.WARNING, have=possible, want=wanted)


async def run(server: HttpsServer, host: str, port: int, *, listening: Callable[[int], None]) -> None:
    """Serve until SIGTERM or SIGINT, then drain; at a second signal, stop at once.

    Args:
        server: what to run.
        host, port: where to listen.
        listening: called with the port.

    Raises:
        ConfigurationError: it cannot listen there.

    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_log_exception)

    def handle_signal() -> None:
        if stop.is_set():
            server.hurry()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, handle_signal)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)  # "reload": files are checked every second anyway
    listening(await server.start(host, port))
    await stop.wait()
    await server.drain()


def _log_exception(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what went wrong in a callback of one connection, without what it was about."""
    error = context.get("exception")
    where = traceback.extract_tb(error.__traceback__)[-1] if error is not None and error.__traceback__ else None
    event(
        "failed",
        level=logging.ERROR,
        why=type(error).__name__ if error is not None else context.get("message"),
        where=f"{Path(where.filename).name}:{where.lineno}" if where is not None else None,
    )
