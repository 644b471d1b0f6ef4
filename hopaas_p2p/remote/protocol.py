"""The requests of peers to a store that is served, and the answers. A request is one call of a `Log` or `Store`.

A request is msgpack `[call, place, arguments]`. A commit is sent as the bytes that its writer encoded. Neither side
decodes these, so commits of newer peers pass, too. Every request may be sent again. An error is sent as the name of its
class and its message, and is raised at the other end as if the store were local.
"""

from __future__ import annotations

import base64
import contextlib
import re
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from msgspec import Meta, Struct

from hopaas_p2p import errors
from hopaas_p2p.core import codec
from hopaas_p2p.errors import Denied, InvalidInput, StoreUnreachable
from hopaas_p2p.runtime.redaction import foreign
from hopaas_p2p.stores.base import Beat, Doubtful, ExchangeResult, Log, Outgoing, Store

VERSION: Final = 1
PATH: Final = f"/v{VERSION}"
"""The path of requests, below the server's own path; the paths of files begin with it."""
LARGEST: Final = 64 << 20
"""The most bytes of a request or an answer; the head of a snapshot is the largest."""
FILE: Final = "application/octet-stream"
"""The type of an answer that is a file; all others are `Answer`s."""
CATALOG: Final = "catalog"
"""The name of the log with the list of studies, in place of a study's uuid."""


_NONCE: Final = re.compile(r"[!-~]{1,128}")
_ABOUT: Final = re.compile(r"[ -~]{0,128}")
_KEY: Final = re.compile(r"[A-Za-z0-9_/-]{0,300}")
"""The key of a file, or a prefix of keys."""


class Facts(Struct, array_like=True, frozen=True):
    """The server's view of this caller."""

    token: str
    """The name of its token; for a folder, the store that is served there."""
    expires: float | None
    """When the token expires, in seconds since 1970 by the server's clock; None for never."""


Name = Annotated[str, Meta(max_length=64, pattern=r"\A[A-Za-z0-9_-]+\Z")]
"""The name of a peer or a block; it becomes part of a key, a path or a URL."""
AT_ONCE: Final = 1000
Names = Annotated[list[Name], Meta(max_length=AT_ONCE)]
LONGEST_WAIT: Final = 20.0
"""Seconds for which a server holds a request that waits for news."""
_MANY: Final = Meta(max_length=1 << 20)
_BLOCK: Final = LARGEST // 8  # bytes of a block; an answer contains several
Lsn = Annotated[int, Meta(ge=0, lt=1 << 62)]


class Call(NamedTuple):
    """A permitted call. The types of its arguments limit what a caller may send."""

    of: str
    """Whose method is called: "log", "store" or "files". `place` names the log, a file's key, or a prefix of keys."""
    arguments: Any = tuple[()]
    answer: Any = None
    least: str = "viewer"
    """The minimum role in that log."""


CALLS: Final = {
    "exchange": Call("log", tuple[Outgoing | None, Lsn], tuple[ExchangeResult, float]),  # and `Log.flush_interval`
    "snapshot_head": Call("log", tuple[Lsn | None], tuple[int, bytes] | None),
    "blocks": Call("log", tuple[Names], Annotated[dict[str, bytes], Meta(max_length=AT_ONCE)]),
    "block_names": Call("log", answer=Annotated[set[str], _MANY]),
    "put_block": Call("log", tuple[Name, Annotated[bytes, Meta(max_length=_BLOCK)]], least="worker"),
    "put_snapshot_head": Call("log", tuple[Lsn, bytes], least="worker"),
    "doubtful_head": Call("log", tuple[Lsn, Lsn], Doubtful | None),
    "judge_snapshot": Call("log", tuple[Doubtful, bool]),
    "denied_snapshots": Call("log", answer=Annotated[list[tuple[int, str, list[str]]], _MANY]),
    "removed_up_to": Call("log", answer=int),
    "news": Call("log", tuple[Lsn, Annotated[float, Meta(ge=0, le=LONGEST_WAIT)]], bool),  # the seconds to wait
    "confirm": Call("log"),
    "destroy": Call("log", least="owner"),
    "erase": Call("log", least="owner"),
    "shared": Call("store", answer=Annotated[set[str], _MANY] | None),
    "beat": Call("store", tuple[Beat]),
    "beats": Call("store", tuple[Names], Annotated[dict[str, str], Meta(max_length=AT_ONCE)]),
    "remove_beat": Call("store", tuple[Name]),
    "hello": Call("store", answer=Facts),
    "keys": Call("files", answer=Annotated[list[str], _MANY]),
    "delete": Call("files", least="worker"),
    "put": Call("files", least="worker"),  # the file is the body of the request of `put`, and of the answer of `get`
    "get": Call("files"),
}


