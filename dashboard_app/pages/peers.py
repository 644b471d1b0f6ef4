"""Peers & sites: who takes part, where, how busy they are, and whether they show signs of life."""

from __future__ import annotations

import time
from typing import Any, Final

import streamlit as st

from dashboard_app import theme, url
from dashboard_app.acting import act
from dashboard_app.frames import Frame
from dashboard_app.here import Here
from dashboard_app.redraw import live
from dashboard_app.views import peers as views
from dashboard_app.views.spec import rough
from hopaas_p2p.report.facts import duration

_ROWS = 60
_TICKS: Final[dict[str, Any]] = {"seconds": ":%S", "minutes": "%H:%M", "hours": "%H:%M"}
"""Of the day's 24 hours; Vega's own count to twelve, and do not say which twelve."""
_COLOURS = {
    "complete": "#3b7be8",
    "pruned": "#a3854f",
    "failed": "#d9485f",
    "running": "#0f9d8a",
    "taken away": "#b0306a",
    "given back": "#7c8798",
}
_HEIGHTS = {"complete": 0.85, "taken away": 0.85, "running": 0.65, "pruned": 0.45, "given back": 0.35, "failed": 0.25}
"""By height too, for who does not tell these colours apart; what was taken away is dashed."""


def show(here: Here) -> None:
    """The page."""
    theme.title("Peers & sites", here)
    live(here, _body, more=_leases)
    if here.may_steer:
        _drain(here)


def _leases(here: Here, frame: Frame) -> dict[str, Any]:
    owners = {frame.state.trials[one].owner for one in list(frame.state.running)}
    left = {owner: here.feed.lease_left(frame.uuid, owner) for owner in owners if owner}
    return {"leases": {owner: round(seconds) for owner, seconds in list(left.items())[:_ROWS] if seconds is not None}}


def _body(here: Here, frame: Frame) -> None:
    now = time.time()

    def alive(owner: str) -> bool:
        return here.alive(frame, owner)

    found = views.peers(frame.state, frame.columns, now, alive)
    if not found:
        theme.nothing("Nobody has taken part yet. Start a peer: run your program, or hopaas-p2p worker.")
        return
    places = views.sites(found, frame.state, alive)
    lost = sum(one.lost for one in found)
    trip = here.feed.round_trip
    theme.tiles(
        [
            ("live peers", f"{sum(one.live for one in places):,}", f"of {len(found):,} that took part"),
            ("sites", f"{sum(one.live > 0 for one in places):,}", f"of {len(places):,} with a live peer"),
            ("leases lost", f"{lost:,}", "taken from silent peers, or given back"),
            ("lease", f"{frame.state.policy.ttl:g} s", "of silence until a trial is taken over"),
            ("round trip", "unknown" if trip is None else f"{rough(1000 * trip)} ms", "to the store, from this server"),
        ]
    )
    theme.heading("Who ran what")
    _timeline(frame, now)
    theme.heading("Sites")
    theme.table(
        ["site", "live", "peers", "running", "ended", "leases lost", "busy", ""],
        [_site(one) for one in places],
        label="Sites",
        numeric=(1, 2, 3, 4, 5),
    )
    theme.heading("Peers")
    theme.table(
        ["peer", "site", "node", "runs", "ended", "lost", "busy", "sign of life", "clock", "machine", ""],
        [_peer(here, frame, one) for one in found[:_ROWS]],
        label="Peers",
        numeric=(4, 5),
    )
    if len(found) > _ROWS:
        theme.caption(f"and {len(found) - _ROWS:,} more that run nothing now")


def _site(one: views.Site) -> list[str]:
    drained = "takes no more trials" if one.draining else ""
    numbers = [f"{count:,}" for count in (one.live, one.peers, one.running, one.ended, one.lost)]
    return [theme.safe(one.name), *numbers, theme.share(one.busy), drained]


def _peer(here: Here, frame: Frame, one: views.Peer) -> list[str]:
    safe = theme.safe
    links = ", ".join(
        f'<a href="{safe(url.link("trial", study=frame.name, trial=number), longest=4000)}" target="_self">{number}</a>'
        for number in one.running[:4]
    )
    more = f" and {len(one.running) - 4} more" if len(one.running) > 4 else ""
    who = f'<span class="hp-small">{safe(one.user)}, {safe(one.job)}</span>'
    return [
        f'<b title="{safe(one.uuid)}">{safe(one.uuid[:8])}</b> {who}',
        safe(one.site),
        safe(one.host),
        links + more,
        f"{one.ended:,}",
        f"{one.lost:,}" if one.lost else "0",
        theme.share(one.busy),
        _lease(here, frame, one),
        _clock(here.feed.clock_behind(frame.uuid, one.uuid)),
        safe(one.hardware, longest=60),
        "takes no more trials" if one.draining else "",
    ]


