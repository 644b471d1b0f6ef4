"""Trackers kept current by the peers themselves: `open_study(…, trackers=[MLflow(…)])`.

All peers may say the same trackers, and one of them exports for all: the *exporter*, named by an attribute of the
study. The others look now and then whether it is alive, and one takes over when it is silent for the study's ttl, or
gave the role back because it ended or cannot reach the tracker. Should two export at once for a moment, nothing goes
wrong for good: see `Tracker.begin`.

Training never waits for a tracker, and never fails for one: each has a thread of its own, which warns once an outage,
tries again less and less often, and catches up.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from hopaas_p2p.core.leases import Watch, ttl_of
from hopaas_p2p.errors import ConfigurationError, Denied, HopaasError, InvalidInput
from hopaas_p2p.trackers.base import Export, Tracker
from hopaas_p2p.trackers.mlflow import MLflow
from hopaas_p2p.trackers.view import EXPORTER
from hopaas_p2p.trackers.wandb import WandB

if TYPE_CHECKING:
    from hopaas_p2p.study import Study

_log: Final = logging.getLogger("hopaas_p2p")
_LONGEST_PAUSE: Final = 300.0
_GIVES_UP: Final = 3  # tries in a row after which the exporter lets another peer try
_FAREWELL: Final = 30.0  # seconds that `close` waits for the last of it


def tracker_of(said: str | Tracker) -> Tracker:
    """A tracker, or what its name says: "mlflow", "mlflow:http://host:5000", "wandb", "wandb:project".

    Raises:
        InvalidInput: there is no tracker of that name.

    """
    if not isinstance(said, str):
        return said
    name, _, more = said.partition(":")
    if name == "mlflow":
        return MLflow(more or None)
    if name == "wandb":
        return WandB(more or None)
    raise InvalidInput(f"{said!r} is no tracker; there are mlflow, mlflow:URI, wandb, wandb:PROJECT")


class Followers:
    """Threads that keep trackers current with a study, until `close`.

    Args:
        study: from `open_study`.
        trackers: as `tracker_of` takes them.
        every: seconds between two looks of the exporter.

    """

    def __init__(self, study: Study, trackers: Sequence[str | Tracker], *, every: float = 5.0) -> None:
        self._all = [_Follower(study, tracker_of(one), every) for one in trackers]
        for one in self._all:
            one.start()
        atexit.register(self.close)

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _nobody, ()  # a study that travels leaves them behind

    def close(self) -> None:
        """Export the last of it, and end. Blocks for 30 s at most; what is missing then is told."""
        atexit.unregister(self.close)
        deadline = time.monotonic() + _FAREWELL
        for one in self._all:
            one.ending.set()
        for one in self._all:
            one.join_until(deadline)


def _nobody() -> None:
    """What followers are in another process."""


class _Follower(threading.Thread):
    def __init__(self, study: Study, tracker: Tracker, every: float) -> None:
        super().__init__(name=f"hopaas-{tracker.name}", daemon=True)
        self.ending = threading.Event()
        self._study = study
        self._tracker = tracker
        self._every = every
        self._export = Export(study, tracker)
        self._beats = Watch()
        self._pid = os.getpid()
        self._failures = 0
        self._linked = False

    def join_until(self, deadline: float) -> None:
        if os.getpid() != self._pid:  # a fork has no threads
            return
        self.join(max(0.0, deadline - time.monotonic()))
        if self.is_alive():
            _log.warning("%s does not have the last of this study yet: %s", self._tracker.name, self._cure())

    def _cure(self) -> str:
        return f"run hopaas-p2p export {self._tracker.name} once it is back"

    def run(self) -> None:
        """Look, export, pause; the end of the program brings one last look."""
        try:
            while True:
                last = self.ending.is_set()
                pause = self._look(last=last)
                if last:
                    break
                self.ending.wait(pause)
        finally:
            self._tracker.close()

    def _look(self, *, last: bool) -> float:
        """One look; returns the seconds until the next."""
        try:
            if not self._is_exporter(last=last):
                return max(self._every, self._study.state.policy.ttl / 3) * random.uniform(0.8, 1.2)
            self._export.sync()
            self._after(last=last)
        except ConfigurationError as error:  # no time will mend that
            _log.warning("%s: %s", self._tracker.name, error)
            self.ending.set()
            return 0.0
        except Exception as error:  # noqa: BLE001  # whatever a tracker's library raises, training goes on
            return self._failed(error, last=last)
        if self._failures:
            _log.info("%s is back, and has what was missing", self._tracker.name)
        self._failures = 0
        return self._every

    def _after(self, *, last: bool) -> None:
        """Say in the study where it is to be found, and let go of the role at the end."""
        if self._linked and not last:
            return
        self._linked = True
        with contextlib.suppress(Denied):
            self._appoint(None if last else self._study.storage.courier.uuid)

    def _failed(self, error: Exception, *, last: bool) -> float:
        self._failures += 1
        if self._failures == 1 or last:
            why = str(error) if isinstance(error, HopaasError) else f"{type(error).__name__}: {error}"
            what = self._cure() if last else "training goes on; it is tried again"
            _log.warning("%s; %s", why.splitlines()[0], what)
        if self._failures >= _GIVES_UP or last:
            self._give_back()
        return float(min(_LONGEST_PAUSE, self._every * 2 ** min(self._failures, 10)) * random.uniform(0.8, 1.2))

    # --- who exports ---

    def _is_exporter(self, *, last: bool) -> bool:
        """Whether this peer exports; takes the role where nobody has it."""
        me = self._study.storage.courier.uuid
        exporter = self._exporter()
        if exporter == me:
            return True
        if exporter is not None and not self._is_silent(exporter):
            return False
        try:
            self._appoint(me)
        except Denied:  # a viewer writes nothing, and exports for itself
            return True
        return last or self._exporter() == me

    def _exporter(self) -> str | None:
        peer = _said(self._study, self._tracker).get("peer")
        return peer if isinstance(peer, str) else None

    def _appoint(self, peer: str | None) -> None:
        _say(self._study, self._tracker, peer=peer, **({"link": self._tracker.link()} if self._linked else {}))

    def _give_back(self) -> None:
        """Let another peer try, which may be nearer to the tracker."""
        try:
            if self._exporter() == self._study.storage.courier.uuid:
                self._appoint(None)
        except HopaasError:  # the store is away, too: silence will tell the others
            return

    def _is_silent(self, peer: str) -> bool:
        now = time.monotonic()
        self._beats.look(self._study.storage.courier.store.beats({peer}), {peer}, now)
        return self._beats.silence(peer, now) >= ttl_of(self._study.state, peer)


def leave_link(study: Study, tracker: Tracker) -> None:
    """Say in the study where the tracker shows it, if that is not there already and this user may."""
    link = tracker.link()
    if _said(study, tracker).get("link") != link:
        with contextlib.suppress(Denied):
            _say(study, tracker, link=link)


def _key(tracker: Tracker) -> str:
    return EXPORTER + hashlib.sha256(tracker.place.encode()).hexdigest()[:16]


def _said(study: Study, tracker: Tracker) -> dict[str, Any]:
    """What the study's attribute says of this tracker. Others may have written anything."""
    try:
        said = json.loads(study.state.system.get(_key(tracker), "{}"))
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _say(study: Study, tracker: Tracker, **said: str | None) -> None:
    from hopaas_p2p.core.records import StudySet

    text = json.dumps({**_said(study, tracker), "tracker": tracker.name, "place": tracker.place, **said})
    study.storage.say(study.study_id, StudySet(system={_key(tracker): text}))
