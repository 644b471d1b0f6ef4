"""Studies: what a card says of one at a glance, and several beside each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from dashboard_app.views.spread import edf_chart
from hopaas_p2p.analysis.chart import Chart, ChartAxis, cut, dashed, downsample_line, number, spread, value_axis
from hopaas_p2p.analysis.charts import ALONG, Along, positions, records
from hopaas_p2p.analysis.facts import state_word
from hopaas_p2p.analysis.spending import spending
from hopaas_p2p.analysis.table import TrialTable, place
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.state import State
from hopaas_p2p.peer.liveness import SignOfLife, any_alive, owners_of

MOST_STUDIES: Final = 8
ARCHIVED: Final = "archived"
"""The tag that takes a study off the list."""
_POINTS: Final = 48
_FIRST_LINE: Final = 140


def card(
    state: State, columns: TrialTable, *, alive: Callable[[str], bool | None] = lambda _owner: True
) -> dict[str, Any]:
    """What distinguishes a study at a glance; `alive(owner)`: whether that peer is alive, None while that is not known.

    `counts` has the states that occur, `sites` the peers that run a trial there and show signs of life, `spark` the
    best value so far, downsampled, and `last` when a trial last began or ended (seconds since 1970).
    """
    owners = owners_of(state)
    signs = [SignOfLife(alive(owner), None) for owner in owners]
    sites = Counter(place(state, owner)[0] for owner in owners if alive(owner))
    times = np.concatenate([columns.start, columns.end])
    best, of, spark = _best(columns)
    return {
        "word": state_word(state, working=any_alive(signs)),
        "best": best,
        "best_of": of,
        "counts": {one.name.lower(): state.counts[one] for one in TrialState if state.counts[one]},
        "used": state.used(),
        "budget": state.budget,
        "sites": dict(sorted(sites.items())),
        "spark": spark,
        "begun_by": next((info["user"] for info in list(state.peers.values()) if info.get("user")), ""),
        "last": float(np.nanmax(times)) if np.isfinite(times).any() else None,
    }


def _best(columns: TrialTable) -> tuple[str, str, list[float]]:
    """The best in words, of what it is the best, and the way there."""
    if len(columns.directions) > 1:
        return f"{len(columns.front()):,} on the front", f"of {len(columns.directions)} objectives", []
    row = columns.best()
    if row is None:
        return "none", "no complete trial yet", []
    highest = columns.directions[0] == "maximize"
    so_far = (np.maximum if highest else np.minimum).accumulate(columns.values[columns.complete(), 0])
    spark = so_far[spread(len(so_far), _POINTS)].tolist()
    return number(float(columns.values[row, 0])), f"{'highest' if highest else 'lowest'}, trial {row}", spark


def first_line(note: str) -> str:
    """The first line of a note that is not empty, without Markdown's marks before it."""
    texts = (line.strip().lstrip("#>*- ").strip() for line in note.splitlines())
    return cut(next(filter(None, texts), ""), _FIRST_LINE)


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
    value, _ = value_axis("best so far", np.concatenate([layer.data["best"] for layer in layers]))
    unit = "hours since the first start" if along == "time" else ALONG[along]
    alt = f"Best value by {unit}. {'; '.join(words)}."
    return Chart("Best so far", layers, ChartAxis(unit, zero=True), value, alt, legend=True)


def distributions(studies: Named) -> Chart | None:
    """The distributions of the complete trials' values."""
    groups = [(name, columns.values[columns.complete(), 0]) for name, columns in studies[:MOST_STUDIES]]
    groups = [(name, values) for name, values in groups if len(values)]
    return edf_chart(groups) if groups else None
