"""Reading a log in a bucket: windows of GETs, from what is known to the first free key."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, Final, NoReturn

from hopaas_p2p.core import codec
from hopaas_p2p.errors import StoreCorrupt, StoreUnreachable, StudyDeleted
from hopaas_p2p.stores.base import Entry
from hopaas_p2p.stores.s3.awake import DELETED
from hopaas_p2p.stores.s3.objects import Found, ObjectStore
from hopaas_p2p.stores.s3.tempo import Tempo

TOMBSTONE: Final = b"hopaas: this study is deleted\n"
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 1.0
_RECEIPT: Final = 8 << 20  # bytes

Submit = Callable[..., "Future[Any] | None"]


class Tail:
    """The commits of one log, as they are fetched. One thread at a time.

    Args:
        objects: the bucket.
        root: where in it, ending with a slash.
        tempo: how far to look at once, and who is told what was seen.
        submit: runs a function in another thread; None when there is none to be had any more.
        at_first: commits after which who begins at the first one is told that there is more: for all the others, it
            may look for a snapshot.
    """

    def __init__(
        self, objects: ObjectStore, root: str, *, tempo: Tempo, submit: Submit, at_first: int | None = None
    ) -> None:
        self._objects = objects
        self._root = root
        self._tempo = tempo
        self._submit = submit
        self._at_first = at_first
        self._began = False

    def key(self, lsn: int) -> str:
        """Where a commit is."""
        return f"{self._root}log/{lsn:020d}"

    def after(self, since: int, deadline: float) -> tuple[list[Entry], bool]:
        """The commits after `since`, and whether there are more.

        Raises:
            StoreUnreachable: not before the deadline.
            StoreCorrupt: there is a hole.
            StudyDeleted: a tombstone stands there.
        """
        entries: list[Entry] = []
        size = 0
        for width in self._tempo.windows(time.monotonic()):
            lsn = since + len(entries) + 1
            window = self._window(lsn, width, deadline)
            there = _leading(window)
            if not there and any(window):  # the key was free when it was asked for, and is not any more
                there = _leading([self.get(lsn, deadline)])
                if not there:
                    self._missing(lsn)
            elif not there and lsn == 1:
                self._check_beginning(deadline)
            entries += [self.entry(lsn + i, found) for i, found in enumerate(there)]
            size += sum(len(found.data) for found in there)
            if len(there) < width and not any(window[len(there) :]):
                self._tempo.reached_head(len(entries), time.monotonic())
                break
            enough = self._at_first is not None and not since and len(entries) >= self._at_first
            if enough or size >= _RECEIPT:
                return entries, True
        return entries, False

    def _window(self, lsn: int, width: int, deadline: float) -> list[Found | None]:
        if width == 1:
            return [self.get(lsn, deadline)]
        futures = [self._submit(self.get, lsn + i, deadline) for i in range(width)]
        found: list[Found | None] = []
        for i, future in enumerate(futures):
            found.append(self.get(lsn + i, deadline) if future is None else future.result())
            if future is None and found[-1] is None:
                break  # one after the other there is no need to look behind a free key
        return found

    def get(self, lsn: int, deadline: float) -> Found | None:
        """What is at this lsn. Tries until the deadline, at least once."""
        pause = FIRST_PAUSE
        suspect: bytes | None = None
        while True:
            try:
                found = self._objects.get(self.key(lsn), limit=codec.MAX_BYTES)
                if found is None or _sound(found) or found.data == suspect:
                    return found
                suspect = found.data  # cut short on the way, or as it is in the bucket: a second look tells
            except StoreUnreachable:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(2 * pause, LONGEST_PAUSE)

    def entry(self, lsn: int, found: Found, *, mine: bytes | None = None) -> Entry:
        """It, as a commit. Raises StudyDeleted for a tombstone."""
        if found.data == TOMBSTONE:
            raise StudyDeleted
        if found.data != mine:
            self._tempo.saw(found.data, found.modified, time.monotonic())
        return Entry(lsn, found.data)

    def _check_beginning(self, deadline: float) -> None:
        """There is no lsn 1: a log that nobody has written to, or one that somebody has cut. Asks once."""
        if self._began:
            return
        for one in self._objects.listed(self._root, at_most=3):
            kind, _, name = one.key[len(self._root) :].partition("/")
            if kind == "boundary" and name == DELETED:
                raise StudyDeleted
            if kind == "log" and name != f"{1:020d}" and self.get(1, deadline) is None:  # not written this moment
                self._missing(1)
        self._began = True

    def _missing(self, lsn: int) -> NoReturn:
        raise StoreCorrupt(
            f"{self.key(lsn)} is missing, but there are commits behind it. A lifecycle rule of the bucket, or "
            "somebody who cleaned up, has removed it: take the rule away, and restore the object from a version or a "
            "backup. Nothing was changed."
        )


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
