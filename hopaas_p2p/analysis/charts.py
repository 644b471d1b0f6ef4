"""The charts of a study and of a trial. Large data sets are sampled, and the captions say so."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np

from hopaas_p2p.analysis import facts, palette
from hopaas_p2p.analysis.chart import (
    FAINT,
    MOST,
    PLAIN,
    Chart,
    ChartAxis,
    Data,
    Series,
    axis_of,
    bundled,
    data_of,
    downsample_points,
    finite,
    label,
    number,
    spread,
    value_axis,
)
from hopaas_p2p.analysis.importance import Importance
from hopaas_p2p.analysis.table import Floats, Ints, Mask, Parameter, TrialTable
from hopaas_p2p.core.inherited import inherited
from hopaas_p2p.core.lineage import segments
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.state import State, Trial

Along = Literal["number", "time", "compute"]

ALONG: Final[dict[Along, str]] = {"number": "trial", "time": "time", "compute": "compute-hours spent"}
_CUT: Final = 40  # pruned curves that are drawn
_WHOLE: Final = 20
_RUNNING: Final = 20
_LINES: Final = 600
_SLICE: Final = 2000
_POINTS: Final = 400
_FEW: Final = 40
_MEDIAN_OF: Final = 2000  # the most complete trials in the median curve
_NO_BEST: Final = "none of them satisfies the constraints"


def positions(columns: TrialTable, along: Along) -> Floats:
    """Each trial's position on the axis, which is its number, when it ended (in seconds since 1970), or compute-hours.

    The compute-hours at a trial's end are the total time for which it and all trials that ended before had run.
    """
    if along == "number":
        return columns.number.astype(np.float64)
    if along == "time":
        return columns.end
    total: Floats = np.empty(len(columns))
    order = np.argsort(columns.end, kind="stable")  # unfinished trials, NaN, come last
    total[order] = np.cumsum(np.nan_to_num(columns.seconds()[order])) / 3600
    return np.where(np.isnan(columns.end), np.nan, total)


def records(x: Floats, cost: Floats, complete: Mask) -> Ints:
    """The rows that were the best so far when they ended, in the order of x. Among equals, only the earliest counts."""
    rows = np.flatnonzero(complete & np.isfinite(x))
    rows = rows[np.argsort(x[rows], kind="stable")]
    costs = cost[rows]
    before = np.concatenate([[np.inf], np.minimum.accumulate(costs)[:-1]]) if len(rows) else costs
    return rows[costs < before]


def history(
    columns: TrialTable,
    objective: int = 0,
    shown: Mask | None = None,
    *,
    along: Along = "number",
    most: int = MOST,
    ignored: Collection[tuple[str, int]] = (),
) -> Chart | None:
    """Every trial's value, and the best so far, with at most about `most` points; None if there is nothing to show.

    The best so far is that of the trials shown. Compute-hours are those of the whole study. `ignored` lists earlier
    studies that are now ignored as priors, each with the trial since which it has been.
    """
    x = positions(columns, along)
    complete = columns.complete(objective, shown) & np.isfinite(x)
    if not complete.any():
        return None
    y = columns.values[:, objective]
    best_rows = records(x, columns.cost(objective), complete)
    single = len(columns.directions) == 1
    pruned = columns.is_(TrialState.PRUNED) & np.isfinite(columns.last) & np.isfinite(x) & single
    pruned = pruned if shown is None else pruned & shown
    place = x * 1000 if along == "time" else x
    name = columns.objectives[objective]
    value, far = value_axis(name, np.concatenate([y[complete], columns.last[pruned]]), columns.worst(objective))
    count, cut_short = int(complete.sum()), int(pruned.sum())

    def points(values: Floats, of: Mask, room: int, also: Ints) -> Data:
        rows = np.flatnonzero(of)
        rows = np.union1d(rows[downsample_points(place[rows], values[rows], most=room)], also)
        return {"along": place[rows], "value": values[rows], "trial": rows}

    layers = []  # a quarter of the points is for pruned trials; each kind can use what the other leaves
    if cut_short:
        cut = points(columns.last, pruned, max(most // 4, most - count), np.empty(0, np.int64))
        layers.append(
            Series(f"{columns.cut_short}, at its last report", "points", cut, palette.PRUNED, 5, "emptyDiamond")
        )
    layers.append(Series("complete", "points", points(y, complete, max(most * 3 // 4, most - cut_short), best_rows)))
    total, shown_points = count + cut_short, sum(layer.drawn for layer in layers)
    layers += _violating(columns, layers[-1])
    until = float(np.nanmax(place[complete | pruned]))
    if len(best_rows):
        line = {"along": np.append(place[best_rows], until), "best": np.append(y[best_rows], y[best_rows[-1]])}
        layers.append(Series("best so far", "steps", line, palette.BEST, 2))
        best = f"trial {best_rows[-1]} with {number(float(y[best_rows[-1]]))}; improvements: {len(best_rows) - 1}."
    else:
        best = "unknown, because no trial satisfies the constraints."
    if ignored:
        drawn = [(one, trial) for one, trial in ignored if np.isfinite(y[trial])]
        said = [f"From here on, {label(one)} is ignored" for one, _ in drawn]
        rows = np.array([trial for _, trial in drawn], np.int64)
        marks: Data = {"along": place[rows], "value": y[rows], "trial": rows, "said": said}
        layers.append(Series("an earlier study is ignored", "points", marks, palette.LOST, 10, "triangle"))
    many = "" if single else f" of {name} ({columns.directions[objective]})"
    alt = f"History{many} by {ALONG[along]}: {count:,} complete and {cut_short:,} {columns.cut_short} trials; "
    alt += f"the best is {best}"
    alt += "".join(f" {label(one)} is ignored from trial {trial} on." for one, trial in ignored)
    caption = f"{shown_points:,} of {total:,} drawn. {far}".strip() if shown_points < total else far
    return Chart(f"History{many}", layers, ChartAxis(ALONG[along], time=along == "time"), value, alt, caption)


def pareto(columns: TrialTable, shown: Mask | None = None, *, first: int = 0, second: int = 1) -> Chart | None:
    """Two of the objectives plotted against each other, with the trials on the front of all objectives marked."""
    if len(columns.directions) < 2:
        return None
    mask = columns.complete(first, shown) & columns.complete(second)
    rows, front = np.flatnonzero(mask), columns.front(mask)
    if not len(rows):
        return None
    x, y = columns.values[:, first], columns.values[:, second]
    drawn, along = np.union1d(rows[downsample_points(x[rows], y[rows])], front), front[np.argsort(x[front])]
    layers = [
        Series(name, "points", {"first": x[some], "second": y[some], "trial": some}, *look)
        for name, some, *look in (("complete", drawn, FAINT), ("on the front", along, palette.BEST, 11, "diamond"))
        if len(some)
    ]
    layers += _violating(columns, layers[0])
    x_axis, y_axis = (
        value_axis(f"{columns.objectives[at]} ({columns.directions[at]})", columns.values[rows, at])[0]
        for at in (first, second)
    )
    total = len(columns.directions)
    alt = f"Pareto front of {total} objectives: {len(front)} of {len(rows):,} complete trials."
    caption = f"{len(drawn):,} of {len(rows):,} drawn" if len(drawn) < len(rows) else ""
    return Chart("Pareto front", layers, x_axis, y_axis, alt, caption)


def _violating(columns: TrialTable, of: Series) -> list[Series]:
    """A ring around each of these points whose trial violates its constraints."""
    bad = columns.infeasible[of.data["trial"]]
    rings = {name: column[bad] for name, column in of.data.items()}
    return [Series("violates the constraints", "points", rings, FAINT, 10, "emptyCircle")] if bad.any() else []


def importance(found: Importance) -> Chart | None:
    """How much each parameter matters, with the most important one on top; None if this is unknown."""
    if not found.shares:
        return None
    shares = found.shares[::-1]  # the first row is drawn at the bottom
    names = tuple(label(name, 24) for name, _ in shares)
    percent = np.array([round(100 * share, 1) for _, share in shares])
    bars = Series("share", "bars", {"share": percent, "parameter": np.array(names)})
    alt = "Importance: " + ", ".join(f"{name} {share:.0%}" for name, share in found.shares)
    x, height = ChartAxis("share, %", 0, zero=True), 90 + 30 * len(shares)
    return Chart("Importance", [bars], x, ChartAxis(choices=names), alt, found.note, height)


def slice_(
    columns: TrialTable, name: str, objective: int = 0, shown: Mask | None = None, *, most: int = _SLICE
) -> Chart | None:
    """The objective's value against one parameter; None if there is nothing to draw."""
    mask = columns.complete(objective, shown) & np.isfinite(columns.params[name])
    rows = np.flatnonzero(mask)
    if not len(rows):
        return None
    one, best = columns.parameters[name], columns.best(objective, mask)
    x, y = columns.params[name], columns.values[:, objective]
    drawn = rows[downsample_points(x[rows], y[rows], most=most)]
    top = np.array([] if best is None else [best], np.int64)
    layers = []
    for series, some, *look in (("complete", drawn, PLAIN), ("best", top, palette.BEST, 14, "diamond")):
        if not len(some):
            continue
        at = [label(value_text(one, value), 16) for value in x[some]] if one.choices is not None else x[some]
        layers.append(Series(series, "points", {"parameter": at, "value": y[some], "trial": some}, *look))
    value_, _ = value_axis(columns.objectives[objective], y[rows], columns.worst(objective))
    said = _NO_BEST if best is None else f"the best has {name} = {value_text(one, x[best])}"
    alt = f"Value over {name}: {facts.count(len(rows), 'complete trial')}; {said}."
    caption = f"{len(drawn):,} of {len(rows):,} drawn" if len(drawn) < len(rows) else ""
    return Chart(f"Slice: {name}", layers, axis_of(one), value_, alt, caption, height=300)


