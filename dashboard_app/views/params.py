"""What the parameters do: importance, slice, contour and parallel coordinates."""

from __future__ import annotations

import math
from collections.abc import Container
from typing import Final

import numpy as np

from dashboard_app.views import spec
from dashboard_app.views.downsample import downsample_points
from dashboard_app.views.history import clouds
from dashboard_app.views.spec import ChartSpec
from hopaas_p2p.analysis.importance import importance as ped_anova
from hopaas_p2p.analysis.table import Floats, Ints, Mask, Parameter, TrialTable
from hopaas_p2p.core.state import State

_BINS: Final = 20
_LINES: Final = 600
_SLICE: Final = 2000
_LEADERS: Final = 10


def importance(
    state: State, *, objective: int = 0, numbers: Container[int] | None = None
) -> tuple[ChartSpec | None, str]:
    """Which parameters matter, by PED-ANOVA; and a sentence on how that was computed, or why it cannot be."""
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
    return ChartSpec("Importance", option, alt, found.note, height=90 + 30 * len(shares)), found.note


def slice_(
    columns: TrialTable, name: str, *, objective: int = 0, by_site: bool = False, shown: Mask | None = None
) -> ChartSpec | None:
    """The value over one parameter. Choices are drawn a little apart, so that equal ones do not hide each other."""
    rows = np.flatnonzero(_having(columns, (name,), objective, shown))
    if not len(rows):
        return None
    one = columns.parameters[name]
    x, y = columns.params[name], columns.values[:, objective]
    drawn = rows[downsample_points(x[rows], y[rows], most=_SLICE)]

    def points(rows: Ints) -> spec.Rows:
        texts = [spec.label(value_text(one, value), 16) for value in x[rows]] if one.choices is not None else x[rows]
        return spec.frame(parameter=texts, value=y[rows], trial=rows)

    layers = clouds(columns, drawn, points, by_site=by_site)
    best = rows[np.argmin(columns.cost(objective)[rows])]
    layers.append(spec.scatter("best", points(rows[rows == best]), colour=spec.BEST, symbol="diamond", size=14, z=5))
    low, high = spec.robust_limits(y[rows], minimize=columns.directions[objective] == "minimize")
    apart = {"jitter": 26, "jitterOverlap": True} if one.choices is not None else {}
    option = spec.base(
        layers, xAxis=spec.parameter_axis(one, **apart), yAxis=spec.axis("value", min=low, max=high, nameGap=44)
    )
    alt = f"Value over {name}: {len(rows):,} complete trials; the best has {name} = {value_text(one, x[best])}."
    caption = f"{len(drawn):,} of {len(rows):,} drawn" if len(drawn) < len(rows) else ""
    return ChartSpec(f"Slice: {name}", option, alt, caption, height=300)


def value_text(one: Parameter, value: float) -> str:
    """A parameter's value as the objective saw it; empty for a trial without it."""
    if np.isnan(value):
        return ""
    if one.choices is None:
        return spec.number(float(value))
    return one.choices[int(value)] if 0 <= value < len(one.choices) else "?"


def _having(columns: TrialTable, names: tuple[str, ...], objective: int, shown: Mask | None) -> Mask:
    mask = columns.complete(objective)
    for name in names:
        mask &= np.isfinite(columns.params[name])
    return mask if shown is None else mask & shown


def bins(columns: TrialTable, name: str, count: int = _BINS) -> tuple[Ints, list[str]]:
    """Each trial's bin along a parameter's range, and the bins' names; a choice is a bin of its own.

    A bin of a whole-number parameter holds whole numbers, and is named after the first and the last.
    """
    one = columns.parameters[name]
    x = columns.params[name]
    if one.choices is not None:
        return np.nan_to_num(x, nan=-1).astype(np.int64), [spec.label(choice, 16) for choice in one.choices]
    known = x[np.isfinite(x)]
    low, high = min(one.low, known.min(initial=np.inf)), max(one.high, known.max(initial=-np.inf))
    log = one.log and low > 0
    if one.whole:
        ends = (low, high + 1, count + 1)
        firsts = np.unique(np.floor(np.geomspace(*ends) if log else np.linspace(*ends))[:-1])
        at = np.where(np.isfinite(x), np.clip(np.searchsorted(firsts, x, side="right") - 1, 0, None), -1)
        lasts = [*(firsts[1:] - 1), math.floor(high)]
        return at, [f"{a:.0f}" if a >= z else f"{a:.0f} to {z:.0f}" for a, z in zip(firsts, lasts, strict=True)]
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled, low, high = (np.log(each) if log else each for each in (x, low, high))
    edges = np.linspace(low, high, count + 1)
    at = np.floor((scaled - low) / ((high - low) or 1.0) * count)
    at = np.where(np.isfinite(at), np.clip(at, 0, count - 1), -1).astype(np.int64)
    centres = (edges[:-1] + edges[1:]) / 2
    return at, [spec.number(float(centre)) for centre in (np.exp(centres) if log else centres)]


