"""The one place that renders a chart: Streamlit's own ECharts element, which takes data only and no code.

A chart is a `views.spec.Chart`: its title and caption stand beside it as text, `alt` names it for who cannot see it.
Texts in an option are drawn as text by ECharts; a tooltip's `formatter` is HTML, so no name goes into one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from dashboard_app import theme
from dashboard_app.views.spec import Chart


def draw(chart: Chart | None, *, key: str, empty: str = "Nothing to draw yet.") -> None:
    """Draw the chart under its title; without one, say why."""
    if chart is None:
        theme.nothing(empty)
        return
    if chart.title:
        theme.heading(chart.title)
    st.echarts_chart(_dressed(chart.option), height=chart.height, key=key, alt=chart.alt)
    if chart.caption:
        theme.caption(chart.caption)


def _dressed(option: Mapping[str, Any]) -> dict[str, Any]:
    return {"animation": False, **option}
