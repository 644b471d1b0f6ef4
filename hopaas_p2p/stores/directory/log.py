"""A log in a directory: single commits in one folder per range, and packs in place of full folders.

    study/{uuid}/commits/{first:020d}/{lsn:020d}   a commit, as `core.codec` makes it, with the sum before it
    study/{uuid}/packs/{first:020d}                256 commits, beginning with that lsn

A writer finds the end of the log most quickly by trying to write. A reader that has not seen the end recently reads the
packs first; see `packs`. On one machine no peer waits for a turn; on a file server, peers pause after a commit.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterable, Iterator
from typing import Final

from hopaas_p2p.core import codec
from hopaas_p2p.errors import StoreCorrupt
from hopaas_p2p.stores.base import Entry
from hopaas_p2p.stores.directory.files import Directory, NoFolder, reaching
from hopaas_p2p.stores.directory.packs import LARGEST_PACK, first_of, frame, frames, salvaged
from hopaas_p2p.stores.objects.contract import Found, numbered
from hopaas_p2p.stores.objects.log import BEHIND, EVERY, RECEIPT, SPAN, WriteOnceLog, WriteScheduler
from hopaas_p2p.stores.objects.scheduler import SpreadScheduler
from hopaas_p2p.stores.objects.store import ObjectBackedStore

_KEPT: Final = 300.0  # seconds for which a folder is kept beside its pack, by the file system's clock


class FolderLog(WriteOnceLog[Directory]):
    """A log in a directory; see the module. Used by one thread at a time."""

    names = "commits/{first:020d}/{lsn:020d}"
    asleep = 60.0  # a folder stays beside its pack for 300
    losses = 4
    looks_if_behind = True

    def __init__(self, store: ObjectBackedStore[Directory], root: str) -> None:
        self.rate_limited = store.objects.shared
        super().__init__(store, root, SpreadScheduler() if self.rate_limited else WriteScheduler())
        self.history.every = EVERY if self.rate_limited else 0.0

    def changed(self, since: int) -> bool | None:
        if since != self._head:
            return True
        following = self.objects.exists(self.key(since + 1))
        if following is False and since:  # the folder may be gone because it was packed or the log was deleted
            return not self.objects.exists(self.key(since))
        return following

    # --- reading ---

    def _read_on(self, since: int, entries: list[Entry], deadline: float, *, certain: bool) -> bool:
        head = self._head
        near = since <= head and first_of(since + 1) == first_of(head + 1)  # later commits are not packed yet
        if not near and self._packed(since, entries):
            return True
        more = True
        while more:
            lsn = since + len(entries) + 1
            try:
                more = self._read_range(lsn, entries, deadline, certain=certain)
            except NoFolder:
                if self._packed(lsn - 1, entries):
                    return True
                more = since + len(entries) >= lsn
                if not more:  # the commit is unwritten, or the log is gone
                    self._check_deleted()
                    if lsn == 1:
                        self._check_beginning(deadline)
                    elif (lsn - 1) % SPAN and self._stored(lsn - 1) is None:
                        self.history.gone(lsn - 1)
            if more and sum(len(entry.payload) for entry in entries) >= RECEIPT:
                return True
        if not near or since + len(entries) < head:
            self._check_hole(since + len(entries) + 1, deadline)
        return False

    def _read_range(self, lsn: int, entries: list[Entry], deadline: float, *, certain: bool) -> bool:
        """Add the single commits of a range, beginning with this lsn; return whether more may follow.

        Raises NoFolder.
        """
        keys = map(self.key, range(lsn, first_of(lsn) + SPAN))
        for place, one in enumerate(self.objects.get_run(keys, limit=self.limit, certain=certain), lsn):
            found = self._resolved(place, one, deadline)
            if found is None:
                if one is not None:
                    raise NoFolder  # it was there a moment ago
                if place == 1:
                    self._check_beginning(deadline)
                return False
            entries.append(self._entry(place, found))
        return True

    def _packed(self, since: int, entries: list[Entry]) -> bool:
        """Add the packed commits after `since`; return whether they are as much as one result may hold."""
        size = 0
        while stored := self._packed_from(since + 1):
            for lsn, data in enumerate(stored, since + 1):
                entries.append(self._entry(lsn, Found(data, len(data))))
                size += len(data)
                if size >= RECEIPT:
                    return True
            since += len(stored)
        return False

    def _packed_from(self, lsn: int) -> list[bytes]:
        """The commits in the pack of this lsn's range, from this lsn on."""
        key = self.pack(lsn)
        found = self.objects.get(key, limit=LARGEST_PACK)
        if found is None:
            return []
        stored, end = frames(found.data)
        if len(stored) < SPAN:
            raise StoreCorrupt(
                f"{key} is damaged after byte {end}. Nothing was changed. Restore the file from a backup, or "
                "copy the readable part into a new study: hopaas-p2p doctor STORE --rescue"
            )
        return stored[lsn - first_of(lsn) :]

    def _entry(self, lsn: int, found: Found, *, mine: bytes | None = None) -> Entry:
        self._check_tombstone(found.data)
        payload, before, stamp = codec.detach(found.data)
        if lsn > self._seen:
            self._seen = lsn
            if payload != mine:
                self.scheduler.saw(payload, found.modified, time.monotonic())
        if self._recent:
            self._keep(lsn, found.data)
        self.history.follow(lsn, payload, before)
        return Entry(lsn, payload, stamp, before)

    def _check_hole(self, lsn: int, deadline: float) -> None:
        """Check that no commit follows this lsn, at which a reader that was behind has found none."""
        for key in (self.key(lsn), self.pack(lsn)):
            if numbered(self.objects.listed(key.rpartition("/")[0] + "/", after=key)):
                if self._get(lsn, deadline) is not None:  # written just now
                    return
                if not self._packed_from(lsn):
                    self._missing(lsn)

    # --- appending ---

    def _tidy(self, lsn: int) -> None:
        """Pack the range that ends here, remove folders whose packs are a few minutes old, and pack forgotten ranges.

        Also create the next range's folder, without which a check for the next commit takes many calls.
        """
        if lsn % SPAN == 0:
            self._pack(first_of(lsn))
            following = self.key(lsn + 1)
            with reaching(following):
                self.objects.make_folder(following.rpartition("/")[0], (self.pack(lsn + 1), self._ended))
        folders = numbered(self.objects.names_in(f"{self.root}commits", folders=True))
        older = [first for first, _ in folders if first < first_of(lsn)]
        now = self.objects.modified(self.key(lsn)) if older else None
        for first in older:
            packed = self.objects.modified(self.pack(first))
            if packed is None:
                with contextlib.suppress(NoFolder):
                    self._pack(first)
            elif now is not None and now - packed >= _KEPT:
                self.objects.remove_folder(f"{self.root}commits/{first:020d}")

    def _pack(self, first: int) -> None:
        stored = [self._recent[lsn] for lsn in range(first, first + SPAN) if lsn in self._recent]
        if len(stored) < SPAN:
            found = self.objects.get_run(map(self.key, range(first, first + SPAN)), limit=self.limit)
            stored = [one.data for one in found if isinstance(one, Found)]
        if len(stored) == SPAN:
            self.objects.put_same(self.pack(first), b"".join(map(frame, stored)))

    def _elsewhere(self, lsn: int, deadline: float) -> Entry | None:
        entries, _ = self._look(lsn - 1, deadline, certain=True)
        return entries[0] if entries else None

    # --- backups and rescue ---

    def _pieces(self) -> Iterator[tuple[int, bytes]]:
        """The bytes stored for each lsn. A range of commits is in a pack, in single files, or in both."""
        singles: dict[int, list[tuple[int, str]]] = {}
        for lsn, key in numbered(self.objects.listed(f"{self.root}commits/")):
            singles.setdefault(first_of(lsn), []).append((lsn, key))
        packs = dict(numbered(self.objects.listed(f"{self.root}packs/")))
        for first in sorted(packs.keys() | singles.keys()):
            pack = self.objects.get(packs[first], limit=LARGEST_PACK) if first in packs else None
            for place, data in salvaged(pack.data if pack else b"").items():
                yield first + place, data
            for lsn, key in singles.get(first, ()):
                one = self.objects.get(key, limit=self.limit)
                if one is not None:
                    yield lsn, one.data

    def restore(self, base: tuple[int, bytes] | None, entries: Iterable[Entry]) -> None:
        self._prove()
        self._head = BEHIND
        for first, range_ in itertools.groupby(entries, lambda entry: first_of(entry.lsn)):
            commits, pack = list(range_), self.pack(first)
            if len(commits) == SPAN:
                stored = (codec.attach(entry.payload, entry.before, entry.stamp) for entry in commits)
                self.objects.put_same(pack, b"".join(map(frame, stored)))
            else:
                for entry in commits:
                    self._restore_one(entry, (pack, self._ended))

    # --- the end ---

    def _find_end(self, deadline: float) -> int:
        head, more = max((lsn for lsn, _ in self._snapshots()), default=0), True
        while more:
            entries, more = self._look(head, deadline, certain=True)
            head += len(entries)
        return head

    def destroy(self) -> None:
        """End the log with a tombstone, and remove its commits and snapshots."""
        with contextlib.suppress(StoreCorrupt):  # a damaged log is removed like any other
            super().destroy()
        for folder in ("commits", "packs", "snapshot"):
            self.objects.remove_folder(f"{self.root}{folder}")

    def erase(self) -> None:
        self.objects.remove_folder(self.root.rstrip("/"))
        self.history.sums.clear()
