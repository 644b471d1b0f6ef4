"""Notes, tags and files of a study or a trial: shown to all, changed where actions are allowed.

A note is Markdown written by somebody else: HTML in it is shown as text, and pictures from elsewhere become links, so
that opening a page tells no third party of it.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Final

import streamlit as st

from dashboard_app import theme
from dashboard_app.acting import act
from dashboard_app.frames import Frame
from dashboard_app.here import Here
from dashboard_app.views.campaigns import ARCHIVED
from hopaas_p2p import artifacts, notes
from hopaas_p2p.artifacts import Artifact

_IMAGE: Final = re.compile(r"!(?=\[)")
_SHOWN: Final = 100  # files of a page


def tame(markdown: str) -> str:
    """A note as it is given to Markdown: no pictures, for they are fetched from wherever it says; no directives."""
    return _IMAGE.sub(r"\\!", markdown).replace(":material/", "\\:material/").replace("$", "\\$")


def note_of(here: Here, number: int | None = None) -> None:
    """The note of the study, or of a trial."""
    frame = here.frame
    if frame is None:
        return
    theme.heading("Note")
    text = notes.read_note(frame.system, None if number is None else frame.trial_id(number))
    if text.strip():
        with st.container(border=True, key=f"hopaas-note-{number}"):
            st.markdown(tame(text))
    elif not here.may_act:
        theme.nothing("There is no note.")
    if not here.may_act:
        return
    with st.expander("Write" if not text else "Change", icon=":material/edit:", expanded=False):
        with st.form(f"note-{number}", border=False):
            new = st.text_area(
                "Markdown; optuna-dashboard shows it too", text, height=220, max_chars=1 << 18, key=f"text-{number}"
            )
            saved = st.form_submit_button("Save", type="primary")
        if saved and act(here, lambda study: notes.save_note(study, new, number), done="The note is saved."):
            show_anew(here, frame)


def tags_of(here: Here, number: int | None = None) -> None:
    """The tags of the study, or of a trial."""
    frame = here.frame
    if frame is None:
        return
    theme.heading("Tags")
    before = notes.read_tags(frame.system, number)
    if not here.may_act:
        if before:
            st.html(" ".join(theme.tag(one) for one in before))
        else:
            theme.nothing("There is no tag.")
        return
    after = st.multiselect(
        "Tags",
        before,
        default=before,
        accept_new_options=True,
        placeholder="type a new one",
        label_visibility="collapsed",
        key=f"tags-{number}-{frame.lsn}",
    )
    add, remove = [one for one in after if one not in before], [one for one in before if one not in after]
    changed = bool(add or remove)
    if changed and act(
        here, lambda study: notes.change_tags(study, number, add=add, remove=remove), done="The tags are saved."
    ):
        show_anew(here, frame)


def archive(here: Here) -> None:
    """Take the study off the list of campaigns, or put it back."""
    frame = here.frame
    if frame is None or not here.may_act:
        return
    before = ARCHIVED in frame.tags
    after = st.toggle("Archived: not among the campaigns", value=before, key=f"archive-{frame.lsn}")
    add, remove = ((ARCHIVED,), ()) if after else ((), (ARCHIVED,))
    if after != before and act(here, lambda study: notes.change_tags(study, add=add, remove=remove), done="Saved."):
        show_anew(here, frame)


def files_of(here: Here, number: int | None = None) -> None:
    """The files of the study and all its trials, or of one trial."""
    frame = here.frame
    if frame is None:
        return
    theme.heading("Files")
    found = artifacts.listed(frame.state, frame.study_id, number)
    if not found:
        theme.nothing("There is no file.")
    for one in found[:_SHOWN]:
        _file(here, one, named=number is None)
    if len(found) > _SHOWN:
        theme.caption(f"and {len(found) - _SHOWN:,} more; hopaas-p2p artifact ls lists all")
    if here.may_act:
        _upload(here, frame, number)


def _file(here: Here, one: Artifact, *, named: bool) -> None:
    left, right = st.columns([4, 1], vertical_alignment="center")
    size = "unknown size" if one.size is None else _bytes(one.size)
    of = "" if not named else "study, " if one.trial is None else f"trial {one.trial}, "
    left.html(
        f'<div><b>{theme.safe(one.filename)}</b> <span class="hp-small">{of}{size}, {theme.safe(one.mimetype)}</span>'
        "</div>"
    )
    right.download_button(
        "Fetch",
        data=lambda: _fetched(here, one),
        file_name=one.filename,
        mime="application/octet-stream",  # whatever others say it is, a browser saves it and does not show it
        key=f"file-{one.id}",
        on_click="ignore",
        icon=":material/download:",
        width="stretch",
    )


def _fetched(here: Here, one: Artifact) -> bytes:
    with tempfile.TemporaryDirectory(prefix="hopaas-") as folder:
        return artifacts.fetch(here.feed.store.artifacts(), one, Path(folder, "file")).read_bytes()


def _bytes(size: int) -> str:
    shown = float(size)
    for unit in ("bytes", "kB", "MB", "GB"):
        if shown < 1000 or unit == "GB":
            return f"{shown:.0f} {unit}" if unit == "bytes" else f"{shown:.1f} {unit}"
        shown /= 1000
    raise AssertionError


def _upload(here: Here, frame: Frame, number: int | None) -> None:
    with st.form(f"upload-{number}", clear_on_submit=True, border=False):
        given = st.file_uploader("Add a file", key=f"upload-file-{number}")
        sent = st.form_submit_button("Store it")
    if not sent or given is None:
        return
    with tempfile.TemporaryDirectory(prefix="hopaas-") as folder:
        path = Path(folder, "file")
        path.write_bytes(given.getbuffer())
        name = artifacts.safe_name(given.name)
        if act(here, lambda study: study.artifacts().put(path, trial=number, filename=name), done=f"{name} is stored."):
            show_anew(here, frame)


def show_anew(here: Here, before: Frame) -> None:
    """Show what was just written as soon as the feed has read it."""
    here.feed.await_news(here.uuid, before.lsn)
    st.rerun()