class StoreRequest(Struct, array_like=True, frozen=True):
    """One call of a peer."""

    call: str
    place: str = ""
    arguments: tuple[Any, ...] = ()

    @property
    def kind(self) -> Call:
        """The permitted call that this request makes."""
        return CALLS[self.call]

    @property
    def commit(self) -> Outgoing | None:
        """The commit to append, if this request is an exchange that appends one, or None."""
        outgoing: Outgoing | None = self.arguments[0] if self.call == "exchange" else None
        return outgoing

    @property
    def log(self) -> str | None:
        """The uuid of the study that this request concerns, or `CATALOG`; None if it concerns no log."""
        folder, _, _ = self.place.rpartition("/")  # a key that begins with `uuid` alone may be another study's
        return {"store": None, "log": self.place, "files": folder.partition("/")[0]}[self.kind.of]

    def on(self, store: Store) -> Any:
        """Carry this request out on a store, except for a file's bytes; raises the store's errors."""
        if self.call == "hello":
            return store.shared()  # a database answers this only for a token that is still valid
        if self.call in ("put", "get"):
            return None
        if self.kind.of == "files":
            return getattr(store.artifacts(), self.call)(self.place)
        if self.kind.of == "store":
            return getattr(store, self.call)(*self.arguments)
        if self.place == CATALOG and self.call in ("destroy", "erase"):
            raise Denied("the list of studies cannot be destroyed")
        log = store.catalog() if self.place == CATALOG else store.log(self.place)
        if self.call == "blocks":
            return _some_of(log, [*dict.fromkeys(self.arguments[0])])
        if self.call == "judge_snapshot":
            return log.judge_snapshot(self.arguments[0], same=self.arguments[1])
        if self.call == "news":
            changed = log.changed(self.arguments[0])
            return bool(log.exchange(None, self.arguments[0]).entries) if changed is None else changed
        result = getattr(log, self.call)(*self.arguments)
        return (result, log.flush_interval) if self.call == "exchange" else result


def _some_of(log: Log, names: list[str]) -> dict[str, bytes]:
    """Those of these blocks that exist, as many as fit into one answer."""
    found: dict[str, bytes] = {}
    while names and sum(map(len, found.values())) < LARGEST // 4:
        found |= log.blocks(names[:4])
        del names[:4]
    return found


class _Undecoded(Struct, array_like=True, frozen=True):
    call: str
    place: Annotated[str, Meta(max_length=1024)]
    arguments: msgspec.Raw


class _Answer(Struct, array_like=True, frozen=True):
    """The outcome of a request: a result, or an error."""

    result: msgspec.Raw = msgspec.Raw(b"\xc0")
    error: str = ""
    message: str = ""


encode: Final = msgspec.msgpack.Encoder().encode
_decode_request: Final = msgspec.msgpack.Decoder(_Undecoded).decode
_decode_answer: Final = msgspec.msgpack.Decoder(_Answer).decode
_arguments: Final = {name: msgspec.msgpack.Decoder(call.arguments) for name, call in CALLS.items()}
_results: Final = {name: msgspec.msgpack.Decoder(call.answer) for name, call in CALLS.items()}
_KINDS: Final[dict[str, type[Exception]]] = {**errors.BY_NAME, "KeyError": KeyError}


def decode_request(data: bytes) -> StoreRequest:
    """The request in these bytes.

    Raises:
        InvalidInput: the bytes are not a request that this version knows.

    """
    try:
        found = _decode_request(data)
        request = StoreRequest(found.call, found.place, _arguments[found.call].decode(found.arguments))
    except (msgspec.MsgspecError, RecursionError, KeyError) as error:
        raise InvalidInput(f"this server does not understand the request: {error}") from None
    if request.kind.of == "files" and not _KEY.fullmatch(request.place):
        raise InvalidInput("this is not a valid key of a file")
    commit = request.commit
    if commit is not None and (len(commit.payload) > codec.MAX_BYTES or not codec.intact(commit.payload)):
        raise InvalidInput("these bytes are not a commit")
    if commit is not None and not (_NONCE.fullmatch(commit.nonce) and _ABOUT.fullmatch(commit.about)):
        raise InvalidInput("a commit's nonce must be its writer and its number")  # not every store can store others
    return request


def answered(result: object) -> bytes:
    """The answer with this result."""
    return encode(_Answer(msgspec.Raw(encode(result))))


def refused(error: Exception) -> bytes:
    """The answer with this error, if a store may raise it; otherwise raises it."""
    name = next((one.__name__ for one in type(error).__mro__ if one.__name__ in _KINDS), None)
    if name is None:
        raise error
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return encode(_Answer(error=name, message=message))


def refusal(answer: bytes) -> tuple[str, str] | None:
    """(name of the error, message) of an answer with an error; None for an answer with a result."""
    found = _decode_answer(answer)
    return (found.error, foreign(found.message)) if found.error else None


def result_of(call: str, data: bytes) -> Any:
    """The result in an answer to this call; raises the error that it contains.

    Raises:
        StoreUnreachable: the bytes are not an answer to this call.

    """
    try:
        found = _decode_answer(data)
        if not found.error:
            return _results[call].decode(found.result)
        failure = _KINDS.get(found.error, StoreUnreachable)(foreign(found.message))
    except (msgspec.MsgspecError, RecursionError) as error:
        why = "Unless a proxy changes answers, the versions differ: install the same version on both sides"
        failure = StoreUnreachable(f"the server's answer to {call!r} cannot be read: {error}. {why}")
    raise failure


def encode_header(text: str) -> str:
    """A string in a form that is valid in a header: base64url without padding."""
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_header(text: str) -> str:
    """The encoded text; empty if it cannot be decoded."""
    with contextlib.suppress(ValueError):
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
    return ""
