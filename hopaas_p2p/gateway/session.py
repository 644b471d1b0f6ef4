"""One connection to the gateway, from its first byte to its last.

    WAITING ── request ──> ADMITTING ── 101 ──> STARTING ── StartupMessage ──> RELAYING ──> CLOSING
       │                       │                   │                              │
       └ deadline, nonsense ───┴ 401 403 429 503 ──┴ FATAL, 1008                  └ 1000 1001 1008 1011

Nothing is sent to Postgres before the token is known to be valid, and then nothing but a login as the token's role.
"""

from __future__ import annotations

import asyncio
import enum
import ssl
import time
from typing import Final, Protocol

from websockets.frames import Opcode
from websockets.http11 import Request, Response
from websockets.protocol import OPEN
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from hopaas_p2p.errors import StoreUnreachable
from hopaas_p2p.gateway.admission import Admission
from hopaas_p2p.gateway.connection import Connection
from hopaas_p2p.gateway.log import event
from hopaas_p2p.gateway.rate_limit import TooManyAttempts
from hopaas_p2p.gateway.startup import AuthenticationFilter, BadStartup, StartupParser, check, fatal
from hopaas_p2p.gateway.tokens import TokenStatus
from hopaas_p2p.runtime.settings import Secret
from hopaas_p2p.tunnel import FRAME, PATH, SILENT, SUBPROTOCOL, decode_header, encode_header

_DATA: Final = (Opcode.BINARY, Opcode.CONT)
_READY_FOR_QUERY: Final = b"Z\0\0\0\5I"  # outside a transaction: the last thing Postgres says after each
_FLOOD: Final = 1 << 20  # bytes of answers to pings that nobody reads
_CLOSE_TIMEOUT: Final = 5.0  # seconds for a client to take its close frame


class SessionStage(enum.Enum):
    """How far a session has come."""

    WAITING = "waiting"
    ADMITTING = "admitting"
    STARTING = "starting"
    RELAYING = "relaying"
    CLOSING = "closing"
    ENDED = "ended"


_UNFINISHED: Final = (SessionStage.WAITING, SessionStage.ADMITTING, SessionStage.STARTING)


class SessionHost(Protocol):
    """The gateway, as far as its sessions need it."""

    admission: Admission

    def connected(self, session: TunnelSession) -> None: ...
    def remove(self, session: TunnelSession) -> None: ...
    def page(self, path: str, address: str) -> tuple[int, str]: ...


