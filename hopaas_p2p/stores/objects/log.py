"""A log of write-once objects: one object per commit, named by its lsn, which exactly one writer can create.

In a directory (see `packs`):

    study/{uuid}/commits/{first:020d}/{lsn:020d}   a commit, as `core.codec` makes it
    study/{uuid}/packs/{first:020d}                256 commits, beginning with that lsn

In a bucket:

    study/{uuid}/log/{lsn:020d}                    a commit, and perhaps copies of the ones before it: see `carried`

In both:

    study/{uuid}/snapshot/{lsn:020d}
    study/{uuid}/snapshot/blocks/{name}            finished trials, shared by snapshots: see `core.snapshot.split`
    study/{uuid}/boundary/{lsn:020d}               commits up to this lsn were removed; `deleted`: all of them

To append, put the next key. Of all that do, one succeeds. The answer has three outcomes. *Mine*: it was created. *Not
mine*: it exists; the object that is there says whose it is, and it may be mine, from an earlier attempt whose answer
was lost. *Unknown*: a time-out, an I/O error; the object that is there decides, and if there is none, the same bytes go
to the same key once more. A peer never moves on while a key is undecided: an attempt that is still under way somewhere
could then land behind its back. For the same reason it never gives a commit up: it comes again with the same bytes.

There is no lock. A peer that is stopped, frozen or cut off in the middle of a write holds nobody up.

A deleted study ends in a tombstone, so that a peer that still writes to it finds that instead of a free key.

A log is read from what is known to the first free key; where the past lies in packs, from those first. Only an end that
is certain is believed: see `RetentionGuard`, and for network file systems `ObjectStore.get`.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NoReturn

from hopaas_p2p.core import chain, codec, snapshot
from hopaas_p2p.errors import (
    BehindRetention,
    ConfigurationError,
    StoreCorrupt,
    StoreUnreachable,
    StudyDeleted,
)
from hopaas_p2p.net.backoff import Backoff
from hopaas_p2p.stores.base import EXCHANGE_TIMEOUT, SNAPSHOTS_KEPT, Beat, Entry, Log, Outgoing, Receipt
from hopaas_p2p.stores.objects.audit import Audit
from hopaas_p2p.stores.objects.carried import MAGIC, OVERHEAD, Carrier, Opened, opened
from hopaas_p2p.stores.objects.contract import Bucket, Found, NoFolder, ObjectStore, lsn_of
from hopaas_p2p.stores.objects.history import DELETED, EVERY, Clocks, History, RetentionGuard
from hopaas_p2p.stores.objects.packs import LARGEST, SPAN, Packs, first_of, frame
from hopaas_p2p.stores.objects.reader import CarriedReader, Piece
from hopaas_p2p.stores.objects.salvage import from_bucket, from_directory
from hopaas_p2p.stores.objects.scheduler import WriteScheduler

_log: Final = logging.getLogger("hopaas_p2p")
TOMBSTONE: Final = b"hopaas: this study is deleted\n"
LOSSES: Final = 4  # one after the other, after which a look is worth it in a directory
_BEHIND: Final = -1
"""In place of an lsn that was the end of the log: the next look begins with the packs."""
_MAX_SNAPSHOT: Final = 1 << 30
_RECEIPT: Final = 8 << 20  # bytes
_PAUSES: Final = (0.05, 1.0)  # seconds
_SECOND_LOOK: Final = 0.005  # seconds
_AT_ONCE: Final = 8  # requests of a restore


class ObjectLog(Log):
    """See the module. One thread at a time.

    Args:
        objects: the bucket or directory.
        root: where in it, ending with a slash.
        guard: notices that this process slept.
        scheduler: when to write, and how far to look first. None: at once, because both cost next to nothing.
        packs: packs and folders, if this log has any.
        audited: the bucket in which own commits are looked at once more after a while, if that is asked for.
        readable: called until it has once returned before a look: sees that this is a store.
        writable: called before every write, until it returns True: proves that `put_new` has one winner, unless it has
            lately.
        at_first: commits that a reader of the whole log gets at first; for the rest it may prefer a snapshot.
        timeout: seconds for one exchange.

    """

    def __init__(
        self,
        objects: ObjectStore,
        root: str,
        *,
        guard: RetentionGuard,
        scheduler: WriteScheduler | None = None,
        packs: Packs | None = None,
        audited: Bucket | None = None,
        readable: Callable[[], object] | None = None,
        writable: Callable[[], object],
        at_first: int | None = None,
        timeout: float = EXCHANGE_TIMEOUT,
    ) -> None:
        self.objects = objects
        self.root = root
        self.guard = guard
        self.scheduler = scheduler
        self.packs = packs
        self._readable = readable
        self._writable: Callable[[], object] | None = writable
        self._at_first = at_first
        self._timeout = timeout
        self._ended = f"{root}boundary/{DELETED}"
        self._blocks = f"{root}snapshot/blocks/"
        self._has_beginning = False
        self._hole = 0
        """The lsn of the hole that was last warned of."""
        self._history = History(self._stored_after_all, every=0.0 if scheduler is None else EVERY)
        self._carries = packs is None
        """Whether objects carry copies of earlier commits."""
        self._carrier = Carrier()
        self._modified = 0.0
        """When the server took the object of the last commit that was read."""
        self._audit: Audit | None = None
        if audited is not None:
            self._audit = Audit(audited, self.key, limit=LARGEST + OVERHEAD, own=self._own, removed=self._removed)
        self._snapshot = 0
        """The lsn of the snapshot that was read last, until it is known that the log goes that far."""
        self._head = _BEHIND
        """The lsn up to which this log was read when its end was last seen."""
        self._contact = guard.clocks()
        """When this exchange began."""
        self._known: Clocks | None = None
        """The last moment at which what this exchange knows of the log's end was true."""

    def key(self, lsn: int) -> str:
        """Where a single commit is."""
        return self.packs.key(lsn) if self.packs is not None else f"{self.root}log/{lsn:020d}"

    # --- exchanging ---

    def exchange(self, outgoing: Outgoing | None, since: int, beat: Beat | None = None) -> Receipt:
        self._find() if outgoing is None else self._prove()
        deadline = time.monotonic() + self._timeout
        self._begin(since, None if outgoing is None else outgoing.chain)
        if self._audit is not None:
            self._audit.check()
        if outgoing is None:
            receipt = Receipt(*self._look(since, deadline, certain=True))
        else:
            if self.packs is not None:
                self._history.check_last(since, time.monotonic())
            receipt = self._append(outgoing.payload, since, deadline)
        self._end(since)
        return receipt

    def confirm(self) -> None:
        while self._audit is not None and self._audit.check(ending=True):
            pass

    def unconfirmed(self) -> list[int]:
        return [] if self._audit is None else self._audit.due

    def changed(self, since: int) -> bool | None:
        if since != self._head:
            return True
        following = self.objects.exists(self.key(since + 1))
        if following is False and since:  # a folder that is gone: packed, or the log is deleted
            return not self.objects.exists(self.key(since))
        return following

    def _find(self) -> None:
        if self._readable is not None:
            self._readable()
            self._readable = None

    def _prove(self) -> None:
        if self._writable is not None and self._writable() is True:
            self._writable = None

    def _begin(self, since: int, known: int | None = None) -> None:
        """Between this and `_end` the end of the log may be believed, unless this process slept.

        A folder is removed minutes after it was packed, and a network file system may still show it then, half empty.
        So a process that has not seen the end of the log for a minute looks for the pack first.
        """
        self._known = self.guard.last
        self._contact = self.guard.begin(since)
        if self.guard.woke:
            self._head = _BEHIND
        self._history.begin(since, known)
        if since and since == self._snapshot:
            self._check_snapshot(since)

    def _end(self, since: int) -> None:
        self.guard.end(since, self._contact)
        self.guard.last = self._known

    # --- reading ---

    def _look(self, since: int, deadline: float, *, certain: bool) -> tuple[list[Entry], bool]:
        """The commits after `since`, and whether there are more.

        Unless `certain`, others may already be there that this machine's file system has not seen.

        Raises:
            StoreUnreachable: not before the deadline.
            StoreCorrupt: there is a hole.
            StudyDeleted: a tombstone stands there.

        """
        entries: list[Entry] = []
        behind = since != self._head
        if (behind and self._packed(since, entries)) or self._read_on(since, entries, deadline, certain=certain):
            return entries, True
        self._head = since + len(entries)
        if behind and self.packs is not None:
            self._check_hole(self._head + 1, deadline)
        if self.scheduler is not None:
            self.scheduler.reached_head(len(entries), time.monotonic())
        if certain:
            self._known = self._contact
        return entries, False

    def _read_on(self, since: int, entries: list[Entry], deadline: float, *, certain: bool) -> bool:
        """Read single objects up to the first free key; whether a receipt was full before that."""
        if self.scheduler is not None and self._carries:
            return self._search_on(self.scheduler, since, entries, deadline)
        size = 0
        while True:
            lsn = since + len(entries) + 1
            try:  # a folder is read up to the first gap
                window = self._at(range(lsn, first_of(lsn) + SPAN), deadline, certain=certain)
            except NoFolder:
                if self._packed(lsn - 1, entries):
                    return True
                if len(entries) == lsn - 1 - since:
                    self._check_absence(lsn, deadline)
                    return False
                continue
            there = self._leading(lsn, window, deadline)
            if not there:
                return False
            entries += [self._entry(lsn + i, found) for i, found in enumerate(there)]
            size += sum(len(found.data) for found in there)
            if len(there) < len(window) and not any(window[len(there) :]):
                return False
            if size >= _RECEIPT:
                return True

    def _search_on(self, scheduler: WriteScheduler, since: int, entries: list[Entry], deadline: float) -> bool:
        """As `_read_on`, where objects carry the commits before them."""
        reader = CarriedReader(
            lambda lsns: self._at(lsns, deadline),
            lambda lsn: self._get(lsn, deadline),
            self._taken_apart,
            enough=_RECEIPT,
        )
        size = 0
        for pieces in reader.read(since, scheduler.search(time.monotonic())):
            entries += self._noted(pieces)
            size += sum(len(piece.payload) for piece in pieces)
            enough = self._at_first is not None and not since and len(entries) >= self._at_first
            if enough or size >= _RECEIPT or reader.stopped:
                return True
        if reader.hole > since + len(entries):
            self._read_up_to_hole(since + len(entries) + 1)
        if not since and not entries:
            self._check_beginning(deadline)
        return False

    def _leading(self, lsn: int, window: list[Found | None], deadline: float) -> list[Found]:
        """What was found before the first free key."""
        there = _leading(window)
        if not there and any(window):  # the key was free when it was asked for, and is not any more
            there = _leading([self._get(lsn, deadline)])
            if not there:
                self._read_up_to_hole(lsn)
        elif not there and lsn == 1:
            self._check_beginning(deadline)
        return there

    def _packed(self, since: int, entries: list[Entry]) -> bool:
        """Add what is in packs behind `since`; whether that is as much as a receipt may hold."""
        size = 0
        for lsn, payload in enumerate(self.packs.after(since) if self.packs is not None else (), since + 1):
            entries.append(self._entry(lsn, Found(payload, len(payload))))
            size += len(payload)
            if size >= _RECEIPT:
                return True
        return False

    def _at(self, lsns: Sequence[int], deadline: float, *, certain: bool = True) -> list[Found | None]:
        """The objects of these lsns, which in folders follow each other. Raises NoFolder."""
        window: list[Found | None] = []
        began = time.monotonic()
        run = self.objects.get_run(map(self.key, lsns), limit=self._limit, certain=certain)
        for lsn, one in zip(lsns, run, strict=False):
            if one is None or (isinstance(one, Found) and self._sound(one)):
                window.append(one)
            else:
                window.append(self._get(lsn, deadline, suspect=one))
        if len(lsns) == 1 and self.scheduler is not None:
            self.scheduler.looked(time.monotonic() - began)
        return window

    def _get(
        self, lsn: int, deadline: float, *, suspect: Found | StoreUnreachable | None = None, certain: bool = True
    ) -> Found | None:
        """What is at this lsn. Tries until the deadline, at least once. Raises NoFolder.

        An object that is no commit was cut short on the way, or is like that in the store: a second look tells, or
        the first one here after `suspect`.
        """
        backoff = Backoff(*_PAUSES)
        settled = time.monotonic() + self.objects.settles
        while True:
            if isinstance(suspect, Found):
                time.sleep(_SECOND_LOOK)
            try:
                found = self.objects.get(self.key(lsn), limit=self._limit, certain=certain)
                if found is None or self._sound(found):
                    return found
                if found == suspect and time.monotonic() >= settled:
                    if chain.has_sum(found.data) or (self._carries and found.data.endswith(MAGIC)):
                        self._damaged(lsn)
                    return found
                suspect = found
            except StoreUnreachable:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(backoff.pause())

    def _entry(self, lsn: int, found: Found, *, mine: bytes | None = None) -> Entry:
        """It, as a commit. Raises StudyDeleted for a tombstone.

        A tombstone counts where the boundary says so too, which a key that may only add commits cannot write.
        """
        if self._carries:
            return self._noted(self._taken_apart(lsn, found)[-1:], mine=mine)[0]
        if found.data == TOMBSTONE and self._is_deleted():
            raise StudyDeleted
        payload, before = chain.detach(found.data)
        if self.scheduler is not None and payload != mine:
            self.scheduler.saw(payload, found.modified, time.monotonic())
        if self.packs is not None:
            self.packs.saw(lsn, found.data)
        self._history.follow(lsn, payload, before)
        return Entry(lsn, payload, before=before)

    def _taken_apart(self, lsn: int, found: Found) -> list[Piece]:
        """The commits in this object, its own last. Raises StudyDeleted for a tombstone, and BrokenChain."""
        if found.data == TOMBSTONE and self._is_deleted():
            raise StudyDeleted
        there = opened(found.data)
        payload, before = chain.detach(there.stored)
        copies = [Piece(*copy, found.modified) for copy in self._carrier.copies(lsn, there)]
        return [*copies, Piece(lsn, payload, before, found.modified)]

    def _noted(self, pieces: list[Piece], *, mine: bytes | None = None) -> list[Entry]:
        """Commits that were read, one after the other, and written as evenly as can be assumed."""
        entries = []
        first = self._modified or pieces[-1].modified
        for place, (lsn, payload, before, modified) in enumerate(pieces, 1):
            if self.scheduler is not None and payload != mine:
                at = first + place / len(pieces) * (pieces[-1].modified - first)
                self.scheduler.saw(payload, min(at, modified), time.monotonic())
            known = self._history.before(lsn)
            self._history.follow(lsn, payload, before)
            self._carrier.saw(lsn, payload, known if before is None else before)
            entries.append(Entry(lsn, payload, before=before))
        self._modified = pieces[-1].modified
        return entries

    def _opened(self, data: bytes) -> Opened:
        return opened(data) if self._carries else Opened(data)

    def _own(self, data: bytes) -> bytes:
        """The commit in an object, as it would be stored alone."""
        return self._opened(data).stored

    def _sound(self, found: Found) -> bool:
        sound = opened(found.data).sound if self._carries else codec.intact(found.data)
        return sound or found.data == TOMBSTONE or found.size > self._limit

    @property
    def _limit(self) -> int:
        """Bytes of an object that are read, at most."""
        return LARGEST + OVERHEAD if self._carries else LARGEST

    def _stored(self, lsn: int) -> bytes | None:
        """What is stored at this lsn, wherever it is; None if nothing is. Raises StudyDeleted."""
        with contextlib.suppress(NoFolder):
            found = self.objects.get(self.key(lsn), limit=self._limit, certain=False)
            if found is not None:
                return self._own(found.data)
        packed = None if self.packs is None else next(self.packs.after(lsn - 1), None)
        if packed is None and self._is_deleted():
            raise StudyDeleted
        return packed

    def _stored_after_all(self, lsn: int) -> bytes | None:
        """Like `_stored`, of a commit that a peer has read: looks twice before it says that there is none.

        A file system may be mounted again between the look for the commit and the look whether the store is there.
        """
        return self._stored(lsn) or self._stored(lsn)

    def _removed(self) -> float:
        """The lsn up to which commits were removed on purpose: all of them, where the study was deleted."""
        try:
            return self.guard.boundary()
        except StudyDeleted:
            return math.inf

    def _is_deleted(self) -> bool:
        with contextlib.suppress(NoFolder):
            return self.objects.get(self._ended, limit=len(TOMBSTONE)) is not None
        return False

    def _check_beginning(self, deadline: float) -> None:
        """There is no lsn 1: a log that nobody has written to, or one that somebody has cut. Asks once."""
        if self._has_beginning:
            return
        for key in self.objects.listed(self.root, at_most=3):
            if key == self._ended:
                raise StudyDeleted
            kind = key[len(self.root) :].partition("/")[0]
            if kind in ("log", "commits", "packs") and lsn_of(key) not in (None, 1):
                with contextlib.suppress(NoFolder):
                    if self._get(1, deadline) is not None:  # written this moment
                        break
                self._missing(1)
        self._has_beginning = True

    def _check_absence(self, lsn: int, deadline: float) -> None:
        """There is neither a folder nor a pack for this lsn: nobody has written to it yet, or the log is gone."""
        if self._is_deleted():
            raise StudyDeleted
        if lsn == 1:
            self._check_beginning(deadline)
        elif (lsn - 1) % SPAN and self.packs is not None and self._stored_after_all(lsn - 1) is None:
            self._history.gone(lsn - 1)

    def _check_snapshot(self, lsn: int) -> None:
        """A peer begins with a snapshot of commits up to this one: has the log that one, or was it removed by `gc`?"""
        if self._stored_after_all(lsn) is None and (self.packs is not None or self.guard.boundary() < lsn):
            self._history.gone(lsn)
        self._snapshot = 0

    def _check_hole(self, lsn: int, deadline: float) -> None:
        """A reader that was behind has found nothing at this lsn: there must be nothing after it, either."""
        assert self.packs is not None
        for key in (self.key(lsn), self.packs.pack(lsn)):
            folder = key.rpartition("/")[0] + "/"
            if any(lsn_of(one) is not None for one in self.objects.listed(folder, after=key)):
                with contextlib.suppress(NoFolder):
                    if self._get(lsn, deadline) is not None:  # written this moment
                        return
                if next(self.packs.after(lsn - 1), None) is None:
                    self._missing(lsn)

    def _damaged(self, lsn: int) -> NoReturn:
        raise StoreCorrupt(
            f"{self.key(lsn)} is damaged: it is complete, but not what was written. Nothing was changed: restore it "
            "from a backup, or look with: hopaas-p2p doctor URL"
        )

    def _read_up_to_hole(self, lsn: int) -> None:
        """There is no commit at this lsn, but something behind it: in a bucket the log goes on here, with a warning.

        A key that may only add objects can put one further on, and that must not end the study: the next commit fills
        the hole, and what was put behind it is judged as any record. If a commit was removed, peers that had read it
        find that the sums of the commits disagree.
        """
        if lsn == 1 or self.packs is not None:
            self._missing(lsn)
        if self._hole != lsn:
            self._hole = lsn
            _log.warning(
                "%s is missing, but there are objects after it: somebody put them there ahead of time, or removed a "
                "commit. The log is read up to that point, and continues there",
                self.key(lsn),
            )

    def _missing(self, lsn: int) -> NoReturn:
        raise StoreCorrupt(
            f"{self.key(lsn)} is missing, but there are commits after it. Somebody who cleaned up, a tool that "
            "removes dangling links, or a lifecycle rule of the bucket has removed it: stop that, and restore it from "
            "a backup or, in a bucket, from a version. Nothing was changed. To copy what can be read into a new study: "
            "hopaas-p2p doctor STORE --rescue"
        )

    # --- appending ---

    def _await_turn(self, since: int, deadline: float, *, look: bool | None = None) -> Receipt:
        """Look, if asked to, or by default where that pays, and wait for this peer's turn; what came meanwhile.

        Where this machine's file system may not have seen the latest commits, the write that follows finds them.
        """
        entries: list[Entry] = []
        scheduler, certain = self.scheduler, bool(look) or self.packs is None
        if look is None:
            look = scheduler is not None and scheduler.look_first(time.monotonic())
        while True:
            if look:
                found, more = self._look(since + len(entries), deadline, certain=certain)
                entries += found
                if more:
                    return Receipt(entries, more)
            pause = 0.0 if scheduler is None else scheduler.pause(time.monotonic())
            if not pause or time.monotonic() + pause >= deadline:
                return Receipt(entries)
            time.sleep(pause)
            look = True

    def _append(self, payload: bytes, since: int, deadline: float) -> Receipt:
        entries: list[Entry] = []
        look = None
        if self.packs is not None:  # a write is the quickest look there, but the past is in packs
            look = since != self._head
        losses = 0
        while True:
            if look or self.scheduler is not None:
                found = self._await_turn(since + len(entries), deadline, look=look)
                entries += found.entries
                if found.more or any(entry.payload == payload for entry in found.entries):
                    self._secure(payload, found.entries)
                    return Receipt(entries, found.more)
            if self._history.contradicted:
                return Receipt(entries, more=True)  # not appended: it would stand in another history
            entry, created = self._decide(since + len(entries) + 1, payload, deadline)
            entries.append(entry)
            self._head = entry.lsn
            if created:
                return Receipt(entries)
            if entry.payload == payload:  # it stood there already, and others may stand behind it
                self._secure(payload, [entry])
                behind, more = self._look(entry.lsn, deadline, certain=True)
                return Receipt(entries + behind, more)
            if time.monotonic() >= deadline:
                return Receipt(entries, more=True)  # not appended, and the caller sees that: it comes again
            if self.scheduler is not None:
                time.sleep(self.scheduler.after_losing())
            losses += 1
            look = self.packs is None or losses % LOSSES == 0

    def _secure(self, payload: bytes, entries: list[Entry]) -> None:
        """A commit of an earlier attempt: perhaps its writer was cut off before it was safe."""
        for entry in entries:
            if entry.payload == payload:
                with contextlib.suppress(NoFolder):
                    self.objects.secure(self.key(entry.lsn))

    def _decide(self, lsn: int, payload: bytes, deadline: float) -> tuple[Entry, bool]:
        """Write this commit at this lsn until it is known what is there; and whether this very write brought it."""
        backoff: Backoff | None = None
        unknown: StoreUnreachable | None = None
        before = self._history.before(lsn)
        stored = chain.attach(payload, before)
        data = self._carrier.load(lsn, stored, before) if self._carries else stored
        while True:
            created = False
            try:
                created = self._create(lsn, data)
            except StoreUnreachable as error:
                unknown = error
            self._check_awake(lsn)
            if created:
                self._known = self._contact
                if self.packs is not None:
                    self.packs.wrote(lsn, stored, [self._ended])
                self._history.follow(lsn, payload)
                if self._carries:
                    self._carrier.saw(lsn, payload, before)
                if self._audit is not None:
                    self._audit.wrote(lsn, stored, data, copied=self._carries and self._carrier.shared)
                return Entry(lsn, payload, before=before), True
            entry = self._there(lsn, payload, deadline)
            if entry is not None:
                return entry, False
            if time.monotonic() >= deadline:
                where = self.key(lsn)
                raise unknown or StoreUnreachable(f"{where} is neither free nor present; is the store consistent?")
            backoff = backoff or Backoff(*_PAUSES)
            time.sleep(backoff.pause())

    def _create(self, lsn: int, data: bytes) -> bool:
        """Write this commit at this lsn if there is none; whether this call did."""
        began = time.monotonic()
        unless: tuple[str, ...] | None = None
        if self.packs is not None and lsn % SPAN == 1:
            unless = (self.packs.pack(lsn), self._ended)
            if lsn > 1:  # a power cut must not take the commit before it
                self.objects.secure(self.key(lsn - 1))
        created = self.objects.put_new(self.key(lsn), data, unless=unless)
        if self.scheduler is not None:
            now = time.monotonic()
            (self.scheduler.won if created else self.scheduler.lost)(now, now - began)
        return created

    def _check_awake(self, lsn: int) -> None:
        """A single object means nothing if this process slept and its range was packed and removed meanwhile."""
        if self.packs is not None and self.guard.slept(self._known) and self.packs.holds(lsn):
            self._head = _BEHIND
            raise BehindRetention

    def _there(self, lsn: int, payload: bytes, deadline: float) -> Entry | None:
        """The commit of this lsn, wherever it is."""
        try:
            found = self._get(lsn, deadline, certain=False)
        except NoFolder:
            entries, _ = self._look(lsn - 1, deadline, certain=True)
            return entries[0] if entries else None
        return None if found is None else self._entry(lsn, found, mine=payload)

    # --- snapshots ---

    def newest_snapshot(self, *, before: int | None = None) -> tuple[int, bytes] | None:
        self._find()
        for lsn, key in reversed(self._snapshots()):
            if before is not None and lsn >= before:
                continue
            found = self.objects.get(key, limit=_MAX_SNAPSHOT)
            data = None if found is None or len(found.data) != found.size else self._whole(found.data)
            if data is not None:
                self.guard.last = self.guard.clocks()
                self._head, self._snapshot = _BEHIND, lsn
                return lsn, data
        return None

    def _whole(self, head: bytes) -> bytes | None:
        """The snapshot with this head and its blocks; None if the head is damaged, or a block is not there."""
        try:
            names = snapshot.names_in(head)
            found = self.objects.get_many([self._blocks + name for name in names], limit=_MAX_SNAPSHOT)
            blocks = {}
            for name, one in zip(names, found, strict=True):
                if isinstance(one, StoreUnreachable):
                    raise one
                if one is not None:
                    blocks[name] = one.data
            return snapshot.whole(head, blocks)
        except snapshot.CorruptSnapshot:
            return None

    def put_snapshot(self, lsn: int, data: bytes) -> None:
        self._prove()
        head, blocks = snapshot.split(data)
        there = set(self.objects.listed(f"{self.root}snapshot/")) if blocks else set()
        for name, block in blocks.items():
            if self._blocks + name not in there:
                self.objects.put_same(self._blocks + name, block)
        self.objects.put_same(f"{self.root}snapshot/{lsn:020d}", head)
        older = [key for found, key in self._snapshots() if found <= lsn]  # one of a false lsn drives none out
        self.objects.discard(older[:-SNAPSHOTS_KEPT])

    def _snapshots(self) -> list[tuple[int, str]]:
        keys = self.objects.listed(f"{self.root}snapshot/")
        return [(lsn, key) for key in keys if (lsn := lsn_of(key)) is not None]

    # --- backups and rescue ---

    def salvage(self) -> Iterator[Entry]:
        self._find()
        if self.packs is None:
            found = from_bucket(self.objects, self.root, self._opened, limit=self._limit)
        else:
            found = from_directory(self.objects, self.root, self.packs, limit=self._limit)
        for lsn, data in found:
            if data != TOMBSTONE:
                yield self._entry(lsn, Found(data, len(data)))

    def removed_up_to(self) -> int:
        self._find()
        return self.guard.boundary()

    def restore(self, base: tuple[int, bytes] | None, entries: Iterable[Entry]) -> None:
        self._prove()
        self._head = _BEHIND
        if base is not None:
            if self.packs is not None:
                raise ConfigurationError(
                    "The first commits of this log were removed from a bucket before the backup was made, so only a "
                    "bucket can hold the rest. Restore it there, and copy the study: hopaas-p2p study copy"
                )
            self.put_snapshot(*base)
            self.objects.put_new(f"{self.root}boundary/{base[0]:020d}", b"commits up to this one were removed\n")
        if self.packs is None:
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                for _ in pool.map(self._restore_one, entries):
                    pass
            return
        for first, range_ in itertools.groupby(entries, lambda entry: first_of(entry.lsn)):
            commits = list(range_)
            if len(commits) == SPAN:
                self.objects.put_same(self.packs.pack(first), b"".join(frame(_stored(entry)) for entry in commits))
            else:
                for entry in commits:
                    self._restore_one(entry)

    def _restore_one(self, entry: Entry) -> None:
        stored = _stored(entry)
        unless = () if self.packs is None else (self.packs.pack(entry.lsn), self._ended)
        if not self.objects.put_new(self.key(entry.lsn), stored, unless=unless):
            found = self.objects.get(self.key(entry.lsn), limit=self._limit)
            if found is None or self._own(found.data) != stored:
                raise StoreCorrupt(
                    f"{self.key(entry.lsn)} differs from the commit in the backup; nothing was replaced."
                )

    # --- the end ---

    def destroy(self) -> None:
        """End the log in a tombstone, and remove what it held: in a bucket the snapshots; `gc` takes the rest."""
        damaged = () if self.packs is None else (StoreCorrupt,)  # in a directory that goes with the rest
        with contextlib.suppress(*damaged):
            self._prove()
        deadline = time.monotonic() + 10 * self._timeout
        self.objects.put(self._ended, TOMBSTONE)
        with contextlib.suppress(StudyDeleted, *damaged):  # somebody was quicker
            self._bury(deadline)
        self.objects.delete(self.objects.listed(f"{self.root}snapshot/"))
        if self.packs is not None:
            self.packs.remove()

    def erase(self) -> None:
        """Remove a log that nobody else knows of; in a folder without a trace."""
        if self.packs is None:
            self.destroy()
        else:
            self.packs.erase()

    def _bury(self, deadline: float) -> None:
        head = max((lsn for lsn, _ in self._snapshots()), default=0)
        if self.packs is None:
            newer = self.objects.listed(f"{self.root}log/", after=self.key(head) if head else "")
            head = max((lsn_of(key) or 0 for key in newer), default=0)
        else:
            more = True
            while more:
                entries, more = self._look(head, deadline, certain=True)
                head += len(entries)
        while not self._decide(head + 1, TOMBSTONE, deadline)[1]:
            head += 1


class ScheduledObjectLog(ObjectLog):
    """A log whose commits are slow and costly: in a bucket, or on a file server. See `Log.rate_limited`."""

    rate_limited = True
    scheduler: WriteScheduler

    @property
    def flush_interval(self) -> float:
        return self.scheduler.flush_interval(time.monotonic())

    def wait_turn(self, since: int) -> Receipt:
        self._prove()
        self._begin(since)
        if self._audit is not None:
            self._audit.check()  # now: between the look and the write that follow, each request costs collisions
        if self.packs is not None and self._head == _BEHIND:
            return Receipt([])  # the exchange that follows begins with a look
        receipt = self._await_turn(since, time.monotonic() + self._timeout)
        self._end(since)
        return receipt


def _leading(window: Iterable[Found | None]) -> list[Found]:
    """What was found before the first free key."""
    found = []
    for one in window:
        if one is None:
            break
        found.append(one)
    return found


def _stored(entry: Entry) -> bytes:
    return chain.attach(entry.payload, entry.before)
