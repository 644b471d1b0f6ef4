"""What a tracker has to offer, and what brings a study to one: `Export`.

An export may be cut off at any request and begun again, here or elsewhere: a trial's run is found by the tags that it
was made with, what is in it already is not sent again, and it is marked last of all.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Protocol

from hopaas_p2p.errors import HopaasError
from hopaas_p2p.trackers.view import StudyView, TrialView, look

if TYPE_CHECKING:
    from hopaas_p2p.artifacts import StudyArtifacts
    from hopaas_p2p.study import Study

_log: Final = logging.getLogger("hopaas_p2p")


class TrackerUnreachable(HopaasError):
    """The tracker did not answer; nothing is lost: export again, and what is missing is sent."""

    retry = True
    exit_code = 69


class TrackerRefused(HopaasError):
    """The tracker does not take this as it is."""


class Tracker(Protocol):
    """A place where others look at runs. One thread at a time calls it."""

    name: str
    """One word: "mlflow"."""

    @property
    def place(self) -> str:
        """What tells this place from others of its kind, as it may be shown."""
        ...

    def begin(self, study: StudyView) -> dict[int, str]:
        """Find or make the run of the study; returns the mark of each trial that is there ("" if it has none).

        Called again after anything went wrong: nothing that was known before is trusted.

        Raises:
            TrackerUnreachable: it did not answer.
        """
        ...

    def put(self, trial: TrialView, files: StudyArtifacts) -> None:
        """Bring one trial's run up to date, whatever is there of it; its mark comes last.

        Raises:
            TrackerUnreachable: it did not answer.
            TrackerRefused: it never will take this trial; the others go on.
        """
        ...

    def put_study(self, study: StudyView, files: StudyArtifacts) -> None:
        """Bring the study's own run up to date; raises as `put` does."""
        ...

    def link(self) -> str:
        """Where people find the study there: a URL or a path."""
        ...

    def close(self) -> None:
        """Let go of what is open."""
        ...


class Export:
    """One study on its way to one tracker. One thread at a time."""

    def __init__(self, study: Study, tracker: Tracker) -> None:
        self.tracker = tracker
        self._study = study
        self._marks: dict[int, str] | None = None
        self._settled: set[int] = set()
        """Finished trials that are there, as long as nothing is said of them in the study."""
        self._seen: tuple[int, dict[str, str]] = (-1, {})

    def sync(self) -> int:
        """Send what is missing; returns how many trials were sent. Blocks for that long.

        Raises:
            TrackerUnreachable: it did not answer; what was sent until then is there.
        """
        lsn, system = self._study.state.lsn, dict(self._study.state.system)
        if self._marks is not None and self._seen[0] == lsn:
            return 0
        if system != self._seen[1]:  # a note, a tag or a file of a finished trial
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
                    _log.warning("%s does not take trial %d: %s", self.tracker.name, trial.number, error)
                self._marks[trial.number] = mark
                sent += 1
            if trial.final:
                self._settled.add(trial.number)
        self.tracker.put_study(view, files)
        return sent
