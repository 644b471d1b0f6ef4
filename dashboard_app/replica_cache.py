"""Keeps one replica per study for all browser sessions, which a thread updates while somebody views the study.

A session takes the newest frame and waits for the store only when it opens a study for the first time. While the store
is unreachable, sessions continue to show the last data and their age.

The replicas are those of an ordinary peer. A page writes through the replica that it shows, so the replica contains the
change when the write returns. A peer that only reads does not announce itself and writes nothing, so a viewer's token
is enough.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from dashboard_app.frames import Frame
from hopaas_p2p.core.catalog import Listing
from hopaas_p2p.core.leases import FailureDetector, ttl_of
from hopaas_p2p.core.state import State
from hopaas_p2p.errors import HopaasError, NoSuchStudy, StoreUnreachable, StudyDeleted
from hopaas_p2p.peer.jobs import Jobs
from hopaas_p2p.peer.liveness import SignOfLife, owners_of, sign_of_life
from hopaas_p2p.peer.session import LogClient, translated
from hopaas_p2p.runtime.logs import LOG
from hopaas_p2p.storage import Storage, open_storage
from hopaas_p2p.study import Study

_TICK: Final = 0.5  # seconds between checks for due work
_EVERY: Final = 1.0  # seconds between pulls of a viewed study; more if the store's own interval is longer
_VIEWED: Final = 30.0  # seconds for which a study is kept fresh after the last view
_FIRST_SIGHT: Final = 30.0  # seconds that the first read of a study may take
_HEARD_OF: Final = 4  # the most studies for which the store is asked to announce changes
_MOMENT: Final = 1.5  # seconds that a page waits for a study that was not kept fresh
_CLICK: Final = 10.0  # seconds that a write may wait for the store
_UNREADABLE: Final = 60.0  # seconds between attempts to read a study that cannot be read
_UNREACHABLE: Final = 5.0  # seconds between attempts to reach a store that does not answer
_HEARTBEATS: Final = 5.0  # minimum seconds between reads of the peers' heartbeats
_COLLECT: Final = 60.0  # seconds between garbage collections, which Streamlit would make after every run
_FREEZE_AFTER: Final = 2000  # trials read between two freezes; 10,000 unfrozen trials cost each collection 0.15 s


class Freshness(NamedTuple):
    """The age of the data shown."""

    lag: float
    """Seconds since the last successful read of the store began; infinite before the first."""
    trouble: str | None
    """Why the last read of the store failed; None if it succeeded."""


class CachedLog:
    """The replica of one log, and the outcome of the last read."""

    def __init__(self, replica: LogClient[Any]) -> None:
        self.replica = replica
        self.due = 0.0
        self.pulled = -float("inf")
        self.trouble: str | None = None
        self.looked_at = False
        """Whether the first attempt to read the log has ended, successfully or not."""

    @property
    def freshness(self) -> Freshness:
        """The age of this log's data, and why its last read failed, if it did."""
        return Freshness(time.monotonic() - self.pulled, self.trouble)


class CachedStudy(CachedLog):
    """The newest frame of one study, and the state of its peers as last seen."""

    replica: LogClient[State]

    def __init__(self, listing: Listing, replica: LogClient[State]) -> None:
        super().__init__(replica)
        self.listing = listing
        self.frame: Frame | None = None
        self.viewed_until = 0.0
        self.deleted = self.heard_of = False
        """Whether the study was deleted, and whether the store announces its new commits."""
        self.heartbeats_due = 0.0

    @property
    def detector(self) -> FailureDetector:
        """The observed heartbeats of the peers that run trials."""
        return self.replica.session.owners.detector

    def take(self) -> None:
        """Make a frame from the replica, if the replica has new commits."""
        with self.replica.lock:
            state, before = self.replica.state, self.frame
            if state.define is not None and (before is None or before.lsn != state.lsn):
                self.frame = Frame(self.listing, state, before)


