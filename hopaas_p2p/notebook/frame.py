"""HTML for a notebook's cell, in the notebook's own colours. Its styles affect nothing outside the cell."""

from __future__ import annotations

import functools
import importlib.resources

from hopaas_p2p.analysis.chart import Chart
from hopaas_p2p.analysis.html import safe
from hopaas_p2p.report.page import figure, part


def framed(body: str) -> str:
    """The body of a view with its styles."""
    return f'<div class="hopaas-p2p"><style>{_style()}</style>{body}</div>'


@functools.cache
def _style() -> str:
    """The style sheet, nested under one class. Text and lines get mixtures of the notebook's own colours, light or
    dark.
    """
    own = importlib.resources.files(__package__).joinpath("style.css").read_text(encoding="utf-8")
    return f".hopaas-p2p {{\n{part('charts.css')}{part('tables.css')}{own}}}"


def drawn(chart: Chart) -> str:
    """A chart with its title and caption."""
    return f'<div><div class="head">{safe(chart.title)}</div>{figure(chart)}</div>'
