"""The chain of sums by which two histories of one log are told apart.

The sum of a log after its commit n is a number of 42 bits that follows from the checksums of commits 1 to n, in their
order. Whoever gives a commit its lsn, the writer in a directory or bucket and the server's function in Postgres, stores
beside it the sum of the log *before* it. A reader computes the same sums from what it reads. Where the two differ, it
and the writer have read different commits: the log has two histories.

A log that was begun without sums has them all the same, since they follow from its commits.

In an object the sum is a trailing field of the commit's array, so that versions that do not know it read on:

    crc32 of the rest | msgpack [..., commit's fields, bin(12): crc32 of the commit without this field, sum]
"""

from __future__ import annotations

import zlib
from typing import Final

PRIME: Final = (1 << 42) - 11
"""Sums are below this; times BASE it fits into the 63 bits of Postgres' bigint."""
BASE: Final = 1_000_003
_MARK: Final = b"\xc4\x0c"  # msgpack: 12 bytes follow
_FIELD: Final = 14
_SHORTEST: Final = 4 + 1 + _FIELD
_ARRAY: Final = 0x90  # msgpack: an array of n elements, n up to 15, is 0x90 + n


def following(before: int, payload: bytes) -> int:
    """The sum of a log after this commit, which begins with its checksum; `before` is the sum before it."""
    return (before * BASE + int.from_bytes(payload[:4], "little")) % PRIME


def sum_at(lsn: int, chain: tuple[int, int]) -> int | None:
    """The sum of a log up to this lsn, if `chain`, an lsn and the sum up to it, tells of that one."""
    return chain[1] if chain[0] == lsn else None


def shown(total: int | None) -> str:
    """A sum as messages show it."""
    return "unknown" if total is None else f"{total:011x}"


def attach(payload: bytes, before: int | None) -> bytes:
    """The bytes to store for a commit, with the sum before it; bytes that are no array are stored as they are."""
    if before is None or len(payload) < 5 or not _ARRAY <= payload[4] < _ARRAY + 15:
        return payload
    body = b"%c%b%b%b%b" % (payload[4] + 1, payload[5:], _MARK, payload[:4], before.to_bytes(8, "little"))
    return zlib.crc32(body).to_bytes(4, "little") + body


def has_sum(stored: bytes) -> bool:
    """Whether these bytes were stored with a sum."""
    return stored[-_FIELD : 2 - _FIELD] == _MARK and len(stored) >= _SHORTEST and _ARRAY < stored[4] < _ARRAY + 16


def detach(stored: bytes) -> tuple[bytes, int | None]:
    """The commit in these bytes, and the sum before it; None if it was stored without."""
    if not has_sum(stored):
        return stored, None
    payload = b"%b%c%b" % (stored[-12:-8], stored[4] - 1, stored[5:-_FIELD])
    return payload, int.from_bytes(stored[-8:], "little")
