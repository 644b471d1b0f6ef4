"""The page Explore, which shows how the parameters affect the objective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import streamlit as st

from dashboard_app import theme
from dashboard_app.filters import shared_filter
from dashboard_app.frames import Frame
from dashboard_app.page_context import PageContext
from dashboard_app.redraw import live
from dashboard_app.theme import draw
from hopaas_p2p.analysis import charts
from hopaas_p2p.analysis.importance import importance
from hopaas_p2p.analysis.table import Mask

_MOST_AXES: Final = 8
_SLICES: Final = 6
_NOTHING: Final = "No complete trial passes the filter."


def show(page: PageContext) -> None:
    """The page. Parallel coordinates are redrawn only on a click, because every redraw resets selections on the
    axes.
    """
    page.title("Explore")
    frame = page.frame
    params, objectives = (len(frame.columns.parameters), len(frame.columns.directions)) if frame is not None else (0, 1)
    hidden = {"Importance", "Slice", "Parallel"} if not params else set()
    hidden |= {"Pareto front"} if objectives < 2 else set()
    chosen = theme.segments("Chart", [one for one in _CHARTS if one not in hidden], key="chart", visible=False)
    live(page, lambda _page, frame: _body(frame, chosen), key=chosen, auto=chosen != "Parallel")


def _body(frame: Frame, chosen: str) -> None:
    mask = shared_filter(frame, states=False)
    objective, directions = 0, frame.columns.directions
    if len(directions) > 1 and chosen != "Pareto front":
        names = [f"{name}: {one}" for name, one in zip(frame.columns.objectives, directions, strict=True)]
        objective = names.index(theme.segments("Objective", names, key="objective"))
    if not mask.all():
        theme.caption(f"{int(mask.sum()):,} of {len(mask):,} trials pass the filter.")
    if not frame.columns.complete(objective).any():
        theme.nothing("No trial is complete yet. Charts appear after the first complete trial.")
        return
    _CHARTS[chosen](frame, objective, None if mask.all() else mask)


def _computed(frame: Frame, shown: Mask | None, view: Callable[..., Any], *names: Any, **options: Any) -> Any:
    """A view's result for the trials shown, computed once for all sessions that show the same ones."""
    key = (view.__name__, _key(shown), names, *sorted(options.items()))
    return frame.once(lambda _frame: view(frame.columns, *names, shown=shown, **options), *key)


def _key(shown: Mask | None) -> bytes:
    return b"" if shown is None else shown.tobytes()


def _history(frame: Frame, objective: int, shown: Mask | None) -> None:
    along = theme.segments("Horizontal axis", list(charts.ALONG), names=charts.ALONG.__getitem__, key="along")
    draw(_computed(frame, shown, charts.history, objective=objective, along=along), key="history", empty=_NOTHING)


def _importance(frame: Frame, objective: int, shown: Mask | None) -> None:
    key = "importance", objective, _key(shown)
    found = frame.once(lambda one: importance(one.state, one.columns, objective, shown), *key)
    draw(charts.importance(found), key="importance", empty=found.note)


def _slice(frame: Frame, objective: int, shown: Mask | None) -> None:
    names = list(frame.columns.parameters)
    chosen = st.multiselect(
        "Parameters", names, default=names[:2], key="slices", max_selections=_SLICES, bind="query-params"
    )
    places = st.columns(2) if len(chosen) > 1 else [st.container()]
    for at, name in enumerate(chosen):
        with places[at % len(places)]:
            chart = _computed(frame, shown, charts.slice_, name, objective=objective)
            draw(chart, key=f"slice-{at}", empty=f"No complete trial has {name}.")


def _parallel(frame: Frame, objective: int, shown: Mask | None) -> None:
    names = list(frame.columns.parameters)
    shown_first = names[:_MOST_AXES]
    chosen = st.multiselect("Axes", names, default=shown_first, key="axes", max_selections=12, bind="query-params")
    chart = _computed(frame, shown, charts.parallel, *chosen, objective=objective)
    if chart is None:
        theme.nothing("Choose at least one parameter.")
        return
    draw(chart._replace(caption=f"{chart.caption}. {_BRUSH}"), key="parallel")


def _pareto(frame: Frame, _objective: int, shown: Mask | None) -> None:
    objectives = range(len(frame.columns.directions))
    first, second = 0, 1
    if len(objectives) > 2:
        (left, right), named = st.columns(2), frame.columns.objectives.__getitem__
        first = left.selectbox("Across", objectives, format_func=named, key="first", bind="query-params")
        others = [at for at in objectives if at != first]
        second = right.selectbox("Up", others, format_func=named, key="second", bind="query-params")
    draw(_computed(frame, shown, charts.pareto, first=first, second=second), key="pareto", empty=_NOTHING)


_BRUSH: Final = (
    "Drag along an axis to highlight the lines that pass there; click the axis to show all lines again. To choose "
    "trials on every page, set a range in the filter."
)
_CHARTS: Final[dict[str, Callable[[Frame, int, Mask | None], None]]] = {
    "History": _history,
    "Pareto front": _pareto,
    "Importance": _importance,
    "Slice": _slice,
    "Parallel": _parallel,
}
