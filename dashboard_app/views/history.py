"""How the study went: every trial's value, by number, by time or by compute spent, and the best so far."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

import numpy as np

from dashboard_app.views import spec
from dashboard_app.views.downsample import MOST, downsample_points
from dashboard_app.views.spec import ChartSpec
from hopaas_p2p.analysis import palette
from hopaas_p2p.analysis.table import Floats, Ints, Mask, TrialTable
from hopaas_p2p.core.records import TrialState

Along = Literal["number", "time", "compute"]

ALONG: Final[dict[Along, str]] = {"number": "trial", "time": "time", "compute": "compute-hours spent"}
_SHOWN_SITES: Final = 7


def compute_hours(columns: TrialTable) -> Floats:
    """The hours that all trials together had run when each trial ended; NaN where that is not known.

    Every ended trial counts: COMPLETE, PRUNED and FAIL. What still runs counts when it ends.
    """
    seconds = columns.seconds()
    order = np.argsort(np.where(np.isnan(columns.end), np.inf, columns.end), kind="stable")
    total: Floats = np.empty(len(columns))
    total[order] = np.cumsum(np.nan_to_num(seconds[order])) / 3600
    return np.where(np.isnan(columns.end), np.nan, total)


def positions(columns: TrialTable, along: Along) -> Floats:
    """Each trial's position on the axis: its number, seconds since 1970, or hours."""
    if along == "number":
        return columns.number.astype(np.float64)
    return columns.end if along == "time" else compute_hours(columns)


def records(x: Floats, cost: Floats, complete: Mask) -> Ints:
    """The rows that were the best so far when they came, in the order of x; the earliest of equals."""
    rows = np.flatnonzero(complete & np.isfinite(x))
    rows = rows[np.argsort(x[rows], kind="stable")]
    costs = cost[rows]
    before = np.concatenate([[np.inf], np.minimum.accumulate(costs)[:-1]]) if len(rows) else costs
    return rows[costs < before]


def history(
    columns: TrialTable,
    *,
    along: Along = "number",
    objective: int = 0,
    by_site: bool = False,
    shown: Mask | None = None,
    most: int = MOST,
) -> ChartSpec | None:
    """The chart, of at most about `most` points; None when there is nothing to see yet.

    The best so far is that of the trials shown. Compute-hours are those of the whole study.
    """
    x = positions(columns, along)
    mask = np.ones(len(columns), dtype=np.bool_) if shown is None else shown
    complete = columns.complete(objective) & mask & np.isfinite(x)
    if not complete.any():
        return None
    y = columns.values[:, objective]
    best_rows = records(x, columns.cost(objective), complete)
    single = len(columns.directions) == 1
    pruned = columns.is_(TrialState.PRUNED) & np.isfinite(columns.last) & np.isfinite(x) & mask & single
    place = x * 1000 if along == "time" else x
    log = spec.wants_log(np.concatenate([y[complete], columns.last[pruned]]))
    minimize = columns.directions[objective] == "minimize"
    low, high = (None, None) if log else spec.robust_limits(y[complete], minimize=minimize)
    count, cut_short = int(complete.sum()), int(pruned.sum())

    def points(values: Floats, rows: Ints) -> spec.Rows:
        return spec.frame(along=place[rows], value=values[rows], trial=rows)

    def drawn(values: Floats, of: Mask, room: int) -> Ints:
        rows = np.flatnonzero(of)
        return rows[downsample_points(place[rows], values[rows], most=room)]

    layers = []  # a quarter is for pruned trials; what one kind leaves is the other's
    if cut_short:
        cut = points(columns.last, drawn(columns.last, pruned, max(most // 4, most - count)))
        name = "pruned, at its last report"
        layers.append(spec.scatter(name, cut, colour=palette.PRUNED, symbol="emptyDiamond", size=5))
    rows = np.union1d(drawn(y, complete, max(most * 3 // 4, most - cut_short)), best_rows)
    layers += clouds(columns, rows, lambda rows: points(y, rows), by_site=by_site)
    total, shown_points = count + cut_short, sum(len(layer.rows) for layer in layers)
    until = float(np.nanmax(place[complete | pruned]))
    best = best_rows[-1]
    line = spec.frame(along=np.append(place[best_rows], until), best=np.append(y[best_rows], y[best]))
    layers.append(spec.line("best so far", line, colour=spec.BEST, step="end", z=5))
    option = spec.base(
        layers,
        xAxis=spec.axis(ALONG[along], time=along == "time"),
        yAxis=spec.axis("value, log scale" if log else "value", log=log, min=low, max=high, nameGap=44),
        dataZoom=[{"type": "inside", "zoomOnMouseWheel": "shift"}],
    )
    far = int((y[complete] > (np.inf if high is None else high)).sum())
    far += int((y[complete] < (-np.inf if low is None else low)).sum())
    notes = [f"{shown_points:,} of {total:,} drawn"] if shown_points < total else []
    notes += [f"{far:,} outlying value{'s lie' if far > 1 else ' lies'} outside the chart"] if far else []
    many = "" if single else f" of objective {objective + 1} ({columns.directions[objective]})"
    alt = (
        f"History{many} by {ALONG[along]}: {count:,} complete and {cut_short:,} pruned trials; the best is "
        f"trial {best} with {spec.number(float(y[best]))}; it improved {len(best_rows) - 1} times."
    )
    return ChartSpec(f"History{many}", option, alt, ". ".join(notes))


def clouds(
    columns: TrialTable, rows: Ints, points: Callable[[Ints], spec.Rows], *, by_site: bool, colour: str = spec.PLAIN
) -> list[spec.Layer]:
    """These complete trials as one cloud of points, or as one per site."""
    if not by_site:
        return [spec.scatter("complete", points(rows), colour=colour, size=5)]
    return [
        spec.scatter(name, points(rows[mine]), colour=spec.COLOURS[at], symbol=spec.SYMBOLS[at], size=6)
        for at, name, mine in sites_of(columns, rows)
    ]


def sites_of(columns: TrialTable, rows: Ints) -> list[tuple[int, str, Mask]]:
    """(place in the palette, name, which of the rows), the busiest site first; the rest is "other sites"."""
    codes, counts = np.unique(columns.site[rows], return_counts=True)
    order = codes[np.argsort(-counts, kind="stable")]
    found = [
        (place, f"site {columns.sites[code]}", columns.site[rows] == code)
        for place, code in enumerate(order[:_SHOWN_SITES])
    ]
    rest = np.isin(columns.site[rows], order[_SHOWN_SITES:])
    return [*found, (_SHOWN_SITES, "other sites", rest)] if rest.any() else found
