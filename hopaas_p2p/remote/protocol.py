"""What a peer asks of a store that somebody serves, and the answers: a request is one call of a `Log` or `Store`.

A request and an answer are msgpack. Commits travel as the bytes that their writers sealed: neither side decodes them,
so those of newer peers pass as well. Every request may be sent again. An error travels as the name of its class and its
message, and is raised at the other end as if the store were there.

A request knows its least role, for `access.judge`, and how to call what it is for.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, ClassVar, Final

import msgspec
from msgspec import Struct

from hopaas_p2p import errors
from hopaas_p2p.core.records import UNSTAMPED, Stamp
from hopaas_p2p.errors import HopaasError, StoreUnreachable
from hopaas_p2p.stores.base import Beat, Doubtful, Entry, ExchangeResult, Log, Outgoing, Store

VERSION: Final = 1
PATH: Final = f"/v{VERSION}"
"""Behind the server's own path. Files are below it."""
LARGEST: Final = 64 << 20
"""Bytes of a request or an answer: a head of a snapshot is the largest."""
FILE: Final = "application/octet-stream"
"""The type of an answer that is a file; every other is an `Answer`."""
CATALOG: Final = "catalog"
"""In place of a study's uuid: the log of which studies there are."""


class Facts(Struct, array_like=True, frozen=True):
    """Who the server takes this caller for."""

    token: str
    """The name of its token."""
    expires: str | None
    """When the token does, in ISO 8601; None for never."""


class StoreRequest(Struct, array_like=True, frozen=True):
    """One call."""

    least: ClassVar[str | None] = "viewer"
    """The least role in the log that it takes; None: who may make it is said elsewhere."""
    answer: ClassVar[Any] = None
    """The type of what comes back."""

    def on(self, store: Store) -> Any:
        """Carry it out."""
        raise NotImplementedError

    @property
    def place(self) -> str | None:
        """The uuid of the study that it is about, or the catalog, if it is about one."""
        return None

    @property
    def of_log(self) -> bool:
        """Whether it uses that log, which one thread at a time may."""
        return False


class _OfLog(StoreRequest, frozen=True):
    log: str

    @property
    def place(self) -> str | None:
        return self.log

    @property
    def of_log(self) -> bool:
        return True

    def on(self, store: Store) -> Any:
        return self.of(store.catalog() if self.log == CATALOG else store.log(self.log))

    def of(self, log: Log) -> Any:
        """Carry it out on this log."""
        raise NotImplementedError


Sent = tuple[str, bytes, str, int | None]
"""The nonce, payload, study and sum of an `Outgoing`."""


class Exchange(_OfLog, frozen=True, tag="exchange"):
    """`Log.exchange`; a stamp is the server's word, and never travels to it."""

    answer: ClassVar[Any] = tuple[list[tuple[int, bytes, str, str, int, int | None]], bool, float]
    since: int
    sent: Sent | None = None

    def of(self, log: Log, stamp: Stamp = UNSTAMPED) -> Any:
        found = log.exchange(None if self.sent is None else Outgoing(*self.sent, stamp), self.since)
        rows = [(one.lsn, one.payload, *msgspec.structs.astuple(one.stamp), one.before) for one in found.entries]
        return rows, found.more, log.flush_interval

    @staticmethod
    def result(rows: list[tuple[int, bytes, str, str, int, int | None]], more: bool) -> ExchangeResult:
        """What these rows mean."""
        entries = [Entry(lsn, data, Stamp(author, role, at), before) for lsn, data, author, role, at, before in rows]
        return ExchangeResult(entries, more)


class SnapshotHead(_OfLog, frozen=True, tag="head"):
    answer: ClassVar[Any] = tuple[int, bytes] | None
    before: int | None = None

    def of(self, log: Log) -> Any:
        return log.snapshot_head(self.before)


class Blocks(_OfLog, frozen=True, tag="blocks"):
    answer: ClassVar[Any] = dict[str, bytes]
    names: list[str]

    def of(self, log: Log) -> Any:
        return log.blocks(self.names)


class BlockNames(_OfLog, frozen=True, tag="names"):
    answer: ClassVar[Any] = set[str]

    def of(self, log: Log) -> Any:
        return sorted(log.block_names())


class PutBlock(_OfLog, frozen=True, tag="put_block"):
    least: ClassVar[str | None] = "worker"
    name: str
    data: bytes

    def of(self, log: Log) -> Any:
        log.put_block(self.name, self.data)


class PutHead(_OfLog, frozen=True, tag="put_head"):
    least: ClassVar[str | None] = "worker"
    lsn: int
    head: bytes

    def of(self, log: Log) -> Any:
        log.put_snapshot_head(self.lsn, self.head)


class FindDoubtful(_OfLog, frozen=True, tag="doubtful"):
    answer: ClassVar[Any] = tuple[int, str, bytes, str] | None
    after: int
    up_to: int

    def of(self, log: Log) -> Any:
        return log.doubtful_head(self.after, self.up_to)


class Judge(_OfLog, frozen=True, tag="judge"):
    lsn: int
    author: str
    sum: str
    same: bool

    def of(self, log: Log) -> Any:
        log.judge_snapshot(Doubtful(self.lsn, self.author, b"", self.sum), same=self.same)


