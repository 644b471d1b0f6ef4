"""Steer: pause, stop, change the budget, stop or queue trials; and what became of it.

Everything here is a record in the study's log, addressed to what the person saw: a trial by its number and the epoch of
its lease. Whether it is done is read off the log too, so everybody is told the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import streamlit as st

from dashboard_app import theme
from dashboard_app.frames import Frame
from dashboard_app.page_context import PageContext
from dashboard_app.redraw import live
from dashboard_app.views import requests
from dashboard_app.views.requests import Kind, Request
from hopaas_p2p.analysis.facts import state_word
from hopaas_p2p.analysis.table import place
from hopaas_p2p.core.admission import next_start
from hopaas_p2p.core.records import Categorical, Distribution, Int, TrialState
from hopaas_p2p.core.state import Trial
from hopaas_p2p.peer.liveness import any_alive, owners_of
from hopaas_p2p.study import Study

_KEPT: Final = 30
_SYMBOLS: Final = {"requested": "…", "acknowledged": "◐", "done": "✓", "refused": "✕"}
_OPEN: Final = "auto"
_FIELDS: Final = 100  # of a form; with thousands, which one record can name, a page takes minutes
_LARGEST: Final = (1 << 53) - 1  # that a browser can tell from its neighbours


def show(page: PageContext) -> None:
    """The page."""
    page.title("Steer")
    if not page.options.actions:
        theme.nothing("This monitor is read-only. Start it with: hopaas-p2p dashboard --allow-actions")
        return
    if not page.may_act:
        theme.nothing("You may look at this study but not change it. Ask one of its owners for the role worker.")
        return
    live(page, _now)
    live(page, _choices, key="choices", age=False)


def _now(page: PageContext, frame: Frame) -> None:
    _status(page, frame)
    _requests(page, frame)


def _choices(page: PageContext, frame: Frame) -> None:
    with st.container():  # so that the form stays in place when nothing runs any more
        _running(page, frame)
    _enqueue(page, frame)


# --- asking ---


def ask(
    page: PageContext, kind: Kind, what: str, do: Callable[[Study], Any], *, number: int | None = None, **more: Any
) -> None:
    """Do it, and note it among what was asked for. `do` returns the number of the trial that was queued, if one was."""
    made: list[int | None] = []
    failure = page.attempt(lambda study: made.append(do(study)))
    number = made[0] if kind == "run" and made else number
    asked = Request(kind, what, time.time(), number, failure=failure, **more)
    key = f"asked-{page.uuid}"
    st.session_state[key] = [asked, *st.session_state.get(key, ())][:_KEPT]
    st.session_state[f"count-{page.uuid}"] = _asked(page) + 1


def _asked(page: PageContext) -> int:
    """How much was asked for in this session: part of the keys of what an action leaves empty."""
    asked: int = st.session_state.get(f"count-{page.uuid}", 0)
    return asked


def _requests(page: PageContext, frame: Frame) -> None:
    rows = []
    for one in st.session_state.get(f"asked-{page.uuid}", ()):
        how = requests.progress(one, frame.state)
        when = time.strftime("%H:%M:%S", time.localtime(one.at))
        state = f'<span class="hp-tag">{_SYMBOLS[how.word]} {how.word}</span>'
        rows.append([when, theme.safe(one.what), state, theme.safe(how.more)])
    if rows:
        theme.table(("at", "what", "state", ""), rows, label="Your requests", titled=True)


# --- the study ---


def _status(page: PageContext, frame: Frame) -> None:
    state = frame.state
    closed = next_start(state).why
    end = f" of {state.budget:,}" if state.budget is not None else ", no budget"
    working = any_alive([page.cache.sign_of_life(frame.uuid, owner) for owner in owners_of(state)])
    theme.tiles([
        ("State", state_word(state, working=working), "of the study"),
        ("Budget used", f"{state.used():,}{end}", "complete, pruned and running"),
        ("Running", f"{len(state.running):,}", "trials"),
        ("Waiting", f"{len(state.waiting):,}", "trials"),
    ])  # fmt: skip
    if not page.may_steer:
        theme.caption("You may queue trials. Only owners of the study may pause or stop it or change its budget.")
        return
    first, second, third, fourth = st.columns([1, 1, 1, 3], vertical_alignment="bottom")
    running = state.status == "running" and closed != "failing"
    if first.button("Pause", icon=":material/pause:", disabled=state.status != "running", width="stretch"):
        ask(page, "control", "pause the study", lambda study: study.pause(), status="paused")
        st.rerun()
    if second.button("Resume", icon=":material/play_arrow:", disabled=running, width="stretch"):
        ask(page, "control", "resume the study", lambda study: study.resume(), status="running")
        st.rerun()
    if third.button("Stop …", icon=":material/stop:", disabled=state.status == "stopped", width="stretch"):
        _stop_study(page)
    with fourth, st.form("budget", border=False):
        left, right = st.columns([2, 1], vertical_alignment="bottom")
        wanted = left.number_input("Budget, in trials (empty: none)", min_value=1, value=state.budget, step=1)
        if right.form_submit_button("Set", width="stretch") and wanted != state.budget:
            budget = int(wanted) if wanted else None
            what = f"set the budget to {budget:,}" if budget else "remove the budget"
            ask(page, "control", what, lambda study: study.set_budget(budget), budget=budget or -1)
            st.rerun()


@st.dialog("Stop the study?")
def _stop_study(page: PageContext) -> None:
    frame = page.frame
    if frame is None:
        theme.nothing("The study no longer exists.")
        return
    running = sorted(frame.state.running)
    st.write(f"No more trials will start. {len(running):,} are running now; their peers finish them.")
    epochs = {number: frame.state.trials[number].epoch for number in running}
    too = st.checkbox("Also ask the running trials to end", disabled=not running)
    if st.button("Stop it", type="primary"):
        ask(page, "control", "stop the study", lambda study: study.stop_all(), status="stopped")
        for number, epoch in epochs.items() if too else ():
            _ask_to_stop(page, number, epoch, "the study is stopped")
        st.rerun()


# --- trials that run ---


def _running(page: PageContext, frame: Frame) -> None:
    running = [frame.state.trials[number] for number in sorted(frame.state.running)]
    if not running or not page.may_steer:
        return
    theme.heading("Running trials")
    leases = {(one.number, one.epoch): _where(frame, one) for one in running}
    left, middle, right = st.columns([3, 1, 1], vertical_alignment="bottom")
    chosen = left.selectbox(
        "Trial", list(leases), format_func=lambda key: f"{key[0]} | {leases.get(key, 'has ended')}",
        key=f"lease-{_asked(page)}", index=None, placeholder="choose one",  # after an action nothing stays selected
    )  # fmt: skip
    if middle.button("Stop it …", disabled=chosen is None, width="stretch") and chosen:
        _confirm_stop(page, *chosen)
    if right.button("Take it away …", disabled=chosen is None, width="stretch") and chosen:
        _confirm_take(page, *chosen)


def _where(frame: Frame, trial: Trial) -> str:
    site, host = place(frame.state, trial.owner)
    return f"{host} ({site}), epoch {trial.epoch}" + (", asked to stop" if trial.stop else "")


def _seen(page: PageContext, number: int, epoch: int) -> bool:
    """Show the trial as it is now, read again by its number; whether it is still the lease that was seen."""
    frame = page.frame
    if frame is None or number >= len(frame.state.trials):
        theme.nothing("This trial no longer exists.")
        return False
    trial = frame.state.trials[number]
    step = max(trial.reports, default=None)
    where = _where(frame, trial) + (f", step {step}" if step is not None else "")
    link, pill = theme.trial_link(frame.name, number, "Trial "), theme.pill(trial.state.name.lower())
    st.html(f"<p>{link} {pill} {theme.safe(where)}</p>")
    if trial.state is not TrialState.RUNNING or trial.epoch != epoch:
        st.warning("You chose an earlier lease of this trial; that lease has ended.")
        return False
    return True


@st.dialog("Ask this trial to end?")
def _confirm_stop(page: PageContext, number: int, epoch: int) -> None:
    still = _seen(page, number, epoch)
    reason = st.text_input("Reason (shown to its peer)", max_chars=200)
    st.caption("Its next should_prune() returns true. Its training code then decides how to end, usually as PRUNED.")
    if st.button("Ask it to end", type="primary", disabled=not still):
        _ask_to_stop(page, number, epoch, reason or "stopped from the dashboard")
        st.rerun()


def _ask_to_stop(page: PageContext, number: int, epoch: int, reason: str) -> None:
    who = f" ({page.person})" if page.person else ""
    ask(
        page, "stop-trial", f"stop trial {number}",
        lambda study: study.stop_trial(number, reason=f"{reason}{who}", epoch=epoch), number=number, epoch=epoch,
    )  # fmt: skip


@st.dialog("Take this trial away from its peer?")
def _confirm_take(page: PageContext, number: int, epoch: int) -> None:
    still = _seen(page, number, epoch)
    st.caption(
        "The trial fails, and its parameters are queued again if attempts remain. Its peer learns of it at its next "
        "contact with the store. If the peer still completes the trial, its result is kept."
    )
    if st.button("Take it away", type="primary", disabled=not still):
        what = f"take trial {number} away and queue it again"
        ask(page, "run", what, lambda study: study.requeue(number, epoch=epoch), epoch=epoch)
        st.rerun()


# --- trials to come ---


def _enqueue(page: PageContext, frame: Frame) -> None:
    theme.heading("Queue a trial")
    if not frame.columns.parameters:
        theme.nothing("The study has no search space yet. The first trial will name the parameters.")
        return
    space, asked = frame.state.dists, _asked(page)
    with st.form("enqueue"):
        theme.caption("Leave a field empty to let the sampler choose.")
        places, given = st.columns(3), {}
        for at, (name, one) in enumerate(list(space.items())[:_FIELDS]):
            with places[at % 3]:
                value = _field(name, one, f"new-{name}-{asked}")  # empty again after each action
            if value is not None:
                given[name] = value
        if len(space) > _FIELDS:
            theme.caption(f"The sampler chooses the other {len(space) - _FIELDS:,} parameters.")
        times = int(st.number_input("How many times", 1, 100, value=1, step=1, width=220))
        if st.form_submit_button("Queue", type="primary", icon=":material/add:"):
            words = ", ".join(f"{name} = {value}" for name, value in given.items()) or "a trial with sampled parameters"
            for _ in range(times):
                ask(page, "run", f"queue {words}", lambda study: study.enqueue_trial(given))
            st.rerun()


def _field(name: str, one: Distribution, key: str) -> Any:
    label = theme.plain(name, longest=60)
    if isinstance(one, Categorical):
        at = st.selectbox(
            label, range(len(one.choices)), index=None, placeholder=_OPEN, key=key,
            format_func=lambda index: str(one.choices[index]),
        )  # fmt: skip
        return None if at is None else one.choices[at]
    scale = ", log" if one.log else ""
    if isinstance(one, Int):
        label = f"{label} ({one.low} to {one.high}{scale})"
        low, high, by = (max(-_LARGEST, min(number, _LARGEST)) for number in (one.low, one.high, one.step))
        whole = st.number_input(label, low, high, value=None, step=by, placeholder=_OPEN, key=key)
        return None if whole is None else int(whole)
    label = f"{label} ({one.low:g} to {one.high:g}{scale})"
    step = one.step or (one.high - one.low) / 100 or None
    return st.number_input(label, one.low, one.high, value=None, step=step, placeholder=_OPEN, key=key, format="%.6g")
