"""Doing what somebody asked for, and saying what became of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import streamlit as st

from dashboard_app import theme
from dashboard_app.here import Here
from hopaas_p2p.errors import HopaasError

if TYPE_CHECKING:
    from hopaas_p2p.study import Study


def act(here: Here, do: Callable[[Study], Any], *, done: str) -> bool:
    """Do it to the study; a message says that it is done, or why it was refused. Whether it is done.

    What the store does not allow is refused by the store, whatever this page shows.
    """
    refused = attempt(here, do)
    if refused is not None:
        st.error(theme.plain(refused, longest=1000), icon=":material/block:")
        return False
    st.toast(theme.plain(done), icon=":material/check:")
    return True


def attempt(here: Here, do: Callable[[Study], Any]) -> str | None:
    """Do it to the study. None when it is done, else why it was refused."""
    if not here.options.actions:
        return "This dashboard is read-only; it is started with --allow-actions to change things."
    if not here.may_act:
        return "Your grant for this study lets you look only."
    try:
        do(here.study())
    except HopaasError as error:
        return str(error)
    here.feed.hurry(here.uuid)
    return None
