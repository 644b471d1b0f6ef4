"""Compares this process's commits with the bucket's contents again after a while.

A server with several pools may accept another peer's commit over one that it has acknowledged. Other peers notice that
by the sum that the next commit carries (`core.codec`). But if all later commits follow the first of the two, its writer
would never know that peers that join later read the second. A bucket may also lose its newest object, whose place the
next peer then takes. So each writer checks each of its commits once, when no write to its key can be under way any
more, and at the end. A commit that is gone, although nobody removed it, is put back, unless another took its place.

The check comes half a minute after the commit. If later objects carry copies of a commit, so that acknowledged data is
not lost with it, a writer collects five minutes of its commits first. A listing with ETags that are the MD5 of what was
written replaces up to a thousand GETs; other objects are read.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
import zlib
from collections import deque
from typing import Final, NamedTuple, NoReturn

from hopaas_p2p.errors import BrokenChain, Denied, HopaasError, StoreUnreachable, StudyDeleted
from hopaas_p2p.stores.objects.carried import opened
from hopaas_p2p.stores.objects.contract import Found
from hopaas_p2p.stores.objects.log import WriteOnceLog
from hopaas_p2p.stores.s3.bucket import PAGE, Bucket
from hopaas_p2p.stores.s3.search import WIDEST

AFTER: Final = 30.0
"""Seconds after which a commit can be checked."""
SELDOM: Final = 300.0
"""Seconds after which a commit is checked, if later objects carry copies of it."""
_LIST_PAYS: Final = 13  # GETs that cost as much as a LIST
_KEPT_BYTES: Final = 8 << 20  # bytes of commits that could be put back


class _Written(NamedTuple):
    when: float
    due: float
    lsn: int
    checksum: int
    """The checksum of the commit, as it would be stored alone."""
    stored: bytes | None
    """The commit, to be put back; None if too much is already kept."""
    etag: str
    """The object's ETag, on a server that derives it from the bytes."""


class Confirmation:
    """The commits of one log that this process recently appended."""

    def __init__(self, log: WriteOnceLog[Bucket]) -> None:
        self.clock = time.monotonic
        self._log, self._bucket = log, log.objects
        self._written: deque[_Written] = deque()
        self._broken: str | None = None
        """The contradiction found, if any, after which this process appends nothing more."""

    def wrote(self, lsn: int, stored: bytes, data: bytes, *, copied: bool) -> None:
        """Record that this process appended a commit, in the object `data`; later objects carry copies if `copied`."""
        now = self.clock()
        due = now + (SELDOM if copied else AFTER)
        etag = hashlib.md5(data, usedforsecurity=False).hexdigest()
        size = sum(len(one.stored or b"") for one in self._written)
        kept = stored if size + len(stored) <= _KEPT_BYTES else None
        self._written.append(_Written(now, due, lsn, zlib.crc32(stored), kept, etag))

    @property
    def due(self) -> list[int]:
        """The lsns of commits that are still to be checked."""
        return [one.lsn for one in self._written]

    def check(self, *, ending: bool = False) -> bool:
        """Once a commit is due, check those older than `AFTER` or, if `ending`, all of them; put missing ones back.

        A call checks the commits of at most 1,000 lsns. Returns whether more remain when `ending`. Commits for which
        there was no answer stay due.

        Raises:
            BrokenChain: another commit has taken the place of one, or this process has no copy of a missing one. Every
                later call raises this error, too.
            StoreUnreachable: when `ending`, some commits could not be read or put back.
            Denied: when `ending`, the commits may not be read.

        """
        if self._broken is not None:
            raise BrokenChain(self._broken)
        now, due, unanswered = self.clock(), list[_Written](), list[_Written]()
        if not self._written or not (ending or any(one.due <= now for one in self._written)):
            return False
        old, last = now - (0.0 if ending else AFTER), self._written[0].lsn + PAGE
        while self._written and self._written[0].when <= old and self._written[0].lsn < last:
            due.append(self._written.popleft())
        try:
            if len(due) >= _LIST_PAYS:
                etags = self._listed(due[0].lsn, due[-1].lsn)
                due = [one for one in due if etags.get(self._log.key(one.lsn)) != one.etag]
            while due:
                some = due[:WIDEST]
                silent = self._read(some)
                unanswered += silent
                del due[:WIDEST]
                if len(silent) == len(some):  # the rest would wait for the same silent server
                    break
        except (Denied, StoreUnreachable):  # this is no reason to refuse the current write
            if ending:
                raise
        finally:
            self._written.extendleft(one._replace(due=now + AFTER) for one in reversed(unanswered + due))
        if unanswered and ending:
            raise StoreUnreachable(
                f"the bucket accepted {len(self._written)} of this process's commits, but they could not be read again"
            )
        return bool(self._written) and ending

    def _listed(self, first: int, last: int) -> dict[str, str]:
        """The ETags of these lsns' objects, by key; empty if no listing is available."""
        before = self._log.key(first - 1)
        with contextlib.suppress(HopaasError):
            found = self._bucket.details(f"{before.rpartition('/')[0]}/", after=before, at_most=last - first + 1)
            return {one.key: one.etag for one in found}
        return {}

    def _read(self, due: list[_Written]) -> list[_Written]:
        """Compare these commits with the bucket, and put missing ones back; return those for which there was no
        answer.
        """
        found = self._bucket.get_many([self._log.key(one.lsn) for one in due], limit=self._log.limit)
        removed = math.inf  # also for a deleted study
        if None in found:
            with contextlib.suppress(StudyDeleted):
                removed = self._log.history.truncation_point()
        for place, one in enumerate(due):
            if found[place] is None and one.lsn > removed:  # put it back, unless another took its place
                if one.stored is None:
                    self._break(one, "gone, and this process kept no copy to put back")
                key = self._log.key(one.lsn)
                try:
                    created = self._bucket.put_new(key, one.stored)
                    found[place] = None if created else self._bucket.get(key, limit=self._log.limit)
                except StoreUnreachable as error:
                    found[place] = error
        for one, there in zip(due, found, strict=True):
            if isinstance(there, Found) and zlib.crc32(opened(there.data).stored) != one.checksum:
                self._break(one, "another writer's now: the store accepted two commits under one number")
        return [one for one, there in zip(due, found, strict=True) if isinstance(there, StoreUnreachable)]

    def _break(self, one: _Written, how: str) -> NoReturn:
        self._broken = (
            f"This log has two histories: commit {one.lsn}, which the store had accepted from this process, is {how}. "
            "This process writes nothing more to the study. Run: hopaas-p2p doctor URL"
        )
        raise BrokenChain(self._broken)
