"""Steer: pause, stop, move the budget, stop or queue trials; and what became of it.

Everything here is a record in the study's log, addressed to what the person saw: a trial by its number and the epoch of
its lease. Whether it is done is read off the log too, so it is told the same to all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import streamlit as st

from dashboard_app import theme, url
from dashboard_app.acting import attempt
from dashboard_app.frames import Frame
from dashboard_app.here import Here
from dashboard_app.redraw import live
from dashboard_app.space_form import space_form
from dashboard_app.views import requests
from dashboard_app.views.requests import Kind, Request
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.state import Trial

if TYPE_CHECKING:
    from hopaas_p2p.study import Study

_KEPT: Final = 30
_SYMBOLS: Final = {"requested": "…", "acknowledged": "◐", "done": "✓", "refused": "✕"}


def show(here: Here) -> None:
    """The page."""
    theme.title("Steer", here)
    if not here.may_act:
        theme.nothing(
            f"You may look at this study ({here.role()}), not change it. Ask its owner for a grant: hopaas-p2p grant"
        )
        return
    live(here, _now)
    live(here, _choices, key="choices", age=False)


def _now(here: Here, frame: Frame) -> None:
    _status(here, frame)
    _requests(here, frame)


def _choices(here: Here, frame: Frame) -> None:
    with st.container():  # so that the forms keep their place when nothing runs any more
        _running(here, frame)
    left, right = st.columns([3, 2])
    with left:
        _enqueue(here, frame)
    with right:
        _again(here, frame)


# --- asking ---


def _asked(here: Here) -> list[Request]:
    asked: list[Request] = st.session_state.setdefault(f"asked-{here.uuid}", [])
    return asked


def ask(
    here: Here, kind: Kind, what: str, do: Callable[[Study], Any], *, number: int | None = None, **more: Any
) -> None:
    """Do it, and note it among what was asked for. `do` gives the number of the trial that came of it, if one did."""
    made: list[int | None] = []
    refused = attempt(here, lambda study: made.append(do(study)))
    number = made[0] if kind == "run" and made else number
    asked = _asked(here)
    asked.insert(0, Request(kind, what, time.time(), number, refused=refused, **more))
    del asked[_KEPT:]


def _requests(here: Here, frame: Frame) -> None:
    asked = _asked(here)
    if not asked:
        return
    theme.heading("What you asked for")
    rows = []
    for one in asked:
        how = requests.progress(one, frame.state)
        when = time.strftime("%H:%M:%S", time.localtime(one.at))
        rows.append(
            [
                when,
                theme.safe(one.what),
                f'<span class="hp-tag">{_SYMBOLS[how.word]} {how.word}</span>',
                theme.safe(how.more),
            ]
        )
    theme.table(("at", "what", "state", ""), rows, label="What you asked for")


# --- the study ---


def _status(here: Here, frame: Frame) -> None:
    state = frame.state
    budget = f"{state.used():,} of {state.budget:,}" if state.budget is not None else f"{state.used():,}, no end"
    theme.tiles(
        [
            ("the study is", state.closed_because() or "running", ""),
            ("budget used", budget, "complete, pruned and running"),
            ("running", f"{len(state.running):,}", "trials"),
            ("waiting", f"{len(state.waiting):,}", "trials"),
        ]
    )
    if not here.may_steer:
        theme.caption("You may queue trials. Pause, stop, budget and stopping trials are for the study's owners.")
        return
    first, second, third, fourth = st.columns([1, 1, 1, 3], vertical_alignment="bottom")
    running = state.status == "running" and state.closed_because() != "failing"
    if first.button("Pause", icon=":material/pause:", disabled=state.status != "running", width="stretch"):
        _control(here, "pause the study", "paused", lambda study: study.pause())
    if second.button("Resume", icon=":material/play_arrow:", disabled=running, width="stretch"):
        _control(here, "resume the study", "running", lambda study: study.resume())
    if third.button("Stop …", icon=":material/stop:", disabled=state.status == "stopped", width="stretch"):
        _stop_study(here)
    with fourth, st.form("budget", border=False):
        left, right = st.columns([2, 1], vertical_alignment="bottom")
        wanted = left.number_input("Budget, in trials (empty: no end)", min_value=1, value=state.budget, step=1)
        if right.form_submit_button("Set", width="stretch") and wanted != state.budget:
            ask(
                here, "control", f"budget {wanted:,}" if wanted else "no end to the budget",
                lambda study: study.set_budget(int(wanted) if wanted else None), budget=int(wanted) if wanted else -1,
            )  # fmt: skip
            st.rerun()


def _control(here: Here, what: str, status: str, do: Callable[[Study], Any]) -> None:
    ask(here, "control", what, do, status=status)
    st.rerun()


@st.dialog("Stop the study?")
def _stop_study(here: Here) -> None:
    frame = here.frame
    if frame is None:
        theme.nothing("The study is gone.")
        return
    running = sorted(frame.state.running)
    st.write(f"No more trials start. {len(running):,} are running now and are finished by their peers.")
    epochs = {number: frame.state.trials[number].epoch for number in running}
    too = st.checkbox("Ask the running ones to end, too", disabled=not running)
    if st.button("Stop it", type="primary"):
        ask(here, "control", "stop the study", lambda study: study.stop(), status="stopped")
        for number, epoch in epochs.items() if too else ():
            _ask_to_stop(here, number, epoch, "the study is stopped")
        st.rerun()


# --- trials that run ---


def _running(here: Here, frame: Frame) -> None:
    running = [frame.state.trials[number] for number in sorted(frame.state.running)]
    if not running or not here.may_steer:
        return
    theme.heading("Trials that run")
    leases = {(one.number, one.epoch): one for one in running}
    left, middle, right = st.columns([3, 1, 1], vertical_alignment="bottom")
    chosen = left.selectbox(
        "Trial", list(leases), format_func=lambda key: _lease(frame, key, leases.get(key)), key="lease", index=None,
        placeholder="choose one",
    )  # fmt: skip
    if middle.button("Stop it …", disabled=chosen is None, width="stretch") and chosen:
        _confirm_stop(here, *chosen)
    if right.button("Take it away …", disabled=chosen is None, width="stretch") and chosen:
        _confirm_take(here, *chosen)


def _lease(frame: Frame, key: tuple[int, int], trial: Trial | None) -> str:
    number, epoch = key
    where = _where(frame, trial) if trial is not None and trial.epoch == epoch else "has ended"
    return f"{number} | {where}"


def _where(frame: Frame, trial: Trial) -> str:
    peer = frame.state.peers.get(trial.owner or "", {})
    asked = ", asked to stop" if trial.stop else ""
    return f"{peer.get('host', '?')} ({peer.get('site', '?')}), epoch {trial.epoch}{asked}"


def _seen(here: Here, number: int, epoch: int) -> bool:
    """Show the trial as it is now, read again by its number; whether it is still the lease that was seen."""
    frame = here.frame
    trial = frame.state.trials[number] if frame is not None and number < len(frame.state.trials) else None
    if frame is None or trial is None:
        theme.nothing("This trial is gone.")
        return False
    step = max(trial.reports, default=None)
    st.html(
        f'<p><a href="{theme.safe(url.link("trial", study=frame.name, trial=number), longest=4000)}" target="_self">'
        f"Trial {number}</a> {theme.pill(trial.state.name.lower())} {theme.safe(_where(frame, trial))}"
        + (f", step {step}" if step is not None else "")
        + "</p>"
    )
    if trial.state is not TrialState.RUNNING or trial.epoch != epoch:
        st.warning("It is not what you chose any more: that lease has ended.")
        return False
    return True


@st.dialog("Ask this trial to end?")
def _confirm_stop(here: Here, number: int, epoch: int) -> None:
    still = _seen(here, number, epoch)
    reason = st.text_input("Why (its peer sees it)", max_chars=200)
    st.caption("Its next should_prune() is true; it ends as its training code then decides, usually as PRUNED.")
    if st.button("Ask it to end", type="primary", disabled=not still):
        _ask_to_stop(here, number, epoch, reason or "stopped from the dashboard")
        st.rerun()


def _ask_to_stop(here: Here, number: int, epoch: int, reason: str) -> None:
    who = f" ({here.person})" if here.person else ""
    ask(
        here, "stop-trial", f"stop trial {number}",
        lambda study: study.stop_trial(number, reason=f"{reason}{who}", epoch=epoch), number=number, epoch=epoch,
    )  # fmt: skip


@st.dialog("Take this trial away from its peer?")
def _confirm_take(here: Here, number: int, epoch: int) -> None:
    still = _seen(here, number, epoch)
    st.caption(
        "It fails there, and waits again with the same parameters while attempts remain. Its peer is told at its next "
        "word; a complete result that it still brings is kept."
    )
    if st.button("Take it away", type="primary", disabled=not still):
        ask(
            here, "run", f"take trial {number} away and queue it again",
            lambda study: study.requeue(number, epoch=epoch), epoch=epoch,
        )  # fmt: skip
        st.rerun()


# --- trials to come ---


def _again(here: Here, frame: Frame) -> None:
    theme.heading("Queue a trial again")
    count = len(frame.state.trials)
    if not count:
        theme.nothing("No trial yet.")
        return
    with st.form("again"):
        # no upper end: a field whose limits move forgets what was typed
        chosen = st.number_input("Number of a trial that ended", 0, value=None, step=1, key="again-number")
        if st.form_submit_button("Queue again") and chosen is not None:
            number = int(chosen)
            if number >= count:
                st.error(f"There is no trial {number}.")
                return
            ended = frame.state.trials[number].state
            if ended in (TrialState.RUNNING, TrialState.WAITING):
                st.error(f"Trial {number} is {ended.name}.")
                return
            ask(here, "run", f"queue trial {number} again", lambda study: study.requeue(number))
            st.rerun()


def _enqueue(here: Here, frame: Frame) -> None:
    theme.heading("Queue a trial")
    parameters = frame.columns.parameters
    if not parameters:
        theme.nothing("The study has no search space yet: its training code names the parameters as it goes.")
        return
    with st.form("enqueue"):
        theme.caption("What is left open, the sampler chooses.")
        given = space_form(frame.state.dists)
        times = int(st.number_input("How often", 1, 100, value=1, step=1))
        if st.form_submit_button("Queue", type="primary", icon=":material/add:"):
            words = ", ".join(f"{name} = {value}" for name, value in given.items()) or "all as the sampler chooses"
            for _ in range(times):
                ask(here, "run", f"queue {words}", lambda study: study.enqueue(given))
            st.rerun()
