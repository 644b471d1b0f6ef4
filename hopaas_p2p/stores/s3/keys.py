"""Keys to sign requests with, and the chain of places where they may be.

The SDK's own providers are not used: they put web identity tokens into URLs, which error messages then show, make
pools of their own that know no proxy, and can stall for six seconds where there is no metadata service.
"""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Callable
from typing import Final, NoReturn, Protocol

from minio.credentials.credentials import Credentials
from minio.credentials.providers import Provider

from hopaas_p2p.errors import ConfigurationError

_MARGIN: Final = 120.0  # seconds before their end at which keys are renewed


class Keys(Credentials):
    """Credentials that never show themselves."""

    def __repr__(self) -> str:
        return "Keys(***)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("keys are not pickled; other processes find their own")

    def is_expired(self) -> bool:
        return False  # the chain decides, by the server's clock


class Source(Protocol):
    """One place where keys may be."""

    @property
    def name(self) -> str:
        """What a message calls it."""

    def find(self) -> Keys | None:
        """The keys as they are now, or None when this place has none.

        Raises:
            StoreUnreachable: a service that should give them does not answer.
            ConfigurationError: it is set up wrongly.

        """


class Chain(Provider):
    """The first source that has keys; it is asked again when they run out, or when the server refuses them."""

    def __init__(self, sources: list[Source], *, clock: Callable[[], float] = time.time) -> None:
        self._sources = sources
        self._keys: Keys | None = None
        self._lock = threading.Lock()
        self.clock = clock

    def __repr__(self) -> str:
        return f"Chain({', '.join(source.name for source in self._sources)})"

    def copy(self, *, clock: Callable[[], float]) -> Chain:
        """The same sources for a forked child, with a lock of its own."""
        return Chain(self._sources, clock=clock)

    def retrieve(self) -> Keys:
        with self._lock:
            if self._keys is None or self._ending(self._keys):
                self._keys = self._find()
            return self._keys

    def _ending(self, keys: Keys) -> bool:
        end = keys.expiration
        return end is not None and end.replace(tzinfo=datetime.UTC).timestamp() - _MARGIN < self.clock()

    def renew(self, refused: Credentials | None = None) -> bool:
        """Look anew, because the server did not take the keys; whether there are others now."""
        with self._lock:
            before, self._keys = refused or self._keys, self._find()
            now = self._keys.access_key, self._keys.session_token
            return before is None or now != (before.access_key, before.session_token)

    def _find(self) -> Keys:
        for source in self._sources:
            keys = source.find()
            if keys is not None:
                return keys
        looked = "; ".join(source.name for source in self._sources)
        raise ConfigurationError(
            f"no keys for the bucket. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. Looked at: {looked}"
        )
