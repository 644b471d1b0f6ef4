"""What the parameters do: importance, slice, contour and parallel coordinates."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING, Final

import numpy as np

from dashboard_app.views import spec
from dashboard_app.views.columns import Columns, Floats, Ints, Mask, Parameter
from dashboard_app.views.history import sites_of
from dashboard_app.views.spec import Chart
from dashboard_app.views.thin import thin_points
from hopaas_p2p.core.state import State
from hopaas_p2p.report.importance import importance as ped_anova

if TYPE_CHECKING:
    import pandas as pd

_BINS: Final = 20
_LINES: Final = 600
_SLICE: Final = 2000
_LEADERS: Final = 10


def importance(state: State, *, objective: int = 0, numbers: Container[int] | None = None) -> tuple[Chart | None, str]:
    """Which parameters matter, by PED-ANOVA; and a sentence on how that was found, or why it cannot be."""
    found = ped_anova(state, objective=objective, numbers=numbers)
    if not found.shares:
        return None, found.note
    shares = found.shares[::-1]  # ECharts draws from the bottom
    names = [spec.label(name, 24) for name, _ in shares]
    series = {
        "type": "bar", "itemStyle": {"color": spec.PLAIN}, "barMaxWidth": 22, "encode": {"x": 0, "y": 1},
        "label": {"show": True, "position": "right", "formatter": "{@[0]} %"},
    }  # fmt: skip
    percent = [round(100 * share, 1) for _, share in shares]
    option = spec.base(
        [spec.Layer(series, spec.frame(share=np.array(percent, dtype=np.float64), parameter=np.array(names)))],
        grid={"left": 12, "right": 60, "top": 10, "bottom": 34, "containLabel": True},
        xAxis=spec.axis("share, %", tight=False, min=0),
        yAxis={"type": "category"},
    )
    alt = "Importance: " + ", ".join(f"{name} {share:.0%}" for name, share in found.shares)
    return Chart("Importance", option, alt, found.note, height=90 + 30 * len(shares)), found.note


def slice_(
    columns: Columns, name: str, *, objective: int = 0, by_site: bool = False, shown: Mask | None = None
) -> Chart | None:
    """The value over one parameter. Choices are drawn a little apart, so that equal ones are seen as many."""
    rows = np.flatnonzero(_having(columns, (name,), objective, shown))
    if not len(rows):
        return None
    one = columns.parameters[name]
    x, y = columns.params[name], columns.values[:, objective]
    drawn = rows[thin_points(x[rows], y[rows], most=_SLICE)]
    groups = sites_of(columns, drawn) if by_site else [(0, "complete", np.ones(len(drawn), dtype=np.bool_))]
    layers = [
        spec.scatter(
            label, _rows(columns, name, y, drawn[mine]), colour=spec.COLOURS[at], symbol=spec.SYMBOLS[at], size=5
        )
        for at, label, mine in groups
    ]
    best = rows[np.argmin(columns.cost(objective)[rows])]
    mark = _rows(columns, name, y, rows[rows == best])
    layers.append(spec.scatter("best", mark, colour=spec.BEST, symbol="diamond", size=14, z=5))
    low, high = spec.robust_limits(y[rows], minimize=columns.directions[objective] == "minimize")
    apart = {"jitter": 26, "jitterOverlap": True} if one.choices is not None else {}
    option = spec.base(
        layers, xAxis=spec.parameter_axis(one, **apart), yAxis=spec.axis("value", min=low, max=high, nameGap=44)
    )
    alt = f"Value over {name}: {len(rows):,} complete trials; the best has {name} = {told_value(one, x[best])}."
    caption = f"{len(drawn):,} of {len(rows):,} drawn" if len(drawn) < len(rows) else ""
    return Chart(f"Slice: {name}", option, alt, caption, height=300)


def _rows(columns: Columns, name: str, y: Floats, rows: Ints) -> pd.DataFrame:
    one, x = columns.parameters[name], columns.params[name][rows]
    shown = np.array([spec.label(told_value(one, value), 16) for value in x]) if one.choices is not None else x
    return spec.frame(parameter=shown, value=y[rows], trial=columns.number[rows])


def told_value(one: Parameter, value: float) -> str:
    """A parameter's value as the objective saw it."""
    if one.choices is None:
        return spec.number(float(value))
    return one.choices[int(value)] if 0 <= value < len(one.choices) else "?"


def _having(columns: Columns, names: tuple[str, ...], objective: int, shown: Mask | None) -> Mask:
    mask = columns.told(objective)
    for name in names:
        mask &= np.isfinite(columns.params[name])
    return mask if shown is None else mask & shown


