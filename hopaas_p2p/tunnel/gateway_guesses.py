"""Guessing is slow: an address has twenty wrong tokens free and then one a second; all together a hundred, then ten.

Only wrong tokens that Postgres was asked about count. A token known to be good is not held up by anybody's guessing,
and one that is new only while somebody guesses.
"""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from typing import Final

_REMEMBERED: Final = 4096  # addresses


class TooMany(Exception):
    """Come again later."""

    def __init__(self, retry_after: float, *, guessing: bool) -> None:
        super().__init__()
        self.retry_after = retry_after
        """Seconds."""
        self.guessing = guessing
        """Whether this address guesses (429), or everybody has to wait (503)."""


class _Bucket:
    """So many are free, and more a second."""

    def __init__(self, free: float, refill: float) -> None:
        self._free, self._refill = free, refill
        self._had, self._since = free, time.monotonic()

    @property
    def left(self) -> float:
        return min(self._free, self._had + (time.monotonic() - self._since) * self._refill)

    @property
    def wait(self) -> float:
        """Seconds until there is one, 0 if there is."""
        return max(0.0, (1.0 - self.left) / self._refill)

    def take(self) -> None:
        self._had, self._since = self.left - 1.0, time.monotonic()


class Guesses:
    """Wrong tokens, by who tried them."""

    def __init__(self) -> None:
        self._all = _Bucket(100.0, 10.0)
        self._each: OrderedDict[str, _Bucket] = OrderedDict()

    def check(self, address: str) -> None:
        """Whether this address may try a token that is not known.

        Raises:
            TooMany: not now.

        """
        own = self._each.get(_network(address))
        if own is not None and own.wait:
            raise TooMany(own.wait, guessing=True)
        if self._all.wait:
            raise TooMany(self._all.wait, guessing=False)

    def note(self, address: str) -> None:
        """Its token was wrong."""
        network = _network(address)
        self._each.setdefault(network, _Bucket(20.0, 1.0)).take()
        self._each.move_to_end(network)
        self._all.take()
        while len(self._each) > _REMEMBERED:
            self._each.popitem(last=False)


def _network(address: str) -> str:
    """The address, or of IPv6 what one subscriber has."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(found) if found.version == 4 else str(ipaddress.ip_network((found, 64), strict=False))
