"""A study as a tracker sees it: plain values, with nothing of Optuna, of a store or of a tracker in them.

A trial's *mark* is a digest of everything that is exported of it. A tracker keeps the mark beside the trial, so an
export from any machine knows without reading the run whether anything is left to do.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from hopaas_p2p import notes
from hopaas_p2p.analysis.charts import positions, records
from hopaas_p2p.analysis.facts import state_word
from hopaas_p2p.analysis.table import TrialTable
from hopaas_p2p.core.admission import finished
from hopaas_p2p.storage.optuna_internals import trial_id_of
from hopaas_p2p.study_like import StudyLike

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from hopaas_p2p.artifacts import Artifact
    from hopaas_p2p.core.state import State, Trial

REPORT: Final = "report"
"""The name of what `trial.report` said, beside the metrics of `trial.log`."""
PREFIX: Final = "hopaas."
"""Prefix of our tags."""
EXPORTER: Final = "hopaas:exporter:"
"""Prefix of the study's attribute about a tracker: which peer exports, and the link. A digest of its place follows."""
FINAL: Final = ("COMPLETE", "PRUNED", "FAIL")
_PLACES: Final = {"site": "site", "host": "node"}


class TrialView(NamedTuple):
    """One trial."""

    number: int
    state: str
    """The name of an Optuna state: RUNNING, COMPLETE, …"""
    params: dict[str, Any]
    values: dict[str, float]
    """Objective values by name: "value", or "values_0" and so on; empty without a result."""
    series: dict[str, dict[int, float]]
    """Values by step: "report", what was reported; and each metric that was logged beside it."""
    tags: dict[str, str]
    """Where, with what and for whom it ran, and the command that shows it."""
    note: str
    start: int | None
    """Microseconds since 1970, UTC."""
    end: int | None
    files: tuple[Artifact, ...]

    @property
    def final(self) -> bool:
        """Whether it is finished."""
        return self.state in FINAL

    @property
    def mark(self) -> str:
        """A digest of the whole view."""
        return _digest(list(self[:-1]), [one.id for one in self.files])


class StudyView(NamedTuple):
    """The study itself, and its trials by number."""

    uuid: str
    name: str
    state: str
    """running, paused, stopped, failing or done."""
    final: bool
    params: dict[str, str]
    """Directions, and each parameter's distribution: constant."""
    tags: dict[str, str]
    counts: dict[str, int]
    best: list[tuple[int, float]]
    """(number, value) of each trial that became the best one; empty with several objectives."""
    note: str
    start: int | None
    trials: dict[int, TrialView]
    """The trials that `look` was asked for."""
    files: tuple[Artifact, ...]

    @property
    def mark(self) -> str:
        """A digest of the view without its trials."""
        return _digest(list(self[:-2]), [one.id for one in self.files])


def _digest(*facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def look(study: StudyLike, *, settled: set[int] | None = None) -> StudyView:
    """The study as it is now, with the trials that are not in `settled`."""
    frozen = study.trials
    attributes = study.storage.get_study_system_attrs(study.study_id)
    files: defaultdict[int | None, list[Artifact]] = defaultdict(list)
    for one in study.artifacts().list():
        files[one.trial].append(one)
    space = {name: str(one) for name, one in study.space.items()}  # may exchange: not under the lock
    handle = study.storage.handle(study.study_id)
    with handle.lock:
        state = handle.state
        define = state.define
        assert define is not None
        command = _command(study)
        tags = notes.tags_by_trial(attributes)
        trials = {
            one.number: _trial(one, state, attributes, tags, tuple(files[one.number]), command)
            for one in frozen
            if settled is None or one.number not in settled
        }
        table = TrialTable.of(state)
        improved = records(positions(table, "number"), table.cost(), table.complete()).tolist()
        return StudyView(
            uuid=handle.uuid,
            name=study.name,
            state=state_word(state),
            final=finished(state) and not state.running,
            params={"directions": ",".join(define.directions), **space},
            tags={
                "study": handle.uuid,
                "store": study.storage.url,
                "command": command,
                "python": f"hopaas_p2p.open_study({study.storage.url!r}, {study.name!r}, create=False)",
                "state": state_word(state),
                "budget": "" if state.budget is None else str(state.budget),
                "tags": ", ".join(tags.get(None, [])),
                **define.info,
                **{f"attr.{key}": text for key, text in state.user.items()},
            },
            counts={name: state.counts[place] for place, name in enumerate(("RUNNING", *FINAL, "WAITING"))},
            best=[(row, float(table.values[row, 0])) for row in improved] if len(define.directions) == 1 else [],
            note=notes.read_note(attributes, None),
            start=min((one.start for one in state.trials if one.start is not None), default=None),
            trials=trials,
            files=tuple(files[None]),
        )


def links(attributes: Mapping[str, Any]) -> dict[str, str]:
    """Tracker -> where it shows the study, from the study's system attributes."""
    said = [value for key, value in attributes.items() if key.startswith(EXPORTER) and isinstance(value, dict)]
    return {str(one.get("tracker")): str(one["link"]) for one in said if one.get("link")}


def _command(study: StudyLike) -> str:
    """The command that shows the study."""
    return f"hopaas-p2p study show {shlex.quote(study.name)} --store {shlex.quote(study.storage.url)}"


def _trial(
    frozen: FrozenTrial,
    state: State,
    attributes: dict[str, Any],
    tags: Mapping[int | None, list[str]],
    files: tuple[Artifact, ...],
    command: str,
) -> TrialView:
    trial = state.trials[frozen.number]
    values = frozen.values or []
    return TrialView(
        number=frozen.number,
        state=frozen.state.name,
        params=dict(frozen.params),
        values={"value": values[0]} if len(values) == 1 else {f"values_{i}": one for i, one in enumerate(values)},
        series=dict(_series(frozen, trial)),
        tags=dict(_tags(trial, state, tags.get(trial.number, []), command)),
        note=notes.read_note(attributes, trial_id_of(frozen)),
        start=trial.start,
        end=trial.end,
        files=files,
    )


def _series(frozen: FrozenTrial, trial: Trial) -> Iterator[tuple[str, dict[int, float]]]:
    yield REPORT, dict(sorted(frozen.intermediate_values.items()))
    for name, by_step in trial.metrics.items():
        taken = name in (REPORT, "value") or name.startswith("values_")
        yield f"metric.{name}" if taken else name, dict(sorted(by_step.items()))


def _tags(trial: Trial, state: State, tags: Sequence[str], command: str) -> Iterator[tuple[str, str]]:
    peer = state.peers.get(trial.owner or "", {})
    yield "trial", str(trial.number)
    yield "state", trial.state.name
    yield "command", command.replace("study show", f"trial show {trial.number} --study", 1)
    for key, text in peer.items():
        if key != "ttl":
            yield _PLACES.get(key, f"peer.{key}"), text
    if trial.owner:
        yield "owner", trial.owner
    if trial.attempt > 1:
        yield "attempt", str(trial.attempt)
    for name in ("retry_of", "retried_by", "late_of", "reason"):
        said = getattr(trial, name)
        if said is not None:
            yield name, str(said)
    if tags:
        yield "tags", ", ".join(tags)
    for key, text in trial.user.items():
        yield f"attr.{key}", text
