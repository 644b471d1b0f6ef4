"""The tiles at the top of report and monitor. Each has a name, a number, and a small line below."""

from __future__ import annotations

from hopaas_p2p.analysis.chart import number
from hopaas_p2p.analysis.facts import retried
from hopaas_p2p.analysis.table import TrialTable
from hopaas_p2p.core.state import COMPLETE, FAIL, PRUNED, State

Tile = tuple[str, str, str]


def best(columns: TrialTable) -> Tile:
    """The best value, or the number of trials on the front."""
    row = columns.best()
    if len(columns.directions) > 1:
        return "best", f"{len(columns.front()):,} on the front", f"of {len(columns.directions)} objectives"
    if row is None:
        return "best", "none", f"no {'feasible' if columns.infeasible.any() else 'complete'} trial yet"
    which = "highest" if columns.directions[0] == "maximize" else "lowest"
    return "best", number(float(columns.values[row, 0])), f"{which}, trial {row}"


def failed(state: State) -> Tile:
    """The number of failed trials that were not retried. Those that were retried are counted separately."""
    again = retried(state)
    over = f"of {sum(state.counts[one] for one in (COMPLETE, PRUNED, FAIL)):,} finished trials"
    return "failed", f"{state.counts[FAIL] - again:,}", over + (f"; {again:,} more retried" if again else "")
