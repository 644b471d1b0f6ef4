"""What goes on in a study now: the numbers at the top, the trials that run, and what happened last."""

from __future__ import annotations

import math
import shlex
from typing import Final, NamedTuple

import numpy as np

from dashboard_app.views.columns import Columns
from dashboard_app.views.history import records
from dashboard_app.views.spec import number
from dashboard_app.views.thin import thin_line
from hopaas_p2p.alerts import posted
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.state import State, Trial

_HOUR: Final = 3600.0
_ROWS: Final = 40
_EVENTS: Final = 14
_SPARK: Final = 40


class Pace(NamedTuple):
    """How fast it goes, and how long it will take."""

    per_hour: float
    """COMPLETE and PRUNED trials an hour, in the last hour of work."""
    failed: float
    """Share of the trials that are over."""
    hours: float
    """Hours that trials have run, those that are lost or still run included."""
    left: int | None
    """Trials to the budget; None without one."""
    eta: float | None
    """Seconds to the budget at this pace; None when it cannot be told."""


def pace(state: State, columns: Columns, now: float) -> Pace:
    """The pace at `now`, seconds since 1970. Times are by the peers' clocks."""
    counts = state.counts
    over = counts[TrialState.COMPLETE] + counts[TrialState.PRUNED] + counts[TrialState.FAIL]
    ended = columns.end[columns.is_(TrialState.COMPLETE, TrialState.PRUNED) & np.isfinite(columns.end)]
    recent = ended[ended > now - _HOUR]
    began = columns.start[np.isfinite(columns.start)]
    per_hour = 0.0
    if len(recent):
        window = min(_HOUR, max(now, float(recent.max())) - float(began.min() if len(began) else recent.min()))
        per_hour = len(recent) * _HOUR / max(1.0, window)
    left = None if state.budget is None else max(0, state.budget - (over - counts[TrialState.FAIL]))
    return Pace(
        per_hour=per_hour,
        failed=counts[TrialState.FAIL] / over if over else 0.0,
        hours=_seconds_run(state, columns, now) / _HOUR,
        left=left,
        eta=left * _HOUR / per_hour if left is not None and per_hour > 0 else None,
    )


def _seconds_run(state: State, columns: Columns, now: float) -> float:
    running = columns.is_(TrialState.RUNNING) & np.isfinite(columns.start)
    total = float(np.nansum(columns.seconds())) + float(np.maximum(0.0, now - columns.start[running]).sum())
    for trial in list(state.trials):
        for tenure in trial.history:
            if tenure.start is not None and tenure.end != trial.end:  # else the trial's own times are the same
                total += max(0, tenure.end - tenure.start) / 1e6
    return total


class Running(NamedTuple):
    """A trial that runs now."""

    number: int
    owner: str
    site: str
    host: str
    seconds: float | None
    """Since it was started, by its peer's clock and `now`."""
    steps: int
    of: int | None
    """Steps of a whole trial: the median of the complete ones; None when nothing is known."""
    last: float | None
    curve: list[float]
    """Its reports in order, thinned."""
    attempt: int
    stop: str | None
    """Why it was asked to end."""


def running(state: State, columns: Columns, now: float, *, most: int = _ROWS) -> list[Running]:
    """The trials that run, the oldest first; at most `most` of them."""
    whole = columns.steps[columns.is_(TrialState.COMPLETE) & (columns.steps > 0)]
    of = int(np.median(whole)) if len(whole) else None
    trials = [state.trials[one] for one in sorted(state.running)]
    trials.sort(key=lambda trial: (trial.start or 0, trial.number))
    return [_running(trial, state, of, now) for trial in trials[:most]]


def _running(trial: Trial, state: State, of: int | None, now: float) -> Running:
    peer = state.peers.get(trial.owner or "", {})
    values = [value for _, value in sorted(trial.reports.items()) if math.isfinite(value)]
    kept = thin_line(np.array(values), most=_SPARK)
    return Running(
        number=trial.number,
        owner=trial.owner or "",
        site=peer.get("site") or "?",
        host=peer.get("host") or "?",
        seconds=None if trial.start is None else max(0.0, now - trial.start / 1e6),
        steps=len(trial.reports),
        of=of,
        last=trial.reports[max(trial.reports)] if trial.reports else None,
        curve=[values[at] for at in kept],
        attempt=trial.attempt,
        stop=trial.stop,
    )


