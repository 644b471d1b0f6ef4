"""Explore: what the parameters did to the objective."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import streamlit as st

from dashboard_app import theme
from dashboard_app.filters import shared_filter
from dashboard_app.frames import Frame
from dashboard_app.page_context import PageContext
from dashboard_app.redraw import live
from dashboard_app.theme import draw
from dashboard_app.views import params, spread
from hopaas_p2p.analysis import charts
from hopaas_p2p.analysis.importance import Importance, importance
from hopaas_p2p.analysis.table import Selection

_MOST_AXES: Final = 8
_SLICES: Final = 6
_NOTHING: Final = "No complete trial passes the filter."


def show(page: PageContext) -> None:
    """The page. A brushed axis would be lost with every trial that ends, so parallel coordinates wait for a click."""
    page.title("Explore")
    frame = page.frame
    params, objectives = (len(frame.columns.parameters), len(frame.columns.directions)) if frame is not None else (0, 1)
    fewest = {"Importance": 1, "Slice": 1, "Contour": 2, "Parallel": 1}
    offered = [name for name in _CHARTS if fewest.get(name, 0) <= params and (name != "Pareto front" or objectives > 1)]
    chosen = theme.segments("Chart", offered, key="chart", visible=False)
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
        theme.nothing("No trial is complete yet. Charts appear when the first one is.")
        return
    _CHARTS[chosen](frame, Selection(objective, shown=None if mask.all() else mask))


def _computed(frame: Frame, selection: Selection, view: Callable[..., Any], *names: Any, **options: Any) -> Any:
    """What a view gives for the selection, computed once for all sessions that look at the same."""
    key = (view.__name__, *_key(selection), names, *sorted(options.items()))
    return frame.once(lambda _frame: view(frame.columns, *names, selection=selection, **options), *key)


def _key(selection: Selection) -> tuple[Any, ...]:
    return (*selection[:2], b"" if selection.shown is None else selection.shown.tobytes())


def _by_site(frame: Frame, selection: Selection) -> Selection:
    several = len(frame.columns.sites) > 1
    return selection._replace(by_site=several and st.toggle("Colour by site", key="by-site", bind="query-params"))


def _history(frame: Frame, selection: Selection) -> None:
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    with left:
        along = theme.segments("Horizontal axis", list(charts.ALONG), names=charts.ALONG.__getitem__, key="along")
    with right:
        selection = _by_site(frame, selection)
    chart = _computed(frame, selection, charts.history, along=along)
    draw(chart, key="history", empty=_NOTHING)


def _importance(frame: Frame, selection: Selection) -> None:
    """Shares change slowly and take a quarter of a second: computed again when there are 2 % more complete trials."""
    two_percent_steps = int(math.log(max(1, int(frame.columns.selected(selection).sum())), 1.02))
    found = _shares(frame, selection, (frame.uuid, *_key(selection), two_percent_steps))
    draw(charts.importance(found), key="importance", empty=found.note)


@st.cache_resource(max_entries=32, show_spinner=False)
def _shares(_frame: Frame, _selection: Selection, key: tuple[Any, ...]) -> Importance:  # noqa: ARG001  # cached by it
    return importance(_frame.state, _frame.columns, _selection)


def _slice(frame: Frame, selection: Selection) -> None:
    names = list(frame.columns.parameters)
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    chosen = left.multiselect(
        "Parameters", names, default=names[:2], key="slices", max_selections=_SLICES, bind="query-params"
    )
    with right:
        selection = _by_site(frame, selection)
    places = st.columns(2) if len(chosen) > 1 else [st.container()]
    for at, name in enumerate(chosen):
        with places[at % len(places)]:
            chart = _computed(frame, selection, charts.slice_, name)
            draw(chart, key=f"slice-{at}", empty=f"No complete trial has {name}.")


def _contour(frame: Frame, selection: Selection) -> None:
    names = list(frame.columns.parameters)
    left, right = st.columns(2)
    first = left.selectbox("Across", names, key="across", bind="query-params")
    second = right.selectbox("Up", [name for name in names if name != first], key="up", bind="query-params")
    chart = _computed(frame, selection, params.contour, first, second)
    draw(chart, key="contour", empty="No complete trial has both parameters.")


def _parallel(frame: Frame, selection: Selection) -> None:
    names = list(frame.columns.parameters)
    chosen = tuple(
        st.multiselect("Axes", names, default=names[:_MOST_AXES], key="axes", max_selections=12, bind="query-params")
    )
    chart = _computed(frame, selection, charts.parallel, *chosen)
    if chart is None:
        theme.nothing("Choose at least one parameter.")
        return
    draw(chart._replace(caption=f"{chart.caption}. {_BRUSH}"), key="parallel")
    numbers = chart.series[0].data["trial"].tolist()
    rows = [  # where they are drawn, the best cannot be told apart
        [theme.trial_link(frame.name, one), value, *map(theme.safe, parts)]
        for one, value, parts in params.leaders(frame.columns, numbers, chosen, objective=selection.objective)
    ]
    title = "Best trials that pass the filter"
    theme.table(("trial", "value", *chosen), rows, label=title, titled=True, names=range(2, 2 + len(chosen)))
    if len(numbers) > len(rows):
        theme.caption("All trials that pass the filter are on the Trials page.")


def _edf(frame: Frame, selection: Selection) -> None:
    chart = _computed(frame, _by_site(frame, selection), spread.edf)
    draw(chart, key="edf", empty=_NOTHING)


def _pareto(frame: Frame, selection: Selection) -> None:
    objectives = range(len(frame.columns.directions))
    first, second = 0, 1
    if len(objectives) > 2:
        (left, right), named = st.columns(2), frame.columns.objectives.__getitem__
        first = left.selectbox("Across", objectives, format_func=named, key="first", bind="query-params")
        others = [at for at in objectives if at != first]
        second = right.selectbox("Up", others, format_func=named, key="second", bind="query-params")
    chart = _computed(frame, _by_site(frame, selection), charts.pareto, first=first, second=second)
    draw(chart, key="pareto", empty=_NOTHING)


_BRUSH: Final = (
    "Drag along an axis to highlight the lines that pass there; click it to show all lines again. To choose trials on "
    "every page and in the list below, set a range in the filter."
)
_CHARTS: Final[dict[str, Callable[[Frame, Selection], None]]] = {
    "History": _history,
    "Pareto front": _pareto,
    "Importance": _importance,
    "Slice": _slice,
    "Contour": _contour,
    "Parallel": _parallel,
    "Distribution": _edf,
}
