"""Reports by step as layers of a chart: one curve, or many as one series."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np

from dashboard_app.views import spec
from dashboard_app.views.downsample import downsample_line

Points = list[tuple[float, float]]

STEPS: Final = 120
"""Points of one curve among many."""


def finite(reports: Mapping[int, float]) -> Points:
    """The finite values by step."""
    return [(float(step), value) for step, value in sorted(reports.items()) if math.isfinite(value)]


def downsampled(points: Points, *, most: int = STEPS) -> Points:
    """Points that show the same curve: its ends, and the lowest and highest of equal stretches."""
    return [points[at] for at in downsample_line(np.array([value for _, value in points]), most=most)]


def rows_of(points: Points) -> spec.Rows:
    """The rows of one curve."""
    return spec.frame(step=[step for step, _ in points], value=[value for _, value in points])


def bundle(
    name: str, curves: Iterable[tuple[int, Points]], colour: str, dash: str, width: float,
    *, along: str = "step", of: str = "trial",
) -> spec.Layer:  # fmt: skip
    """Several curves, each with the number of what it is `of`, as one series: rows without a value separate them."""
    steps: list[float] = []
    values: list[float] = []
    numbers: list[int] = []
    for number, points in curves:
        steps += [*(step for step, _ in points), math.nan]
        values += [*(value for _, value in points), math.nan]
        numbers += [number] * (len(points) + 1)
    rows = spec.frame(**{along: steps[:-1], "value": values[:-1], of: numbers[:-1]})
    look = {"color": colour, "width": width, "type": dash, "opacity": 0.55 if width == 1.0 else 1.0}
    return spec.line(name, rows, colour=colour, connectNulls=False, lineStyle=look, symbol="none")


def option_of(bundles: Sequence[spec.Layer], *, along: str, minimize: bool, marks: Sequence[spec.Layer]) -> spec.Option:
    """An option that draws these bundles, and marks upon them; a few very bad values do not flatten the rest."""
    layers = [layer for layer in bundles if len(layer.rows)]
    values = np.concatenate([layer.rows["value"].to_numpy(dtype=np.float64) for layer in layers])
    low, high = spec.robust_limits(values[np.isfinite(values)], minimize=minimize, without=0.1)
    value = spec.axis("reported value", min=low, max=high, nameGap=44)
    return spec.base([*layers, *marks], xAxis=spec.axis(along), yAxis=value)
