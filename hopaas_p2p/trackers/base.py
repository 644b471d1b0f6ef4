"""The interface of a tracker, and `Export`, which brings a study to one.

An export may be cut off at any request and started again, here or elsewhere: a trial's run is found by the tags that it
was created with, what it holds already is not sent again, and its mark is written last.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from hopaas_p2p.errors import HopaasError, InvalidInput, StoreCorrupt
from hopaas_p2p.study_like import StudyLike
from hopaas_p2p.trackers.view import StudyView, TrialView, look

if TYPE_CHECKING:
    from hopaas_p2p.artifacts import Artifact, StudyArtifacts

_log: Final = logging.getLogger("hopaas_p2p")


class TrackerUnreachable(HopaasError):
    """The tracker did not answer; nothing is lost: export again to send what is missing."""

    retry = True
    exit_code = 69


class TrackerRefused(HopaasError):
    """The tracker does not accept this trial as it is."""


class Tracker(Protocol):
    """A place where people look at runs. It is called from one thread at a time."""

    name: str
    """One word: "mlflow"."""

    @property
    def place(self) -> str:
        """Tells this server and project from others of its kind; holds no secret."""
        ...

    def begin(self, study: StudyView) -> dict[int, str]:
        """Find or create the run of the study; returns the mark of each trial that is there ("" if it has none).

        Called again after any error: nothing known before is relied upon.

        Raises:
            TrackerUnreachable: it did not answer.
        """
        ...

    def put(self, trial: TrialView, files: StudyArtifacts) -> None:
        """Bring one trial's run up to date, however much of it is there; its mark is written last.

        Raises:
            TrackerUnreachable: it did not answer.
            TrackerRefused: it will never accept this trial; the other trials are exported.
        """
        ...

    def put_study(self, study: StudyView, files: StudyArtifacts) -> None:
        """Bring the study's own run up to date; raises as `put` does."""
        ...

    def link(self) -> str:
        """Where people find the study: a URL or a path."""
        ...

    def close(self) -> None:
        """Close what is open."""
        ...


def fetched(files: StudyArtifacts, one: Artifact, target: Path) -> Path | None:
    """A file, for a tracker; None, with a warning, if a peer has named one that is not there or not whole."""
    try:
        return files.get(one, target)
    except (InvalidInput, StoreCorrupt) as error:
        _log.warning("the file %s is not exported: %s", one.id, error)
        return None


class Export:
    """The export of one study to one tracker. For one thread at a time."""

    def __init__(self, study: StudyLike, tracker: Tracker) -> None:
        self.tracker = tracker
        self._study = study
        self._marks: dict[int, str] | None = None
        self._settled: set[int] = set()
        """Finished trials that are there; emptied when attributes of the study change: they may be about any trial."""
        self._seen: tuple[int, dict[str, str]] = (-1, {})

    def sync(self) -> int:
        """Send what is missing; returns how many trials were sent. Blocks for that long.

        Raises:
            TrackerUnreachable: it did not answer; what was sent until then is there.
        """
        lsn, system = self._study.state.lsn, dict(self._study.state.system)
        if self._marks is not None and self._seen[0] == lsn:
            return 0
        if system != self._seen[1]:  # a note, a tag or a file, perhaps of a finished trial
            self._settled.clear()
        try:
            sent = self._send(look(self._study, settled=self._settled))
        except BaseException:
            self._marks = None
            self._settled.clear()
            raise
        self._seen = (lsn, system)
        return sent

    def _send(self, view: StudyView) -> int:
        if self._marks is None:
            self._marks = self.tracker.begin(view)
        files = self._study.artifacts()
        sent = 0
        for trial in view.trials.values():
            mark = trial.mark
            if self._marks.get(trial.number) != mark:
                try:
                    self.tracker.put(trial, files)
                except TrackerRefused as error:
                    _log.warning("%s does not accept trial %d: %s", self.tracker.name, trial.number, error)
                self._marks[trial.number] = mark
                sent += 1
            if trial.final:
                self._settled.add(trial.number)
        try:
            self.tracker.put_study(view, files)
        except TrackerRefused as error:
            _log.warning("%s does not accept the study's own run: %s", self.tracker.name, error)
        return sent
