"""Limits the guessing of tokens: twenty wrong ones per address, then one per second; a hundred in all, then ten.

Only wrong tokens that were checked with Postgres count. Guessing never delays a token that is known to be valid. Half
of the hundred is for addresses that have tried no wrong token before, so that guessers do not use it up, and a token of
an existing role has its own share. Such a role's name ends in random digits, which a guesser does not know.
"""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

_REMEMBERED: Final = 4096  # addresses


class RequestRefused(Exception):
    """A request gets this HTTP status, and its connection ends."""

    def __init__(self, status: int, retry: float | None = None) -> None:
        super().__init__()
        self.status, self.retry = status, retry
        """The HTTP status, and the seconds until a retry, if one may succeed."""


class _TokenBucket:
    """Allows `capacity` attempts at once, and `refill` more per second."""

    def __init__(self, capacity: float, refill: float) -> None:
        self._capacity, self._refill = capacity, refill
        self._level, self._since = capacity, time.monotonic()

    def _left(self) -> float:
        return min(self._capacity, self._level + (time.monotonic() - self._since) * self._refill)

    @property
    def wait(self) -> float:
        """Seconds until an attempt is allowed."""
        return max(0.0, (1.0 - self._left()) / self._refill)

    def take(self) -> None:
        self._level, self._since = self._left() - 1.0, time.monotonic()


class RateLimiter:
    """Counts wrong tokens by address."""

    def __init__(self) -> None:
        self._guessing = _TokenBucket(50.0, 5.0)
        self._innocent = _TokenBucket(50.0, 5.0)
        self._by_network: OrderedDict[str, _TokenBucket] = OrderedDict()
        self._by_role: dict[str, _TokenBucket] = {}

    def set_roles(self, roles: Iterable[str]) -> None:
        """Set which roles exist."""
        self._by_role = {role: self._by_role.get(role) or _TokenBucket(10.0, 0.5) for role in roles}

    def check(self, address: str, role: str = "") -> None:
        """Check that this address may try an unknown token of this role now.

        Raises:
            RequestRefused: the caller must wait.

        """
        own = self._by_network.get(_network(address))
        if own is not None and own.wait:
            raise RequestRefused(429, own.wait)
        shared = self._shared(own is not None, role)
        if shared.wait:
            raise RequestRefused(429 if own is not None and role in self._by_role else 503, shared.wait)

    def _shared(self, guessing: bool, role: str) -> _TokenBucket:
        return self._by_role.get(role) or (self._guessing if guessing else self._innocent)

    def record_failure(self, address: str, role: str = "") -> None:
        """Record that this address tried a wrong token of this role."""
        network = _network(address)
        self._shared(network in self._by_network, role).take()
        self._by_network.setdefault(network, _TokenBucket(20.0, 1.0)).take()
        self._by_network.move_to_end(network)
        while len(self._by_network) > _REMEMBERED:
            self._by_network.popitem(last=False)


def _network(address: str) -> str:
    """The address; for IPv6, the network of one subscriber."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(found) if found.version == 4 else str(ipaddress.ip_network((found, 64), strict=False))
