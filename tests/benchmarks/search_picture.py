"""The pictures of docs/search.md and of its section on earlier studies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final
from xml.sax.saxutils import escape

_COLOURS: Final = ("#9aa0a6", "#d98f2b", "#1f6fb2")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 640, 300, 60, 52, 40
_BAR: Final = 34


def bars(counts: Mapping[str, Sequence[float]], peers: Sequence[int], most: int) -> str:
    """An SVG with a group of bars for each number of peers and a bar in it for each sampler.

    Args:
        counts: of each sampler the evaluations, by number of peers; more than `most` where the target was not reached.
        peers: the groups.
        most: the evaluations that a search had.

    """
    height = _HEIGHT - _TOP - _BOTTOM
    scale = height / most
    parts = []
    for line in range(0, most + 1, 100):
        y = _HEIGHT - _BOTTOM - line * scale
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - 10}" stroke="#dddddd"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{line}</text>')
    step = (_WIDTH - _LEFT - 10) / len(peers)
    for group, number in enumerate(peers):
        middle = _LEFT + step * (group + 0.5)
        left = middle - _BAR * len(counts) / 2
        for place, (colour, values) in enumerate(zip(_COLOURS, counts.values(), strict=False)):
            tall = min(values[group], most) * scale
            x, y = left + place * _BAR, _HEIGHT - _BOTTOM - tall
            shown = f"&gt; {most}" if values[group] > most else f"{values[group]:.0f}"
            parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{_BAR - 4}" height="{tall:.1f}" fill="{colour}"/>')
            parts.append(f'<text x="{x + _BAR / 2 - 2:.1f}" y="{y - 5:.1f}" text-anchor="middle">{shown}</text>')
        label = f"{number} peer{'s' * (number != 1)}"
        parts.append(f'<text x="{middle:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{label}</text>')
    for place, (colour, name) in enumerate(zip(_COLOURS, counts, strict=False)):
        x = _LEFT + place * 180
        parts.append(f'<rect x="{x}" y="{_HEIGHT - 18}" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{x + 18}" y="{_HEIGHT - 8}">{escape(name)}</text>')
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'font-family="sans-serif" font-size="12" fill="#222222"><title>Evaluations until one of the best 0.1 % '
        f'was found</title><rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>'
    )
    return "\n".join([head, *parts, "</svg>", ""])


def histories(curves: Mapping[str, Sequence[float]]) -> str:
    """An SVG with a line per search: the best loss after each trial, on a logarithmic scale."""
    values = [value for curve in curves.values() for value in curve]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    height, trials = _HEIGHT - _TOP - _BOTTOM, max(map(len, curves.values()))

    def place(trial: int, value: float) -> str:
        x = _LEFT + (_WIDTH - _LEFT - 20) * trial / (trials - 1)
        return f"{x:.1f} {_TOP + height * (high - math.log10(value)) / (high - low):.1f}"

    parts = []
    for power in range(low, high + 1):
        y = _TOP + height * (high - power) / (high - low)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - 10}" stroke="#dddddd"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
    for number, (colour, (name, curve)) in enumerate(zip(_COLOURS[1:], curves.items(), strict=False)):
        line = "L".join(place(trial, value) for trial, value in enumerate(curve))
        parts.append(f'<path d="M{line}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        x = _LEFT + number * 240
        parts.append(f'<rect x="{x}" y="{_HEIGHT - 18}" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{x + 18}" y="{_HEIGHT - 8}">{escape(name)}</text>')
    for trial in range(0, trials, 2):
        x = _LEFT + (_WIDTH - _LEFT - 20) * trial / (trials - 1)
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{trial + 1}</text>')
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'font-family="sans-serif" font-size="12" fill="#222222"><title>The best loss after each trial</title>'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>'
    )
    return "\n".join([head, *parts, "</svg>", ""])
