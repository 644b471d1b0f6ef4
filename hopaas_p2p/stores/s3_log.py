"""A log in a bucket: one object a commit, named by its lsn, written by PUT with `If-None-Match: *`.

    v1/study/{uuid}/log/{lsn:020d}         the bytes of a commit, as `core.codec` makes them
    v1/study/{uuid}/snapshot/{lsn:020d}
    v1/study/{uuid}/boundary/{lsn:020d}    commits up to this lsn were removed; `deleted`: all of them

To append: catch up, PUT the next key. Of all who do, one succeeds. The answer has three outcomes. *Mine*: 200. *Not
mine*: 412; the object that is there says whose it is, and it may well be mine, from an earlier PUT whose answer was
lost. *Unknown*: a time-out, 409, 5xx; the object that is there decides, and if there is none, the same bytes go to the
same key once more. A peer never moves on while a key is undecided: a PUT that is still under way somewhere could then
land behind its back. For the same reason it never gives a commit up: it comes again with the same bytes.

A deleted study ends in a tombstone, so that who still writes to it finds that instead of a free key. Commits are
removed by `gc` only, a day after they were read by everyone who was awake. Who slept longer looks at the boundary
before it believes that a free key is the end of the log.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, Final, NamedTuple, NoReturn

from hopaas_p2p.core import codec
from hopaas_p2p.errors import SleptThrough, StoreCorrupt, StoreUnreachable, StudyDeleted
from hopaas_p2p.stores.base import SNAPSHOTS_KEPT, Beat, Entry, Outgoing, Receipt
from hopaas_p2p.stores.s3_objects import Found, ObjectStore
from hopaas_p2p.stores.s3_tempo import WIDEST, Tempo

TOMBSTONE: Final = b"hopaas: this study is deleted\n"
DELETED: Final = "deleted"
_PATIENCE: Final = 5.0  # seconds for one exchange; the courier goes on from there
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0
_RECEIPT: Final = 8 << 20  # bytes
_ASLEEP: Final = 600.0  # seconds without contact after which a peer may have slept; gc leaves a day
_MAX_SNAPSHOT: Final = 1 << 30

Submit = Callable[..., "Future[Any] | None"]


class Clocks(NamedTuple):
    """This machine's clocks: one of them goes on whatever sleeps."""

    monotonic: float
    wall: float
    boot: float

    def furthest(self, since: Clocks) -> float:
        return max(self.monotonic - since.monotonic, abs(self.wall - since.wall), self.boot - since.boot)


def clocks() -> Clocks:
    """What they show now."""
    boot = time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
    return Clocks(time.monotonic(), time.time(), boot)


