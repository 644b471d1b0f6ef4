"""Reads and writes the browser's address, so that every view of a page is a link that can be shared."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlencode

import streamlit as st

from dashboard_app import options

HOME: Final = "studies"
"""The page that the address without a path shows."""


def given(name: str) -> str:
    """A query parameter of the address; empty if the address lacks it."""
    return str(st.query_params.get(name, ""))


def set_(name: str, value: str) -> None:
    """Set a query parameter of the address; others are kept."""
    if st.query_params.get(name) != value:
        st.query_params[name] = value


def link(page: str, **parts: str | int | None) -> str:
    """The address of a page, relative to this server; pass it through `html.safe` before it enters an `href`."""
    said = {name: str(value) for name, value in parts.items() if value not in (None, "")}
    path = options.current().prefix + ("" if page == HOME else f"/{page}") or "/"
    return f"{path}?{urlencode(said)}" if said else path
