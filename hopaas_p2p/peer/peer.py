"""One process taking part in the studies of one store: its identity, its logs, and what it does with them.

Callers queue records and wait. The job of each log makes exchanges for them, and when something is due (`jobs`). So a
caller does not block in a call to a server, and a signal ends its wait at once. A caller that can continue without the
store does so. Tasks that no caller waits for are jobs, too: beats, snapshots, and errands such as the spool.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import random
import sys
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

import msgspec

from hopaas_p2p.core.blocks import close_settled
from hopaas_p2p.core.catalog import Catalog
from hopaas_p2p.core.leases import BEATS_PER_TTL, MARGIN, beat_value
from hopaas_p2p.core.records import PeerJoin, Record, TrialCreate, Used
from hopaas_p2p.core.state import State, Verdict
from hopaas_p2p.core.validity import readable
from hopaas_p2p.errors import (
    BrokenChain,
    ConfigurationError,
    Denied,
    HopaasError,
    InvalidInput,
    NewerFormat,
    StoreCorrupt,
    StoreUnreachable,
    StudyDeleted,
)
from hopaas_p2p.net.backoff import Backoff
from hopaas_p2p.peer import handover
from hopaas_p2p.peer.caller import FIRST_PAUSE, LONGEST_PAUSE, Caller
from hopaas_p2p.peer.jobs import Jobs
from hopaas_p2p.peer.outbox import PendingCommit
from hopaas_p2p.peer.session import CATALOG, IDLE, STUDY, LogClient, LogSession, ReplicatedMachine, S, translated
from hopaas_p2p.peer.spool import SpoolSender
from hopaas_p2p.runtime import process, provenance
from hopaas_p2p.runtime.logs import LOG
from hopaas_p2p.stores.base import Beat, Log, Store

_SHUTDOWN_TIMEOUT: Final = 5.0  # seconds that a program about to end waits for a silent store
_LONGEST_SILENCE: Final = 30.0  # seconds between background attempts while the store is away
_UNTIL_JOINED: Final = 0.1  # seconds between checks of the ttl of a study that is being joined
_LISTED_EVERY: Final = 600.0  # seconds between checks that the studies in use are still listed
_ERRANDS_AFTER: Final = 5.0  # seconds between the introduction of a peer and its first errands
_PACKED_AT_ONCE: Final = 2  # blocks of finished trials: a few milliseconds
_MORE_TO_PACK: Final = 0.05  # seconds between packing two batches, so that other threads get the lock
_QUEUED: Final = "The change was not refused and may still be made; check whether it was made before you repeat it."
_ALL: Final = -1
"""Stands for all trials of a peer, in place of a trial's number."""
_COLLECTED: Final = 0.05  # seconds to wait for more commits after the first
_SUSPENDED: Final = 60.0  # seconds after which an unreadable study is tried again
_KEPT: Final = ("linger", "patience", "store_wait", "clock", "now_us", "peer_ttl", "describe", "energy")
"""Arguments that the peer of a forked child takes over."""

_AGAIN: Final = 0.5
"""Seconds for which a reading of the energy is reused, because NVML takes a millisecond per GPU."""
_DRIFT: Final = 1.0
"""Seconds plus percent of the lease by which the clock may have been set before the owner reports its measurement."""

T = TypeVar("T")


def microseconds() -> int:
    """This machine's clock, for people to read: microseconds since 1970, UTC."""
    return time.time_ns() // 1000


