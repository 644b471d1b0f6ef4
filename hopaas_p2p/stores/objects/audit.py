"""Own commits in a bucket, read once more after a while.

A server with several pools may accept another peer's commit over one that it has acknowledged. Others notice by the sum
that the next commit carries (`core.chain`); but where all of these follow the first, its writer would never know that
whoever joins later reads the second. So each commit is read once by its writer, half a minute later and at the end, one
GET each, when no write to its key can be under way any more.
"""

from __future__ import annotations

import time
import zlib
from collections import deque
from collections.abc import Callable
from typing import Final

from hopaas_p2p.errors import BrokenChain
from hopaas_p2p.stores.objects.contract import Found, ObjectStore

AFTER: Final = 30.0
"""Seconds after which a commit is read once more."""
_AT_ONCE: Final = 16


class Audit:
    """The commits of one log that this process appended lately.

    Args:
        objects: the bucket.
        key: where the commit of an lsn is.
        limit: bytes of an object, at most.
        own: the commit in an object, without the copies that it carries.
        clock: seconds; for tests.

    """

    def __init__(
        self,
        objects: ObjectStore,
        key: Callable[[int], str],
        *,
        limit: int,
        own: Callable[[bytes], bytes],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self._objects = objects
        self._key = key
        self._limit = limit
        self._own = own
        self._written: deque[tuple[float, int, int]] = deque()

    def wrote(self, lsn: int, stored: bytes) -> None:
        """This process appended that."""
        self._written.append((self.clock(), lsn, zlib.crc32(stored)))

    def check(self, *, age: float = AFTER) -> bool:
        """Read some of those that are as old as that; whether there may be more.

        Raises:
            BrokenChain: one is another's now.

        """
        due: list[tuple[float, int, int]] = []
        while self._written and self.clock() - self._written[0][0] >= age and len(due) < _AT_ONCE:
            due.append(self._written.popleft())
        found = self._objects.get_many([self._key(lsn) for _, lsn, _ in due], limit=self._limit) if due else []
        for (_, lsn, told), there in zip(due, found, strict=True):
            if isinstance(there, Found) and zlib.crc32(self._own(there.data)) != told:
                raise BrokenChain(
                    f"This log has two histories: commit {lsn}, which the store had taken from this process, is "
                    "another's now: the store accepted two commits under one number. This process writes nothing more "
                    "to the study. See what the log has: hopaas-p2p doctor URL"
                )
        return len(due) == _AT_ONCE
