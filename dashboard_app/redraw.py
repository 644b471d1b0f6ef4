"""Draws a study again when its log has moved on, and only then.

Every two seconds a small element tells the browser up to where the log was read: a few hundred bytes. When that is
past what is drawn, the browser asks for the body again, and nothing else of the page runs or is sent.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final

import streamlit as st

from dashboard_app import theme
from dashboard_app.frames import Frame
from dashboard_app.here import Here

_EVERY: Final = 2.0
_BODY: Final = "hopaas-body"


def live(
    here: Here,
    body: Callable[[Here, Frame], None],
    *,
    more: Callable[[Here, Frame], dict[str, Any]] | None = None,
    key: str = "",
    auto: bool = True,
) -> None:
    """Draw `body(here, frame)` now, and again whenever the study's lsn has changed.

    Args:
        here: with a study.
        body: runs as a fragment: widgets in it run it alone.
        more: small data for the browser with every beat, for what moves though the log does not: `{"leases": {"12":
            55.0}}` counts down in elements with `data-lease="12"`.
        key: tells several on one page apart.
        auto: False only offers a button when there is something new: for what people read or scroll in.

    """
    name, place = _BODY + key, f"hopaas-drawn{key}"

    @st.fragment(key=name)
    def drawn() -> None:
        frame = here.frame
        if frame is None:
            st.session_state[place] = here.feed.lsn(here.uuid)
            gone = st.session_state[place] < 0
            trouble = here.feed.freshness(here.uuid).trouble
            theme.nothing(trouble or ("This study was deleted." if gone else "This study is being read, or created."))
            return
        st.session_state[place] = frame.lsn
        body(here, frame)

    @st.fragment(run_every=_EVERY)
    def pulse() -> None:
        fresh = here.feed.freshness(here.uuid)
        lsn = here.feed.lsn(here.uuid)
        moved = lsn != st.session_state.get(place)
        data: dict[str, Any] = {
            "moved": auto and moved,
            "lsn": lsn,
            "lag": round(fresh.lag, 1) if fresh.lag < 1e9 else None,
            "trouble": fresh.trouble,
        }
        frame = here.frame if more is not None else None
        if more is not None and frame is not None:
            data |= more(here, frame)
        _pulse()(data=data, key=f"hopaas-pulse{key}", on_moved_change=lambda: st.rerun(name))
        if moved and not auto:
            st.button("Show what is new", key=f"hopaas-new{key}", on_click=lambda: st.rerun(name), type="tertiary")

    pulse()
    drawn()


@cache
def _pulse() -> Any:
    source = (Path(__file__).parent / "static" / "pulse.js").read_text(encoding="utf-8")
    return st.components.v2.component("hopaas_pulse", js=source, isolate_styles=False)
