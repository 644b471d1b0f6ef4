"""Copies of earlier commits after a commit's own bytes, so that a reader that is far behind reads few objects.

In a bucket, the object of a commit may also hold the commits before it:

    the commit, with its sum | msgpack [sum before the first copy, [copy, ...]] | tail

    tail: length of the commit (4 bytes) | crc32 of all before (4 bytes), both little-endian | MAGIC

Copies are the commits as their writers encoded them, oldest first, without a gap up to the commit itself. Each writer
among the last 32 commits has read at least up to its own last commit, so the copies begin after the oldest of these.
In a log with one writer, objects carry no copies. An object without a tail is a single commit.

The object under a commit's own lsn remains authoritative. A copy is trusted because the sums of the copies lead from
the sum that the reader knows to the one that the commit carries (`core.codec`). These sums do not protect against
forged copies, but every peer also compares the copies that it reads with the commits that it has read itself.
"""

from __future__ import annotations

import contextlib
import zlib
from collections import deque
from typing import Final, NamedTuple

import msgspec

from hopaas_p2p.core import codec
from hopaas_p2p.errors import BrokenChain
from hopaas_p2p.stores.base import Entry

MOST: Final = 32
"""The most copies in an object."""
MOST_BYTES: Final = 64 << 10
"""The most bytes of copies in an object."""
OVERHEAD: Final = MOST_BYTES + 1024
"""The most bytes by which copies enlarge an object."""
MAGIC: Final = b"\x00carried"
_TAIL: Final = 16
_encoder: Final = msgspec.msgpack.Encoder()
_copies: Final = msgspec.msgpack.Decoder(tuple[int, list[bytes]])


class Opened(NamedTuple):
    """An object of a log, split into its parts."""

    stored: bytes
    """The commit as an object without copies would hold it."""
    copies: tuple[bytes, ...] = ()
    """The commits before it, oldest first."""
    before: int = 0
    """The sum of the log before the first copy."""
    sound: bool = True
    """Whether the object is as its writer left it, according to its checksum."""


class _Seen(NamedTuple):
    lsn: int
    payload: bytes
    before: int


def opened(data: bytes) -> Opened:
    """The commit and the copies in these bytes. Bytes that do not have our format count as the commit's own."""
    if not data.endswith(MAGIC) or len(data) < _TAIL or codec.intact(data):
        return Opened(data, sound=codec.intact(data))
    length = int.from_bytes(data[-16:-12], "little")
    stored, copies = data[:length], data[length:-_TAIL]
    if zlib.crc32(memoryview(data)[:-12]) == int.from_bytes(data[-12:-8], "little") and codec.intact(stored):
        with contextlib.suppress(msgspec.MsgspecError, ValueError):
            before, found = _copies.decode(copies)
            if 0 <= before < codec.PRIME and len(found) <= MOST:
                return Opened(stored, tuple(found), before)
    return Opened(data, sound=False)


def sealed(stored: bytes, before: int, copies: list[bytes]) -> bytes:
    """The object of a commit that carries these copies; `before` is the sum before the first one."""
    body = b"%b%b%b" % (stored, _encoder.encode((before, copies)), len(stored).to_bytes(4, "little"))
    return b"%b%b%b" % (body, zlib.crc32(body).to_bytes(4, "little"), MAGIC)


class PiggybackedCommits:
    """The last commits that one handle on a log has read or written."""

    def __init__(self) -> None:
        self._seen: deque[_Seen] = deque(maxlen=MOST)

    def saw(self, lsn: int, payload: bytes, before: int | None) -> None:
        """Record that this commit, with this sum before it, was read or written."""
        if len(payload) > MOST_BYTES:
            before = None
        if before is None or (self._seen and self._seen[-1].lsn != lsn - 1):
            self._seen.clear()
        if before is not None:
            self._seen.append(_Seen(lsn, payload, before))

    @property
    def shared(self) -> bool:
        """Whether these commits are from several writers, so that the next commit carries some of them."""
        return len({codec.writer_of(one.payload) for one in self._seen}) > 1

    def load(self, lsn: int, stored: bytes, before: int | None) -> bytes:
        """The object of a commit to be written at this lsn, with the copies that others probably lack."""
        last = self._seen[-1] if self._seen and codec.detach(stored)[0] is not stored else None
        if last is None or last.lsn != lsn - 1 or codec.following(last.before, last.payload) != before:
            return stored
        latest = {codec.writer_of(one.payload): one.lsn for one in self._seen}
        found: list[_Seen] = []
        size = 0
        for one in reversed(self._seen):
            size += len(one.payload) + 5
            if one.lsn <= min(latest.values()) or size > MOST_BYTES or not codec.intact(one.payload):
                break
            found.append(one)
        return sealed(stored, found[-1].before, [one.payload for one in found[::-1]]) if found else stored

    def copies(self, lsn: int, object_: Opened) -> list[Entry]:
        """The copies in the object of this lsn.

        Raises:
            BrokenChain: the copies do not lead to the commit, or differ from what this handle has read.

        """
        mine = {one.lsn: one for one in self._seen}
        total = object_.before
        found = []
        for place, payload in enumerate(object_.copies, lsn - len(object_.copies)):
            known = mine.get(place)
            if known is not None and known.payload != payload:
                read = codec.shown(codec.following(known.before, known.payload))
                there = codec.shown(codec.following(total, payload))
                what = f"differs from the one that this peer has read: it leads to the sum {there} instead of {read}"
                raise BrokenChain(_said(lsn, place, what))
            if place < 1 or not codec.intact(payload):
                raise BrokenChain(_said(lsn, place, "is not a commit"))
            found.append(Entry(place, payload, before=total))
            total = codec.following(total, payload)
        _, before, _ = codec.detach(object_.stored)
        if object_.copies and before != total:
            read, there = codec.shown(total), codec.shown(before)
            raise BrokenChain(_said(lsn, lsn - 1, f"leads to the sum {read}, but the commit itself follows {there}"))
        return found


def _said(lsn: int, place: int, what: str) -> str:
    return (
        f"this log has two histories: commit {lsn} carries copies of those before it, and the copy of commit {place} "
        f"{what}. Nothing was changed. Run: hopaas-p2p doctor URL"
    )
