"""Trials: all of them in a table, filtered by the address, and as files."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any, Final

import streamlit as st

from dashboard_app import theme, url
from dashboard_app.filters import shared_filter
from dashboard_app.frames import Frame
from dashboard_app.page_context import PageContext
from dashboard_app.redraw import live
from dashboard_app.views import beside
from dashboard_app.views import table as views
from hopaas_p2p import notes
from hopaas_p2p.analysis import palette
from hopaas_p2p.analysis.facts import phrase
from hopaas_p2p.analysis.table import Mask
from hopaas_p2p.moving import records, tables

_FORMATS: Final = (
    ("csv", "CSV", "text/csv"),
    ("parquet", "Parquet", "application/vnd.apache.parquet"),
)
_COLOURS: Final = {
    "best": palette.BEST, "complete": palette.COMPLETE, "pruned": palette.PRUNED, "fail": palette.FAILED,
    "running": palette.RUNNING, "waiting": palette.WAITING,
}  # fmt: skip
_LINK: Final = r"[?&]trial=(\d+)"


def show(page: PageContext) -> None:
    """The page."""
    page.title("Trials")
    live(page, _body, auto=False)


def _body(_page: PageContext, frame: Frame) -> None:
    tags = frame.once(lambda one: notes.tags_by_trial(one.system), "tags")
    text = st.text_input("Find", key="find", bind="query-params", placeholder="reason, tag, site, node, user or number")
    mask = shared_filter(frame)
    if text:
        mask = mask & views.matching(frame.state, frame.columns, text, tags)
    count = int(mask.sum())
    st.html(
        f'<p class="hp-caption" role="status">{count:,} of {len(mask):,} trials, newest first. '
        "Click a column to sort by it, or a trial's number to open it.</p>"
    )
    if not count:
        theme.nothing("No trial yet." if not len(mask) else "No trial passes the filter.")
        return
    found = views.table(frame.state, frame.columns, mask, tags=tags)
    words = found["state"]
    best = frame.columns.best() if len(frame.columns.directions) == 1 else None
    found["state"] = [["best"] if one == best else [word] for one, word in zip(found["trial"], words, strict=True)]
    zone = st.context.timezone or "UTC"
    found["trial"] = [url.link("trial", study=frame.name, trial=one) for one in found["trial"].tolist()]
    st.dataframe(
        found, hide_index=True, height=560, lazy=True if count > 500 else None, placeholder="", key="trials",
        column_config={
            **{name: phrase(name) for name in ("site", "node", "seconds", "steps", "attempt", "tags")},
            **{name: _number(name) for name in found.select_dtypes("float64").columns if name != "seconds"},
            "trial": st.column_config.LinkColumn("Trial", display_text=_LINK, pinned=True, width="small"),
            "state": st.column_config.MultiselectColumn(
                "State", width=104, options=list(_COLOURS), color=list(_COLOURS.values())
            ),
            "started": st.column_config.DatetimeColumn(
                f"Started ({zone})", format="YYYY-MM-DD HH:mm:ss", timezone=zone
            ),
            "reason": st.column_config.TextColumn("Reason", width="large"),
        },
        alt=f"{count} trials with their state, values, parameters, and where they ran",
    )  # fmt: skip
    _side_by_side(frame, mask)
    _downloads(frame, mask)


def _side_by_side(frame: Frame, mask: Mask) -> None:
    """A link to the best of these, or the newest, beside each other."""
    chosen = beside.first_choice(frame.columns, mask)
    if len(chosen) > 1:
        link = theme.link("side by side", "beside", study=frame.name, trials=", ".join(map(str, chosen)))
        st.html(f'<p class="hp-caption">Compare the first of these {link}, or any two to five trials.</p>')


def _number(name: str) -> Any:
    """A column of numbers: by itself it would show four decimals, and be as wide as its first rows, also empty ones."""
    return st.column_config.NumberColumn(
        phrase(name) if name in views.FIXED or name.startswith("value") else name,
        width=min(200, max(112, 28 + 8 * len(name))),
        format="%.6g",
    )


def _downloads(frame: Frame, mask: Mask) -> None:
    theme.caption("These trials as a file: CSV for a spreadsheet, Parquet with every report for data frames.")
    numbers = set(frame.columns.number[mask].tolist())
    name = "".join(one if one.isalnum() or one in "-_." else "_" for one in frame.name)[:80] or "study"
    for place, (ending, label, mime) in zip(st.columns(len(_FORMATS)), _FORMATS, strict=True):
        place.download_button(  # makes the file when it is asked for, not when the button is drawn
            label, data=partial(_file, frame, numbers, ending), file_name=f"{name}.{ending}", mime=mime,
            key=f"save-{ending}", on_click="ignore", icon=":material/download:", width="stretch",
        )  # fmt: skip


def _file(frame: Frame, numbers: set[int], ending: str) -> bytes:
    """These trials in one of the formats."""
    whole = records.of_state(frame.state)
    study = whole._replace(trials={number: one for number, one in whole.trials.items() if number in numbers})
    if ending == "csv":
        return "".join(tables.dump_csv(study)).encode()
    with tempfile.TemporaryDirectory(prefix="hopaas-") as folder:
        path = Path(folder, "study.parquet")
        tables.dump_parquet(study, path)
        return path.read_bytes()
