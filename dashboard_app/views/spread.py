"""How the values are distributed: EDF, and the Pareto front of several objectives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hopaas_p2p.analysis import palette
from hopaas_p2p.analysis.chart import (
    FAINT,
    MOST,
    Chart,
    ChartAxis,
    Data,
    Series,
    dashed,
    downsample_line,
    downsample_points,
    number,
    robust_limits,
)
from hopaas_p2p.analysis.charts import clouds, sites_of
from hopaas_p2p.analysis.table import EVERYTHING, Floats, Ints, Selection, TrialTable


def edf(columns: TrialTable, selection: Selection = EVERYTHING) -> Chart | None:
    """The share of the complete trials that is at most as high as a value; one line for all, or one per site."""
    rows = np.flatnonzero(columns.selected(selection))
    if not len(rows):
        return None
    groups = [("all", rows)]
    if selection.by_site:
        groups = [(name, rows[mine]) for _, name, mine in sites_of(columns, rows)]
    return edf_chart([(name, columns.values[mine, selection.objective]) for name, mine in groups])


def edf_chart(groups: Sequence[tuple[str, Floats]]) -> Chart:
    """One line per group. Lines differ in colour and in dashes."""
    layers = []
    for at, (name, values) in enumerate(groups):
        x, share = np.sort(values), np.arange(1, len(values) + 1) / max(1, len(values))
        kept = downsample_line(x, most=MOST // max(1, len(groups)))
        layers.append(dashed(name, at, {"value": x[kept], "share": share[kept]}, "steps"))
    everything = np.concatenate([values for _, values in groups])
    low, high = robust_limits(everything, minimize=False)[0], robust_limits(everything, minimize=True)[1]
    medians = ", ".join(f"{name} {number(float(np.median(values)))}" for name, values in groups)
    alt = f"Share of trials up to each value; medians: {medians}."
    cut = (low is not None and (everything < low).sum()) + (high is not None and (everything > high).sum())
    caption = f"{cut:,} outlying {'value lies' if cut == 1 else 'values lie'} outside the chart." if cut else ""
    shares = ChartAxis("share of trials", 0, 1, zero=True)
    return Chart("Distribution of values (EDF)", layers, ChartAxis("value", low, high), shares, alt, caption)


def pareto(columns: TrialTable, selection: Selection = EVERYTHING, *, first: int = 0, second: int = 1) -> Chart | None:
    """Two of the objectives against each other, and which trials are on the front of all objectives."""
    if len(columns.directions) < 2:
        return None
    finite = columns.complete(first) & columns.complete(second)
    mask = finite if selection.shown is None else finite & selection.shown
    front = columns.front(mask)
    if not len(front):
        return None
    rows = np.flatnonzero(mask)
    x, y = columns.values[:, first], columns.values[:, second]
    drawn = np.union1d(rows[downsample_points(x[rows], y[rows])], front)

    def points(rows: Ints) -> Data:
        return {"first": x[rows], "second": y[rows], "trial": rows}

    layers = clouds(columns, drawn, points, by_site=selection.by_site, colour=FAINT)
    along = front[np.argsort(x[front], kind="stable")]
    layers.append(Series("on the front", "points", points(along), palette.BEST, 11, "diamond"))
    x_axis, y_axis = (ChartAxis(f"objective {at + 1} ({columns.directions[at]})") for at in (first, second))
    total = len(columns.directions)
    alt = f"{len(front)} of {len(rows):,} complete trials are on the Pareto front of {total} objectives."
    return Chart("Pareto front", layers, x_axis, y_axis, alt)