class TunnelSession:
    """Owns the connection to the client and the one to Postgres. All of it runs in the event loop."""

    def __init__(self, host: SessionHost, number: int, context: ssl.SSLContext | None) -> None:
        self._host, self._admission, self._metrics = host, host.admission, host.admission.metrics
        self.number, self._terminated = number, context is None
        self.stage = SessionStage.WAITING
        self.began = self.heard = self.pinged = time.monotonic()
        self.client = Connection(self, context)
        self.postgres: Connection | None = None
        self.token: tuple[str, Secret] | None = None
        self.address = ""
        self.idle = False
        """Whether Postgres waits for a command, outside a transaction."""
        self._sent = 0
        self._client_paused = False
        """Whether the client is not read, because Postgres does not read; only TCP can notice then that it died."""
        self._startup: StartupParser | None = StartupParser()
        self._authentication: AuthenticationFilter | None = AuthenticationFilter()
        self._admitting: asyncio.Task[None] | None = None
        self._protocol = ServerProtocol(subprotocols=[Subprotocol(SUBPROTOCOL)], max_size=2 * FRAME, logger=SILENT)

    @property
    def unfinished(self) -> bool:
        """Whether it does not relay yet."""
        return self.stage in _UNFINISHED

    # --- called by the connections ---

    def connected(self, connection: Connection) -> None:
        if connection is self.client:
            self._host.connected(self)

    def data_received(self, connection: Connection, data: bytes) -> None:
        if connection is self.client:
            self.heard = time.monotonic()
            self._protocol.receive_data(data)
            self._take_events()
        elif self.stage in (SessionStage.STARTING, SessionStage.RELAYING) and self._protocol.state is OPEN:
            self.idle = data.endswith(_READY_FOR_QUERY)
            self._metrics["bytes_total", 'direction="down"'] += len(data)
            if self._authentication is not None:
                data = self._authentication.feed(data)
                if self._authentication.done:
                    self._authentication = None
            if data:
                self._protocol.send_binary(data)
            self._send()
            if self.idle and self._admission.draining:
                self.close(1001, "the gateway is about to stop")

    def disconnected(self, connection: Connection) -> None:
        if connection is self.client:
            self.end("gone")
        elif self.stage is not SessionStage.ENDED:
            self.postgres = None
            connection.abort()
            self.close(1000, "")

    def writing_paused(self, connection: Connection, paused: bool) -> None:
        if connection is self.postgres:
            self._client_paused = paused
            self.client.listen(not paused)
        elif self.postgres is not None:
            self.postgres.listen(not paused)

    # --- frames ---

    def _take_events(self) -> None:
        for received in self._protocol.events_received():
            if isinstance(received, Request):
                self._requested(received)
            elif isinstance(received, Response):
                continue
            elif self.stage is SessionStage.ADMITTING:
                self.end("too early")  # a client has to wait for the 101
            elif received.opcode in _DATA:
                self._relay(bytes(received.data))
            elif received.opcode is Opcode.TEXT:
                self.close(1003, "binary frames only")
            elif received.opcode is Opcode.CLOSE:
                self.close(1000, "")  # websockets has answered it already
        self._send()

    def _relay(self, data: bytes) -> None:
        """Pass the client's bytes on to Postgres."""
        if self.postgres is None or self.stage not in (SessionStage.STARTING, SessionStage.RELAYING):
            return
        self._metrics["bytes_total", 'direction="up"'] += len(data)
        self.idle = False
        if self._startup is not None:
            data = self._start(self._startup, data)
        if data:
            self.postgres.send(data)

    def _start(self, startup: StartupParser, data: bytes) -> bytes:
        """The first bytes for Postgres, once they are known to be a login as the right role; until then nothing."""
        assert self.token is not None
        role = self.token[0]
        try:
            parameters = startup.feed(data)
            if parameters is None:
                return b""
            check(parameters, role=role, database=self._admission.target.database)
        except BadStartup as error:
            event("refused", connection=self.number, role=role, why=str(error))
            if self._protocol.state is OPEN:
                self._protocol.send_binary(fatal(f"refused by the gateway: {error}"))
            self.close(1008, str(error))
            return b""
        self._startup = None
        self.stage = SessionStage.RELAYING
        event("opened", connection=self.number, role=role, address=self.address)
        return startup.received

    def _send(self) -> None:
        writes = self._protocol.data_to_send()
        if not writes:
            return
        self.client.send(b"".join(writes))
        if writes[-1] == b"":  # how websockets marks the end
            self.client.close()
        elif self.client.unsent > _FLOOD:
            self.end("flood")

    # --- the handshake ---

    def _requested(self, request: Request) -> None:
        if self.stage is not SessionStage.WAITING:
            return
        self.stage = SessionStage.ADMITTING
        self.client.listen(False)
        self.address = self._admission.address_of(self.client.address, request.headers.get_all("X-Forwarded-For"))
        path = request.path.partition("?")[0]
        if path == PATH:
            self._admitting = asyncio.get_running_loop().create_task(self._admit(request))
        else:
            self._answer(self._protocol.reject(*self._host.page(path, self.address)))

    async def _admit(self, request: Request) -> None:
        try:
            response = await self._decide(request)
        except Exception as error:  # noqa: BLE001  # the other connections go on
            event("failed", connection=self.number, why=type(error).__name__)
            response = self._protocol.reject(500, "")
        self._admitting = None
        if self.stage is not SessionStage.ADMITTING:
            self._disconnect_postgres()
            return
        self._metrics["handshakes_total", f'status="{response.status_code}"'] += 1
        if response.status_code != 101:
            self._admission.turned_away[self.address, response.status_code] += 1
        self._answer(response)

    async def _decide(self, request: Request) -> Response:
        """Check the token and whether there is room; only then connect to Postgres."""
        admission = self._admission
        if self._terminated and request.headers.get("X-Forwarded-Proto", "").lower() != "https":
            return self._protocol.reject(403, "")
        token = _bearer_token(request.headers.get_all("Authorization"))
        if token is None:
            return self._reject(401, "WWW-Authenticate", "Bearer")
        if admission.draining or admission.is_full():
            return self._reject_for_now(503, 1.0 if admission.draining else 5.0)
        try:
            status = await admission.tokens.status(*token, address=self.address)
            if not status.valid:
                return self._reject(401, "WWW-Authenticate", "Bearer")
            if not admission.enter(self, token, status):
                return self._reject_for_now(429, 5.0)
            self.token = token
            self.postgres = await admission.target.connect(self)
        except TooManyAttempts as error:
            return self._reject_for_now(429 if error.guessing else 503, error.retry_after)
        except (StoreUnreachable, OSError) as error:
            event("postgres cannot be reached", why=str(error))
            return self._reject_for_now(503, 2.0)
        return self._accept(request, token[0], status)

    def _accept(self, request: Request, role: str, status: TokenStatus) -> Response:
        response = self._protocol.accept(request)
        response.headers["Hopaas-Ping"] = f"{self._admission.limits.ping:g}"
        if response.status_code == 101:
            response.headers["Hopaas-Role"] = encode_header(role)
            if status.expires:
                response.headers["Hopaas-Expires"] = status.expires
        return response

    def _reject(self, status: int, header: str, value: str) -> Response:
        response = self._protocol.reject(status, "")
        response.headers[header] = value
        return response

    def _reject_for_now(self, status: int, seconds: float) -> Response:
        return self._reject(status, "Retry-After", str(max(1, round(seconds + 0.5))))

    def _answer(self, response: Response) -> None:
        self._protocol.send_response(response)
        if response.status_code == 101:
            self.stage = SessionStage.STARTING
            self.client.listen(True)
        else:
            self.stage = SessionStage.CLOSING
            self.began = time.monotonic()
            self._disconnect_postgres()
        self._send()

    # --- the end ---

    def tick(self, now: float) -> None:
        """Once per second: check deadlines, send pings, notice silence."""
        ping = self._admission.limits.ping
        if self.unfinished:
            if now - self.began > self._admission.limits.handshake:
                self._metrics["shed_total", 'cause="deadline"'] += 1
                self.end("deadline")
            return
        if self.stage is SessionStage.CLOSING:
            if now - self.began > _CLOSE_TIMEOUT:
                self.end("closed")
            return
        if self._client_paused or (self.client.unsent and self.client.sent > self._sent):
            self.heard = now  # nothing can be heard from it, or it reads, if slowly
        self._sent = self.client.sent
        if now - self.heard > 2.0 * ping:
            self.end("silent")
        elif now - self.pinged >= ping:
            self.pinged = now
            self._protocol.send_ping(b"")
            self._send()

    def close(self, code: int, reason: str) -> None:
        """Send the client a close frame, and let go of Postgres."""
        if self.stage in (SessionStage.CLOSING, SessionStage.ENDED):
            return
        if self.stage in (SessionStage.WAITING, SessionStage.ADMITTING):
            self.end("closed")
            return
        self._disconnect_postgres()
        relayed, self.stage = self.stage is SessionStage.RELAYING, SessionStage.CLOSING
        lasted, self.began = time.monotonic() - self.began, time.monotonic()
        if relayed or self._protocol.state is OPEN:
            self._metrics["ended_total", f'code="{code}"'] += 1
            event("closed", connection=self.number, code=code, reason=reason, seconds=round(lasted))
        if self._protocol.state is OPEN:
            self._protocol.send_close(code, reason)
        self.client.listen(True)
        self._send()

    def end(self, why: str) -> None:
        """Close everything at once."""
        if self.stage is SessionStage.ENDED:
            return
        if self.stage is SessionStage.RELAYING:
            event("ended", connection=self.number, why=why, seconds=round(time.monotonic() - self.began))
            self._metrics["ended_total", 'code="1006"'] += 1
        self.stage = SessionStage.ENDED
        if self._admitting is not None:
            self._admitting.cancel()
        self._disconnect_postgres()
        self.client.abort()
        self._host.remove(self)
        if self.token is not None:
            self._admission.leave(self, self.token)

    def _disconnect_postgres(self) -> None:
        connection, self.postgres = self.postgres, None
        if connection is None:
            return
        if connection.unsent:  # Postgres does not read, and nobody waits for that
            connection.abort()
        else:
            connection.close()


def _bearer_token(headers: list[str]) -> tuple[str, Secret] | None:
    """(role, secret) of an Authorization header, or None."""
    if len(headers) != 1:
        return None
    scheme, _, text = headers[0].partition(" ")
    if scheme.lower() != "bearer" or not 0 < len(text) <= 2048:
        return None
    token = decode_header(text)
    role, _, secret = token.partition(":")
    if not role or not secret or "\0" in token:
        return None
    return role, Secret(secret)
