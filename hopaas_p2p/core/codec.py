"""The format on the wire and in a store: a commit as bytes, and the sum of the log before it.

A commit is a checksum followed by msgpack. Any bytes decode to a Commit or to Garbage.

    crc32 of the rest (4 bytes, little-endian) | msgpack [format, writer, seq, owner or nil, at, [record, ...]]

A record is `[kind, field, ...]` as in `records.py`. A record that this version does not know, or whose fields have
wrong types, becomes `Opaque` and affects no other record, so a bad record never stops a peer.

The chain of sums distinguishes two histories of one log. The sum of a log after its commit n is a number of 42 bits
computed from the checksums of commits 1 to n, in their order. The sum of the log *before* a commit is stored with the
commit, by the writer in a directory or bucket, and by the server's function in Postgres. A reader computes the same
sums from what it reads. If a stored sum differs from the computed one, the reader and the writer have read different
commits, so the log has two histories. Sums can be computed for a log that began without them, too.

In a file or an object, the sum is a trailing field of the commit's array, so that versions that do not know it can
still read the commit. If the store is served to users, the server's stamp on the commit comes before the sum:

    crc32 of the rest | msgpack [the commit's fields, bin(12): crc32 of the commit without this field, sum]
    crc32 of the rest | msgpack [the commit's fields, bin(n): stamp, bin(13): crc32 of the commit alone, sum, n]
"""

from __future__ import annotations

import functools
import re
import zlib
from typing import Annotated, Any, Final, Union, get_args, get_origin

import msgspec

from hopaas_p2p.core.records import (
    FORMAT,
    LAST_TIME,
    LONGEST_PEER,
    UNSTAMPED,
    Commit,
    Opaque,
    Record,
    Stamp,
    TrialCreate,
    TrialFinish,
    TrialSet,
    TrialState,
)
from hopaas_p2p.errors import InvalidInput

MAX_BYTES: Final = 4 << 20
"""A larger commit is neither written nor read, because it would stall every peer of the study."""
MAX_RECORDS: Final = 10_000
_SHORTEST: Final = 8
"""The fewest bytes per record, on average, because a verdict on each is kept. Every real record is longer."""


_Few = msgspec.Meta(max_length=MAX_RECORDS)


class _Wire(msgspec.Struct, array_like=True, frozen=True):
    format: int
    writer: str
    seq: int
    owner: str | None
    at: int
    records: Annotated[list[Record], _Few]


class _LooseWire(_Wire, array_like=True, frozen=True):
    records: Annotated[list[msgspec.Raw], _Few]  # type: ignore[assignment]


class _Head(msgspec.Struct, array_like=True, frozen=True):
    format: int
    writer: str
    seq: int = 0


class Garbage(msgspec.Struct, frozen=True):
    """Bytes in a commit's place that are not a commit."""

    why: str


_encoder: Final = msgspec.msgpack.Encoder()
_strict: Final = msgspec.msgpack.Decoder(_Wire)
_loose: Final = msgspec.msgpack.Decoder(_LooseWire)
_head: Final = msgspec.msgpack.Decoder(_Head)
_record: Final[msgspec.msgpack.Decoder[Record]] = msgspec.msgpack.Decoder(Record)
_UNREADABLE: Final = (msgspec.MsgspecError, ValueError, OverflowError)
_DEEPEST: Final = 200
"""The most levels of arrays and maps in a commit. How many more can be decoded depends on Python's version."""
_LONGEST_WALK: Final = 100_000
"""The most steps of `_too_deep` through fields that this version does not know: a tenth of a second."""
_NESTING: Final = bytes([*range(0x81, 0x90), *range(0x91, 0xA0), *range(0xDC, 0xE0)])
"""First bytes of arrays and maps, except empty ones."""
_RUN: Final = re.compile(rb"[\0-\x80\x90\xa0\xc0-\xc3\xe0-\xff]*")  # values of one byte
_SIZES: Final = (4, 8, 1, 2, 4, 8, 1, 2, 4, 8, 2, 3, 5, 9, 17)  # numbers and extensions, from 0xCA to 0xD8


