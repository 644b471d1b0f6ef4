"""The steps at which trials were cut."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from hopaas_p2p.analysis import palette
from hopaas_p2p.analysis.chart import Chart, ChartAxis, Series
from hopaas_p2p.analysis.table import TrialTable
from hopaas_p2p.core.records import TrialState

_BARS: Final = 40


def pruned_at(columns: TrialTable) -> tuple[list[tuple[int, int]], Chart] | None:
    """[(step, trials pruned there)], and the chart; many steps are gathered in bars of equal width."""
    mask = columns.is_(TrialState.PRUNED) & np.isfinite(columns.last_step)
    if not mask.any():
        return None
    steps, counts = np.unique(columns.last_step[mask].astype(np.int64), return_counts=True)
    table = list(zip(steps.tolist(), counts.tolist(), strict=True))
    width = max(1, math.ceil((int(steps[-1]) - int(steps[0]) + 1) / _BARS))
    bars = np.bincount((steps - steps[0]) // width, weights=counts).astype(np.int64)
    starts = steps[0] + width * np.arange(len(bars))
    names = [str(start) if width == 1 else f"{start} to {start + width - 1}" for start in starts.tolist()]
    busiest = max(table, key=lambda pair: pair[1])
    alt = (
        f"{int(mask.sum()):,} trials were pruned between steps {table[0][0]} and {table[-1][0]}, most of them, "
        f"{busiest[1]:,}, after step {busiest[0]}."
    )
    data = {"step": np.array(names), "trials": bars}
    x, y = ChartAxis("last step reported", choices=tuple(names)), ChartAxis("trials pruned", zero=True, whole=True)
    series = Series("pruned", "bars", data, palette.PRUNED)
    return table, Chart("Where trials were pruned", [series], x, y, alt, height=260)
