"""The filter that the pages of a study share, as widgets. It is kept in the address, so links contain it."""

from __future__ import annotations

import numpy as np
import streamlit as st

from dashboard_app import theme
from dashboard_app.frames import Frame
from dashboard_app.views.table import passing
from hopaas_p2p.analysis.table import Mask, Parameter

_STATES = ("complete", "pruned", "fail", "running", "waiting", "paused")


def shared_filter(frame: Frame, *, states: bool = True) -> Mask:
    """Draw the filter, collapsed, and return which trials pass it."""
    columns = frame.columns
    sites = [site for site in columns.sites if site != "-"]
    with st.expander("Filter", icon=":material/filter_list:", expanded=False, key="filter"):
        left, right = st.columns(2)
        chosen = (
            left.pills("States", _STATES, selection_mode="multi", key="states", bind="query-params") if states else []
        )
        return passing(
            columns,
            states=chosen,
            sites=right.multiselect(
                "Sites", sites, key="sites", bind="query-params", placeholder="all", disabled=len(sites) < 2
            ),
            first=left.number_input(
                "From trial", min_value=0, value=None, step=1, key="from", bind="query-params", placeholder="the first"
            ),
            last=right.number_input(
                "To trial", min_value=0, value=None, step=1, key="to", bind="query-params", placeholder="the last"
            ),
            ranges=[
                one
                for name in st.multiselect(
                    "Parameters", list(columns.parameters), key="by", bind="query-params", placeholder="any value"
                )
                for one in _range(columns.parameters.get(name))
            ],
        )


def _range(one: Parameter | None) -> list[tuple[str, float, float]]:
    """Draw a slider over the parameter's range, or a list of its choices; return the chosen range, if there is one.

    Labels are Markdown, so names are escaped.
    """
    if one is None or one.low == one.high:
        return []
    label, key = theme.plain(one.name, longest=60), f"range-{one.name}"
    if one.choices is not None:
        words = [theme.plain(choice, longest=40) for choice in one.choices]
        picked = st.pills(
            label, range(len(words)), format_func=words.__getitem__, selection_mode="single", key=key,
            bind="query-params",
        )  # fmt: skip
        return [] if picked is None else [(one.name, float(picked), float(picked))]
    if one.log:
        steps = [f"{value:.3g}" for value in np.geomspace(one.low, one.high, 41)]
        ends = (steps[0], steps[-1])
        picked_ends = st.select_slider(label, steps, value=ends, key=key, bind="query-params")
        low, high = float(picked_ends[0]) * (1 - 1e-9), float(picked_ends[1]) * (1 + 1e-9)
        return [(one.name, low, high)] if picked_ends != ends else []
    low, high = st.slider(
        label, one.low, one.high, (one.low, one.high), step=1.0 if one.whole else (one.high - one.low) / 100,
        format="%.6g", key=key, bind="query-params",
    )  # fmt: skip
    return [(one.name, low, high)] if (low, high) != (one.low, one.high) else []
