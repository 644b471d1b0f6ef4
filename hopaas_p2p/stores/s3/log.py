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
from collections.abc import Callable
from typing import Final

from hopaas_p2p.errors import StoreUnreachable, StudyDeleted
from hopaas_p2p.stores.base import SNAPSHOTS_KEPT, Beat, Entry, Outgoing, Receipt
from hopaas_p2p.stores.s3.awake import DELETED, Awake
from hopaas_p2p.stores.s3.objects import ObjectStore
from hopaas_p2p.stores.s3.tail import FIRST_PAUSE, LONGEST_PAUSE, TOMBSTONE, Submit, Tail
from hopaas_p2p.stores.s3.tempo import Tempo

_PATIENCE: Final = 5.0  # seconds for one exchange; the courier goes on from there
_MAX_SNAPSHOT: Final = 1 << 30


class S3Log:
    """See the module. One thread at a time.

    Args:
        objects: the bucket.
        root: where in it, ending with a slash.
        submit: runs a function in another thread; None when there is none to be had any more.
        readable: called before the first request: sees that this is a store.
        writable: called before the first PUT: proves that the server keeps the condition.
        at_first: see `Tail`.
    """

    def __init__(
        self,
        objects: ObjectStore,
        root: str,
        *,
        submit: Submit,
        readable: Callable[[], object],
        writable: Callable[[], object],
        at_first: int | None = None,
        patience: float = _PATIENCE,
        rng: random.Random | None = None,
    ) -> None:
        self.objects = objects
        self.root = root
        self.tempo = Tempo(rng)
        self.awake = Awake(objects, root)
        self.tail = Tail(objects, root, tempo=self.tempo, submit=submit, at_first=at_first)
        self._readable, self._writable, self._patience = readable, writable, patience

    # --- exchanging ---

    def exchange(self, outgoing: Outgoing | None, since: int, beat: Beat | None = None) -> Receipt:
        self._readable() if outgoing is None else self._writable()
        deadline = time.monotonic() + self._patience
        began = self.awake.begin(since)
        receipt = (
            Receipt(*self.tail.after(since, deadline))
            if outgoing is None
            else self._append(outgoing.payload, since, deadline)
        )
        self.awake.end(since, began)
        return receipt

    def changed(self, since: int) -> bool | None:
        return None

    @property
    def linger(self) -> float:
        return self.tempo.linger(time.monotonic())

    def approach(self, since: int) -> Receipt:
        self._writable()
        began = self.awake.begin(since)
        receipt = self._approach(since, time.monotonic() + self._patience)
        self.awake.end(since, began)
        return receipt

    def _approach(self, since: int, deadline: float, *, look: bool = False) -> Receipt:
        """Look, where that pays, and wait while it is others' turn; what came meanwhile."""
        entries: list[Entry] = []
        look = look or self.tempo.look_first(time.monotonic())
        while True:
            if look:
                found, more = self.tail.after(since + len(entries), deadline)
                entries += found
                if more:
                    return Receipt(entries, more)
            pause = self.tempo.pause(time.monotonic())
            if not pause or time.monotonic() + pause >= deadline:
                return Receipt(entries)
            time.sleep(pause)
            look = True

    def _append(self, payload: bytes, since: int, deadline: float) -> Receipt:
        entries: list[Entry] = []
        lost = False
        while True:
            found, more = self._approach(since + len(entries), deadline, look=lost)
            entries += found
            if more or any(entry.payload == payload for entry in found):
                return Receipt(entries, more)
            entry, created = self._decide(since + len(entries) + 1, payload, deadline)
            entries.append(entry)
            if created:
                return Receipt(entries)
            if entry.payload == payload:  # it stood there already, and others may stand behind it
                found, more = self.tail.after(entry.lsn, deadline)
                return Receipt(entries + found, more)
            if time.monotonic() >= deadline:
                return Receipt(entries, more=True)  # not appended, and the caller sees that: it comes again
            time.sleep(self.tempo.after_losing())
            lost = True

    def _decide(self, lsn: int, payload: bytes, deadline: float) -> tuple[Entry, bool]:
        """PUT this commit at this lsn until it is known what is there; and whether this very PUT brought it there."""
        key = self.tail.key(lsn)
        pause = FIRST_PAUSE
        unknown: StoreUnreachable | None = None
        while True:
            began = time.monotonic()
            try:
                if self.objects.create(key, payload):
                    self.tempo.won(time.monotonic(), time.monotonic() - began)
                    return Entry(lsn, payload), True
                self.tempo.lost(time.monotonic(), time.monotonic() - began)
            except StoreUnreachable as error:
                unknown = error
            found = self.tail.get(lsn, deadline)
            if found is not None:
                return self.tail.entry(lsn, found, mine=payload), False
            if time.monotonic() >= deadline:
                raise unknown or StoreUnreachable(f"{key} is neither free nor there; is the bucket consistent?")
            time.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(2 * pause, LONGEST_PAUSE)

    # --- snapshots ---

    def newest_snapshot(self, *, before: int | None = None) -> tuple[int, bytes] | None:
        self._readable()
        for lsn, key in reversed(self._snapshots()):
            if before is not None and lsn >= before:
                continue
            found = self.objects.get(key, limit=_MAX_SNAPSHOT)
            if found is not None and len(found.data) == found.size:
                self.awake.last = self.awake.clocks()
                return lsn, found.data
        return None

    def put_snapshot(self, lsn: int, data: bytes) -> None:
        self._writable()
        self.objects.create(f"{self.root}snapshot/{lsn:020d}", data)  # history is not overwritten, here neither
        older = [key for found, key in self._snapshots() if found <= lsn]  # one of a false lsn drives none out
        self.objects.delete(older[:-SNAPSHOTS_KEPT])

    def _snapshots(self) -> list[tuple[int, str]]:
        listed = [(one.key.rpartition("/")[2], one.key) for one in self.objects.listed(f"{self.root}snapshot/")]
        return [(int(name), key) for name, key in listed if name.isdigit()]

    # --- the end ---

    def destroy(self) -> None:
        """End the log in a tombstone, and remove the snapshots. What it held goes a day later, with `gc`."""
        self._writable()
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
        return self.tail.key(snapshots[-1][0]) if snapshots else ""
