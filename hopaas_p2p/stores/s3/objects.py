"""What a store needs of a bucket: a handful of requests, and what their answers mean.

`create` is the one that carries everything: PUT with `If-None-Match: *`, of which exactly one succeeds. Nothing is
tried again here, but for keys that have run out and a clock that is wrong: whoever asks must know what is not known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

from hopaas_p2p.stores.base import Progress


class Found(NamedTuple):
    """An object as it was read."""

    data: bytes
    """Empty when the object is larger than the caller would take."""
    size: int
    modified: float
    """When the server took it, by the server's clock; 0 if it did not say."""


class Listed(NamedTuple):
    """An object as a listing shows it."""

    key: str
    size: int
    modified: float


class ObjectStore(Protocol):
    """What a store needs of a bucket. Keys are relative to the store's root. Any thread may call.

    Raises, all of them:
        StoreUnreachable: no answer, or one that says try later. What was asked for may have been done.
        Denied: these keys may not do that. It was not done.
        ConfigurationError: bucket, keys, clock or server must be changed. It was not done.

    """

    @property
    def requests(self) -> Counter[str]:
        """Requests so far by kind: PUT, GET, LIST, DELETE, POST."""

    def get(self, key: str, *, limit: int) -> Found | None:
        """The object, or None. One larger than `limit` bytes is not read."""

    def put(self, key: str, data: bytes) -> None:
        """Write the object, whatever is there."""

    def create(self, key: str, data: bytes) -> bool:
        """Write the object if there is none; whether this call did."""

    def listed(self, prefix: str, *, after: str = "", at_most: int | None = None) -> list[Listed]:
        """The objects whose keys begin so, in order of their keys."""

    def folders(self, prefix: str) -> list[str]:
        """The names up to the next slash behind this prefix."""

    def delete(self, keys: Iterable[str]) -> None:
        """Remove these, as far as they are there."""

    def upload(self, key: str, source: Path, progress: Progress | None = None) -> None:
        """Write a file of any size, in parts; whole or not at all."""

    def download(self, key: str, target: Path, progress: Progress | None = None) -> bool:
        """Write the object to a file; whether there was one."""

    def server_now(self) -> float | None:
        """The server's clock: seconds since 1970, once it has answered."""

    def after_fork(self) -> None:
        """Forget the connections, which are the parent's."""

    def close(self) -> None:
        """Close the connections; they are made again when needed."""
