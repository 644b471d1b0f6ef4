"""Turns a chart into an option of ECharts, for the monitor.

Names from the store enter an option as text, which ECharts draws on a canvas or escapes. They are never part of a
formatter, whose result would be HTML. Rows are sent as data frames, which take few bytes and also serve as the table
behind "Show data".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from hopaas_p2p.analysis.chart import Chart, ChartAxis, Data, Series, label

if TYPE_CHECKING:  # pandas takes half a second to import
    import pandas as pd

Option = dict[str, Any]

_NAME: Final = {"nameLocation": "middle", "nameGap": 26}
_COLOURS: Final = ["#440154", "#3b528b", "#21918c", "#5ec962", "#fde725"]  # viridis, whose lightness changes evenly
_FEW: Final = 300  # fewer rows are not worth rounding
_FEW_MARKS: Final = 4


def option(chart: Chart) -> Option:
    """The ECharts option of a chart. Each series has its own data set."""
    found: Option = {"animation": False, "tooltip": {"confine": True}}
    if chart.axes:
        return found | _parallel(chart)
    return found | {
        "grid": {"left": 66, "right": 28, "top": 40, "bottom": 34, "containLabel": True},
        "legend": {"top": 0, "type": "scroll", "show": len(chart.series) > 1, "itemWidth": 16, "itemHeight": 10},
        "dataset": [{"source": frame(one.data)} for one in chart.series],
        "series": [{**_series(one, chart), "datasetIndex": at} for at, one in enumerate(chart.series)],
        "xAxis": _axis(chart.x),
        "yAxis": _axis(chart.y) | {"nameGap": 64},
        "dataZoom": [{"type": "inside", "zoomOnMouseWheel": "shift"}],
    }


def _series(one: Series, chart: Chart) -> Option:
    found: Option = {"name": label(one.name), "encode": {"x": 0, "y": 1}}
    if one.mark == "points":
        found["encode"]["tooltip"] = [*range(2, len(one.data)), 0, 1]
        look = {"color": one.colour, "opacity": 0.75}
        found |= {"type": "scatter", "symbol": one.symbol, "symbolSize": one.size, "itemStyle": look}
        if chart.x.choices is not None:  # slightly apart, so that equal values do not hide each other
            found |= {"jitter": 26, "jitterOverlap": True} if one.size < 10 else {}
    elif one.mark == "bars":
        found |= {"type": "bar", "itemStyle": {"color": one.colour}, "barMaxWidth": 22}
        if chart.x.name.endswith("%"):
            found["label"] = {"show": True, "position": "right", "formatter": "{@[0]} %"}
    else:
        look = {"color": one.colour, "width": one.size, "type": one.dash, "opacity": one.opacity}
        found |= {"type": "line", "color": one.colour, "lineStyle": look, "connectNulls": False}
        if "said" in one.data:
            found["encode"]["tooltip"] = [list(one.data).index("said")]
        found |= {"showSymbol": one.symbol == "marks" or one.drawn < _FEW_MARKS}
        found |= {"symbol": "none"} if one.symbol == "none" else {}
        found |= {"step": "end"} if one.mark == "steps" else {}
    return found


def _axis(one: ChartAxis) -> Option:
    found: Option = {"name": label(one.name), "inverse": one.down, **_NAME}
    if one.choices is not None:
        return found | {"type": "category", "data": list(one.choices)}
    limits = {"min": one.low, "max": one.high, "minInterval": 1 if one.whole else None}
    found |= {"type": "time" if one.time else "log" if one.log else "value", "nameTextStyle": {"fontSize": 12}}
    return found | {"scale": not one.zero, **{name: limit for name, limit in limits.items() if limit is not None}}


def _parallel(chart: Chart) -> Option:
    """One line per row across the axes, coloured by the last axis. Ranges can be selected on the axes."""
    (lines,) = chart.series
    columns = [np.asarray(column, np.float64) for column in lines.data.values()][: len(chart.axes)]
    rows = zip(*columns, strict=True)  # five significant digits suffice for a screen and take few bytes
    data = [["-" if np.isnan(one) else float(f"{one:.5g}") for one in row] for row in rows]
    axes = [{**_axis(one), "name": label(one.name, 20), "dim": at} for at, one in enumerate(chart.axes)]
    for one in axes:
        del one["nameLocation"], one["nameGap"], one["inverse"]
    low, high = np.quantile(columns[-1], (0.1, 1.0) if chart.axes[-1].down else (0.0, 0.9)).tolist()
    shades = {
        "min": low, "max": high if high > low else low + 1, "right": 0, "top": "middle", "text": ["high", "low"],
        "precision": 3, "itemHeight": 110, "inRange": {"color": _COLOURS}, "dimension": len(axes) - 1,
    }  # fmt: skip
    return {
        "legend": {"show": False},
        "tooltip": {"show": False},
        "parallel": {"left": 40, "right": 110, "top": 44, "bottom": 30,
                     "parallelAxisDefault": {"nameTruncate": {"maxWidth": 90}, "realtime": False}},
        "parallelAxis": axes,
        "visualMap": shades,
        "series": [{"type": "parallel", "data": data, "lineStyle": {"width": 1, "opacity": 0.45},
                    "inactiveOpacity": 0.03, "activeOpacity": 0.9}],
    }  # fmt: skip


def frame(data: Data) -> pd.DataFrame:
    """The columns for a chart, with only the precision that a screen needs, as small integers and four-byte floats if
    these suffice. Underscores in the names become spaces, because tooltips show the names.
    """
    import pandas as pd

    found = {name.replace("_", " "): np.asarray(part) for name, part in data.items()}
    for name, column in found.items():
        if column.dtype.kind in "fiu" and len(column) >= _FEW:
            found[name] = pd.to_numeric(column, downcast="float" if column.dtype.kind == "f" else "signed")
    return pd.DataFrame(found)