class ReplicaCache:
    """One store, read and written for all sessions.

    Args:
        url: the store.
        threaded: whether a thread keeps the replicas fresh; a test calls `tick` itself.

    Raises:
        ConfigurationError: the URL or the store cannot be used.

    """

    def __init__(self, url: str, *, threaded: bool = True) -> None:
        storage = open_storage(url, create=False, patience=_CLICK, named=False)
        self._storages = {"": storage}
        self._peer = storage.peer
        self.store = self._peer.store
        self.url = self.store.url
        """The store's URL without secrets. In this process it still opens the same store."""
        self._catalog = CachedLog(self._peer.catalog)
        self._studies: dict[str, CachedStudy] = {}
        self._lock = threading.Lock()
        self._looked = threading.Condition()
        self._threaded = threaded
        self._jobs: Jobs[ReplicaCache] = Jobs(self, allowed=threaded)
        self._looking_job = self._jobs.add(ReplicaCache.tick)
        self._collect_due = 0.0
        self._frozen = 0
        """The number of trials that garbage collections no longer visit."""

    # --- what sessions read ---

    def studies(self) -> list[Listing]:
        """The studies of the store, newest first. Waits only for the first read of the store."""
        if not self._catalog.looked_at or not self._threaded:
            self._await(lambda: self._catalog.looked_at, _FIRST_SIGHT)
        return sorted(self._peer.catalog.state.by_id.values(), key=lambda one: -one.study_id)

    def frame(self, uuid: str) -> Frame | None:
        """The study as last read; None if there is none, or it could not be read yet. Keeps the study fresh for
        `_VIEWED`.

        Waits for the first read of the study, or for `_MOMENT` if it was not kept fresh.
        """
        study = self._cached(uuid)
        if study is None:
            return None
        study.viewed_until = time.monotonic() + _VIEWED
        if study.frame is None:
            self._await(lambda: study.looked_at, _FIRST_SIGHT)
        elif self._threaded and study.trouble is None:
            stale = study.pulled
            if time.monotonic() - stale >= 2 * self._every + _TICK:
                study.due = 0.0
                self._await(lambda: study.pulled != stale or study.trouble is not None, _MOMENT)
        return study.frame

    def lsn(self, uuid: str) -> int:
        """The lsn up to which the study was read, 0 before that; -1 if it was deleted, or no session has opened it.

        Keeps the study fresh, like `frame`.
        """
        study = self._studies.get(uuid)
        if study is None or study.deleted:
            return -1
        study.viewed_until = time.monotonic() + _VIEWED
        return study.frame.lsn if study.frame is not None else 0

    def freshness(self, uuid: str | None = None) -> Freshness:
        """The age of the data shown for this study; without a study, that of the list of studies."""
        return self._studies.get(uuid or "", self._catalog).freshness

    def signs(self, uuid: str) -> dict[str, SignOfLife]:
        """The last known signs of life of the peers that run trials, by peer."""
        study, now, wall = self._studies.get(uuid), time.monotonic(), time.time()
        if study is None:
            return {}
        state = study.replica.state
        return {owner: sign_of_life(state, owner, study.detector, now, wall) for owner in owners_of(state)}

    def leases(self, uuid: str) -> dict[str, float]:
        """Owner -> seconds until its trials may be taken over; negative if they already may be.

        Owners whose last sign of life is not known are left out.
        """
        known = {owner: sign.ago for owner, sign in self.signs(uuid).items() if sign.ago is not None}
        return {owner: ttl_of(self._studies[uuid].replica.state, owner) - ago for owner, ago in known.items()}

    # --- what sessions write ---

    def storage(self, person: str = "") -> Storage:
        """The storage with which this person writes. All of these storages share the same replicas."""
        with self._lock:
            if person not in self._storages:
                self._storages[person] = self._storages[""].on_behalf_of(person)
            return self._storages[person]

    def study(self, listing: Listing, person: str = "") -> Study:
        """The study to write to, found by its id, because after a deletion its name can belong to another study.

        Raises:
            NoSuchStudy: the study was deleted meanwhile.
            StoreUnreachable: the store does not answer.

        """
        storage = self.storage(person)
        try:
            name = storage.get_study_name_from_id(listing.study_id)
        except KeyError:
            raise NoSuchStudy(f"the study {listing.name!r} was deleted meanwhile") from None
        return Study(storage, listing.study_id, name)

    def show_written(self, uuid: str) -> None:
        """Make the next frame include recent changes made through this cache."""
        study = self._studies.get(uuid)
        if study is not None:
            study.take()

    def close(self) -> None:
        """End the thread, send queued records, and close the store."""
        self._jobs.stop(within=5.0)
        for storage in self._storages.values():
            storage.close()

    # --- the thread ---

    def tick(self) -> float:
        """Do all reads that are due; return the seconds until the next one may be due."""
        now = time.monotonic()
        if now >= self._catalog.due:
            with self._looking(self._catalog, now, 2 * self._every, "the list of studies"):
                self._pull(self._peer.catalog)
                there = {one.uuid for one in self._peer.catalog.state.by_id.values()}
                for uuid, study in list(self._studies.items()):
                    study.deleted = uuid not in there
        for study in list(self._studies.values()):
            if now >= study.due and (now < study.viewed_until or study.frame is None) and not study.deleted:
                self._look_at(study, now)
        if self._threaded and now >= self._collect_due:
            self._collect_due = now + _COLLECT
            gc.collect()
            read = sum(len(one.frame.columns) for one in self._studies.values() if one.frame is not None)
            if read >= self._frozen + _FREEZE_AFTER:  # trials have no cycles, and are freed without collections
                self._frozen = read
                gc.freeze()
        return _TICK

    def _await(self, done: Callable[[], bool], within: float) -> None:
        """Make the thread do all reads that are due, and wait for up to `within` seconds until `done` is true."""
        if not self._threaded:
            self.tick()
            return
        self._jobs.wake(self._looking_job)
        with self._looked:
            self._looked.wait_for(done, within)

    def _cached(self, uuid: str) -> CachedStudy | None:
        study = self._studies.get(uuid)
        if study is not None:
            return None if study.deleted else study
        listing = next((one for one in self.studies() if one.uuid == uuid), None)
        if listing is None:
            return None
        with self._lock:
            if uuid not in self._studies:
                study = self._studies[uuid] = CachedStudy(listing, self._peer.log(uuid))
                self._jobs.wake(self._jobs.add(functools.partial(ReplicaCache._hear, study=study)), after=_TICK)
            return self._studies[uuid]

    def _hear(self, study: CachedStudy) -> float:
        """Wait for the store's notifications about a viewed study, if the store has any. Returns the seconds until the
        next call.
        """
        others = sum(one.heard_of for one in list(self._studies.values()) if one is not study)
        if time.monotonic() >= study.viewed_until or study.deleted or study.trouble or others >= _HEARD_OF:
            study.heard_of = False
            return _EVERY
        told = self._peer.hear(study.replica, _VIEWED if study.heard_of else 0.0)
        study.heard_of = told is not None
        if told:
            study.due = 0.0
            self._jobs.wake(self._looking_job)
        return 0.0 if study.heard_of else math.inf

    @property
    def _every(self) -> float:
        return max(_EVERY, self.store.freshness)

    def _look_at(self, study: CachedStudy, now: float) -> None:
        pause = _HEARTBEATS if study.heard_of else self._every
        with self._looking(study, now, pause, f"the study {study.listing.name!r}"):
            try:
                self._pull(study.replica)
            except StudyDeleted:
                study.deleted = True
                return
            if now >= study.heartbeats_due:
                owners = owners_of(study.replica.state)
                with translated():
                    beats = self.store.beats(owners)
                with study.replica.lock:
                    study.detector.look(beats, owners, time.monotonic())
                study.heartbeats_due = now + max(_HEARTBEATS, self._every)
            study.take()

    @contextlib.contextmanager
    def _looking(self, log: CachedLog, now: float, pause: float, what: str) -> Iterator[None]:
        """Record the outcome of a read of this log, so that a log that cannot be shown does not hide the others."""
        try:
            yield
            log.trouble, log.pulled = None, now
        except HopaasError as error:
            soon = isinstance(error, StoreUnreachable) or log is self._catalog
            log.trouble, pause = str(error), _UNREACHABLE if soon else _UNREADABLE
        except Exception as error:  # noqa: BLE001
            LOG.exception("%s cannot be shown", what)
            log.trouble, pause = f"{what} cannot be shown: {type(error).__name__}", _UNREADABLE
        log.due, log.looked_at = now + pause, True
        with self._looked:
            self._looked.notify_all()

    def _pull(self, replica: LogClient[Any]) -> None:
        if not replica.session.joined or replica.changed() is not False:
            self._peer.pull(replica)


@functools.cache
def cache_of(url: str) -> ReplicaCache:
    """The cache of this store in this process."""
    return ReplicaCache(url)
