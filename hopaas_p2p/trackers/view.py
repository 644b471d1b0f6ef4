"""A study as a tracker sees it: plain values, with nothing of Optuna, of a store or of a tracker in them.

A trial's *mark* is a digest of all that is exported of it. A tracker keeps the mark beside the trial, so whoever
exports next, from wherever, sees without a look into it whether anything is left to do.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from hopaas_p2p import notes

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from hopaas_p2p.artifacts import Artifact
    from hopaas_p2p.core.state import State, Trial
    from hopaas_p2p.study import Study

PREFIX: Final = "hopaas."
"""What the names of our tags begin with."""
EXPORTER: Final = "hopaas:exporter:"
"""The study's attribute that says who exports it, and where it is seen, ends with a digest of the tracker's place."""
FINAL: Final = ("COMPLETE", "PRUNED", "FAIL")
_PLACES: Final = {"site": "site", "host": "node"}


class TrialView(NamedTuple):
    """One trial."""

    number: int
    state: str
    """A word of Optuna's: RUNNING, COMPLETE, …"""
    params: dict[str, Any]
    values: dict[str, float]
    """The objective's, by name: "value", or "values_0" and so on; empty without a result."""
    reports: dict[int, float]
    tags: dict[str, str]
    """Where it ran, with what, for whom, and how to get back to it."""
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
        """A digest of all this."""
        return _digest(list(self[:-1]), [one.id for one in self.files])


class StudyView(NamedTuple):
    """The study itself, and its trials by number."""

    uuid: str
    name: str
    state: str
    """running, paused, stopped, failing or done."""
    final: bool
    params: dict[str, str]
    """What never changes: directions, and each parameter's distribution."""
    tags: dict[str, str]
    counts: dict[str, int]
    best: list[tuple[int, float]]
    """(number, value) wherever the best became better; empty with several objectives."""
    note: str
    start: int | None
    trials: dict[int, TrialView]
    """Those that were asked for."""
    files: tuple[Artifact, ...]

    @property
    def mark(self) -> str:
        """A digest of what is the study's own."""
        return _digest(list(self[:-2]), [one.id for one in self.files])


def _digest(*facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def look(study: Study, *, settled: set[int] | None = None) -> StudyView:
    """The study as it is now, with the trials that are not in `settled`."""
    frozen = study.trials
    attributes = study.storage.get_study_system_attrs(study.study_id)
    files: defaultdict[int | None, list[Artifact]] = defaultdict(list)
    for one in study.artifacts().list():
        files[one.trial].append(one)
    space = {name: str(one) for name, one in study.space.items()}  # may exchange: not under the lock
    part = study.storage.part(study.study_id)
    with part.lock:
        state = part.replica.state
        define = state.define
        assert define is not None
        back = _Back(study.storage.url, study.name)
        trials = {
            one.number: _trial(one, state, attributes, tuple(files[one.number]), back)
            for one in frozen
            if settled is None or one.number not in settled
        }
        return StudyView(
            uuid=part.membership.uuid,
            name=study.name,
            state=_state_word(state),
            final=state.finished() and not state.running,
            params={"directions": ",".join(define.directions), **space},
            tags={
                "study": part.membership.uuid,
                "store": back.store,
                "command": back.to_study(),
                "python": back.in_python(),
                "state": _state_word(state),
                "budget": "" if state.budget is None else str(state.budget),
                "tags": ", ".join(notes.read_tags(attributes)),
                **define.info,
                **{f"attr.{key}": text for key, text in state.user.items()},
            },
            counts={name: state.counts[place] for place, name in enumerate(("RUNNING", *FINAL, "WAITING"))},
            best=list(_best(state)) if len(define.directions) == 1 else [],
            note=notes.read_note(attributes, None),
            start=min((one.start for one in state.trials if one.start is not None), default=None),
            trials=trials,
            files=tuple(files[None]),
        )


def links(attributes: Mapping[str, Any]) -> dict[str, str]:
    """Tracker -> where the study is seen there, from the study's system attributes, read."""
    said = [value for key, value in attributes.items() if key.startswith(EXPORTER) and isinstance(value, dict)]
    return {str(one.get("tracker")): str(one["link"]) for one in said if one.get("link")}


class _Back:
    """The way back from a tracker: commands that show what was exported."""

    def __init__(self, store: str, name: str) -> None:
        self.store = store
        self._name = name

    def to_study(self) -> str:
        import shlex

        return f"hopaas-p2p study show {shlex.quote(self._name)} --store {shlex.quote(self.store)}"

    def to_trial(self, number: int) -> str:
        return self.to_study().replace("study show", f"trial show {number} --study", 1)

    def in_python(self) -> str:
        return f"hopaas_p2p.open_study({self.store!r}, {self._name!r}, create=False)"


def _trial(
    frozen: FrozenTrial, state: State, attributes: dict[str, Any], files: tuple[Artifact, ...], back: _Back
) -> TrialView:
    trial = state.trials[frozen.number]
    values = frozen.values or []
    return TrialView(
        number=frozen.number,
        state=frozen.state.name,
        params=dict(frozen.params),
        values={"value": values[0]} if len(values) == 1 else {f"values_{i}": one for i, one in enumerate(values)},
        reports=dict(sorted(frozen.intermediate_values.items())),
        tags=dict(_tags(trial, state, attributes, back)),
        note=notes.read_note(attributes, frozen._trial_id),
        start=trial.start,
        end=trial.end,
        files=files,
    )


def _tags(trial: Trial, state: State, attributes: dict[str, Any], back: _Back) -> Iterator[tuple[str, str]]:
    peer = state.peers.get(trial.owner or "", {})
    yield "trial", str(trial.number)
    yield "state", trial.state.name
    yield "command", back.to_trial(trial.number)
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
    tags = notes.read_tags(attributes, trial.number)
    if tags:
        yield "tags", ", ".join(tags)
    for key, text in trial.user.items():
        yield f"attr.{key}", text


def _state_word(state: State) -> str:
    closed = state.closed_because()
    if closed == "budget":
        return "done" if state.finished() else "running"
    return closed or "running"


def _best(state: State) -> Iterator[tuple[int, float]]:
    assert state.define is not None
    sign = 1.0 if state.define.directions[0] == "minimize" else -1.0
    best: float | None = None
    for trial in state.trials:
        if trial.state.name == "COMPLETE" and trial.values and (best is None or sign * trial.values[0] < sign * best):
            best = trial.values[0]
            yield trial.number, best
