"""The page Peers & sites, which shows which peers take part, where, how busy they are, and whether they are alive."""

from __future__ import annotations

import time
from typing import Any, Final

import streamlit as st

from dashboard_app import theme
from dashboard_app.frames import Frame
from dashboard_app.page_context import PageContext
from dashboard_app.redraw import live
from hopaas_p2p.analysis.facts import duration, peer_labels, person
from hopaas_p2p.analysis.html import Html, safe
from hopaas_p2p.analysis.peers import peer_rows
from hopaas_p2p.analysis.timeline import timeline
from hopaas_p2p.core.leases import ttl_of

_ROWS: Final = 60


def show(page: PageContext) -> None:
    """The page."""
    page.title("Peers & sites")
    live(page, _body, more=PageContext.leases)
    if page.may_steer:
        _drain(page)


def _body(page: PageContext, frame: Frame) -> None:
    now = time.time()
    signs, left = page.cache.signs(frame.uuid), page.cache.leases(frame.uuid)
    found = [one for one in peer_rows(frame.state, now, signs) if one["running"] or one["last"] is not None]
    if not found:
        theme.nothing("No peer has taken part yet. To start one, run your program, or hopaas-p2p worker.")
        return
    live = [one for one in found if one["state"] == "alive"]
    sites, there = ({one["site"] for one in some} for some in (found, live))
    lost, returned = (sum(one[what] for one in found) for what in ("lost", "returned"))
    theme.tiles([
        ("Live peers", f"{len(live):,}", f"of {len(found):,} that took part"),
        ("Sites", f"{len(there):,}", f"with a live peer, of {len(sites):,}"),
        ("Leases lost", f"{lost:,}", f"taken from their peers; {returned:,} were returned"),
        ("Lease", duration(frame.state.policy.ttl), "of silence until a trial is taken over"),
    ])  # fmt: skip
    theme.draw(timeline(frame.state, now), key="gantt", empty="No trial has started yet.")
    headers = ["peer", "site", "node", "runs", "ended", "returned", "lost", "last seen", "machine", ""]
    rows, others = [_peer(frame, one, left) for one in found[:_ROWS]], "more that run no trial now"
    theme.table(headers, rows, label="Peers", titled=True, of=len(found), others=others)


def _peer(frame: Frame, one: dict[str, Any], left: dict[str, float]) -> list[str]:
    uuid, runs = one["peer"], one["running"]
    links = ", ".join(theme.trial_link(frame.name, number) for number in runs[:4])
    seen = "" if one["last"] is None else theme.ago(one["last"])
    if runs:
        seen = theme.lease(uuid, left.get(uuid), ttl=ttl_of(frame.state, uuid))
    who = f"{person(one['user'] or '?')}, " + (one["job"] or (f"pid {one['pid']}" if one["pid"] else "?"))
    return [
        Html(f'<b title="{safe(uuid)}">{safe(uuid[:8])}</b> <span class="hp-small">{safe(who)}</span>'),
        one["site"] or "?",
        one["host"] or "?",
        Html(links + (f" and {len(runs) - 4} more" if len(runs) > 4 else "")),
        *(f"{one[what]:,}" for what in ("ended", "returned", "lost")),
        seen,
        one["machine"],
        "; ".join([*["takes no more trials"] * one["draining"], *one["differs"]]),
    ]


def _drain(page: PageContext) -> None:
    frame = page.frame
    if frame is None:
        return
    theme.heading("Drain")
    theme.caption("Ask a peer, or a whole site, to finish its trials and take no more.")
    peers = dict(frame.state.peers)
    labels = peer_labels(frame.state)
    names = {
        f"site:{place}": f"all of {place}" for place in sorted({info.get("site") or "?" for info in peers.values()})
    }
    names |= {peer: labels[peer] for peer in peers if peer in labels}
    left, right, last = st.columns([3, 1, 1], vertical_alignment="bottom")
    chosen = left.selectbox(
        "Site or peer", list(names), index=None, placeholder="choose one", format_func=names.__getitem__, key="drain"
    )
    whom = {"site": chosen[5:]} if chosen and chosen.startswith("site:") else {"peer": chosen}
    if right.button("Take no more", disabled=chosen is None, width="stretch"):
        page.act("owner", lambda study: study.drain(**whom), done="Asked to take no more trials.")
    if last.button("Take trials again", disabled=chosen is None, width="stretch"):
        page.act("owner", lambda study: study.drain(**whom, off=True), done="Allowed to take trials again.")
