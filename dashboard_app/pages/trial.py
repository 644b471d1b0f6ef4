"""Trial: one trial, from its parameters to who owned it."""

from __future__ import annotations

import datetime

import streamlit as st

from dashboard_app import theme, url
from dashboard_app.charts import draw
from dashboard_app.frames import Frame
from dashboard_app.here import Here
from dashboard_app.notebook import files_of, note_of, tags_of
from dashboard_app.redraw import live
from dashboard_app.views import trial as views
from dashboard_app.views.spec import number as shown
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.state import Trial
from hopaas_p2p.report.facts import duration


def show(here: Here) -> None:
    """The page."""
    frame = here.frame
    count = len(frame.state.trials) if frame is not None else 0
    theme.title("Trial", here)
    if not count:
        theme.nothing("No trial yet.")
        return
    assert frame is not None
    asked = url.given("trial")
    if not asked.isdecimal() or int(asked) >= count:
        if asked:
            theme.nothing(f"There is no trial {asked}; this is another.")
        # a default would be left out of the address, and the best trial is another tomorrow
        st.session_state.setdefault("trial", _first(frame))
    given = st.number_input("Number", 0, count - 1, value=None, step=1, key="trial", bind="query-params", width=180)
    number = _first(frame) if given is None else int(given)
    goes_on = frame.state.trials[number].state in (TrialState.RUNNING, TrialState.WAITING)
    live(here, lambda here, frame: _body(here, frame, number), auto=goes_on)
    note_of(here, number)
    tags_of(here, number)
    files_of(here, number)


def _first(frame: Frame) -> int:
    """The trial to begin with: the best, else the newest."""
    row = frame.columns.best() if len(frame.columns.directions) == 1 else None
    return len(frame.columns) - 1 if row is None else int(frame.columns.number[row])


def _body(here: Here, frame: Frame, number: int) -> None:
    if number >= len(frame.state.trials):
        theme.nothing(f"There is no trial {number}.")
        return
    trial = frame.state.trials[number]
    _head(frame, trial)
    if trial.reason:
        theme.heading("Why it ended")
        st.html(f'<pre class="hp-reason">{theme.safe(trial.reason, longest=4000)}</pre>')
    left, right = st.columns(2)
    with left:
        _parameters(frame, trial)
    with right:
        draw(views.curve(frame.state, frame.columns, number), key="curve", empty="It reported nothing by step.")
    _owners(here, frame, trial)
    _attempts(frame, trial)
    _provenance(frame, trial)
    _attributes(trial)
    theme.heading("Run it again")
    python, shell = st.tabs(["Python", "Shell"])
    # wrapped: what only a mouse can scroll shuts out who has a keyboard
    python.code(views.as_python(frame.name, here.feed.url, frame.state, trial), language="python", wrap_lines=True)
    shell.code(views.as_shell(frame.name, here.feed.url, frame.state, trial), language="shell", wrap_lines=True)


def _head(frame: Frame, trial: Trial) -> None:
    word = trial.state.name.lower()
    asked = f' <span class="hp-tag">asked to stop: {theme.safe(trial.stop)}</span>' if trial.stop else ""
    st.html(f'<div class="hp-row hp-start">{theme.pill(word)}{asked}</div>')
    rank = views.rank(frame.columns, trial.number)
    place = f"place {rank[0]:,} of {rank[1]:,} complete" if rank else "of the objective"
    if trial.values is not None:
        value = ", ".join(shown(one) for one in trial.values)
    else:
        value = "none yet" if trial.state in (TrialState.RUNNING, TrialState.WAITING) else "none"
    said = frame.state.peers.get(trial.owner or "", {})
    took = "not over" if trial.end is None or trial.start is None else duration(max(0, trial.end - trial.start) / 1e6)
    last = max(trial.reports, default=None)
    reported = "no reports" if last is None else f"last {shown(trial.reports[last])} at step {last}"
    attempts = frame.state.policy.attempts
    theme.tiles(
        [
            ("value", value, place),
            ("steps", f"{len(trial.reports):,}", reported),
            ("took", took, f"started {_when(trial.start)}"),
            ("attempt", str(trial.attempt), f"of at most {attempts}"),
            ("site", said.get("site") or "none", said.get("host") or "nobody runs it"),
        ]
    )