elapsed: Final = functools.partial(time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
"""Seconds on a clock of this machine that is never set, and that keeps running while the machine is suspended.

Linux's monotonic clock stops during a suspension, so by that clock an owner would still trust a lost lease afterwards.
"""


class Peer:
    """One process taking part in a store's studies; see the module. Methods may be called from any thread.

    Args:
        store: where the logs are.
        linger: seconds for which reports are collected before they are sent. None: one second, or longer where the
            store is slower to show them or a busy log suggests it.
        patience: seconds for which a blocking call tries an unreachable store before it raises.
        store_wait: the same for a call without which training cannot continue. Infinite unless `patience` was given.
        clock: monotonic seconds; a simulator passes its own, and runs the jobs itself instead of allowing threads.
        now_us: the time for people to read, in microseconds.
        acts_for: peers whose trials moved to this process.
        peer_ttl: seconds of silence that others allow this peer, if longer than the study's ttl.
        threaded: whether threads may be used. If not, callers make exchanges themselves, and nothing else is done.
        energy: returns the joules that this process's devices have used; None if they cannot be read.
        describe: returns the provenance that this peer announces when it joins a study.
        uuid, jitter: the peer's name and jitter; a simulator passes its own, so that its seed determines the run.

    """

    def __init__(
        self,
        store: Store,
        *,
        linger: float | None = None,
        patience: float | None = None,
        store_wait: float | None = None,
        clock: Callable[[], float] = elapsed,
        now_us: Callable[[], int] = microseconds,
        acts_for: frozenset[str] = frozenset(),
        peer_ttl: float | None = None,
        threaded: bool = True,
        describe: Callable[[], dict[str, str]] = provenance.describe,
        energy: Callable[[], float] | None = None,
        uuid: str | None = None,
        jitter: random.Random | None = None,
    ) -> None:
        self.store = store
        self.uuid = uuid or process.new_uuid()
        """The name of this process: the writer of its commits, the owner of its trials. No other process uses it."""
        self.acts_for = acts_for
        """Peers whose running trials moved to this process."""
        self._pid, self._lock = os.getpid(), threading.Lock()
        self.patience = 60.0 if patience is None else patience
        self.store_wait = store_wait if store_wait is not None else math.inf if patience is None else patience
        self.clock, self.now_us, self.describe = clock, now_us, describe
        self.linger, self.peer_ttl, self.energy = linger, peer_ttl, energy
        self.meter = Meter(clock=clock, now_us=now_us, energy=energy)
        self.jitter = jitter or random.Random()
        self._adopted: set[tuple[str, str, int]] = set()
        """Owner, study and number of each running trial of another peer that this process continues."""
        self.retry_at = 0.0
        """Until this time, calls and jobs that can do without the store skip it, because it did not answer."""
        self._hurried_at = math.inf
        """The time from which calls soon give up on a silent store, because the program is about to end; infinite if
        there is none."""
        self._away_since = math.inf
        """The time since which no exchange has succeeded; infinite if the last one did."""
        self.copies_made = 0
        """How often this process was forked, or its storage pickled; another process may then also run its trials."""
        self.users: weakref.WeakSet[Any] = weakref.WeakSet()
        """Storages of this process that share this peer, which is closed with the last of them."""
        self.asked: weakref.WeakSet[Any] = weakref.WeakSet()
        """Trials of `ask`, each of which is forgotten when it is collected or this process ends."""
        self.forgotten: deque[Any] = deque()
        """Weak references to trials that were collected before they were ended, for a job to release."""
        self.jobs: Jobs[Peer] = Jobs(self, allowed=threaded)
        self.callers: set[Caller] = set()
        """All waiting callers."""
        self.catalog: LogClient[Catalog] = self._client(CATALOG, store.catalog())
        self.logs: dict[str, LogClient[State]] = {}
        """By study uuid."""
        self.spool = SpoolSender(store, now_us=now_us)
        self._errands = self.jobs.add(lambda peer: peer.in_background(peer._run_errands))
        self._beating = self.jobs.add(lambda peer: peer.in_background(peer._beat_if_due))
        self._snapshots = self.jobs.add(Peer._write_snapshots)
        self._keeping = self.jobs.add(Peer._keep_ends_if_due)
        self.closed = self._said_farewell = False
        self.visits = False
        """Whether this peer writes only on behalf of others, as for a ticket; it then neither introduces itself nor
        sends beats.
        """
        self._beats, self._beaten_at, self._next_beat, self._unbroken = 0, -1e9, 0.0, dict[str, float]()
        self._backoff = Backoff(FIRST_PAUSE, _LONGEST_SILENCE, jitter=(0.5, 1.0), uniform=self.jitter.uniform)
        self._author = ""
        """The user as which this process writes, according to the store; empty until it has written."""
        self._answered: dict[str, str] = {}
        """By study uuid: the last rescue request that was answered."""
        self._next_requests, self._next_listing = clock() + handover.REQUESTS_EVERY, clock() + _LISTED_EVERY
        process.remember(self)

    @property
    def mine(self) -> frozenset[str]:
        """The owners that this process acts for."""
        return self.acts_for | {self.uuid}

    def is_mine(self, owner: str | None) -> bool:
        """Whether this process may act for that peer."""
        return owner == self.uuid or owner in self.acts_for

    def act_for(self, others: frozenset[str]) -> None:
        """Continue the trials of these peers, which have moved to this process; first reads the logs.

        If the store does not answer now, the log is read later, with the next exchange.
        """
        with self._lock:
            self.acts_for |= others - {self.uuid}
        for log in list(self.logs.values()):
            with contextlib.suppress(HopaasError):
                self.pull(log)

    def adopt(self, owner: str, uuid: str, number: int) -> None:
        """Also send beats for the owner of this trial of a study, as long as the trial runs."""
        if (owner, uuid, number) not in self._adopted and not self.visits:
            self._adopted.add((owner, uuid, number))
            self._next_beat = 0.0  # its last beat may be old
            self.jobs.wake(self._beating)

    @property
    def adopted(self) -> set[str]:
        """The other peers for which this process sends beats.

        It does so only while the trials that it continues run, because those peers may be dead, and may have left other
        trials.
        """
        owners = set()
        for one in list(self._adopted):  # another thread may be adopting one
            owner, uuid, number = one
            log = self.logs.get(uuid)
            over = number != _ALL and (log is None or log.session.deleted)
            if number != _ALL and log is not None and log.session.joined and number < len(log.state.trials):
                trial = log.state.trials[number]
                over = over or trial.end is not None or trial.owner != owner
            if over:
                self._adopted.discard(one)
            else:
                owners.add(owner)
        return owners

    @property
    def _beaten_for(self) -> set[str]:
        """The owners for which this process sends beats, and which it does not watch. Others in `mine` may be dead."""
        return self.adopted | {self.uuid}

    def log(self, uuid: str) -> LogClient[State]:
        """This process's client of a study's log, created by the first call."""
        with self._lock:
            if uuid not in self.logs:
                self.logs[uuid] = self._client(STUDY, self.store.log(uuid))
            return self.logs[uuid]

    def _client(self, machine: ReplicatedMachine[S], log: Log) -> LogClient[S]:
        """A client of a log, with a job of its own."""
        session = LogSession(machine, self.uuid, now_us=self.now_us, linger=self.linger, freshness=self.store.freshness)
        return self._employed(LogClient(log, session, self.clock))

    def _employed(self, client: LogClient[S]) -> LogClient[S]:
        client.job = self.jobs.add(functools.partial(Peer._tend, log=client))
        return client

    def all_logs(self) -> list[LogClient[Any]]:
        """The clients of all logs, including the catalog's."""
        return [self.catalog, *list(self.logs.values())]

    # --- calls that wait for the store ---

    def commit_to_catalog(self, record: Record) -> Verdict:
        """Write to the list of studies, and wait for the verdict; raises like `commit`."""
        catalog = self.catalog
        (verdict,) = self.commit(catalog, record)
        if catalog.session.snapshot_due and catalog.rate_limited is not None:
            with contextlib.suppress(StoreUnreachable, Denied):  # the next snapshot will replace it
                self.call(catalog.write_snapshot, within=0.0)
        return verdict

    def commit(
        self, log: LogClient[Any], *records: Record, owner: str | None = None, within: float | None = None
    ) -> tuple[Verdict, ...]:
        """Write these records and wait for their verdicts; the records are durable when this returns.

        Raises:
            StoreUnreachable: no verdict in `within` seconds, by default `patience`. The records stay queued and are
                sent at the next contact, or are already in the log.
            InvalidInput: the records cannot be encoded.

        """
        pending = self.put(log, *records, owner=owner)
        try:
            return self.await_commit(log, pending, within=within)
        except StoreUnreachable as error:
            unanswered = StoreUnreachable(f"{str(error).rstrip('.')}. {_QUEUED}")
            unanswered.queued = True
            raise unanswered from error.__cause__

    def start(self, log: LogClient[State], record: Record, *, within: float = math.inf) -> PendingCommit:
        """Commit a record that starts a trial. If that fails or is interrupted, the trial is released.

        Waits for an unreachable store no longer than `store_wait`, and no longer than `within`.

        Raises:
            InvalidInput: the trial is new, and the peer was closed, so no heartbeats would be sent for it.
            StoreUnreachable: the store did not answer for that long.

        """
        if self._pid != os.getpid():
            self.become_child()
        if self.closed and isinstance(record, TrialCreate):
            raise InvalidInput("this study was closed, so it starts no more trials; open it again, or close it later")
        if not log.session.introduced:
            self.introduce(log)
        pending = PendingCommit(self.uuid, (record,))
        try:
            with log.lock:
                log.session.queued.append(pending)
            _ = self.await_commit(log, pending, within=min(self.store_wait, within))
        except BaseException:
            with log.lock:
                log.session.abandon(pending)
            raise
        return pending

    def put(self, log: LogClient[Any], *records: Record, owner: str | None = None) -> PendingCommit:
        """Queue records without waiting. A peer's first records are preceded by its introduction."""
        if self._pid != os.getpid():
            self.become_child()
        if not log.session.introduced and log is not self.catalog:
            self.introduce(log)
        with log.lock:
            pending = PendingCommit(owner or self.uuid, records)  # under the lock: this process may get another name
            log.session.queued.append(pending)
        return pending

    def introduce(self, log: LogClient[State]) -> None:
        """Queue this peer's introduction, unless that was done; then the peer sends beats, and watches other peers."""
        session = log.session
        if session.introduced or self.visits:
            return
        record = self._introduction(log)
        with log.lock:
            if not session.introduced:  # and no other thread has done so
                session.introduce(self.uuid, record)
                log.look_again_at = -math.inf
        for job in (log.job, self._beating):
            self.jobs.wake(job)
        self.jobs.wake(self._errands, after=_ERRANDS_AFTER)

    def introduce_as(self, log: LogClient[State], about: dict[str, str]) -> None:
        """Add `about` to the introduction. If it is new, a peer that has introduced itself does so again."""
        if about != log.about:
            log.about = about
            if log.session.introduced:
                log.put(self.uuid, self._introduction(log))

    def _introduction(self, log: LogClient[State]) -> PeerJoin:
        ttl = {} if self.peer_ttl is None else {"ttl": str(self.peer_ttl)}
        return introduction({**self.describe(), **log.about, **ttl})

    def catch_up(self, log: LogClient[Any], *, within: float | None = None) -> None:
        """Bring the replica up to date; raises StoreUnreachable after `within` seconds, by default `patience`."""
        _ = self.await_commit(log, None, within=within)

    def pull(self, log: LogClient[Any]) -> None:
        """Bring the replica up to date, and send queued records. One attempt."""
        _ = self.await_commit(log, None, within=-math.inf)

    def await_commit(
        self, log: LogClient[Any], pending: PendingCommit | None, *, within: float | None = None
    ) -> tuple[Verdict, ...]:
        """Exchange until there are verdicts on these records, and return them; without records, read the log again.

        A failed exchange is repeated. Without records, the result is empty.

        Raises:
            StoreUnreachable: no success in `within` seconds, by default `patience`; the records stay queued.
            InvalidInput: the records cannot be encoded.

        """
        if self._pid != os.getpid():
            self.become_child()
        within = self.patience if within is None else within
        caller, began, read = None, self.clock(), False
        undecided = pending is None or pending.verdicts is None
        if undecided and self.jobs.allowed and (log.turn.locked() or not self.store.immediate):
            caller = Caller(self, within, began, pending)
            try:
                with log.lock:
                    log.waiting.append(caller)
                if self.jobs.wake(log.job):
                    caller.wait()
                    read = True
            finally:
                with log.lock:
                    log.waiting = [one for one in log.waiting if one is not caller]
        while not read if pending is None else pending.verdicts is None:
            try:
                with log.turn:
                    if pending is None or pending.verdicts is None:
                        self._exchange(log)
                read = True
            except StoreUnreachable as error:
                caller = caller or Caller(self, within, began, pending)
                caller.sleep_after(error)
        if pending is None or pending.verdicts is None:
            return ()
        if pending.error is not None:
            raise pending.error
        return pending.verdicts

    def hear(self, log: LogClient[Any], within: float) -> bool | None:
        """Wait up to `within` seconds until the store announces new commits in a log, and read them.

        Returns whether commits came, or None at once if the store cannot announce them. No polling is needed during
        this wait. Raises like `pull`.
        """
        session, looked_at = log.session, log.session.read_at
        session.read_at = -math.inf
        try:
            told = self.call(lambda: log.log.news(session.state.lsn, within), within=0.0, brief=True)
        except HopaasError:
            session.read_at = looked_at
            raise
        if told:
            time.sleep(_COLLECTED)
            self.pull(log)
        elif told is None:
            session.read_at = looked_at
        else:
            session.exchanged_at = max(session.exchanged_at, self.clock())  # an exchange would report the same
        return told

    def call(self, do: Callable[[], T], *, within: float | None = None, brief: bool = False) -> T:
        """Make a call to the store, in as many attempts as fit in `within` seconds, by default `store_wait`.

        Returns its result, or raises its error. When the program is about to end, a `brief` call is given up like an
        exchange; other calls are not.
        """
        caller = Caller(self, self.store_wait if within is None else within, self.clock(), brief=brief)
        found: list[T] = []

        def attempt(_: Peer) -> float:
            try:
                found.append(do())
            except BaseException as error:  # noqa: BLE001  # the caller raises it
                caller.tell(error)
                return caller.backoff.pause() if isinstance(error, StoreUnreachable) else math.inf
            caller.tell()
            return math.inf

        job = self.jobs.add(attempt)
        try:
            if not self.store.immediate and self.jobs.wake(job):
                caller.wait()
                return found[0]
        finally:
            self.jobs.remove(job)
        while True:
            try:
                return do()
            except StoreUnreachable as error:
                caller.sleep_after(error)

    def _exchange(self, log: LogClient[Any]) -> None:
        """Make one exchange. The caller holds the turn."""
        session = log.session
        if session.introduced and self._beaten_at < 0.0 and not self.store.piggybacks_heartbeats:
            self._beat_at_first()
        if session.writer != self.uuid:
            session = self._renewed(log)
        session.author = session.author or self._author
        introduced, began = session.introduced, self.clock()
        beat = self._new_beat(self.uuid) if introduced and self.store.piggybacks_heartbeats else None
        log.exchanging_since = began
        try:
            log.exchange_in_turn(began, beat)
        except StoreUnreachable:
            if self._away_since == math.inf:
                self._away_since = began
                if introduced:  # ends of trials go to the spool after `patience`, even if no call puts them there
                    self.jobs.wake(self._keeping, after=max(0.0, self.patience))
            raise
        except StoreCorrupt:  # a rescue of the log may need what this process knows
            for uuid in [uuid for uuid, one in list(self.logs.items()) if one is log]:
                self.spool.keep_history(uuid, log)
            raise
        finally:
            log.exchanging_since = math.inf
        self._away_since = math.inf
        self._author = session.author
        if session.duplicated:
            with self._lock:
                if session.writer == self.uuid:  # for instance because a machine image was started twice
                    LOG.warning("another process writes as %s; this one continues under a new name", self.uuid)
                    self._adopted.add((self.uuid, "", _ALL))
                    self._take_another_name()
            return
        if session.spooled and not session.has_pending:
            self.spool.arrived(session)
        if self.store.piggybacks_heartbeats and session.introduced and not self.adopted:  # those need separate beats
            ttl = min(state.policy.ttl for state in [session.state, *self._active()])
            since = self.clock() if self._unbroken else began  # no observer watched this peer before its first commit
            self._have_beaten((self.uuid,), began, ttl, since=since)
            if not introduced:  # no beat was sent: others measure from this commit, and a first beat is due now
                self._next_beat = began
        if session.snapshot_due and self.store.snapshots and introduced:
            self.jobs.wake(self._snapshots)

    def _beat_at_first(self) -> None:
        """Send a beat before the first trial, so that the trial's lease is trusted from the start."""
        began = self.clock()
        try:
            self._beat((self.uuid,))
            self._beaten_at, self._unbroken = began, {self.uuid: self.clock()}
        except Denied:  # another user saw this name in one of our commits, and sent a beat under it
            with self._lock:
                self._take_another_name()
        except StoreUnreachable:
            pass  # the exchange that follows reports it

    # --- reads ---

    def refresh_for_reading(self, log: LogClient[Any]) -> None:
        """Make the replica as fresh as `Store.freshness` promises a read."""
        session, freshness = log.session, self.store.freshness
        if freshness == 0.0:
            try:
                changed = log.log.changed(session.state.lsn)
            except (StoreUnreachable, OSError):
                if not session.joined:
                    with translated():
                        raise
                return
            if changed:
                self._pull_if_possible(log)
            return
        now = self.clock()
        session.read_at = now
        stale = now - session.exchanged_at > 2 * freshness and now >= self.retry_at
        if not session.joined or (stale and not (self.away and self.jobs.allowed)):
            self._pull_if_possible(log)
        self.jobs.wake(log.job, after=freshness)

    def send_if_possible(self, log: LogClient[Any], number: int) -> None:
        """Apply new commits, and send queued records until all records about this trial are in the store.

        If the store is known to be unreachable, or turns out to be, queued records stay queued.
        """
        while self.clock() >= self.retry_at and self._pull_if_possible(log):
            with log.lock:
                if not log.session.has_unsent(number):
                    return

    def _pull_if_possible(self, log: LogClient[Any]) -> bool:
        """Pull, and return whether the store answered. If not, a read uses what is known; if nothing is, this raises.

        Training does not stop because a store is away, its token expired, or a proxy answers in its place. For a
        process that only reads, the last two are errors.
        """
        if not log.session.joined:
            self.catch_up(log)
            return True
        try:
            self.pull(log)
        except (StoreUnreachable, Denied, ConfigurationError) as error:
            takes_part = log.session.introduced or log.session.has_pending
            if isinstance(error, NewerFormat) or not (takes_part or isinstance(error, StoreUnreachable)):
                raise
            self.retry_at = self.clock() + self.store.freshness  # until then, no call tries again
            return False
        return True

    # --- leases, and the trials of others ---

    def lease_valid(self, log: LogClient[State], owner: str) -> bool:
        """Whether this process may still trust the lease of a trial that it runs for `owner`.

        The lease is treated as uncertain shortly before others may reclaim the trial. After such a silence, it stays so
        until the log, which may hold a reclaim, has been read again.
        """
        until = self._beaten_at + log.state.policy.ttl * (1.0 - MARGIN)  # first: this thread may be suspended anywhere
        read = log.session.exchanged_at >= self._unbroken.get(owner, math.inf)
        return read and self.clock() < until

    def resting(self, log: LogClient[State]) -> tuple[int, ...]:
        """WAITING retries that this peer does not take yet; see `OwnerMonitor.resting`."""
        with log.lock:
            return log.session.owners.resting(log.session.state, self.clock())

    def doubted_until(self, log: LogClient[State], owner: str, *, since: float) -> float | None:
        """See `OwnerMonitor.doubted_until`; None also for an owner for which this process itself sends beats."""
        if owner in self._beaten_for:
            return None
        return log.session.owners.doubted_until(log.state, owner, since=since, now=self.clock())

    def release_forgotten(self) -> None:
        """Release the trials that were collected before they were ended. May be called from any thread."""
        while self.forgotten:
            try:
                asked = self.forgotten.popleft()
            except IndexError:  # another thread took the last one
                return
            asked.release()

    def note_draft(self, log: LogClient[State]) -> None:
        """Record that something was drafted, to be sent with the next exchange, or after the flush interval at the
        latest.
        """
        self.jobs.wake(log.job, after=log.session.note_draft(self.clock()))

    def hurry(self, log: LogClient[State], *, within: float) -> None:
        """Send drafts within `within` seconds if another peer works on the study.

        Call under the log's lock. In a bucket, drafts are sent at this peer's next turn after that time.
        """
        session = log.session
        trials = session.state.trials
        for number in session.state.running:
            if not self.is_mine(trials[number].owner):
                session.urgent_at = min(session.urgent_at, self.clock() + within)
                self.jobs.wake(log.job, after=within)
                break

    def _new_beat(self, owner: str) -> Beat:
        """A beat that differs from all earlier ones, including those of other processes that act for this owner."""
        self._beats += 1
        return Beat(owner, beat_value(self.uuid, self._beats, self.now_us()))

    def _beat(self, owners: tuple[str, ...]) -> None:
        with translated():
            for owner in owners:
                self.store.beat(self._new_beat(owner))

    # --- what is done in the background ---

    def in_background(self, duty: Callable[[float], float]) -> float:
        """Run a task that no caller waits for, unless the store was just found away; return the seconds until it is due
        again.

        After a failure, the pause is short enough for the peer to reach the store again before it loses its leases.
        """
        now = self.clock()
        if now < self.retry_at:
            return self.retry_at - now
        try:
            pause = duty(now)
        except StoreUnreachable as error:
            self._backoff.longest = min([_LONGEST_SILENCE, *(state.policy.ttl / 4 for state in self._active())])
            pause = self._backoff.pause()
            self.retry_at = self.clock() + pause
            LOG.debug("store unreachable, trying again in %.1f s: %s", pause, error)
        else:
            self._backoff.reset()
        return pause

    def _run_errands(self, now: float) -> float:
        """Release forgotten trials, send others' spooled commits, answer a rescue, and end the logs of deleted studies.

        A process that deletes a study removes it from the list, then ends its log, and may die before the second step.
        """
        self.release_forgotten()
        self.spool.send_others(self.logs, self.studies(), now, writer=self.uuid)
        worked_on = {
            uuid: log for uuid, log in list(self.logs.items()) if log.session.introduced and not log.session.deleted
        }
        if not worked_on:
            return IDLE
        if now >= self._next_requests:
            self._next_requests = now + handover.REQUESTS_EVERY
            handover.answer_requests(self.store, worked_on, self._answered, writer=self.uuid)
        if now >= self._next_listing:
            self._next_listing = now + _LISTED_EVERY
            self._read_list()
            with self.catalog.lock:  # according to the list as it is now or, after an error, as last read
                deleted = self.catalog.state.uuids - self.studies()
            for log in [log for uuid, log in worked_on.items() if uuid in deleted]:
                LOG.warning("%s", StudyDeleted())
                with contextlib.suppress(HopaasError):  # a worker may not end the log, but stops using it
                    log.destroy()
        again = self._next_requests - now, self._next_listing - now
        return min([*again, *(state.policy.ttl / 8 for state in self._active())])

    def _keep_ends_if_due(self) -> float:
        """Spool the ends of trials if the store has been away for longer than `patience`."""
        left = self._away_since + self.patience - self.clock()
        if left > 0.0:
            return left
        self.spool.keep_ends(self.logs)
        return LONGEST_PAUSE

    def _write_snapshots(self) -> float:
        """Write the snapshots that are due, in a job of their own, because a large one takes seconds."""
        for log in self.logs.copy().values():
            if log.session.snapshot_due and self.store.snapshots:
                try:
                    log.write_snapshot()
                    with translated():
                        self.store.sweep_beats()
                except HopaasError as error:  # the next snapshot will replace it
                    LOG.debug("no snapshot was written: %s", error)
        return math.inf

    def _active(self) -> list[State]:
        """The states of the studies in which this peer takes part, or continues another peer's trial."""
        continued = {uuid for _, uuid, _ in list(self._adopted)}
        logs = [log for uuid, log in list(self.logs.items()) if log.session.introduced or uuid in continued]
        return [log.state for log in logs if not log.session.deleted]

    def _beat_if_due(self, now: float) -> float:
        """Send the beats of this peer and of those it has adopted, if a third of ttl has passed since the last."""
        active = self._active()
        ttls = [state.policy.ttl for state in active if state.define is not None]
        if not ttls:
            return _UNTIL_JOINED if active else IDLE
        rides = self.store.piggybacks_heartbeats and not self.adopted  # the beat is then usually sent with an exchange
        if now >= self._next_beat + (min(ttls) / 8 if rides else 0.0):
            owners = self.uuid, *self.adopted
            self._beat(owners)
            self._have_beaten(owners, now, min(ttls), since=self.clock())
        return min(ttls) / 8

    def _have_beaten(self, owners: tuple[str, ...], began: float, ttl: float, *, since: float) -> None:
        """Record that beats of these owners, sent after `began`, have arrived.

        For each owner, `_unbroken` has the time since which its beats have arrived without a gap so long that others
        may have reclaimed its trials. Its leases are valid once the log has been read after that time.
        """
        before = {} if self.clock() > self._beaten_at + ttl * (1.0 - MARGIN) else self._unbroken
        self._unbroken = {owner: before.get(owner, since) for owner in owners}
        self._beaten_at, self._next_beat = max(began, self._beaten_at), began + ttl / BEATS_PER_TTL

    def doubt_list(self) -> None:
        """Let the next look-up of a study read the list of studies again, however recently it was read."""
        self.catalog.session.exchanged_at = -math.inf

    def _read_list(self) -> None:
        """Bring the list of studies up to date, and send the queued records of calls that were given up."""
        try:
            with self.catalog.turn:
                self._exchange(self.catalog)
        except StoreUnreachable:
            raise
        except HopaasError as error:
            LOG.warning("%s", error)

    def _tend(self, log: LogClient[Any]) -> float:
        """A log's job: make exchanges for callers, and do what is due. Returns the seconds until the next run."""
        with log.lock:
            waiting = log.waiting.copy()
        if waiting:
            try:
                if [one for one in waiting if one.pending is None or one.pending.verdicts is None]:
                    with log.turn:
                        self._exchange(log)
            except BaseException as error:
                for one in waiting:
                    one.tell(error)
                if isinstance(error, StoreUnreachable):
                    return float(waiting[0].backoff.pause())
                with log.lock:
                    log.waiting = [one for one in log.waiting if one not in waiting]
                if not isinstance(error, HopaasError):
                    raise
            else:
                done = [one for one in waiting if one.pending is None or one.pending.verdicts is not None]
                with log.lock:
                    log.waiting = [one for one in log.waiting if one not in done]
                for one in done:
                    one.tell()
            if log.waiting:
                return 0.0
            left = log.look_again_at - self.clock()
            if left > 0.0:
                return left
        return self.in_background(lambda now: self._tend_apart(log, now))

    def _tend_apart(self, log: LogClient[Any], now: float) -> float:
        """Do what is due in one log, so that its errors affect no other; return the seconds until it is due again."""
        session = log.session
        if log is self.catalog:
            if session.has_pending:
                self._read_list()
            return IDLE
        if session.deleted or now < session.suspended_until:
            return _SUSPENDED
        try:
            if log.rate_limited is not None:
                session.suggested_interval = log.rate_limited.flush_interval
            with log.lock:
                due, if_changed, again = session.ready(now)
            if if_changed and not due and log.changed() is False:
                session.exchanged_at = now  # an exchange would report the same
            elif due or if_changed:
                with log.turn:
                    self._exchange(log)
                with log.lock:
                    _, _, again = log.session.ready(now)
            if session.introduced and now >= session.owners.next_look:
                self._look_after_others(log, now)
            with log.lock:
                more = close_settled(session.state, at_most=_PACKED_AT_ONCE)
            log.look_again_at = now + _MORE_TO_PACK if more else again
            return log.look_again_at - now
        except StoreUnreachable:
            raise
        except StudyDeleted as error:
            LOG.warning("%s", error)
        except HopaasError as error:
            session.suspended_until = now + _SUSPENDED
            LOG.warning("%s", error)
        return _SUSPENDED

    def _look_after_others(self, log: LogClient[State], now: float) -> None:
        """Reclaim trials of silent peers and stop stuck trials, if another read of log and beats confirms this."""
        with log.lock:
            owners = log.session.owners
            spare = self._beaten_for
            watched = owners.watched(log.state, spare)
            heard = owners.heard(log.state, watched)
        with translated():
            beats = self.store.beats([owner for owner in watched if owner not in heard])
        with log.lock:
            due = owners.look(log.state, beats, watched, spare=spare, now=now, read=self.clock(), heard=heard)
        if not due:
            return
        with log.turn:
            self._exchange(log)  # another peer may have been quicker, or the owner has finished
            of = {owner for one in due if (owner := log.state.trials[one.number].owner) is not None}
            with translated():
                still = owners.still_due(log.state, due, self.store.beats(of))
            pending = self.put(log, *still) if still else None
            while pending is not None and pending.verdicts is None:  # a refusal means that another peer was first
                self._exchange(log)

    # --- the end, and what cannot be sent ---

    def flush(self) -> None:
        """Send all queued records, and block until the store has them. Records for deleted studies are not sent.

        Raises:
            StoreUnreachable: the store did not answer; unsent records stay queued.
            HopaasError: writing to one study failed; the others were written.

        """
        self.check_process()
        troubles = []
        for log in self.all_logs():
            try:
                while log.session.has_pending and not log.session.deleted:
                    self.pull(log)
            except StoreUnreachable:
                raise
            except StudyDeleted as error:
                LOG.warning("%s", error)
            except HopaasError as error:
                troubles.append(error)
        if troubles:
            raise troubles[0]

    def studies(self) -> set[str]:
        """The uuids of the studies that the store holds, as far as the list of studies has been read."""
        with self.catalog.lock:
            return {listing.uuid for listing in self.catalog.state.by_id.values()}

    def close(self) -> None:
        """Send queued records if the store can be reached, end the threads, and close the store."""
        if self.closed:
            return
        self.closed = True
        self.say_farewell()
        self.store.hang_up()
        self.jobs.stop(within=_SHUTDOWN_TIMEOUT if self.silent_since == math.inf else 0.0)
        self._nudge()
        logs = list(self.logs.values())
        introduced = [log.session for log in logs if log.session.introduced]
        silent = self._said_farewell or self.silent_since < math.inf
        if introduced and not silent and not any(one.has_pending for one in introduced):
            trials = [log.state.trials[number] for log in logs for number in list(log.state.running)]
            if not any(trial.owner == self.uuid for trial in trials):  # its beat is no longer needed
                with contextlib.suppress(HopaasError), translated():
                    self.store.remove_beat(self.uuid)
        self.store.close()

    def say_farewell(self) -> None:
        """Send queued records; spool those that cannot be sent. After spooling, a second call does nothing."""
        self.check_process()
        if self._said_farewell:
            return
        ends_with = sys.exception()
        for uuid, log in list(self.logs.items()):
            if log.session.broken is not None:
                self.spool.keep_history(uuid, log)
        self.forgotten.extend(self.asked)
        try:
            with self.in_a_hurry(since=-math.inf):
                self._send_and_confirm()
                if any(log.session.introduced for log in self.logs.values()):  # the job may not have run yet
                    others = functools.partial(self.spool.send_others, self.logs, self.studies(), self.clock())
                    self.call(lambda: others(writer=self.uuid), within=0.0, brief=True)
        except BaseException as error:  # results must be kept, even after Ctrl-C or without threads
            unsent = any(log.session.has_pending for log in self.logs.values())
            what = "some records could not be sent before this process ended" if unsent else "an error at exit"
            why = str(error) if isinstance(error, HopaasError) else repr(error)
            ending = "".join(traceback.format_exception_only(ends_with))  # `str` may fail for a program's error
            known = why.rstrip(".") in ending  # the handler of that error shows it
            if unsent or not known:
                LOG.warning("%s%s", what, "" if known else f": {why}")
            self.spool.keep_all(self.logs)
            self._said_farewell = True
            if not isinstance(error, Exception):
                raise

    def _send_and_confirm(self) -> None:
        """Send what is queued, and release forgotten trials; check that the logs still have what they acknowledged, and
        otherwise spool it.

        A failure in one study does not affect the others.
        """
        troubles: list[HopaasError] = []
        try:
            self.flush()
            self.release_forgotten()
        except StoreUnreachable:
            raise
        except HopaasError as error:
            troubles.append(error)
        self.release_forgotten()
        for uuid, log in list(self.logs.items()):
            try:
                if log.session.acknowledged:
                    self.call(log.confirm, within=0.0, brief=True)
            except BrokenChain as error:
                log.session.broken = error
                self.spool.keep_history(uuid, log)
                troubles.append(error)
            except Denied as error:
                troubles.append(error)
        if troubles:
            raise troubles[0]

    @contextlib.contextmanager
    def in_a_hurry(self, *, since: float | None = None) -> Iterator[None]:
        """In this block, a call gives up on a store that is silent for five seconds, counted from now or `since`."""
        before = self._hurried_at
        self._hurried_at = min(before, self.clock() if since is None else since)
        try:
            yield
        finally:
            self._hurried_at = before

    def hurry_from_now_on(self) -> None:
        """Let calls give up on a store that is silent for five seconds from now, because the program is about to end.

        May be called from a signal handler.
        """
        self._hurried_at = min(self._hurried_at, self.clock())
        self._nudge()

    def _nudge(self) -> None:
        """Let all callers check whether to keep waiting."""
        for one in self.callers.copy():
            one.tell(done=False)

    @property
    def hurried(self) -> bool:
        """Whether the program is about to end, and calls soon give up on a silent store."""
        return self._hurried_at < math.inf

    @property
    def silent_since(self) -> float:
        """When the unanswered exchange, or the first failed one since the last success, began; infinite if none did."""
        return min([self._away_since, *(log.exchanging_since for log in self.all_logs())])

    def has_given_up(self, *, silent_since: float) -> bool:
        """Whether a call in a hurry gives up on a store that has been silent since this time."""
        return self.clock() >= max(self._hurried_at, silent_since) + _SHUTDOWN_TIMEOUT

    @property
    def away(self) -> bool:
        """Whether the last exchange failed, so that a read leaves reconnecting to a job."""
        return self._away_since < math.inf

    # --- becoming another peer ---

    def check_process(self) -> None:
        """Continue as a new peer if this process is a copy that Python does not know about."""
        if self._pid != os.getpid():
            self.become_child()

    def become_child(self) -> None:
        """Continue as a new peer, which may act for the old one's trials; its sessions and jobs are new objects."""
        clients, logs, users = self.all_logs(), self.logs, self.users
        self.store.after_fork()
        again = {name: getattr(self, name) for name in _KEPT}
        self.__init__(self.store, **again, acts_for=self.mine, threaded=self.jobs.allowed)  # type: ignore[misc]
        for client in clients:
            session = LogSession.for_child(client.session, self.uuid)
            client.__init__(client.log, session, self.clock)  # type: ignore[misc]
            self._employed(client)
        self.catalog, self.logs, self.users = clients[0], logs, users

    def _take_another_name(self) -> None:
        self.acts_for = self.mine  # first, since other threads may read `mine` at any time
        self.uuid, self._next_beat = process.new_uuid(), 0.0

    def _renewed(self, log: LogClient[Any]) -> LogSession[Any]:
        """A session of this log under the current name, which sends everything undecided again."""
        old = log.session
        with log.lock:
            log.session = LogSession.for_child(old, self.uuid, resend=True)
        if old.introduced:
            self.introduce(log)
        return log.session


def introduction(about: dict[str, str]) -> PeerJoin:
    """A peer's introduction, made fit for a log, because names of users and sites may have any encoding."""
    return PeerJoin({key: readable(text) for key, text in about.items()})


class _Running(msgspec.Struct, eq=False):
    began: float
    ahead: float
    """Seconds by which the clock for commits' times was ahead of the monotonic one."""
    seconds: float
    joules: float
    """This and the fields above are the meter's readings when the lease began."""


class Meter:
    """Divides this process's time and energy among the trials that it runs. Methods may be called from any thread.

    Args:
        clock: monotonic seconds.
        now_us: the clock for commits' times.
        energy: returns the joules of this process's devices; None if they cannot be read.

    """

    def __init__(
        self, *, clock: Callable[[], float], now_us: Callable[[], int], energy: Callable[[], float] | None
    ) -> None:
        self._clock, self._now_us, self._energy = clock, now_us, energy
        self._lock = threading.Lock()
        self._running: dict[object, _Running] = {}
        self._at = clock()
        self._shared_at = -math.inf
        """When a lease last began while another was running."""
        self._read, self._read_at = 0.0 if energy is None else energy(), self._at
        self._seconds = self._joules = 0.0
        """The usage of a lease that has run since this meter was created."""

    def begin(self, lease: object) -> None:
        """Record that this lease began."""
        with self._lock:
            if self._running or self._energy is not None:
                now = self._divide(fresh=True)
            else:  # no lease to charge the time until now to
                now = self._at = self._clock()
            if self._running:
                self._shared_at = now
            self._running[lease] = _Running(now, self._now_us() / 1e6 - now, self._seconds, self._joules)

    def used(self, lease: object, *, at_end: bool = False) -> Used | None:
        """What the lease has used; None if readers of the log can compute that: one trial at a time, without energy.

        `at_end` ends the lease, and reads the devices even if they were read a moment ago.
        """
        with self._lock:
            one = self._running.get(lease)
            if one is None:
                return None
            alone = self._energy is None and one.began > self._shared_at  # nearly always
            now = self._clock() if alone else self._divide(fresh=at_end)
            if at_end:
                del self._running[lease]
            seconds = now - one.began if alone else self._seconds - one.seconds
            drift = abs(self._now_us() / 1e6 - now - one.ahead)
            if alone and drift <= _DRIFT + _DRIFT / 100 * seconds:
                return None
            joules = None if self._energy is None else round((self._joules - one.joules) * 1e3)
            return Used(round(seconds * 1e6), joules)

    def _divide(self, *, fresh: bool) -> float:
        """Divide the usage since the last call equally among the leases; return the time."""
        now, leases = self._clock(), len(self._running) or 1
        self._seconds += (now - self._at) / leases
        self._at = now
        if self._energy is not None and (fresh or now - self._read_at >= _AGAIN):
            before, self._read, self._read_at = self._read, self._energy(), now
            self._joules += max(0.0, self._read - before) / leases
        return now
