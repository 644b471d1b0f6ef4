"""The page for notes, tags and files of a study. A trial's page shows the same for one trial.

Anyone who may write to the study can write a note in Markdown. So HTML in it is shown as text, and pictures become
links, so that opening a page reveals nothing to third parties.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Final

import streamlit as st

from dashboard_app import theme
from dashboard_app.frames import Frame
from dashboard_app.page_context import PageContext
from hopaas_p2p import notes
from hopaas_p2p.analysis.html import safe
from hopaas_p2p.cli.output import size
from hopaas_p2p.core.names import first_id
from hopaas_p2p.files import artifacts
from hopaas_p2p.files.artifacts import Artifact
from hopaas_p2p.runtime.atomic import scratch

_IMAGE: Final = re.compile(r"!(?=\[)")
_MARK: Final = re.compile(r"[\n!-/:-@[-`{-~]")
_MOST_MARKS: Final = 2000
"""The most Markdown marks in a note; one with more is shown as plain text. A browser's time grows with the square of
their number, and is half a second for this many."""
_SHOWN: Final = 100  # files shown on a page


def show(page: PageContext) -> None:
    """The page."""
    page.title("Notes & artifacts")
    frame = page.frame
    if frame is None:
        theme.nothing("This study is still loading, or was deleted.")
        return
    note_of(page, frame)
    tags_of(page, frame)
    files_of(page, frame)


def tame(markdown: str) -> str:
    """A note made safe for display as Markdown, without icons, and without pictures, which a browser would fetch from
    any server.

    Formulas are kept, because KaTeX, which draws them, loads nothing from elsewhere.
    """
    return _IMAGE.sub("&#33;", markdown).replace(":material/", "\\:material/")


def note_of(page: PageContext, frame: Frame, number: int | None = None) -> None:
    """The note of the study, or of a trial."""
    theme.heading("Note")
    text = notes.read_note(frame.system, None if number is None else first_id(frame.study_id) + number)
    if text.strip():
        with st.container(border=True, key=f"hopaas-note-{number}"):
            st.markdown(tame(text)) if len(_MARK.findall(text)) <= _MOST_MARKS else st.text(text)
    elif not page.may_act:
        theme.nothing("No note yet.")
    if not page.may_act:
        return
    with st.expander("Write" if not text else "Change", icon=":material/edit:", expanded=False):
        with st.form(f"note-{number}", border=False):
            new = st.text_area(
                "Markdown, also shown by optuna-dashboard", text, height=220, max_chars=1 << 18, key=f"text-{number}"
            )
            saved = st.form_submit_button("Save", type="primary")
        if saved:
            page.act("worker", lambda study: notes.save_note(study, new, number), done="The note is saved.")


def tags_of(page: PageContext, frame: Frame, number: int | None = None) -> None:
    """The tags of the study, or of a trial."""
    theme.heading("Tags")
    before = notes.read_tags(frame.system, number)
    if page.may_act:
        after = st.multiselect(
            "Tags", before, default=before, accept_new_options=True, placeholder="type a new tag",
            label_visibility="collapsed", key=f"tags-{number}-{frame.lsn}",
        )  # fmt: skip
        add, remove = [one for one in after if one not in before], [one for one in before if one not in after]
        if add or remove:
            change = partial(notes.change_tags, number=number, add=add, remove=remove)
            page.act("worker", change, done="The tags are saved.")
    elif before:
        st.html(" ".join(map(theme.tag, before)))
    else:
        theme.nothing("No tags yet.")


def files_of(page: PageContext, frame: Frame, number: int | None = None) -> None:
    """The files of the study and all its trials, or of one trial."""
    theme.heading("Files")
    found = artifacts.listed(frame.state, frame.study_id, number)
    if not found:
        theme.nothing("No files yet.")
    for one in found[:_SHOWN]:
        _file(page, one, named=number is None)
    if len(found) > _SHOWN:
        theme.caption(f"and {len(found) - _SHOWN:,} more; for all, run hopaas-p2p trial artifact ls")
    if page.may_act:
        _upload(page, number)


def _file(page: PageContext, one: Artifact, *, named: bool) -> None:
    left, right = st.columns([5, 1], vertical_alignment="center")
    bytes_ = "unknown size" if one.size is None else size(one.size)
    of = "" if not named else "study, " if one.trial is None else f"trial {one.trial}, "
    left.html(
        f'<div><b>{safe(one.filename)}</b> <span class="hp-small">{of}{bytes_}, {safe(one.mimetype)}</span></div>'
    )
    with right:  # a browser saves the file whatever its declared type
        how = {"file_name": one.filename, "mime": "application/octet-stream", "width": "stretch"}
        page.download("Fetch", partial(fetched, page, one), key=f"file-{one.id}", **how)


def fetched(page: PageContext, one: Artifact) -> bytes:
    """The bytes of a file. Raises a HopaasError if the store cannot deliver them now."""
    with scratch() as path:
        return artifacts.fetch(artifacts.artifacts_of(page.cache.store), page.uuid, one, path).read_bytes()


def _upload(page: PageContext, number: int | None) -> None:
    with st.form(f"upload-{number}", clear_on_submit=True, border=False):
        given = st.file_uploader("Add a file", key=f"upload-file-{number}")
        sent = st.form_submit_button("Upload it")
    if not sent or given is None:
        return
    with scratch() as path:
        path.write_bytes(given.getbuffer())
        name = artifacts.safe_name(given.name)
        page.act("worker", lambda it: it.artifacts().put(path, trial=number, filename=name), done=f"Uploaded {name}.")