class Event(NamedTuple):
    """Something that happened to a trial."""

    at: float
    """Seconds since 1970, by the clock of the peer that told it."""
    number: int
    kind: str
    """started, complete, best, pruned, fail, lost or waiting."""
    text: str


def events(state: State, columns: Columns, *, most: int = _EVENTS) -> list[Event]:
    """What happened last, the newest first."""
    found = [*_ends(state, columns, most), *_starts(state, columns, most), *_losses(state)]
    return sorted(found, key=lambda one: (-one.at, -one.number))[:most]


def _newest(times: np.ndarray[tuple[int], np.dtype[np.float64]], most: int) -> list[int]:
    known = np.flatnonzero(np.isfinite(times))
    if len(known) > most:
        known = known[np.argpartition(times[known], -most)[-most:]]
    return [int(one) for one in known]


def _ends(state: State, columns: Columns, most: int) -> list[Event]:
    best: set[int] = set()
    if len(columns.directions) == 1:
        rows = records(columns.end, columns.cost(), columns.told())
        best = {int(columns.number[row]) for row in rows}
    found = []
    for row in _newest(columns.end, most):
        trial = state.trials[int(columns.number[row])]
        if trial.end is None or (trial.history and trial.history[-1].end == trial.end):
            continue  # its end is the loss of its lease, told as such
        kind, text = _ending(trial, best=trial.number in best)
        found.append(Event(trial.end / 1e6, trial.number, kind, text))
    return found


def _ending(trial: Trial, *, best: bool) -> tuple[str, str]:
    if trial.state is TrialState.COMPLETE:
        values = ", ".join(number(one) for one in trial.values or ())
        return ("best", f"complete: {values}, the best so far") if best else ("complete", f"complete: {values}")
    if trial.state is TrialState.PRUNED:
        return "pruned", f"pruned after step {max(trial.reports)}" if trial.reports else "pruned"
    why = (trial.reason or "no reason given").strip().split("\n", 1)[0]
    return "fail", f"failed: {why}"


def _starts(state: State, columns: Columns, most: int) -> list[Event]:
    times = np.where(columns.is_(TrialState.RUNNING), columns.start, np.nan)
    found = []
    for row in _newest(times, most):
        trial = state.trials[int(columns.number[row])]
        peer = state.peers.get(trial.owner or "", {})
        again = f", attempt {trial.attempt}" if trial.attempt > 1 else ""
        text = f"started at {peer.get('site') or '?'} on {peer.get('host') or '?'}{again}"
        found.append(Event(float(columns.start[row]), trial.number, "started", text))
    return found


def _losses(state: State) -> list[Event]:
    found = []
    for trial in list(state.trials):
        for tenure in trial.history:
            peer = state.peers.get(tenure.owner, {})
            where = f"{peer.get('site') or '?'} ({peer.get('host') or '?'})"
            given = tenure.why.startswith(("released", "interrupted"))
            text = f"given back by {where}: {tenure.why}" if given else f"taken from {where}: {tenure.why}"
            if trial.retried_by is not None and tenure.end == trial.end:
                text += f"; it comes again as trial {trial.retried_by}"
            if tenure.kept_as is not None:
                text += f"; its late result is kept as trial {tenure.kept_as}"
            found.append(Event(tenure.end / 1e6, trial.number, "lost", text))
    return found


def alerts(state: State, name: str) -> str:
    """Whether somebody is told of this study by a webhook, and of what; or how to be."""
    said = posted(state)
    if said is None:
        return (
            "This page tells only who looks. To be told by a webhook when a site falls silent, trials fail, nothing "
            f"gets better, the budget runs out or a trial is the best: hopaas-p2p watch {shlex.quote(name)} --alert"
        )
    still = ", ".join(key.replace(":", " ") for key in said)
    by = "Alerts are posted to a webhook, by the one hopaas-p2p watch --alert whose turn it is"
    return f"{by}. Said, and still so: {still}." if still else f"{by}. Nothing that was said is still so."
