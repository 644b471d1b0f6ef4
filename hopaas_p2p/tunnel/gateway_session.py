"""One connection to the gateway, from its first byte to its last.

    waiting ── request ──> admitting ── 101 ──> starting ── StartupMessage ──> relaying ──> closing
       │                       │                   │                              │
       └ deadline, nonsense ───┴ 401 403 429 503 ──┴ FATAL, 1008                  └ 1000 1001 1008 1011

Nothing is sent to Postgres before the token is known to be good, and nothing but a login as the token's role after.
"""

from __future__ import annotations

import asyncio
import enum
import time
from typing import TYPE_CHECKING, Final

from websockets.frames import Opcode
from websockets.http11 import Request, Response
from websockets.protocol import OPEN
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from hopaas_p2p.errors import StoreUnreachable
from hopaas_p2p.settings import Secret
from hopaas_p2p.tunnel import FRAME, PATH, SUBPROTOCOL, unwrapped, wrapped
from hopaas_p2p.tunnel.gateway_guesses import TooMany
from hopaas_p2p.tunnel.gateway_log import event
from hopaas_p2p.tunnel.gateway_tokens import Verdict
from hopaas_p2p.tunnel.quiet import LOGGER
from hopaas_p2p.tunnel.startup import BadStartup, Offer, Startup, check, fatal
from hopaas_p2p.tunnel.wire import Wire

if TYPE_CHECKING:
    from hopaas_p2p.tunnel.gateway import Gateway

_DATA: Final = (Opcode.BINARY, Opcode.CONT)
_IDLE: Final = b"Z\0\0\0\5I"  # ReadyForQuery, outside a transaction: the last thing Postgres says after each
_FLOOD: Final = 1 << 20  # bytes of answers to pings that nobody reads
_FAREWELL: Final = 5.0  # seconds that a client gets to take its close frame


class Stage(enum.Enum):
    """How far a session has come."""

    WAITING = "waiting"
    ADMITTING = "admitting"
    STARTING = "starting"
    RELAYING = "relaying"
    CLOSING = "closing"
    ENDED = "ended"


