"""The parameters of a trial by step; in a population they change during training."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from hopaas_p2p.analysis.facts import best
from hopaas_p2p.core.lineage import segments
from hopaas_p2p.core.names import first_id
from hopaas_p2p.core.records import FROM_START, TrialState
from hopaas_p2p.core.state import State, Trial
from hopaas_p2p.errors import InvalidInput, NoSuchTrial
from hopaas_p2p.study_like import StudyLike


class ScheduleEntry(NamedTuple):
    """Consecutive steps that were trained with the same parameters."""

    first: int | None
    """The first step; None for the beginning."""
    last: int
    trial: int
    """The number of the trial that trained them."""
    params: Mapping[str, Any]


class Schedule(NamedTuple):
    """The parameters of each step of a training run. `at` replays it; `to_json` and `from_json` transfer it."""

    trial: int
    """The number of the trial that the schedule leads to."""
    value: float | None
    """The final value of that trial, or else its last report; None if there is neither, or it is NaN."""
    entries: tuple[ScheduleEntry, ...]
    """In the order of their steps."""

    def at(self, step: int) -> dict[str, Any]:
        """The parameters of this step; beyond the last trained step, those of the last one.

        Raises:
            InvalidInput: no step was trained.

        """
        if not self.entries:
            raise InvalidInput(f"trial {self.trial} has reported nothing, so it has no schedule")
        return dict(next((one.params for one in self.entries if step <= one.last), self.entries[-1].params))

    def to_json(self) -> str:
        """The schedule as JSON, as `hopaas-p2p study schedule --json` prints it."""
        return json.dumps(self.as_data())

    def as_data(self) -> dict[str, Any]:
        """The schedule as plain data."""
        return {
            "trial": self.trial,
            "value": self.value,
            "schedule": [one._asdict() | {"params": dict(one.params)} for one in self.entries],
        }

    @classmethod
    def from_json(cls, text: str) -> Schedule:
        """The schedule that `to_json` wrote.

        Raises:
            InvalidInput: the string is not a schedule.

        """
        try:
            said = json.loads(text)
            entries = [
                ScheduleEntry(one["first"], int(one["last"]), int(one["trial"]), dict(one["params"]))
                for one in said["schedule"]
            ]
            return cls(int(said["trial"]), said["value"], tuple(entries))
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInput(f"this is not a schedule: {error!r}") from None


def schedule_of(study: StudyLike, number: int | None) -> Schedule:
    """The schedule that led to this trial, or by default to the best one; see `Study.schedule`."""
    state = study.state
    if number is None and state.define is not None and len(state.define.directions) > 1:
        raise InvalidInput("with several objectives there is no best trial; give a trial's number")
    if number is None:
        top = best(state)
        number = _furthest(state) if top is None else top.number
        if number is None:
            raise NoSuchTrial(f"no trial of {study.name!r} has reported anything yet, so there is no schedule")
    trial, zero = study.handle.existing(number), first_id(study.study_id)
    entries = []
    for one in segments(state.trials, trial.number):
        first = None if one.after == FROM_START else one.after + 1
        entries.append(ScheduleEntry(first, one.last, one.trial, study.storage.get_trial(zero + one.trial).params))
    value = trial.values[0] if trial.values else _last_report(trial)
    return Schedule(trial.number, None if value is None or math.isnan(value) else value, tuple(entries))


def _furthest(state: State) -> int | None:
    """The number of the trial that has not failed and has the highest step; of several, the best by its last report.

    None if nothing was reported.
    """
    sign = -1.0 if state.define is not None and state.define.directions[0] == "maximize" else 1.0
    ranked = [
        (-max(trial.reports), math.inf if math.isnan(value) else sign * value, trial.number)
        for trial in state.trials
        if trial.state is not TrialState.FAIL and (value := _last_report(trial)) is not None
    ]
    return min(ranked)[2] if ranked else None


def _last_report(trial: Trial) -> float | None:
    return trial.reports[max(trial.reports)] if trial.reports else None
