"""A chart as data: an ECharts option, what it shows in words, and the small pieces that options are made of.

Names that come from the store go into an option as text, which ECharts draws on a canvas or escapes; none is ever part
of a formatter, which would be HTML. Rows go as data frames: few bytes on the wire, and a table behind "Show data".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from hopaas_p2p.analysis import palette
from hopaas_p2p.analysis.table import Floats, Parameter

if TYPE_CHECKING:  # it takes half a second to import
    import pandas as pd

    Rows = pd.DataFrame

Option = dict[str, Any]

COLOURS: Final = ("#2F86D1", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#8B6D00")
"""Okabe and Ito's, which colour-blind people can tell apart, in both themes. Colour is never the only sign."""
SYMBOLS: Final = ("circle", "rect", "triangle", "diamond", "roundRect", "arrow", "pin", "emptyCircle")
BEST: Final = palette.BEST
PLAIN: Final = palette.COMPLETE
FAINT: Final = "#7F7F7F"
_LONGEST: Final = 40
_NAME: Final = {"nameLocation": "middle", "nameGap": 26}
_DECADES: Final = 1000.0
_FEW: Final = 300  # fewer rows are not worth rounding


class ChartSpec(NamedTuple):
    """Something to draw, and the same in words."""

    title: str
    option: Option
    alt: str
    """A description for people who cannot see it."""
    caption: str = ""
    height: int = 360


def rounded(values: Iterable[float]) -> list[float]:
    """As numbers of five significant digits: what a screen can show, in few bytes."""
    return [float(f"{value:.5g}") for value in values]


def frame(**parts: Any) -> Rows:
    """TrialTable for a chart, in as few bytes as a screen needs: whole numbers and four-byte floats.

    Times in milliseconds stay eight bytes wide. Underscores in the names become spaces: tooltips show them.
    """
    import pandas as pd

    return pd.DataFrame({name.replace("_", " "): _narrow(np.asarray(part)) for name, part in parts.items()})


def _narrow(column: Any) -> Any:
    if column.dtype.kind not in "fiu" or len(column) < _FEW:
        return column
    if len(column) and np.isfinite(column).all():
        largest = float(np.abs(column).max())
        if largest < 2**31 and (column == np.rint(column)).all():
            return column.astype(np.int32)
        if largest >= 2**31 or column.dtype.kind in "iu":
            return column.astype(np.float64)
    return column.astype(np.float32)


def label(text: str, longest: int = _LONGEST) -> str:
    """A name that fits beside an axis."""
    return cut(" ".join(text.split()), longest)


def cut(text: str, longest: int) -> str:
    """The text, with an ellipsis if it is longer."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def number(value: float | None) -> str:
    """A number as people read it."""
    if value is None or math.isnan(value):
        return "-"
    if math.isfinite(value) and value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    return f"{value:.4g}"


def text(value: object) -> str:
    """A parameter's value as people read it."""
    return number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def size(count: int) -> str:
    """Bytes as people read them."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count} bytes"


def rough(value: float) -> str:
    """A number with two significant digits: 0.0012, 3.4, 150."""
    return f"{float(f'{value:.2g}'):,g}"


class Layer(NamedTuple):
    """A series, and the rows it draws."""

    series: Option
    rows: Rows


def base(layers: Sequence[Layer] = (), **more: Any) -> Option:
    """An option that draws these layers, with what all charts share. Each layer's rows are a data set of their own."""
    option: Option = {
        "animation": False,
        "grid": {"left": 46, "right": 28, "top": 40, "bottom": 34, "containLabel": True},
        "tooltip": {"confine": True},
        "legend": {"top": 0, "type": "scroll", "show": len(layers) > 1, "itemWidth": 16, "itemHeight": 10},
    }
    if layers:
        option["dataset"] = [{"source": layer.rows} for layer in layers]
        option["series"] = [{**layer.series, "datasetIndex": at} for at, layer in enumerate(layers)]
    return {**option, **more}


def axis(name: str, *, log: bool = False, time: bool = False, tight: bool = True, **more: Any) -> Option:
    """An axis for numbers, or for milliseconds since 1970. `tight`: it need not begin at zero."""
    kind = "time" if time else "log" if log else "value"
    return {"type": kind, "name": label(name), "scale": tight, "nameTextStyle": {"fontSize": 12}, **_NAME, **more}


def parameter_axis(one: Parameter, **more: Any) -> Option:
    """The axis of a parameter, over its whole range."""
    if one.choices is not None:
        choices = [label(choice, 16) for choice in one.choices]
        return {"type": "category", "name": label(one.name), "data": choices, **_NAME, **more}
    limits: dict[str, Any] = {} if one.low == one.high else {"min": one.low, "max": one.high}
    if one.whole and not one.log:
        limits["minInterval"] = 1  # no tick between two whole numbers
    return axis(one.name, log=one.log, **limits, **more)


def scatter(name: str, rows: Rows, *, colour: str, symbol: str = "circle", size: float = 6, **more: Any) -> Layer:
    """A cloud of points: x and y are the first two columns; a tooltip shows them all."""
    tooltip = [*range(2, rows.shape[1]), 0, 1]
    series = {
        "type": "scatter", "name": label(name), "symbol": symbol, "symbolSize": size,
        "itemStyle": {"color": colour, "opacity": 0.75}, "encode": {"x": 0, "y": 1, "tooltip": tooltip}, **more,
    }  # fmt: skip
    return Layer(series, rows)


def line(name: str, rows: Rows, *, colour: str, width: float = 2, **more: Any) -> Layer:
    """A line without marks through the first two columns."""
    series = {
        "type": "line", "name": label(name), "showSymbol": len(rows) < 4, "color": colour, "encode": {"x": 0, "y": 1},
        "lineStyle": {"color": colour, "width": width}, **more,
    }  # fmt: skip
    return Layer(series, rows)


def dashed(name: str, at: int, rows: Rows, **more: Any) -> Layer:
    """One of several lines, told apart by colour and by dashes."""
    colour = COLOURS[at % len(COLOURS)]
    look = {"type": ("solid", "dashed", "dotted")[at % 3], "width": 2, "color": colour}
    return line(name, rows, colour=colour, lineStyle=look, **more)


def wants_log(values: Floats) -> bool:
    """Whether an axis of these values is read more easily with a log scale: all positive, over three decades or more.

    The middle 90 % decide, so that a single far-off value does not.
    """
    finite = values[np.isfinite(values)]
    if len(finite) < 20 or finite.min() <= 0:
        return False
    low, high = np.quantile(finite, [0.05, 0.95])
    return bool(high >= _DECADES * low)


def robust_limits(values: Floats, *, minimize: bool, without: float = 0.05) -> tuple[float | None, float | None]:
    """Where an axis should end, so that a few very bad values do not flatten the rest; None: ECharts decides.

    Only values that are three times the others' range away are cut off.
    """
    if len(values) < 20:
        return None, None
    ordered = np.sort(values)
    cut = max(1, int(len(ordered) * without))
    kept = ordered[:-cut] if minimize else ordered[cut:]
    low, high = float(kept[0]), float(kept[-1])
    room = max(high - low, 1e-12)
    digits = 1 - math.floor(math.log10(room))  # an edge as fine as a fiftieth or so of what the axis shows
    if minimize:
        return (None, round(high + 0.1 * room, digits)) if ordered[-1] > high + 3 * room else (None, None)
    return (round(low - 0.1 * room, digits), None) if ordered[0] < low - 3 * room else (None, None)
