"""Studies beside each other: a table, the best so far, and the distribution of values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from dashboard_app.views import spec
from dashboard_app.views.columns import Columns
from dashboard_app.views.history import ALONG, Along, positions, records
from dashboard_app.views.spec import Chart
from dashboard_app.views.spread import edf_chart
from dashboard_app.views.thin import thin_line
from hopaas_p2p.core.records import TrialState

if TYPE_CHECKING:
    import pandas as pd

MOST_STUDIES: Final = 8
_DASHES: Final = ("solid", "dashed", "dotted")

Named = Sequence[tuple[str, Columns]]


def table(studies: Named) -> pd.DataFrame:
    """One row a study. `trials to 95 %`: complete trials until the best had come 95 % of its way from the first."""
    import pandas as pd

    rows = []
    for name, columns in studies:
        told = columns.told()
        best = columns.best()
        hours = float(np.nansum(columns.seconds())) / 3600
        rows.append({
            "study": name,
            "direction": ", ".join(columns.directions),
            "trials": len(columns),
            "complete": int(columns.is_(TrialState.COMPLETE).sum()),
            "pruned": int(columns.is_(TrialState.PRUNED).sum()),
            "failed": int(columns.is_(TrialState.FAIL).sum()),
            "best": None if best is None else float(columns.values[best, 0]),
            "median": float(np.median(columns.values[told, 0])) if told.any() else None,
            "trials to 95 %": trials_to(columns),
            "compute-hours": round(hours, 2),
        })  # fmt: skip
    return pd.DataFrame(rows)


def trials_to(columns: Columns, share: float = 0.95) -> int | None:
    """How many complete trials it took until the best had come this share of its whole way."""
    cost = columns.cost()[columns.told()]
    if not len(cost):
        return None
    so_far = np.minimum.accumulate(cost)
    goal = so_far[0] + share * (so_far[-1] - so_far[0])
    return int(np.argmax(so_far <= goal)) + 1


def best_so_far(studies: Named, *, along: Along = "number") -> Chart | None:
    """A line a study. Time is counted from each study's first start, in hours, so that they begin together."""
    layers, words = [], []
    for at, (name, columns) in enumerate(studies[:MOST_STUDIES]):
        x, told = positions(columns, along), columns.told()
        if along == "time":
            x = (x - np.nanmin(columns.start)) / 3600 if np.isfinite(columns.start).any() else x
        rows = records(x, columns.cost(), told)
        if not len(rows):
            continue
        best = columns.values[rows, 0]
        until = float(np.nanmax(x[told]))
        kept = thin_line(best, most=600)
        colour = spec.COLOURS[at % len(spec.COLOURS)]
        points = spec.frame(along=np.append(x[rows][kept], until), best=np.append(best[kept], best[-1]))
        look = {"type": _DASHES[at % 3], "width": 2, "color": colour}
        layers.append(spec.line(name, points, colour=colour, step="end", lineStyle=look))
        words.append(f"{name}: {spec.number(float(best[-1]))} after {spec.number(float(x[rows[-1]]))}")
    if not layers:
        return None
    unit = "hours since the first start" if along == "time" else ALONG[along]
    option = spec.base(layers, xAxis=spec.axis(unit, tight=False), yAxis=spec.axis("best so far", nameGap=44))
    option["legend"]["show"] = True
    return Chart("Best so far", option, f"Best value along {unit}. {'; '.join(words)}.")


def distributions(studies: Named) -> Chart | None:
    """The distributions of the complete trials' values."""
    groups = [(name, columns.values[columns.told(), 0]) for name, columns in studies[:MOST_STUDIES]]
    groups = [(name, values) for name, values in groups if len(values)]
    return edf_chart(groups) if groups else None
