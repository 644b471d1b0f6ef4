"""The traffic of one log over a bridge: requests go out in their order, and what the far log holds comes back.

A relay remembers nothing that it could not read again: its position in the far log is the end of the mirror, and a
commit was carried before if the mirror holds it. So it may be killed at any moment, and two may work at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from msgspec.structs import replace

from hopaas_p2p.errors import BehindRetention, Denied, HopaasError, StoreUnreachable
from hopaas_p2p.net.backoff import Backoff
from hopaas_p2p.stores.base import Entry, ExchangeResult, Log, Outgoing, Store, snapshot_step
from hopaas_p2p.stores.bridge.messages import CATALOG, Append, PlacedRequest, Withdraw
from hopaas_p2p.stores.bridge.mirror import Mirror

_PAUSES: Final = (0.1, 3.0)  # seconds between attempts when the far side does not answer: the first, the longest.
# With the jitter (4.5 s at most) a local peer, which waits 5 s for the bridge, always meets an attempt.
_ASK_EVERY: Final = 16  # commits between two requests for a snapshot, which may be large, or not be there yet
_GATHER: Final = 0.008  # seconds; a peer needs some to apply what it has read, and to write again
_REMEMBERED: Final = 50_000  # entries whose digests are kept


class StaleWriter(Exception):
    """A commit's writer has seen more of this log than there is: it means one that was deleted."""


class Contact:
    """Whether a part of the far side answers, and when to try again, in seconds on the bridge's monotonic clock."""

    def __init__(self) -> None:
        self.retry_at = 0.0
        self.trouble: str | None = None
        """Why it could not be reached at the last attempt."""
        self._backoff = Backoff(*_PAUSES)

    def failed(self, error: HopaasError, now: float) -> None:
        """It does not answer, or not as it should: try again later, whatever the error is."""
        self.retry_at = now + self._backoff.pause()
        self.trouble = str(error)

    def succeeded(self) -> None:
        """It answers."""
        self._backoff.reset()
        self.trouble = None