class S3Log:
    """See the module. One thread at a time.

    Args:
        objects: the bucket.
        root: where in it, ending with a slash.
        submit: runs a function in another thread; None when there is none to be had any more.
        ready: called before the first request: proves that the server can be used.
    """

    def __init__(
        self,
        objects: ObjectStore,
        root: str,
        *,
        submit: Submit,
        ready: Callable[[], None],
        patience: float = _PATIENCE,
        rng: random.Random | None = None,
    ) -> None:
        self.objects = objects
        self.root = root
        self.asleep_after = _ASLEEP
        self.clocks = clocks
        self.tempo = Tempo(rng)
        self._submit, self._ready, self._patience = submit, ready, patience
        self._awake: Clocks | None = None
        self._began = False

    # --- exchanging ---

    def exchange(self, outgoing: Outgoing | None, since: int, beat: Beat | None = None) -> Receipt:
        self._ready()
        deadline = time.monotonic() + self._patience
        began = self.clocks()
        self._see_whether_it_slept(since, began)
        receipt = (
            Receipt(*self._tail(since, deadline))
            if outgoing is None
            else self._append(outgoing.payload, since, deadline)
        )
        now = self.clocks()
        if now.furthest(began) > self.asleep_after:  # fell asleep on the way: what it wrote may stand where gc has been
            self._check_boundary(since)
        self._awake = now
        return receipt

    def changed(self, since: int) -> bool | None:
        return None

    def _append(self, payload: bytes, since: int, deadline: float) -> Receipt:
        entries: list[Entry] = []
        head = since
        time.sleep(self.tempo.after_winning(time.monotonic()))
        look = self.tempo.look_first(time.monotonic())
        while True:
            if look:
                found, more = self._tail(head, deadline)
                entries += found
                if more or any(entry.payload == payload for entry in found):
                    return Receipt(entries, more)
                head += len(found)
            entry, created = self._decide(head + 1, payload, deadline)
            entries.append(entry)
            head += 1
            if created:
                return Receipt(entries)
            if entry.payload == payload:  # it stood there already, and others may stand behind it
                found, more = self._tail(head, deadline)
                return Receipt(entries + found, more)
            if time.monotonic() >= deadline:
                return Receipt(entries, more=True)  # not appended, and the caller sees that: it comes again
            time.sleep(self.tempo.after_losing())
            look = True

    def _decide(self, lsn: int, payload: bytes, deadline: float) -> tuple[Entry, bool]:
        """PUT this commit at this lsn until it is known what is there; and whether this very PUT brought it there."""
        key = self._key(lsn)
        pause = _FIRST_PAUSE
        unknown: StoreUnreachable | None = None
        while True:
            began = time.monotonic()
            try:
                if self.objects.create(key, payload):
                    self.tempo.won(time.monotonic(), time.monotonic() - began)
                    return Entry(lsn, payload), True
            except StoreUnreachable as error:
                unknown = error
            found = self._get(lsn, deadline)
            if found is not None:
                return self._entry(lsn, found, mine=payload), False
            if time.monotonic() >= deadline:
                raise unknown or StoreUnreachable(f"{key} is neither free nor there; is the bucket consistent?")
            time.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(2 * pause, _LONGEST_PAUSE)

    # --- reading ---

    def _tail(self, since: int, deadline: float) -> tuple[list[Entry], bool]:
        """The commits after `since`, and whether there are more: windows of GETs, each twice as wide as the last."""
        entries: list[Entry] = []
        size = 0
        width = self.tempo.first_window(time.monotonic())
        while size < _RECEIPT:
            lsn = since + len(entries) + 1
            window = self._window(lsn, width, deadline)
            there = _leading(window)
            if not there and any(window):  # the key was free when it was asked for, and is not any more
                there = _leading([self._get(lsn, deadline)])
                if not there:
                    self._missing(lsn)
            elif not there and lsn == 1:
                self._check_beginning()
            entries += [self._entry(lsn + i, found) for i, found in enumerate(there)]
            size += sum(len(found.data) for found in there)
            if len(there) < width and not any(window[len(there) :]):
                self.tempo.reached_head(len(entries), time.monotonic())
                return entries, False
            width = min(2 * width, WIDEST)
        return entries, True

    def _window(self, lsn: int, width: int, deadline: float) -> list[Found | None]:
        if width == 1:
            return [self._get(lsn, deadline)]
        futures = [self._submit(self._get, lsn + i, deadline) for i in range(width)]
        found: list[Found | None] = []
        for i, future in enumerate(futures):
            found.append(self._get(lsn + i, deadline) if future is None else future.result())
            if future is None and found[-1] is None:
                break  # one after the other there is no need to look behind a free key
        return found

    def _get(self, lsn: int, deadline: float) -> Found | None:
        """What is at this lsn. Tries until the deadline, at least once."""
        pause = _FIRST_PAUSE
        suspect: bytes | None = None
        while True:
            try:
                found = self.objects.get(self._key(lsn), limit=codec.MAX_BYTES)
                if found is None or _sound(found) or found.data == suspect:
                    return found
                suspect = found.data  # cut short on the way, or as it is in the bucket: a second look tells
            except StoreUnreachable:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _entry(self, lsn: int, found: Found, *, mine: bytes | None = None) -> Entry:
        if found.data == TOMBSTONE:
            raise StudyDeleted
        if found.data != mine:
            self.tempo.saw(found.data, found.modified)
        return Entry(lsn, found.data)

    def _key(self, lsn: int) -> str:
        return f"{self.root}log/{lsn:020d}"

    # --- what is not there any more ---

    def _see_whether_it_slept(self, since: int, now: Clocks) -> None:
        """A free key is the end of the log only for who was awake: what a sleeper has not read may be gone."""
        if since and (self._awake is None or now.furthest(self._awake) > self.asleep_after):
            self._check_boundary(since)

    def _check_boundary(self, since: int) -> None:
        if self._boundary() > since:
            raise SleptThrough

    def _boundary(self) -> int:
        """The lsn up to which commits were removed. Raises StudyDeleted."""
        names = [one.key.rpartition("/")[2] for one in self.objects.listed(f"{self.root}boundary/")]
        if DELETED in names:
            raise StudyDeleted
        return max((int(name) for name in names if name.isdigit()), default=0)

    def _check_beginning(self) -> None:
        """There is no lsn 1: a log that nobody has written to, or one that somebody has cut. Asks once."""
        if self._began:
            return
        for one in self.objects.listed(self.root, at_most=3):
            kind, _, name = one.key[len(self.root) :].partition("/")
            if kind == "boundary" and name == DELETED:
                raise StudyDeleted
            if kind == "log" and name != f"{1:020d}":
                self._missing(1)
        self._began = True

    def _missing(self, lsn: int) -> NoReturn:
        raise StoreCorrupt(
            f"{self._key(lsn)} is missing, but there are commits behind it. A lifecycle rule of the bucket, or "
            "somebody who cleaned up, has removed it: take the rule away, and restore the object from a version or a "
            "backup. Nothing was changed."
        )

    # --- snapshots ---

    def newest_snapshot(self) -> tuple[int, bytes] | None:
        self._ready()
        for lsn, key in reversed(self._snapshots()):
            found = self.objects.get(key, limit=_MAX_SNAPSHOT)
            if found is not None and len(found.data) == found.size:
                self._awake = self.clocks()
                return lsn, found.data
        return None

    def put_snapshot(self, lsn: int, data: bytes) -> None:
        self._ready()
        self.objects.put(f"{self.root}snapshot/{lsn:020d}", data)
        self.objects.delete([key for _, key in self._snapshots()[:-SNAPSHOTS_KEPT]])

    def _snapshots(self) -> list[tuple[int, str]]:
        listed = [(one.key.rpartition("/")[2], one.key) for one in self.objects.listed(f"{self.root}snapshot/")]
        return [(int(name), key) for name, key in listed if name.isdigit()]

    # --- the end ---

    def destroy(self) -> None:
        """End the log in a tombstone, and remove the snapshots. What it held goes a day later, with `gc`."""
        self._ready()
        deadline = time.monotonic() + 10 * self._patience
        self.objects.put(f"{self.root}boundary/{DELETED}", TOMBSTONE)
        with contextlib.suppress(StudyDeleted):  # somebody was quicker
            self._bury(deadline)
        self.objects.delete([key for _, key in self._snapshots()])

    def _bury(self, deadline: float) -> None:
        newest = self.objects.listed(f"{self.root}log/", after=self._last_known())
        head = int(newest[-1].key.rpartition("/")[2]) if newest else 0
        while not self._decide(head + 1, TOMBSTONE, deadline)[1]:
            head += 1

    def _last_known(self) -> str:
        snapshots = self._snapshots()
        return self._key(snapshots[-1][0]) if snapshots else ""


def _leading(window: Iterable[Found | None]) -> list[Found]:
    """What was found before the first free key."""
    found = []
    for one in window:
        if one is None:
            break
        found.append(one)
    return found


def _sound(found: Found) -> bool:
    return codec.intact(found.data) or found.data == TOMBSTONE or found.size > codec.MAX_BYTES
