"""One log's traffic over a bridge: requests go, in the order they came; what the far log holds comes back.

A lane remembers nothing that it could not read again: where it is in the far log is where the mirror ends, and whether
a commit was carried before is whether the mirror holds it. So it may be killed at any moment, and two may be at work.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections import deque
from collections.abc import Iterable
from typing import Final

from hopaas_p2p.errors import HopaasError, SleptThrough, StoreUnreachable
from hopaas_p2p.stores.base import SNAPSHOT_EVERY, Entry, Log, Outgoing
from hopaas_p2p.stores.bridge.crew import Crew
from hopaas_p2p.stores.bridge.frames import Append, Destroy, Placed, Snapshot, Withdraw
from hopaas_p2p.stores.bridge.mirror import Mirror

_ASK_EVERY: Final = 16  # commits between two requests for a snapshot, which may be large, and not be there yet
_GATHER: Final = 0.008  # seconds; a peer needs some to take in what it was told, and to speak again
_REMEMBERED: Final = 50_000  # entries whose digests are kept


class NotThere(Exception):
    """A commit's writer has seen more of this log than there is: it speaks of one that was deleted."""


class Lane:
    """A far log and its mirror. Times are seconds on the bridge's monotonic clock."""

    def __init__(self, name: str, near: Log, far: Log) -> None:
        self.name = name
        self.near, self.far = near, far
        self.queue: deque[Placed] = deque()
        self.waiting_since = 0.0
        """When the first request of the queue came."""
        self.wanted_until = 0.0
        self.pull_at = 0.0
        self.retry_at = 0.0
        self.pause = 0.0
        self.trouble: str | None = None
        self._crowd = 1
        """How many lately came at once."""
        self._mirror = Mirror(near)
        self._read = False
        self._digests: dict[bytes, int] = {}
        self._digests_from = 0
        """All entries after this lsn are among the digests."""
        self._snapshot = 0
        """The lsn of the newest snapshot that is on both sides."""
        self._asked_at = -_ASK_EVERY

    # --- what requests ask for ---

    def carry(self, request: Append) -> bool:
        """Append to the far log what is not there yet; it stands in the mirror when this returns.

        Returns whether it stands after `request.since`, where its sender looks.
        """
        self._look()
        found = self._find(request)
        if found is not None:
            return found > request.since
        if request.since > self._mirror.lsn:  # another bridge has brought more than this one sees yet
            self.pull()
        if request.since > self._mirror.lsn:
            raise NotThere
        outgoing = Outgoing(request.nonce, request.payload)
        more = True
        while more:
            try:
                receipt = self.far.exchange(outgoing, self._mirror.lsn)
            except SleptThrough:
                self._begin_later()
                continue
            self._copy(receipt.entries)
            more = receipt.more and not any(entry.payload == request.payload for entry in receipt.entries)
        return True

    def pass_over(self, request: Withdraw) -> None:
        """Forget a commit that still waits here, for who sent it has gone, and wants it no more."""
        self.queue = deque(
            one for one in self.queue if not (isinstance(one.request, Append) and one.request.nonce == request.of)
        )

    def gathering(self, now: float) -> bool:
        """Whether the others, who were told at the same moment, are probably about to speak as well."""
        return 0 < len(self.queue) < self._crowd and now - self.waiting_since < _GATHER

    def carry_together(self, crew: Crew) -> None:
        """Send commits that wait for this log side by side. `carry` still sees to each of them."""
        self._crowd = max(len(self.queue), self._crowd - 1)
        self._look()
        waiting = itertools.takewhile(lambda request: isinstance(request, Append), (one.request for one in self.queue))
        end = self._mirror.lsn
        new = [one for one in waiting if isinstance(one, Append) and one.since <= end and self._find(one) is None]
        receipts = crew.send(self.name, new, end)
        for receipt in sorted(receipts, key=lambda receipt: len(receipt.entries), reverse=True):
            self._copy(receipt.entries)  # the longest holds the others: one piece, and one flush

    def pull(self) -> None:
        """Bring the mirror up to date."""
        self._look()
        if self._mirror.begun and self.far.changed(self._mirror.lsn) is False:
            return
        more = True
        while more:
            try:
                receipt = self.far.exchange(None, self._mirror.lsn)
            except SleptThrough:
                self._begin_later()
                continue
            self._copy(receipt.entries)
            more = receipt.more
        self._mirror.begin()
        due = self._mirror.lsn // SNAPSHOT_EVERY > self._snapshot // SNAPSHOT_EVERY
        if due and self._mirror.lsn - self._asked_at >= _ASK_EVERY:
            self._asked_at = self._mirror.lsn
            self._bring_snapshot()

    def destroy(self, _request: Destroy) -> None:
        """Remove the far log, then the mirror."""
        self.far.destroy()
        self.forget()

    def forget(self) -> None:
        """The far log is gone: so is its mirror, and whoever reads it is told."""
        self.near.destroy()

    def send_snapshot(self, _request: Snapshot) -> None:
        """Give the far side what a local peer has written. Failing is allowed."""
        self._look()
        found = self._mirror.newest_snapshot()
        if found is not None and found[0] > self._snapshot:
            with contextlib.suppress(HopaasError):
                self.far.put_snapshot(*found)
                self._snapshot = found[0]

    # --- the mirror ---

    def _look(self) -> None:
        """See where the mirror ends: what an earlier bridge, or another one, has written."""
        if not self._read:
            self._read_from_start()
            self._read = True
        elif self._mirror.changed() is not False:
            self._remember(self._mirror.read(self._mirror.lsn))

    def _read_from_start(self) -> None:
        found = self._mirror.newest_snapshot()
        self._digests_from = found[0] if found is not None else 0
        self._remember(self._mirror.read(self._digests_from))

    def _copy(self, entries: list[Entry]) -> None:
        self._remember(self._mirror.append(entries))

    def _begin_later(self) -> None:
        """The far log's beginning was removed: go on from its newest snapshot."""
        found = self.far.newest_snapshot()
        if found is None or found[0] <= self._mirror.lsn:
            raise StoreUnreachable("the far log's beginning was removed, and there is no snapshot of it yet")
        self._mirror.jump(*found)
        self._snapshot = self._digests_from = found[0]
        self._digests.clear()

    def _bring_snapshot(self) -> None:
        """Those who join here need not replay everything."""
        with contextlib.suppress(HopaasError):
            found = self.far.newest_snapshot()
            if found is not None and self._snapshot < found[0] <= self._mirror.lsn:
                self._mirror.put_snapshot(*found)
                self._snapshot = found[0]

    # --- what was carried before ---

    def _find(self, request: Append) -> int | None:
        """Where this commit stands in the mirror, if it does: carried before, by this bridge or another."""
        known = self._digests.get(_digest(request.payload))
        if known is not None or request.since >= self._digests_from:
            return known
        end = self._mirror.lsn
        try:
            entries = self._mirror.read(request.since)
        except SleptThrough:
            return None
        finally:
            self._mirror.read(end)
        return next((entry.lsn for entry in entries if entry.payload == request.payload), None)

    def _remember(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self._digests[_digest(entry.payload)] = entry.lsn
        if len(self._digests) > _REMEMBERED:
            self._digests_from = self._mirror.lsn
            self._digests.clear()


def _digest(payload: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=16).digest()