class LogRelay(Contact):
    """A far log and its mirror. Times are seconds on the bridge's monotonic clock."""

    def __init__(self, name: str, near: Log, far: Log) -> None:
        super().__init__()
        self.name = name
        self.near, self.far = near, far
        self.queue: deque[PlacedRequest] = deque()
        self.waiting_since = 0.0
        """When the first request of the queue came."""
        self.wanted_until = 0.0
        self.pull_at = 0.0
        self._concurrent = 1
        """How many requests lately came at once."""
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
        """Append to the far log what is not there yet; the mirror holds it when this returns.

        Returns whether it comes after `request.since`, where its sender looks.

        Raises:
            StaleWriter: the far log ends before `request.since`.

        """
        self._look()
        found = self._find(request)
        if found is not None:
            return found > request.since
        if request.since > self._mirror.lsn:  # another bridge may have brought more than this one has read
            self.pull()
        if request.since > self._mirror.lsn:
            raise StaleWriter
        self._exchange(request.outgoing)
        return True

    def discard(self, request: Withdraw) -> None:
        """Drop a queued commit whose sender has withdrawn it."""
        self.queue = deque(
            one for one in self.queue if not (isinstance(one.request, Append) and one.request.nonce == request.of)
        )

    def gathering(self, now: float) -> bool:
        """Whether other peers, which read the last commits at the same moment, are probably about to write as well."""
        return 0 < len(self.queue) < self._concurrent and now - self.waiting_since < _GATHER

    def carry_together(self, pool: ConnectionPool) -> None:
        """Send queued commits side by side. `carry` still makes sure of each of them."""
        self._concurrent = max(len(self.queue), self._concurrent - 1)
        self._look()
        waiting = itertools.takewhile(lambda request: isinstance(request, Append), (one.request for one in self.queue))
        end = self._mirror.lsn
        new = [one for one in waiting if isinstance(one, Append) and one.since <= end and self._find(one) is None]
        receipts = pool.send(self.name, new, end)
        for receipt in sorted(receipts, key=lambda receipt: len(receipt.entries), reverse=True):
            self._copy(receipt.entries)  # the longest holds the others: one segment, and one flush

    def pull(self) -> None:
        """Bring the mirror up to date."""
        self._look()
        if self._mirror.begun and self.far.changed(self._mirror.lsn) is False:
            return
        self._exchange(None)
        self._mirror.begin()
        step = snapshot_step(self._mirror.lsn)
        due = self._mirror.lsn // step > self._snapshot // step
        if due and self._mirror.lsn - self._asked_at >= _ASK_EVERY:
            self._asked_at = self._mirror.lsn
            self._bring_snapshot()

    def destroy(self) -> None:
        """Remove the far log, then the mirror.

        Raises:
            Denied: this is the catalog; only a hostile peer asks for that.

        """
        if self.name == CATALOG:
            raise Denied("the list of studies cannot be destroyed")
        self.far.destroy()
        self.forget()

    def forget(self) -> None:
        """Remove the mirror of a far log that is gone, so that its readers learn of it."""
        self.near.destroy()

    def send_snapshot(self) -> None:
        """Give the far side the newest snapshot that a local peer has written. May fail: it is an optimisation."""
        self._look()
        found = self._mirror.newest_snapshot()
        if found is not None and found[0] > self._snapshot:
            with contextlib.suppress(HopaasError):
                self.far.put_snapshot(*found)
                self._snapshot = found[0]

    # --- the mirror ---

    def _exchange(self, outgoing: Outgoing | None) -> None:
        """Exchange with the far log until the mirror holds this commit, or, without one, everything."""
        more = True
        while more:
            try:
                if outgoing is not None:
                    outgoing = replace(outgoing, chain=self._mirror.chain)
                receipt = self.far.exchange(outgoing, self._mirror.lsn)
            except BehindRetention:
                self._skip_to_snapshot()
                continue
            self._copy(receipt.entries)
            more = receipt.more and not (outgoing is not None and receipt.holds(outgoing))

    def _look(self) -> None:
        """Read what an earlier bridge, or another one, has written to the mirror."""
        if self._read and self._mirror.changed() is False:
            return
        if self._read:
            with contextlib.suppress(BehindRetention):  # another bridge has continued after a snapshot
                self._remember(self._mirror.read(self._mirror.lsn))
                return
        found = self._mirror.newest_snapshot()
        self._digests.clear()
        self._digests_from = found[0] if found is not None else 0
        self._remember(self._mirror.read(self._digests_from))
        self._read = True

    def _copy(self, entries: list[Entry]) -> None:
        self._remember(self._mirror.append(entries))

    def _skip_to_snapshot(self) -> None:
        """The far log's beginning was removed: continue from its newest snapshot."""
        found = self.far.newest_snapshot()
        if found is None or found[0] <= self._mirror.lsn:
            raise StoreUnreachable("the far log's beginning was removed, and there is no snapshot of it yet")
        self._mirror.skip_to(*found)
        self._snapshot = self._digests_from = self._mirror.lsn
        self._digests.clear()

    def _bring_snapshot(self) -> None:
        """Copy the far log's newest snapshot, so that peers that join here need not replay everything."""
        with contextlib.suppress(HopaasError):
            found = self.far.newest_snapshot()
            if found is not None and self._snapshot < found[0] <= self._mirror.lsn:
                self._mirror.put_snapshot(*found)
                self._snapshot = found[0]

    # --- what was carried before ---

    def _find(self, request: Append) -> int | None:
        """The lsn of this commit if the mirror holds it, because this bridge or another carried it before."""
        known = self._digests.get(_digest(request.payload))
        if known is not None or request.since >= self._digests_from:
            return known
        end = self._mirror.lsn
        try:
            entries = self._mirror.read(request.since)
        except BehindRetention:
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


class ConnectionPool:
    """Further handles on the far store, so that commits of different writers cross a long link side by side.

    A commit costs a round trip, and a log takes one at a time from each connection, so the commits of eight peers
    behind a bridge would queue for its only one. Each writer's commits stay in order: at most one of them is under way.
    This is an optimisation only; what fails here is sent again by the log's relay.
    """

    def __init__(self, stores: Sequence[Store] = ()) -> None:
        self._stores = stores
        self._threads: ThreadPoolExecutor | None = None

    @property
    def parallel(self) -> bool:
        """Whether commits can be sent side by side."""
        return len(self._stores) > 1

    def send(self, name: str, requests: Iterable[Append], since: int) -> list[ExchangeResult]:
        """Append the first commit of each writer to the log of this name; the receipts of those that succeeded."""
        first: dict[str, Append] = {}
        for request in requests:
            first.setdefault(request.outgoing.writer, request)
        pairs = list(zip(self._stores, first.values(), strict=False))
        if len(pairs) < 2:
            return []
        if self._threads is None:
            self._threads = ThreadPoolExecutor(len(self._stores), thread_name_prefix="hopaas-bridge")

        def exchange(pair: tuple[Store, Append]) -> ExchangeResult:
            store, request = pair
            log = store.catalog() if name == CATALOG else store.log(name)
            try:
                return log.exchange(request.outgoing, since)
            except HopaasError:
                return ExchangeResult([])

        return list(self._threads.map(exchange, pairs))

    def close(self) -> None:
        """Close the connections."""
        if self._threads is not None:
            self._threads.shutdown()
        for store in self._stores:
            store.close()


def _digest(payload: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=16).digest()