def value_text(one: Parameter, value: float) -> str:
    """A parameter's value as the objective saw it; empty for a trial without it."""
    if np.isnan(value):
        return ""
    if one.choices is None:
        return number(float(value))
    return one.choices[int(value)] if 0 <= value < len(one.choices) else "?"


def parallel(columns: TrialTable, *names: str, objective: int = 0, shown: Mask | None = None) -> Chart | None:
    """One line per trial across its parameters to its value. The best trial is drawn last.

    If there are too many trials, half of the lines are the best trials, and the others are an even sample of the rest.
    A missing parameter leaves a gap.
    """
    ordered = columns.ranked(objective, columns.complete(objective, shown))
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
    caption = facts.count(count, "complete trial")
    caption += f", of which {len(drawn):,} are drawn, the best among them" if len(drawn) < count else ""
    said = _NO_BEST if columns.infeasible[drawn[-1]] else f"the best is trial {drawn[-1]}"
    alt = f"Parallel coordinates of {facts.count(len(drawn), 'trial')} over {', '.join(names)}; {said}."
    axes = (*(axis_of(columns.parameters[name]) for name in names), value)
    return Chart("Parallel coordinates", [lines], ChartAxis(), value, alt, caption, 430, axes=axes)


def curves(state: State, columns: TrialTable) -> Chart | None:
    """Reports by step, of the best trial, the running trials, and samples of complete and pruned ones.

    With rungs or a population, the curve of a configuration goes through all its trials.
    """
    mask = columns.steps > 1
    whole, cut, running = (
        np.flatnonzero(mask & columns.is_(one)) for one in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
    )
    if state.configurations.policy is not None:  # a trial that continued after a pause has the earlier reports, too
        cut = np.setdiff1d(cut, [trial.continues for trial in state.trials if trial.continues is not None])
    if len(columns.directions) != 1 or not (len(whole) or len(cut) or len(running)):
        return None
    some_cut, some_whole, running = cut[spread(len(cut), _CUT)], whole[spread(len(whole), _WHOLE)], running[:_RUNNING]
    top = columns.best(shown=mask)
    best = np.array([] if top is None else [top], np.int64)

    def layer(name: str, numbers: Ints, *look: Any) -> Series:
        lines = ((finite(_joined(state, number)), number) for number in numbers.tolist())
        return Series(name, "line", bundled(("step", "value", "trial"), lines), *look)

    layers = [
        layer(columns.cut_short, some_cut, palette.PRUNED, 1.0, "none", "dotted", 0.55),
        layer("complete", some_whole, PLAIN, 1.0, "none", "solid", 0.55),
        layer("running", running, palette.RUNNING, 1.8, "none", "dashed"),
        layer("best", best, palette.BEST, 3.0, "none"),
    ]
    about = [f"{len(some_cut)} of {len(cut):,} {columns.cut_short}", f"{len(some_whole)} of {len(whole):,} complete"]
    about += [f"{len(running)} running"] if len(running) else []
    about += [f"the best (trial {number})" for number in best]
    alt, caption = f"Learning curves: {', '.join(about)}.", f"Trials with at least two reports: {', '.join(about)}."
    layers = [layer for layer in layers if layer.drawn]
    if not layers:  # all reports are NaN
        return None
    values = np.concatenate([np.asarray(layer.data["value"], np.float64) for layer in layers])
    y, _ = value_axis("reported value", values, columns.worst())
    return Chart("Learning curves", layers, ChartAxis("step"), y, alt, caption, 400)


