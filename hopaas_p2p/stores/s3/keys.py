"""Keys to sign requests with, and the chain of places where they may be.

The SDK's own providers are not used: they put web identity tokens into URLs, which error messages then show, make
pools of their own that know no proxy, and can stall for six seconds where there is no metadata service.
"""

from __future__ import annotations

import datetime
import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, NoReturn

from hopaas_p2p.errors import ConfigurationError

_MARGIN: Final = 120.0  # seconds before their end at which keys are renewed


class Keys(NamedTuple):
    """An access key that never shows itself. It has the names that the SDK's signer looks for."""

    access_key: str
    secret_key: str
    session_token: str | None = None
    expiration: datetime.datetime | None = None

    def __repr__(self) -> str:
        return "Keys(***)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("keys are not pickled; other processes find their own")


class Chain:
    """The first place that has keys; it is asked again when they run out, or when the server refuses them.

    Args:
        places: by what a message calls them. Each looks for the keys as they are now, or returns None; it raises
            StoreUnreachable where a service that should give them does not answer, and ConfigurationError where it is
            set up wrongly.

    """

    def __init__(self, places: Mapping[str, Callable[[], Keys | None]]) -> None:
        self._places = places
        self._keys: Keys | None = None
        self._lock = threading.Lock()
        self.clock = time.time
        """Seconds since 1970, by the server."""

    def __repr__(self) -> str:
        return f"Chain({', '.join(self._places)})"

    def after_fork(self) -> None:
        """In a child: another thread of the parent may have held the lock; and look for the keys anew."""
        self._lock, self._keys = threading.Lock(), None

    def retrieve(self) -> Keys:
        with self._lock:
            end = None if self._keys is None else self._keys.expiration
            ends = math.inf if end is None else end.replace(tzinfo=end.tzinfo or datetime.UTC).timestamp()
            if self._keys is None or ends - _MARGIN < self.clock():
                self._keys = self._find()
            return self._keys

    def renew(self, refused: Keys | None = None) -> bool:
        """Look anew, because the server did not take the keys; whether there are others now."""
        with self._lock:
            before, self._keys = refused or self._keys, self._find()
            now = self._keys.access_key, self._keys.session_token
            return before is None or now != (before.access_key, before.session_token)

    def _find(self) -> Keys:
        for find in self._places.values():
            keys = find()
            if keys is not None:
                return keys
        looked = "; ".join(self._places)
        raise ConfigurationError(
            f"no keys for the bucket. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. Looked at: {looked}"
        )