def encode(commit: Commit) -> bytes:
    """The bytes of a commit.

    A peer applies its own commits without decoding, and must not know more than other peers, so the bytes are decoded
    once to check them. This is omitted for the most common records, whose callers must pass fields of the declared
    types.

    Raises:
        InvalidInput: the commit has more than 4 MiB or 10,000 records, or a value cannot be encoded, such as a number
            of more than 64 bits, or a checked field has another type than the declared one. Store big data as an
            artifact instead.

    """
    if len(commit.records) > MAX_RECORDS:
        raise InvalidInput(f"{len(commit.records)} records in one commit; at most {MAX_RECORDS}")
    owner = None if commit.owner == commit.writer else commit.owner
    try:
        body = _encoder.encode([FORMAT, commit.writer, commit.seq, owner, commit.at, commit.records])
    except (OverflowError, TypeError, ValueError) as error:  # such as a number of 70 bits, or half a surrogate pair
        raise InvalidInput(f"this cannot be written to a log: {error}") from None
    if len(body) + 4 > MAX_BYTES:
        raise InvalidInput(f"{len(body):,} bytes in one commit; at most {MAX_BYTES:,}. Store big data as an artifact.")
    for record in commit.records:
        kind: Any = record.__class__
        if kind is TrialSet or (kind is TrialFinish and record.reason is None):  # type: ignore[union-attr]
            continue  # most records are these or asks; decoding one takes a hundredth of a trial's time
        if kind is TrialCreate and record.state is TrialState.RUNNING:  # type: ignore[union-attr]
            continue
        try:
            _strict.decode(body)
        except _UNREADABLE as error:
            raise InvalidInput(f"this cannot be written to a log: {error}") from None
        break
    return zlib.crc32(body).to_bytes(4, "little") + body


def intact(payload: bytes) -> bool:
    """Whether the checksum matches, which shows that the bytes were not damaged."""
    return len(payload) > 4 and zlib.crc32(memoryview(payload)[4:]) == int.from_bytes(payload[:4], "little")


def writer_of(payload: bytes) -> str:
    """The writer of this commit, read without decoding its records; empty if the bytes are not a commit."""
    return nonce_of(payload).rpartition(":")[0]


def nonce_of(payload: bytes) -> str:
    """The nonce under which this commit is sent, `writer:seq`; empty if the bytes are not a commit."""
    try:
        head = _head.decode(memoryview(payload)[4:])
    except (*_UNREADABLE, RecursionError):
        return ""
    return f"{head.writer}:{head.seq}"


def decode(payload: bytes) -> Commit | Garbage:
    """Decode a commit. Never raises on content.

    A commit in a format that this version does not know is garbage too, because any peer may write such a commit, which
    must not stop other peers. Whether a store needs a newer version is recorded where only the store's owner writes, in
    `meta.json` or the schema's version.
    """
    if len(payload) > MAX_BYTES:
        return Garbage(f"{len(payload):,} bytes, more than a commit may have")
    if not intact(payload):
        return Garbage("checksum does not match")
    if _too_deep(payload):
        return Garbage("nested too deeply")
    body = memoryview(payload)[4:]
    try:
        wire, strict = _strict.decode(body), True
    except _UNREADABLE:  # record by record, to read as much as possible
        try:
            wire, strict = _loose.decode(body), False
        except _UNREADABLE:
            return Garbage("not a commit")
    if wire.format != FORMAT:
        return Garbage(f"format {wire.format}, which this version does not know")
    owner = wire.owner or wire.writer
    if not (
        _SHORTEST * len(wire.records) <= len(body)
        and 0 < len(wire.writer) <= LONGEST_PEER
        and wire.owner != ""
        and len(owner) <= LONGEST_PEER
        and 0 < wire.seq < 1 << 53
        and -LAST_TIME < wire.at < LAST_TIME
    ):
        return Garbage("header out of range")
    records = wire.records if strict else [_record_or_opaque(raw) for raw in wire.records]  # type: ignore[arg-type]
    return Commit(wire.writer, wire.seq, owner, wire.at, tuple(records))


