"""Carries records between this process and the store: one courier a process and store, for all its studies.

Who has to wait for the store (`ask`, `tell`) exchanges in its own thread: no hand-over, and a queue that formed behind
a slow exchange leaves with the next one. All that nobody waits for is done by one background thread, see `peer.chores`.

After a fork the child goes on as a new peer that may also act for its parent's trials.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, cast

from hopaas_p2p.core.leases import trusted_until
from hopaas_p2p.core.records import PeerJoin, Record, TrialReclaim, TrialStop
from hopaas_p2p.core.state import State, Verdict
from hopaas_p2p.errors import Denied, HopaasError, StoreUnreachable
from hopaas_p2p.peer import forks, identity
from hopaas_p2p.peer.background import Background
from hopaas_p2p.peer.chores import Chores
from hopaas_p2p.peer.exchanges import Exchanges
from hopaas_p2p.peer.keeper import Keeper
from hopaas_p2p.peer.membership import Membership
from hopaas_p2p.peer.outbox import Ticket
from hopaas_p2p.peer.replica import Replica, catalog_replica, study_replica

if TYPE_CHECKING:
    from pathlib import Path

    from hopaas_p2p.peer.spool import Spooled
    from hopaas_p2p.stores.base import Store

_log: Final = logging.getLogger("hopaas_p2p")
_LINGER: Final = 1.0  # seconds for which reports wait for company, at least
_FAREWELL: Final = 5.0  # seconds at most that the end of the program waits to send what is queued


def microseconds() -> int:
    """This machine's clock, for people to read: microseconds since 1970, UTC."""
    return time.time_ns() // 1000


