"""The filter that the pages of a study share, as widgets; what it says is in the address, and goes with the links."""

from __future__ import annotations

from typing import Final

import numpy as np
import streamlit as st

from dashboard_app.frames import Frame
from dashboard_app.views.choice import Choice
from dashboard_app.views.columns import Mask, Parameter

_STATES: Final = ("complete", "pruned", "fail", "running", "waiting")


def shared_filter(frame: Frame, *, states: bool = True) -> tuple[Choice, Mask]:
    """Draw the filter, folded up, and give what it says and which trials pass."""
    columns = frame.columns
    with st.expander("Filter", icon=":material/filter_list:", expanded=False, key="filter"):
        left, right = st.columns(2)
        chosen_states = (
            left.pills("States", _STATES, selection_mode="multi", key="states", bind="query-params") if states else []
        )
        sites = [site for site in columns.sites if site != "-"]
        chosen_sites = right.multiselect(
            "Sites", sites, key="sites", bind="query-params", placeholder="all", disabled=len(sites) < 2
        )
        first = left.number_input("From trial", min_value=0, value=None, step=1, key="from", placeholder="the first")
        last = right.number_input("To trial", min_value=0, value=None, step=1, key="to", placeholder="the last")
        names = st.multiselect(
            "Parameters", list(columns.parameters), key="by", bind="query-params", placeholder="any value"
        )
        ranges = tuple(one for name in names for one in _range(columns.parameters.get(name)))
    choice = Choice(tuple(chosen_states or ()), tuple(chosen_sites), _whole(first), _whole(last), ranges)
    mask = choice.of(columns)
    return choice, mask


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _range(one: Parameter | None) -> list[tuple[str, float, float]]:
    """A slider over the parameter's range; for choices, the choices."""
    if one is None or one.low == one.high:
        return []
    if one.choices is not None:
        picked = st.pills(one.name, range(len(one.choices)), format_func=one.choices.__getitem__,
                          selection_mode="single", key=f"range-{one.name}")  # fmt: skip
        return [] if picked is None else [(one.name, float(picked), float(picked))]
    if one.log:
        low, high = st.select_slider(
            one.name, [f"{v:.3g}" for v in np.geomspace(one.low, one.high, 41)], key=f"range-{one.name}",
            value=(f"{one.low:.3g}", f"{one.high:.3g}"),
        )  # fmt: skip
        return [(one.name, float(low) * (1 - 1e-9), float(high) * (1 + 1e-9))]
    bounds = st.slider(one.name, one.low, one.high, (one.low, one.high), key=f"range-{one.name}")
    return [(one.name, bounds[0], bounds[1])]
