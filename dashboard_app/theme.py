"""How it looks: colours by state, style, and small pieces of HTML in which every text from a store is escaped."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

import streamlit as st

from dashboard_app import url
from hopaas_p2p.analysis import echarts, svg
from hopaas_p2p.analysis.chart import Chart, cut
from hopaas_p2p.analysis.facts import duration, phrase
from hopaas_p2p.analysis.lookalikes import visible

T = TypeVar("T")

_STATIC: Final = Path(__file__).parent / "static"
CONFIG: Final = str(_STATIC / "theme.toml")
ICON: Final = str(_STATIC / "icon.svg")
"""Our own: Streamlit's icons are fetched from a third party's server."""
_SYMBOLS: Final = {
    "running": "◐", "complete": "●", "pruned": "◆", "fail": "✕", "waiting": "○", "paused": "‖", "stopped": "■",
    "idle": "◌", "failing": "✕", "done": "✓", "open": "○", "unknown": "?", "best": "★",
}  # fmt: skip
_WIDE: Final = 8  # digits; longer words are written smaller, because a number that is broken in two is misread
_WHOLE: Final = 11  # characters of all words that stay on one line
_TAG: Final = re.compile(r"<[^>]*>")
_MARKDOWN: Final = re.compile(r"([\\`*{}\[\]()#+.!|>~:$<&]|(?<![^\W_])[_-]|[_-](?![^\W_]))")
"""Characters with a meaning. Between letters, `_` and `-` have none, and a screen reader would read out the escape."""


def safe(text: object, *, longest: int = 200) -> str:
    """Text from a store, escaped for HTML and for a quoted attribute."""
    return svg.safe(text, longest=longest)


def plain(text: object, *, longest: int = 200) -> str:
    """Text from a store, escaped for Markdown, icons and formulas included."""
    return _MARKDOWN.sub(r"\\\1", visible(cut(" ".join(str(text).split()), longest)))


def apply() -> None:
    """Put the style on the page; once per run."""
    st.html(_STATIC / "style.css")


def error(trouble: object, *, icon: str | None = None) -> None:
    """Say why something failed."""
    st.error(plain(trouble, longest=1000), icon=icon)


def link(text: object, name: str, *, study: str, **parts: str | int | None) -> str:
    """A link to a page of a study, as HTML."""
    return f'<a href="{safe(url.link(name, study=study, **parts), longest=4000)}" target="_self">{safe(text)}</a>'


def trial_link(study: str, number: int, words: str = "") -> str:
    """A link to the page of a trial, as HTML."""
    return link(f"{words}{number}", "trial", study=study, trial=number)


def title(text: str, *, above: str = "") -> None:
    """The page's heading, with a smaller line above it."""
    kind = f'<p class="hp-kind">{safe(above)}</p>' if above else ""
    st.html(f'{kind}<h1 class="hp-title">{safe(text)}</h1>')


def heading(text: str) -> None:
    """The heading of a part of a page."""
    st.html(f'<h2 class="hp-heading">{safe(text)}</h2>')


def caption(text: str) -> None:
    """A line of explanation under something."""
    st.html(f'<p class="hp-caption">{safe(text, longest=2000)}</p>')


def nothing(text: str) -> None:
    """Say that there is nothing to show, and what to do about it."""
    st.html(f'<p class="hp-nothing">{safe(text, longest=2000)}</p>')


