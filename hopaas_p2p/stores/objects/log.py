"""A log of write-once objects: one object per commit, named by its lsn, which exactly one writer can create.

The log of a directory (`directory.log`) and that of a bucket (`s3.log`) have these names in common:

    study/{uuid}/snapshot/{lsn:020d}
    study/{uuid}/snapshot/blocks/{name}            finished trials, shared by snapshots: see `core.snapshot.split`
    study/{uuid}/boundary/{lsn:020d}               commits up to this lsn were removed; `deleted`: all of them

To append a commit, a peer puts the next key, and exactly one of several peers succeeds. A put has three outcomes.
*Mine*: the key was created. *Not mine*: the key exists; its object shows whose commit it is, which may be mine, from an
earlier attempt whose answer was lost. *Unknown*: after a timeout or an I/O error, the peer reads the key, and if the
key is free, it sends the same bytes again. A peer never moves on while a key is undecided, because an attempt that is
still under way could then take effect unnoticed. For the same reason, a peer does not give up a commit.

There is no lock. A peer that is stopped, frozen or cut off in the middle of a write does not delay others.

A deleted study ends with a tombstone, which a peer that still writes to the study finds instead of a free key.

A peer reads a log from the last commit that it knows up to the first free key. `History` and, for network file systems,
`directory.files` ensure that this key is really the end.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Final, Generic, NamedTuple, NoReturn

from hopaas_p2p.core import codec
from hopaas_p2p.errors import BehindRetention, BrokenChain, Denied, StoreCorrupt, StoreUnreachable, StudyDeleted
from hopaas_p2p.net.backoff import Backoff
from hopaas_p2p.stores.base import (
    EXCHANGE_TIMEOUT,
    SNAPSHOT_EVERY,
    SNAPSHOTS_KEPT,
    Beat,
    Entry,
    ExchangeResult,
    Log,
    Outgoing,
)
from hopaas_p2p.stores.objects.carried import MAGIC, PiggybackedCommits, opened
from hopaas_p2p.stores.objects.contract import LARGEST, Found, Objects, ObjectStore, answered, lsn_of, numbered
from hopaas_p2p.stores.objects.store import ObjectBackedStore

DELETED: Final = "deleted"
TOMBSTONE: Final = b"hopaas: this study is deleted\n"
BEHIND: Final = -1
"""Stands for an unknown lsn of the log's end."""
RECEIPT: Final = 8 << 20  # bytes of commits that one exchange returns
SPAN: Final = SNAPSHOT_EVERY
"""Commits per range. A directory has one pack per range; the commits after a snapshot begin a new range."""
TIDY_EVERY: Final = 64  # commits between two checks for removable folders
_MAX_SNAPSHOT: Final = 1 << 30
_REMEMBERED: Final = 8 << 20  # bytes of commits kept in memory for a pack; further ones are read again
_SUMS: Final = 256  # sums kept, of the log up to recent commits; most callers of a server have read up to one of them
_PAUSES: Final = (0.05, 1.0)  # seconds
_SECOND_LOOK: Final = 0.005  # seconds
EVERY: Final = 1.0  # seconds between checks of the last commit where each may cost a call to a server
_ADVICE: Final = "Perhaps a backup was restored under running peers. Nothing was changed. Run: hopaas-p2p doctor URL"
_BOOT: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Clocks(NamedTuple):
    """This machine's clocks, at least one of which advances while a process or the machine sleeps."""

    wall: float
    boot: float


def clocks() -> Clocks:
    """The current readings of this machine's clocks."""
    return Clocks(time.time(), time.clock_gettime(_BOOT))


