"""What a study spent, as far as its trials tell: for one whose log keeps no ledger, or begins one late."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from hopaas_p2p.core.inherited import inherited
from hopaas_p2p.core.ledger import Ledger, Outcome
from hopaas_p2p.core.lineage import copied_trial
from hopaas_p2p.core.records import FROM_START, Budget
from hopaas_p2p.core.state import COMPLETE, FAIL, PRUNED, RUNNING, State, Trial

BOOKED: Final[dict[int, Outcome]] = {COMPLETE: "complete", PRUNED: "pruned", FAIL: "failed"}
"""How what a trial cost is booked when it has ended like this."""


def spent(state: State) -> Ledger:
    """What was spent. Not to be changed."""
    return ledger_of(state, Budget()) if state.ledger is None else state.ledger


def ledger_of(state: State, limits: Budget) -> Ledger:
    """A ledger that has only the trials to go by: of a lost attempt it knows the time of the reclaim."""
    ledger = Ledger(limits)
    maximize = state.define is not None and state.define.directions[0] == "maximize"
    for trial in state.trials:
        _enter(ledger, trial, state)
        if trial.end is not None and trial.state is not FAIL:
            ledger.result(trial.end, state.value_of(trial), maximize=maximize)
    if limits != ledger.limits or state.running:
        ledger.limit(limits)
    return ledger


def _enter(ledger: Ledger, trial: Trial, state: State) -> None:
    number, inherited = trial.number, _inherited(trial, state)
    for past in trial.history:
        if past.start is None or past.kept_as is not None:
            continue
        ledger.began(number, state.peers.get(past.owner, {}), past.start, inherited)
        if past is trial.history[-1] and is_last_lease(trial):
            ledger.heard(number, past.end, None, trial.reports)
            ledger.was_lost(number, None)
            return
        ledger.heard(number, past.end, None, {})
        ledger.ended(number, "given back")
    if trial.owner is None or trial.start is None or is_last_lease(trial):
        if trial.end is not None:
            ledger.settle(number, BOOKED[trial.state])
        return
    ledger.began(number, state.peers.get(trial.owner, {}), trial.start, inherited)
    ledger.heard(number, trial.start if trial.end is None else trial.end, None, trial.reports)
    if trial.state is not RUNNING:
        ledger.ended(number, BOOKED[trial.state])


def is_last_lease(trial: Trial) -> bool:
    """Whether the last owner in the history is the last that the trial had: it lost it when the trial ended."""
    last = trial.history[-1] if trial.history else None
    return last is not None and trial.end is not None and (last.owner, last.end) == (trial.owner, trial.end)


def _inherited(trial: Trial, state: State) -> Mapping[int, float]:
    """The reports that a retry or a continuation had when it began."""
    number = trial.retry_of if trial.continues is None else trial.continues
    copied = copied_trial(trial)
    if copied is not None and trial.retry_of is None:
        number = copied
    if number is None:
        return {}
    before = state.trials[number]
    last = before.checkpoints[-1].step if before.checkpoints else None
    return {} if last is None else inherited(before.reports, FROM_START, last)


def earlier_seconds(trial: Trial) -> float:
    """How long the trial ran before its last lease began, by its owners' clocks."""
    earlier = trial.history[:-1] if is_last_lease(trial) else trial.history
    return sum([max(0, past.end - past.start) for past in earlier if past.start is not None]) / 1e6


def trial_seconds(trial: Trial) -> float | None:
    """How long the trial ran, over all its leases; None if it is not over, or no clock says."""
    if trial.start is None or trial.end is None:
        return None
    return earlier_seconds(trial) + (trial.end - trial.start) / 1e6


def configuration_seconds(trial: Trial, state: State) -> float | None:
    """Like `trial_seconds`, with the attempts that the trial went on from: those that left a checkpoint."""
    total = trial_seconds(trial)
    while total is not None:
        before = trial.retry_of if trial.continues is None else trial.continues
        if before is None or not state.trials[before].checkpoints:
            break
        trial = state.trials[before]
        total += max(0.0, trial_seconds(trial) or 0.0)
    return total