def bins(columns: Columns, name: str, count: int = _BINS) -> tuple[Ints, list[str]]:
    """Each trial's bin along a parameter's range, and the bins' names; a choice is a bin of its own."""
    one = columns.parameters[name]
    x = columns.params[name]
    if one.choices is not None:
        return np.nan_to_num(x, nan=-1).astype(np.int64), [spec.label(choice, 16) for choice in one.choices]
    known = x[np.isfinite(x)]
    low = min([one.low, *known[:0], *([known.min()] if len(known) else [])])
    high = max([one.high, *([known.max()] if len(known) else [])])
    scale = np.log if one.log and low > 0 else (lambda value: value)
    edges = np.linspace(scale(low), scale(high), count + 1)
    back = np.exp if one.log and low > 0 else (lambda value: value)
    width = (edges[-1] - edges[0]) or 1.0
    with np.errstate(invalid="ignore", divide="ignore"):
        at = np.floor((scale(x) - edges[0]) / width * count)
    at = np.where(np.isfinite(at), np.clip(at, 0, count - 1), -1).astype(np.int64)
    centres = back((edges[:-1] + edges[1:]) / 2)
    return at, [spec.number(float(centre)) for centre in centres]


def contour(
    columns: Columns, first: str, second: str, *, objective: int = 0, shown: Mask | None = None
) -> Chart | None:
    """The mean value over two parameters, in bins; empty bins stay empty, for nothing is known there."""
    mask = _having(columns, (first, second), objective, shown)
    if not mask.any() or first == second:
        return None
    cells = contour_cells(columns, first, second, objective=objective, shown=shown)
    means = np.array([mean for _, _, mean, _ in cells])
    low, high = float(np.quantile(means, 0.02)), float(np.quantile(means, 0.98))
    ramp = ["#fde725", "#5ec962", "#21918c", "#3b528b", "#440154"]  # viridis: even in lightness
    minimize = columns.directions[objective] == "minimize"
    series = {"type": "heatmap", "encode": {"x": 0, "y": 1, "value": 2, "tooltip": [0, 1, 2, 3]}}
    names = bins(columns, first)[1], bins(columns, second)[1]
    rows = spec.frame(
        x=np.array([names[0][cell[0]] for cell in cells]),
        y=np.array([names[1][cell[1]] for cell in cells]),
        mean=means,
        trials=[cell[3] for cell in cells],
    )
    option = spec.base(
        [spec.Layer(series, rows)],
        grid={"left": 34, "right": 96, "top": 14, "bottom": 34, "containLabel": True},
        xAxis={**spec.parameter_axis(columns.parameters[first]), "type": "category", "data": names[0],
               "min": None, "max": None},
        yAxis={**spec.parameter_axis(columns.parameters[second]), "type": "category", "data": names[1],
               "min": None, "max": None, "nameGap": 46},
        visualMap={"min": low, "max": high if high > low else low + 1, "dimension": 2, "calculable": True, "right": 0,
                   "top": "middle", "text": ["high", "low"], "precision": 3, "itemHeight": 110,
                   "inRange": {"color": ramp[::-1]}},
    )  # fmt: skip
    pick = min if minimize else max
    top = pick(cells, key=lambda cell: cell[2])
    alt = (
        f"Mean value over {first} and {second}: {int(mask.sum()):,} trials in {len(cells)} cells; the best cell is at "
        f"{names[0][top[0]]}, {names[1][top[1]]} with {spec.number(top[2])}."
    )
    return Chart(f"Contour: {first}, {second}", option, alt, "Mean of the complete trials in each cell.", height=420)


