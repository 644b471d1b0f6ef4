"""The small steps that the rules are made of: what may be said of a trial, and how a State takes it.

They keep the State's counts and indexes true.
"""

from __future__ import annotations

import math

from hopaas_p2p.core.records import Commit, TrialCreate, TrialSet, TrialState
from hopaas_p2p.core.sanity import possible_distributions, possible_time
from hopaas_p2p.core.state import COMPLETE, FAIL, PRUNED, RUNNING, WAITING, State, Tenure, Trial, Verdict


def count(state: State, reason: str) -> None:
    """One refusal more for this reason."""
    state.refusals[reason] = state.refusals.get(reason, 0) + 1


def refuse(state: State, reason: str, number: int | None = None) -> Verdict:
    """Count the refusal, and give the verdict that says so."""
    count(state, reason)
    return Verdict(False, number, reason)


def find(state: State, number: int) -> Trial | None:
    """The trial of this number, if there is one."""
    return state.trials[number] if 0 <= number < len(state.trials) else None


def has_lease(trial: Trial, epoch: int, commit: Commit) -> bool:
    """Whether the commit comes from the owner of this lease, and the lease is the present one."""
    return trial.epoch == epoch and trial.owner == commit.owner


def describes_a_trial(state: State, record: TrialCreate) -> bool:
    """Whether a trial can be like that."""
    return (
        (not (record.params or record.dists) or can_be_merged(state, record))
        and can_end(state, record.state, record.values)
        and (record.start is None or possible_time(record.start))
        and (record.end is None or possible_time(record.end))
    )


def can_be_merged(state: State, record: TrialSet | TrialCreate) -> bool:
    """Whether every parameter has a distribution, and each one that is named can be one."""
    if not record.dists:
        return record.params.keys() <= state.dists.keys()
    known = state.dists.keys() | record.dists.keys()
    return record.params.keys() <= known and possible_distributions(record.dists.values())


def can_end(state: State, to: TrialState, values: tuple[float, ...] | None) -> bool:
    """Whether a trial in this state may have these values: one a direction, and if COMPLETE, all of them numbers."""
    if values is None:
        return to is not COMPLETE
    if state.define is None or len(values) != len(state.define.directions):
        return False
    return to is not COMPLETE or not any(map(math.isnan, values))


def has_place_for(state: State, ended: TrialState) -> bool:
    """Whether the budget allows one more trial that ends like this without having run."""
    takes_one = ended is COMPLETE or ended is PRUNED
    return not takes_one or state.budget is None or state.used() < state.budget


def append(state: State, trial_state: TrialState) -> Trial:
    """A new trial in this state."""
    number = len(state.trials)
    trial = Trial(number, trial_state)
    state.trials.append(trial)
    state.counts[trial_state] += 1
    state.changed.add(number)
    if trial_state is WAITING:
        state.waiting[number] = None
    elif trial_state is RUNNING:
        state.running[number] = None
    return trial


def move(state: State, trial: Trial, to: TrialState) -> None:
    """Give the trial another state, and keep the counts and indexes true."""
    number = trial.number
    state.counts[trial.state] -= 1
    state.counts[to] += 1
    if trial.state is RUNNING:
        del state.running[number]
    elif trial.state is WAITING:
        del state.waiting[number]
    if to is RUNNING:
        state.running[number] = None
    elif to is WAITING:
        state.waiting[number] = None
    trial.state = to
    state.changed.add(number)


def merge(state: State, trial: Trial, record: TrialSet | TrialCreate) -> None:
    """Take what is said of a trial into it."""
    if record.params:
        if record.dists or trial.dists:
            _merge_distributions(state, trial, record)
        trial.params.update(record.params)
    if record.reports:
        trial.reports.update(record.reports)
    if record.user:
        trial.user = {**trial.user, **record.user}
    if record.system:
        trial.system = {**trial.system, **record.system}


def _merge_distributions(state: State, trial: Trial, record: TrialSet | TrialCreate) -> None:
    for name in record.params:
        first = state.dists.get(name)
        given = record.dists.get(name)
        if first is None and given is not None:
            state.dists[name] = given
        elif given is not None and given != first:
            trial.dists[name] = given
        elif name in trial.dists:  # told again, from the first distribution this time
            del trial.dists[name]


def close(
    state: State,
    trial: Trial,
    to: TrialState,
    at: int,
    *,
    values: tuple[float, ...] | None = None,
    reason: str | None = None,
    own_fault: bool = True,
) -> None:
    """End a trial. `own_fault` tells a failure of the objective from an interruption."""
    move(state, trial, to)
    trial.end = at
    trial.stop, trial.stopping = None, False
    if values is not None:
        trial.values = values
    if reason is not None:
        trial.reason = reason
    if to is not FAIL:
        state.failures_in_a_row = 0
    elif own_fault:
        state.failures_in_a_row += 1


def end_tenure(trial: Trial, at: int, why: str) -> None:
    """Write the present lease into the history of owners."""
    if trial.owner is not None:
        trial.history = (*trial.history, Tenure(trial.owner, trial.epoch, trial.start, at, why))
