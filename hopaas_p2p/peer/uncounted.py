"""Results that a log received but did not count, in words, for callers that did not wait for its decision.

`tell` returns when a result is in the spool. If another process told the same trial meanwhile, the log counts the
result that arrived first, and the sender of the other one learns here that it was dropped.
"""

from __future__ import annotations

import msgspec

from hopaas_p2p.core.attributes import LATE_VALUES
from hopaas_p2p.core.records import TrialFinish, TrialState
from hopaas_p2p.core.state import State


def uncounted(state: State, owner: str, record: TrialFinish) -> str | None:
    """Why the log did not count the values of this end of a trial of `owner`, in words; None if it did."""
    if record.state is not TrialState.COMPLETE or record.values is None or record.number >= len(state.trials):
        return None
    trial = state.trials[record.number]
    lease = owner, record.epoch
    kept = [state.trials[one.kept_as] for one in trial.history if one.kept_as and (one.owner, one.epoch) == lease]
    late = msgspec.json.encode(record.values).decode()
    if any(one.values == record.values or one.system.get(LATE_VALUES) == late for one in (trial, *kept)):
        return None
    there = kept[0] if kept else trial
    found = there.state.name if there.values is None else f"{there.state.name} with {_shown(there.values)}"
    why = f"trial #{there.number} is already {found}"
    expected = 1 if state.define is None else len(state.define.directions)
    if len(record.values) != expected:  # of a study that could not be checked when the result was told
        why = f"{expected} value{'s' * (expected > 1)} expected, got {len(record.values)}"
    return f"the result {_shown(record.values)} of trial #{record.number} was not counted: {why}"


def _shown(values: tuple[float, ...]) -> str:
    return ", ".join(map(repr, values))
