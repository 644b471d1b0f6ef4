"""One trial: where it stands among the others, who owned it, and how it can be run again."""

from __future__ import annotations

import json
import shlex
from typing import Any, Final, NamedTuple

import numpy as np

from dashboard_app.views import spec
from dashboard_app.views.columns import Columns
from dashboard_app.views.pruning import curve_of
from dashboard_app.views.spec import Chart
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.state import State, Trial
from hopaas_p2p.report.facts import params_of

_MEDIAN_OF: Final = 2000  # complete trials that the median curve is made of, at most


class Standing(NamedTuple):
    """Where a parameter's value lies among those of the complete trials."""

    name: str
    value: str
    percentile: float | None
    """Share of the complete trials whose value is smaller, equal ones counted half; None for a choice."""
    share: float | None
    """Of a choice: the share of the complete trials that had it."""


def standings(state: State, columns: Columns, number: int) -> list[Standing]:
    """The trial's parameters in the order they were suggested."""
    trial = state.trials[number]
    complete = columns.is_(TrialState.COMPLETE) & (columns.number != number)
    shown = params_of(trial, state)
    found = []
    for name, value in shown.items():
        column = columns.params.get(name)
        one = columns.parameters.get(name)
        others = column[complete & np.isfinite(column)] if column is not None else np.empty(0)
        text = _text(value)
        if one is None or column is None or not len(others):
            found.append(Standing(name, text, None, None))
            continue
        mine = float(column[np.flatnonzero(columns.number == number)[0]])
        if one.choices is not None:
            found.append(Standing(name, text, None, float(np.mean(others == mine))))
        else:
            below = float(np.mean(others < mine)) + float(np.mean(others == mine)) / 2
            found.append(Standing(name, text, below, None))
    return found


def _text(value: object) -> str:
    return spec.number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def rank(columns: Columns, number: int) -> tuple[int, int] | None:
    """(place among the complete trials, how many there are), the best first; None if it has no value."""
    if len(columns.directions) != 1:
        return None
    told = columns.told()
    row = np.flatnonzero(columns.number == number)
    if not len(row) or not told[row[0]]:
        return None
    cost = columns.cost()
    return int(np.count_nonzero(told & (cost < cost[row[0]]))) + 1, int(np.count_nonzero(told))


def curve(state: State, columns: Columns, number: int) -> Chart | None:
    """The trial's reports by step, against the best trial's and the median of the complete ones."""
    trial = state.trials[number]
    points = curve_of(trial)
    if not points:
        return None
    layers = []
    best = columns.best() if len(columns.directions) == 1 else None
    median = _median(state, columns, number)
    if median:
        layers.append(_line("median of the complete", median, spec.FAINT, "dashed", 2.0))
    if best is not None and int(columns.number[best]) != number:
        other = int(columns.number[best])
        layers.append(_line(f"best, trial {other}", curve_of(state.trials[other]), spec.BEST, "solid", 2.0))
    layers.append(_line(f"trial {number}", points, spec.PLAIN, "solid", 3.0, marks=len(points) < 40))
    layers = [layer for layer in layers if len(layer.rows)]
    option = spec.base(layers, xAxis=spec.axis("step"), yAxis=spec.axis("reported value", nameGap=44))
    alt = (
        f"Reports of trial {number} over {len(trial.reports):,} steps: the last is {spec.number(points[-1][1])} at "
        f"step {points[-1][0]:.0f}" + (f"; the median there is {_at(median, points[-1][0])}." if median else ".")
    )
    return Chart("Learning curve", option, alt, height=340)


def _line(
    name: str, points: list[tuple[float, float]], colour: str, dash: str, width: float, *, marks: bool = False
) -> spec.Layer:
    rows = spec.frame(step=[step for step, _ in points], value=[value for _, value in points])
    look = {"color": colour, "width": width, "type": dash}
    return spec.line(name, rows, colour=colour, lineStyle=look, showSymbol=marks)


