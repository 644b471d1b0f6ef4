"""Tables and tiles as HTML, for report, notebook and monitor. This module escapes all text that is not HTML yet."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import Final

from hopaas_p2p.analysis.chart import cut
from hopaas_p2p.analysis.facts import phrase
from hopaas_p2p.errors import visible

_TAG: Final = re.compile(r"<[^>]*>")
_NUMERIC: Final = re.compile(r"[-<]?(inf|[\d.,]+(e[-+]\d+)?)\b|-?$")  # not a name that begins with a digit
_WIDE: Final = 8  # characters; longer words are smaller, because a number broken across lines is misread
_WHOLE: Final = 11  # characters; a string of at most this many stays on one line, in smaller letters


class Html(str):
    """Text that is already HTML. Any other text is escaped before it enters HTML."""

    __slots__ = ()


def safe(text: object, *, longest: int = 200) -> Html:
    """Text for HTML and quoted attributes. It is escaped and cut to `longest`, and invisible characters are written
    out. HTML is not changed.
    """
    if isinstance(text, Html):
        return text
    return Html(html.escape(visible(cut(str(text), longest), keep="\n\t"), quote=True))


def table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, label: str, long: str = "", first: bool = False
) -> Html:
    """A table as HTML; an empty string if there are no rows. Columns of numbers are right-aligned.

    Args:
        heads: the heads, which get an initial capital unless they are HTML, such as names from a study.
        rows: lists of cells, one cell per head.
        label: the description for screen readers.
        long: the head of a column that may wrap.
        first: whether the first row stands out.

    """
    if not rows:
        return Html()
    css = []
    for head, column in zip(heads, zip(*rows, strict=True), strict=True):
        seen = [_TAG.sub("", one).replace("&lt;", "<") if isinstance(one, Html) else one for one in column]
        numeric = any(seen) and all(map(_NUMERIC.match, seen))
        css.append(' class="hp-wraps"' if long and head == long else ' class="hp-number"' if numeric else "")
    top = "".join(
        f'<th scope="col"{one}>{safe(head if isinstance(head, Html) else phrase(head))}</th>'
        for one, head in zip(css, heads, strict=True)
    )
    body = "".join(
        f"<tr>{''.join(f'<td{one}>{safe(cell)}</td>' for one, cell in zip(css, row, strict=True))}</tr>" for row in rows
    )
    return Html(
        f'<div class="hp-scroll" role="region" tabindex="0" aria-label="{safe(label)}">'
        f'<table class="hp-table {"hp-first" if first else ""}">'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def tiles(found: Iterable[tuple[str, str, str]]) -> Html:
    """A row of tiles, each given as (what the number is, the number, a small line below)."""
    parts = []
    for what, value, more in found:
        longest = max((len(word) + 2 * word.isalpha() for word in value.split()), default=0)  # letters are wider
        css = ' class="hp-long"' if longest > _WIDE or _WIDE < len(value) <= _WHOLE else ""
        parts.append(
            f'<div class="hp-tile"><span>{safe(phrase(what))}</span><b{css}>{safe(value)}</b><i>{safe(more)}</i></div>'
        )
    return Html(f'<div class="hp-tiles">{"".join(parts)}</div>')
