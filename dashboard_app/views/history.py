"""How the study went: every trial's value, by number, by time or by compute spent, and the best so far."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from dashboard_app.views import spec
from dashboard_app.views.columns import Columns, Floats, Ints, Mask
from dashboard_app.views.spec import Chart
from dashboard_app.views.thin import MOST, thin_points
from hopaas_p2p.core.records import TrialState

if TYPE_CHECKING:
    import pandas as pd

Along = Literal["number", "time", "compute"]

ALONG: Final[dict[Along, str]] = {"number": "trial", "time": "time", "compute": "compute-hours spent"}
_SHOWN_SITES: Final = 7


def compute_hours(columns: Columns) -> Floats:
    """Hours of running that all trials together had taken when each trial ended; NaN where that is not known.

    Every ended trial counts: COMPLETE, PRUNED and FAIL. What still runs counts when it ends.
    """
    seconds = columns.seconds()
    order = np.argsort(np.where(np.isnan(columns.end), np.inf, columns.end), kind="stable")
    total: Floats = np.empty(len(columns))
    total[order] = np.cumsum(np.nan_to_num(seconds[order])) / 3600
    return np.where(np.isnan(columns.end), np.nan, total)


def positions(columns: Columns, along: Along) -> Floats:
    """Where each trial stands on the axis that was asked for: a number, seconds since 1970, or hours."""
    if along == "number":
        return columns.number.astype(np.float64)
    return columns.end if along == "time" else compute_hours(columns)


def records(x: Floats, cost: Floats, told: Mask) -> Ints:
    """The rows that were the best so far when they came, in the order of x; the earliest of equals."""
    rows = np.flatnonzero(told & np.isfinite(x))
    rows = rows[np.argsort(x[rows], kind="stable")]
    costs = cost[rows]
    before = np.concatenate([[np.inf], np.minimum.accumulate(costs)[:-1]]) if len(rows) else costs
    return rows[costs < before]


def history(
    columns: Columns,
    *,
    along: Along = "number",
    objective: int = 0,
    by_site: bool = False,
    shown: Mask | None = None,
    most: int = MOST,
) -> Chart | None:
    """The chart, of at most about `most` points; None when nothing is to be seen yet.

    The best so far is that of the trials shown. Compute-hours are those of the whole study.
    """
    x = positions(columns, along)
    mask = np.ones(len(columns), dtype=np.bool_) if shown is None else shown
    told = columns.told(objective) & mask & np.isfinite(x)
    if not told.any():
        return None
    y = columns.values[:, objective]
    best_rows = records(x, columns.cost(objective), told)
    single = len(columns.directions) == 1
    pruned = columns.is_(TrialState.PRUNED) & np.isfinite(columns.last) & np.isfinite(x) & mask & single
    place = x * 1000 if along == "time" else x
    minimize = columns.directions[objective] == "minimize"
    low, high = spec.robust_limits(y[told], minimize=minimize)
    count, cut_short = int(told.sum()), int(pruned.sum())
    # a quarter is for pruned trials; what one kind leaves is the other's
    layers = [_cut(columns, place, pruned, max(most // 4, most - count))] if cut_short else []
    layers += _clouds(columns, place, y, told, best_rows, by_site=by_site, most=max(most * 3 // 4, most - cut_short))
    drawn = sum(len(layer.rows) for layer in layers)
    until = float(np.nanmax(place[told | pruned]))
    layers.append(_best_so_far(place[best_rows], y[best_rows], until))
    option = spec.base(
        layers,
        xAxis=spec.axis(ALONG[along], time=along == "time"),
        yAxis=spec.axis("value", min=low, max=high, nameGap=44),
        dataZoom=[{"type": "inside", "zoomOnMouseWheel": "shift"}],
    )
    best = best_rows[-1]
    cut = int(((y[told] > (np.inf if high is None else high)) | (y[told] < (-np.inf if low is None else low))).sum())
    notes = [f"{drawn:,} of {count + cut_short:,} drawn"] if drawn < count + cut_short else []
    notes += [f"{cut:,} far-off values lie outside"] if cut else []
    many = "" if single else f" of objective {objective + 1} ({columns.directions[objective]})"
    alt = (
        f"History{many} along {ALONG[along]}: {count:,} complete and {cut_short:,} pruned trials; the best is "
        f"trial {columns.number[best]} with {spec.number(float(y[best]))}; it improved {len(best_rows) - 1} times."
    )
    return Chart(f"History{many}", option, alt, ". ".join(notes))


def _points(columns: Columns, x: Floats, y: Floats, rows: Ints) -> pd.DataFrame:
    return spec.frame(along=x[rows], value=y[rows], trial=columns.number[rows])


def _cut(columns: Columns, x: Floats, pruned: Mask, most: int) -> spec.Layer:
    rows = np.flatnonzero(pruned)
    rows = rows[thin_points(x[rows], columns.last[rows], most=most)]
    points = _points(columns, x, columns.last, rows)
    return spec.scatter("pruned, at its last report", points, colour=spec.FAINT, symbol="emptyDiamond", size=5)


def _clouds(
    columns: Columns, x: Floats, y: Floats, told: Mask, best_rows: Ints, *, by_site: bool, most: int
) -> list[spec.Layer]:
    rows = np.flatnonzero(told)
    rows = np.union1d(rows[thin_points(x[rows], y[rows], most=most)], best_rows)
    if not by_site:
        return [spec.scatter("complete", _points(columns, x, y, rows), colour=spec.PLAIN, size=5)]
    return [
        spec.scatter(
            name, _points(columns, x, y, rows[mine]), colour=spec.COLOURS[place], symbol=spec.SYMBOLS[place], size=6
        )
        for place, name, mine in sites_of(columns, rows)
    ]


def sites_of(columns: Columns, rows: Ints) -> list[tuple[int, str, Mask]]:
    """(place in the palette, name, which of the rows), the busiest site first; what is too much is "other sites"."""
    codes, counts = np.unique(columns.site[rows], return_counts=True)
    order = codes[np.argsort(-counts, kind="stable")]
    found = [
        (place, f"site {columns.sites[code]}", columns.site[rows] == code)
        for place, code in enumerate(order[:_SHOWN_SITES])
    ]
    rest = np.isin(columns.site[rows], order[_SHOWN_SITES:])
    if rest.any():
        found.append((_SHOWN_SITES, "other sites", rest))
    return found


def _best_so_far(x: Floats, y: Floats, until: float) -> spec.Layer:
    points = spec.frame(along=np.append(x, until), best=np.append(y, y[-1]))
    return spec.line("best so far", points, colour=spec.BEST, step="end", z=5)