def _when(at: float | None) -> str:
    if at is None:
        return "at an unknown time"
    try:
        return datetime.datetime.fromtimestamp(at / 1e6, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, OSError, ValueError):
        return "at an impossible time"


def _parameters(frame: Frame, trial: Trial) -> None:
    theme.heading("Parameters")
    found = views.standings(frame.state, frame.columns, trial.number)
    if not found:
        theme.nothing("None yet; the objective has suggested nothing.")
        return
    rows = []
    for one in found:
        if one.percentile is not None:
            where = f"{theme.share(one.percentile)} <span class='hp-small'>lie below</span>"
        elif one.share is not None:
            where = f"{theme.share(one.share)} <span class='hp-small'>had it too</span>"
        else:
            where = ""
        rows.append([theme.safe(one.name), f"<b>{theme.safe(one.value)}</b>", where])
    theme.table(["parameter", "value", "among the complete trials"], rows, label="Parameters")


def _owners(here: Here, frame: Frame, trial: Trial) -> None:
    theme.heading("Who owned it")
    found = views.owners(frame.state, trial)
    if not found:
        theme.nothing("Nobody has run it.")
        return
    rows = []
    for one in found:
        left = here.feed.lease_left(frame.uuid, one.uuid) if one.end is None else None
        how = theme.safe(one.how) + ("" if left is None else f", {round(left)} s left of its lease")
        if one.kept_as is not None:
            how += f"; its late result is {_link(frame, one.kept_as)}"
        took = "" if one.start is None or one.end is None else duration(max(0.0, one.end - one.start))
        rows.append(
            [
                str(one.epoch),
                f'<span title="{theme.safe(one.uuid)}">{theme.safe(one.uuid[:8])}</span>',
                theme.safe(one.site),
                theme.safe(one.host),
                _when(None if one.start is None else one.start * 1e6),
                took,
                how,
            ]
        )
    theme.table(["epoch", "peer", "site", "node", "from", "for", "how it ended"], rows, label="Owners", numeric=(0,))


def _link(frame: Frame, number: int) -> str:
    address = theme.safe(url.link("trial", study=frame.name, trial=number), longest=4000)
    return f'<a href="{address}" target="_self">trial {number}</a>'


def _attempts(frame: Frame, trial: Trial) -> None:
    found = views.family(frame.state, trial.number)
    if len(found) > 1:
        theme.heading("Attempts at these parameters")
        rows = [
            [f"<b>trial {one}</b>" if one == trial.number else _link(frame, one), theme.safe(what)]
            for one, what in found
        ]
        theme.table(["trial", "what it is"], rows, label="Attempts")
    if trial.checkpoints:
        theme.heading("Where it may be resumed")
        rows = [
            [str(one.step), f"{one.size:,}", theme.safe(one.sha256[:16]), theme.safe(one.key)]
            for one in trial.checkpoints
        ]
        theme.table(["after step", "bytes", "sha256", "kept as"], rows, label="Checkpoints", numeric=(0, 1))


def _provenance(frame: Frame, trial: Trial) -> None:
    said = frame.state.peers.get(trial.owner or "", {})
    if not said:
        return
    theme.heading("Where and with what it ran")
    rows = [[theme.safe(key), theme.safe(value, longest=400)] for key, value in said.items()]
    theme.table(["what", "as its peer said"], rows, label="Provenance")


def _attributes(trial: Trial) -> None:
    if not trial.user:
        return
    theme.heading("Attributes")
    rows = [[theme.safe(key), theme.safe(value, longest=400)] for key, value in list(trial.user.items())[:200]]
    theme.table(["attribute", "value"], rows, label="Attributes")