def contour(
    columns: TrialTable, first: str, second: str, *, objective: int = 0, shown: Mask | None = None
) -> ChartSpec | None:
    """The mean value over two parameters, in bins; empty bins stay empty, because nothing is known there."""
    mask = _having(columns, (first, second), objective, shown)
    if not mask.any() or first == second:
        return None
    cells = contour_cells(columns, first, second, objective=objective, shown=shown)
    means = np.array([mean for _, _, mean, _ in cells])
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
        visualMap={**_colours(means, 0.02, 0.98), "dimension": 2, "calculable": True},
    )  # fmt: skip
    pick = min if columns.directions[objective] == "minimize" else max
    top = pick(cells, key=lambda cell: cell[2])
    alt = (
        f"Mean value over {first} and {second}: {int(mask.sum()):,} trials in {len(cells)} cells; the best cell is at "
        f"{names[0][top[0]]}, {names[1][top[1]]} with {spec.number(top[2])}."
    )
    return ChartSpec(
        f"Contour: {first}, {second}", option, alt, "Mean of the complete trials in each cell.", height=420
    )


def _colours(values: Floats, first: float, last: float) -> spec.Option:
    """A scale of colours between two quantiles of the values: viridis, which is even in lightness."""
    low, high = float(np.quantile(values, first)), float(np.quantile(values, last))
    return {
        "min": low, "max": high if high > low else low + 1, "right": 0, "top": "middle", "text": ["high", "low"],
        "precision": 3, "itemHeight": 110,
        "inRange": {"color": ["#440154", "#3b528b", "#21918c", "#5ec962", "#fde725"]},
    }  # fmt: skip


def contour_cells(
    columns: TrialTable, first: str, second: str, *, objective: int = 0, shown: Mask | None = None
) -> list[tuple[int, int, float, int]]:
    """(bin of the first, bin of the second, mean value, trials) of each cell that has any."""
    mask = _having(columns, (first, second), objective, shown)
    x, y = bins(columns, first)[0][mask], bins(columns, second)[0][mask]
    cells, inverse, counts = np.unique(x * 100_000 + y, return_inverse=True, return_counts=True)
    means = np.bincount(inverse, weights=columns.values[mask, objective]) / counts
    return list(zip(*(part.tolist() for part in (*np.divmod(cells, 100_000), means, counts)), strict=True))


def parallel(
    columns: TrialTable, names: tuple[str, ...], *, objective: int = 0, shown: Mask | None = None
) -> tuple[ChartSpec, list[int]] | None:
    """One line per trial across the parameters to its value, and the lines' trial numbers; axes can be brushed.

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
    lines = [
        ["-" if np.isnan(value) else value for value in row] for row in zip(*map(spec.rounded, parts), strict=True)
    ]
    values = spec.rounded(y[drawn])
    data = [[*row, value] for row, value in zip(lines, values, strict=True)]
    last = {"dim": len(names), "name": "value", "scale": True}
    slanted = {"nameRotate": 60, "nameGap": 8, "nameTextStyle": {"align": "left"}}
    axes = [{**_parallel_axis(columns.parameters[name]), "dim": at} for at, name in enumerate(names)]
    span = (0.0, 0.9) if columns.directions[objective] == "minimize" else (0.1, 1.0)
    option = spec.base(
        legend={"show": False},
        tooltip={"show": False},
        parallel={"left": 40, "right": 110, "top": 44, "bottom": 30,
                  "parallelAxisDefault": {"nameTruncate": {"maxWidth": 90}, "realtime": False}},
        parallelAxis=[*axes, last],
        visualMap={**_colours(y[drawn], *span), "dimension": len(names)},
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
    numbers: list[int] = drawn.tolist()
    caption = f"{len(drawn):,} of {len(rows):,} drawn, the best among them. " if len(drawn) < len(rows) else ""
    alt = f"Parallel coordinates of {len(drawn):,} trials over {', '.join(names)}; the best is trial {numbers[-1]}."
    caption += (
        "Drag along an axis to highlight the lines that pass there; click it to show all lines again. To choose trials "
        "on every page and in the list below, set a range in the filter."
    )
    return ChartSpec("Parallel coordinates", option, alt, caption, height=430), numbers


def leaders(
    columns: TrialTable, numbers: list[int], names: tuple[str, ...], *, objective: int = 0, most: int = _LEADERS
) -> list[tuple[int, str, list[str]]]:
    """The best of the lines of `parallel`, the very best first: number, value, parameters as the objective saw them."""
    found = []
    for number in numbers[: -most - 1 : -1]:
        shown = [value_text(columns.parameters[name], columns.params[name][number]) for name in names]
        found.append((number, spec.number(float(columns.values[number, objective])), shown))
    return found


def _parallel_axis(one: Parameter) -> spec.Option:
    name = spec.label(one.name, 20)
    if one.choices is not None:
        return {"type": "category", "data": [spec.label(choice, 10) for choice in one.choices], "name": name}
    limits = {"min": one.low, "max": one.high} if one.high > one.low else {}
    return {"type": "log" if one.log else "value", **limits, "name": name}