class DeniedSnapshots(_OfLog, frozen=True, tag="denied"):
    answer: ClassVar[Any] = list[tuple[int, str, list[str]]]

    def of(self, log: Log) -> Any:
        return log.denied_snapshots()


class RemovedUpTo(_OfLog, frozen=True, tag="removed"):
    answer: ClassVar[Any] = int

    def of(self, log: Log) -> Any:
        return log.removed_up_to()


class DestroyLog(_OfLog, frozen=True, tag="destroy"):
    least: ClassVar[str | None] = "owner"
    erase: bool = False

    def of(self, log: Log) -> Any:
        (log.erase if self.erase else log.destroy)()


class Confirm(_OfLog, frozen=True, tag="confirm"):
    def of(self, log: Log) -> Any:
        log.confirm()


class Hello(StoreRequest, frozen=True, tag="hello"):
    least: ClassVar[str | None] = None
    answer: ClassVar[Any] = Facts

    def on(self, store: Store) -> Any:
        store.catalog().exchange(None, 0)  # whether the store is there


class Shared(StoreRequest, frozen=True, tag="shared"):
    least: ClassVar[str | None] = None
    answer: ClassVar[Any] = set[str] | None

    def on(self, store: Store) -> Any:
        found = store.shared()
        return None if found is None else sorted(found)


class PutBeat(StoreRequest, frozen=True, tag="beat"):
    least: ClassVar[str | None] = None
    peer: str
    value: str | None
    """None removes it."""

    def on(self, store: Store) -> Any:
        if self.value is None:
            store.remove_beat(self.peer)
        else:
            store.beat(Beat(self.peer, self.value))


class Beats(StoreRequest, frozen=True, tag="beats"):
    least: ClassVar[str | None] = None
    answer: ClassVar[Any] = dict[str, str]
    peers: list[str]

    def on(self, store: Store) -> Any:
        return store.beats(self.peers)


class _OfFile(StoreRequest, frozen=True):
    key: str
    """Begins with the uuid of its study."""

    @property
    def place(self) -> str | None:
        return self.key.partition("/")[0]


class FileKeys(_OfFile, frozen=True, tag="keys"):
    answer: ClassVar[Any] = list[str]

    def on(self, store: Store) -> Any:
        return store.artifacts().keys(self.key)


class DeleteFile(_OfFile, frozen=True, tag="delete"):
    least: ClassVar[str | None] = "worker"

    def on(self, store: Store) -> Any:
        store.artifacts().delete(self.key)


class PutFile(_OfFile, frozen=True, tag="put_file"):
    """Its bytes come along outside the request."""

    least: ClassVar[str | None] = "worker"

    def on(self, store: Store) -> Any:
        return None


class GetFile(_OfFile, frozen=True, tag="get_file"):
    """Its bytes are the answer."""

    def on(self, store: Store) -> Any:
        return None


AnyRequest = (
    Exchange
    | SnapshotHead
    | Blocks
    | BlockNames
    | PutBlock
    | PutHead
    | FindDoubtful
    | Judge
    | DeniedSnapshots
    | RemovedUpTo
    | DestroyLog
    | Confirm
    | Hello
    | Shared
    | PutBeat
    | Beats
    | FileKeys
    | DeleteFile
)


class Answer(Struct, array_like=True, frozen=True):
    """What came of a request: a result, or an error."""

    result: msgspec.Raw = msgspec.Raw(b"\xc0")
    error: str = ""
    message: str = ""


encode: Final = msgspec.msgpack.Encoder().encode
decode_request: Final = msgspec.msgpack.Decoder(AnyRequest).decode
_decode_answer: Final = msgspec.msgpack.Decoder(Answer).decode
_KINDS: Final[dict[str, type[Exception]]] = {
    one.__name__: one
    for one in vars(errors).values()
    if isinstance(one, type) and issubclass(one, HopaasError) and one.__init__ is HopaasError.__init__
} | {"KeyError": KeyError}


def answered(result: object) -> bytes:
    """The answer with this result."""
    return encode(Answer(msgspec.Raw(encode(result))))


def refused(error: Exception) -> bytes:
    """The answer with this error, if it is one that a store may raise; raises it if not."""
    name = next((one.__name__ for one in type(error).__mro__ if one.__name__ in _KINDS), None)
    if name is None:
        raise error
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return encode(Answer(error=name, message=message))


def is_refusal(answer: bytes) -> bool:
    """Whether this answer says an error."""
    return bool(_decode_answer(answer).error)


def result_of(request: StoreRequest, data: bytes) -> Any:
    """What an answer to this request says; raises the error that it says.

    Raises:
        StoreUnreachable: this is no answer.

    """
    try:
        found = _decode_answer(data)
        if not found.error:
            return msgspec.msgpack.decode(found.result, type=type(request).answer)
    except msgspec.MsgspecError as error:
        raise StoreUnreachable(f"the server's answer cannot be read: {error}") from None
    raise _KINDS.get(found.error, StoreUnreachable)(found.message)


def encode_header(text: str) -> str:
    """A text in a form that may stand in a header: base64url without padding."""
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_header(text: str) -> str:
    """The text that was encoded; empty if it was not."""
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
    except (binascii.Error, ValueError):
        return ""
