"""Draws a study again only when its log has new commits.

The browser polls for the newest version of what it shows; see `version_poll`. If this version differs from the drawn
one, a component in the body triggers a rerun of its fragment, so only the body is drawn and sent again. The browser
itself counts time in elements with the attributes `data-lease="ann"` (seconds left), `data-since="1700000000"` (how
long ago) and `data-for=…` (how long by now).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import streamlit as st

from dashboard_app import options, theme, version_poll
from dashboard_app.frames import Frame
from dashboard_app.page_context import PageContext
from dashboard_app.replica_cache import Freshness


def live(
    page: PageContext,
    body: Callable[[PageContext, Frame], None],
    *,
    more: Callable[[PageContext, Frame], dict[str, Any]] | None = None,
    key: str = "",
    auto: bool = True,
    age: bool = True,
) -> None:
    """Draw `body(page, frame)` now, and again whenever the study's lsn has changed.

    Args:
        page: a page with a study.
        body: runs as a fragment, so that a widget in it reruns only the body.
        more: small data sent with each poll, for values that change while the log does not; `{"leases": {"ann": 55.0}}`
            counts down in elements with `data-lease="ann"`.
        key: distinguishes several bodies on one page.
        auto: False offers a button when there are changes, and does not redraw content that people read or scroll.
        age: False omits "data as of", for pages where another part shows it.

    """

    def draw() -> None:
        frame = page.frame
        if frame is not None:
            body(page, frame)
            return
        lsn, why = page.cache.lsn(page.uuid), page.cache.freshness(page.uuid).trouble
        theme.nothing(why or f"This study {'was deleted' if lsn < 0 else 'is still loading, or you may not see it'}.")

    follow(
        draw,
        version=lambda: str(page.cache.lsn(page.uuid)),
        freshness=lambda: page.cache.freshness(page.uuid),
        more=lambda: more(page, frame) if more is not None and (frame := page.frame) is not None else {},
        key=f"{key}-{page.uuid}",
        auto=auto,
        age=age,
    )


def follow(
    draw: Callable[[], None],
    *,
    version: Callable[[], str],
    freshness: Callable[[], Freshness],
    more: Callable[[], dict[str, Any]] = dict,
    key: str,
    auto: bool = True,
    age: bool = True,
) -> None:
    """Like `live`, for any content. `version` returns the newest version of what `draw` draws, from memory."""

    def answer() -> dict[str, Any]:
        lag, trouble = freshness()
        shown = round(lag, 1) if lag < 1e9 else None
        return {"version": version(), "lag": shown, "trouble": trouble, "now": round(time.time(), 1), **more()}

    place = f"hopaas-ticket-{key}"
    ticket = st.session_state[place] = version_poll.issue(st.session_state.get(place), answer)
    data = {"ask": f"{options.current().prefix}{version_poll.PATH}?ticket={ticket}", "auto": auto, "age": age}

    @st.fragment
    def body() -> None:
        top, drawn = st.container(), version()  # the version first, so later changes cause another redraw
        draw()
        with top:
            # a trigger needs a callback; this one only makes the fragment run again
            _component()(data={**data, "drawn": drawn}, key=f"hopaas-version-poll-{key}", on_moved_change=lambda: None)

    body()


@cache
def _component() -> Any:
    source = (Path(__file__).parent / "static" / "version_poll.js").read_text(encoding="utf-8")
    return st.components.v2.component("hopaas_version_poll", js=source, isolate_styles=False)
