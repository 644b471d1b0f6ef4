"""What a log needs from a bucket or a directory: a few calls, and what their answers mean.

Everything depends on `put_new`: of all calls that write one key, exactly one succeeds, and what it wrote never changes.
Apart from files, no request is retried here except after expired keys or a wrong clock, because the caller must know
when an outcome is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol, Self, TypeVar

from hopaas_p2p.core import codec
from hopaas_p2p.errors import Denied, StoreUnreachable
from hopaas_p2p.runtime.parallel import each
from hopaas_p2p.stores.base import Progress

LARGEST: Final = codec.MAX_BYTES + (64 << 10)
"""The most bytes of an object: the largest commit, with its stamp and framing."""
_DIGITS: Final = 20  # digits of an lsn, in a name


def lsn_of(key: str) -> int | None:
    """The lsn after which this object or folder is named; None if its name is not one of ours."""
    name = key.rstrip("/").rpartition("/")[2]
    return int(name) if len(name) == _DIGITS and name.isascii() and name.isdigit() else None


def numbered(keys: Iterable[str]) -> list[tuple[int, str]]:
    """The objects or folders that are named after an lsn, with their lsns."""
    return [(lsn, key) for key in keys if (lsn := lsn_of(key)) is not None]


class NotRemoved(Denied):
    """Some objects may not be removed by this user; all others were removed."""

    stay: dict[str, Denied] = {}
    """Key -> why its object stays."""

    @classmethod
    def of(cls, stay: dict[str, Denied]) -> Self:
        """The error for these keys."""
        first = next(iter(stay.values()))
        error = cls(f"{len(stay)} objects could not be removed: {first}" if len(stay) > 1 else str(first))
        error.stay = stay
        return error


def delete_each(delete: Callable[[str], None], keys: Iterable[str], *, at_once: int = 1) -> None:
    """Delete one object after another, or several `at_once`; one that may not be removed does not stop the rest."""
    stay: dict[str, Denied] = {}

    def one(key: str) -> None:
        try:
            delete(key)
        except Denied as error:
            stay[key] = error

    each(one, keys, at_once=at_once)
    if stay:
        raise NotRemoved.of(stay)


class Found(NamedTuple):
    """An object, as read."""

    data: bytes
    """Empty if the object is larger than the caller's limit."""
    size: int
    modified: float = 0.0
    """When the server accepted it, by the server's clock; 0 if the server did not report that."""


def answered(found: Iterable[Found | StoreUnreachable | None]) -> list[Found | None]:
    """What `ObjectStore.get_many` found; raises the first error in it."""
    read = list[Found | None]()
    for one in found:
        if isinstance(one, StoreUnreachable):
            raise one
        read.append(one)
    return read


class ObjectStore(Protocol):
    """What a log needs of an object store. Any thread may call it. Keys are relative to the store's root.

    Every method may raise:
        StoreUnreachable: no answer, or one that asks to try again later. The request may have been carried out.
        Denied: this user may not do that. The request was not carried out.
        ConfigurationError: bucket, keys, clock or server must be changed. The request was not carried out.

    """

    settles: float
    """Seconds for which a new object may be read wrongly, because of this machine's cache."""

    def put_new(self, key: str, data: bytes, *, unless: Sequence[str] | None = ()) -> bool:
        """Create the object unless it exists; return whether this call created it. Durable when this returns True.

        Where keys are in folders, a missing folder is created, unless an object exists for a key in `unless`, or
        `unless` is None. In these cases, the folder was removed, so nothing is written, and the result is False.
        """

    def secure(self, key: str) -> None:
        """Make sure that an object that has been seen survives a loss of power."""

    def get(self, key: str, *, limit: int, certain: bool = True) -> Found | None:
        """The object, or None. An object larger than `limit` bytes is not read.

        Unless `certain`, the answer may come from this machine's cached view of the folder, and be wrong.
        """

    def get_many(self, keys: Sequence[str], *, limit: int) -> Sequence[Found | StoreUnreachable | None]:
        """Like `get`, for several at once; an error takes the place of its object."""

    def put(self, key: str, data: bytes) -> None:
        """Write the object atomically, replacing an existing one. Durable when this returns."""

    def put_same(self, key: str, data: bytes) -> None:
        """Atomically write an object for which all writers have the same bytes; an existing one may stay."""

    def listed(self, prefix: str, *, after: str = "", at_most: int | None = None) -> list[str]:
        """The keys that begin with this prefix and come after `after`, in order, and at most `at_most` of them."""

    def delete(self, keys: Iterable[str]) -> None:
        """Remove these objects, if they exist. Raises NotRemoved after this if some may not be removed."""

    def discard(self, keys: Iterable[str]) -> None:
        """Like `delete`, for objects that nobody needs, which may be removed a little later, or not at all."""

    def upload(self, key: str, source: Path) -> None:
        """Write a file of any size, completely or not at all."""

    def download(self, key: str, target: Path, progress: Progress | None = None) -> bool:
        """Write the object to a file; return whether it existed."""


Objects = TypeVar("Objects", bound=ObjectStore)
