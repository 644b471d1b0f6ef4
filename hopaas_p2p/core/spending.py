"""How long trials ran, and how their leases ended."""

from __future__ import annotations

import json
from typing import Literal

from hopaas_p2p.core.attributes import COPIED
from hopaas_p2p.core.records import PastLease, TrialCreate
from hopaas_p2p.core.state import State, Trial


def is_last_lease(trial: Trial) -> bool:
    """Whether the last lease in the history is the trial's last, which ended when the trial did."""
    last = trial.history[-1] if trial.history else None
    return last is not None and trial.end is not None and (last.owner, last.end) == (trial.owner, trial.end)


def past_leases(trial: Trial) -> list[tuple[PastLease, Literal["returned", "taken over"]]]:
    """The past leases, oldest first, and how each ended.

    All leases but the trial's last were returned, because only a returned trial runs again. A trial's last lease is in
    the history if an observer, an operator or a late result ended it.
    """
    returned = len(trial.history) - is_last_lease(trial)
    return [(past, "returned" if at < returned else "taken over") for at, past in enumerate(trial.history)]


def earlier_seconds(trial: Trial | TrialCreate) -> float:
    """How long the trial ran before its last lease began, by its owners' clocks; for a copied trial, before the
    copy.
    """
    if isinstance(trial, TrialCreate) or (trial.owner is None and not trial.history):
        copied = trial.system.get(COPIED)
        return 0.0 if copied is None else float(json.loads(copied).get("earlier", 0.0))
    earlier = [past for past, how in past_leases(trial) if how == "returned"]
    return sum([max(0, past.end - past.start) for past in earlier if past.start is not None]) / 1e6


def trial_seconds(trial: Trial | TrialCreate) -> float | None:
    """How long the trial ran, over all its leases; None if the trial has not ended, or the times are not known.

    A lease during which a clock was set back counts as zero, as in `TrialTable.seconds` and in exports.
    """
    if trial.start is None or trial.end is None:
        return None
    return earlier_seconds(trial) + max(0, trial.end - trial.start) / 1e6


def configuration_seconds(trial: Trial, state: State) -> float | None:
    """Like `trial_seconds`, including the attempts that the trial continued: those that left a checkpoint."""
    total = trial_seconds(trial)
    while total is not None:
        before = trial.retry_of if trial.continues is None else trial.continues
        if before is None or not state.trials[before].checkpoints:
            break
        trial = state.trials[before]
        total += max(0.0, trial_seconds(trial) or 0.0)
    return total