class Session:
    """Owns the wire to the client and the one to Postgres. All of it runs in the event loop."""

    def __init__(self, gateway: Gateway, number: int) -> None:
        self.gateway, self.number = gateway, number
        self.stage = Stage.WAITING
        self.began = self.heard = self.pinged = time.monotonic()
        self.front = Wire(self, gateway.tls())
        self.back: Wire | None = None
        self.token: tuple[str, Secret] | None = None
        self.address = ""
        self.idle = False
        """Whether Postgres waits for a command, outside a transaction."""
        self._taken = 0
        self._deaf = False
        """Whether the client is not listened to, because Postgres does not read; TCP alone has to notice its death."""
        self._startup: Startup | None = Startup()
        self._offer: Offer | None = Offer()
        self._task: asyncio.Task[None] | None = None
        self._protocol = ServerProtocol(subprotocols=[Subprotocol(SUBPROTOCOL)], max_size=2 * FRAME, logger=LOGGER)

    @property
    def unfinished(self) -> bool:
        """Whether it has not begun to relay."""
        return self.stage in (Stage.WAITING, Stage.ADMITTING, Stage.STARTING)

    # --- what the wires say ---

    def arrived(self, wire: Wire, data: bytes) -> None:
        if wire is self.front:
            self.heard = time.monotonic()
            self._protocol.receive_data(data)
            self._take_events()
        elif self.stage in (Stage.STARTING, Stage.RELAYING) and self._protocol.state is OPEN:
            self.idle = data.endswith(_IDLE)
            self.gateway.carried_down += len(data)
            if self._offer is not None:
                data = self._offer.feed(data)
                if self._offer.over:
                    self._offer = None
            if data:
                self._protocol.send_binary(data)
            self._send()
            if self.idle and self.gateway.draining:
                self.close(1001, "the gateway is about to stop")

    def ended(self, wire: Wire) -> None:
        if wire is self.front:
            self.end("gone")
        elif self.stage is not Stage.ENDED:
            self.back = None
            wire.abort()
            self.close(1000, "")

    def congested(self, wire: Wire, yes: bool) -> None:
        if wire is self.back:
            self._deaf = yes
            self.front.listen(not yes)
        elif self.back is not None:
            self.back.listen(not yes)

    # --- frames ---

    def _take_events(self) -> None:
        for one in self._protocol.events_received():
            if isinstance(one, Request):
                self._requested(one)
            elif isinstance(one, Response):
                continue
            elif self.stage is Stage.ADMITTING:
                self.end("too early")  # nobody may speak before the 101
            elif one.opcode in _DATA:
                self._from_client(bytes(one.data))
            elif one.opcode is Opcode.TEXT:
                self.close(1003, "binary frames only")
            elif one.opcode is Opcode.CLOSE:
                self.close(1000, "")  # websockets has answered it already
        self._send()

    def _from_client(self, data: bytes) -> None:
        if self.back is None or self.stage not in (Stage.STARTING, Stage.RELAYING):
            return
        self.gateway.carried_up += len(data)
        self.idle = False
        if self._startup is not None:
            data = self._begin(self._startup, data)
        if data:
            self.back.send(data)

    def _begin(self, startup: Startup, data: bytes) -> bytes:
        """The first bytes for Postgres, as soon as they are known to be a login of the right role; else nothing."""
        assert self.token is not None
        try:
            parameters = startup.feed(data)
            if parameters is None:
                return b""
            check(parameters, role=self.token[0], database=self.gateway.target.database)
        except BadStartup as error:
            event("refused", connection=self.number, role=self.token[0], why=str(error))
            if self._protocol.state is OPEN:
                self._protocol.send_binary(fatal(f"refused by the gateway: {error}"))
            self.close(1008, str(error))
            return b""
        self._startup = None
        self.stage = Stage.RELAYING
        self.gateway.started(self)
        return startup.received

    def _send(self) -> None:
        writes = self._protocol.data_to_send()
        if not writes:
            return
        self.front.send(b"".join(writes))
        if writes[-1] == b"":  # websockets' word for the end
            self.front.close()
        elif self.front.waiting > _FLOOD:
            self.end("flood")

    # --- the handshake ---

    def _requested(self, request: Request) -> None:
        path = request.path.partition("?")[0]
        if self.stage is not Stage.WAITING:
            return
        self.stage = Stage.ADMITTING
        self.front.listen(False)
        self.address = self.gateway.address_of(self.front.address, request.headers.get_all("X-Forwarded-For"))
        if path == PATH:
            self._task = asyncio.get_running_loop().create_task(self._admit(request))
            return
        status, text = self.gateway.page(path, self.address)
        self._send_away(self._protocol.reject(status, text))

    async def _admit(self, request: Request) -> None:
        try:
            response = await self._decide(request)
        except Exception as error:  # noqa: BLE001  # one connection's trouble is not the others'
            event("failed", connection=self.number, why=type(error).__name__)
            response = self._protocol.reject(500, "")
        if self.stage is Stage.ADMITTING:
            self._answer(response)
        else:
            self._let_go_of_postgres()

    async def _decide(self, request: Request) -> Response:
        """Who asks, and is there room? Only then is Postgres told."""
        gateway = self.gateway
        if gateway.plain and request.headers.get("X-Forwarded-Proto", "").lower() != "https":
            return self._protocol.reject(403, "")
        token = _bearer(request.headers.get_all("Authorization"))
        if token is None:
            return self._unauthorised()
        if gateway.draining or gateway.is_full():
            return self._later(503, 1.0 if gateway.draining else 5.0)
        try:
            verdict = await gateway.tokens.verdict(*token, address=self.address)
            if not verdict.good:
                return self._unauthorised()
            if not gateway.enter(self, token, verdict):
                return self._later(429, 5.0)
            self.back = await gateway.target.connect(self)
        except TooMany as error:
            return self._later(429 if error.guessing else 503, error.retry_after)
        except (StoreUnreachable, OSError) as error:
            event("postgres is out of reach", why=str(error))
            return self._later(503, 2.0)
        return self._welcome(request, token, verdict)

    def _welcome(self, request: Request, token: tuple[str, Secret], verdict: Verdict) -> Response:
        gateway = self.gateway
        response = self._protocol.accept(request)
        response.headers["Hopaas-Ping"] = f"{gateway.ping:g}"
        if response.status_code == 101:
            response.headers["Hopaas-Role"] = wrapped(token[0])
            if verdict.expires:
                response.headers["Hopaas-Expires"] = verdict.expires
        return response

    def _unauthorised(self) -> Response:
        response = self._protocol.reject(401, "")
        response.headers["WWW-Authenticate"] = "Bearer"
        return response

    def _later(self, status: int, seconds: float) -> Response:
        response = self._protocol.reject(status, "")
        response.headers["Retry-After"] = str(max(1, round(seconds + 0.5)))
        return response

    def _answer(self, response: Response) -> None:
        self._task = None
        self.gateway.metrics.count("handshakes_total", f'status="{response.status_code}"')
        if response.status_code != 101:
            self.gateway.turned_away[self.address, response.status_code] += 1
            self._send_away(response)
            return
        self._protocol.send_response(response)
        self.stage = Stage.STARTING
        self.front.listen(True)
        self._send()

    def _send_away(self, response: Response) -> None:
        self.stage = Stage.CLOSING
        self.began = time.monotonic()
        self._let_go_of_postgres()
        self._protocol.send_response(response)
        self._send()

    # --- the end ---

    def tick(self, now: float) -> None:
        """Once a second: deadlines, pings, and silence."""
        if self.unfinished:
            if now - self.began > self.gateway.handshake:
                self.gateway.metrics.count("shed_total", 'cause="deadline"')
                self.end("deadline")
            return
        if self.stage is Stage.CLOSING:
            if now - self.began > _FAREWELL:
                self.end("closed")
            return
        if self._deaf or (self.front.waiting and self.front.taken > self._taken):
            self.heard = now  # it cannot be heard, or it reads, if slowly
        self._taken = self.front.taken
        if now - self.heard > 2.0 * self.gateway.ping:
            self.end("silent")
        elif now - self.pinged >= self.gateway.ping:
            self.pinged = now
            self._protocol.send_ping(b"")
            self._send()

    def close(self, code: int, reason: str) -> None:
        """Say goodbye to the client, and let go of Postgres."""
        if self.stage in (Stage.CLOSING, Stage.ENDED):
            return
        if self.stage in (Stage.WAITING, Stage.ADMITTING):
            self.end("closed")
            return
        self._let_go_of_postgres()
        relayed, self.stage = self.stage is Stage.RELAYING, Stage.CLOSING
        lasted, self.began = time.monotonic() - self.began, time.monotonic()
        if relayed or self._protocol.state is OPEN:
            self.gateway.metrics.count("ended_total", f'code="{code}"')
            event("closed", connection=self.number, code=code, reason=reason, seconds=round(lasted))
        if self._protocol.state is OPEN:
            self._protocol.send_close(code, reason)
        self.front.listen(True)
        self._send()

    def end(self, why: str) -> None:
        """Close everything at once."""
        if self.stage is Stage.ENDED:
            return
        if self.stage is Stage.RELAYING:
            event("ended", connection=self.number, why=why, seconds=round(time.monotonic() - self.began))
            self.gateway.metrics.count("ended_total", 'code="1006"')
        self.stage = Stage.ENDED
        if self._task is not None:
            self._task.cancel()
        self._let_go_of_postgres()
        self.front.abort()
        self.gateway.left(self)

    def _let_go_of_postgres(self) -> None:
        back, self.back = self.back, None
        if back is None:
            return
        if back.waiting:  # Postgres does not read: nobody waits for that
            back.abort()
        else:
            back.close()


def _bearer(headers: list[str]) -> tuple[str, Secret] | None:
    """(role, secret) of an Authorization header, or None."""
    if len(headers) != 1:
        return None
    scheme, _, text = headers[0].partition(" ")
    if scheme.lower() != "bearer" or not 0 < len(text) <= 2048:
        return None
    token = unwrapped(text)
    role, _, secret = token.partition(":")
    if not role or not secret or "\0" in token:
        return None
    return role, Secret(secret)
