"""Draws a study again when its log has moved on, and only then.

The browser asks for the version of what it shows, see `pulse`. When that is not what is drawn, an element in the body
fires, as a button of a fragment would: the body is drawn again, and nothing else of the page runs or is sent. Elements
that only count with the time do so in the browser, at every beat: `data-lease="12"` (seconds left),
`data-since="1700000000"` (how long ago), `data-for=…` (how long by now).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import streamlit as st

from dashboard_app import options, pulse, theme
from dashboard_app.feed import Freshness
from dashboard_app.frames import Frame
from dashboard_app.here import Here


def live(
    here: Here,
    body: Callable[[Here, Frame], None],
    *,
    more: Callable[[Here, Frame], dict[str, Any]] | None = None,
    key: str = "",
    auto: bool = True,
    age: bool = True,
) -> None:
    """Draw `body(here, frame)` now, and again whenever the study's lsn has changed.

    Args:
        here: with a study.
        body: runs as a fragment: widgets in it run it alone.
        more: small data for the browser with every beat, for what moves though the log does not: `{"leases": {"12":
            55.0}}` counts down in elements with `data-lease="12"`.
        key: tells several on one page apart.
        auto: False only offers a button when there is something new: for what people read or scroll in.
        age: False shows no "data as of": where another part of the page does.

    """

    def drawn() -> str:
        frame = here.frame if here.role() != "none" else None  # a grant may have been taken away since
        if frame is None:
            lsn = here.feed.lsn(here.uuid)
            why = here.feed.freshness(here.uuid).trouble
            theme.nothing(why or ("This study was deleted." if lsn < 0 else "This study is being read, or created."))
            return str(lsn)
        body(here, frame)
        return str(frame.lsn)

    def extra() -> dict[str, Any]:
        frame = here.frame if more is not None else None
        return more(here, frame) if more is not None and frame is not None else {}

    follow(
        drawn,
        version=lambda: str(here.feed.lsn(here.uuid)),
        freshness=lambda: here.feed.freshness(here.uuid),
        more=extra,
        key=f"{key}-{here.uuid}",
        auto=auto,
        age=age,
    )


def follow(
    draw: Callable[[], str],
    *,
    version: Callable[[], str],
    freshness: Callable[[], Freshness],
    more: Callable[[], dict[str, Any]] = dict,
    key: str,
    auto: bool = True,
    age: bool = True,
) -> None:
    """As `live`, for anything: `draw` returns the version that it drew; `version` tells the newest, from memory."""

    def answer() -> dict[str, Any]:
        fresh = freshness()
        return {
            "version": version(),
            "lag": round(fresh.lag, 1) if fresh.lag < 1e9 else None,
            "trouble": fresh.trouble,
            "now": round(time.time(), 1),
            **more(),
        }

    place = f"hopaas-ticket-{key}"
    ticket = st.session_state[place] = pulse.issue(st.session_state.get(place), answer)
    base = options.current().base_path.strip("/")
    data = {"ask": f"{'/' + base if base else ''}{pulse.PATH}?ticket={ticket}", "auto": auto, "age": age}

    @st.fragment
    def body() -> None:
        top = st.container()
        shown = draw()
        with top:
            _component()(data={**data, "drawn": shown}, key=f"hopaas-pulse-{key}", on_moved_change=_nothing)

    body()


def _nothing() -> None:
    """A trigger needs a callback; that the fragment runs again is all that it is for."""


@cache
def _component() -> Any:
    source = (Path(__file__).parent / "static" / "pulse.js").read_text(encoding="utf-8")
    return st.components.v2.component("hopaas_pulse", js=source, isolate_styles=False)
