"""Results that a log has read and not counted, in words, for callers that did not wait for its decision.

`tell` returns when a result is in the spool. If another process told the same trial meanwhile, the log counts what
arrived first, and whoever sends the other one learns here that it was dropped.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from hopaas_p2p.core import codec
from hopaas_p2p.core.attributes import LATE_VALUES
from hopaas_p2p.core.records import Commit, TrialFinish, TrialState
from hopaas_p2p.core.state import State, Trial
from hopaas_p2p.errors import Denied
from hopaas_p2p.stores.base import Outgoing


def uncounted_in(state: State, outgoing: Outgoing) -> Iterator[str]:
    """Say which results in this commit, which has been sent, the log did not count.

    Raises:
        Denied: it counted none of them, because it knows the peer as another user's.

    """
    commit = codec.decode(outgoing.payload)
    if not isinstance(commit, Commit):
        return
    last = state.writers.get(commit.writer)
    if last is None or last.seq < commit.seq:
        raise Denied(
            "a peer of another user ran the trials in it; send it with a token of that user: "
            "hopaas-p2p admin spool send"
        )
    for record in commit.records:
        if isinstance(record, TrialFinish) and (why := uncounted(state, commit.owner, record)) is not None:
            yield why


def uncounted(state: State, owner: str, record: TrialFinish) -> str | None:
    """Say that the log, which has read this end of a trial of `owner`, did not count its values; None if it did."""
    if record.state is not TrialState.COMPLETE or record.values is None or record.number >= len(state.trials):
        return None
    trial = state.trials[record.number]
    kept = [
        state.trials[lease.kept_as]
        for lease in trial.history
        if lease.kept_as is not None and (lease.owner, lease.epoch) == (owner, record.epoch)
    ]
    if any(_has(one, record.values) for one in (trial, *kept)):
        return None
    there = kept[0] if kept else trial
    found = there.state.name if there.values is None else f"{there.state.name} with {_shown(there.values)}"
    why = f"trial #{there.number} is already {found}"
    expected = 1 if state.define is None else len(state.define.directions)
    if len(record.values) != expected:  # of a study that could not be looked at when it was told
        why = f"{expected} value{'s' * (expected > 1)} expected, got {len(record.values)}"
    return f"the result {_shown(record.values)} of trial #{record.number} was not counted: {why}"


def _has(trial: Trial, values: tuple[float, ...]) -> bool:
    late = trial.system.get(LATE_VALUES)
    return trial.values == values or late == msgspec.json.encode(values).decode()


def _shown(values: tuple[float, ...]) -> str:
    return ", ".join(map(repr, values))
