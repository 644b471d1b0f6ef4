"""Notes & artifacts of a study; those of its trials are with the trials."""

from __future__ import annotations

import streamlit as st

from dashboard_app import theme, url
from dashboard_app.frames import Frame
from dashboard_app.here import Here
from dashboard_app.notebook import archive, files_of, note_of, tags_of
from dashboard_app.views.notes import Noted, noted


def show(here: Here) -> None:
    """The page."""
    theme.title("Notes & artifacts", here)
    frame = here.frame
    if frame is None:
        theme.nothing("This study is being read, or was deleted.")
        return
    note_of(here)
    tags_of(here)
    archive(here)
    _trials(frame, frame.once(_noted))
    files_of(here)


def _noted(frame: Frame) -> list[Noted]:
    return noted(frame.system, frame.study_id, len(frame.state.trials))


def _trials(frame: Frame, found: list[Noted]) -> None:
    theme.heading("Trials with a note or a tag")
    if not found:
        theme.nothing("None. Write one on the page of a trial, or with: hopaas-p2p trial note")
        return
    rows = []
    for one in found[:200]:
        address = theme.safe(url.link("trial", study=frame.name, trial=one.number), longest=4000)
        rows.append(
            [
                f'<a href="{address}" target="_self">{one.number}</a>',
                " ".join(theme.tag(tag) for tag in one.tags),
                theme.safe(one.line),
            ]
        )
    theme.table(["trial", "tags", "note"], rows, label="Trials with a note or a tag", numeric=(0,))
    if len(found) > 200:
        st.caption(f"and {len(found) - 200:,} more")
