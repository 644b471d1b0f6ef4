"""A chart as a value with axes, series of marks, and a description in words. The modules `svg` and `echarts` draw it.

No function in this module is random, so a chart does not flicker when it is redrawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from hopaas_p2p.analysis.facts import shown
from hopaas_p2p.analysis.palette import COMPLETE
from hopaas_p2p.analysis.table import Floats, Ints, Parameter

Data = Mapping[str, Any]
"""Columns by name. The first two are the coordinates. A tooltip shows all columns, or only the one named `said`."""
Points = list[tuple[float, float]]

COLOURS: Final = ("#2F86D1", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#8B6D00")
"""Colours after Okabe and Ito, for light and dark themes, which colour-blind people can tell apart. They are never the
only distinction."""
PLAIN: Final = COMPLETE
FAINT: Final = "#7F7F7F"
MOST: Final = 5000
"""The maximum number of points in one chart; a larger set is sampled."""
STEPS: Final = 120
"""The maximum number of points in one curve among many."""
_LONGEST: Final = 40
_DECADES: Final = 1000.0
_OUTLIERS: Final = 0.05  # the largest fraction of the values that can count as outliers


class ChartAxis(NamedTuple):
    """One axis. Without limits, it covers the data."""

    name: str = ""
    low: float | None = None
    high: float | None = None
    log: bool = False
    time: bool = False
    """Whether the values are milliseconds since 1970."""
    whole: bool = False
    """Whether all values are whole numbers."""
    zero: bool = False
    """Whether the axis begins at zero."""
    down: bool = False
    """Whether the axis points down."""
    choices: tuple[str, ...] | None = None
    """The labels in order, for an axis without numbers."""


class Series(NamedTuple):
    """Marks with the same look."""

    name: str
    mark: Literal["points", "line", "steps", "bars", "lines"]
    """With `lines`, each row is a line across parallel axes, with one column per axis. NaN interrupts a line."""
    data: Data
    colour: str = PLAIN
    size: float = 5
    """The width of a mark or of a line, in pixels."""
    symbol: str = "circle"
    dash: str = "solid"
    opacity: float = 1.0

    @property
    def drawn(self) -> int:
        return len(next(iter(self.data.values())))


class Chart(NamedTuple):
    """Something to draw, with a description in words."""

    title: str
    series: Sequence[Series]
    x: ChartAxis
    y: ChartAxis
    alt: str
    """A description for people who cannot see the chart."""
    caption: str = ""
    height: int = 360
    axes: tuple[ChartAxis, ...] = ()
    """Parallel axes instead of x and y; only `echarts` draws them."""
    wide: bool = False


def axis_of(one: Parameter) -> ChartAxis:
    """The axis of a parameter, over its whole range."""
    if one.choices is not None:
        return ChartAxis(one.name, choices=tuple(label(choice, 16) for choice in one.choices))
    low, high = (None, None) if one.low == one.high else (one.low, one.high)
    return ChartAxis(one.name, low, high, one.log, whole=one.whole and not one.log)


def dashed(name: str, at: int, data: Data, mark: Literal["line", "steps"] = "line") -> Series:
    """One of several lines, distinguished by colour and dashes."""
    return Series(name, mark, data, COLOURS[at % len(COLOURS)], 2, dash=("solid", "dashed", "dotted")[at % 3])


def bundled(columns: Sequence[str], lines: Iterable[tuple[Points, *tuple[Any, ...]]]) -> Data:
    """The data of one series of several lines, each with its points and with values for further columns.

    Rows without a value separate the lines.
    """
    gap = (math.nan, math.nan)
    rows = [(*point, *said) for points, *said in lines if points for point in (*points, gap)][:-1]
    return {what: [row[at] for row in rows] for at, what in enumerate(columns)}


def finite(reports: Mapping[int, float], *, most: int = STEPS) -> Points:
    """The finite values by step, reduced to at most `most` points that show the same curve."""
    points = [(float(step), value) for step, value in sorted(reports.items()) if math.isfinite(value)]
    return [points[at] for at in downsample_line(np.array([value for _, value in points]), most=most)]


def data_of(points: Points) -> Data:
    """One curve."""
    return {"step": [step for step, _ in points], "value": [value for _, value in points]}


# --- words ---


def label(text: str, longest: int = _LONGEST) -> str:
    """A name that fits beside an axis."""
    return cut(" ".join(text.split()), longest)


def cut(text: str, longest: int) -> str:
    """The text, cut to this length with an ellipsis if it is longer."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def number(value: float | None) -> str:
    """A number in readable form, `-` for None and NaN."""
    return "-" if value is None or math.isnan(value) else shown(value)


