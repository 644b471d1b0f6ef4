"""What travels over a bridge, as bytes that any log takes: requests of local peers, answers, pieces of the far log.

All are msgpack behind a checksum, so that a directory's log sees where one ends and another was torn. Whatever does
not decode is passed over: it was not written by us.
"""

from __future__ import annotations

import secrets
import zlib
from typing import Final, NamedTuple, TypeVar

import msgspec

from hopaas_p2p.core import codec
from hopaas_p2p.stores.base import Entry

CATALOG: Final = ""
"""The name of the directory log in a request."""
BOX: Final = "bridge-box"
"""The near log of requests."""
ANSWERS: Final = "bridge-answers"
"""The near log of answers to requests that end otherwise than in the mirror."""
STATUS: Final = "bridge-status"
"""The peer whose beat changes with every round in which a bridge reached the far store."""
FAR: Final = "-far"
"""A far beat is kept near under the peer's name and this."""
MISSING: Final = "KeyError"
"""The kind of an answer that says there is no such file."""
NAME: Final = 60
"""The longest name of a peer that beats across a bridge."""

T = TypeVar("T")


class Append(msgspec.Struct, array_like=True, frozen=True, tag="append"):
    """Append these bytes to the far log, unless they stand in it after `since`."""

    log: str
    nonce: str
    payload: bytes
    since: int


class Withdraw(msgspec.Struct, array_like=True, frozen=True, tag="withdraw"):
    """Do not append the commit of this nonce to the far log, if it has not been carried yet."""

    log: str
    of: str


class Watch(msgspec.Struct, array_like=True, frozen=True, tag="watch"):
    """Keep the mirror of this log up to date for a while."""

    log: str
    nonce: str


class Destroy(msgspec.Struct, array_like=True, frozen=True, tag="destroy"):
    """Destroy this log at the far side, then here."""

    log: str
    nonce: str


class Snapshot(msgspec.Struct, array_like=True, frozen=True, tag="snapshot"):
    """There is a snapshot near, which the far side may not have."""

    log: str
    lsn: int
    nonce: str


class Alive(msgspec.Struct, array_like=True, frozen=True, tag="alive"):
    """This peer beats here: carry its beats for a while."""

    peer: str
    nonce: str


class Look(msgspec.Struct, array_like=True, frozen=True, tag="look"):
    """Somebody here looks at the beats of these peers: bring them for a while."""

    peers: list[str]
    nonce: str


class File(msgspec.Struct, array_like=True, frozen=True, tag="file"):
    """Do something about artifacts: put the near one there, get the far one here, delete it, list those of a prefix."""

    what: str
    key: str
    nonce: str


Request = Append | Withdraw | Watch | Destroy | Snapshot | Alive | Look | File


class Answer(msgspec.Struct, array_like=True, frozen=True):
    """What became of the request at this place of the box."""

    place: int
    kind: str
    """The name of an error, or nothing if it was done."""
    message: str


class Piece(msgspec.Struct, array_like=True, frozen=True):
    """Some entries of the far log, beginning with lsn `first`; none says that the mirror begins there."""

    first: int
    entries: list[tuple[bytes, str, str, int]]


class Kept(msgspec.Struct, array_like=True, frozen=True):
    """A snapshot of the far log."""

    lsn: int
    data: bytes


class Interest(msgspec.Struct, array_like=True, frozen=True):
    """What a bridge was asked to keep up, for the one that comes after it."""

    logs: list[str]
    alive: list[str]
    looked_at: list[str]


class Placed(NamedTuple):
    """A request and its place in the box."""

    place: int
    request: Request


_request: Final[msgspec.msgpack.Decoder[Request]] = msgspec.msgpack.Decoder(Request)
_decoders: Final[dict[type, msgspec.msgpack.Decoder[object]]] = {
    kind: msgspec.msgpack.Decoder(kind) for kind in (Answer, Piece, Kept, Interest)
}


def nonce() -> str:
    """Makes a request differ from all before it."""
    return secrets.token_urlsafe(9)


def seal(frame: msgspec.Struct) -> bytes:
    """The bytes of a frame, behind their checksum."""
    body = msgspec.msgpack.encode(frame)
    return zlib.crc32(body).to_bytes(4, "little") + body


def opened(payload: bytes, kind: type[T]) -> T | None:
    """The frame of this kind in these bytes, or None."""
    if not codec.intact(payload):
        return None
    try:
        return _decoders[kind].decode(memoryview(payload)[4:])  # type: ignore[return-value]
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def request_in(entry: Entry) -> Request | None:
    """The request that an entry of the box holds, or None."""
    if not codec.intact(entry.payload):
        return None
    try:
        return _request.decode(memoryview(entry.payload)[4:])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