def draw(chart: Chart | None, *, key: str, empty: str = "Nothing to draw yet.") -> None:
    """Draw the chart under its title; without a chart, say why. Streamlit's ECharts takes data only, and no code.

    Texts in an option are drawn as text by ECharts; a tooltip's `formatter` is HTML, so no name goes into one.
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
    """One of a few options, the first by default; kept in the address."""
    chosen = st.segmented_control(
        label, options, default=options[0], format_func=names, key=key, bind="query-params", required=True,
        label_visibility="visible" if visible else "collapsed",
    )  # fmt: skip
    return next((one for one in options if one == chosen), options[0])


def pill(word: str) -> str:
    """A state as HTML: shape, word and colour."""
    symbol = _SYMBOLS.get(word, "")
    return f'<span class="hp-pill hp-{safe(word)}"><i aria-hidden="true">{symbol}</i>{safe(word)}</span>'


def ago(at: float) -> str:
    """How long ago a time was (seconds since 1970), as HTML that keeps counting."""
    seconds = max(0.0, time.time() - at)
    words = "just now" if seconds < 2 else f"{_whole(seconds)} ago"
    return f'<time data-since="{at:.0f}">{words}</time>'


def lasting(since: float) -> str:
    """How long something has lasted since a time, as HTML that keeps counting."""
    return f'<time data-for="{since:.0f}">{_whole(max(0.0, time.time() - since))}</time>'


def lease(name: object, left: float | None, *, ttl: float | None = None) -> str:
    """What is left of a lease (seconds, None while unknown), as HTML that counts down under this name.

    With the `ttl`, how long ago its owner was last seen.
    """
    words = "unknown, watching" if left is None else f"{_whole(left)} left" if left > 0 else "may be taken over"
    if ttl is not None and left is not None:
        words = f"{_whole(max(0.0, ttl - left))} ago"
    of = "" if ttl is None else f' data-ttl="{ttl:g}"'
    return f'<span data-lease="{safe(name)}"{of}>{words}</span>'


def _whole(seconds: float) -> str:
    """Whole seconds, in the format of the browser's own counter."""
    return f"{seconds:.0f} s" if seconds < 59.5 else duration(seconds)


def tag(text: str) -> str:
    """A tag as HTML."""
    return f'<span class="hp-tag">{safe(text, longest=64)}</span>'


def tiles(facts: Iterable[tuple[str, str, str]]) -> None:
    """A row of numbers: (what it is, the number, a small line below)."""
    parts = []
    for what, value, more in facts:
        longest = max((len(word) + 2 * word.isalpha() for word in value.split()), default=0)  # letters are wider
        css = ' class="hp-long"' if longest > _WIDE or _WIDE < len(value) <= _WHOLE else ""
        parts.append(
            f'<div class="hp-tile"><span>{safe(phrase(what))}</span><b{css}>{safe(value)}</b><i>{safe(more)}</i></div>'
        )
    st.html(f'<div class="hp-tiles">{"".join(parts)}</div>')


def spark(values: Sequence[float], words: str, *, wide: bool = False) -> str:
    """A small curve as HTML: an image, because inline SVG is stripped. `words` describe it."""
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


def share(part: float, words: str = "", *, css: str = "hp-complete") -> str:
    """A share as HTML: a bar, and the number or other words."""
    return (
        '<span class="hp-progress"><span class="hp-bar" aria-hidden="true">'
        f'<i class="{css}" style="width:{part:.0%}"></i></span>{words or f"{part:.0%}"}</span>'
    )


def table(
    headers: Iterable[str], rows: Sequence[Sequence[str]], *, label: str, empty: str = "None yet.",
    names: Iterable[int] = (), titled: bool = False,
) -> None:  # fmt: skip
    """A small table, or words if it is empty. Cells are HTML: text from a store goes through `safe`.

    Headers begin with a capital letter, except in the columns `names`, which are headed by names from a study. Columns
    of numbers stand to the right.
    """
    if titled:
        heading(label)
    if not rows:
        nothing(empty)
        return
    texts = [[_TAG.sub("", cell).replace("&lt;", "<") for cell in column] for column in zip(*rows, strict=True)]
    right = [any(column) and all(one[:1].isdigit() or one[:1] in "-<" for one in column) for column in texts]
    css, verbatim = [' class="hp-number"' if one else "" for one in right], frozenset(names)
    head = "".join(
        f'<th scope="col"{one}>{safe(text if at in verbatim else phrase(text))}</th>'
        for at, (one, text) in enumerate(zip(css, headers, strict=True))
    )
    body = "".join(
        f"<tr>{''.join(f'<td{one}>{cell}</td>' for one, cell in zip(css, row, strict=True))}</tr>" for row in rows
    )
    st.html(
        f'<div class="hp-scroll" role="region" tabindex="0" aria-label="{safe(label)}"><table class="hp-table">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
