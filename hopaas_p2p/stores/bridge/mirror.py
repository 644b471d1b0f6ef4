"""The mirror of a far log in a near one: the same entries under the same lsns, stamps included, several to a commit.

A near commit holds a piece of the far log. Pieces follow each other; two bridges may leave some that overlap, which
changes nothing, since both copied the same entries. The far lsn is what everybody counts by; where in the near log a
far lsn stands is known to this file only.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterable, Iterator
from typing import Final

from hopaas_p2p.errors import SleptThrough, StoreCorrupt
from hopaas_p2p.stores.base import SNAPSHOT_EVERY, Entry, Log, Outgoing
from hopaas_p2p.stores.bridge.frames import Kept, Piece, opened, seal
from hopaas_p2p.stores.directory.log import DirectoryLog

_PIECE: Final = 1 << 20  # bytes of entries in one piece, unless a single one is larger
_MARKS: Final = 4096  # places remembered


class Mirror:
    """One reader of one mirror, at far lsn `lsn`. A bridge appends through it, too."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.lsn = 0
        self._near = 0
        self._marks: list[tuple[int, int]] = []
        """(far, near): all up to this far lsn stands in the near log up to that one."""

    @property
    def begun(self) -> bool:
        """Whether a bridge has ever written here, as far as was read."""
        return self._near > 0

    def changed(self) -> bool | None:
        """Whether there is more, if that can be told without a round trip."""
        return self.log.changed(self._near) if self.begun else True

    def look_anew(self) -> None:
        """Before the next look: a network file system shows for seconds what it saw of a file that is kept open."""
        if isinstance(self.log, DirectoryLog):
            self.log.close()

    def read(self, since: int) -> list[Entry]:
        """The entries after `since` that are here.

        Raises:
            SleptThrough: the mirror begins later than that; join from its snapshot.
            StudyDeleted: it was here, and is gone.
            StoreCorrupt: it ends before `since`, which its caller has seen.

        """
        if since != self.lsn:
            self._go_to(since)
        entries = list(self._advance())
        if self.lsn < since:
            end, self.lsn = self.lsn, -1
            raise StoreCorrupt(f"the mirror ends at commit {end}, and a peer has seen commit {since}")
        return [entry for entry in entries if entry.lsn > since]

    def _go_to(self, since: int) -> None:
        place = bisect.bisect_right(self._marks, since, key=lambda mark: mark[0]) - 1
        self.lsn, self._near = self._marks[place] if place >= 0 else (0, 0)

    def _advance(self) -> Iterator[Entry]:
        more = True
        while more:
            receipt = self.log.exchange(None, self._near)
            yield from self._take(receipt.entries)
            more = receipt.more

    def _take(self, commits: Iterable[Entry]) -> Iterator[Entry]:
        for commit in commits:
            piece = opened(commit.payload, Piece)
            if piece is not None:
                if piece.first > self.lsn + 1:
                    raise SleptThrough
                for lsn, (payload, author, role, at) in enumerate(piece.entries, piece.first):
                    if lsn == self.lsn + 1:
                        self.lsn = lsn
                        yield Entry(lsn, payload, author, role, at)
            self._near = commit.lsn
            self._mark()

    def _mark(self) -> None:
        if self._marks and self._marks[-1][0] >= self.lsn:
            return
        self._marks.append((self.lsn, self._near))
        if len(self._marks) > _MARKS:
            del self._marks[1::2]

    # --- writing, by a bridge ---

    def append(self, entries: list[Entry]) -> list[Entry]:
        """Write far entries here, the next ones first: durable when this returns. Returns all that came to be here."""
        taken: list[Entry] = []
        for part in _cut([entry for entry in entries if entry.lsn > self.lsn]):
            if part[-1].lsn > self.lsn:
                taken += self._write(Piece(part[0].lsn, [(e.payload, e.author, e.role, e.at) for e in part]))
        return taken

    def begin(self) -> None:
        """Say that there is a mirror, though nothing is in it yet."""
        if not self.begun:
            self._write(Piece(self.lsn + 1, []))

    def jump(self, lsn: int, data: bytes) -> None:
        """Go on after a snapshot: what came before it cannot be had any more."""
        self.lsn = lsn
        self._write(Piece(lsn + 1, []))
        self._marks = [(lsn, self._near)]
        self.log.put_snapshot(self._near, seal(Kept(lsn, data)))

    def _write(self, piece: Piece) -> list[Entry]:
        payload = seal(piece)
        name = hashlib.blake2b(payload, digest_size=12).hexdigest()
        taken: list[Entry] = []
        written = False
        while not written:
            receipt = self.log.exchange(Outgoing(f"{piece.first}:{name}", payload), self._near)
            written = not receipt.more or any(commit.payload == payload for commit in receipt.entries)
            taken += self._take(receipt.entries)
        return taken

    # --- snapshots ---

    def newest_snapshot(self, *, before: int | None = None) -> tuple[int, bytes] | None:
        """(far lsn, bytes) of the newest snapshot here, below `before`; reading on from it is quick."""
        found = self.log.newest_snapshot()
        while found is not None:
            kept = opened(found[1], Kept)
            if kept is not None and (before is None or kept.lsn < before):
                self._know(kept.lsn, found[0])
                return kept.lsn, kept.data
            found = self.log.newest_snapshot(before=found[0])
        return None

    def _know(self, lsn: int, near: int) -> None:
        place = bisect.bisect_left(self._marks, lsn, key=lambda mark: mark[0])
        if place == len(self._marks) or self._marks[place][0] != lsn:
            self._marks.insert(place, (lsn, near))

    def put_snapshot(self, lsn: int, data: bytes) -> None:
        """Keep a snapshot of the far log, unless there is a newer one."""
        if self.lsn < lsn:
            self.read(self.lsn)
        there = self.newest_snapshot()
        place = bisect.bisect_right(self._marks, lsn, key=lambda mark: mark[0]) - 1
        if place >= 0 and (there is None or there[0] <= lsn):
            self.log.put_snapshot(self._marks[place][1], seal(Kept(lsn, data)))


def _cut(entries: list[Entry]) -> Iterator[list[Entry]]:
    """Pieces that are not too large, and end where a snapshot is due."""
    part: list[Entry] = []
    size = 0
    for entry in entries:
        if part and size + len(entry.payload) > _PIECE:
            yield part
            part, size = [], 0
        part.append(entry)
        size += len(entry.payload)
        if entry.lsn % SNAPSHOT_EVERY == 0:
            yield part
            part, size = [], 0
    if part:
        yield part