def _joined(state: State, number: int) -> Mapping[int, float]:
    """The reports that led to a trial. In a population, its own are only those from its last interval on."""
    if state.configurations.population is None:
        return state.trials[number].reports
    found: dict[int, float] = {}
    for part in segments(state.trials, number):
        found.update(inherited(state.trials[part.trial].reports, part.after + 1, part.last))
    return found


# --- one trial, and several side by side ---


def by_step(title: str, series: Sequence[Series], *, along: str = "reported value", height: int = 340) -> Chart | None:
    """Curves of one value by step; None if there is no point."""
    layers = [one for one in series if one.drawn]
    if not layers:
        return None
    axis, _ = value_axis(along, np.concatenate([np.array(one.data["value"]) for one in layers]))
    said = (f"{one.name}: {number(one.data['value'][-1])} at step {one.data['step'][-1]:.0f}" for one in layers)
    return Chart(title, layers, ChartAxis("step"), axis, f"{title} by step. {'; '.join(said)}.", height=height)


def reported(name: str, reports: Mapping[int, float], colour: str = PLAIN, width: float = 3) -> Series:
    """Reported or logged values by step."""
    points = finite(reports, most=_POINTS)
    return Series(name, "line", data_of(points), colour, width, "marks" if len(points) < _FEW else "circle")


