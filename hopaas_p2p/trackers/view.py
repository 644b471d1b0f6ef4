"""A study as it is sent to a tracker, in plain values that contain no objects of Optuna, a store or a tracker.

The study and each of its trials is a *run*. Its *mark* is a digest of all its exported data. A tracker keeps the mark
with the run, so an export from any machine can tell whether anything is left to do without reading the run.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from hopaas_p2p import notes
from hopaas_p2p.analysis.charts import positions, records
from hopaas_p2p.analysis.facts import params_of, state_word
from hopaas_p2p.analysis.objectives import names_given
from hopaas_p2p.analysis.table import TrialTable
from hopaas_p2p.core.attributes import EXPORTER
from hopaas_p2p.core.names import first_id
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.open import store_option
from hopaas_p2p.study_like import StudyLike

if TYPE_CHECKING:
    from hopaas_p2p.core.state import State
    from hopaas_p2p.files.artifacts import Artifact

REPORT: Final = "report"
"""The name of the values of `trial.report`, next to the metrics of `trial.log`."""
STUDY: Final = "study"
"""The tag of the study's run that holds its uuid."""
PREFIX: Final = "hopaas."
"""Prefix of our tags."""
_FINAL: Final = ("COMPLETE", "PRUNED", "FAIL")
_PLACES: Final = {"site": "site", "host": "node"}


class RunView(NamedTuple):
    """A view of the study, or of one of its trials."""

    number: int | None
    """The trial's number; None for the study itself."""
    name: str
    state: str
    """For a trial, the name of an Optuna state such as RUNNING; for the study, a word such as running, paused or
    done."""
    final: bool
    """Whether only notes, tags and files can still change."""
    params: dict[str, Any]
    """The trial's parameters; for the study, its directions and each parameter's distribution."""
    values: dict[str, float]
    """Objective values by name, or as "value", "values_0" and so on; for the study, the counts of trials by state."""
    series: dict[str, dict[int, float]]
    """For a trial, its reports (as "report") and each logged metric, by step; for the study, the value of each trial
    that became the best one (as "best_value")."""
    tags: dict[str, str]
    """Where, with which software and for whom the trial ran, and the command that shows the trial."""
    note: str
    files: tuple[Artifact, ...]
    start: int | None
    """Microseconds since 1970, UTC."""
    end: int | None = None

    @property
    def mark(self) -> str:
        """A digest of all data of the run."""
        # in an order that must stay, because trackers keep marks
        facts = [[*self[:-3], self.start, self.end], [one.id for one in self.files]]
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def look(study: StudyLike, *, settled: Collection[int] = ()) -> list[RunView]:
    """The runs of the study's trials in order of their numbers, without the settled ones, and last the study's own
    run.
    """
    attributes = study.storage.get_study_system_attrs(study.study_id)
    files: defaultdict[int | None, list[Artifact]] = defaultdict(list)
    for one in study.artifacts().list():
        files[one.trial].append(one)
    space = {name: str(one) for name, one in study.space.items()}  # can cause an exchange, so not under the lock
    over = study.is_over()
    command = f"hopaas-p2p study show {shlex.quote(study.name)}{store_option(study.storage.url)}"
    tags, handle, first = notes.tags_by_trial(attributes), study.handle, first_id(study.study_id)
    with handle.lock:
        state = handle.state
        define = state.define
        assert define is not None
        table = TrialTable.of(state)
        best: dict[int, float] = {}
        if len(define.directions) == 1:
            improved = records(positions(table, "number"), table.cost(), table.complete()).tolist()
            best = {row: float(table.values[row, 0]) for row in improved}
        began = table.start[~np.isnan(table.start)]
        found = [
            _trial(at, state, command, notes.read_note(attributes, first + at), tuple(files[at]), tags.get(at, []))
            for at in range(len(state.trials))
            if at not in settled
        ]
        own = RunView(
            number=None,
            name=study.name,
            state=state_word(state),
            final=over,
            params={"directions": ",".join(define.directions), **space},
            values={f"trials_{one.name.lower()}": state.counts[one] for one in TrialState},
            series={"best_value": best},
            tags={
                **define.info,  # comes first, so that facts chosen by the study's creator cannot override its identity
                STUDY: handle.uuid,
                "store": study.storage.url,
                "command": command,
                "python": f"hopaas_p2p.open_study({study.storage.url!r}, {study.name!r}, create=False)",
                "state": state_word(state),
                "budget": "" if state.budget is None else str(state.budget),
                "tags": ", ".join(tags.get(None, [])),
                **{f"attr.{key}": text for key, text in state.user.items()},
            },
            note=notes.read_note(attributes, None),
            files=tuple(files[None]),
            start=round(float(began.min()) * 1e6) if len(began) else None,
        )
        return [*found, own]


def links(attributes: Mapping[str, Any]) -> dict[str, str]:
    """Tracker -> where it shows the study, from the study's system attributes."""
    said = [value for key, value in attributes.items() if key.startswith(EXPORTER) and isinstance(value, dict)]
    return {str(one.get("tracker")): str(one["link"]) for one in said if one.get("link")}


def _trial(number: int, state: State, command: str, note: str, files: tuple[Artifact, ...], tags: list[str]) -> RunView:
    trial = state.trials[number]
    values, names = trial.values or (), names_given(state.system)
    unnamed = ["value"] if len(values) == 1 else [f"values_{at}" for at in range(len(values))]
    series = {REPORT: dict(sorted(trial.reports.items()))}
    for name, by_step in trial.metrics.items():
        taken = name in (REPORT, "value", *names) or name.startswith("values_")
        series[f"metric.{name}" if taken else name] = dict(sorted(by_step.items()))
    said = {
        "trial": trial.number,
        "state": trial.state.name,
        "command": command.replace("study show", f"trial show {trial.number} --study", 1),
        **{
            _PLACES.get(key, f"peer.{key}"): text
            for key, text in state.peers.get(trial.owner or "", {}).items()
            if key != "ttl"
        },
        "owner": trial.owner,
        "tags": ", ".join(tags) or None,
        "attempt": trial.attempt if trial.attempt > 1 else None,
        **{name: getattr(trial, name) for name in ("retry_of", "retried_by", "late_of", "reason")},
        **{f"attr.{key}": text for key, text in trial.user.items()},
    }
    return RunView(
        number=trial.number,
        name=f"trial {trial.number}",
        state=trial.state.name,
        final=trial.state.name in _FINAL,
        params=params_of(trial, state.dists),
        values=dict(zip(names or unnamed, values, strict=False)),
        series=series,
        tags={name: str(text) for name, text in said.items() if text is not None},
        note=note,
        files=files,
        start=trial.start,
        end=trial.end,
    )
