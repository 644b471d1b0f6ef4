"""Turns a chart into SVG, for report and notebook, without scripts, network or a plotting package.

Everything from the store is escaped where it is written. Text and lines take their colours from the page's style sheet,
so a chart is dark on a dark page.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from hopaas_p2p.analysis.chart import Chart, ChartAxis, Series, number
from hopaas_p2p.analysis.html import Html, safe

_FEW: Final = 600
"""The most marks that get titles of their own. More marks become one path, which takes a tenth of the bytes."""
_ROW: Final = 26.0
_LEAST: Final = 1e-150  # the smallest range of an axis, because quotients and differences of smaller values underflow
_DASHES: Final = {"dashed": "6 3", "dotted": "2 2"}
_SHAPES: Final = {
    "triangle": ((0.0, -1.2), (1.1, 0.8), (-1.1, 0.8)),
    "diamond": ((0.0, -1.3), (1.0, 0.0), (0.0, 1.3), (-1.0, 0.0)),
}
"""The corners of each symbol with radius 1. Any other symbol is a circle."""


def px(value: float) -> str:
    """A coordinate as text, with one decimal place unless that is zero."""
    return f"{value:.1f}".removesuffix(".0")


class Scale(NamedTuple):
    """Maps values in [low, high] to pixels in [start, stop]. Values outside are moved to the edge."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False
    choices: tuple[str, ...] | None = None

    def __call__(self, value: Any) -> float:
        if self.choices is not None and isinstance(value, str):
            value = self.choices.index(value) if value in self.choices else -0.5
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)

    def ticks(self, wanted: int = 5) -> list[float]:
        """About `wanted` round values to label."""
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            step = max(1, math.ceil((last - first + 1) / wanted))
            if last - first >= 2:
                return [10.0**power for power in range(first, last + 1, step)]
            round_ones = [m * 10.0**power for power in range(first - 1, last + 1) for m in (1, 2, 5)]
            return [value for value in round_ones if self.low <= value <= self.high]
        raw = (self.high - self.low) / wanted
        magnitude = 10.0 ** math.floor(math.log10(raw))
        step_size = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
        first_tick = math.ceil(self.low / step_size - 1e-9)
        last_tick = math.floor(self.high / step_size + 1e-9)
        return [index * step_size for index in range(first_tick, last_tick + 1)]

    def labels(self, wanted: int = 5) -> list[tuple[float, str]]:
        """The positions and texts of the labels."""
        if self.choices is not None:
            return [(self(at), choice) for at, choice in enumerate(self.choices[:40])]
        return [(self(tick), number(tick)) for tick in self.ticks(wanted)]


def scale_of(axis: ChartAxis, values: Iterable[float], start: float, stop: float, *, pad: float = 0.04) -> Scale:
    """A scale that contains these values, within the axis's limits."""
    if axis.choices is not None:
        return Scale(-0.5, max(1, len(axis.choices)) - 0.5, start, stop, choices=axis.choices)
    finite = [value for value in values if math.isfinite(value) and abs(value) < 1e150]
    low = min(finite, default=0.0) if axis.low is None or not abs(axis.low) < 1e150 else axis.low
    high = max(finite, default=1.0) if axis.high is None or not abs(axis.high) < 1e150 else axis.high
    if axis.log and low > 0:
        low = max(low, _LEAST)
        high = max(low, high)
        room = (high / low) ** pad if high > low else 2.0
        return Scale(low / room, high * room, start, stop, log=True)
    room = (high - low) * pad if high - low > _LEAST else max(abs(high) * 0.1, 0.5)
    return Scale(low if axis.zero else low - room, high + room, start, stop)


def svg(chart: Chart, *, width: float = 500.0, height: float = 290.0) -> str:
    """The chart as SVG, with a name and a description for screen readers."""
    width = 1040.0 if chart.wide else width
    height = 70 + _ROW * len(chart.y.choices) if chart.y.choices else height
    return (
        f'<svg class="{"wide" if chart.wide else ""}" viewBox="0 0 {px(width)} {px(height)}" role="img" '
        f'aria-label="{safe(chart.title)}. {safe(chart.alt, longest=2000)}">'
        f"<title>{safe(chart.title)}</title>{_body(chart, width, height)}</svg>"
    )


def legend(chart: Chart) -> str:
    """The series by name and colour, and the chart's caption, as HTML."""
    keys = [
        key(one.colour, one.name, one.symbol if one.mark == "points" else "")
        for one in chart.series
        if one.drawn and one.mark in ("points", "line", "steps")
    ]
    return " ".join([*(keys if len(keys) > 1 else []), safe(chart.caption, longest=2000)])


def key(colour: str, text: str, symbol: str = "") -> Html:
    """An entry of a legend, with a line's colour or the mark as drawn."""
    shown = f'<span class="key" style="background:{colour}"></span>'
    if symbol:
        mark = f'<path class="dot" {_look(symbol, colour)} d="{_outline(symbol, 0, 0, 5)}"/>'
        shown = f'<svg aria-hidden="true" class="mark" viewBox="-7 -7 14 14">{mark}</svg>'
    return Html(f'<span class="pair">{shown}{safe(text, longest=80)}</span>')


