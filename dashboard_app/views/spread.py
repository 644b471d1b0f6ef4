"""How the values are distributed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hopaas_p2p.analysis.chart import (
    MOST,
    Chart,
    ChartAxis,
    dashed,
    downsample_line,
    number,
    value_axis,
)
from hopaas_p2p.analysis.charts import sites_of
from hopaas_p2p.analysis.table import EVERYTHING, Floats, Selection, TrialTable


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
    x_axis, caption = value_axis("value", np.concatenate([values for _, values in groups]), ["low", "high"])
    medians = ", ".join(f"{name} {number(float(np.median(values)))}" for name, values in groups)
    alt = f"Share of trials up to each value; medians: {medians}."
    shares = ChartAxis("share of trials", 0, 1, zero=True)
    return Chart("Distribution of values (EDF)", layers, x_axis, shares, alt, caption)
