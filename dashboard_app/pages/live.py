"""The page Live, with the current state, the running trials, and the latest events."""

from __future__ import annotations

import time
from typing import Final

import streamlit as st

from dashboard_app import theme
from dashboard_app.frames import Frame
from dashboard_app.page_context import PageContext
from dashboard_app.redraw import live
from dashboard_app.theme import draw
from dashboard_app.views import live as views
from dashboard_app.views import studies
from hopaas_p2p.analysis import charts, tiles
from hopaas_p2p.analysis.chart import Chart, finite
from hopaas_p2p.analysis.chart import number as decimals
from hopaas_p2p.analysis.facts import count, duration, last_report, row_of, shown
from hopaas_p2p.analysis.html import Html, safe
from hopaas_p2p.analysis.savings import savings
from hopaas_p2p.analysis.spending import budget_lines, cells, spending
from hopaas_p2p.analysis.table import place
from hopaas_p2p.core.admission import next_start
from hopaas_p2p.core.state import RUNNING, WAITING, Trial
from hopaas_p2p.search.priors import Learned, learned_of

_SPARK: Final = 40
_POINTS: Final = 1600  # the most points of the history, which is sent again with every new trial
_CLOSED: Final = {
    "failing": "Too many trials failed in a row. No new trial starts until the study is resumed.",
    "paused": "No new trial starts. Running trials continue.",
    "stopped": "No new trial starts. Peers finish the running trials.",
}


def show(page: PageContext) -> None:
    """The page."""
    page.title("Live")
    live(page, _body, more=PageContext.leases)


def _body(page: PageContext, frame: Frame) -> None:
    now = time.time()
    _tiles(page, frame, now)
    left, right = st.columns(2)
    with left:
        draw(frame.once(_history), key="history", empty="No complete trial yet. The first value will appear here.")
    with right:
        curves = frame.once(lambda one: charts.curves(one.state, one.columns), "curves")
        draw(curves, key="curves", empty="No learning curves: no trial has reported intermediate values.")
    headers = ["trial", "site", "node", "peer", "for", "progress", "last report", "curve", "lease"]
    of, leases = views.steps_of_a_trial(frame.columns), page.cache.leases(frame.uuid)
    rows = [_row(frame, one, of, now, leases) for one in views.running(frame.state)]
    empty = "No trial is running. Peers that join appear here."
    theme.table(headers, rows, label="Running now", titled=True, empty=empty, of=frame.state.counts[RUNNING])
    spent = frame.once(lambda one: spending(one.state), "spending")
    if spent.rows:
        theme.table(*cells(spent), label="Spent", titled=True)
        theme.caption(" · ".join(budget_lines(spent)))
    theme.heading("Recent events")
    parts = [
        f'<li class="hp-event hp-{kind}"><i aria-hidden="true">{theme.SYMBOLS.get(kind, "↺")}</i>{theme.ago(at)}'
        f"{theme.trial_link(frame.name, number, 'trial ')} <span>{safe(text)}</span></li>"
        for at, number, kind, text in views.events(frame.state, frame.columns)
    ]
    if parts:
        st.html(f'<ul class="hp-events">{"".join(parts)}</ul>')
    else:
        theme.nothing("No events yet.")


def _history(frame: Frame) -> Chart | None:
    if len(frame.columns.directions) > 1:
        return charts.pareto(frame.columns)
    ignored = [(one.name, one.until) for one in _learned(frame) if one.until is not None]
    return charts.history(frame.columns, most=_POINTS, ignored=ignored)


def _learned(frame: Frame) -> list[Learned]:
    return frame.once(lambda one: learned_of(one.state, one.columns), "learned")


def _tiles(page: PageContext, frame: Frame, now: float) -> None:
    state, columns = frame.state, frame.columns
    pace = views.pace(state, columns, now)
    card = studies.card(state, columns, page.cache.signs(frame.uuid))
    word, waiting, sites = card["word"], state.counts[WAITING], card["sites"]
    saved = frame.once(lambda one: savings(one.state, one.columns), "saved")
    running = f"{count(sum(sites.values()), 'live peer')} at {count(len(sites), 'site')}"
    eta = "unknown" if pace["eta"] is None else duration(pace["eta"])
    eta = "done" if word == "done" or pace["left"] == 0 else eta if word in ("running", "unknown") else "not running"
    why = _CLOSED.get(next_start(state).why or "", "")
    st.html(f'<div class="hp-row hp-start">{theme.pill(word)}<span class="hp-small">{why}</span></div>')
    theme.tiles([
        tiles.best(columns),
        ("Running", f"{state.counts[RUNNING]:,}", running + (f", {waiting:,} waiting" if waiting else "")),
        ("Last hour", f"{pace['recent']:,}", "trials completed or pruned"),
        tiles.failed(state),
        ("Compute-hours", decimals(round(pace["hours"], 2)), f"pruning saved about {saved.time}" * bool(saved.pruned)),
        ("Time to budget", eta, "no budget" if state.budget is None else f"{card['used']:,} of {state.budget:,} used"),
    ])  # fmt: skip
    best = columns.best()
    if best is not None:
        params = ", ".join(f"{name} = {shown(value)}" for name, value in row_of(state, best)["params"].items())
        link = theme.trial_link(frame.name, best, "Best trial ")
        st.html(f'<p class="hp-caption">{link}: {safe(params, longest=400)}</p>')
    learned = _learned(frame)
    if learned:
        theme.caption(". ".join(map(str, learned)) + ".")


def _row(frame: Frame, trial: Trial, of: int | None, now: float, leases: dict[str, float]) -> list[str]:
    owner, steps, number = trial.owner or "", len(trial.reports), theme.trial_link(frame.name, trial.number)
    progress = theme.share(min(1.0, steps / of), f"{steps} of about {of}") if of else safe(f"{steps} steps")
    curve = [value for _, value in finite(trial.reports, most=_SPARK)]
    return [
        Html(f'{number} <span class="hp-small">attempt {trial.attempt}</span>') if trial.attempt > 1 else number,
        *place(frame.state, owner),
        owner[:8],
        "" if trial.start is None else theme.lasting(min(now, trial.start / 1e6)),
        Html(progress + theme.asked_to_stop(trial)),
        last_report(trial) or "none yet",
        theme.spark(curve, f"reports of trial {trial.number}"),
        theme.lease(owner, leases.get(owner)),
    ]