class History:
    """What one handle knows of a log's past: its sums, and whether commits were removed.

    A commit is stored with the sum of the log before it (see `core.codec`), and what is read must follow what was read
    before. In a directory on a local file system, checking the last commit costs some microseconds, so it precedes
    every write. A backup that was restored under running peers is then noticed before anything is written beside it.
    On a file server, a check is made at most once per second. In a bucket, the next commit reveals a restored backup.

    A free key is the end of the log only for a process that was awake. `gc` leaves everything in a bucket for a day,
    and a folder of a directory stays for minutes beside its pack. If a clock of the machine has advanced by more
    than that since the last contact, the process checks for removals before it trusts a free key or acknowledges a
    write.

    An exchange lasts from `begin` to `end`. During an exchange, the end of the log can be trusted unless this process
    slept. Commits that it has not read may be removed minutes after packing, and a network file system may then still
    show their folder, half empty. So a process that has not seen the end of the log for a while reads packs first.

    Args:
        objects: where the log is.
        root: the key of the log's folder.
        stored: reads what is stored at an lsn; None if there is certainly nothing.
        asleep: seconds without contact after which this process may have slept through a removal.

    """

    def __init__(
        self, objects: ObjectStore, root: str, stored: Callable[[int], bytes | None], *, asleep: float
    ) -> None:
        self._objects, self._root, self._stored, self._asleep = objects, root, stored, asleep
        self.every = math.inf
        """Seconds between two checks that the last commit is still there; infinite if the next commit reveals that."""
        self.chain: tuple[int, int | None] = 0, 0
        """An lsn, and the sum of the log up to it, if it is known."""
        self.sums: dict[int, int | None] = {}
        """lsn -> the sum up to this commit, for the commits that this handle has read or written lately."""
        self._last_written: tuple[int, int | None, bytes] = 0, None, b""
        """The lsn of the last commit that this process wrote, the sum of the log up to it, and its object."""
        self._checked_at = 0.0
        self.snapshot = 0
        """The lsn of the last snapshot read, until it is known that the log extends that far."""
        self.contradicted = False
        """Whether something read since `begin` does not follow what was read before."""
        self.clocks: Callable[[], Clocks] = clocks
        self.last: Clocks | None = None
        """The last moment at which this process certainly knew the log's end."""
        self._began = self.clocks()
        self._known: Clocks | None = None
        """Like `last`, as of the current exchange, which may still fail."""

    # --- whether this process slept ---

    def begin(self, since: int, outgoing: Outgoing | None = None) -> bool:
        """Begin an exchange of a peer that has read up to `since`; return whether this process may have slept.

        Before a write, but at most once in `every` seconds, check that the last commit that the peer has read is still
        there, unchanged.

        Raises:
            BehindRetention: some later commits have been removed.
            StudyDeleted: all commits have been removed.
            BrokenChain: the last commit is missing or different.

        """
        self._began, self._known = self.clocks(), self.last
        woke = self.slept(now=self._began)
        if since and woke:
            self.check_retained(since)
        self.contradicted = False
        if len(self.sums) > 2 * _SUMS:
            self.sums = dict(sorted(self.sums.items())[-_SUMS:])
        if outgoing is not None and outgoing.chain is not None:
            self.chain = since, outgoing.chain
        if since and since == self.snapshot:  # check that the log extends to the peer's snapshot
            if self._stored(since) is None and self.truncation_point() < since:
                self.gone(since)
            self.snapshot = 0
        now = time.monotonic()
        if outgoing is None or not 0 < since == self.chain[0] or now - self._checked_at < self.every:
            return woke
        self._checked_at = now
        stored, known = self._stored(since), self.chain[1]
        if stored is None:
            self.gone(since)
        if (since, known, stored) == self._last_written:  # as nearly always
            return woke
        payload, before, _ = codec.detach(stored)
        there = None if before is None else codec.following(before, payload)
        if known is not None and there is not None and known != there:
            raise BrokenChain(
                f"this log has two histories: up to commit {since} a peer read the sum {codec.shown(known)}, which is "
                f"now {codec.shown(there)}. {_ADVICE}"
            )
        return woke

    def saw_end(self) -> None:
        """Record that the end of the log was seen after this exchange had begun."""
        self._known = self._began

    def end(self, since: int) -> None:
        """End the exchange. If this process slept during it, check for removals. Raises like `begin`."""
        if self.slept(self._began):
            self.check_retained(since)
        self.last = self._known

    def slept(self, then: Clocks | None = None, now: Clocks | None = None) -> bool:
        """Whether this process may have slept since `then`, by default since the end of the log was last seen."""
        then, now = then or self._known, now or self.clocks()
        return then is None or max(abs(now.wall - then.wall), now.boot - then.boot) > self._asleep

    def check_retained(self, since: int) -> None:
        """Check, for a peer that has read up to `since`, that no later commits were removed. Raises like `begin`."""
        if self.truncation_point() > since:
            raise BehindRetention

    def truncation_point(self) -> int:
        """The lsn up to which commits were removed. Raises StudyDeleted."""
        keys = self._objects.listed(f"{self._root}boundary/")
        if f"{self._root}boundary/{DELETED}" in keys:
            raise StudyDeleted
        return max((lsn_of(key) or 0 for key in keys), default=0)

    # --- what came before ---

    def wrote(self, lsn: int, payload: bytes, before: int | None, data: bytes) -> None:
        """Record that this process wrote this commit, in an object of these bytes, at the end of the log.

        `before` is the sum of the log before it, if that is known.
        """
        self._known = self._began
        if before is not None or lsn > self.chain[0]:
            self.chain = lsn, None if before is None else codec.following(before, payload)
            self.sums[lsn] = self.chain[1]
            self._last_written = (*self.chain, data)

    def follow(self, lsn: int, payload: bytes, before: int | None) -> None:
        """Record that this commit was read, with its writer's sum."""
        known = self.chain[1] if self.chain[0] == lsn - 1 else None
        if before is None:
            before = known
        elif known is not None and known != before:
            self.contradicted = True
        elif known is not None:
            self._checked_at = time.monotonic()  # as good as checking the last commit
        if before is not None or lsn > self.chain[0]:
            self.chain = lsn, None if before is None else codec.following(before, payload)
            self.sums[lsn] = self.chain[1]

    @staticmethod
    def gone(lsn: int) -> NoReturn:
        """Raise BrokenChain, because this commit is missing, although a peer's state depends on it."""
        raise BrokenChain(f"commit {lsn}, which a peer has read, is gone from the log. {_ADVICE}")