def contour_cells(
    columns: Columns, first: str, second: str, *, objective: int = 0, shown: Mask | None = None
) -> list[tuple[int, int, float, int]]:
    """(bin of the first, bin of the second, mean value, trials) of each cell that has any."""
    mask = _having(columns, (first, second), objective, shown)
    x, y = bins(columns, first)[0][mask], bins(columns, second)[0][mask]
    key = x * 100_000 + y
    found, inverse = np.unique(key, return_inverse=True)
    counts = np.bincount(inverse)
    means = np.bincount(inverse, weights=columns.values[mask, objective]) / counts
    return [
        (int(k // 100_000), int(k % 100_000), float(m), int(c)) for k, m, c in zip(found, means, counts, strict=True)
    ]


def parallel(
    columns: Columns, names: tuple[str, ...], *, objective: int = 0, shown: Mask | None = None
) -> tuple[Chart, list[int]] | None:
    """A line a trial across the parameters to its value, and the trial numbers of the lines; axes can be brushed.

    Of many trials the better half of what fits is drawn, and an even sample of the others. A parameter that a trial
    does not have leaves a gap.
    """
    rows = np.flatnonzero(_having(columns, (), objective, shown))
    if not len(rows) or not names:
        return None
    cost = columns.cost(objective)
    ordered = rows[np.argsort(cost[rows], kind="stable")]
    if len(ordered) > _LINES:
        rest = ordered[_LINES // 2 :]
        ordered = np.concatenate([ordered[: _LINES // 2], rest[np.arange(_LINES // 2) * len(rest) // (_LINES // 2)]])
    drawn = ordered[::-1]  # the best on top
    y = columns.values[:, objective]
    parts = [columns.params[name][drawn] for name in names]
    lines = [["-" if np.isnan(value) else value for value in row] for row in zip(*map(_thinned, parts), strict=True)]
    values = spec.rounded(y[drawn])
    data = [[*row, value] for row, value in zip(lines, values, strict=True)]
    last = {"dim": len(names), "name": "value", "scale": True}
    slanted = {"nameRotate": 60, "nameGap": 8, "nameTextStyle": {"align": "left"}}
    axes = [{**_parallel_axis(columns.parameters[name]), "dim": at} for at, name in enumerate(names)]
    span = np.quantile(y[drawn], [0.0, 0.9] if columns.directions[objective] == "minimize" else [0.1, 1.0])
    option = spec.base(
        legend={"show": False},
        tooltip={"show": False},
        parallel={"left": 40, "right": 110, "top": 44, "bottom": 30,
                  "parallelAxisDefault": {"nameTruncate": {"maxWidth": 90}, "realtime": False}},
        parallelAxis=[*axes, last],
        visualMap={"min": float(span[0]), "max": float(span[1]) if span[1] > span[0] else float(span[0]) + 1,
                   "dimension": len(names), "right": 0, "top": "middle", "precision": 3, "text": ["high", "low"],
                   "itemHeight": 110, "inRange": {"color": ["#440154", "#3b528b", "#21918c", "#5ec962", "#fde725"]}},
        series=[{"type": "parallel", "data": data, "lineStyle": {"width": 1, "opacity": 0.45}, "inactiveOpacity": 0.03,
                 "activeOpacity": 0.9}],
        media=[{
            "query": {"maxWidth": 60 * (len(names) + 2)},
            "option": {
                "parallel": {"left": 16, "right": 44, "top": 110, "bottom": 62},
                "parallelAxis": [{"dim": at, **slanted} for at in range(len(axes) + 1)],
                "visualMap": {"orient": "horizontal", "top": "bottom", "right": "center"},
            },
        }],
    )  # fmt: skip
    numbers = [int(n) for n in columns.number[drawn]]
    caption = f"{len(drawn):,} of {len(rows):,} drawn, the best among them. " if len(drawn) < len(rows) else ""
    alt = f"Parallel coordinates of {len(drawn):,} trials over {', '.join(names)}; the best is trial {numbers[-1]}."
    caption += (
        "Drag along an axis to see the lines that pass there, click on it to see all. A range in the filter chooses "
        "trials on every page, and in the list below."
    )
    return Chart("Parallel coordinates", option, alt, caption, height=430), numbers


def leaders(
    columns: Columns, numbers: list[int], names: tuple[str, ...], *, objective: int = 0, most: int = _LEADERS
) -> list[tuple[int, str, list[str]]]:
    """The best of the lines of `parallel`, the very best first: number, value, parameters as the objective saw them."""
    found = []
    for number in numbers[: -most - 1 : -1]:
        row = int(np.searchsorted(columns.number, number))
        parts = [columns.params[name][row] for name in names]
        told = [
            "" if np.isnan(x) else told_value(columns.parameters[name], x) for name, x in zip(names, parts, strict=True)
        ]
        found.append((number, spec.number(float(columns.values[row, objective])), told))
    return found


def _thinned(column: Floats) -> list[float]:
    return [float(f"{value:.4g}") for value in column]


def _parallel_axis(one: Parameter) -> spec.Option:
    shown = {"name": spec.label(one.name, 20)}
    if one.choices is not None:
        return {"type": "category", "data": [spec.label(choice, 10) for choice in one.choices], **shown}
    limits = {"min": one.low, "max": one.high} if one.high > one.low else {}
    return {"type": "log" if one.log else "value", **limits, **shown}
