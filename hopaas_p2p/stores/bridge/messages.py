"""What crosses a bridge, as bytes that any log takes: requests of local peers, replies, segments of the far log.

All are msgpack behind a checksum, like commits. Bytes that do not decode are skipped: no peer or bridge wrote them.
"""

from __future__ import annotations

import secrets
import zlib
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeVar

import msgspec

from hopaas_p2p.core import codec
from hopaas_p2p.stores.base import Outgoing

CATALOG: Final = ""
"""The name of the catalog's log in a request."""
INBOX: Final = "bridge-box"
"""The near log of requests."""
REPLIES: Final = "bridge-answers"
"""The near log of replies to requests whose outcome does not show in the mirror."""
STATUS: Final = "bridge-status"
"""The peer whose beat changes with every round in which a bridge reached the far store."""
FAR_SUFFIX: Final = "-far"
"""A far beat is kept near under the peer's name with this suffix."""
MISSING: Final = "KeyError"
"""The kind of a reply that says there is no such file."""
LONGEST_NAME: Final = 60
"""Characters in the name of a peer whose beats can cross a bridge."""
MOST_PEERS: Final = 10_000
"""Peers whose beats are brought, or carried: a bridge asks for all of them in every round."""

Nonce = Annotated[str, msgspec.Meta(pattern=r"^[!-~]{1,128}\Z")]
"""What every far store takes. A request with another is not decoded: it would be tried for ever."""
About = Annotated[str, msgspec.Meta(pattern=r"^[ -~]{0,128}\Z")]
Peer = Annotated[str, msgspec.Meta(pattern=rf"^[A-Za-z0-9_-]{{1,{LONGEST_NAME}}}\Z")]
Peers = Annotated[list[Peer], msgspec.Meta(max_length=MOST_PEERS)]
Key = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_/-]{0,300}\Z")]
"""The key of a file, or what keys begin with."""
Place = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]

T = TypeVar("T")


def nonce() -> str:
    """Makes a request differ from all others."""
    return secrets.token_urlsafe(9)


class _Message(msgspec.Struct, array_like=True, frozen=True):
    """Fields are only ever added at the end, with a default."""


class Append(_Message, frozen=True, tag="append"):
    """Append these bytes to the far log, unless it holds them after `since`."""

    log: str
    nonce: Nonce
    payload: Annotated[bytes, msgspec.Meta(max_length=codec.MAX_BYTES)]
    since: Place
    about: About = ""

    @property
    def outgoing(self) -> Outgoing:
        """The commit for the far log."""
        return Outgoing(self.nonce, self.payload, self.about)


class Withdraw(_Message, frozen=True, tag="withdraw"):
    """Do not append the commit of this nonce to the far log, if it has not been carried yet."""

    log: str
    of: str


class Subscribe(_Message, frozen=True, tag="watch"):
    """Keep the mirror of this log up to date for a while."""

    log: str
    nonce: str = msgspec.field(default_factory=nonce)


class Destroy(_Message, frozen=True, tag="destroy"):
    """Destroy this log at the far side, then its mirror."""

    log: str
    nonce: str = msgspec.field(default_factory=nonce)


class Snapshot(_Message, frozen=True, tag="snapshot"):
    """There is a snapshot near, which the far side may not have."""

    log: str
    lsn: Place
    nonce: str = msgspec.field(default_factory=nonce)


class CarryBeats(_Message, frozen=True, tag="alive"):
    """This peer beats at the near side: carry its beats to the far side for a while."""

    peer: Peer
    nonce: str = msgspec.field(default_factory=nonce)


class BringBeats(_Message, frozen=True, tag="look"):
    """A peer here needs the beats of these peers: bring them from the far side for a while."""

    peers: Peers
    nonce: str = msgspec.field(default_factory=nonce)


class FileRequest(_Message, frozen=True, tag="file"):
    """Carry the near file of this key to the far side, bring the far one, delete it, or list the keys of a prefix."""

    what: Literal["put", "get", "delete", "list"]
    key: Key
    nonce: str = msgspec.field(default_factory=nonce)


Request = Append | Withdraw | Subscribe | Destroy | Snapshot | CarryBeats | BringBeats | FileRequest


class Reply(_Message, frozen=True):
    """The outcome of the request at this place of the inbox."""

    place: int
    kind: str
    """The name of an error; empty if the request was carried out."""
    message: str


class Segment(_Message, frozen=True):
    """Consecutive entries of the far log, beginning with lsn `first`. An empty one marks where the mirror begins."""

    first: int
    entries: list[tuple[bytes, str, str, int]]
    sums: list[int | None] = []
    """Of each entry, the sum of the far log before it."""


class MirroredSnapshot(_Message, frozen=True):
    """A snapshot of the far log."""

    lsn: int
    data: bytes


class Subscriptions(_Message, frozen=True):
    """What a bridge was asked to keep up to date, for the bridge that comes after it."""

    logs: list[str]
    alive: Peers
    looked_at: Peers


class PlacedRequest(NamedTuple):
    """A request and its place in the inbox."""

    place: int
    request: Request


_request: Final[msgspec.msgpack.Decoder[Request]] = msgspec.msgpack.Decoder(Request)
_decoders: Final[dict[type, msgspec.msgpack.Decoder[Any]]] = {
    kind: msgspec.msgpack.Decoder(kind) for kind in (Reply, Segment, MirroredSnapshot, Subscriptions)
}


def seal(message: msgspec.Struct) -> bytes:
    """The bytes of a message, behind their checksum."""
    body = msgspec.msgpack.encode(message)
    return zlib.crc32(body).to_bytes(4, "little") + body


def unseal(payload: bytes, kind: type[T]) -> T | None:
    """The message of this kind in these bytes, or None."""
    return _decode(payload, _decoders[kind])


def unseal_request(payload: bytes) -> Request | None:
    """The request in these bytes, or None."""
    return _decode(payload, _request)


def _decode(payload: bytes, decoder: msgspec.msgpack.Decoder[T]) -> T | None:
    if not codec.intact(payload):
        return None
    try:
        return decoder.decode(memoryview(payload)[4:])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
