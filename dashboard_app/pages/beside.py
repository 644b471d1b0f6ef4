"""Side by side: two to five trials of a study, and in what they differ."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from dashboard_app import theme, url
from dashboard_app.frames import Frame
from dashboard_app.page_context import PageContext
from dashboard_app.redraw import live
from dashboard_app.theme import draw
from dashboard_app.views import beside
from dashboard_app.views.beside import Fact


def show(page: PageContext) -> None:
    """The page."""
    page.title("Side by side")
    frame = page.frame
    if frame is None or len(frame.columns) < 2:
        theme.nothing("Choose two trials or more to compare.")
        return
    if not url.given("trials"):  # a default would be left out of the address
        st.session_state.setdefault("trials", ", ".join(map(str, beside.first_choice(frame.columns))))
    text = st.text_input(
        "Trials", key="trials", bind="query-params", placeholder="numbers, such as 3, 17, 42", max_chars=100
    )
    only = st.toggle("Show differences only", key="differing", bind="query-params")
    numbers = beside.numbers_in(text or "", len(frame.columns))
    if len(numbers) < 2:
        theme.nothing(f"Enter the numbers of two to {beside.MOST} trials of this study.")
        return
    live(page, lambda _page, frame: _body(frame, numbers, only=only), auto=False)


def _body(frame: Frame, numbers: Sequence[int], *, only: bool) -> None:
    found = beside.side_by_side(frame.state, frame.columns, numbers)
    differing = sum(one.differs for one in found.params)
    theme.caption(f"{differing} of {len(found.params)} parameters differ.")
    best = frame.columns.best() if len(frame.columns.directions) == 1 else None
    state = ["state"]
    for one in numbers:
        pill = theme.pill("best" if one == best else frame.state.trials[one].state.name.lower())
        state.append(f"{pill} {theme.trial_link(frame.name, one, 'open ')}")
    rows = [state, *_rows(found.results, mark=False, only=only)]
    rows += _rows(found.params, mark=True, only=only)
    rows += _rows(found.metrics, mark=False, only=only, of="metric ")
    headers = ["what", *(f"trial {one}" for one in numbers)]
    theme.table(headers, rows, label="Trials side by side")
    draw(beside.curves(frame.state, numbers), key="curves", empty="None of these trials has a learning curve.")


def _rows(facts: Sequence[Fact], *, mark: bool, only: bool, of: str = "") -> list[list[str]]:
    """Lines of the table. A parameter that differs is marked in words, and its values are bold."""
    rows = []
    for one in facts:
        if only and not one.differs:
            continue
        marked = mark and one.differs
        name = f"{of}{theme.safe(one.name)}" + (f" {theme.tag('differs')}" if marked else "")
        cells = [theme.safe(cell) or "-" for cell in one.cells]
        rows.append([name, *(f"<b>{cell}</b>" if marked else cell for cell in cells)])
    return rows
