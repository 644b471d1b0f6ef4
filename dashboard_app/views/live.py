"""What happens in a study now, as numbers for the top of the page, running trials, and the latest events."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from hopaas_p2p.analysis.chart import number
from hopaas_p2p.analysis.charts import records
from hopaas_p2p.analysis.facts import reason_line, trial_word
from hopaas_p2p.analysis.spending import spending
from hopaas_p2p.analysis.table import Floats, TrialTable, place
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.spending import is_last_lease, past_leases
from hopaas_p2p.core.state import State, Trial

Event = tuple[float, int, str, str]
"""The time of an event by the reporting peer's clock (in seconds since 1970), the trial's number, the kind (started,
complete, best, pruned, fail, lost or returned), and a description."""
_HOUR: Final = 3600.0
_ROWS: Final = 40
_EVENTS: Final = 14


def pace(state: State, columns: TrialTable, now: float) -> dict[str, Any]:
    """The study's pace at `now` (in seconds since 1970), by the peers' clocks. Unknown values are None.

    `recent` counts the COMPLETE and PRUNED trials that ended in the last hour, and `per_hour` is their rate, even if
    the work began less than an hour ago. `hours` is the total time that trials have run, as far as the log records it.
    The study needs `left` more trials to reach its budget, which takes `eta` seconds at this pace. Both are None if the
    budget counts configurations or members, because these need an unknown number of trials.
    """
    ended = columns.end[columns.is_(TrialState.COMPLETE, TrialState.PRUNED) & np.isfinite(columns.end)]
    recent = ended[ended > now - _HOUR]
    began = columns.start[np.isfinite(columns.start)]
    per_hour = 0.0
    if len(recent):
        window = min(_HOUR, max(now, float(recent.max())) - float(began.min() if len(began) else recent.min()))
        per_hour = len(recent) * _HOUR / max(1.0, window)
    done = state.counts[TrialState.COMPLETE] + state.counts[TrialState.PRUNED]
    left = None if state.budget is None or state.configurations.unit != "trials" else max(0, state.budget - done)
    return {
        "recent": len(recent),
        "per_hour": per_hour,
        "left": left,
        "hours": spending(state).total["seconds"] / _HOUR,
        "eta": left * _HOUR / per_hour if left is not None and per_hour > 0 else None,
    }


def running(state: State) -> list[Trial]:
    """The running trials, oldest first; at most 40 of them."""
    trials = (state.trials[number] for number in state.running)
    return sorted(trials, key=lambda one: (one.start or 0, one.number))[:_ROWS]


def steps_of_a_trial(columns: TrialTable) -> int | None:
    """The median number of steps of the complete trials; None if unknown."""
    whole = columns.steps[columns.is_(TrialState.COMPLETE) & (columns.steps > 0)]
    return int(np.median(whole)) if len(whole) else None


def events(state: State, columns: TrialTable) -> list[Event]:
    """The latest events, newest first."""
    best: set[int] = set()
    if len(columns.directions) == 1:
        best = set(records(columns.end, columns.cost(), columns.complete()).tolist())
    found: list[Event] = []
    for trial in _newest(state, columns.end):
        if is_last_lease(trial):
            continue  # `_losses` lists the end of such a trial
        kind, text = trial_word(trial).lower(), f"failed: {reason_line(trial.reason) or 'no reason given'}"
        if trial.state is TrialState.COMPLETE:
            kind, more = ("best", ", the best so far") if trial.number in best else (kind, "")
            text = "complete: " + ", ".join(map(number, trial.values or ())) + more
        elif trial.state is TrialState.PRUNED:
            text = f"{kind} after step {max(trial.reports)}" if trial.reports else kind
        found.append(((trial.end or 0) / 1e6, trial.number, kind, text))
    for trial in _newest(state, np.where(columns.is_(TrialState.RUNNING), columns.start, np.nan)):
        site, host = place(state, trial.owner)
        text = f"started at {site} on {host}" + (f", attempt {trial.attempt}" if trial.attempt > 1 else "")
        found.append(((trial.start or 0) / 1e6, trial.number, "started", text))
    return sorted([*found, *_losses(state)], key=lambda one: (-one[0], -one[1]))[:_EVENTS]


def _losses(state: State) -> Iterator[Event]:
    for trial in list(state.trials):
        for tenure, how in past_leases(trial):
            site, host = place(state, tenure.owner)
            kind, given = ("returned", "returned by") if how == "returned" else ("lost", "taken from")
            text = f"{given} {site} ({host}): {tenure.why}"
            if trial.retried_by is not None and kind == "lost":
                text += f"; retried as trial {trial.retried_by}"
            yield tenure.end / 1e6, trial.number, kind, text


def _newest(state: State, times: Floats) -> list[Trial]:
    known = np.flatnonzero(np.isfinite(times))
    if len(known) > _EVENTS:
        known = known[np.argpartition(times[known], -_EVENTS)[-_EVENTS:]]
    return [state.trials[int(row)] for row in known]