class WriteScheduler:
    """Writes at once without reading first, as in a directory on one machine, where both cost next to nothing.

    Times are seconds on the caller's monotonic clock, except for `modified`, which is the server's.
    """

    at_once: bool = True
    """Whether writers never read first or wait, so that their writes need not be recorded."""

    def saw(self, payload: bytes, modified: float, now: float) -> None:
        """Record that a commit of another peer was read."""

    def reached_head(self, others: int, now: float) -> None:
        """Record that the log was read up to its end, with `others` commits since the last time."""

    def won(self, now: float, took: float, writer: str = "") -> None:
        """Record that a write of this peer, or of a server for this writer, became a commit."""

    def lost(self, now: float, took: float) -> None:
        """Record that another peer's write came before this peer's."""

    def look_first(self, now: float) -> bool:
        """Whether a read before the write probably pays off."""
        return False

    def pause(self, now: float) -> float:
        """Seconds after which to read again, because this peer should not write yet; 0 if it may write."""
        return 0.0

    def after_losing(self) -> float:
        """Seconds to pause after another peer's write came first."""
        return 0.0

    def flush_interval(self, now: float) -> float:
        """Seconds for which reports should wait, so that all reports together fill at most a fifth of the log."""
        return 0.0


class WriteOnceLog(Log, Generic[Objects]):
    """A log of write-once objects; see the module. Used by one thread at a time.

    Args:
        store: the store of the log, which checks before a read that it is a store, and proves before a write that a key
            has one winner.
        root: the log's place in the store, ending with a slash.
        scheduler: decides when to write, and whether to read first.

    """

    names: str
    """The key of a single commit below the root, with its `lsn` and the `first` one of its range to be filled in."""
    carries: bool = False
    """Whether the object of a commit may also hold the commits before it. Otherwise, such bytes are not a commit."""
    limit: int = LARGEST
    """The most bytes of an object that are read."""
    asleep: float
    """Seconds without contact after which this process may have slept through a removal."""
    scatter: int = SPAN
    """The range of lsns over which the pieces of one commit are spread; see `_pieces`."""
    losses: int = 1
    """Consecutive lost writes after which a read is worthwhile."""
    looks_if_behind: bool = False
    """If True, read before the first write of an exchange exactly if the peer has not seen the end of the log. If
    False, read if that probably pays off."""

    def __init__(self, store: ObjectBackedStore[Objects], root: str, scheduler: WriteScheduler) -> None:
        self.store = store
        self.objects = store.objects
        self.root = root
        self.scheduler = scheduler
        self.history = History(self.objects, root, self._stored, asleep=self.asleep)
        self._timeout = EXCHANGE_TIMEOUT
        self._ended = f"{root}boundary/{DELETED}"
        self._blocks = f"{root}snapshot/blocks/"
        self._proven = False
        self._has_beginning = False
        self._head = BEHIND
        """The lsn up to which this log was read when its end was last seen."""
        self._seen = 0
        """The highest lsn that the log is known to have, over all callers, so that the scheduler counts each commit
        once.
        """
        self._recent: dict[int, bytes] = {}
        """Objects of the current range, for its pack; empty in a process that has not written here."""
        self._size = 0
        """The bytes of the objects in `_recent`."""

    def key(self, lsn: int) -> str:
        """The key of a single commit."""
        return self.root + self.names.format(first=(lsn - 1) // SPAN * SPAN + 1, lsn=lsn)

    def pack(self, lsn: int) -> str:
        """The key of the pack that would hold this lsn, where there are packs."""
        return f"{self.root}packs/{(lsn - 1) // SPAN * SPAN + 1:020d}"

    # --- what directories and buckets do differently ---

    @abstractmethod
    def _read_on(self, since: int, entries: list[Entry], deadline: float, *, certain: bool) -> bool:
        """Add the commits after `since`, up to the first free key; return whether the result was full before that.

        Unless `certain`, there may be more commits that this machine's file system has not seen yet.
        """

    @abstractmethod
    def _entry(self, lsn: int, found: Found, *, mine: bytes | None = None) -> Entry:
        """An object as a commit. Raises StudyDeleted for a tombstone."""

    def _packed_from(self, lsn: int) -> list[bytes]:
        """The commits in the pack of this lsn's range, from this lsn on, if there is a pack."""
        return []

    def _tidy(self, lsn: int) -> None:
        """Clean up, as the process that appended this commit; called for one commit in `TIDY_EVERY`."""

    @abstractmethod
    def _pieces(self) -> Iterator[tuple[int, bytes]]:
        """Each lsn under which something is stored, and its bytes. Later items are at most `scatter` lsns lower."""

    # --- exchanging ---

    def exchange(self, outgoing: Outgoing | None, since: int, beat: Beat | None = None) -> ExchangeResult:
        if outgoing is None or not self._proven:
            self._enter(writes=outgoing is not None)
        deadline = time.monotonic() + self._timeout
        if self.history.begin(since, outgoing):
            self._head, self._has_beginning = BEHIND, False
        if outgoing is None:
            receipt = ExchangeResult(*self._look(since, deadline, certain=True))
        else:
            receipt = self._append(outgoing, since, deadline)
        self.history.end(since)
        return receipt

    def _enter(self, *, writes: bool) -> None:
        """Check before an exchange that this is a store and, before a write, that a key has one winner."""
        self._prove() if writes else self.store.find()

    def _prove(self) -> None:
        self._proven = self.store.prove(self.root)

    @property
    def flush_interval(self) -> float:
        return self.scheduler.flush_interval(time.monotonic())

    def wait_turn(self, since: int) -> ExchangeResult:
        self._enter(writes=True)
        if self.history.begin(since):
            self._head, self._has_beginning = BEHIND, False
        if self.looks_if_behind and since != self._head:
            return ExchangeResult([])  # the next exchange begins with a read
        receipt = self._await_turn(since, time.monotonic() + self._timeout)
        self.history.end(since)
        return receipt

    # --- reading ---

    def _look(self, since: int, deadline: float, *, certain: bool) -> tuple[list[Entry], bool]:
        """The commits after `since`, and whether there are more. Raises like `exchange`."""
        entries: list[Entry] = []
        counted = max(since, self._seen)
        if self._read_on(since, entries, deadline, certain=certain):
            return entries, True
        self._head = since + len(entries)
        self.scheduler.reached_head(max(self._head - counted, 0), time.monotonic())
        if certain:
            self.history.saw_end()
        return entries, False

    def _get(
        self, lsn: int, deadline: float, *, suspect: Found | StoreUnreachable | None = None, certain: bool = True
    ) -> Found | None:
        """The object at this lsn. Tries again until the deadline while the store does not answer.

        An object that is not a commit was either truncated in transit or is like that in the store, so it is read a
        second time. A result of an earlier read may be passed as `suspect`. Raises StoreCorrupt for a damaged commit.
        """
        backoff = Backoff(*_PAUSES)
        settled = time.monotonic() + self.objects.settles
        while True:
            if isinstance(suspect, Found):
                time.sleep(_SECOND_LOOK)
            try:
                found = self.objects.get(self.key(lsn), limit=self.limit, certain=certain)
                if found is None or self._is_settled(found):
                    return found
                if found == suspect and time.monotonic() >= settled:
                    # the bytes end like one of our objects
                    if found.data.endswith(MAGIC) or codec.detach(found.data)[0] is not found.data:
                        raise StoreCorrupt(
                            f"{self.key(lsn)} is damaged: it is complete, but not as it was written. Nothing was "
                            "changed. Restore it from a backup, or run: hopaas-p2p doctor URL"
                        )
                    return found
                suspect = found
            except StoreUnreachable:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(backoff.pause())

    def _is_settled(self, found: Found) -> bool:
        """Whether no second read is needed to know what is stored."""
        return opened(found.data).sound or found.data == TOMBSTONE or found.size > self.limit

    def _resolved(self, lsn: int, one: Found | StoreUnreachable | None, deadline: float) -> Found | None:
        """What is certainly stored at this lsn, given `one` from a read of several objects."""
        if one is None or (isinstance(one, Found) and self._is_settled(one)):
            return one
        return self._get(lsn, deadline, suspect=one)

    def _stored(self, lsn: int) -> bytes | None:
        """The bytes of this commit, which a peer has read, from its own object or a pack; None if neither exists.

        Raises StudyDeleted. Both are read twice before None is returned, because a file system may be mounted again
        between the read of the commit and the check for the store.
        """
        for _ in range(2):
            found = self.objects.get(self.key(lsn), limit=self.limit, certain=False)
            if found is not None:
                return opened(found.data).stored if self.carries else found.data
            if packed := self._packed_from(lsn):
                return packed[0]
            self._check_deleted()
        return None

    def _check_deleted(self) -> None:
        if self.objects.get(self._ended, limit=len(TOMBSTONE)) is not None:
            raise StudyDeleted

    def _check_tombstone(self, data: bytes) -> None:
        """Raise StudyDeleted for a tombstone, if the boundary confirms it, which a worker's key cannot write."""
        if data == TOMBSTONE:
            self._check_deleted()

    def _check_beginning(self, deadline: float) -> None:
        """Check once that a log without commit 1 was never written to, and that its beginning was not removed."""
        if self._has_beginning:
            return
        for key in self.objects.listed(self.root, at_most=3):
            if key == self._ended:
                raise StudyDeleted
            kind = key[len(self.root) :].partition("/")[0]
            if kind in ("log", "commits", "packs") and lsn_of(key) not in (None, 1):
                if self._get(1, deadline) is not None:  # it was written just now
                    break
                self._missing(1)
        self._has_beginning = True

    def _missing(self, lsn: int) -> NoReturn:
        raise StoreCorrupt(
            f"{self.key(lsn)} is missing, but there are commits after it. A user, a tool that removes dangling links, "
            "or a lifecycle rule has removed it. Prevent that, and restore the commit from a backup or, in a bucket, "
            "from an older version of the object. Nothing was changed. To copy the rest into a new study: "
            "hopaas-p2p doctor STORE --rescue"
        )

    # --- appending ---

    def _append(self, outgoing: Outgoing, since: int, deadline: float) -> ExchangeResult:
        entries, payload = list[Entry](), outgoing.payload
        look, losses = since != self._head if self.looks_if_behind else (since < self._seen or None), 0
        while True:
            if look or not self.scheduler.at_once:
                found = self._await_turn(since + len(entries), deadline, look=look)
                entries += found.entries
                appended = bool(found.entries) and self._secure(payload, found.entries)
                if found.more or appended:
                    return ExchangeResult(entries, found.more)
            if self.history.contradicted:
                return ExchangeResult(entries, more=True)  # not appended, since it would be in a different history
            entry, created = self._decide(since + len(entries) + 1, outgoing, deadline)
            entries.append(entry)
            self._head = self._seen = entry.lsn
            if created:
                return ExchangeResult(entries)
            if entry.payload == payload:  # the commit was already there, and others may follow
                self._secure(payload, [entry])
                behind, more = self._look(entry.lsn, deadline, certain=True)
                return ExchangeResult(entries + behind, more)
            if time.monotonic() >= deadline:
                return ExchangeResult(entries, more=True)  # not appended; the caller sees that and sends it again
            if pause := self.scheduler.after_losing():
                time.sleep(pause)
            losses += 1
            look = losses % self.losses == 0

    def _await_turn(self, since: int, deadline: float, *, look: bool | None = None) -> ExchangeResult:
        """Read if `look`, or by default if that probably pays off, and wait for this peer's turn; return new commits.

        A read by default need not be certain, because the following write finds any commit that the read missed.
        """
        entries: list[Entry] = []
        certain = bool(look)
        if look is None:
            look = self.scheduler.look_first(time.monotonic())
        while True:
            if look:
                found, more = self._look(since + len(entries), deadline, certain=certain)
                entries += found
                if more:
                    return ExchangeResult(entries, more)
            pause = self.scheduler.pause(time.monotonic())
            if not pause or time.monotonic() + pause >= deadline:
                return ExchangeResult(entries)
            time.sleep(pause)
            look = True

    def _secure(self, payload: bytes, entries: list[Entry]) -> bool:
        """Secure a commit of an earlier attempt, whose writer may have been cut off before it was durable.

        Returns whether that commit is among `entries`.
        """
        mine = [entry.lsn for entry in entries if entry.payload == payload]
        for lsn in mine:
            self.objects.secure(self.key(lsn))
        return bool(mine)

    def _decide(self, lsn: int, outgoing: Outgoing, deadline: float) -> tuple[Entry, bool]:
        """Try to write this commit at this lsn until it is known which one is there; return it, and whether a
        request of this call is known to have written it.
        """
        backoff: Backoff | None = None
        unknown: StoreUnreachable | None = None
        payload, (read, total) = outgoing.payload, self.history.chain
        before = total if read == lsn - 1 else None
        while True:
            began, data = time.monotonic(), None
            try:
                data = self._create(lsn, outgoing, before)
            except BehindRetention:
                raise
            except StoreUnreachable as error:
                unknown = error
            else:
                if not self.scheduler.at_once:
                    now = time.monotonic()
                    if data is None:
                        self.scheduler.lost(now, now - began)
                    else:
                        self.scheduler.won(now, now - began, outgoing.writer)
            if data is not None:
                self.history.wrote(lsn, payload, before, data)
                if lsn % TIDY_EVERY == 0:
                    with contextlib.suppress(StoreUnreachable, Denied):  # the next writer tries again
                        self._tidy(lsn)
                return Entry(lsn, payload, outgoing.stamp, before), True
            found = self._get(lsn, deadline, certain=False)
            other = self._elsewhere(lsn, deadline) if found is None else self._entry(lsn, found, mine=payload)
            if other is not None:
                return other, False
            if time.monotonic() >= deadline:
                where = self.key(lsn)
                raise unknown or StoreUnreachable(f"{where} is neither free nor present: the store is not consistent")
            backoff = backoff or Backoff(*_PAUSES)
            time.sleep(backoff.pause())

    def _create(self, lsn: int, outgoing: Outgoing, before: int | None) -> bytes | None:
        """Create this commit at this lsn, with the sum before it; return its object, or None if the key exists.

        A second call writes the same bytes. Raises StoreUnreachable; BehindRetention if this process slept, and the
        range of the new object was packed and removed meanwhile.
        """
        data, unless = codec.attach(outgoing.payload, before, outgoing.stamp), None
        if lsn % SPAN == 1:
            unless = (self.pack(lsn), self._ended)
            if lsn > 1:  # a power cut must not take the commit before it
                self.objects.secure(self.key(lsn - 1))
        try:
            created = self.objects.put_new(self.key(lsn), data, unless=unless)
        finally:
            if self.history.slept() and self.objects.get(self.pack(lsn), limit=0) is not None:
                self._head = BEHIND
                raise BehindRetention
        if created:
            self._keep(lsn, data)
        return data if created else None

    def _keep(self, lsn: int, data: bytes) -> None:
        """Keep an object of the current range for its pack."""
        if lsn % SPAN == 1:
            self._recent, self._size = {}, 0
        if self._size < _REMEMBERED:
            self._recent[lsn] = data
            self._size += len(data)

    def _elsewhere(self, lsn: int, deadline: float) -> Entry | None:
        """The commit of an lsn whose key is free, if the commit is in another place."""
        return None

    def is_empty(self) -> bool:
        return not self.history.sums and super().is_empty()

    def sum_at(self, lsn: int) -> int | None:
        known = self.history.sums.get(lsn)
        return super().sum_at(lsn) if known is None else known

    # --- snapshots ---

    def snapshot_head(self, before: int | None) -> tuple[int, bytes] | None:
        self.store.find()
        for lsn, key in reversed(self._snapshots()):
            if before is not None and lsn >= before:
                continue
            found = self.objects.get(key, limit=_MAX_SNAPSHOT)
            if found is not None and len(found.data) == found.size:
                self.history.last = self.history.clocks()
                self._head, self._seen, self.history.snapshot = BEHIND, max(self._seen, lsn), lsn
                return lsn, found.data
        return None

    def blocks(self, names: list[str]) -> dict[str, bytes]:
        found = answered(self.objects.get_many([self._blocks + name for name in names], limit=_MAX_SNAPSHOT))
        return {name: one.data for name, one in zip(names, found, strict=True) if one}

    def block_names(self) -> set[str]:
        return {key.removeprefix(self._blocks) for key in self.objects.listed(self._blocks)}

    def put_block(self, name: str, data: bytes) -> None:
        self._prove()
        self.objects.put_same(self._blocks + name, data)

    def put_snapshot_head(self, lsn: int, head: bytes) -> None:
        self._prove()
        self.objects.put_same(f"{self.root}snapshot/{lsn:020d}", head)
        older = [key for found, key in self._snapshots() if found <= lsn]  # a false lsn displaces none
        self.objects.discard(older[:-SNAPSHOTS_KEPT])

    def _snapshots(self) -> list[tuple[int, str]]:
        return numbered(self.objects.listed(f"{self.root}snapshot/"))

    # --- backups and rescue ---

    def salvage(self) -> Iterator[Entry]:
        self.store.find()
        held: dict[int, list[bytes]] = {}
        for lsn, data in itertools.chain(self._pieces(), [(math.inf, TOMBSTONE)]):
            if isinstance(lsn, int):
                there = opened(data)
                _add(held.setdefault(lsn, []), there.stored)
                with contextlib.suppress(BrokenChain):
                    for copy in PiggybackedCommits().copies(lsn, there):
                        _add(held.setdefault(copy.lsn, []), codec.attach(copy.payload, copy.before))
            for complete in sorted(one for one in held if one <= lsn - self.scatter):  # no more pieces will come
                for stored in held.pop(complete):
                    if stored != TOMBSTONE:
                        payload, before, stamp = codec.detach(stored)
                        yield Entry(complete, payload, stamp, before)

    def removed_up_to(self) -> int:
        self.store.find()
        return self.history.truncation_point()

    def _restore_one(self, entry: Entry, unless: tuple[str, ...] = ()) -> None:
        stored = codec.attach(entry.payload, entry.before, entry.stamp)
        if not self.objects.put_new(self.key(entry.lsn), stored, unless=unless):
            found = self.objects.get(self.key(entry.lsn), limit=self.limit)
            if found is None or opened(found.data).stored != stored:
                raise StoreCorrupt(
                    f"{self.key(entry.lsn)} differs from the commit in the backup; nothing was replaced."
                )

    # --- the end ---

    def destroy(self) -> None:
        """End the log with a tombstone, and remove its snapshots."""
        self._prove()
        deadline = time.monotonic() + 10 * self._timeout
        self.objects.put(self._ended, TOMBSTONE)
        with contextlib.suppress(StudyDeleted):  # another process was quicker
            head = self._find_end(deadline)
            while not self._decide(head + 1, Outgoing("", TOMBSTONE), deadline)[1]:
                head += 1
        self.objects.delete(self.objects.listed(f"{self.root}snapshot/"))
        self.history.sums.clear()

    @abstractmethod
    def _find_end(self, deadline: float) -> int:
        """The lsn of the last commit."""


def _add(there: list[bytes], data: bytes) -> None:
    """Add a commit to those of its lsn, unless it is among them; a damaged one is replaced by any other."""
    if there and not codec.intact(there[0]):
        there[:] = [data]
    elif not there or (codec.intact(data) and not any(_same(data, one) for one in there)):
        there.append(data)


def _same(stored: bytes, other: bytes) -> bool:
    """Whether both are the same commit and, as far as is known, follow the same commits."""
    (payload, before, stamp), (there, known, said) = codec.detach(stored), codec.detach(other)
    return payload == there and stamp == said and (before == known or before is None or known is None)
