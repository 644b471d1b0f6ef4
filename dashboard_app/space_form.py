"""A form built from a search space: one field a parameter, each of which may be left to the sampler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import streamlit as st

from hopaas_p2p.core.records import Categorical, Distribution, Float, Int

_LEFT: Final = "left open"


def space_form(space: Mapping[str, Distribution]) -> dict[str, Any]:
    """Draw the fields, and give what was filled in; what was left empty is not there."""
    places = st.columns(2)
    given: dict[str, Any] = {}
    for at, (name, one) in enumerate(list(space.items())):
        with places[at % 2]:
            value = _field(name, one)
        if value is not None:
            given[name] = value
    return given


def _field(name: str, one: Distribution) -> Any:
    key = f"new-{name}"
    if isinstance(one, Categorical):
        at = st.selectbox(
            _label(name), range(len(one.choices)), index=None, placeholder=_LEFT, key=key,
            format_func=lambda index: str(one.choices[index]),
        )  # fmt: skip
        return None if at is None else one.choices[at]
    scale = ", log" if one.log else ""
    if isinstance(one, Int):
        whole = st.number_input(
            f"{_label(name)} ({one.low} to {one.high}{scale})", one.low, one.high, value=None, step=one.step,
            placeholder=_LEFT, key=key,
        )  # fmt: skip
        return None if whole is None else int(whole)
    assert isinstance(one, Float)
    return st.number_input(
        f"{_label(name)} ({one.low:g} to {one.high:g}{scale})", one.low, one.high, value=None,
        step=one.step or (one.high - one.low) / 100 or None, placeholder=_LEFT, key=key, format="%.6g",
    )  # fmt: skip


def _label(name: str) -> str:
    """The name as it is: what would be Markdown in it is escaped."""
    from dashboard_app.theme import plain

    return plain(name, longest=60)
