"""Live: how it goes now, what runs where, and what happened last."""

from __future__ import annotations

import time
from typing import Any

import streamlit as st

from dashboard_app import theme, url
from dashboard_app.charts import draw
from dashboard_app.frames import Frame
from dashboard_app.here import Here
from dashboard_app.redraw import live
from dashboard_app.views import campaigns, history, pruning, spread
from dashboard_app.views import live as views
from dashboard_app.views.spec import Chart, number, rough
from hopaas_p2p.report.facts import duration

_POINTS = 1600  # of the history: what is sent again with every new trial
_SYMBOLS = {"started": "▶", "complete": "●", "best": "★", "pruned": "◆", "fail": "✕", "lost": "↺"}


def show(here: Here) -> None:
    """The page."""
    theme.title("Live", here)
    live(here, _body, more=_leases)


def _leases(here: Here, frame: Frame) -> dict[str, Any]:
    """Seconds left of the leases of the trials that are shown."""
    left: dict[str, int] = {}
    for one in sorted(frame.state.running)[:40]:
        owner = frame.state.trials[one].owner
        seconds = here.feed.lease_left(frame.uuid, owner) if owner else None
        if seconds is not None:
            left[str(one)] = round(seconds)
    return {"leases": left}


def _body(here: Here, frame: Frame) -> None:
    now = time.time()
    _tiles(here, frame, now)
    left, right = st.columns(2)
    with left:
        draw(frame.once(_history), key="history", empty="No complete trial yet: the first value appears here.")
    with right:
        draw(frame.once(_curves), key="curves", empty="No curves: trials have not reported values by step.")
    _running(here, frame, now)
    _events(frame)
    theme.heading("Alerts")
    theme.caption(views.alerts(frame.state, frame.name))


def _history(frame: Frame) -> Chart | None:
    if len(frame.columns.directions) > 1:
        return spread.pareto(frame.columns)
    return history.history(frame.columns, most=_POINTS)


def _curves(frame: Frame) -> Chart | None:
    chart = pruning.curves(frame.state, frame.columns)
    return None if chart is None else chart._replace(height=360)


def _saved(frame: Frame) -> pruning.Saved | None:
    return pruning.saved(frame.columns)


def _tiles(here: Here, frame: Frame, now: float) -> None:
    state, columns = frame.state, frame.columns
    pace = views.pace(state, columns, now)
    card = campaigns.card(state, columns, tags=[], note="", alive=lambda owner: here.alive(frame, owner))
    saved = frame.once(_saved)
    peers = sum(card.sites.values())
    running = (
        f"{peers} live peer{'' if peers == 1 else 's'} at {len(card.sites)} site{'' if len(card.sites) == 1 else 's'}"
    )
    waiting = card.counts.get("waiting", 0)
    budget = "no budget" if state.budget is None else f"{card.used:,} of {state.budget:,} used"
    facts = [
        ("best", card.best, card.best_of),
        ("running", f"{card.counts.get('running', 0):,}", running + (f", {waiting:,} wait" if waiting else "")),
        (
            "trials an hour",
            number(round(pace.per_hour, 1 if pace.per_hour < 100 else 0)),
            "complete and pruned, last hour",
        ),
        ("failed", f"{pace.failed:.1%}", f"{card.counts.get('fail', 0):,} of those that are over"),
        ("compute-hours", number(round(pace.hours, 2)), _said(saved)),
        ("to the budget", _eta(pace, card.word), budget),
    ]
    st.html(f'<div class="hp-row hp-start">{theme.pill(card.word)}{_because(frame)}</div>')
    theme.tiles(facts)
    if saved is not None:
        with st.popover("How the saving is estimated", type="tertiary"):
            st.write(pruning.ESTIMATOR)


def _said(saved: pruning.Saved | None) -> str:
    if saved is None:
        return "none saved by pruning"
    return f"pruning saved about {rough(saved.hours)} h ({rough(saved.low)} to {rough(saved.high)})"


def _eta(pace: views.Pace, word: str) -> str:
    if word == "done" or pace.left == 0:
        return "done"
    return "unknown" if pace.eta is None else duration(pace.eta)


def _because(frame: Frame) -> str:
    words = {
        "failing": "too many failures in a row; nothing is started until somebody resumes it",
        "paused": "running trials go on; none is started",
        "stopped": "running trials are ended by their owners; none is started",
    }
    why = words.get(frame.state.closed_because() or "")
    return f'<span class="hp-small">{why}</span>' if why else ""


def _running(here: Here, frame: Frame, now: float) -> None:
    theme.heading("Running now")
    rows = views.running(frame.state, frame.columns, now)
    if not rows:
        theme.nothing("No trial runs. A peer that joins shows up here by itself.")
        return
    theme.table(
        ["trial", "site", "node", "peer", "for", "progress", "last report", "curve", "lease"],
        [_row(here, frame, one, now) for one in rows],
        label="Running trials",
        numeric=(0, 4, 6),
    )
    hidden = frame.counts[0] - len(rows)
    if hidden > 0:
        theme.caption(f"and {hidden:,} more")


def _row(here: Here, frame: Frame, one: views.Running, now: float) -> list[str]:
    safe = theme.safe
    left = here.feed.lease_left(frame.uuid, one.owner)
    lease = "watching" if left is None else f"{max(0, round(left))} s left" if left > 0 else "may be taken over"
    attempt = f' <span class="hp-small">attempt {one.attempt}</span>' if one.attempt > 1 else ""
    asked = f' <span class="hp-tag">asked to stop: {safe(one.stop)}</span>' if one.stop else ""
    link = safe(url.link("trial", study=frame.name, trial=one.number), longest=4000)
    return [
        f'<a href="{link}" target="_self">{one.number}</a>{attempt}',
        safe(one.site),
        safe(one.host),
        safe(one.owner[:8]),
        "" if one.seconds is None else theme.lasting(now - one.seconds),
        _progress(one) + asked,
        number(one.last) if one.last is not None else "none yet",
        theme.spark(one.curve, f"reports of trial {one.number}"),
        f'<span data-lease="{one.number}">{lease}</span>',
    ]


def _progress(one: views.Running) -> str:
    if not one.of:
        return f"{one.steps} steps"
    share = min(1.0, one.steps / one.of)
    return (
        f'<span class="hp-progress"><span class="hp-bar" aria-hidden="true">'
        f'<i class="hp-running" style="width:{share:.0%}"></i></span>{one.steps} of about {one.of}</span>'
    )


def _events(frame: Frame) -> None:
    theme.heading("What happened last")
    found = views.events(frame.state, frame.columns)
    if not found:
        theme.nothing("Nothing yet.")
        return
    parts = []
    for one in found:
        link = theme.safe(url.link("trial", study=frame.name, trial=one.number), longest=4000)
        parts.append(
            f'<li class="hp-event hp-{one.kind}"><i aria-hidden="true">{_SYMBOLS.get(one.kind, "")}</i>'
            f"{theme.ago(one.at)}"
            f'<a href="{link}" target="_self">trial {one.number}</a> <span>{theme.safe(one.text)}</span></li>'
        )
    st.html(f'<ul class="hp-events">{"".join(parts)}</ul>')
