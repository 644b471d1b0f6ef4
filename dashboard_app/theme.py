"""The look of the pages: state symbols, the theme, and HTML and Markdown in which text from a store is escaped."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

import streamlit as st

from dashboard_app import url
from hopaas_p2p.analysis import echarts, facts, html
from hopaas_p2p.analysis.chart import Chart, cut
from hopaas_p2p.analysis.facts import whole_seconds
from hopaas_p2p.analysis.html import Html, safe
from hopaas_p2p.core.state import Trial
from hopaas_p2p.errors import visible
from hopaas_p2p.report.page import part

T = TypeVar("T")

_STATIC: Final = Path(__file__).parent / "static"
CONFIG: Final = str(_STATIC / "theme.toml")
ICON: Final = str(_STATIC / "icon.svg")
"""Our own icon, because Streamlit fetches its icons from a third party's server."""
SYMBOLS: Final = {
    "running": "◐", "complete": "●", "pruned": "◆", "fail": "✕", "waiting": "○", "paused": "‖", "stopped": "■",
    "idle": "◌", "failing": "✕", "done": "✓", "open": "○", "unknown": "?", "best": "★", "started": "▶",
}  # fmt: skip
_MARKDOWN: Final = re.compile(r"([\\`*{}\[\]()#+.!|>~:$<&]|(?<![^\W_])[_-]|[_-](?![^\W_]))")
"""Markdown's special characters, without `_` and `-` between letters, which need no escape that a screen reader would
read."""


def plain(text: object, *, longest: int = 200) -> str:
    """Text from a store, escaped for Markdown, icons and formulas included."""
    return _MARKDOWN.sub(r"\\\1", visible(cut(" ".join(str(text).split()), longest)))


def apply() -> None:
    """Add the style to the page, once per run."""
    st.html(f"<style>{part('tables.css')}{(_STATIC / 'style.css').read_text(encoding='utf-8')}</style>")


def error(trouble: object, *, icon: str | None = None) -> None:
    """Show why something failed."""
    st.error(plain(trouble, longest=1000), icon=icon)


def link(text: object, name: str, *, study: str, **parts: str | int | None) -> Html:
    """A link to a page of a study."""
    return Html(f'<a href="{safe(url.link(name, study=study, **parts), longest=4000)}" target="_self">{safe(text)}</a>')


def trial_link(study: str, number: int, words: str = "") -> Html:
    """A link to the page of a trial."""
    return link(f"{words}{number}", "trial", study=study, trial=number)


def title(text: str, *, above: str = "") -> None:
    """The page's heading, with a smaller line above it."""
    kind = f'<p class="hp-kind">{safe(above)}</p>' if above else ""
    st.html(f'{kind}<h1 class="hp-title">{safe(text)}</h1>')


def heading(text: str) -> None:
    """A section heading."""
    st.html(f'<h2 class="hp-heading">{safe(text)}</h2>')


def caption(text: str) -> None:
    """A line of explanation below an element."""
    st.html(f'<p class="hp-caption">{safe(text, longest=2000)}</p>')


def nothing(text: str) -> None:
    """Show why there is nothing to display, or what to do about it."""
    st.html(f'<p class="hp-nothing">{safe(text, longest=2000)}</p>')


def draw(chart: Chart | None, *, key: str, empty: str = "Nothing to draw yet.") -> None:
    """Draw the chart under its title; without a chart, show the text `empty`. Streamlit passes only data to ECharts, no
    code.

    ECharts shows the strings in its options as text, but a tooltip's `formatter` as HTML, so no formatter contains a
    name.
    """
    if chart is None:
        nothing(empty)
        return
    if chart.title:
        heading(chart.title)
    st.echarts_chart(echarts.option(chart), height=chart.height, key=key, alt=chart.alt)
    if chart.caption:
        caption(chart.caption)