def _lease(here: Here, frame: Frame, one: views.Peer) -> str:
    if not one.running:
        ago = "" if one.last is None else theme.ago(one.last)
        return f'<span class="hp-small">{ago}</span>'
    left = here.feed.lease_left(frame.uuid, one.uuid)
    words = "watching" if left is None else f"{round(left)} s left" if left > 0 else "may be taken over"
    return f'<span data-lease="{theme.safe(one.uuid)}">{words}</span>'


def _clock(behind: float | None) -> str:
    if behind is None:
        return '<span class="hp-small">unknown</span>'
    if -2.0 < behind < 8.0:
        return "agrees"
    return f"{duration(abs(behind))} {'behind' if behind > 0 else 'ahead'}"


def _timeline(frame: Frame, now: float) -> None:
    import altair as alt

    found = views.gantt(frame.state, now)
    if found.bars.empty:
        theme.nothing("No trial has been started.")
        return
    bars = found.bars
    rows = bars["peer"].nunique()
    kinds = [kind for kind in _COLOURS if kind in set(bars["kind"])]
    base = alt.Chart(bars).encode(
        x=alt.X("start:T", title=None, axis=alt.Axis(grid=True, tickCount=6, labelOverlap=True, format=_TICKS)),
        x2="end:T",
        y=alt.Y("peer:N", title=None, axis=alt.Axis(labelLimit=170, labelOverlap=False)),
        color=alt.Color(
            "kind:N",
            title=None,
            scale=alt.Scale(domain=kinds, range=[_COLOURS[kind] for kind in kinds]),
            legend=alt.Legend(orient="top", columns=2, symbolStrokeWidth=0),  # a telephone has room for two
        ),
        tooltip=["trial:Q", "kind:N", "site:N", "peer:N", alt.Tooltip("took:Q", title="seconds")],
    )
    dashed: dict[str, Any] = {"stroke": "#b0306a", "strokeDash": [3, 2], "fillOpacity": 0.3}
    chart = alt.layer(
        *(
            base.transform_filter(alt.datum.kind == kind).mark_bar(
                height={"band": _HEIGHTS[kind]}, cornerRadius=2, **(dashed if kind == "taken away" else {})
            )
            for kind in kinds
        )
    )
    told = ", ".join(f"{count:,} {kind}" for kind, count in bars["kind"].value_counts().items())
    height = 26 * rows + 100 + 18 * -(-len(kinds) // 2)  # rows, the axis and its room, the legend
    st.altair_chart(chart, key="gantt", height=height, alt=f"Timeline of {rows} peers: {told}.")
    tall = sorted(kinds, key=lambda kind: -_HEIGHTS[kind])
    notes = [f"The tallest bars are {', then '.join(tall)}"] if len(kinds) > 1 else []
    notes += [f"{found.peers_left_out:,} peers are not drawn"] if found.peers_left_out else []
    notes += [f"{found.bars_left_out:,} earlier stretches are not drawn"] if found.bars_left_out else []
    theme.caption(". ".join(["Times are by each peer's own clock", *notes]) + ".")


def _drain(here: Here) -> None:
    frame = here.frame
    if frame is None:
        return
    theme.heading("Drain")
    theme.caption("Ask a peer, or a whole site, to finish what it runs and to take no more trials.")
    state = frame.state
    labels = views.labels_of(state, list(state.peers))
    places = sorted({said.get("site") or "?" for said in list(state.peers.values())})
    named = {peer: f"{said.get('site') or '?'}: {labels[peer]}" for peer, said in list(state.peers.items())}
    choices = [*(f"site:{place}" for place in places), *named]
    left, right, last = st.columns([3, 1, 1], vertical_alignment="bottom")
    chosen = left.selectbox(
        "Whom",
        choices,
        index=None,
        placeholder="a site or a peer",
        format_func=lambda one: f"all of {one[5:]}" if one.startswith("site:") else named[one],
        key="drain",
    )
    names = {"site": chosen[5:]} if chosen and chosen.startswith("site:") else {"peer": chosen}
    if right.button("Take no more", disabled=chosen is None, width="stretch"):
        act(here, lambda study: study.drain(**names), done="asked to take no more trials")
    if last.button("Take trials again", disabled=chosen is None, width="stretch"):
        act(here, lambda study: study.drain(**names, off=True), done="may take trials again")
