"""The gateway: a byte relay from HTTPS to one Postgres, for everybody with a token of that Postgres.

It keeps no state but digests of tokens, so several may run side by side, and any may stop at any time. Everything
happens in one event loop; tokens are checked in a few threads (`tokens`). Once per second it looks at deadlines, pings
and tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

from hopaas_p2p.errors import ConfigurationError
from hopaas_p2p.gateway.admission import Admission, GatewayLimits, Networks, is_within
from hopaas_p2p.gateway.certificate import Certificate
from hopaas_p2p.gateway.log import event
from hopaas_p2p.gateway.postgres import PostgresTarget
from hopaas_p2p.gateway.session import SessionStage, TunnelSession
from hopaas_p2p.net.checks import SOON
from hopaas_p2p.net.listening import cannot_listen

_BACKLOG: Final = 1024
PENDING: Final = 512
"""Connections that have not finished their handshake; of more, the oldest of the busiest address is closed."""
_CLOSE_TIMEOUT: Final = 2.0  # seconds for the last close frames
LOOPBACK: Final[Networks] = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))


class Gateway:
    """Serves one target. Used inside one event loop.

    Args:
        target: the database.
        certificate: for TLS; None behind a proxy that terminates it.
        behind: networks of such proxies: only they are served in the clear, and their X-Forwarded-* headers believed.
        metrics_from: who may read /metrics.
        limits: how much of everything.
        remember: a file for digests of good tokens, so that guessing keeps out none of them after a restart.

    """

    def __init__(
        self,
        target: PostgresTarget,
        *,
        certificate: Certificate | None = None,
        behind: Networks = (),
        metrics_from: Networks = LOOPBACK,
        limits: GatewayLimits | None = None,
        remember: Path | None = None,
    ) -> None:
        if certificate is None and not behind:
            raise ConfigurationError("a gateway needs TLS: give --tls-cert and --tls-key, or --behind-proxy NETWORK")
        self._certificate, self._metrics_from = certificate, metrics_from
        self.admission = Admission(target, limits or GatewayLimits(), behind, remember)
        self._sessions: dict[int, TunnelSession] = {}
        self._accepted = 0
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
        tls = self._certificate is not None
        event("listening", host=host, port=bound, tls=tls, database=self.admission.target.database)
        return bound

    async def drain(self) -> None:
        """Stop listening, let transactions end, and close every tunnel with 1001."""
        assert self._server is not None
        self._server.close()
        self.admission.draining = True
        event("draining", connections=len(self._sessions))
        for session in list(self._sessions.values()):
            if session.idle or session.unfinished:
                session.close(1001, "the gateway is about to stop")
        await self._wait_until_empty(self.admission.limits.drain)
        for session in list(self._sessions.values()):
            session.close(1001, "the gateway stops")
        await self._wait_until_empty(_CLOSE_TIMEOUT)
        for session in list(self._sessions.values()):
            session.end("stopped")
        if self._ticker is not None:
            self._ticker.cancel()
        self.admission.tokens.close()
        event("stopped")

    def hurry(self) -> None:
        """End `drain` without waiting any longer."""
        self._empty.set()

    async def _wait_until_empty(self, seconds: float) -> None:
        self._empty = asyncio.Event()
        if self._sessions:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), seconds)

    # --- called by the sessions ---

    def _accept(self) -> asyncio.BaseProtocol:
        self._accepted += 1
        context = None if self._certificate is None else self._certificate.context
        session = self._sessions[self._accepted] = TunnelSession(self, self._accepted, context)
        return session.client

    def connected(self, session: TunnelSession) -> None:
        """A client connected: is it one that may, and is there room?"""
        metrics = self.admission.metrics
        if self._certificate is None and not is_within(session.client.address, self.admission.behind):
            metrics["shed_total", 'cause="not a proxy"'] += 1
            session.client.abort()
            return
        pending = [other for other in self._sessions.values() if other.unfinished]
        if len(pending) > PENDING:
            busiest = Counter(other.client.address for other in pending).most_common(1)[0][0]
            oldest = next(other for other in pending if other.client.address == busiest)
            metrics["shed_total", 'cause="crowd"'] += 1
            oldest.end("crowd")

    def remove(self, session: TunnelSession) -> None:
        """A session is over."""
        self._sessions.pop(session.number, None)
        if not self._sessions:
            self._empty.set()

    def page(self, path: str, address: str) -> tuple[int, str]:
        """(status, text) of a page for machines."""
        if path == "/healthz":
            return (503, "draining\n") if self.admission.draining else (200, "ok\n")
        if path == "/metrics" and is_within(address, self._metrics_from):
            return 200, self._render_metrics()
        return 404, ""

    def _render_metrics(self) -> str:
        sessions, tokens = self._sessions.values(), self.admission.tokens
        gauges: dict[str, float] = {
            "connections": sum(session.stage is SessionStage.RELAYING for session in sessions),
            "pending": sum(session.unfinished for session in sessions),
            "token_logins_total": tokens.logins,
            "postgres_up": int(tokens.reachable),
            "draining": int(self.admission.draining),
        }
        if self._certificate is not None:
            gauges["certificate_expiry_seconds"] = int(self._certificate.expires)
        return self.admission.metrics.render(gauges)

    # --- once per second ---

    async def _tick(self) -> None:
        limits = self.admission.limits
        interval = min(1.0, limits.ping / 4, limits.recheck / 4, limits.handshake / 4)
        while True:
            await asyncio.sleep(interval)
            now = time.monotonic()
            for session in list(self._sessions.values()):
                session.tick(now)
            self.admission.tick(now)
            await self.admission.tokens.save()
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


# --- as a process ---


class Servable(Protocol):
    """What listens, and can be drained."""

    async def start(self, host: str, port: int) -> int: ...
    async def drain(self) -> None: ...
    def hurry(self) -> None: ...


def raise_descriptor_limit(connections: int) -> None:
    """Let this process have two descriptors for each of so many tunnels, and for those that are not admitted yet."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * connections + 2 * PENDING + 64
    if soft != resource.RLIM_INFINITY and soft < wanted:
        possible = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
        if possible < wanted:
            event("few descriptors", level=logging.WARNING, have=possible, want=wanted)


async def serve(gateway: Servable, host: str, port: int, *, listening: Callable[[int], None]) -> None:
    """Run a gateway until SIGTERM or SIGINT, then drain it; at a second signal, stop at once.

    Args:
        gateway: what to run.
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
            gateway.hurry()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, handle_signal)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)  # "reload": files are checked every second anyway
    listening(await gateway.start(host, port))
    await stop.wait()
    await gateway.drain()


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