def curve(state: State, columns: TrialTable, number_: int) -> Chart | None:
    """The trial's reports by step, with those of the best trial and the median of the complete trials."""
    best = columns.best()
    own, others = reported(f"trial {number_}", state.trials[number_].reports), [_median(state, columns, number_)]
    if best is not None and best != number_:
        others.append(reported(f"best, trial {best}", state.trials[best].reports, palette.BEST, 2))
    return by_step("Learning curve", [*others, own]) if own.drawn else None


def metrics(trial: Trial, best: Trial | None = None) -> list[Chart]:
    """One chart per metric that has at least two values, with the best trial's curve of the same metric."""
    charts = []
    for name, values in list(trial.metrics.items()):
        layers = [reported(f"trial {trial.number}", values)]
        if layers[0].drawn < 2:
            continue
        if best is not None and best.number != trial.number:
            layers.insert(0, reported(f"best, trial {best.number}", best.metrics.get(name, {}), palette.BEST, 2))
        charts.append(by_step(name, layers, along=name, height=240))
    return [one for one in charts if one is not None]


def _median(state: State, columns: TrialTable, number: int) -> Series:
    """The median report of the other complete trials at each step that at least three of them reported."""
    rows = np.flatnonzero(columns.is_(TrialState.COMPLETE) & (columns.steps > 0) & (columns.number != number))
    by_step: dict[int, list[float]] = {}
    for row in rows[-_MEDIAN_OF:].tolist():
        for step, value in list(state.trials[row].reports.items()):
            by_step.setdefault(step, []).append(value)
    with np.errstate(over="ignore"):  # the mean of two of the largest numbers overflows
        medians = {
            step: float(np.nanmedian(values))
            for step, values in by_step.items()
            if len(values) >= 3 and np.isfinite(values).any()
        }
    return Series("median of complete trials", "line", data_of(finite(medians)), FAINT, 2, "none", "dashed")
