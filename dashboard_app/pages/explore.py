"""Explore: what the parameters did to the objective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import streamlit as st

from dashboard_app import theme, url
from dashboard_app.charts import draw
from dashboard_app.filters import shared_filter
from dashboard_app.frames import Frame
from dashboard_app.here import Here
from dashboard_app.redraw import live
from dashboard_app.views import history, params, spread
from dashboard_app.views.columns import Mask
from dashboard_app.views.spec import Chart

_MOST_AXES: Final = 8
_SLICES: Final = 6
_REMEMBERED: Final = 32
_IMPORTANCE: Final[dict[tuple[str, int, bytes], tuple[int, tuple[Chart | None, str]]]] = {}


def show(here: Here) -> None:
    """The page. What is brushed would be lost with every trial that ends, so parallel coordinates wait for a click."""
    theme.title("Explore", here)
    frame = here.frame
    many = frame is not None and len(frame.columns.directions) > 1
    charts = list(_CHARTS) if many else [name for name in _CHARTS if name != "Pareto front"]
    chosen = st.segmented_control(
        "Chart", charts, default=charts[0], key="chart", bind="query-params", label_visibility="collapsed",
        required=True,
    )  # fmt: skip
    chosen = chosen if chosen in charts else charts[0]
    live(here, lambda _here, frame: _body(frame, chosen), key=chosen, auto=chosen != "Parallel")


def _body(frame: Frame, chosen: str) -> None:
    _, mask = shared_filter(frame, states=False)
    many = len(frame.columns.directions) > 1 and chosen != "Pareto front"
    objective = _objective(frame) if many else 0
    if not mask.all():
        theme.caption(f"{int(mask.sum()):,} of {len(mask):,} trials pass the filter.")
    if not frame.columns.told(objective).any():
        theme.nothing("No trial is complete yet. The charts begin with the first one.")
        return
    _CHARTS[chosen](frame, objective, mask)


def _objective(frame: Frame) -> int:
    names = [f"{at + 1}: {direction}" for at, direction in enumerate(frame.columns.directions)]
    chosen = st.segmented_control(
        "Objective", names, default=names[0], key="objective", required=True, bind="query-params"
    )
    return names.index(chosen) if chosen in names else 0


def _made(frame: Frame, mask: Mask, what: str, make: Callable[[], Any], *key: Any) -> Any:
    """What `make` gives, computed once for all sessions that look at the same."""
    return frame.once(lambda _frame: make(), what, mask.tobytes() if not mask.all() else b"", *key)


def _by_site(frame: Frame) -> bool:
    return len(frame.columns.sites) > 1 and st.toggle("Colour by site", key="by-site", bind="query-params")


def _history(frame: Frame, objective: int, mask: Mask) -> None:
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    with left:
        words = list(history.ALONG)
        along = st.segmented_control(
            "Along", words, format_func=history.ALONG.__getitem__, default=words[0], key="along", bind="query-params",
            required=True,
        )  # fmt: skip
    with right:
        by_site = _by_site(frame)
    chart: Chart | None = _made(
        frame, mask, "history",
        lambda: history.history(
            frame.columns, along=along or "number", objective=objective, by_site=by_site, shown=mask
        ),
        along, objective, by_site,
    )  # fmt: skip
    draw(chart, key="history", empty="No complete trial passes the filter.")


def _importance(frame: Frame, objective: int, mask: Mask) -> None:
    """Shares move slowly and take a quarter of a second: found anew when there are 2 % more complete trials."""
    everything = bool(mask.all())
    key = (frame.uuid, objective, b"" if everything else mask.tobytes())
    complete = int((frame.columns.told(objective) & mask).sum())
    found = _IMPORTANCE.get(key)
    if found is None or not found[0] <= complete <= 1.02 * found[0]:
        numbers = None if everything else frozenset(frame.columns.number[mask].tolist())
        found = (complete, params.importance(frame.state, objective=objective, numbers=numbers))
        while len(_IMPORTANCE) >= _REMEMBERED:
            _IMPORTANCE.pop(next(iter(_IMPORTANCE)), None)
        _IMPORTANCE[key] = found
    chart, note = found[1]
    draw(chart, key="importance", empty=note)


def _slice(frame: Frame, objective: int, mask: Mask) -> None:
    names = list(frame.columns.parameters)
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    with left:
        chosen = st.multiselect(
            "Parameters", names, default=names[:2], key="slices", max_selections=_SLICES, bind="query-params"
        )
    with right:
        by_site = _by_site(frame)
    places = st.columns(2) if len(chosen) > 1 else [st.container()]
    for at, name in enumerate(chosen):
        with places[at % len(places)]:
            _one_slice(frame, objective, mask, name, at, by_site=by_site)


def _one_slice(frame: Frame, objective: int, mask: Mask, name: str, at: int, *, by_site: bool) -> None:
    chart = _made(
        frame, mask, "slice",
        lambda: params.slice_(frame.columns, name, objective=objective, by_site=by_site, shown=mask),
        name, objective, by_site,
    )  # fmt: skip
    draw(chart, key=f"slice-{at}", empty=f"No complete trial has {name}.")


def _contour(frame: Frame, objective: int, mask: Mask) -> None:
    names = list(frame.columns.parameters)
    if len(names) < 2:
        theme.nothing("A contour takes two parameters; this study has fewer.")
        return
    left, right = st.columns(2)
    first = left.selectbox("Across", names, key="across", bind="query-params")
    second = right.selectbox("Up", [name for name in names if name != first], key="up", bind="query-params")
    chart = _made(
        frame, mask, "contour",
        lambda: params.contour(frame.columns, first, second, objective=objective, shown=mask),
        first, second, objective,
    )  # fmt: skip
    draw(chart, key="contour", empty="No complete trial has both parameters.")


def _parallel(frame: Frame, objective: int, mask: Mask) -> None:
    names = list(frame.columns.parameters)
    chosen = st.multiselect(
        "Axes", names, default=names[:_MOST_AXES], key="axes", max_selections=12, bind="query-params"
    )
    found = _made(
        frame, mask, "parallel",
        lambda: params.parallel(frame.columns, tuple(chosen), objective=objective, shown=mask),
        tuple(chosen), objective,
    )  # fmt: skip
    draw(found[0] if found else None, key="parallel", empty="Choose at least one parameter.")
    if found:
        _leaders(frame, objective, found[1], tuple(chosen))


def _leaders(frame: Frame, objective: int, numbers: list[int], names: tuple[str, ...]) -> None:
    """The best of the lines by name: what is drawn can be told apart by nobody's eye."""
    rows = []
    for one, value, parts in params.leaders(frame.columns, numbers, names, objective=objective):
        address = theme.safe(url.link("trial", study=frame.name, trial=one), longest=4000)
        rows.append([f'<a href="{address}" target="_self">{one}</a>', value, *map(theme.safe, parts)])
    theme.heading("The best that pass the filter")
    headers = ("trial", "value", *names)
    theme.table(headers, rows, label="The best that pass the filter", numeric=(0, 1))
    if len(numbers) > len(rows):
        theme.caption("All that pass the filter are on the page Trials.")


