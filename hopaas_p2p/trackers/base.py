"""The interface of a tracker, and `Export`, which sends a study to a tracker.

An export can be interrupted at any request and started again on any machine. A run is found by the tags or the id with
which it was created. Data that it already has are not sent again, and its mark is written last.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from hopaas_p2p.errors import HopaasError, InvalidInput, StoreCorrupt
from hopaas_p2p.runtime.atomic import scratch
from hopaas_p2p.runtime.logs import LOG
from hopaas_p2p.runtime.redaction import without_passwords
from hopaas_p2p.study_like import StudyLike
from hopaas_p2p.trackers.view import RunView, look

if TYPE_CHECKING:
    from hopaas_p2p.files.artifacts import Artifact, StudyArtifacts

_LONGEST_WHY: Final = 1000  # characters


class TrackerUnreachable(HopaasError):
    """The tracker did not answer. Nothing is lost; export again to send the missing data."""

    retry = True
    exit_code = 69


class TrackerRefused(HopaasError):
    """The tracker does not accept this trial as it is."""


class Tracker(Protocol):
    """The interface to a service that shows runs. It is called from one thread at a time."""

    name: str
    """One word, such as "mlflow"."""

    @property
    def place(self) -> str:
        """The identity of this server and project, without secrets."""

    def begin(self, study: RunView) -> dict[int | None, str]:
        """Find or create the run of the study; returns the mark of each existing run, or "" for a run without a mark.

        The keys are trial numbers, and None for the study. The method is called again after any error, so it must not
        rely on earlier state.

        Raises:
            TrackerUnreachable: the tracker did not answer.
        """

    def put(self, view: RunView, files: StudyArtifacts) -> bool:
        """Bring one run up to date, however much of it already exists. Its mark is written last.

        False if the tracker has no run for a trial in this state, so nothing was sent.

        Raises:
            TrackerUnreachable: the tracker did not answer.
            TrackerRefused: the tracker will never accept this run; other runs are still exported.
        """

    def link(self) -> str:
        """The URL or path at which people can find the study."""

    def close(self) -> None:
        """Close all open runs."""


def first_line(error: Exception) -> str:
    """The first line of a library's error, without passwords. The whole error may contain a server's whole answer."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return without_passwords(lines[0])[:_LONGEST_WHY]


def new_files(view: RunView, there: Collection[str], files: StudyArtifacts) -> Iterator[tuple[Artifact, Path]]:
    """The files of a run except those with known ids. Each stays at its path until the next one is requested.

    A file that is missing or incomplete in the store is left out with a warning.
    """
    for one in [one for one in view.files if one.id not in there]:
        with scratch(one.filename) as place:
            try:
                path = files.get(one, place)
            except (InvalidInput, StoreCorrupt) as error:
                LOG.warning("the file %s is not exported: %s", one.id, error)
                continue
            yield one, path


class Export:
    """The export of one study to one tracker. For one thread at a time."""

    def __init__(self, study: StudyLike, tracker: Tracker) -> None:
        self.tracker = tracker
        self._study = study
        self._marks: dict[int | None, str] | None = None
        self._settled: set[int] = set()
        """Finished trials that the tracker has. It is cleared when the study's attributes change, which can concern any
        trial."""
        self._seen: tuple[int, dict[str, str]] = (-1, {})

    def sync(self) -> int:
        """Send the missing data; returns how many trials were sent. Blocks until then.

        Raises:
            TrackerUnreachable: the tracker did not answer. Data sent before are kept.
        """
        lsn, system = self._study.state.lsn, dict(self._study.state.system)
        if self._marks is not None and self._seen[0] == lsn:
            return 0
        if system != self._seen[1]:  # a note, a tag or a file has changed, perhaps of a finished trial
            self._settled.clear()
        sent = 0
        try:
            found = look(self._study, settled=self._settled)
            if self._marks is None:
                self._marks = self.tracker.begin(found[-1])
            for run in found:
                mark = run.mark
                if self._marks.get(run.number) != mark:
                    try:
                        sent += self.tracker.put(run, self._study.artifacts()) and run.number is not None
                    except TrackerRefused as error:
                        LOG.warning("%s does not accept %s: %s", self.tracker.name, run.name, error)
                    self._marks[run.number] = mark
                if run.final and run.number is not None:
                    self._settled.add(run.number)
        except BaseException:
            self._marks = None
            self._settled.clear()
            raise
        self._seen = (lsn, system)
        return sent
