"""How it looks: colours by state, style, and small pieces of HTML in which every text from a store is escaped."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import streamlit as st

from hopaas_p2p.report.facts import duration

if TYPE_CHECKING:
    from dashboard_app.here import Here

CONFIG: Final[dict[str, Any]] = {
    "theme.font": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif",
    "theme.baseRadius": "10px",
    "theme.showWidgetBorder": True,
    "theme.light.primaryColor": "#1f5fd0",
    "theme.light.backgroundColor": "#f6f7f9",
    "theme.light.secondaryBackgroundColor": "#ffffff",
    "theme.light.textColor": "#1a2230",
    "theme.light.borderColor": "#e1e5eb",
    "theme.light.sidebar.backgroundColor": "#eef1f5",
    "theme.dark.primaryColor": "#7aa9ff",
    "theme.dark.backgroundColor": "#10141b",
    "theme.dark.secondaryBackgroundColor": "#181e28",
    "theme.dark.textColor": "#e6eaf1",
    "theme.dark.borderColor": "#2a3341",
    "theme.dark.sidebar.backgroundColor": "#0c1016",
}
"""Streamlit's own settings of the theme; the fonts are those of the reader's machine, so that none are sent."""

STATE_COLOURS: Final = {
    "running": "#0f9d8a",
    "complete": "#3b7be8",
    "pruned": "#a3854f",
    "fail": "#d9485f",
    "waiting": "#7c8798",
}
"""Seen on light and on dark; every use has a word or a shape beside it."""
STATE_SYMBOLS: Final = {
    "running": "◐",
    "complete": "●",
    "pruned": "◆",
    "fail": "✕",
    "waiting": "○",
    "paused": "‖",
    "stopped": "■",
    "stalled": "!",
    "failing": "✕",
    "done": "✓",
    "new": "○",
}
_WIDE: Final = 8  # characters; more are written smaller, for a number or a time that is broken in two is read wrongly
_WHOLE: Final = 11  # characters of all words that shall stay in one line
_LONG: Final = ' class="hp-long"'
_MARKDOWN: Final = re.compile(r"([\\`*{}\[\]()#+.!|>~:$<&]|(?<![^\W_])[_-]|[_-](?![^\W_]))")
"""What would mean something. Between letters `_` and `-` mean nothing, and a screen reader is told the escape, too."""


def safe(text: object, *, longest: int = 200) -> str:
    """Text from a store, fit to stand in HTML and in a quoted attribute."""
    words = str(text)
    if len(words) > longest:
        words = words[: longest - 1] + "…"
    return html.escape(words, quote=True)


def plain(text: object, *, longest: int = 200) -> str:
    """Text from a store, fit to stand in Markdown and mean nothing there: also not as an icon or a formula."""
    words = " ".join(str(text).split())
    if len(words) > longest:
        words = words[: longest - 1] + "…"
    return _MARKDOWN.sub(r"\\\1", words)


ICON: Final = str(Path(__file__).parent / "static" / "icon.svg")
"""Ours, for a browser would fetch one of Streamlit's from a server that it has no business with."""


@cache
def _style() -> str:
    return (Path(__file__).parent / "static" / "style.css").read_text(encoding="utf-8")


def apply() -> None:
    """Put the style on the page; once a run."""
    st.html(f"<style>{_style()}</style>")


def title(text: str, here: Here | None = None) -> None:
    """The page's heading, under the name of the study it is about."""
    kind = ""
    if here is not None and here.listing is not None:
        kind = f'<p class="hp-kind">{safe(here.listing.name)}</p>'
    st.html(f'{kind}<h1 class="hp-title">{safe(text)}</h1>')


def heading(text: str) -> None:
    """The heading of a part of a page."""
    st.html(f'<h2 class="hp-heading">{safe(text)}</h2>')


def caption(text: str) -> None:
    """A line of explanation under something."""
    st.html(f'<p class="hp-caption">{safe(text, longest=2000)}</p>')


