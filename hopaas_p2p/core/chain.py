"""The chain of sums that distinguishes two histories of one log.

The sum of a log after its commit n is a number of 42 bits that follows from the checksums of commits 1 to n, in their
order. The party that assigns a commit its lsn (the writer in a directory or bucket, the server's function in Postgres)
stores with it the sum of the log *before* it. A reader computes the same sums from what it reads. If the two differ,
the reader and the writer have read different commits: the log has two histories.

A log that was begun without sums has them nevertheless, since they follow from its commits.

In an object the sum is a trailing field of the commit's array, so that versions that do not know it can still read the
commit. Where a server offers the store to users, what that server vouches for about the commit comes before the sum:

    crc32 of the rest | msgpack [..., commit's fields, bin(12): crc32 of the commit without this field, sum]
    crc32 of the rest | msgpack [..., commit's fields, bin(n): stamp, bin(13): crc32 of the commit alone, sum, n]
"""

from __future__ import annotations

import zlib
from typing import Final

import msgspec

from hopaas_p2p.core.records import UNSTAMPED, Stamp

PRIME: Final = (1 << 42) - 11
"""Sums are below this; times BASE it fits into the 63 bits of Postgres' bigint."""
BASE: Final = 1_000_003
_MARK: Final = b"\xc4\x0c"  # msgpack: 12 bytes follow
_STAMPED: Final = b"\xc4\x0d"
_FIELD: Final = 14
_SHORTEST: Final = 4 + 1 + _FIELD
_ARRAY: Final = 0x90  # msgpack: an array of n elements, n up to 15, is 0x90 + n
_OTHER_ARRAYS: Final = b"\x9e\x9f\xdc\xdd"  # too long for two more fields, or with a separate length
_UNKNOWN: Final = (1 << 64) - 1  # in place of a sum
_stamps: Final = msgspec.msgpack.Decoder(tuple[str, str, int])


def following(before: int, payload: bytes) -> int:
    """The sum of a log after this commit, which begins with its checksum; `before` is the sum before it."""
    return (before * BASE + int.from_bytes(payload[:4], "little")) % PRIME


def sum_at(lsn: int, chain: tuple[int, int | None]) -> int | None:
    """The sum of a log up to this lsn, if `chain`, which is an lsn and the sum up to it, is about that lsn."""
    return chain[1] if chain[0] == lsn else None


def shown(total: int | None) -> str:
    """A sum as messages show it."""
    return "unknown" if total is None else f"{total:011x}"


def attach(payload: bytes, before: int | None, stamp: Stamp = UNSTAMPED) -> bytes:
    """The bytes to store for a commit, with the sum before it; bytes that are not an array are stored unchanged."""
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
    """Whether these bytes can be stored with a stamp, or are not bytes that a peer would accept as a commit."""
    return len(payload) >= 5 and payload[4] not in _OTHER_ARRAYS


def detach(stored: bytes) -> tuple[bytes, int | None, Stamp]:
    """The commit in these bytes, the sum before it, and what a server vouched for about it.

    The sum is None if it was stored without one, and the stamp `UNSTAMPED` if no server did. Bytes to which `attach`
    added nothing are returned themselves.
    """
    if len(stored) < _SHORTEST or not _ARRAY < stored[4] < _ARRAY + 16:
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
