"""Keeps trackers up to date from the peers themselves, for `open_study(…, trackers=[MLflow(…)])`.

All peers may name the same trackers, and one of them, the *exporter* named in an attribute of the study, exports for
all. The others check from time to time whether the exporter is alive. One of them takes over when the exporter has been
silent for the study's ttl, or has resigned because it ended or cannot reach the tracker. If two peers export at once
for a short time, this does no lasting harm; see `Tracker.begin`.

Training never waits for a tracker and never fails because of one. Each tracker has its own thread, which warns once per
outage, retries less and less often, and catches up.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import random
import threading
import time
from collections.abc import Sequence
from typing import Final

from hopaas_p2p.core.attributes import EXPORTER
from hopaas_p2p.errors import ConfigurationError, Denied, HopaasError, InvalidInput
from hopaas_p2p.net.backoff import Backoff
from hopaas_p2p.peer.election import Election
from hopaas_p2p.runtime.logs import LOG
from hopaas_p2p.study_like import StudyLike
from hopaas_p2p.trackers.base import Export, Tracker, first_line

_LONGEST_PAUSE: Final = 300.0
_MAX_FAILURES: Final = 3  # in a row, after which the exporter lets another peer try
_SHUTDOWN_TIMEOUT: Final = 30.0  # seconds that `close` waits for the last export


class BackgroundExports:
    """Threads that keep trackers up to date with a study, until `close`.

    Args:
        study: from `open_study`.
        trackers: the trackers to keep up to date.
        every: seconds between two exports.

    """

    def __init__(self, study: StudyLike, trackers: Sequence[Tracker], *, every: float = 5.0) -> None:
        self._pid = os.getpid()
        self._threads = [_ExportThread(study, one, every) for one in trackers]
        for thread in self._threads:
            try:
                thread.start()
            except RuntimeError as error:
                LOG.warning("%s is not kept up to date: %s; %s", thread.tracker, first_line(error), thread.cure)
        atexit.register(self.close)

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()  # an unpickled study exports nothing

    def close(self) -> None:
        """Export the missing data, and end the threads. Blocks for at most 30 s. A warning names each tracker that
        still lacks data.

        In a forked child, this does nothing, because the child has none of these threads, and its copies of their locks
        may be held.
        """
        if os.getpid() != self._pid:
            return
        atexit.unregister(self.close)
        deadline = time.monotonic() + _SHUTDOWN_TIMEOUT
        for thread in self._threads:
            thread.ending.set()
        for thread in filter(_ExportThread.is_alive, self._threads):
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                LOG.warning("%s has not received the last updates of this study: %s", thread.tracker, thread.cure)


class _ExportThread(threading.Thread):
    """Exports to one tracker while this peer is the exporter."""

    def __init__(self, study: StudyLike, tracker: Tracker, every: float) -> None:
        super().__init__(name=f"hopaas-{tracker.name}", daemon=True)
        self.ending = threading.Event()
        self.tracker = tracker.name
        self.cure = f"once it is back, run hopaas-p2p study export {study.name!r} --format {tracker.name}"
        self._study = study
        self._tracker = tracker
        self._every = every
        self._backoff = Backoff(2 * every, _LONGEST_PAUSE, jitter=(0.8, 1.2))
        self._export = Export(study, tracker)
        self._election = _election(study, tracker)
        self._failures = 0

    def run(self) -> None:
        """Export and pause in turn, until `close`, which causes one last export."""
        try:
            while True:
                last = self.ending.is_set()
                pause = self._step(last=last)
                if last:
                    break
                self.ending.wait(pause)
        except Exception as error:  # noqa: BLE001  # retries would not help, but another peer may have other settings
            LOG.warning("%s: %s", self._tracker.name, first_line(error))
            with contextlib.suppress(Exception):
                self._election.resign()
        try:
            self._tracker.close()
        except Exception as error:  # noqa: BLE001  # whatever a tracker's library raises
            LOG.warning("%s: %s", self._tracker.name, first_line(error))

    def _step(self, *, last: bool) -> float:
        """Export if this peer is the exporter; returns the seconds until the next step."""
        try:
            try:
                exports = self._election.stand()
            except Denied:  # a viewer cannot write to the study, so it exports for itself
                exports = True
            if not exports:
                return max(self._every, self._study.state.policy.ttl / 3) * random.uniform(0.8, 1.2)
            self._export.sync()
            if self._election.won:  # a viewer is not elected, and the store would refuse its link at each step
                leave_link(self._study, self._tracker)
            if last:
                with contextlib.suppress(Denied):
                    self._election.resign()
        except ConfigurationError:
            raise
        except Exception as error:  # noqa: BLE001  # a tracker's library can raise anything, and training continues
            self._failures += 1
            if self._failures == 1 or last:
                kind = "" if isinstance(error, HopaasError) else f"{type(error).__name__}: "
                what = self.cure if last else "training continues, and sending is retried"
                LOG.warning("%s%s; %s", kind, first_line(error), what)
            if self._failures >= _MAX_FAILURES or last:  # another peer may have a better connection
                with contextlib.suppress(HopaasError):  # if the store is also down, others notice the silence
                    self._election.resign()
            return self._backoff.pause()
        if self._failures:
            LOG.info("%s is reachable again, and has received the missing data", self._tracker.name)
        self._failures = 0
        self._backoff.reset()
        return self._every


def leave_link(study: StudyLike, tracker: Tracker) -> None:
    """Record where the tracker shows the study, unless that is already recorded or this user may only read."""
    election, link = _election(study, tracker), tracker.link()
    if election.said.get("link") != link:
        with contextlib.suppress(Denied, InvalidInput):  # another exporter was elected, and records its own link
            election.say(tracker=tracker.name, place=tracker.place, link=link)


def _election(study: StudyLike, tracker: Tracker) -> Election:
    """The election of the peer that exports to this tracker; the study's attribute about it also holds the link."""
    key = EXPORTER + hashlib.sha256(tracker.place.encode()).hexdigest()[:16]
    return Election(study.storage.peer, lambda: study.state, study.handle.say, key)
