"""A log in a bucket: one object per commit, which may carry copies of the commits before it.

    study/{uuid}/log/{lsn:020d}    a commit, and perhaps copies of those before it; see `carried`

A PUT is slow and costs as much as twelve GETs. So peers pace themselves (`TurnScheduler`), read before they write if
others have probably written, and read only some of the objects (`search`). Each process checks its own commits again
later (`confirmation`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from msgspec.structs import astuple

from hopaas_p2p.core import codec
from hopaas_p2p.core.records import UNSTAMPED, Stamp
from hopaas_p2p.errors import BrokenChain
from hopaas_p2p.runtime.logs import LOG
from hopaas_p2p.runtime.parallel import each
from hopaas_p2p.stores.base import Entry, Outgoing
from hopaas_p2p.stores.objects.carried import MOST, OVERHEAD, PiggybackedCommits, opened
from hopaas_p2p.stores.objects.contract import LARGEST, Found, answered, lsn_of, numbered
from hopaas_p2p.stores.objects.log import BEHIND, RECEIPT, WriteOnceLog
from hopaas_p2p.stores.objects.store import ObjectBackedStore
from hopaas_p2p.stores.s3.bucket import Bucket
from hopaas_p2p.stores.s3.confirmation import Confirmation
from hopaas_p2p.stores.s3.scheduler import TurnScheduler
from hopaas_p2p.stores.s3.search import WIDEST

_CATALOG: Final = 2 * WIDEST - 1
"""If the catalog has more commits than this, which take five windows of GETs, its snapshot is read instead."""


class BucketLog(WriteOnceLog[Bucket]):
    """A log in a bucket; see the module. Used by one thread at a time."""

    names = "log/{lsn:020d}"
    carries = True
    rate_limited = True
    begins_anywhere = True
    limit = LARGEST + OVERHEAD
    asleep = 600.0
    scatter = MOST

    def __init__(self, store: ObjectBackedStore[Bucket], root: str) -> None:
        super().__init__(store, root, TurnScheduler())
        self.scheduler: TurnScheduler
        self._piggyback = PiggybackedCommits()
        self._modified = 0.0
        """When the server accepted the object of the last commit read."""
        self._hole = 0
        """The lsn of the last hole that was warned about."""
        self._confirmation = Confirmation(self)

    def confirm(self) -> None:
        while self._confirmation.check(ending=True):
            pass

    def unconfirmed(self) -> list[int]:
        return self._confirmation.due

    def _enter(self, *, writes: bool) -> None:
        super()._enter(writes=writes)  # first, because a missing commit is put back on the same condition
        self._confirmation.check()  # now, because a request between a read and the next write causes collisions

    def changed(self, since: int) -> bool | None:
        return True if since != self._head else None

    # --- reading ---

    def _look(self, since: int, deadline: float, *, certain: bool) -> tuple[list[Entry], bool]:
        return super()._look(since, deadline, certain=True)  # no cache in between

    def _read_on(self, since: int, entries: list[Entry], deadline: float, *, certain: bool) -> bool:
        search = self.scheduler.search(time.monotonic(), behind=max(self._seen - since, 0))
        known, size, hole = since, 0, 0
        while offsets := search.following():
            lsns = [since + offset for offset in offsets]
            window = self._at(lsns, deadline)
            for place, (lsn, one) in enumerate(zip(lsns, window, strict=True)):
                beyond = any(window[place:])
                found = self._get(lsn, deadline) if one is None and beyond else one  # it was free at the first request
                pieces = [] if found is None else self._taken_apart(lsn, found)
                commits, missing = self._completed(known, pieces, deadline) if pieces else ([], lsn)
                if missing or found is None:
                    hole = missing if beyond else hole
                    search.free(missing - since)
                    break
                search.found(lsn - since, carries=len(pieces) - 1)
                entries += self._noted(commits, found.modified)
                size += sum(len(commit.payload) for commit in commits)
                enough = self.root == "studies/" and not since and len(entries) >= _CATALOG
                if enough or size >= RECEIPT or commits[-1].lsn < lsn:
                    return True
                known = lsn
        if since + len(entries) < self._seen:  # another caller has read commits that this one does not find
            self._has_beginning = False
            if since:
                self.history.check_retained(since)
        if hole > since + len(entries):
            self._read_up_to_hole(since + len(entries) + 1)
        if not since and not entries:
            self._check_beginning(deadline)
        self._seen = since + len(entries)
        return False

    def _completed(self, known: int, pieces: list[Entry], deadline: float) -> tuple[list[Entry], int]:
        """The commits after `known` up to the last of these pieces, and the lsn of a hole among them, or 0.

        If there are too many to hold, only the first of them are returned.

        Raises:
            BrokenChain: two objects differ about a commit.

        """
        top, step = pieces[-1].lsn, len(pieces)
        found = {piece.lsn: piece for piece in pieces if piece.lsn > known}
        while missing := [lsn for lsn in range(known + 1, top) if lsn not in found]:
            lsns = sorted({*missing[step - 1 :: step], missing[-1]})[:WIDEST]
            if sum(len(piece.payload) for piece in found.values()) > RECEIPT:
                if missing[0] > known + 1:
                    return [found[lsn] for lsn in range(known + 1, missing[0])], 0
                lsns = missing[:1]
            for lsn, one in zip(lsns, self._at(lsns, deadline), strict=True):
                there = self._get(lsn, deadline) if one is None else one
                if there is None:
                    return [], lsn
                for piece in self._taken_apart(lsn, there):
                    if piece.lsn > known and found.setdefault(piece.lsn, piece).payload != piece.payload:
                        raise BrokenChain(
                            f"this log has two histories: commit {lsn} and a later one differ about commit "
                            f"{piece.lsn}. Nothing was changed. Run: hopaas-p2p doctor URL"
                        )
        return [found[lsn] for lsn in range(known + 1, top + 1)], 0

    def _at(self, lsns: Sequence[int], deadline: float) -> list[Found | None]:
        """The objects of these lsns."""
        began = time.monotonic()
        found = self.objects.get_many([self.key(lsn) for lsn in lsns], limit=self.limit)
        window = [self._resolved(lsn, one, deadline) for lsn, one in zip(lsns, found, strict=True)]
        if len(lsns) == 1:
            self.scheduler.looked(time.monotonic() - began)
        return window

    def _entry(self, lsn: int, found: Found, *, mine: bytes | None = None) -> Entry:
        return self._noted(self._taken_apart(lsn, found)[-1:], found.modified, mine=mine)[0]

    def _taken_apart(self, lsn: int, found: Found) -> list[Entry]:
        """The commits in this object, its own last. Raises StudyDeleted for a tombstone, and BrokenChain."""
        self._check_tombstone(found.data)
        there = opened(found.data)
        payload, before, stamp = codec.detach(there.stored)
        return [*self._piggyback.copies(lsn, there), Entry(lsn, payload, stamp, before)]

    def _noted(self, entries: list[Entry], last: float, *, mine: bytes | None = None) -> list[Entry]:
        """Record consecutive commits that were read, as if they had been written at equal intervals up to `last`."""
        first, seen = self._modified or last, self._seen
        for place, (lsn, payload, stamp, before) in enumerate(map(astuple, entries), 1):
            read, total = self.history.chain
            known = before if before is not None or read != lsn - 1 else total
            self.history.follow(lsn, payload, before)
            if lsn <= seen:  # another caller has recorded it
                continue
            if payload != mine:
                self.scheduler.saw(payload, first + place / len(entries) * (last - first), time.monotonic())
            self._carriable(lsn, payload, known, stamp)
            self._seen, self._modified = lsn, last
        return entries

    def _carriable(self, lsn: int, payload: bytes, before: int | None, stamp: Stamp) -> None:
        self._piggyback.saw(lsn, payload, before if stamp == UNSTAMPED else None)  # a copy would lose its stamp

    def _read_up_to_hole(self, lsn: int) -> None:
        """Warn once that there is no commit at this lsn, but objects after it. The log continues at this lsn.

        A user whose key may only add objects can put one further ahead, which must not end the study. The next commit
        fills the hole, and the objects after it are judged like any commit. If a commit was removed, peers that had
        read it find that the sums of the commits disagree. Raises StoreCorrupt if commit 1 is missing.
        """
        if lsn == 1:
            self._missing(lsn)
        if self._hole != lsn:
            self._hole = lsn
            LOG.warning(
                "%s is missing, but there are objects after it: somebody put them there ahead of time, or removed a "
                "commit. The log is read up to that point, and continues there",
                self.key(lsn),
            )

    # --- appending ---

    def _create(self, lsn: int, outgoing: Outgoing, before: int | None) -> bytes | None:
        stored = codec.attach(outgoing.payload, before, outgoing.stamp)
        data = self._piggyback.load(lsn, stored, before)
        if not self.objects.put_new(self.key(lsn), data):
            return None
        self._carriable(lsn, outgoing.payload, before, outgoing.stamp)
        self._confirmation.wrote(lsn, stored, data, copied=self._piggyback.shared)
        return data

    # --- backups and rescue ---

    def _pieces(self) -> Iterator[tuple[int, bytes]]:
        """The objects of the log, read in batches."""
        named = numbered(self.objects.listed(f"{self.root}log/"))
        for place in range(0, len(named), WIDEST):
            batch = named[place : place + WIDEST]
            found = answered(self.objects.get_many([key for _, key in batch], limit=self.limit))
            yield from [(lsn, one.data) for (lsn, _), one in zip(batch, found, strict=True) if one]

    def restore(self, base: tuple[int, bytes] | None, entries: Iterable[Entry]) -> None:
        self._prove()
        self._head = BEHIND
        if base is not None:
            self.put_snapshot(*base)
            self.objects.put_new(f"{self.root}boundary/{base[0]:020d}", b"commits up to this one were removed\n")
        each(self._restore_one, entries, at_once=WIDEST)

    # --- the end ---

    def _find_end(self, deadline: float) -> int:
        head = max((lsn for lsn, _ in self._snapshots()), default=0)
        newer = self.objects.listed(f"{self.root}log/", after=self.key(head) if head else "")
        return max((lsn_of(key) or 0 for key in newer), default=0)
