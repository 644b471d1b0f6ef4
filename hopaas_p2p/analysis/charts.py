"""The charts of a study and of a trial. Large data is sampled, and the caption says so."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, Literal

import numpy as np

from hopaas_p2p.analysis import palette
from hopaas_p2p.analysis.chart import (
    COLOURS,
    FAINT,
    MOST,
    PLAIN,
    SYMBOLS,
    Chart,
    ChartAxis,
    Data,
    Points,
    Series,
    axis_of,
    bundle,
    curves_chart,
    data_of,
    downsample_points,
    finite,
    label,
    number,
    spread,
    value_axis,
)
from hopaas_p2p.analysis.importance import Importance
from hopaas_p2p.analysis.table import EVERYTHING, Floats, Ints, Mask, Parameter, Selection, TrialTable
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.state import State, Trial

Along = Literal["number", "time", "compute"]

ALONG: Final[dict[Along, str]] = {"number": "trial", "time": "time", "compute": "compute-hours spent"}
_SHOWN_SITES: Final = 7
_CUT: Final = 40  # pruned curves that are drawn
_WHOLE: Final = 20
_RUNNING: Final = 20
_LINES: Final = 600
_SLICE: Final = 2000
_POINTS: Final = 400
_FEW: Final = 40
_MEDIAN_OF: Final = 2000  # complete trials that the median curve is made of, at most


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
    selection: Selection = EVERYTHING,
    *,
    along: Along = "number",
    most: int = MOST,
    ignored: Collection[tuple[str, int]] = (),
) -> Chart | None:
    """Every trial's value, and the best so far, with at most about `most` points; None when there is nothing to see.

    The best so far is that of the trials shown. Compute-hours are those of the whole study. `ignored` has earlier
    studies that no longer count, and the trial that decided it.
    """
    x, objective = positions(columns, along), selection.objective
    complete = columns.selected(selection) & np.isfinite(x)
    if not complete.any():
        return None
    y = columns.values[:, objective]
    best_rows = records(x, columns.cost(objective), complete)
    single = len(columns.directions) == 1
    pruned = columns.is_(TrialState.PRUNED) & np.isfinite(columns.last) & np.isfinite(x) & single
    pruned = pruned if selection.shown is None else pruned & selection.shown
    place = x * 1000 if along == "time" else x
    name = columns.objectives[objective]
    value, far = value_axis(name, np.concatenate([y[complete], columns.last[pruned]]), columns.worst(objective))
    count, cut_short = int(complete.sum()), int(pruned.sum())

    def points(values: Floats, rows: Ints) -> dict[str, Any]:
        return {"along": place[rows], "value": values[rows], "trial": rows}

    def drawn(values: Floats, of: Mask, room: int) -> Ints:
        rows = np.flatnonzero(of)
        return rows[downsample_points(place[rows], values[rows], most=room)]

    layers = []  # a quarter is for pruned trials; what one kind leaves is the other's
    if cut_short:
        cut = points(columns.last, drawn(columns.last, pruned, max(most // 4, most - count)))
        layers.append(Series("pruned, at its last report", "points", cut, palette.PRUNED, 5, "emptyDiamond"))
    rows = np.union1d(drawn(y, complete, max(most * 3 // 4, most - cut_short)), best_rows)
    layers += clouds(columns, rows, lambda rows: points(y, rows), by_site=selection.by_site)
    total, shown_points = count + cut_short, sum(layer.drawn for layer in layers)
    until = float(np.nanmax(place[complete | pruned]))
    best = best_rows[-1]
    line = {"along": np.append(place[best_rows], until), "best": np.append(y[best_rows], y[best])}
    layers.append(Series("best so far", "steps", line, palette.BEST, 2))
    if ignored:
        said = [f"From here on, {label(one)} is ignored" for one, _ in ignored]
        marks = points(y, np.array([trial for _, trial in ignored])) | {"said": said}
        layers.append(Series("an earlier study is ignored", "points", marks, palette.LOST, 10, "triangle"))
    notes = [f"{shown_points:,} of {total:,} drawn."] if shown_points < total else []
    many = "" if single else f" of {name} ({columns.directions[objective]})"
    alt = (
        f"History{many} by {ALONG[along]}: {count:,} complete and {cut_short:,} pruned trials; the best is "
        f"trial {best} with {number(float(y[best]))}; it improved {len(best_rows) - 1} times."
    )
    alt += "".join(f" {label(one)} is ignored from trial {trial} on." for one, trial in ignored)
    caption = " ".join([*notes, *([far] if far else [])])
    return Chart(f"History{many}", layers, ChartAxis(ALONG[along], time=along == "time"), value, alt, caption)


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
    x_axis, y_axis = (
        value_axis(f"{columns.objectives[at]} ({columns.directions[at]})", columns.values[rows, at])[0]
        for at in (first, second)
    )
    total = len(columns.directions)
    alt = f"{len(front)} of {len(rows):,} complete trials are on the Pareto front of {total} objectives."
    return Chart("Pareto front", layers, x_axis, y_axis, alt)


def clouds(
    columns: TrialTable, rows: Ints, points: Callable[[Ints], Data], *, by_site: bool, colour: str = PLAIN
) -> list[Series]:
    """These complete trials as one cloud of points, or as one per site."""
    if not by_site:
        return [Series("complete", "points", points(rows), colour)]
    return [
        Series(name, "points", points(rows[mine]), COLOURS[at], 6, SYMBOLS[at])
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


def importance(found: Importance) -> Chart | None:
    """Which parameters matter, the most important one on top; None where nobody can say."""
    if not found.shares:
        return None
    shares = found.shares[::-1]  # the first stands at the bottom
    names = tuple(label(name, 24) for name, _ in shares)
    percent = np.array([round(100 * share, 1) for _, share in shares])
    bars = Series("share", "bars", {"share": percent, "parameter": np.array(names)})
    alt = "Importance: " + ", ".join(f"{name} {share:.0%}" for name, share in found.shares)
    x, height = ChartAxis("share, %", 0, zero=True), 90 + 30 * len(shares)
    return Chart("Importance", [bars], x, ChartAxis(choices=names), alt, found.note, height)


def slice_(columns: TrialTable, name: str, selection: Selection = EVERYTHING, *, most: int = _SLICE) -> Chart | None:
    """The value over one parameter."""
    rows, objective = np.flatnonzero(columns.selected(selection, name)), selection.objective
    if not len(rows):
        return None
    one = columns.parameters[name]
    x, y = columns.params[name], columns.values[:, objective]
    drawn = rows[downsample_points(x[rows], y[rows], most=most)]

    def points(rows: Ints) -> Data:
        texts = [label(value_text(one, value), 16) for value in x[rows]] if one.choices is not None else x[rows]
        return {"parameter": texts, "value": y[rows], "trial": rows}

    layers = clouds(columns, drawn, points, by_site=selection.by_site)
    best = rows[np.argmin(columns.cost(objective)[rows])]
    layers.append(Series("best", "points", points(rows[rows == best]), palette.BEST, 14, "diamond"))
    value_, _ = value_axis(columns.objectives[objective], y[rows], columns.worst(objective))
    alt = f"Value over {name}: {len(rows):,} complete trials; the best has {name} = {value_text(one, x[best])}."
    caption = f"{len(drawn):,} of {len(rows):,} drawn" if len(drawn) < len(rows) else ""
    return Chart(f"Slice: {name}", layers, axis_of(one), value_, alt, caption, height=300)


def value_text(one: Parameter, value: float) -> str:
    """A parameter's value as the objective saw it; empty for a trial without it."""
    if np.isnan(value):
        return ""
    if one.choices is None:
        return number(float(value))
    return one.choices[int(value)] if 0 <= value < len(one.choices) else "?"


