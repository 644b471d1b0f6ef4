"""Carries records between this process and the store: one courier a process and store, for all its studies.

Who has to wait for the store (`ask`, `tell`) exchanges in its own thread: no hand-over, and a queue that formed behind
a slow exchange leaves with the next one. All that nobody waits for is done by one background thread, which sleeps
until something is due: reports that have lingered, beats, pulls for readers, reclaims, snapshots.

After a fork the child goes on as a new peer that may also act for its parent's trials.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import random
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic

from hopaas_p2p.core.leases import BEATS_PER_TTL, trusted_until
from hopaas_p2p.core.records import PeerJoin, Record
from hopaas_p2p.core.state import State, Verdict
from hopaas_p2p.errors import HopaasError, StoreUnreachable, StudyDeleted
from hopaas_p2p.peer import identity, spool
from hopaas_p2p.peer.keeper import Keeper
from hopaas_p2p.peer.replica import Replica, S, Ticket, catalog_replica, study_replica

if TYPE_CHECKING:
    from hopaas_p2p.stores.base import Beat, Store

_log: Final = logging.getLogger("hopaas_p2p")
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 5.0
_LONGEST_SILENCE: Final = 30.0  # seconds between tries of the background thread, when the store is away
_DELIVERY_EVERY: Final = 30.0  # seconds between looks into the spool
_UNTIL_JOINED: Final = 0.1  # seconds between looks for the ttl of a study that is being joined
_TROUBLED: Final = 60.0  # seconds after which a study that cannot be read is looked at again
_BUSY: Final = 10  # lingers without a draft after which the thread sleeps until it is woken
_FAREWELL: Final = 5.0  # seconds at most that the end of the program waits to send what is queued


def microseconds() -> int:
    """This machine's clock, for people to read: microseconds since 1970, UTC."""
    return time.time_ns() // 1000


class Membership(Generic[S]):
    """One log as this process takes part in it."""

    def __init__(self, study_id: int, uuid: str, replica: Replica[S]) -> None:
        self.study_id = study_id
        self.uuid = uuid
        self.replica = replica
        self.introduced = False
        """Whether this peer has told who it is; a mere reader never does, and neither beats nor reclaims."""
        self.pulled_at = -1e9
        """When the last successful exchange began."""
        self.read_at = -1e9
        """When somebody last wanted to read."""
        self.drafted_at: float | None = None
        """When the oldest draft that has not left was begun."""
        self.noted_at = -1e9
        """When something was last drafted."""
        self.spooled: list[Path] = []
        """Files that hold what this process itself still tries to send."""
        self.left_alone_until = -1e9
        """Until when the background thread does nothing for it: it cannot be read."""
        self.deleted = False


