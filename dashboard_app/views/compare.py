"""Studies beside each other: a table, the best so far, and the distribution of values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from dashboard_app.views.spread import edf_chart
from hopaas_p2p.analysis.chart import Chart, ChartAxis, dashed, downsample_line, number
from hopaas_p2p.analysis.charts import ALONG, Along, positions, records
from hopaas_p2p.analysis.spending import spending
from hopaas_p2p.analysis.table import TrialTable
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.state import State

MOST_STUDIES: Final = 8

Named = Sequence[tuple[str, TrialTable]]


def summary(state: State, columns: TrialTable) -> dict[str, float | None]:
    """Numbers to compare. `trials to 95%`: complete trials until the best had come 95 % of its way from the first."""
    complete, best = columns.complete(), columns.best()
    return {
        "trials": len(columns),
        "complete": int(columns.is_(TrialState.COMPLETE).sum()),
        "pruned": int(columns.is_(TrialState.PRUNED).sum()),
        "failed": int(columns.is_(TrialState.FAIL).sum()),
        "best": None if best is None else float(columns.values[best, 0]),
        "median": float(np.median(columns.values[complete, 0])) if complete.any() else None,
        "trials to 95%": trials_to(columns),
        "compute-hours": round(spending(state).total.cost.time / 3.6e9, 2),
    }


def trials_to(columns: TrialTable, share: float = 0.95) -> int | None:
    """How many complete trials it took until the best had come this share of the way."""
    cost = columns.cost()[columns.complete()]
    if not len(cost):
        return None
    so_far = np.minimum.accumulate(cost)
    goal = so_far[0] + share * (so_far[-1] - so_far[0])
    return int(np.argmax(so_far <= goal)) + 1


def best_so_far(studies: Named, *, along: Along = "number") -> Chart | None:
    """One line per study. Time is counted from each study's first start, in hours, so that all begin together."""
    layers, words = [], []
    for at, (name, columns) in enumerate(studies[:MOST_STUDIES]):
        x, complete = positions(columns, along), columns.complete()
        if along == "time":
            x = (x - np.nanmin(columns.start)) / 3600 if np.isfinite(columns.start).any() else x
        rows = records(x, columns.cost(), complete)
        if not len(rows):
            continue
        best = columns.values[rows, 0]
        until = float(np.nanmax(x[complete]))
        kept = downsample_line(best, most=600)
        points = {"along": np.append(x[rows][kept], until), "best": np.append(best[kept], best[-1])}
        layers.append(dashed(name, at, points, "steps"))
        words.append(f"{name}: {number(float(best[-1]))} after {number(float(x[rows[-1]]))}")
    if not layers:
        return None
    unit = "hours since the first start" if along == "time" else ALONG[along]
    alt = f"Best value by {unit}. {'; '.join(words)}."
    return Chart("Best so far", layers, ChartAxis(unit, zero=True), ChartAxis("best so far"), alt, legend=True)


def distributions(studies: Named) -> Chart | None:
    """The distributions of the complete trials' values."""
    groups = [(name, columns.values[columns.complete(), 0]) for name, columns in studies[:MOST_STUDIES]]
    groups = [(name, values) for name, values in groups if len(values)]
    return edf_chart(groups) if groups else None