@functools.cache
def _closed(kind: Any) -> Any:
    """The same type, except that decoding a struct with unknown fields is an error."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        fields = [
            (one.name, _closed(one.type), msgspec.field(default=one.default, default_factory=one.default_factory))  # type: ignore[call-overload]
            for one in msgspec.structs.fields(kind)
        ]
        tag, like = kind.__struct_config__.tag, kind.__struct_config__.array_like
        return msgspec.defstruct(kind.__name__, fields, tag=tag, array_like=like, forbid_unknown_fields=True)
    inside = tuple(map(_closed, get_args(kind)))
    return (Union if isinstance(kind, type(int | str)) else get_origin(kind))[inside] if inside else kind


def _too_deep(payload: bytes) -> bool:
    """Whether arrays and maps are nested deeper than `_DEEPEST` in this commit, including fields that this version does
    not know; also True if such fields are too long to tell.
    """
    if len(payload) - len(payload.translate(None, _NESTING)) <= _DEEPEST:
        return False
    try:
        msgspec.msgpack.decode(memoryview(payload)[4:], type=_closed(_Wire))
    except _UNREADABLE:
        at, left = 4, [1]  # how many values are still to come in each open array or map
    else:
        return False  # this version knows all fields, and none of them is deep
    for _ in range(_LONGEST_WALK):
        if not left or at >= len(payload) or len(left) > _DEEPEST:
            return len(left) > _DEEPEST
        run = _RUN.match(payload, at, at + left[-1]).end() - at  # type: ignore[union-attr]  # it matches nothing, too
        at, left[-1] = at + run, left[-1] - run - 1
        if left[-1] < 0 or at == len(payload):
            left.pop()
            continue
        first, at = payload[at], at + 1
        if first >= 0xDC:
            width = 2 << (first & 1)
            left.append(int.from_bytes(payload[at : at + width]) << (first >= 0xDE))
            at += width
        elif first < 0xA0:
            left.append((first & 15) << (first < 0x90))
        elif first < 0xC0:
            at += first & 31
        elif 0xCA <= first < 0xD9:
            at += _SIZES[first - 0xCA]
        else:  # a string, bytes or an extension, after its length
            width = 1 << (first - 0xC4) % 3
            at += width + int.from_bytes(payload[at : at + width]) + (0xC7 <= first < 0xCA)
    return True


def _record_or_opaque(raw: msgspec.Raw) -> Record | Opaque:
    try:
        return _record.decode(raw)
    except _UNREADABLE:
        return Opaque(bytes(raw))


# --- the chain of sums ---

PRIME: Final = (1 << 42) - 11
"""Sums are below this number, whose product with BASE fits into the 63 bits of Postgres' bigint."""
BASE: Final = 1_000_003
_MARK: Final = b"\xc4\x0c"  # msgpack: 12 bytes follow
_STAMPED: Final = b"\xc4\x0d"
_FIELD: Final = 14
_SHORTEST_STORED: Final = 4 + 1 + _FIELD
_ARRAY: Final = 0x90  # msgpack: an array of n elements, n up to 15, is 0x90 + n
_OTHER_ARRAYS: Final = b"\x9e\x9f\xdc\xdd"  # too long for two more fields, or with a separate length
_UNKNOWN: Final = (1 << 64) - 1  # in place of a sum
_stamps: Final = msgspec.msgpack.Decoder(tuple[str, str, int])


def following(before: int, payload: bytes) -> int:
    """The sum of a log after this commit, which begins with its checksum; `before` is the sum before it."""
    return (before * BASE + int.from_bytes(payload[:4], "little")) % PRIME


def shown(total: int | None) -> str:
    """A sum as messages show it."""
    return "unknown" if total is None else f"{total:011x}"


def attach(payload: bytes, before: int | None, stamp: Stamp = UNSTAMPED) -> bytes:
    """The bytes to store for a commit: with the sum before it, if that is known, and with the stamp, if there is one.

    Bytes that do not begin with a short array are stored unchanged.
    """
    if len(payload) < 5 or not _ARRAY <= payload[4] < _ARRAY + 14:
        return payload
    if stamp != UNSTAMPED:
        said = msgspec.msgpack.encode((stamp.author, stamp.role, stamp.at))
        total = (_UNKNOWN if before is None else before).to_bytes(8, "little")
        parts = (payload[4] + 2, payload[5:], len(said), said, _STAMPED, payload[:4], total, len(said))
        body = b"%c%b\xc4%c%b%b%b%b%c" % parts
    elif before is None:
        return payload
    else:
        body = b"%c%b%b%b%b" % (payload[4] + 1, payload[5:], _MARK, payload[:4], before.to_bytes(8, "little"))
    return zlib.crc32(body).to_bytes(4, "little") + body


def takes_stamp(payload: bytes) -> bool:
    """Whether `attach` can add a stamp to these bytes, or need not, because no peer would read them as a commit."""
    return len(payload) >= 5 and payload[4] not in _OTHER_ARRAYS


def detach(stored: bytes) -> tuple[bytes, int | None, Stamp]:
    """The commit in these bytes, the sum before it, and what a server vouched for about it.

    The sum is None if the commit was stored without one. The stamp is `UNSTAMPED` if no server vouched for the commit.
    Bytes to which `attach` added nothing are returned unchanged.
    """
    if len(stored) < _SHORTEST_STORED or not _ARRAY < stored[4] < _ARRAY + 16:
        return stored, None, UNSTAMPED
    added, fields, end, stamp = _FIELD, 1, len(stored), UNSTAMPED
    if stored[-_FIELD : 2 - _FIELD] != _MARK:
        added, fields, end = _FIELD + 3 + stored[-1], 2, end - 1
        if stored[-_FIELD - 1 : 1 - _FIELD] != _STAMPED or stored[-added:][:2] != b"\xc4%c" % stored[-1]:
            return stored, None, UNSTAMPED
        try:
            stamp = Stamp(*_stamps.decode(stored[2 - added : -_FIELD - 1]))
        except (msgspec.MsgspecError, ValueError):
            stamp = UNSTAMPED
    payload = b"%b%c%b" % (stored[end - 12 : end - 8], stored[4] - fields, stored[5:-added])
    total = int.from_bytes(stored[end - 8 : end], "little")
    return payload, None if total == _UNKNOWN else total, stamp
