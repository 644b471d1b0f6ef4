"""The gateway: a byte relay from HTTPS to one Postgres, for whoever has a token of that Postgres.

It keeps nothing, so several may run side by side, and any may stop at any time. Everything happens in one event loop;
tokens are asked about in a few threads (`gateway_tokens`). Once a second it looks at deadlines, pings and tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import ssl
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from hopaas_p2p.errors import ConfigurationError, StoreUnreachable
from hopaas_p2p.settings import Secret
from hopaas_p2p.tunnel import PING, plainly, wire
from hopaas_p2p.tunnel.gateway_guesses import TooMany
from hopaas_p2p.tunnel.gateway_log import event
from hopaas_p2p.tunnel.gateway_metrics import Metrics
from hopaas_p2p.tunnel.gateway_postgres import Target
from hopaas_p2p.tunnel.gateway_session import Session, Stage
from hopaas_p2p.tunnel.gateway_tls import WARNING, Certificate
from hopaas_p2p.tunnel.gateway_tokens import EVERY, Tokens, Verdict

_BACKLOG: Final = 1024
PENDING: Final = 512
"""Connections that have not finished their handshake; of more, the oldest of the busiest address gives way."""
_LINES: Final = 20  # addresses turned away that the log tells of, a second
_LAST_WORDS: Final = 2.0  # seconds

Networks = Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]
LOOPBACK: Final[Networks] = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))


class Limits(NamedTuple):
    """What a gateway gives at most."""

    connections: int = 1000
    """Tunnels in all."""
    per_token: int = 256
    handshake: float = 10.0
    """Seconds from the first byte to a login at Postgres."""
    ping: float = PING
    recheck: float = EVERY
    """Seconds after which a token in use is asked about again."""
    drain: float = 30.0
    """Seconds that tunnels get to finish their transactions when the gateway stops."""


class _Live:
    """A token in use."""

    def __init__(self, verdict: Verdict) -> None:
        self.sessions: set[Session] = set()
        self.until = verdict.until
        self.checked = time.monotonic()
        self.task: asyncio.Task[None] | None = None


class Gateway:
    """Serves one target. Made and used inside an event loop.

    Args:
        target: the database.
        certificate: for TLS; None behind a proxy that terminates it.
        behind: addresses of such proxies: only they are served in the clear, and their X-Forwarded-* are believed.
        metrics_from: who may read /metrics.
        limits: how much of everything.

    """

    def __init__(
        self,
        target: Target,
        *,
        certificate: Certificate | None = None,
        behind: Networks = (),
        metrics_from: Networks = LOOPBACK,
        limits: Limits | None = None,
    ) -> None:
        if certificate is None and not behind:
            raise ConfigurationError("a gateway speaks TLS: give --tls-cert and --tls-key, or --behind-proxy NETWORK")
        self.target, self.certificate = target, certificate
        self.limits = limits or Limits()
        self.ping, self.handshake = self.limits.ping, self.limits.handshake
        self.plain = certificate is None
        self.draining = False
        self.metrics = Metrics()
        self.carried_up = self.carried_down = 0
        self.turned_away: Counter[tuple[str, int]] = Counter()
        """Since the last look, by address and status: a line for each would let a guesser fill the log."""
        self.tokens = Tokens(target, every=self.limits.recheck)
        self._behind, self._metrics_from = behind, metrics_from
        self._sessions: dict[int, Session] = {}
        self._live: dict[tuple[str, Secret], _Live] = {}
        self._number = 0
        self._empty = asyncio.Event()
        self._warned = float("-inf")
        self._server: asyncio.Server | None = None
        self._ticker: asyncio.Task[None] | None = None

    # --- life ---

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port.

        Raises:
            ConfigurationError: that address is taken, not ours, or needs more rights.

        """
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(self._accept, host, port, backlog=_BACKLOG)
        except OSError as error:
            raise ConfigurationError(f"cannot listen on {host}:{port}: {plainly(error)}") from None
        self._ticker = loop.create_task(self._tick())
        bound = int(self._server.sockets[0].getsockname()[1])
        event("listening", host=host, port=bound, tls=not self.plain, database=self.target.database)
        return bound

    async def drain(self) -> None:
        """Stop listening, let transactions end, and close every tunnel with 1001."""
        assert self._server is not None
        self._server.close()
        self.draining = True
        event("draining", connections=len(self._sessions))
        for session in list(self._sessions.values()):
            if session.idle or session.unfinished:
                session.close(1001, "the gateway is about to stop")
        await self._wait_until_empty(self.limits.drain)
        for session in list(self._sessions.values()):
            session.close(1001, "the gateway stops")
        await self._wait_until_empty(_LAST_WORDS)
        self.stop()

    def hurry(self) -> None:
        """Wait no longer for anybody."""
        self._empty.set()

    async def _wait_until_empty(self, seconds: float) -> None:
        self._empty = asyncio.Event()
        if self._sessions:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), seconds)

    def stop(self) -> None:
        """End everything at once."""
        if self._server is not None:
            self._server.close()
        for session in list(self._sessions.values()):
            session.end("stopped")
        if self._ticker is not None:
            self._ticker.cancel()
        self.tokens.close()
        event("stopped")

    # --- connections ---

    def tls(self) -> Callable[[ssl.MemoryBIO, ssl.MemoryBIO], ssl.SSLObject] | None:
        """What a new connection begins TLS with."""
        return None if self.certificate is None else wire.server_side(self.certificate.context)

    def _accept(self) -> asyncio.BaseProtocol:
        self._number += 1
        session = Session(self, self._number)
        self._sessions[session.number] = session
        session.front.connected = self._connected
        return session.front

    def _connected(self, front: wire.Wire) -> None:
        """A TCP connection is there: is it from whom it should be, and is there room?"""
        if self.plain and not _within(front.address, self._behind):
            self.metrics.count("shed_total", 'cause="not a proxy"')
            front.abort()
            return
        pending = [one for one in self._sessions.values() if one.unfinished]
        if len(pending) > PENDING:
            busiest = Counter(one.front.address for one in pending).most_common(1)[0][0]
            oldest = next(one for one in pending if one.front.address == busiest)
            self.metrics.count("shed_total", 'cause="crowd"')
            oldest.end("crowd")

    def address_of(self, peer: str, forwarded: list[str]) -> str:
        """Who asks: the last that a proxy of ours saw."""
        if forwarded and _within(peer, self._behind):
            return forwarded[-1].rpartition(",")[2].strip()[:64]
        return peer

    def is_full(self) -> bool:
        """Whether there are as many tunnels as may be."""
        return sum(len(live.sessions) for live in self._live.values()) >= self.limits.connections

    def enter(self, session: Session, token: tuple[str, Secret], verdict: Verdict) -> bool:
        """Count a session for its token; False if that has too many, or the gateway has."""
        live = self._live.get(token)
        if self.is_full() or (live is not None and len(live.sessions) >= self.limits.per_token):
            return False
        if live is None:
            live = self._live[token] = _Live(verdict)
        live.sessions.add(session)
        session.token = token
        return True

    def started(self, session: Session) -> None:
        """A session began to relay."""
        assert session.token is not None
        event("opened", connection=session.number, role=session.token[0], address=session.address)

    def left(self, session: Session) -> None:
        """A session is over."""
        self._sessions.pop(session.number, None)
        if not self._sessions:
            self._empty.set()
        live = self._live.get(session.token) if session.token is not None else None
        if live is None or session.token is None:
            return
        live.sessions.discard(session)
        if not live.sessions:
            del self._live[session.token]
            if live.task is not None:
                live.task.cancel()

    # --- once a second ---

    async def _tick(self) -> None:
        every = min(1.0, self.ping / 4, self.limits.recheck / 4, self.handshake / 4)
        while True:
            await asyncio.sleep(every)
            now = time.monotonic()
            for session in list(self._sessions.values()):
                session.tick(now)
            for token, live in list(self._live.items()):
                due = now - live.checked >= self.limits.recheck or (live.until is not None and now >= live.until)
                if due and live.task is None:
                    live.task = asyncio.get_running_loop().create_task(self._recheck(token, live))
            for (address, status), count in self.turned_away.most_common(_LINES):
                event("turned away", address=address, status=status, times=count)
            self.turned_away.clear()
            self._look_at_certificate(now)

    async def _recheck(self, token: tuple[str, Secret], live: _Live) -> None:
        try:
            verdict = await self.tokens.verdict(*token, fresh=True)
        except (StoreUnreachable, TooMany):
            over = live.until is not None and time.monotonic() >= live.until
            verdict = Verdict(good=not over, until=live.until)
        live.checked, live.until, live.task = time.monotonic(), verdict.until, None
        if not verdict.good:
            event("token ended", role=token[0], connections=len(live.sessions))
            for session in list(live.sessions):
                session.close(1008, "the token has expired or was revoked")

    def _look_at_certificate(self, now: float) -> None:
        certificate = self.certificate
        if certificate is None:
            return
        try:
            if certificate.reload():
                event("certificate loaded", days_left=round(certificate.days_left, 1))
                self._warned = float("-inf")
        except ConfigurationError as error:
            event("certificate not loaded, the old one stays in use", level=logging.ERROR, why=str(error))
        if certificate.days_left < WARNING and now - self._warned > 86400.0:
            self._warned = now
            ends = "HAS EXPIRED" if certificate.days_left < 0 else f"EXPIRES IN {certificate.days_left:.0f} DAYS"
            event(f"THE CERTIFICATE {ends}: renew it", level=logging.WARNING, days_left=round(certificate.days_left, 1))

    # --- pages ---

    def page(self, path: str, address: str) -> tuple[int, str]:
        """(status, text) of a page for machines."""
        if path == "/healthz":
            return (503, "draining\n") if self.draining else (200, "ok\n")
        if path == "/metrics" and _within(address, self._metrics_from):
            return 200, self._render()
        return 404, ""

    def _render(self) -> str:
        sessions = self._sessions.values()
        gauges: dict[str, float] = {
            "connections": sum(one.stage is Stage.RELAYING for one in sessions),
            "pending": sum(one.unfinished for one in sessions),
            "token_logins_total": self.tokens.asked,
            "postgres_up": int(self.tokens.reachable),
            "draining": int(self.draining),
        }
        if self.certificate is not None:
            gauges["certificate_expiry_seconds"] = int(self.certificate.expires)
        for direction, carried in (("up", self.carried_up), ("down", self.carried_down)):
            label = f'direction="{direction}"'
            self.metrics.count("bytes_total", label, carried - self.metrics.get("bytes_total", label))
        return self.metrics.render(gauges)


def _within(address: str, networks: Networks) -> bool:
    with contextlib.suppress(ValueError):
        found = ipaddress.ip_address(address)
        mapped = getattr(found, "ipv4_mapped", None)
        return any((mapped or found) in network for network in networks)
    return False
