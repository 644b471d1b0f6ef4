"""The one reader behind all browser sessions: a thread that keeps a replica of every study somebody looks at.

Sessions ask for the newest frame and never wait for the store, but for the first sight of a study. While the store is
away they go on showing what was last seen, and how old that is. The feed writes nothing and introduces itself to
nobody: a viewer's token is enough.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any, Final, NamedTuple

from dashboard_app.collector import collector
from dashboard_app.frames import Frame
from dashboard_app.source import Source
from hopaas_p2p.core.catalog import Catalog, Listing
from hopaas_p2p.core.leases import ttl_of
from hopaas_p2p.errors import HopaasError, StoreUnreachable, StudyDeleted
from hopaas_p2p.peer.courier import microseconds
from hopaas_p2p.peer.identity import new_uuid
from hopaas_p2p.peer.replica import Replica, catalog_replica, study_replica
from hopaas_p2p.stores.base import Store
from hopaas_p2p.stores.url import open_store

_log: Final = logging.getLogger("hopaas_p2p.dashboard")
_TICK: Final = 0.5  # seconds between looks for what is due
_EVERY: Final = 1.0  # seconds between pulls of a study that is looked at, where the store is not slower
_LOOKED_AT: Final = 30.0  # seconds for which a study is kept fresh after the last look
_PATIENCE: Final = 30.0  # seconds that the first sight of a study may take
_TROUBLED: Final = 60.0  # seconds after which a study that cannot be read is looked at again
_AWAY: Final = 5.0  # seconds between tries of a store that does not answer
_MOMENT: Final = 1.5  # seconds for which a visit waits for news of a study that nobody looked at
_BEATS: Final = 5.0  # seconds at least between looks at the peers' signs of life


class Freshness(NamedTuple):
    """How old what is shown is."""

    lag: float
    """Seconds since the last successful look at the store began; infinite before the first."""
    trouble: str | None
    """Why the store could not be read the last time; None when it could."""


class Feed:
    """One store, read for all sessions.

    Args:
        url: the store.
        threaded: whether a thread keeps it fresh; a test calls `tick` itself.

    Raises:
        ConfigurationError: the URL or the store cannot be used.

    """

    def __init__(self, url: str, *, threaded: bool = True) -> None:
        self.store: Store = open_store(url, create=False)
        self.url = self.store.url
        """Where it is, fit to be shown."""
        self.address = url
        """As it was given: whoever opens the store again needs a password that stands in it. Not to be shown."""
        self.round_trip: float | None = None
        """Seconds that the last exchange with the store took."""
        self._writer = new_uuid()
        self._catalog: Replica[Catalog] = catalog_replica(
            self.store.catalog(), writer=self._writer, now_us=microseconds
        )
        self._catalog_pulled = -float("inf")
        self._catalog_due = 0.0
        self._catalog_trouble: str | None = None
        self._catalog_seen = threading.Event()
        self._sources: dict[str, Source] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._read = threading.Event()
        self._closed = False
        self._threaded = threaded
        self._thread: threading.Thread | None = None

    # --- what sessions ask ---

    def studies(self) -> list[Listing]:
        """The studies of the store, the newest first. Waits for the first look at the store only."""
        self._start()
        self._await(self._catalog_seen)
        return sorted(self._catalog.state.by_id.values(), key=lambda one: -one.study_id)

    def find(self, name: str) -> Listing | None:
        """The study of this name."""
        self.studies()
        return self._catalog.state.by_name.get(name)

    def frame(self, uuid: str, *, wait: bool = True) -> Frame | None:
        """The study as last seen; None when there is none, or it could not be read yet. Keeps it fresh for a while.

        `wait` for the first sight of it, if there was none; for a moment only, if nobody has looked for a while.
        """
        source = self._source(uuid)
        if source is None:
            return None
        source.wanted_until = time.monotonic() + _LOOKED_AT
        if source.frame is None:
            self._wake.set()
            self._start()
            if wait:
                self._await(source.first_sight)
        elif wait and self._threaded and source.trouble is None:
            self._catch_up(source)
        return source.frame

    def _catch_up(self, source: Source) -> None:
        """Let a visit begin with what is so now, if that can be had in a moment."""
        stale = source.pulled
        if time.monotonic() - stale < 2 * self._every + _TICK:
            return
        source.due = 0.0
        deadline = time.monotonic() + _MOMENT
        while source.pulled == stale and source.trouble is None and time.monotonic() < deadline:
            self._wake.set()
            self._read.wait(0.05)
            self._read.clear()

    def lsn(self, uuid: str) -> int:
        """Up to where the study was read; -1 when it is gone."""
        source = self._sources.get(uuid)
        if source is None or source.deleted:
            return -1
        source.wanted_until = time.monotonic() + _LOOKED_AT
        return source.frame.lsn if source.frame is not None else 0

    def freshness(self, uuid: str | None = None) -> Freshness:
        """How old what is shown of this study is, or of the list of studies."""
        now = time.monotonic()
        source = self._sources.get(uuid) if uuid is not None else None
        if source is None:
            return Freshness(now - self._catalog_pulled, self._catalog_trouble)
        return Freshness(now - source.pulled, source.trouble)

    def silence(self, uuid: str, owner: str) -> float | None:
        """Seconds for which this peer has shown no sign of life, as far as the feed has watched; None: not watched."""
        source = self._sources.get(uuid)
        if source is None or owner not in source.watch._seen:
            return None
        return source.watch.silence(owner, time.monotonic())

    def lease_left(self, uuid: str, owner: str) -> float | None:
        """Seconds until this peer's trials may be taken over; negative when they may be now; None: not watched."""
        source = self._sources.get(uuid)
        silent = self.silence(uuid, owner)
        if source is None or source.frame is None or silent is None:
            return None
        return ttl_of(source.frame.state, owner) - silent

    def clock_behind(self, uuid: str, owner: str) -> float | None:
        """Seconds by which this peer's clock is behind this machine's, the way to here included; None: not known yet.

        The least of what was seen: the way takes some seconds, a wrong clock adds to each of them.
        """
        source = self._sources.get(uuid)
        return None if source is None else source.clocks.get(owner)

    def hurry(self, uuid: str) -> None:
        """Read this study at once: something was just written to it."""
        source = self._sources.get(uuid)
        if source is not None:
            source.due = 0.0
            self._wake.set()

    def await_news(self, uuid: str, lsn: int, *, patience: float = 5.0) -> bool:
        """Wait until the study was read past this lsn; whether it was within `patience` seconds."""
        deadline = time.monotonic() + patience
        while self.lsn(uuid) == lsn and time.monotonic() < deadline:
            self.hurry(uuid)
            if not self._threaded:
                self.tick()
            self._read.wait(0.05)
            self._read.clear()
        return self.lsn(uuid) != lsn

    def close(self) -> None:
        """End the thread and let go of the store."""
        self._closed = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=5.0)
        self.store.close()

    # --- the thread ---

    def tick(self) -> None:
        """Read what is due."""
        now = time.monotonic()
        if now >= self._catalog_due:
            self._look_at_catalog(now)
        for source in list(self._sources.values()):
            if now >= source.due and (now < source.wanted_until or source.frame is None) and not source.deleted:
                self._look_at(source, now)

    def _start(self) -> None:
        if not self._threaded:
            self.tick()
            return
        with self._lock:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="hopaas-feed", daemon=True)
                self._thread.start()

    def _await(self, event: threading.Event) -> None:
        if self._threaded:
            event.wait(_PATIENCE)

    def _run(self) -> None:
        while not self._closed:
            self._wake.clear()
            try:
                self.tick()
                collector.collect(time.monotonic())
            except Exception:  # noqa: BLE001  # the pages would freeze for ever
                _log.exception("the feed stumbled and goes on")
                self._wake.wait(_AWAY)
            self._wake.wait(_TICK)

    def _source(self, uuid: str) -> Source | None:
        source = self._sources.get(uuid)
        if source is not None:
            return None if source.deleted else source
        listing = next((one for one in self.studies() if one.uuid == uuid), None)
        if listing is None:
            return None
        with self._lock:
            if uuid not in self._sources:
                replica = study_replica(self.store.log(uuid), writer=self._writer, now_us=microseconds)
                self._sources[uuid] = Source(listing, replica)
            return self._sources[uuid]

    @property
    def _every(self) -> float:
        return max(_EVERY, self.store.freshness)

    def _look_at_catalog(self, now: float) -> None:
        try:
            self._pull(self._catalog)
        except HopaasError as error:
            self._catalog_trouble, self._catalog_due = str(error), now + _AWAY
        else:
            self._catalog_trouble, self._catalog_due = None, now + 2 * self._every
            self._catalog_pulled = now
            here = {one.uuid for one in self._catalog.state.by_id.values()}
            for uuid, source in list(self._sources.items()):
                source.deleted = uuid not in here
        self._catalog_seen.set()

    def _look_at(self, source: Source, now: float) -> None:
        try:
            self._pull(source.replica)
            if now >= source.beats_due:
                self._look_at_beats(source, now)
            self._take(source)
        except StudyDeleted:
            source.deleted = True
        except HopaasError as error:
            source.trouble, source.due = str(error), now + (_AWAY if isinstance(error, StoreUnreachable) else _TROUBLED)
        except Exception as error:  # noqa: BLE001  # one study that cannot be shown keeps no other from being shown
            _log.exception("the study %r cannot be shown", source.listing.name)
            source.trouble, source.due = f"this study cannot be shown: {type(error).__name__}", now + _TROUBLED
        else:
            source.trouble, source.due, source.pulled = None, now + self._every, now
        source.first_sight.set()
        self._read.set()

    def _take(self, source: Source) -> None:
        """Make a frame of what was pulled, if there is anything new."""
        state, before = source.replica.state, source.frame
        state.changed.clear()
        if state.define is None or (before is not None and before.lsn == state.lsn):
            return
        with source.replica.lock:
            source.frame = Frame(source.listing, state, before)
        collector.read(len(source.frame.columns) - (len(before.columns) if before is not None else 0))
        source.note_clocks(source.frame, time.time())

    def _pull(self, replica: Replica[Any]) -> None:
        if replica.joined and replica.log.changed(replica.state.lsn) is False:
            return
        began = time.monotonic()
        replica.exchange()
        self.round_trip = time.monotonic() - began

    def _look_at_beats(self, source: Source, now: float) -> None:
        state = source.replica.state
        owners = {owner for number in list(state.running) if (owner := state.trials[number].owner) is not None}
        source.watch.look(self.store.beats(owners), owners, time.monotonic())
        source.beats_due = now + max(_BEATS, self._every)


_feeds: Final[dict[str, Feed]] = {}
_feeds_lock: Final = threading.Lock()


def feed_of(url: str) -> Feed:
    """The feed of this store in this process."""
    with _feeds_lock:
        if url not in _feeds:
            _feeds[url] = Feed(url)
        return _feeds[url]


def feeds() -> list[Feed]:
    """The feeds of this process."""
    with _feeds_lock:
        return list(_feeds.values())


def close_all() -> None:
    """Close every feed of this process."""
    with _feeds_lock:
        for feed in _feeds.values():
            feed.close()
        _feeds.clear()
