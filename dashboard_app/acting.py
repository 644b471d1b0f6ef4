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
    if not here.may_act:
        st.error("This dashboard is read-only; it is started with --allow-actions to change things.")
        return False
    try:
        do(here.study())
    except HopaasError as error:
        st.error(theme.plain(error, longest=1000), icon=":material/block:")
        return False
    here.feed.hurry(here.uuid)
    st.toast(theme.plain(done), icon=":material/check:")
    return True