def segments(label: str, options: Sequence[T], *, key: str, names: Any = str, visible: bool = True) -> T:
    """The chosen one of a few options, by default the first. The choice is kept in the address."""
    chosen = st.segmented_control(
        label, options, default=options[0], format_func=names, key=key, bind="query-params", required=True,
        label_visibility="visible" if visible else "collapsed",
    )  # fmt: skip
    return next((one for one in options if one == chosen), options[0])


def pill(word: str) -> Html:
    """A state, shown by shape, word and colour."""
    symbol = SYMBOLS.get(word, "")
    return Html(f'<span class="hp-pill hp-{safe(word)}"><i aria-hidden="true">{symbol}</i>{safe(word)}</span>')


def ago(at: float) -> Html:
    """How long ago a time (in seconds since 1970) was, updated by the browser."""
    return Html(f'<time data-since="{at:.0f}">{facts.ago(max(0.0, time.time() - at))}</time>')


def lasting(since: float) -> Html:
    """How long something has lasted since a time, updated by the browser."""
    return Html(f'<time data-for="{since:.0f}">{whole_seconds(max(0.0, time.time() - since))}</time>')


def lease(name: object, left: float | None, *, ttl: float | None = None) -> Html:
    """The time left of a lease (in seconds; None while unknown), which the browser counts down by this name.

    With `ttl`, it shows instead how long ago the lease's owner was last seen.
    """
    words = "unknown, watching" if left is None else f"{whole_seconds(left)} left" if left > 0 else "may be taken over"
    if ttl is not None and left is not None:
        words = f"{whole_seconds(max(0.0, ttl - left))} ago"
    of = "" if ttl is None else f' data-ttl="{ttl:g}"'
    return Html(f'<span data-lease="{safe(name)}"{of}>{words}</span>')


def tag(text: str) -> Html:
    """A tag, or another short remark."""
    return Html(f'<span class="hp-tag">{safe(text, longest=200)}</span>')


def tiles(found: Iterable[tuple[str, str, str]]) -> None:
    """A row of tiles, each given as (what the number is, the number, a small line below)."""
    st.html(html.tiles(found))


def asked_to_stop(trial: Trial) -> Html:
    """A tag showing that somebody asked this trial to stop, and why."""
    return Html(f" {tag(f'asked to stop: {trial.stop}')}" if trial.stop else "")


def spark(values: Sequence[float], words: str, *, wide: bool = False) -> Html:
    """A small curve, described by `words`. It is an image, because Streamlit strips inline SVG."""
    if len(values) < 2:
        return Html()
    width, height = (300, 40) if wide else (90, 22)
    low, high = min(values), max(values)
    room, step = (high - low) or 1.0, width / (len(values) - 1)
    points = "L".join(f"{at * step:.0f} {2 + (high - one) / room * (height - 4):.0f}" for at, one in enumerate(values))
    image = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" preserveAspectRatio="none">'
        f'<path d="M{points}" fill="none" stroke="#3b7be8" stroke-width="2" vector-effect="non-scaling-stroke"/></svg>'
    )
    css = "hp-spark hp-wide" if wide else "hp-spark"
    return Html(f'<img class="{css}" alt="{safe(words)}" src="data:image/svg+xml,{quote(image)}">')


def share(part: float, words: str) -> Html:
    """A progress bar with words beside it."""
    return Html(
        '<span class="hp-progress"><span class="hp-bar" aria-hidden="true">'
        f'<i class="hp-running" style="width:{part:.0%}"></i></span>{safe(words)}</span>'
    )


def table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    label: str,
    empty: str = "None yet.",
    long: str = "",
    titled: bool = False,
    of: int = 0,
    others: str = "more",
) -> None:
    """Draw a small table, or the text `empty` without rows; see `analysis.html.table`. `of` is the number of all
    rows.
    """
    if titled:
        heading(label)
    if not rows:
        nothing(empty)
        return
    st.html(html.table(heads, rows, label=label, long=long))
    if of > len(rows):
        caption(f"and {of - len(rows):,} {others}")