class Courier:
    """Identity, replicas and the background thread of one process.

    Args:
        store: where the logs are.
        linger: seconds for which reports wait for company before they leave by themselves.
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
        linger: float = 1.0,
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
        self.store = store
        self.linger = linger
        self.patience = patience
        self.clock = clock
        self.now_us = now_us
        self.uuid = uuid or identity.new_uuid()
        self.acts_for = acts_for
        self.adopted: set[str] = set()
        """Peers among `acts_for` whose trials this process has touched: it beats for them too."""
        self.memberships: dict[str, Membership[State]] = {}
        self.catalog = Membership(-1, "", catalog_replica(store.catalog(), writer=self.uuid, now_us=now_us))
        self._describe = describe
        self._jitter = jitter or random.Random()
        self._peer_ttl = peer_ttl
        self._keeper = Keeper(store)
        self._lock = threading.RLock()
        self._threaded = threaded
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._closed = False
        self._pause = 0.0
        self._retry_at = 0.0
        self._next_delivery = 0.0
        _couriers.add(self)

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
        (verdict,) = self.settle(self.catalog, self.catalog.replica.put(self.uuid, record))
        return verdict

    def commit(self, membership: Membership[State], *records: Record, owner: str | None = None) -> tuple[Verdict, ...]:
        """Say these records and wait for their verdicts: durable when this returns.

        Raises:
            StoreUnreachable: not within `patience`; the records stay queued and are sent at the next contact.
        """
        return self.settle(membership, self.put(membership, *records, owner=owner))

    def start(self, membership: Membership[State], *records: Record) -> tuple[Verdict, ...]:
        """As `commit`, for records that start trials: if the caller stops waiting, they are given back unrun."""
        ticket = self.put(membership, *records)
        try:
            return self.settle(membership, ticket)
        except BaseException:
            membership.replica.abandon(ticket)
            raise

    def put(self, membership: Membership[State], *records: Record, owner: str | None = None) -> Ticket:
        """Queue records without waiting. The first ones of a peer are preceded by its introduction."""
        self._introduce(membership)
        return membership.replica.put(owner or self.uuid, *records)

    def _introduce(self, membership: Membership[State]) -> None:
        if not membership.introduced:
            membership.introduced = True
            info = self._describe()
            if self._peer_ttl is not None:
                info["ttl"] = str(self._peer_ttl)
            membership.replica.put(self.uuid, PeerJoin(info))
            if not self.store.beats_ride:
                self._beat_first()
            self._start()

    def _beat_first(self) -> None:
        """A sign of life before the first trial, so that an owner may trust its lease from the start."""
        now = self.clock()
        if self._keeper.beat_due(now):
            with contextlib.suppress(StoreUnreachable):  # the exchange that follows says so
                self._keeper.beat((self.uuid,), writer=self.uuid)
                self._beaten_at = now

    def settle(self, membership: Membership[Any], ticket: Ticket) -> tuple[Verdict, ...]:
        """Exchange until the log has decided about this ticket.

        Raises:
            StoreUnreachable: not within `patience`; it stays queued.
            InvalidInput: it cannot be written down.
        """
        while ticket.verdicts is None:
            self._insist(membership, ticket)
        if ticket.error is not None:
            raise ticket.error
        return ticket.verdicts

    def _insist(self, membership: Membership[Any], ticket: Ticket | None) -> None:
        """Make one exchange, as often as it takes within `patience`; none if another thread's decided the ticket."""
        deadline = self.clock() + self.patience
        pause = _FIRST_PAUSE
        while True:
            with membership.replica.turn:
                if ticket is not None and ticket.verdicts is not None:
                    return
                try:
                    self._exchange(membership)
                    return
                except StoreUnreachable:
                    if self.clock() >= deadline:
                        raise
            time.sleep(pause * self._jitter.uniform(0.5, 1.5))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def pull(self, membership: Membership[Any]) -> None:
        """Bring the replica up to date, and send what is queued on the way."""
        with membership.replica.turn:
            self._exchange(membership)

    def refresh_for_reading(self, membership: Membership[Any]) -> None:
        """See that a read finds what it may expect to: see `Store.freshness`."""
        store, replica = self.store, membership.replica
        if store.freshness == 0.0:
            if replica.log.changed(replica.state.lsn):
                self._pull_if_possible(membership)
            return
        now = self.clock()
        membership.read_at = now
        if now - membership.pulled_at > 2 * store.freshness and (now >= self._retry_at or not replica.joined):
            self._pull_if_possible(membership)
        self._start()

    def _pull_if_possible(self, membership: Membership[Any]) -> None:
        """A read gets by with what is known, if anything is: training does not stop because a store is away."""
        if not membership.replica.joined:
            self.catch_up(membership)
            return
        try:
            self.pull(membership)
        except StoreUnreachable:
            self._retry_at = self.clock() + self.store.freshness  # until then nobody asks again

    def catch_up(self, membership: Membership[Any]) -> None:
        """As `pull`, but patiently.

        Raises:
            StoreUnreachable: not within `patience`.

        """
        self._insist(membership, None)

    def _exchange(self, membership: Membership[Any]) -> None:
        """One exchange, in turn."""
        began = self.clock()
        beat = self._riding_beat(membership)
        membership.drafted_at = None
        try:
            membership.replica.exchange_in_turn(beat)
        except StoreUnreachable:
            membership.drafted_at = began
            raise
        membership.pulled_at = began
        if membership.spooled and not membership.replica.waiting:
            self._forget_spooled(membership)
        if beat is not None:
            self._keeper.has_beaten(ttl=membership.replica.state.policy.ttl, now=began)
        if membership.replica.snapshot_due:
            self.wake()
        elif membership.introduced:  # the thread may have gone to sleep for long before there was a lease to keep
            self.wake(after=membership.replica.state.policy.ttl / 8)

    def _riding_beat(self, membership: Membership[Any]) -> Beat | None:
        if not self.store.beats_ride or not membership.introduced:
            return None
        return self._keeper.new_beat(self.uuid, writer=self.uuid)

    def note_draft(self, membership: Membership[State]) -> None:
        """A report or attribute waits: it leaves with the next exchange, or by itself after `linger`."""
        if membership.drafted_at is None:
            membership.drafted_at = membership.noted_at = self.clock()
            self._start()
            self.wake(after=self.linger)

    def lease_valid(self, membership: Membership[State], owner: str) -> bool:
        """Whether this process may still trust the lease of a trial it runs for `owner`."""
        ttl = membership.replica.state.policy.ttl
        return self.is_mine(owner) and self.clock() < trusted_until(self._alive_at, ttl)

    @property
    def _alive_at(self) -> float:
        return max([self._beaten_at, *(m.pulled_at for m in self.memberships.values() if self.store.beats_ride)])

    _beaten_at = -1e9

    def flush(self) -> None:
        """Send everything that is queued. Blocks until the store has it.

        Raises:
            StoreUnreachable: it did not answer; what waits stays queued.
            HopaasError: one study could not be written to; the others were.
        """
        troubles = []
        for membership in list(self.memberships.values()):
            try:
                while membership.replica.waiting and not membership.deleted:
                    self.pull(membership)
            except StoreUnreachable:
                raise
            except HopaasError as error:
                membership.deleted = membership.deleted or isinstance(error, StudyDeleted)
                troubles.append(error)
        if troubles:
            raise troubles[0]

    # --- what nobody waits for ---

    def tick(self) -> float:
        """Do what is due; return the seconds after which something is again."""
        now = self.clock()
        if now < self._retry_at:
            return self._retry_at - now
        try:
            self._tend_spool(now)
            wait = min([self._beat(now), *(self._tend_apart(m, now) for m in list(self.memberships.values()))])
        except StoreUnreachable as error:
            self._pause = min(max(2 * self._pause, _FIRST_PAUSE), self._longest_pause)
            self._retry_at = now + self._pause * self._jitter.uniform(0.5, 1.0)
            _log.debug("store unreachable, again in %.1f s: %s", self._retry_at - now, error)
            return self._retry_at - now
        self._pause = 0.0
        return wait

    @property
    def _longest_pause(self) -> float:
        """Who is back before the others have waited a ttl keeps its leases."""
        ttls = [m.replica.state.policy.ttl for m in self.memberships.values() if m.introduced and not m.deleted]
        return min([_LONGEST_SILENCE, *(ttl / 4 for ttl in ttls)])

    def _beat(self, now: float) -> float:
        active = [m for m in self.memberships.values() if m.introduced and not m.deleted]
        ttls = [m.replica.state.policy.ttl for m in active if m.replica.state.define is not None]
        if not ttls:
            return _UNTIL_JOINED if active else 60.0
        ttl = min(ttls)
        if self._keeper.beat_due(now):
            self._keeper.beat((self.uuid, *self.adopted), writer=self.uuid)
            self._keeper.has_beaten(ttl=ttl, now=now)
            self._beaten_at = now
        return ttl / 8

    def _tend_apart(self, membership: Membership[State], now: float) -> float:
        """Tend one study so that its troubles stay its own; the seconds until it needs something again."""
        if membership.deleted or now < membership.left_alone_until:
            return _TROUBLED
        try:
            return self._tend(membership, now)
        except StoreUnreachable:
            raise
        except StudyDeleted as error:
            membership.deleted = True
            _log.warning("%s", error)
        except HopaasError as error:
            membership.left_alone_until = now + _TROUBLED
            _log.warning("%s", error)
        return _TROUBLED

    def _tend(self, membership: Membership[State], now: float) -> float:
        """What one study needs now; the seconds until it needs something again."""
        replica = membership.replica
        wait = 60.0
        if replica.waiting:
            if membership.drafted_at is None:  # queued this moment, by a caller that is about to send it itself
                membership.drafted_at = now
            due = membership.drafted_at + self.linger
            if now >= due:
                self.pull(membership)
            else:
                wait = due - now
        if now - membership.noted_at < _BUSY * self.linger:
            wait = min(wait, self.linger)  # more will come: no need to be woken for each
        if self.store.freshness and now - membership.read_at < 30 * self.store.freshness:
            if now - membership.pulled_at >= self.store.freshness:
                self.pull(membership)
            wait = min(wait, self.store.freshness)
        if membership.introduced:
            self._hear_of_others(membership, now)
            self._look_after_others(membership, now)
            wait = min(wait, replica.state.policy.ttl / 8)
        if replica.snapshot_due:
            replica.write_snapshot()
        return wait

    def _hear_of_others(self, membership: Membership[State], now: float) -> None:
        """Learn which trials others have started: a peer that is busy and asks nothing must notice when they die."""
        replica = membership.replica
        if now - membership.pulled_at < replica.state.policy.ttl / BEATS_PER_TTL:
            return
        if replica.log.changed(replica.state.lsn) is not False:
            self.pull(membership)

    def _look_after_others(self, membership: Membership[State], now: float) -> None:
        """Reclaim what silent peers left, stop what is stuck, as far as it is still so when the log says so."""
        replica = membership.replica
        due = self._keeper.due(membership.study_id, replica.state, spare=self._mine, now=now)
        if not due:
            return
        self.pull(membership)  # perhaps somebody was quicker, or the owner has finished
        running, trials = replica.state.running, replica.state.trials
        still = [one for one in due if one.number in running and trials[one.number].epoch == one.epoch]
        if still:
            self.commit(membership, *still)

    def resting(self, membership: Membership[State]) -> tuple[int, ...]:
        """WAITING retries that this peer does not take yet, see `Keeper.resting`."""
        if not membership.replica.state.waiting:
            return ()
        return self._keeper.resting(membership.study_id, membership.replica.state, now=self.clock())

    # --- the spool ---

    def keep_on_disk(self, membership: Membership[State]) -> Path | None:
        """Put what could not be sent on disk, if the end of a trial is among it; any process of this user sends it."""
        replica = membership.replica
        ends = replica.ends()
        if not ends or self.store.url.startswith("memory:"):
            return None
        commits = replica.pack_for_spool()
        define = replica.state.define
        path = spool.write(
            spool.spooled_now(
                store=self.store.url,
                study=membership.uuid,
                name=define.name if define else "",
                trials=ends,
                at=self.now_us(),
                commits=commits,
            )
        )
        membership.spooled.append(path)
        return path

    def deliver(self, path: Path, spooled: spool.Spooled) -> None:
        """Send what a process of this user had to leave in the spool, and remove it.

        Raises:
            StoreUnreachable: not this time; it stays.
        """
        membership = self.memberships.get(spooled.study)
        replica = (
            membership.replica
            if membership is not None
            else study_replica(self.store.log(spooled.study), writer=self.uuid, now_us=self.now_us)
        )
        for nonce, payload in zip(spooled.nonces, spooled.payloads, strict=True):
            replica.send_for_another(nonce, payload)
        path.unlink(missing_ok=True)

    def _tend_spool(self, now: float) -> None:
        if now < self._next_delivery:
            return
        self._next_delivery = now + _DELIVERY_EVERY
        own = {path for membership in self.memberships.values() for path in membership.spooled}
        for path, spooled in spool.waiting(self.store.url):
            if path not in own:
                self.deliver(path, spooled)

    @staticmethod
    def _forget_spooled(membership: Membership[Any]) -> None:
        """All is acknowledged: nobody needs to send it again."""
        for path in membership.spooled:
            path.unlink(missing_ok=True)
        membership.spooled.clear()

    @property
    def _mine(self) -> frozenset[str]:
        return self.acts_for | {self.uuid}

    def someone_may_be_dead(self, membership: Membership[State]) -> bool:
        """Whether some running trial's owner has not shown a sign of life lately."""
        state, now = membership.replica.state, self.clock()
        return bool(self._keeper.doubtful_owners(membership.study_id, state, spare=self._mine, now=now))

    # --- the thread ---

    def _start(self) -> None:
        if self._thread is None and self._threaded and not self._closed:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(
                        target=_run, args=(weakref.ref(self), self._wake), name="hopaas-courier", daemon=True
                    )
                    self._thread.start()

    def wake(self, *, after: float = 0.0) -> None:
        """See that the thread looks again within `after` seconds."""
        if after == 0.0 or 1.01 * after < self._sleeping_for:
            self._sleeping_for = after
            self._wake.set()

    _sleeping_for = 0.0

    def close(self) -> None:
        """Send what is queued, as far as the store can be reached, end the thread, let go of the store."""
        if self._closed:
            return
        self._closed = True
        self._say_farewell()
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=_FAREWELL)
        self.store.close()

    def _say_farewell(self) -> None:
        patience, self.patience = self.patience, _FAREWELL
        try:
            self.flush()
        except HopaasError as error:
            _log.warning("some records could not be sent before the end: %s", error)
            self._spool_all()
        finally:
            self.patience = patience

    def _spool_all(self) -> None:
        for membership in self.memberships.values():
            if not membership.spooled and not membership.deleted:
                path = self.keep_on_disk(membership)
                if path is not None:
                    _log.warning("kept in %s; sent at the next contact, or with: hopaas-p2p spool send", path)

    # --- fork ---

    def _replicas(self) -> list[Replica[Any]]:
        return [self.catalog.replica, *(membership.replica for membership in self.memberships.values())]

    def before_fork(self) -> None:
        self._lock.acquire()
        for replica in self._replicas():
            replica.lock.acquire()

    def after_fork_in_parent(self) -> None:
        for replica in self._replicas():
            replica.lock.release()
        self._lock.release()

    def after_fork_in_child(self) -> None:
        self.acts_for = self.acts_for | {self.uuid}
        self.adopted = set()
        self.uuid = identity.new_uuid()
        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._thread = None
        self._keeper = Keeper(self.store)
        self.store.after_fork()
        self.catalog.replica.become(self.uuid)
        for membership in self.memberships.values():
            membership.replica.become(self.uuid)
            membership.introduced = False


def _run(reference: weakref.ref[Courier], wake: threading.Event) -> None:
    """The thread. Holds no reference while it sleeps, so that a forgotten courier ends."""
    while True:
        courier = reference()
        if courier is None or courier._closed:
            return
        wake.clear()
        try:
            pause = courier.tick()
        except HopaasError as error:
            _log.warning("%s", error)
            pause = 5.0
        except Exception:  # noqa: BLE001  # a background thread that dies takes the leases with it
            _log.exception("the courier stumbled and goes on")
            pause = 5.0
        courier._sleeping_for = pause
        del courier
        wake.wait(pause)


_couriers: Final[weakref.WeakSet[Courier]] = weakref.WeakSet()


def _all(method: Callable[[Courier], Any]) -> None:
    for courier in list(_couriers):
        method(courier)


@atexit.register
def _farewell() -> None:
    _all(Courier._say_farewell)


os.register_at_fork(
    before=lambda: _all(Courier.before_fork),
    after_in_parent=lambda: _all(Courier.after_fork_in_parent),
    after_in_child=lambda: _all(Courier.after_fork_in_child),
)
