"""Trials: all of them in a table, filtered by the address, and as files."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import streamlit as st

from dashboard_app import theme, url
from dashboard_app.filters import shared_filter
from dashboard_app.frames import Frame
from dashboard_app.here import Here
from dashboard_app.redraw import live
from dashboard_app.views import table as views
from dashboard_app.views.columns import Mask
from hopaas_p2p.export import jsonl, portable, tables

_LINK: Final = r"[?&]trial=(\d+)"


def show(here: Here) -> None:
    """The page."""
    theme.title("Trials", here)
    live(here, _body, auto=False)


def _body(_here: Here, frame: Frame) -> None:
    tags = frame.once(_tags)
    text = st.text_input("Find", key="find", bind="query-params", placeholder="reason, tag, site, node, user or number")
    _, mask = shared_filter(frame)
    if text:
        mask = mask & views.matching(frame.state, frame.columns, text, tags)
    count = int(mask.sum())
    st.html(
        f'<p class="hp-caption" role="status">{count:,} of {len(mask):,} trials, the newest first. '
        "A click on a column sorts by it; a trial's number opens it.</p>"
    )
    if not count:
        theme.nothing("No trial yet." if not len(mask) else "No trial passes the filter.")
        return
    found = views.table(frame.state, frame.columns, mask, tags=tags)
    found["trial"] = [url.link("trial", study=frame.name, trial=one) for one in found["trial"].tolist()]
    st.dataframe(
        found,
        hide_index=True,
        height=560,
        lazy=True if count > 500 else None,
        placeholder="",
        key="trials",
        column_config={
            **{name: _number(name) for name in found.select_dtypes("float64").columns if name != "seconds"},
            "trial": st.column_config.LinkColumn("trial", display_text=_LINK, pinned=True, width="small"),
            "started": st.column_config.DatetimeColumn("started", format="YYYY-MM-DD HH:mm:ss"),
            "reason": st.column_config.TextColumn("reason", width="large"),
        },
        alt=f"{count} trials with their state, values, parameters, and where they ran",
    )
    _downloads(frame, mask)


def _number(name: str) -> Any:
    """A column of numbers: by itself it would show four decimals, and be as wide as its first rows, also empty ones."""
    return st.column_config.NumberColumn(width=min(200, max(112, 28 + 8 * len(name))), format="%.6g")


def _tags(frame: Frame) -> dict[int, list[str]]:
    return views.tags_by_trial(frame.system)


def _downloads(frame: Frame, mask: Mask) -> None:
    theme.caption("These trials as a file. JSON lines and Parquet keep everything, and can be imported again.")
    numbers = set(frame.columns.number[mask].tolist())
    name = "".join(one if one.isalnum() or one in "-_." else "_" for one in frame.name)[:80] or "study"
    places = st.columns(3)
    for place, (ending, label, mime, make) in zip(places, _FORMS, strict=True):
        place.download_button(
            label,
            data=_later(make, frame, numbers),
            file_name=f"{name}.{ending}",
            mime=mime,
            key=f"save-{ending}",
            on_click="ignore",
            icon=":material/download:",
            width="stretch",
        )


def _later(make: Callable[[portable.Portable], bytes], frame: Frame, numbers: set[int]) -> Callable[[], bytes]:
    """Makes the file when it is asked for, not when the button is drawn."""
    return lambda: make(_portable(frame, numbers))


def _portable(frame: Frame, numbers: set[int]) -> portable.Portable:
    whole = portable.of_state(frame.name, frame.state, frame.study_id)
    return whole._replace(trials=[one for one in whole.trials if one.number in numbers])


def _csv(what: portable.Portable) -> bytes:
    return "".join(tables.dump_csv(what)).encode()


def _jsonl(what: portable.Portable) -> bytes:
    out = io.StringIO()
    out.writelines(line + "\n" for line in jsonl.dump(what))
    return out.getvalue().encode()


def _parquet(what: portable.Portable) -> bytes:
    with tempfile.TemporaryDirectory(prefix="hopaas-") as folder:
        path = Path(folder, "study.parquet")
        tables.dump_parquet(what, path)
        return path.read_bytes()


_FORMS: Final[tuple[tuple[str, str, str, Callable[[portable.Portable], bytes]], ...]] = (
    ("csv", "CSV", "text/csv", _csv),
    ("jsonl", "JSON lines", "application/x-ndjson", _jsonl),
    ("parquet", "Parquet", "application/vnd.apache.parquet", _parquet),
)
