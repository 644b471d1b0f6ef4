"""Admin: is the store well, how large are its logs, who did what, and who may."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import streamlit as st

from dashboard_app import theme
from dashboard_app.here import Here
from dashboard_app.pages import admin_access
from dashboard_app.views.spec import number
from hopaas_p2p.core.catalog import Listing
from hopaas_p2p.errors import HopaasError
from hopaas_p2p.stores.base import Entry

_LINES: Final = 2000
_FEW: Final = 12  # lines that are shown without scrolling


def show(here: Here) -> None:
    """The page."""
    theme.title("Admin")
    theme.caption(f"The store is {here.feed.url}.")
    parts: dict[str, Callable[[Here], None]] = {
        "Studies and logs": _logs,
        "Who did what": _audit,
        "Doctor": _doctor,
        "People": admin_access.people,
        "Grants": admin_access.study_grants,
    }
    chosen = st.segmented_control(
        "Part", list(parts), default="Studies and logs", key="part", bind="query-params", required=True,
        label_visibility="collapsed",
    )  # fmt: skip
    parts.get(chosen or "", _logs)(here)


def _logs(here: Here) -> None:
    rows = []
    for listing in here.studies():
        frame = here.feed.frame(listing.uuid)
        if frame is None:
            rows.append([theme.safe(listing.name), "", "", "", "", theme.safe(listing.uuid)])
            continue
        refused = sum(dict(frame.state.refusals).values())
        cells = (listing.name, f"{frame.lsn:,}", f"{len(frame.columns):,}", f"{len(frame.state.peers):,}")
        rows.append([*map(theme.safe, cells), f"{refused:,}", theme.safe(listing.uuid)])
    theme.table(
        ("study", "commits", "trials", "peers", "refused records", "uuid"), rows, label="Studies", numeric=(1, 2, 3, 4)
    )
    chosen = _study(here, "measure")
    if chosen is None:
        return
    theme.caption("Its size is found by reading all of it, once.")
    if st.button("Measure the log and its newest snapshot", key="measure-now"):
        try:
            entries = [len(entry.payload) for entry in _entries(here, chosen)]
            snapshot = here.feed.store.log(chosen.uuid).newest_snapshot()
        except HopaasError as error:
            st.error(theme.plain(error, longest=1000))
            return
        behind = (
            f"{len(entries) - snapshot[0]:,} commits behind" if snapshot else "the log is short, or nobody wrote one"
        )
        theme.tiles(
            [
                ("log", size(sum(entries)), f"{len(entries):,} commits"),
                ("largest commit", size(max(entries, default=0)), ""),
                ("newest snapshot", size(len(snapshot[1])) if snapshot else "none", behind),
            ]
        )


def size(count: int) -> str:
    """Bytes as people read them."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{number(count)} B"


def _study(here: Here, key: str) -> Listing | None:
    studies = {one.uuid: one for one in here.studies()}
    if not studies:
        theme.nothing("No study yet.")
        return None
    before = st.session_state.get("study")
    at = next((at for at, one in enumerate(studies.values()) if one.name == before), 0)
    chosen = st.selectbox(
        "Study", list(studies), index=at, format_func=lambda uuid: studies[uuid].name, key=f"of-{key}"
    )
    return studies.get(chosen)


def _entries(here: Here, listing: Listing) -> Iterator[Entry]:
    from hopaas_p2p.cli.audit import entries_of

    return entries_of(here.feed.store.log(listing.uuid))


def _audit(here: Here) -> None:
    from hopaas_p2p.cli.audit import audit_of

    listing = _study(here, "audit")
    if listing is None:
        return
    theme.caption(
        "Every record of the log, the newest first. Who: as the store vouches for it; where it knows no users, as the "
        "peer said of itself. Whom a dashboard with sign-in acted for, as the dashboard says."
    )
    left, right = st.columns(2)
    wanted = left.text_input("Find", key="audit-find", placeholder="a person, a trial, a word")
    refused = right.toggle("Refused ones only", key="audit-refused")
    if not st.button("Read the log", key="audit-now") and st.session_state.get("audit-read") != listing.uuid:
        return
    st.session_state["audit-read"] = listing.uuid
    try:
        lines = list(audit_of(_entries(here, listing)))
    except HopaasError as error:
        st.error(theme.plain(error, longest=1000))
        return
    found = [line for line in reversed(lines) if _matches(line, wanted.casefold(), refused=refused)]
    shown = [_audit_row(line) for line in found[:_LINES]]
    if not shown:
        theme.nothing("Nothing of that kind in the log.")
        return
    st.dataframe(
        shown, hide_index=True, height=480 if len(shown) > _FEW else "content", placeholder="", key="audit-lines"
    )
    theme.caption(f"{len(shown):,} of {len(found):,} records shown; {len(lines):,} in the log.")


def _matches(line: dict[str, Any], wanted: str, *, refused: bool) -> bool:
    if refused and not line["refused"]:
        return False
    return not wanted or any(wanted in str(value).casefold() for value in _audit_row(line).values())


def _audit_row(line: dict[str, Any]) -> dict[str, Any]:
    from hopaas_p2p.cli.audit import who

    return {
        "lsn": line["lsn"],
        "time (UTC)": (line["time"] or "")[:19].replace("T", " "),
        "who": who(line),
        "record": line["kind"],
        "trial": line["trial"],
        "what": line["detail"],
        "refused": line["refused"] or "",
    }


def _doctor(here: Here) -> None:
    theme.caption(
        "Checks the store: reach, write, read, lock, clock, room, and every study's log and snapshot. It writes a "
        "scratch log and removes it, so it needs actions to be allowed."
    )
    if not st.button("Examine the store", disabled=not here.may_administer, icon=":material/stethoscope:"):
        return
    from hopaas_p2p.stores.checks import examine
    from hopaas_p2p.stores.url import open_store

    rows = []
    failed = 0
    with st.spinner("Examining"):
        try:
            store = open_store(here.feed.address, create=False)
        except HopaasError as error:
            st.error(theme.plain(error, longest=1000))
            return
        try:
            for finding in examine(store):
                failed += not finding.passed
                word = "✓ passed" if finding.passed else "✕ failed"
                rows.append(
                    [word, *(theme.safe(text, longest=500) for text in (finding.check, finding.detail, finding.cure))]
                )
        finally:
            store.close()
    theme.nothing(f"{failed} of {len(rows)} checks failed." if failed else f"All {len(rows)} checks passed.")
    theme.table(("", "check", "finding", "what to do"), rows, label="Findings")