def _median(state: State, columns: Columns, number: int) -> list[tuple[float, float]]:
    """(step, median report of the complete trials there), where at least three reported."""
    rows = np.flatnonzero(columns.is_(TrialState.COMPLETE) & (columns.steps > 0) & (columns.number != number))
    by_step: dict[int, list[float]] = {}
    for row in rows[-_MEDIAN_OF:].tolist():
        for step, value in list(state.trials[int(columns.number[row])].reports.items()):
            by_step.setdefault(step, []).append(value)
    return [
        (float(step), float(np.nanmedian(values)))
        for step, values in sorted(by_step.items())
        if len(values) >= 3 and np.isfinite(values).any()
    ]


def _at(points: list[tuple[float, float]], step: float) -> str:
    return next((spec.number(value) for where, value in points if where == step), "not known")


class Owner(NamedTuple):
    """One lease of the trial."""

    epoch: int
    uuid: str
    site: str
    host: str
    start: float | None
    """Seconds since 1970."""
    end: float | None
    """None while it runs."""
    how: str
    """How it ended."""
    kept_as: int | None


def owners(state: State, trial: Trial) -> list[Owner]:
    """Every lease, the first one first."""
    found = [
        _owner(state, one.owner, one.epoch, one.start, one.end, one.why, one.kept_as) for one in list(trial.history)
    ]
    last = trial.history[-1] if trial.history else None
    if trial.owner is not None and not (last is not None and last.owner == trial.owner and last.end == trial.end):
        how = "runs" if trial.state is TrialState.RUNNING else trial.state.name.lower()
        found.append(_owner(state, trial.owner, trial.epoch, trial.start, trial.end, how, None))
    return found


def _owner(
    state: State, uuid: str, epoch: int, start: int | None, end: int | None, how: str, kept_as: int | None
) -> Owner:
    said = state.peers.get(uuid, {})
    times = (None if start is None else start / 1e6, None if end is None else end / 1e6)
    return Owner(epoch, uuid, said.get("site") or "?", said.get("host") or "?", *times, how, kept_as)


def family(state: State, number: int) -> list[tuple[int, str]]:
    """Trials with the same parameters: (number, what it is to this one), attempts in order, late results last."""
    first = state.trials[number]
    while first.retry_of is not None and first.retry_of < first.number:
        first = state.trials[first.retry_of]
    chain = [first]
    while chain[-1].retried_by is not None and chain[-1].retried_by > chain[-1].number:
        chain.append(state.trials[chain[-1].retried_by])
    found = [(one.number, f"attempt {one.attempt}, {one.state.name.lower()}") for one in chain]
    for one in chain:
        late = [tenure.kept_as for tenure in one.history if tenure.kept_as is not None]
        found += [(kept, f"late result of trial {one.number}") for kept in late]
    trial = state.trials[number]
    if trial.late_of is not None and all(other != trial.late_of for other, _ in found):
        found.append((trial.late_of, "this is its late result"))
    return found


def as_python(name: str, store: str, state: State, trial: Trial) -> str:
    """A program that queues these parameters again. Every text in it is a literal."""
    params = params_of(trial, state)
    lines = [f"    {key!r}: {value!r}," for key, value in params.items()]
    body = "\n".join(lines)
    return (
        "import hopaas_p2p\n\n"
        f"params = {{\n{body}\n}}  # of trial {trial.number}\n"
        f"study = hopaas_p2p.open_study({store!r}, {name!r}, create=False)\n"
        "study.enqueue(params)  # or call your objective with optuna.trial.FixedTrial(params)\n"
    )


def as_shell(name: str, store: str, state: State, trial: Trial) -> str:
    """A command that queues these parameters again; every text in it is quoted."""
    words = ["hopaas-p2p", "trial", "enqueue", "--store", store, "--study", name]
    words += [f"{key}={_said(value)}" for key, value in params_of(trial, state).items()]
    return " ".join(shlex.quote(word) for word in words)


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
