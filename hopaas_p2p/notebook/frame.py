"""HTML for a notebook's cell, with styles that apply to nothing else, in the notebook's own colours."""

from __future__ import annotations

import functools
import importlib.resources

from hopaas_p2p.analysis.charts import Figure
from hopaas_p2p.analysis.svg import safe
from hopaas_p2p.report.page import part


def framed(body: str) -> str:
    """The body with its styles."""
    return f'<div class="hopaas-p2p"><style>{_style()}</style>{body}</div>'


@functools.cache
def _style() -> str:
    """Nested under one class; the colours of text and lines are mixed from the notebook's, light or dark."""
    own = importlib.resources.files(__package__).joinpath("style.css").read_text(encoding="utf-8")
    return f".hopaas-p2p {{\n{part('charts.css')}{own}}}"


def drawn(figure: Figure) -> str:
    """A chart with its title and caption."""
    drawing = f'<div class="scroll" tabindex="0">{figure.drawing}</div>' if figure.wide else figure.drawing
    css = "" if figure.wide else ' class="narrow"'
    head, foot = f'<div class="head">{safe(figure.title)}</div>', f"<figcaption>{figure.caption}</figcaption>"
    return f"<figure{css}>{head}{drawing}{foot}</figure>"
