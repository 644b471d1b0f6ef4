"""Which clients a gateway admits, how many tunnels each token has, and for how long a token in use stays valid."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from hopaas_p2p.errors import StoreUnreachable
from hopaas_p2p.gateway.log import event
from hopaas_p2p.gateway.metrics import Metrics
from hopaas_p2p.gateway.postgres import PostgresTarget
from hopaas_p2p.gateway.rate_limit import TooManyAttempts
from hopaas_p2p.gateway.tokens import TTL, TokenCache, TokenStatus
from hopaas_p2p.runtime.settings import Secret
from hopaas_p2p.tunnel import PING

_LINES: Final = 20  # addresses turned away that are logged per second

Networks = Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]


def is_within(address: str, networks: Networks) -> bool:
    """Whether an address is in one of these networks; an IPv4 address may be written as IPv6."""
    with contextlib.suppress(ValueError):
        found = ipaddress.ip_address(address)
        mapped = getattr(found, "ipv4_mapped", None)
        return any((mapped or found) in network for network in networks)
    return False


class GatewayLimits(NamedTuple):
    """What a gateway grants at most."""

    connections: int = 1000
    """Tunnels in all."""
    per_token: int = 256
    """No more than Postgres lets its role have: one that has not logged in yet takes a place there, too."""
    handshake: float = 10.0
    """Seconds from the first byte to a login at Postgres."""
    ping: float = PING
    """Seconds."""
    recheck: float = TTL
    """Seconds after which a token in use is checked again."""
    drain: float = 30.0
    """Seconds that tunnels have to finish their transactions when the gateway stops."""


class Closable(Protocol):
    """A session, as far as the end of its token concerns it."""

    def close(self, code: int, reason: str) -> None: ...


class _ActiveToken:
    """A token in use."""

    def __init__(self, status: TokenStatus) -> None:
        self.sessions: set[Closable] = set()
        self.status = status
        self.checked = time.monotonic()
        self.recheck: asyncio.Task[None] | None = None


class Admission:
    """Admits sessions, and closes them when their token ends.

    Args:
        target: the database, which decides about tokens.
        limits: how much of everything.
        behind: networks of proxies that terminate TLS, whose X-Forwarded-* headers are believed.
        remember: a file for digests of good tokens.

    """

    def __init__(
        self, target: PostgresTarget, limits: GatewayLimits, behind: Networks, remember: Path | None = None
    ) -> None:
        self.target, self.limits, self.behind = target, limits, behind
        self.draining = False
        """Whether nobody is admitted any more."""
        self.metrics = Metrics({("bytes_total", f'direction="{way}"'): 0 for way in ("up", "down")})
        self.tokens = TokenCache(target, ttl=limits.recheck, file=remember)
        self.turned_away: Counter[tuple[str, int]] = Counter()
        """Since the last tick, by address and status: one line each would let a guesser fill the log."""
        self._active: dict[tuple[str, Secret], _ActiveToken] = {}

    def address_of(self, peer: str, forwarded: list[str]) -> str:
        """The client's address: the last one that a proxy of ours saw."""
        if forwarded and is_within(peer, self.behind):
            return forwarded[-1].rpartition(",")[2].strip()[:64]
        return peer

    def is_full(self) -> bool:
        """Whether there are as many tunnels as allowed."""
        return sum(len(active.sessions) for active in self._active.values()) >= self.limits.connections

    def enter(self, session: Closable, token: tuple[str, Secret], status: TokenStatus) -> bool:
        """Count a session for its token; False if that has too many, or the gateway has."""
        active = self._active.get(token)
        role = self.tokens.connections.get(token[0], -1)
        most = self.limits.per_token if role < 0 else min(role, self.limits.per_token)
        if self.is_full() or (active is not None and len(active.sessions) >= most):
            return False
        if active is None:
            active = self._active[token] = _ActiveToken(status)
        active.sessions.add(session)
        return True

    def leave(self, session: Closable, token: tuple[str, Secret]) -> None:
        """A session that entered with this token is over."""
        active = self._active.get(token)
        if active is None:
            return
        active.sessions.discard(session)
        if not active.sessions:
            del self._active[token]
            if active.recheck is not None:
                active.recheck.cancel()

    def tick(self, now: float) -> None:
        """Once per second: check tokens again, and log who was turned away."""
        for token, active in list(self._active.items()):
            due = now - active.checked >= self.limits.recheck or active.status.is_expired()
            if due and active.recheck is None:
                active.recheck = asyncio.get_running_loop().create_task(self._recheck(token, active))
        for (address, status), count in self.turned_away.most_common(_LINES):
            event("turned away", address=address, status=status, times=count)
        self.turned_away.clear()

    async def _recheck(self, token: tuple[str, Secret], active: _ActiveToken) -> None:
        try:
            active.status = await self.tokens.status(*token, fresh=True)
        except (StoreUnreachable, TooManyAttempts):  # until Postgres answers, what it said last holds
            active.status = active.status._replace(valid=not active.status.is_expired())
        active.checked, active.recheck = time.monotonic(), None
        if not active.status.valid:
            event("token ended", role=token[0], connections=len(active.sessions))
            for session in list(active.sessions):
                session.close(1008, "the token has expired or was revoked")