class Courier(Exchanges):
    """Identity, replicas and the exchanges of one process. Any thread may call.

    Args:
        store: where the logs are.
        linger: seconds for which reports wait for company before they leave by themselves. If it is None, one second,
            or longer: what the store is slower to show, or what a log says that many peers write to.
        patience: seconds for which a blocking call tries an unreachable store before it raises.
        clock: monotonic seconds; a simulator passes its own, and calls `tick` instead of starting the thread.
        acts_for: peers whose trials travelled to this process.
        uuid, jitter: of this peer; a simulator passes its own, so that a seed tells all.
        peer_ttl: seconds of silence that others shall grant this peer, where that is longer than the study's.
    """

    def __init__(
        self,
        store: Store,
        *,
        linger: float | None = None,
        patience: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        now_us: Callable[[], int] = microseconds,
        acts_for: frozenset[str] = frozenset(),
        peer_ttl: float | None = None,
        threaded: bool = True,
        describe: Callable[[], dict[str, str]] = identity.describe,
        uuid: str | None = None,
        jitter: random.Random | None = None,
    ) -> None:
        super().__init__(
            store,
            patience=patience,
            clock=clock,
            now_us=now_us,
            jitter=jitter or random.Random(),
            threaded=threaded,
        )
        self._linger = linger
        self.uuid = uuid or identity.new_uuid()
        self.acts_for = acts_for
        self.adopted: set[str] = set()
        """Peers among `acts_for` whose trials this process has touched: it beats for them too."""
        self.catalog = Membership(-1, "", catalog_replica(store.catalog(), writer=self.uuid, now_us=now_us))
        self._describe = describe
        self._peer_ttl = peer_ttl
        self._beaten_at = -1e9
        self._lock = threading.Lock()
        self._closed = False
        self._kept = False
        """Whether what could not be sent before the end is on disk, and was told of."""
        self._chores = Chores(cast("Courier", weakref.proxy(self)))  # it does not outlive this
        forks.remember(self)

    def is_mine(self, owner: str | None) -> bool:
        """Whether this process may act for that peer."""
        return owner == self.uuid or owner in self.acts_for

    def membership(self, study_id: int, uuid: str) -> Membership[State]:
        """This process's part in a study, joined at first use."""
        with self._lock:
            found = self.memberships.get(uuid)
            if found is None:
                replica = study_replica(self.store.log(uuid), writer=self.uuid, now_us=self.now_us)
                found = self.memberships[uuid] = Membership(study_id, uuid, replica)
            return found

    # --- what callers wait for ---

    def commit_to_catalog(self, record: Record) -> Verdict:
        """Say something about which studies there are, and wait for the verdict; raises as `commit` does."""
        replica = self.catalog.replica
        (verdict,) = self.settle(self.catalog, replica.put(self.uuid, record))
        if replica.snapshot_due and replica.crowded is not None:
            with contextlib.suppress(StoreUnreachable, Denied):  # the next one will do
                replica.write_snapshot()
        return verdict

    def commit(self, membership: Membership[State], *records: Record, owner: str | None = None) -> tuple[Verdict, ...]:
        """Say these records and wait for their verdicts: durable when this returns.

        Raises:
            StoreUnreachable: not within `patience`; the records stay queued and are sent at the next contact.
        """
        return self.settle(membership, self.put(membership, *records, owner=owner))

    @contextlib.contextmanager
    def start(self, membership: Membership[State], record: Record) -> Iterator[Verdict]:
        """As `commit`, for a record that starts a trial: if the block that gets the verdict fails, it is given back."""
        ticket = Ticket(self.uuid, (record,))
        try:
            self.introduce(membership)
            membership.replica.queue(ticket)
            (verdict,) = self.settle(membership, ticket)
            yield verdict
        except BaseException:
            membership.replica.abandon(ticket)
            raise

    def put(self, membership: Membership[State], *records: Record, owner: str | None = None) -> Ticket:
        """Queue records without waiting. The first ones of a peer are preceded by its introduction."""
        self.introduce(membership)
        return membership.replica.put(owner or self.uuid, *records)

    def introduce(self, membership: Membership[State]) -> None:
        """Queue who this peer is, once; from then on it beats, and looks after the trials of others."""
        if not membership.introduced:
            membership.introduced = True
            try:
                info = self._describe()
                if self._peer_ttl is not None:
                    info["ttl"] = str(self._peer_ttl)
                membership.replica.put(self.uuid, PeerJoin(info))
            except BaseException:  # Ctrl-C
                membership.introduced = False
                raise
            if not self.store.beats_ride:
                self._beat_first()
            self._background.start()

    def _beat_first(self) -> None:
        """A sign of life before the first trial, so that an owner may trust its lease from the start."""
        now = self.clock()
        if self._keeper.beat_due(now):
            with contextlib.suppress(StoreUnreachable):  # the exchange that follows says so
                self._keeper.beat((self.uuid,), writer=self.uuid)
                self._beaten_at = now

    def note_draft(self, membership: Membership[State]) -> None:
        """The first report or attribute waits: it leaves with the next exchange, or by itself after `linger`."""
        membership.drafted_at = membership.noted_at = self.clock()
        self._background.start()
        self._background.wake(after=self.linger_of(membership))

    def linger_of(self, membership: Membership[State]) -> float:
        """Seconds for which reports of this study wait for company."""
        if self._linger is not None:
            return self._linger
        crowded, timeout = membership.replica.crowded, membership.replica.state.policy.progress_timeout
        linger = max(_LINGER, self.store.freshness, crowded.linger if crowded is not None else 0.0)
        return linger if timeout is None else min(linger, timeout / 4)  # reports are what it waits for

    def lease_valid(self, membership: Membership[State], owner: str) -> bool:
        """Whether this process may still trust the lease of a trial it runs for `owner`."""
        ttl = membership.replica.state.policy.ttl
        return self.is_mine(owner) and self.clock() < trusted_until(self._alive_at, ttl)

    @property
    def _alive_at(self) -> float:
        return max([self._beaten_at, *(m.pulled_at for m in self.memberships.values() if self.store.beats_ride)])

    # --- what the chores need ---

    def tick(self) -> float:
        """Do what is due and nobody waits for; return the seconds after which something is again."""
        return self._chores.tick()

    def beat_if_due(self, now: float, *, ttl: float) -> None:
        """Overwrite the beats of all for whom this peer acts, if a third of ttl has passed since the last."""
        if self._keeper.beat_due(now):
            self._keeper.beat((self.uuid, *self.adopted), writer=self.uuid)
            self._keeper.has_beaten(ttl=ttl, now=now)
            self._beaten_at = now

    def worth_doing(self, membership: Membership[State], now: float) -> list[TrialReclaim | TrialStop]:
        """What may be done about the trials of others, as far as the beats tell, if it is time to look at them."""
        return self._keeper.due(membership.study_id, membership.replica.state, spare=self._mine, now=now)

    def resting(self, membership: Membership[State]) -> tuple[int, ...]:
        """WAITING retries that this peer does not take yet, see `Keeper.resting`."""
        if not membership.replica.state.waiting:
            return ()
        return self._keeper.resting(membership.study_id, membership.replica.state, now=self.clock())

    def someone_may_be_dead(self, membership: Membership[State]) -> bool:
        """Whether some running trial's owner has not shown a sign of life lately."""
        state, now = membership.replica.state, self.clock()
        return bool(self._keeper.doubtful_owners(membership.study_id, state, spare=self._mine, now=now))

    @property
    def _mine(self) -> frozenset[str]:
        return self.acts_for | {self.uuid}

    # --- the spool ---

    def keep_on_disk(self, membership: Membership[State]) -> Path | None:
        """Put what could not be sent on disk, if the end of a trial is among it; any process of this user sends it."""
        return self.delivery.keep(membership)

    def deliver(self, path: Path, spooled: Spooled) -> None:
        """Send what a process of this user had to leave in the spool, and remove it.

        Raises:
            StoreUnreachable: not this time; it stays.
        """
        self.delivery.deliver(path, spooled, self.memberships, writer=self.uuid)

    # --- the end ---

    def close(self) -> None:
        """Send what is queued, as far as the store can be reached, end the thread, let go of the store."""
        if self._closed:
            return
        self._closed = True
        self.say_farewell()
        self._background.stop(within=_FAREWELL)
        self.store.close()

    def say_farewell(self) -> None:
        """Send what is queued; leave on disk what cannot be sent. Once that was so, a second call does nothing."""
        if self._kept:
            return
        try:
            with self.in_a_hurry():
                self.flush()
        except HopaasError as error:
            _log.warning("some records could not be sent before the end: %s", error)
            self.delivery.keep_all(self.memberships.values())
            self._kept = True

    @contextlib.contextmanager
    def in_a_hurry(self) -> Iterator[None]:
        """In this block nobody waits long for a store that does not answer: the program is about to end."""
        patience, self.patience = self.patience, min(self.patience, _FAREWELL)
        try:
            yield
        finally:
            self.patience = patience

    # --- forks ---

    def replicas(self) -> list[Replica[Any]]:
        """All of them: no thread may be changing one while the process forks."""
        return [self.catalog.replica, *(membership.replica for membership in list(self.memberships.values()))]

    def become_child(self) -> None:
        """Go on as a new peer, which may act for the old one's trials."""
        self.acts_for = self.acts_for | {self.uuid}
        self.adopted = set()
        self._kept = False
        self.uuid = identity.new_uuid()
        self._lock = threading.Lock()
        self._background = Background(self.tick, allowed=self._background.allowed)
        self._keeper = Keeper(self.store)
        self.store.after_fork()
        self.catalog.replica.become(self.uuid)
        for membership in self.memberships.values():
            membership.replica.become(self.uuid)
            membership.introduced = False