# --- axes of values ---


def wants_log(values: Floats) -> bool:
    """Whether to use a log scale, because there are at least 20 values, all positive, over at least three decades.

    The range is that of the middle 90 % of the values, so a single outlier does not matter.
    """
    finite = values[np.isfinite(values)]
    if len(finite) < 20 or finite.min() <= 0:
        return False
    low, high = np.quantile(finite, [0.05, 0.95])
    return bool(high >= _DECADES * low)


def value_axis(name: str, values: Floats, worst: Literal["low", "high"] | None = None) -> tuple[ChartAxis, str]:
    """The axis for these values, logarithmic if `wants_log`, and a note on values outside it, empty if there are none.

    Args:
        name: what the values are.
        values: all values.
        worst: the end of the axis with the worst values. There, a few outliers that are far from the others are left
            out, so that they do not flatten the rest.

    """
    finite = np.sort(values[np.isfinite(values)])
    if wants_log(finite):
        return ChartAxis(f"{name}, log scale", log=True), ""
    if worst is None or len(finite) < 20:
        return ChartAxis(name), ""
    sign = -1.0 if worst == "low" else 1.0
    ordered = np.sort(sign * finite)  # the worst last
    first, last = float(ordered[0]), float(ordered[-1 - max(1, int(len(ordered) * _OUTLIERS))])
    room = max(last - first, 1e-12)
    if math.isinf(room) or ordered[-1] <= last + 3 * room:
        return ChartAxis(name), ""
    edge = round(last + 0.1 * room, 1 - math.floor(math.log10(room)))  # rounded to about a fiftieth of the axis
    far = int((ordered > edge).sum())
    note = f"{far:,} outlying value{'s lie' if far > 1 else ' lies'} outside the chart."
    low, high = (-edge, None) if worst == "low" else (None, edge)
    return ChartAxis(name, low, high), note


# --- fewer points that show the same picture, with the envelope and an even sample of the rest ---


def downsample_points(x: Floats, y: Floats, *, most: int = MOST) -> Ints:
    """The rows of a point cloud to draw, in ascending order, at most `most`.

    Along x, the points fall into bins with equal counts. Up to half of the rows are the lowest and the highest of each
    bin; the others are an even sample of the rest.
    """
    count = len(x)
    if count <= most:
        return np.arange(count)
    bins = max(1, most // 4)
    bin_of = np.empty(count, dtype=np.int64)
    bin_of[np.argsort(x, kind="stable")] = np.arange(count) * bins // count
    envelope = np.unique(_envelope(bin_of, y, bins))
    rest = np.setdiff1d(np.arange(count), envelope, assume_unique=True)
    return np.union1d(envelope, rest[spread(len(rest), max(0, most - len(envelope)))])


def downsample_line(y: Floats, *, most: int = MOST) -> Ints:
    """The points of a line to draw, in ascending order, which are both ends, and the lowest and highest points of equal
    parts of the line.
    """
    count = len(y)
    if count <= most:
        return np.arange(count)
    bins = max(1, (most - 2) // 2)
    return np.union1d([0, count - 1], _envelope(np.arange(count) * bins // count, y, bins))


def _envelope(bin_of: Ints, y: Floats, bins: int) -> Ints:
    """The lowest and the highest row of each bin."""
    ordered = np.lexsort((y, bin_of))
    ends = np.searchsorted(bin_of[ordered], np.arange(bins + 1))
    return np.concatenate([ordered[ends[:-1]], ordered[ends[1:] - 1]])


def spread(count: int, most: int) -> Ints:
    """`most` of `count` positions, evenly spaced; all if there are fewer."""
    return np.arange(count) if count <= most else np.arange(most) * count // most