def nothing(text: str) -> None:
    """What stands where there is nothing to show, and what to do about it."""
    st.html(f'<p class="hp-nothing">{safe(text, longest=2000)}</p>')


def pill(word: str) -> str:
    """A state as HTML: shape, word and colour."""
    symbol = STATE_SYMBOLS.get(word, "")
    return f'<span class="hp-pill hp-{safe(word)}"><i aria-hidden="true">{symbol}</i>{safe(word)}</span>'


def ago(at: float) -> str:
    """How long ago a moment was (seconds since 1970), as HTML that goes on counting."""
    seconds = max(0.0, time.time() - at)
    words = "just now" if seconds < 2 else f"{_whole(seconds)} ago"
    return f'<time data-since="{at:.0f}">{words}</time>'


def lasting(since: float) -> str:
    """For how long something has lasted since a moment, as HTML that goes on counting."""
    return f'<time data-for="{since:.0f}">{_whole(max(0.0, time.time() - since))}</time>'


def _whole(seconds: float) -> str:
    """As the browser says it when it goes on counting: no parts of a second."""
    return f"{seconds:.0f} s" if seconds < 59.5 else duration(seconds)


def tag(text: str) -> str:
    """A tag as HTML."""
    return f'<span class="hp-tag">{safe(text, longest=64)}</span>'


def _is_long(value: str) -> bool:
    return any(len(word) > _WIDE for word in value.split()) or _WIDE < len(value) <= _WHOLE


def tiles(facts: Iterable[tuple[str, str, str]]) -> None:
    """A row of numbers: (what it is, the number, a small line below)."""
    parts = [
        f'<div class="hp-tile"><span>{safe(what)}</span><b{_LONG if _is_long(value) else ""}>{safe(value)}</b>'
        f"<i>{safe(more)}</i></div>"
        for what, value, more in facts
    ]
    st.html(f'<div class="hp-tiles">{"".join(parts)}</div>')


def spark(values: Sequence[float], words: str, *, wide: bool = False) -> str:
    """A small curve as HTML: an image, for inline SVG is stripped. `words` say what it shows."""
    if len(values) < 2:
        return ""
    width, height = (300, 40) if wide else (90, 22)
    low, high = min(values), max(values)
    room, step = (high - low) or 1.0, width / (len(values) - 1)
    points = "L".join(f"{at * step:.0f} {2 + (high - one) / room * (height - 4):.0f}" for at, one in enumerate(values))
    image = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" preserveAspectRatio="none">'
        f'<path d="M{points}" fill="none" stroke="#3b7be8" stroke-width="2" vector-effect="non-scaling-stroke"/></svg>'
    )
    css = "hp-spark hp-wide" if wide else "hp-spark"
    return f'<img class="{css}" alt="{safe(words)}" src="data:image/svg+xml,{quote(image)}">'


def share(part: float) -> str:
    """A share as HTML: a bar and the number."""
    return (
        '<span class="hp-progress"><span class="hp-bar" aria-hidden="true">'
        f'<i class="hp-complete" style="width:{part:.0%}"></i></span>{part:.0%}</span>'
    )


def table(
    headers: Iterable[str], rows: Sequence[Iterable[str]], *, label: str, numeric: Iterable[int] = (),
    empty: str = "None yet.",
) -> None:  # fmt: skip
    """A small table; without a row, the words for that. Cells are HTML: what comes from a store goes through `safe`."""
    if not rows:
        nothing(empty)
        return
    right = frozenset(numeric)

    def css(column: int) -> str:
        return ' class="hp-number"' if column in right else ""

    head = "".join(f'<th scope="col"{css(column)}>{safe(text)}</th>' for column, text in enumerate(headers))
    body = "".join(
        "<tr>" + "".join(f"<td{css(column)}>{cell}</td>" for column, cell in enumerate(row)) + "</tr>" for row in rows
    )
    st.html(
        f'<div class="hp-scroll" role="region" tabindex="0" aria-label="{safe(label)}"><table class="hp-table">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
