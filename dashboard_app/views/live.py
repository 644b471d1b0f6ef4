"""What goes on in a study now: the numbers at the top, the trials that run, and what happened last."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from hopaas_p2p.alerts import posted
from hopaas_p2p.analysis.chart import number
from hopaas_p2p.analysis.charts import records
from hopaas_p2p.analysis.facts import reason_line, retried
from hopaas_p2p.analysis.spending import spending
from hopaas_p2p.analysis.table import Floats, TrialTable, place
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.state import State, Trial

_HOUR: Final = 3600.0
_ROWS: Final = 40
_EVENTS: Final = 14


class Throughput(NamedTuple):
    """How fast it goes, and how long it will take."""

    recent: int
    """COMPLETE and PRUNED trials that ended in the last hour."""
    per_hour: float
    """The same as a rate, also where the work began less than an hour ago."""
    crashed: int
    """FAIL trials that nothing retried."""
    retried: int
    """FAIL trials that were run again."""
    hours: float
    """Hours that trials have run, lost and running ones included, as far as the log has heard of them."""
    left: int | None
    """Trials to the budget; None without one."""
    eta: float | None
    """Seconds to the budget at this pace; None when unknown."""


def pace(state: State, columns: TrialTable, now: float) -> Throughput:
    """The pace at `now`, seconds since 1970. Times are by the peers' clocks."""
    ended = columns.end[columns.is_(TrialState.COMPLETE, TrialState.PRUNED) & np.isfinite(columns.end)]
    recent = ended[ended > now - _HOUR]
    again = retried(state)
    began = columns.start[np.isfinite(columns.start)]
    per_hour = 0.0
    if len(recent):
        window = min(_HOUR, max(now, float(recent.max())) - float(began.min() if len(began) else recent.min()))
        per_hour = len(recent) * _HOUR / max(1.0, window)
    left = (
        None
        if state.budget is None
        else max(0, state.budget - state.counts[TrialState.COMPLETE] - state.counts[TrialState.PRUNED])
    )
    return Throughput(
        recent=len(recent),
        per_hour=per_hour,
        crashed=state.counts[TrialState.FAIL] - again,
        retried=again,
        hours=spending(state).total.cost.time / 1e6 / _HOUR,
        left=left,
        eta=left * _HOUR / per_hour if left is not None and per_hour > 0 else None,
    )


def running(state: State, *, most: int = _ROWS) -> list[Trial]:
    """The trials that run, the oldest first; at most `most` of them."""
    trials = (state.trials[number] for number in state.running)
    return sorted(trials, key=lambda one: (one.start or 0, one.number))[:most]


def steps_of_a_trial(columns: TrialTable) -> int | None:
    """Steps of a whole trial: the median of the complete ones; None when nothing is known."""
    whole = columns.steps[columns.is_(TrialState.COMPLETE) & (columns.steps > 0)]
    return int(np.median(whole)) if len(whole) else None


class TrialEvent(NamedTuple):
    """Something that happened to a trial."""

    at: float
    """Seconds since 1970, by the clock of the peer that reported it."""
    number: int
    kind: str
    """started, complete, best, pruned, fail, lost or waiting."""
    text: str


def events(state: State, columns: TrialTable, *, most: int = _EVENTS) -> list[TrialEvent]:
    """What happened last, the newest first."""
    best: set[int] = set()
    if len(columns.directions) == 1:
        best = set(records(columns.end, columns.cost(), columns.complete()).tolist())
    found = []
    for trial in _newest(state, columns.end, most):
        if trial.history and trial.history[-1].end == trial.end:
            continue  # its end is the loss of its lease, see below
        kind, text = trial.state.name.lower(), f"failed: {reason_line(trial.reason) or 'no reason given'}"
        if trial.state is TrialState.COMPLETE:
            kind, more = ("best", ", the best so far") if trial.number in best else (kind, "")
            text = "complete: " + ", ".join(map(number, trial.values or ())) + more
        elif trial.state is TrialState.PRUNED:
            text = f"pruned after step {max(trial.reports)}" if trial.reports else "pruned"
        found.append(TrialEvent((trial.end or 0) / 1e6, trial.number, kind, text))
    for trial in _newest(state, np.where(columns.is_(TrialState.RUNNING), columns.start, np.nan), most):
        site, host = place(state, trial.owner)
        text = f"started at {site} on {host}" + (f", attempt {trial.attempt}" if trial.attempt > 1 else "")
        found.append(TrialEvent((trial.start or 0) / 1e6, trial.number, "started", text))
    return sorted([*found, *_losses(state)], key=lambda one: (-one.at, -one.number))[:most]


def _losses(state: State) -> Iterator[TrialEvent]:
    for trial in list(state.trials):
        for tenure in trial.history:
            site, host = place(state, tenure.owner)
            given = "returned by" if tenure.why.startswith(("released", "interrupted")) else "taken from"
            text = f"{given} {site} ({host}): {tenure.why}"
            if trial.retried_by is not None and tenure.end == trial.end:
                text += f"; retried as trial {trial.retried_by}"
            if tenure.kept_as is not None:
                text += f"; its late result is kept as trial {tenure.kept_as}"
            yield TrialEvent(tenure.end / 1e6, trial.number, "lost", text)


def _newest(state: State, times: Floats, most: int) -> list[Trial]:
    known = np.flatnonzero(np.isfinite(times))
    if len(known) > most:
        known = known[np.argpartition(times[known], -most)[-most:]]
    return [state.trials[int(row)] for row in known]


def alerts(state: State, name: str) -> str:
    """Whether a webhook is told of this study, and of what; or how to set that up."""
    posted_now = posted(state)
    if posted_now is None:
        return (
            "This is shown only on this page. To be notified through a webhook when a site falls silent, trials fail, "
            "nothing improves, the budget is used up or a trial becomes the best, run: "
            f"hopaas-p2p watch {shlex.quote(name)} --alert"
        )
    by = "Alerts are posted to a webhook by one of the processes that run hopaas-p2p watch --alert"
    still = ", ".join(key.replace(":", " ") for key in posted_now)
    return f"{by}. Active alerts: {still}." if still else f"{by}. No alert is active."
