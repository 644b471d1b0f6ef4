"""What a log needs of a bucket or a directory: a handful of calls, and what their answers mean.

`put_new` is the one that carries everything: of all that write one key, exactly one succeeds, and what it wrote never
changes. Nothing is retried here, except for keys that expired and a clock that is wrong: the caller must know what is
not known.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol, TypeVar

from hopaas_p2p.core import codec
from hopaas_p2p.errors import StoreUnreachable
from hopaas_p2p.stores.base import Progress

LARGEST: Final = codec.MAX_BYTES + (64 << 10)
"""Bytes of an object: the largest commit, with its stamp and what is around it."""
_DIGITS: Final = 20  # of an lsn, in a name


def lsn_of(key: str) -> int | None:
    """The lsn that this object or folder is named after; None if it is not one of ours."""
    name = key.rstrip("/").rpartition("/")[2]
    return int(name) if len(name) == _DIGITS and name.isascii() and name.isdigit() else None


class Found(NamedTuple):
    """An object as it was read."""

    data: bytes
    """Empty if the object is larger than the caller's limit."""
    size: int
    modified: float = 0.0
    """When the server took it, by the server's clock; 0 if it did not say."""


class ObjectStore(Protocol):
    """The calls. Keys are relative to the store's root. Any thread may call.

    Raises, all of them:
        StoreUnreachable: no answer, or one that says try later. What was asked for may have been done.
        Denied: this user may not do that. It was not done.
        ConfigurationError: bucket, keys, clock or server must be changed. It was not done.

    """

    settles: float
    """Seconds for which a new object may be read other than it is, because of what this machine has in a cache."""

    def put_new(self, key: str, data: bytes, *, unless: Sequence[str] | None = ()) -> bool:
        """Write the object if there is none; whether this call did. Durable when this returns True.

        Where keys lie in folders that are removed as a whole, one that has to be made anew is not, and nothing is
        written, if there is an object of a key in `unless`, or if that is None.
        """

    def secure(self, key: str) -> None:
        """Make sure that an object that was seen survives a loss of power."""

    def get(self, key: str, *, limit: int, certain: bool = True) -> Found | None:
        """The object, or None. One that is larger than `limit` bytes is not read.

        Unless `certain`, what this machine remembers of the folder will do, for a caller that can be wrong about it.
        """

    def get_many(self, keys: Sequence[str], *, limit: int) -> Sequence[Found | StoreUnreachable | None]:
        """Like `get`, for several at once; an error stands in the place of its object."""

    def put(self, key: str, data: bytes) -> None:
        """Write the object, whole, replacing one that is there. Durable when this returns."""

    def put_same(self, key: str, data: bytes) -> None:
        """Write an object of which every writer has the same bytes, whole; one that is there may stay."""

    def listed(self, prefix: str, *, after: str = "", at_most: int | None = None) -> list[str]:
        """The keys that begin with this folder, in order."""

    def delete(self, keys: Iterable[str]) -> None:
        """Remove these, if they are there."""

    def discard(self, keys: Iterable[str]) -> None:
        """Like `delete`, for objects that nobody misses: they may go a little later, or not at all."""

    def upload(self, key: str, source: Path) -> None:
        """Write a file of any size; whole or not at all."""

    def download(self, key: str, target: Path, progress: Progress | None = None) -> bool:
        """Write the object to a file; whether there was one."""


Objects = TypeVar("Objects", bound=ObjectStore)
