"""The metrics that a trial logged beside its reports: a small curve each, and their last values."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from dashboard_app.views import spec
from dashboard_app.views.curves import Points, downsampled, finite, rows_of
from dashboard_app.views.spec import ChartSpec
from hopaas_p2p.analysis.table import TrialTable
from hopaas_p2p.core.state import State, Trial

_POINTS: Final = 400
_FEW: Final = 40


class LastValue(NamedTuple):
    """A metric at a glance."""

    name: str
    value: float
    step: int
    low: float
    high: float
    steps: int


def last_values(trial: Trial) -> list[LastValue]:
    """The trial's metrics in the order in which they were first logged."""
    found = []
    for name, values in list(trial.metrics.items()):
        if not values:  # all its steps came after the checkpoint that the attempt resumed from
            continue
        numbers = [value for value in values.values() if math.isfinite(value)] or [math.nan]
        last = max(values)
        found.append(LastValue(name, values[last], last, min(numbers), max(numbers), len(values)))
    return found


def curves(state: State, columns: TrialTable, number: int) -> list[ChartSpec]:
    """One chart per metric with two values or more; the best trial's curve of the same name beside it."""
    trial = state.trials[number]
    best = columns.best() if len(columns.directions) == 1 else None
    charts = []
    for name, values in list(trial.metrics.items()):
        points = finite(values)
        if len(points) < 2:
            continue
        layers = []
        theirs = finite(state.trials[best].metrics.get(name, {})) if best is not None and best != number else []
        if theirs:
            layers.append(_line(f"best, trial {best}", theirs, spec.BEST, 2.0))
        layers.append(_line(f"trial {number}", points, spec.PLAIN, 3.0))
        option = spec.base(layers, xAxis=spec.axis("step"), yAxis=spec.axis(name, nameGap=44))
        alt = (
            f"{name} of trial {number} over {len(points):,} steps: the last is {spec.number(points[-1][1])} at step "
            f"{points[-1][0]:.0f}."
        )
        charts.append(ChartSpec(name, option, alt, height=240))
    return charts


def _line(name: str, points: Points, colour: str, width: float) -> spec.Layer:
    rows = rows_of(downsampled(points, most=_POINTS))
    return spec.line(name, rows, colour=colour, width=width, showSymbol=len(points) < _FEW)
