"""The content of a study's card, and several studies side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from hopaas_p2p.analysis import tiles
from hopaas_p2p.analysis.chart import Chart, ChartAxis, cut, dashed, number, spread, value_axis
from hopaas_p2p.analysis.charts import ALONG, Along, positions, records
from hopaas_p2p.analysis.facts import counts, state_word
from hopaas_p2p.analysis.spending import spending
from hopaas_p2p.analysis.table import TrialTable, place
from hopaas_p2p.core.state import State
from hopaas_p2p.peer.liveness import SignOfLife, any_alive

MOST_STUDIES: Final = 8
_POINTS: Final = 48
_FIRST_LINE: Final = 140


def card(state: State, columns: TrialTable, signs: Mapping[str, SignOfLife]) -> dict[str, Any]:
    """The content of a study's card. `signs` has the signs of life of the peers that run its trials.

    `counts` has the number of trials in each state that occurs, and `sites` the number of live peers that run a trial
    at each site. `spark` is the best value over time, downsampled. `last` is when a trial last began or ended, in
    seconds since 1970.
    """
    sites = Counter(place(state, owner)[0] for owner, sign in signs.items() if sign.alive)
    times, so_far = np.concatenate([columns.start, columns.end]), np.empty(0)
    if len(columns.directions) == 1:
        best_of_two = np.maximum if columns.directions[0] == "maximize" else np.minimum
        so_far = best_of_two.accumulate(columns.values[columns.complete() & ~columns.infeasible, 0])
    return {
        "word": state_word(state, working=any_alive(signs.values())),
        "best": tiles.best(columns)[1:],
        "counts": {word.lower(): count for word, count in counts(state).items() if count},
        "used": state.used(),
        "budget": state.budget,
        "sites": dict(sorted(sites.items())),
        "spark": so_far[spread(len(so_far), _POINTS)].tolist(),
        "begun_by": next((info["user"] for info in list(state.peers.values()) if info.get("user")), ""),
        "last": float(np.nanmax(times)) if np.isfinite(times).any() else None,
    }


def first_line(note: str) -> str:
    """The first line of a note that is not empty, without Markdown's marks at its beginning."""
    texts = (line.strip().lstrip("#>*- ").strip() for line in note.splitlines())
    return cut(next(filter(None, texts), ""), _FIRST_LINE)


def summary(state: State, columns: TrialTable) -> dict[str, float | None]:
    """Numbers of a study, to compare it with others."""
    best = columns.best(0)
    return {
        "trials": len(columns),
        **{word.lower(): count for word, count in counts(state).items() if word not in ("RUNNING", "WAITING")},
        "best": None if best is None else float(columns.values[best, 0]),
        "compute-hours": round(spending(state).total["seconds"] / 3600, 2),
    }


def best_so_far(studies: Sequence[tuple[str, TrialTable]], *, along: Along = "number") -> Chart | None:
    """The best value so far, one line per study; None if no study has a value.

    Time is in hours since the start of each study's first trial.
    """
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
        points = {"along": np.append(x[rows], until), "best": np.append(best, best[-1])}
        layers.append(dashed(name, at, points, "steps"))
        words.append(f"{name}: {number(float(best[-1]))} after {number(float(x[rows[-1]]))}")
    if not layers:
        return None
    value, _ = value_axis("best so far", np.concatenate([layer.data["best"] for layer in layers]))
    unit = "hours since the first start" if along == "time" else ALONG[along]
    alt = f"Best value by {unit}. {'; '.join(words)}."
    return Chart("Best so far", layers, ChartAxis(unit, zero=True), value, alt)
