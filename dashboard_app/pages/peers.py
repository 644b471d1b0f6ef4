"""Peers & sites: who takes part, where, how busy they are, and whether they show signs of life."""

from __future__ import annotations

import time
from typing import Any, Final

import streamlit as st

from dashboard_app import theme
from dashboard_app.frames import Frame
from dashboard_app.page_context import PageContext
from dashboard_app.redraw import live
from hopaas_p2p.analysis.facts import duration, peer_labels
from hopaas_p2p.analysis.peers import peer_rows, site_rows
from hopaas_p2p.analysis.timeline import timeline
from hopaas_p2p.core.leases import ttl_of
from hopaas_p2p.peer.liveness import owners_of

_ROWS: Final = 60
_DRAINING: Final = ("", "takes no more trials")


def show(page: PageContext) -> None:
    """The page."""
    page.title("Peers & sites")
    live(page, _body, more=_leases)
    if page.may_steer:
        _drain(page)


def _leases(page: PageContext, frame: Frame) -> dict[str, Any]:
    owners = [frame.state.trials[one].owner or "" for one in list(frame.state.running)[:_ROWS]]
    return page.leases(frame, dict(zip(owners, owners, strict=True)))


def _body(page: PageContext, frame: Frame) -> None:
    now = time.time()
    signs = {owner: page.cache.sign_of_life(frame.uuid, owner) for owner in owners_of(frame.state)}
    found = [one for one in peer_rows(frame.state, now, signs) if one["running"] or one["last"] is not None]
    if not found:
        theme.nothing("No peer has taken part yet. To start one, run your program, or hopaas-p2p worker.")
        return
    places = site_rows(found, frame.state)
    trip = page.cache.round_trip
    theme.tiles([
        ("Live peers", f"{sum(one['live'] for one in places):,}", f"of {len(found):,} that took part"),
        ("Sites", f"{sum(one['live'] > 0 for one in places):,}", f"of {len(places):,} with a live peer"),
        ("Leases lost", f"{sum(one['lost'] for one in found):,}", "taken from silent peers, or returned"),
        ("Lease", duration(frame.state.policy.ttl), "of silence until a trial is taken over"),
        ("Round trip", "unknown" if trip is None else f"{theme.rough(1000 * trip)} ms",
         "from this server to the store"),
    ])  # fmt: skip
    theme.draw(timeline(frame.state, now), key="gantt", empty="No trial has started yet.")
    headers = ["site", "live", "peers", "running", "ended", "leases lost", "busy", ""]
    rows = [
        [theme.safe(name), *(f"{count:,}" for count in counts), theme.share(busy), _DRAINING[draining]]
        for name, *counts, busy, draining in map(dict.values, places)
    ]
    theme.table(headers, rows, label="Sites", titled=True)
    headers = ["peer", "site", "node", "runs", "ended", "lost", "busy", "last seen", "clock", "machine", ""]
    theme.table(headers, [_peer(page, frame, one) for one in found[:_ROWS]], label="Peers", titled=True)
    if len(found) > _ROWS:
        theme.caption(f"and {len(found) - _ROWS:,} more that run no trial now")


def _peer(page: PageContext, frame: Frame, one: dict[str, Any]) -> list[str]:
    safe = theme.safe
    uuid, runs = one["peer"], one["running"]
    links = ", ".join(theme.trial_link(frame.name, number) for number in runs[:4])
    seen = "" if one["last"] is None else theme.ago(one["last"])
    if runs:
        seen = theme.last_seen(uuid, page.cache.lease_left(frame.uuid, uuid), ttl_of(frame.state, uuid))
    behind, clock = page.cache.clock_behind(frame.uuid, uuid), "agrees"
    if behind is None:
        clock = '<span class="hp-small">unknown</span>'
    elif not -2.0 < behind < 8.0:
        clock = f"{duration(abs(behind))} {'behind' if behind > 0 else 'ahead'}"
    who = f"{one['user'] or '?'}, " + (one["job"] or (f"pid {one['pid']}" if one["pid"] else "?"))
    return [
        f'<b title="{safe(uuid)}">{safe(uuid[:8])}</b> <span class="hp-small">{safe(who)}</span>',
        *(safe(one[what] or "?") for what in ("site", "host")),
        links + (f" and {len(runs) - 4} more" if len(runs) > 4 else ""),
        *(f"{one[what]:,}" for what in ("ended", "lost")),
        theme.share(one["busy"]),
        seen,
        clock,
        safe(one["machine"], longest=60),
        f"{_DRAINING[one['draining']]} {safe('; '.join(one['differs']), longest=120)}",
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
        page.act(lambda study: study.drain(**whom), done="Asked to take no more trials.")
    if last.button("Take trials again", disabled=chosen is None, width="stretch"):
        page.act(lambda study: study.drain(**whom, off=True), done="Allowed to take trials again.")