def parallel(columns: TrialTable, *names: str, selection: Selection = EVERYTHING) -> Chart | None:
    """One line per trial across the parameters to its value, the best one last.

    Of many trials the better half of what fits is drawn, and an even sample of the others. A parameter that a trial
    does not have leaves a gap.
    """
    objective = selection.objective
    ordered = columns.ranked(objective, columns.selected(selection))
    count = len(ordered)
    if not count or not names:
        return None
    if len(ordered) > _LINES:
        rest = ordered[_LINES // 2 :]
        ordered = np.concatenate([ordered[: _LINES // 2], rest[spread(len(rest), _LINES // 2)]])
    drawn = ordered[::-1]  # the best on top
    data = {f"parameter {at}": columns.params[name][drawn] for at, name in enumerate(names)}
    lines = Series("trials", "lines", data | {"value": columns.values[drawn, objective], "trial": drawn})
    value, _ = value_axis(columns.objectives[objective], columns.values[drawn, objective])
    value = value._replace(down=columns.directions[objective] == "maximize")
    caption = f"{count:,} complete trials"
    caption += f", of which {len(drawn):,} are drawn, the best among them" if len(drawn) < count else ""
    alt = f"Parallel coordinates of {len(drawn):,} trials over {', '.join(names)}; the best is trial {drawn[-1]}."
    axes = (*(axis_of(columns.parameters[name]) for name in names), value)
    return Chart("Parallel coordinates", [lines], ChartAxis(), value, alt, caption, 430, axes=axes)


def curves(state: State, columns: TrialTable, *, height: int = 400, median: bool = False) -> Chart | None:
    """Reports by step: the best trial, the running ones, samples of complete and pruned ones, perhaps their median."""
    mask = columns.steps > 1
    single = len(columns.directions) == 1
    whole = np.flatnonzero(mask & columns.is_(TrialState.COMPLETE))
    cut = np.flatnonzero(mask & columns.is_(TrialState.PRUNED))
    running = np.flatnonzero(mask & columns.is_(TrialState.RUNNING))[:_RUNNING]
    if not single or not (len(whole) or len(cut) or len(running)):
        return None
    some_cut, some_whole = cut[spread(len(cut), _CUT)], whole[spread(len(whole), _WHOLE)]
    best = columns.ranked(shown=mask)[:1]

    def drawn(numbers: Ints) -> list[tuple[int, Points]]:
        return [(number, finite(state.trials[number].reports)) for number in numbers.tolist()]

    middle = _median(state, columns, -1) if median else []
    layers = [
        bundle("pruned", drawn(some_cut), palette.PRUNED, "dotted", 1.0),
        bundle("complete", drawn(some_whole), PLAIN, "solid", 1.0),
        bundle("running", drawn(running), palette.RUNNING, "dashed", 1.8),
        Series("median of the complete", "line", data_of(middle), FAINT, 2, "none", "dashed"),
        bundle("best", drawn(best), palette.BEST, "solid", 3.0),
    ]
    about = [f"{len(some_cut)} of {len(cut):,} pruned", f"{len(some_whole)} of {len(whole):,} complete"]
    about += [f"{len(running)} running"] if len(running) else []
    about += [f"the best (trial {number})" for number in best]
    alt, caption = f"Learning curves: {', '.join(about)}.", f"Trials with at least two reports: {', '.join(about)}."
    minimize = columns.directions[0] == "minimize"
    return curves_chart(
        "Learning curves", layers, along="step", minimize=minimize, alt=alt, caption=caption, height=height
    )


# --- one trial ---


def curve(state: State, columns: TrialTable, number_: int) -> Chart | None:
    """The trial's reports by step, against the best trial's and the median of the complete ones."""
    median = _median(state, columns, number_)
    best = columns.best() if len(columns.directions) == 1 else None
    theirs = finite(state.trials[best].reports) if best is not None and best != number_ else []
    others = [
        Series("median of the complete", "line", data_of(median), FAINT, 2, dash="dashed"),
        Series(f"best, trial {best}", "line", data_of(theirs), palette.BEST, 2),
    ]
    reports = state.trials[number_].reports
    chart = reported(f"trial {number_}", reports, others=others)
    if chart is None:
        return None
    last = max(reports)
    there = dict(median).get(float(last))
    more = "" if there is None else f"; the median there is {number(there)}"
    return chart._replace(title="Learning curve", alt=f"Reports of trial {number_} over {chart.alt[:-1]}{more}.")


def reported(
    name: str, reports: Mapping[int, float], *, along: str = "reported value", others: Collection[Series] = ()
) -> Chart | None:
    """What was reported or logged by step; None without a finite value."""
    points = finite(reports, most=_POINTS)
    if not points:
        return None
    mine = Series(name, "line", data_of(points), PLAIN, 3, "marks" if len(points) < _FEW else "circle")
    alt = f"{len(reports):,} steps: the last is {number(points[-1][1])} at step {points[-1][0]:.0f}."
    layers = [*(one for one in others if one.drawn), mine]
    axis, _ = value_axis(along, np.concatenate([np.array(one.data["value"]) for one in layers]))
    return Chart("Reports", layers, ChartAxis("step"), axis, alt, height=340)


def metrics(trial: Trial, best: Trial | None = None) -> list[Chart]:
    """One chart per metric with two values or more; the best trial's curve of the same name beside it."""
    charts = []
    for name, values in list(trial.metrics.items()):
        others = []
        if best is not None and best.number != trial.number:
            theirs = data_of(finite(best.metrics.get(name, {}), most=_POINTS))
            others.append(Series(f"best, trial {best.number}", "line", theirs, palette.BEST, 2))
        chart = reported(f"trial {trial.number}", values, along=name, others=others)
        if chart is not None and chart.series[-1].drawn > 1:
            alt = f"{name} of trial {trial.number} over {chart.alt}"
            charts.append(chart._replace(title=name, alt=alt, height=240))
    return charts


def _median(state: State, columns: TrialTable, number: int) -> Points:
    """(step, median report of the complete trials there), where at least three reported."""
    rows = np.flatnonzero(columns.is_(TrialState.COMPLETE) & (columns.steps > 0) & (columns.number != number))
    by_step: dict[int, list[float]] = {}
    for row in rows[-_MEDIAN_OF:].tolist():
        for step, value in list(state.trials[row].reports.items()):
            by_step.setdefault(step, []).append(value)
    with np.errstate(over="ignore"):  # between two of the largest numbers
        return [
            (float(step), float(np.nanmedian(values)))
            for step, values in sorted(by_step.items())
            if len(values) >= 3 and np.isfinite(values).any()
        ]