def _edf(frame: Frame, objective: int, mask: Mask) -> None:
    by_site = _by_site(frame)
    chart = _made(
        frame, mask, "edf",
        lambda: spread.edf(frame.columns, objective=objective, by_site=by_site, shown=mask), objective, by_site,
    )  # fmt: skip
    draw(chart, key="edf", empty="No complete trial passes the filter.")


def _pareto(frame: Frame, _objective: int, mask: Mask) -> None:
    objectives = range(len(frame.columns.directions))
    first, second = 0, 1
    if len(objectives) > 2:
        left, right = st.columns(2)
        first = left.selectbox(
            "Across", objectives, format_func=lambda at: f"objective {at + 1}", key="first", bind="query-params"
        )
        others = [at for at in objectives if at != first]
        second = right.selectbox(
            "Up", others, format_func=lambda at: f"objective {at + 1}", key="second", bind="query-params"
        )
    by_site = _by_site(frame)
    chart = _made(
        frame, mask, "pareto",
        lambda: spread.pareto(frame.columns, first=first, second=second, by_site=by_site, shown=mask),
        first, second, by_site,
    )  # fmt: skip
    draw(chart, key="pareto", empty="No complete trial passes the filter.")


_CHARTS: Final[dict[str, Callable[[Frame, int, Mask], None]]] = {
    "History": _history,
    "Pareto front": _pareto,
    "Importance": _importance,
    "Slice": _slice,
    "Contour": _contour,
    "Parallel": _parallel,
    "Distribution": _edf,
}
