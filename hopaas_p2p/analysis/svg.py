"""Small pure functions that write SVG: text made safe, scales, axes, dots and lines.

Colours come from the page's style sheet by class, so that a chart is dark where the page is.
"""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, TypeVar

T = TypeVar("T")
_REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"
_BIDI: Final = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_FEW: Final = 600
"""Up to this many marks have titles; more become one path, which takes a tenth of the bytes."""


class Point(NamedTuple):
    """A mark in the chart's own units, and its tooltip."""

    x: float
    y: float
    title: str = ""


def safe(text: object, *, longest: int = 2000) -> str:
    """Untrusted text for HTML: escaped, of bounded length, without control characters or changes of direction."""
    shown = str(text)
    if len(shown) > longest:
        shown = shown[: longest - 1] + "…"
    clean = "".join(
        _REPLACEMENT if c in _BIDI or (unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t") else c
        for c in shown
    )
    return html.escape(clean, quote=True)


def px(value: float) -> str:
    """A coordinate: one decimal place, no trailing zero."""
    return f"{value:.1f}".removesuffix(".0")


class Scale(NamedTuple):
    """Maps values in [low, high] to pixels in [start, stop]; values outside go to the edge."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
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


def scale_of(
    values: Iterable[float], start: float, stop: float, *, log: bool | None = None, pad: float = 0.04
) -> Scale:
    """A scale that holds these values. `log` None: if all are positive and span more than a factor of 300."""
    finite = [value for value in values if math.isfinite(value) and abs(value) < 1e150]
    if not finite:
        return Scale(0.0, 1.0, start, stop)
    low, high = min(finite), max(finite)
    if log is None:
        log = low > 0 and high / low > 300
    if log and low > 0:
        room = (high / low) ** pad if high > low else 2.0
        return Scale(low / room, high * room, start, stop, log=True)
    room = (high - low) * pad if high > low else max(abs(high) * 0.1, 0.5)
    return Scale(low - room, high + room, start, stop)


def label(value: float) -> str:
    """A tick's label, short."""
    if value == 0 or abs(value) < 1e-12:
        return "0"
    if abs(value) >= 1e5 or abs(value) < 1e-3:
        return f"{value:.2g}".replace("e-0", "e-").replace("e+0", "e")
    return str(int(value)) if value == int(value) else f"{value:.4g}"


def frame(
    x: Scale, y: Scale, *, x_title: str, y_title: str, x_labels: Sequence[tuple[float, str]] | None = None
) -> str:
    """Grid lines, tick labels and axis titles of a chart."""
    left, right, bottom, top = x.start, x.stop, y.start, y.stop
    parts = []
    for tick in y.ticks():
        at = px(y(tick))
        parts.append(f'<path class="grid" d="M{px(left)} {at}H{px(right)}"/>')
        parts.append(f'<text class="tick end" x="{px(left - 6)}" y="{px(y(tick) + 4)}">{label(tick)}</text>')
    for where, text in x_labels or [(x(tick), label(tick)) for tick in x.ticks()]:
        parts.append(f'<text class="tick mid" x="{px(where)}" y="{px(bottom + 16)}">{safe(text, longest=14)}</text>')
    parts.append(f'<path class="axis" d="M{px(left)} {px(bottom)}H{px(right)}"/>')
    parts.append(f'<text class="name end" x="{px(right)}" y="{px(bottom + 32)}">{safe(x_title, longest=40)}</text>')
    parts.append(f'<text class="name" x="{px(left - 40 if left > 45 else 2)}" y="{px(top - 8)}">')
    parts.append(f"{safe(y_title, longest=40)}</text>")
    return "".join(parts)


def dots(points: Sequence[Point], x: Scale, y: Scale, css: str, *, radius: float = 3.0) -> str:
    """Marks: each with its title if they are few, else one path."""
    if len(points) <= _FEW:
        return "".join(
            f'<circle class="{css}" cx="{px(x(p.x))}" cy="{px(y(p.y))}" r="{px(radius)}"><title>{safe(p.title)}</title>'
            "</circle>"
            for p in points
        )
    path = "".join(f"M{px(x(p.x))} {px(y(p.y))}h0" for p in points)
    return f'<path class="{css} many" stroke-width="{px(radius * 1.6)}" d="{path}"/>'


def line(points: Sequence[tuple[float, float]], x: Scale, y: Scale, css: str, *, title: str = "") -> str:
    """A line through the points."""
    if not points:
        return ""
    path = "L".join(f"{px(x(a))} {px(y(b))}" for a, b in points)
    tooltip = f"<title>{safe(title)}</title>" if title else ""
    return f'<path class="{css}" d="M{path}">{tooltip}</path>'


def steps(points: Sequence[tuple[float, float]], x: Scale, y: Scale, css: str, *, until: float) -> str:
    """A line that keeps each value until the next point."""
    if not points:
        return ""
    path = f"M{px(x(points[0][0]))} {px(y(points[0][1]))}"
    path += "".join(f"H{px(x(a))}V{px(y(b))}" for a, b in points[1:])
    return f'<path class="{css}" d="{path}H{px(x(until))}"/>'


def svg(body: str, *, width: float, height: float, title: str, description: str, css: str = "") -> str:
    """A chart, with a name and description for screen readers."""
    return (
        f'<svg class="{css}" viewBox="0 0 {px(width)} {px(height)}" role="img" '
        f'aria-label="{safe(title)}. {safe(description)}"><title>{safe(title)}</title>{body}</svg>'
    )


def sample(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of the items, evenly spaced."""
    if len(items) <= most:
        return list(items)
    return [items[index * len(items) // most] for index in range(most)]
