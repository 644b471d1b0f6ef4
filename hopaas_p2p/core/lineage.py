"""Finds the trials that a trial descends from, and the parameters with which each step of its training was made.

In a population a member continues from another one's checkpoint, so a trial's final model was trained by several trials
with different parameters. A path through these trials, from the first step to the last, is a schedule of parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hopaas_p2p.core.attributes import COPIES, RESUMED
from hopaas_p2p.core.records import FROM_START
from hopaas_p2p.core.state import Trial


class TrainedSteps(NamedTuple):
    """The steps of a training run that one trial made."""

    after: int
    """The step before the first, or `records.FROM_START`."""
    last: int
    trial: int


def copied_trial(trial: Trial) -> int | None:
    """The trial of another member whose checkpoint this one began with, and whose parameters it has, perturbed."""
    number = int(trial.system.get(COPIES, trial.number))
    return number if number < trial.number else None


def resumed_step(trial: Trial) -> int | None:
    """The lowest step from which an attempt at this trial resumed, or `FROM_START`; None if no attempt recorded one."""
    return int(trial.system[RESUMED]) if RESUMED in trial.system else None


def parent(trial: Trial) -> int | None:
    """The trial whose checkpoint this one began with, if it began with one."""
    for number in (trial.retry_of, trial.late_of, copied_trial(trial), trial.continues):
        if number is not None:
            return number
    return None


def own_steps(trials: Sequence[Trial], trial: Trial, last: int) -> TrainedSteps | None:
    """The steps up to `last` that this trial made itself; None if it made none of them."""
    before, start = parent(trial), resumed_step(trial)
    if start is None and trial.late_of is not None:  # it has the reports of the trial it retries
        return None
    if start is None and before is not None and trials[before].checkpoints:
        saved = trials[before].checkpoints[-1].step
        if any(step <= saved for step in trials[before].reports):  # it has the inherited reports, and none of its own
            return None
    after = FROM_START if start is None or before is None else min(start, last)
    return TrainedSteps(after, last, trial.number) if after < last else None


def segments(trials: Sequence[Trial], number: int) -> list[TrainedSteps]:
    """The steps that led to this trial's current state, and the trials that made them, the first step first."""
    found: list[TrainedSteps] = []
    trial: Trial | None = trials[number]
    last = max(trials[number].reports, default=FROM_START)
    while trial is not None and last > FROM_START:
        own, before = own_steps(trials, trial, last), parent(trial)
        if own is not None:
            found.append(own)
            last = own.after
        trial = None if before is None else trials[before]
    return found[::-1]