def _body(chart: Chart, width: float, height: float) -> str:
    """The axes and the drawing between them."""
    columns = [tuple(one.data.values())[:2] for one in chart.series]
    left = 160.0 if chart.y.choices else 52.0 if width > 300 else 46.0
    along = [] if chart.x.choices else [one for xs, _ in columns for one in xs]
    x = scale_of(chart.x, along, left, width - 12, pad=0.02)
    ends = (26.0, height - 40) if chart.y.down else (height - 40, 26.0)
    y = scale_of(chart.y, [] if chart.y.choices else [one for _, ys in columns for one in ys], *ends)
    bottom, parts = height - 40, []
    for at, text in y.labels():
        parts.append(f'<path class="grid" d="M{px(left)} {px(at)}H{px(x.stop)}"/>')
        parts.append(f'<text class="tick end" x="{px(left - 6)}" y="{px(at + 4)}">{safe(text)}</text>')
    for at, text in x.labels(8 if width > 600 else 5 if width > 300 else 4):
        parts.append(f'<text class="tick mid" x="{px(at)}" y="{px(bottom + 16)}">{safe(text)}</text>')
    parts.append(f'<path class="axis" d="M{px(left)} {px(bottom)}H{px(x.stop)}"/>')
    name = safe(chart.x.name, longest=40)
    parts.append(f'<text class="name end" x="{px(x.stop)}" y="{px(bottom + 32)}">{name}</text>')
    parts.append(f'<text class="name" x="2" y="18">{safe(chart.y.name, longest=40)}</text>')
    for one, (xs, ys) in zip(chart.series, columns, strict=True):
        if one.mark == "bars":
            bar = one._replace(size=16)
            parts += [
                _path(bar, f"M{px(x(0))} {px(y(b))}H{px(x(a))}", f"{b}: {number(a)}")
                for a, b in zip(xs, ys, strict=True)
            ]
            continue
        there = [isinstance(a, str) or (math.isfinite(a) and math.isfinite(b)) for a, b in zip(xs, ys, strict=True)]
        if one.mark == "points":
            room = 0.5 * (x.stop - x.start) / (x.high - x.low) if x.choices is not None else 0.0
            # spreads equal choices, so that they can be counted
            apart = [(at * 0.618 % 1 - 0.5) * room for at in range(len(xs))]
            places = [(x(xs[at]) + apart[at], y(ys[at]), at) for at, known in enumerate(there) if known]
            parts.append(_points(one, places))
            continue
        paths, path = [], ""
        for at, known in enumerate([*there, False]):
            if known:
                step = "H{}V{}" if one.mark == "steps" and path else "L{} {}" if path else "M{} {}"
                path += step.format(px(x(xs[at])), px(y(ys[at])))
            elif path:
                paths.append((path, at - 1))
                path = ""
        if len(paths) > _FEW:
            parts.append(_path(one, "".join(path for path, _ in paths), one.name))
        else:
            parts += [_path(one, path, _said(one, at)) for path, at in paths]
    return "".join(parts)


def _said(one: Series, at: int) -> str:
    """The tooltip of one point."""
    if "said" in one.data:
        return str(one.data["said"][at])
    parts = [f"{name.replace('_', ' ')} {number(float(one.data[name][at]))}" for name in list(one.data)[1:]]
    return f"{one.name}: {', '.join(reversed(parts))}"


def _points(one: Series, places: Sequence[tuple[float, float, int]]) -> str:
    """The marks, each with a title if there are few, or else all as one path."""
    look, radius = _look(one.symbol, one.colour), one.size * 0.55
    outlines = [(_outline(one.symbol, x, y, radius), at) for x, y, at in places]
    if len(places) > _FEW:
        return f'<path class="many" {look} d="{"".join(outline for outline, _ in outlines)}"/>'
    return "".join(
        f'<path class="dot" {look} d="{outline}"><title>{safe(_said(one, at))}</title></path>'
        for outline, at in outlines
    )


def _look(symbol: str, colour: str) -> str:
    """The attributes of a mark. A hollow mark has only an edge."""
    filled, edge = ("none", colour) if symbol.startswith("empty") else (colour, "none")
    return f'style="fill:{filled};stroke:{edge}"'


def _outline(symbol: str, x: float, y: float, radius: float) -> str:
    """The outline of a mark, as a path."""
    corners = _SHAPES.get(symbol.removeprefix("empty").lower())
    if corners is None:
        d = px(2 * radius)
        return f"M{px(x - radius)} {px(y)}a1 1 0 1 0 {d} 0a1 1 0 1 0-{d} 0"
    return "M" + "L".join(f"{px(x + radius * dx)} {px(y + radius * dy)}" for dx, dy in corners) + "z"


def _path(one: Series, path: str, title: str) -> str:
    dash = f' stroke-dasharray="{_DASHES[one.dash]}"' if one.dash in _DASHES else ""
    look = f'stroke="{one.colour}" stroke-width="{px(one.size)}" stroke-opacity="{one.opacity:g}"{dash}'
    return f'<path {look} d="{path}"><title>{safe(title)}</title></path>' if path else ""
