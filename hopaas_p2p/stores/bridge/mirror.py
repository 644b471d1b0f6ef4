"""The mirror of a far log in a near one: the same entries under the same lsns, with their stamps.

A near commit holds a segment of the far log: several entries. Segments follow each other; those of two bridges may
overlap, which changes nothing, since both copied the same entries. Everybody counts by far lsns; only this file knows
where in the near log a far lsn is.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from hopaas_p2p.core.chain import following
from hopaas_p2p.core.records import Stamp
from hopaas_p2p.errors import BehindRetention, StoreCorrupt
from hopaas_p2p.stores.base import SNAPSHOT_EVERY, Entry, Log, Outgoing, append, read_all
from hopaas_p2p.stores.bridge.messages import MirroredSnapshot, Segment, seal, unseal

_SEGMENT: Final = 1 << 20  # bytes of entries in one segment, unless a single one is larger
_MARKS: Final = 4096  # positions remembered


class Mirror:
    """One reader of one mirror, at far lsn `lsn`. A bridge also appends through it."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.lsn = 0
        self.chain: int | None = None
        """The sum of the far log up to `lsn`, if its last entry says."""
        self._near = 0
        self._marks: list[tuple[int, int]] = []
        """(far, near), ascending: everything up to this far lsn is in the near log up to that one."""

    @property
    def begun(self) -> bool:
        """Whether a bridge has ever written here, as far as was read."""
        return self._near > 0

    def changed(self) -> bool | None:
        """Whether there is more, if that can be told without a round trip."""
        return self.log.changed(self._near) if self.begun else True

    def sum_at(self, lsn: int) -> int | None:
        """The sum of the far log up to this lsn, if that is where this reader is."""
        return self.chain if lsn == self.lsn else None

    def read(self, since: int) -> list[Entry]:
        """The entries after `since` that are here.

        Raises:
            BehindRetention: the mirror begins later than that; join from its snapshot.
            StudyDeleted: it was here, and is gone.
            StoreCorrupt: it ends before `since`, which its caller has seen.

        """
        if since != self.lsn:
            self.lsn, self._near = self._position(since)
            self.chain = None
        entries = list(self._apply(read_all(self.log, self._near)))
        if self.lsn < since:
            end, self.lsn = self.lsn, -1
            raise StoreCorrupt(f"the mirror ends at commit {end}, and a peer has seen commit {since}")
        return [entry for entry in entries if entry.lsn > since]

    def _position(self, lsn: int) -> tuple[int, int]:
        """The last known (far, near) position that is not behind this far lsn."""
        index = bisect.bisect_right(self._marks, lsn, key=lambda mark: mark[0])
        return self._marks[index - 1] if index else (0, 0)

    def _apply(self, commits: Iterable[Entry]) -> Iterator[Entry]:
        """Advance over these near commits; the far entries that are new."""
        for commit in commits:
            segment = unseal(commit.payload, Segment)
            if segment is not None:
                if segment.first > self.lsn + 1:
                    raise BehindRetention
                entries = itertools.zip_longest(segment.entries, segment.sums[: len(segment.entries)])
                for lsn, ((payload, author, role, at), before) in enumerate(entries, segment.first):
                    if lsn == self.lsn + 1:
                        self.lsn = lsn
                        self.chain = None if before is None else following(before, payload)
                        yield Entry(lsn, payload, Stamp(author, role, at), before)
            self._near = commit.lsn
            if not self._marks or self._marks[-1][0] < self.lsn:
                self._marks.append((self.lsn, self._near))
                if len(self._marks) > _MARKS:
                    del self._marks[1::2]

    # --- writing, by a bridge ---

    def append(self, entries: list[Entry]) -> list[Entry]:
        """Write those of these far entries that come next: durable when this returns. Returns all that are new here."""
        new: list[Entry] = []
        for part in _segments([entry for entry in entries if entry.lsn > self.lsn]):
            if part[-1].lsn > self.lsn:
                stamped = [(one.payload, *msgspec.structs.astuple(one.stamp)) for one in part]
                new += self._write(Segment(part[0].lsn, stamped, [one.before for one in part]))
        return new

    def begin(self) -> None:
        """Mark the mirror as begun, even if the far log is empty."""
        if not self.begun:
            self._write(Segment(self.lsn + 1, []))

    def skip_to(self, lsn: int, data: bytes) -> None:
        """Continue after a snapshot, because what came before it was removed.

        The snapshot comes before the gap that it fills: a bridge may die in between, and readers cannot pass a gap
        without one.
        """
        self.log.put_snapshot(self._near, seal(MirroredSnapshot(lsn, data)))
        lsn, _ = self.newest_snapshot() or (lsn, data)  # another bridge may have put one there as well
        self.lsn, self._near, self.chain = lsn, self._position(lsn)[1], None
        self._write(Segment(lsn + 1, []))

    def _write(self, segment: Segment) -> list[Entry]:
        payload = seal(segment)
        name = hashlib.blake2b(payload, digest_size=12).hexdigest()
        return list(self._apply(append(self.log, Outgoing(f"{segment.first}:{name}", payload), self._near)))

    # --- snapshots ---

    def newest_snapshot(self, *, before: int | None = None) -> tuple[int, bytes] | None:
        """(far lsn, bytes) of the newest snapshot here, below `before`; reading on from it is quick."""
        found = self.log.newest_snapshot()
        while found is not None:
            near, data = found
            snapshot = unseal(data, MirroredSnapshot)
            if snapshot is not None and (before is None or snapshot.lsn < before):
                if self._position(snapshot.lsn)[0] != snapshot.lsn:
                    bisect.insort(self._marks, (snapshot.lsn, near))
                return snapshot.lsn, snapshot.data
            found = self.log.newest_snapshot(before=near)
        return None

    def put_snapshot(self, lsn: int, data: bytes) -> None:
        """Keep a snapshot of the far log, unless there is a newer one."""
        if self.lsn < lsn:
            self.read(self.lsn)
        newest = self.newest_snapshot()
        near = self._position(lsn)[1]
        if near and (newest is None or newest[0] <= lsn):
            self.log.put_snapshot(near, seal(MirroredSnapshot(lsn, data)))


def _segments(entries: list[Entry]) -> Iterator[list[Entry]]:
    """Parts that are not too large, and end where a snapshot is due."""
    part: list[Entry] = []
    size = 0
    for entry in entries:
        if part and size + len(entry.payload) > _SEGMENT:
            yield part
            part, size = [], 0
        part.append(entry)
        size += len(entry.payload)
        if entry.lsn % SNAPSHOT_EVERY == 0:
            yield part
            part, size = [], 0
    if part:
        yield part
