"""The page Trials, with a filtered table of all trials, which can be saved as CSV, and the failures."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

import streamlit as st

from dashboard_app import theme, url
from dashboard_app.filters import shared_filter
from dashboard_app.frames import Frame
from dashboard_app.page_context import PageContext
from dashboard_app.redraw import live
from dashboard_app.views import table as views
from hopaas_p2p import notes
from hopaas_p2p.analysis import failures, palette
from hopaas_p2p.analysis.facts import count, phrase, queued_again
from hopaas_p2p.analysis.failures import Failure, Key
from hopaas_p2p.errors import HopaasError
from hopaas_p2p.moving import records, tables

if TYPE_CHECKING:
    import pandas as pd

_COLOURS: Final = {
    "best": palette.BEST, "complete": palette.COMPLETE, "pruned": palette.PRUNED, "fail": palette.FAILED,
    "paused": palette.PAUSED, "running": palette.RUNNING, "waiting": palette.WAITING,
}  # fmt: skip
_ROWS: Final = 100  # groups of failures
_AT_ONCE: Final = 500
_LINK: Final = r"[?&]trial=(\d+)"


def show(page: PageContext) -> None:
    """The page."""
    page.title("Trials")
    if theme.segments("View", ["All", "Failures"], key="view", visible=False) == "Failures":
        live(page, _failures, key="failures")
    else:
        live(page, _table, auto=False)


def _table(page: PageContext, frame: Frame) -> None:
    tags = frame.once(lambda one: notes.tags_by_trial(one.system), "tags")
    text = st.text_input("Find", key="find", bind="query-params", placeholder="reason, tag, site, node, user or number")
    mask = shared_filter(frame)
    if text:
        mask = mask & views.matching(frame.state, frame.columns, text, tags)
    passing = int(mask.sum())
    st.html(
        f'<p class="hp-caption" role="status">{passing:,} of {len(mask):,} trials, newest first. '
        "Click a column to sort by it, or a trial's number to open it.</p>"
    )
    if not passing:
        theme.nothing("No trial yet." if not len(mask) else "No trial passes the filter.")
        return
    lines = frame.once(lambda one: views.note_lines(one.system, one.study_id), "notes")
    found = views.table(frame.state, frame.columns, mask, tags=tags, lines=lines)
    best = frame.columns.best()
    pairs = zip(found["trial"], found["state"], strict=True)
    found["state"] = [["best"] if one == best else [word] for one, word in pairs]
    zone = st.context.timezone or "UTC"
    found["trial"] = [url.link("trial", study=frame.name, trial=one) for one in found["trial"].tolist()]
    st.dataframe(
        found, hide_index=True, height=560, lazy=True if passing > 500 else None, placeholder="", key="trials",
        column_config={
            **{str(name): _column(str(name), column) for name, column in found.items() if name != "started"},
            "trial": st.column_config.LinkColumn("Trial", display_text=_LINK, pinned=True, width="small"),
            "state": st.column_config.MultiselectColumn(
                "State", width=104, options=list(_COLOURS), color=list(_COLOURS.values())
            ),
            "started": st.column_config.DatetimeColumn(
                f"Started ({zone})", format="YYYY-MM-DD HH:mm:ss", timezone=zone
            ),
            "reason": st.column_config.TextColumn("Reason", width="large"),
        },
        alt=f"Table of {count(passing, 'trial')}: states, values, parameters, and where each ran",
    )  # fmt: skip
    numbers = set(frame.columns.number[mask].tolist())
    name = "".join(one if one.isalnum() or one in "-_." else "_" for one in frame.name)[:80] or "study"
    csv = partial(_csv, frame, numbers)
    page.download("These trials as CSV", csv, file_name=f"{name}.csv", mime="text/csv", key="save-csv")


def _column(name: str, values: pd.Series[Any]) -> Any:
    """A column that is at least as wide as its name and its longest text. Numbers have six digits, and an exponent if
    some are very small or large.

    Streamlit's default shows four decimals, is only as wide as its first rows, and cuts what does not fit.
    """
    head = phrase(name) if name in views.FIXED or name == "value" else name
    if values.dtype.kind not in "fiu":
        return st.column_config.Column(head, width=min(500, 28 + 8 * max(len(name), *values.map(len))))
    sizes = values[values.abs() > 0].abs()
    form = None if values.dtype.kind != "f" else "%.5e" if ((sizes < 1e-4) | (sizes >= 1e9)).any() else "%.6g"
    return st.column_config.NumberColumn(head, width=min(200, max(112, 28 + 8 * len(name))), format=form)


def _csv(frame: Frame, numbers: set[int]) -> str:
    whole = records.of_state(frame.state)
    study = whole._replace(trials={number: one for number, one in whole.trials.items() if number in numbers})
    return "".join(tables.dump_csv(study))


# --- what went wrong ---


def _failures(page: PageContext, frame: Frame) -> None:
    """Draw the failures by kind, reason, site and node, with a form that queues the trials of one group again."""
    found: dict[Key, list[Failure]] = frame.once(lambda one: failures.failures(one.state), "failures")
    if not found:
        theme.nothing("No trial failed, and no lease was lost.")
        return
    groups = dict(list(found.items())[:_ROWS])
    rows = failures.cells(groups, partial(theme.trial_link, frame.name))
    theme.table(failures.HEADS, rows, label="Failures", long="reason", of=len(found), others="more groups")
    if not page.may_act:
        return
    chosen = st.selectbox(
        "Reason, site, node", list(groups), index=None, key="group", placeholder="Choose failures to requeue",
        format_func=lambda key: " | ".join(key[1:]),
    )  # fmt: skip
    numbers = sorted({one.number for one in groups.get(chosen, ()) if one.final})[:_AT_ONCE] if chosen else []
    if chosen and not numbers:
        theme.caption("All of these have already been retried.")
    elif chosen and st.button(f"Queue {len(numbers):,} again", key="requeue", icon=":material/replay:"):
        _confirm(page, numbers)


@st.dialog("Queue these trials again?")
def _confirm(page: PageContext, numbers: list[int]) -> None:
    st.write(f"{count(len(numbers), 'new trial')} with the same parameters will wait for the next peers.")
    theme.caption(", ".join(map(str, numbers[:40])) + (" …" if len(numbers) > 40 else ""))
    if not st.button("Queue them", type="primary", key="requeue-now"):
        return
    try:
        st.success(theme.plain(queue_again(page, numbers)))
    except HopaasError as error:
        theme.error(error)


def queue_again(page: PageContext, numbers: list[int]) -> str:
    """Queue these trials again, except those retried in the meantime. Returns a summary."""
    study = page.study("worker")
    state = study.state
    again = queued_again(state)
    still = [number for number in numbers if state.trials[number].retried_by is None and number not in again]
    queued = [number for number in map(study.requeue, still) if number is not None]
    page.cache.show_written(page.uuid)
    span = f" as trials {queued[0]} to {queued[-1]}" if len(queued) > 1 else f" as trial {queued[0]}" if queued else ""
    skipped = f"; {len(numbers) - len(still):,} had been retried in the meantime" if len(still) < len(numbers) else ""
    return f"Queued {len(queued):,}{span}{skipped}."
