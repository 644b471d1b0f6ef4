"""The page Steer, to pause or stop a study, change its budget, and stop or queue trials.

Every action on this page is a record in the study's log. The record names what the person saw, such as a trial's number
and the epoch of its lease, so it has no effect on a later lease.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import streamlit as st

from dashboard_app import theme
from dashboard_app.frames import Frame
from dashboard_app.page_context import PageContext
from dashboard_app.redraw import live
from hopaas_p2p.analysis.facts import count, state_word
from hopaas_p2p.analysis.html import safe
from hopaas_p2p.analysis.table import place
from hopaas_p2p.core.admission import next_start
from hopaas_p2p.core.records import Categorical, Distribution, Int, TrialState
from hopaas_p2p.core.state import Trial
from hopaas_p2p.errors import InvalidInput, StoreUnreachable
from hopaas_p2p.peer.liveness import any_alive
from hopaas_p2p.study import Study

_OPEN: Final = "auto"
_FIELDS: Final = 100  # fields in a form; with the thousands that a record can have, a page would take minutes
_LARGEST: Final = (1 << 53) - 1  # larger integers are not exact in a browser


def show(page: PageContext) -> None:
    """The page."""
    page.title("Steer")
    if not page.options.actions:
        theme.nothing("This dashboard is read-only. Start it with: hopaas-p2p dashboard --allow-actions")
        return
    if not page.may_act:
        theme.nothing("You may view this study but not change it. Ask one of its owners for the role worker.")
        return
    live(page, _status)
    live(page, _choices, key="choices", age=False)


def _choices(page: PageContext, frame: Frame) -> None:
    with st.container():  # keeps the form in place when no trial runs any more
        _running(page, frame)
    _enqueue(page, frame)


# --- the study ---


def _status(page: PageContext, frame: Frame) -> None:
    state = frame.state
    end = f" of {state.budget:,}" if state.budget is not None else ", no budget"
    working = any_alive(page.cache.signs(frame.uuid).values())
    theme.tiles([
        ("State", state_word(state, working=working), "of the study"),
        ("Budget used", f"{state.used():,}{end}", state.configurations.unit),
        ("Running", f"{len(state.running):,}", "trials"),
        ("Waiting", f"{len(state.waiting):,}", "trials"),
    ])  # fmt: skip
    if not page.may_steer:
        theme.caption("You may queue trials. Only owners of the study may pause it, stop it or change its budget.")
        return
    first, second, third, fourth = st.columns([1, 1, 1, 3], vertical_alignment="bottom")
    running = state.status == "running" and next_start(state).why != "failing"
    if first.button("Pause", icon=":material/pause:", disabled=state.status != "running", width="stretch"):
        page.act("owner", lambda study: study.pause(), done="The study is paused.")
    if second.button("Resume", icon=":material/play_arrow:", disabled=running, width="stretch"):
        page.act("owner", lambda study: study.resume(), done="The study continues.")
    if third.button("Stop …", icon=":material/stop:", disabled=state.status == "stopped", width="stretch"):
        _stop_study(page)
    with fourth, st.form("budget", border=False):
        left, right = st.columns([2, 1], vertical_alignment="bottom")
        wanted = left.number_input("Budget, in trials (empty: none)", min_value=1, value=state.budget, step=1)
        if right.form_submit_button("Set", width="stretch") and wanted != state.budget:
            page.act("owner", lambda study: study.set_budget(int(wanted or 0) or None), done="The budget is set.")


@st.dialog("Stop the study?")
def _stop_study(page: PageContext) -> None:
    frame = page.frame
    if frame is None:
        theme.nothing("The study no longer exists, or you may no longer see it.")
        return
    epochs = {number: frame.state.trials[number].epoch for number in sorted(frame.state.running)}
    st.write(f"No more trials will start. {count(len(epochs), 'running trial')} will still be finished.")
    too = st.checkbox("Also ask the running trials to end", disabled=not epochs)

    if st.button("Stop it", type="primary"):
        page.act("owner", lambda study: stop_all(study, page, epochs if too else {}), done="The study is stopped.")


def stop_all(study: Study, page: PageContext, epochs: Mapping[int, int]) -> None:
    """Stop the study, and ask the trials that still hold these leases to end."""

    def end(number: int, epoch: int) -> None:
        with contextlib.suppress(InvalidInput):  # it has ended meanwhile
            _stop(study, page, number, epoch, "the study is stopped")

    _each(study.stop_all, *(partial(end, number, epoch) for number, epoch in epochs.items()))


def _each(*changes: Callable[[], Any]) -> None:
    """Make these changes in order. If the store does not answer, raise that error at the end.

    A change that was queued is sent later, so the next ones are made; after one that was not, they are skipped.
    """
    trouble = None
    for change in changes:
        try:
            change()
        except StoreUnreachable as error:
            trouble = error
            if not error.queued:
                break
    if trouble is not None:
        raise trouble


# --- trials that run ---


def _running(page: PageContext, frame: Frame) -> None:
    running = [frame.state.trials[number] for number in sorted(frame.state.running)]
    if not running or not page.may_steer:
        return
    theme.heading("Running trials")
    leases = {(one.number, one.epoch): _where(frame, one) for one in running}
    left, middle, right = st.columns([3, 1, 1], vertical_alignment="bottom")
    chosen = left.selectbox(
        "Trial", list(leases), format_func=lambda key: f"{key[0]} | {leases.get(key, 'has ended')}", key="lease",
        index=None, placeholder="choose one",
    )  # fmt: skip
    if middle.button("Stop it …", disabled=chosen is None, width="stretch") and chosen:
        _confirm_stop(page, *chosen)
    if right.button("Requeue …", disabled=chosen is None, width="stretch") and chosen:
        _confirm_take(page, *chosen)


def _where(frame: Frame, trial: Trial) -> str:
    site, host = place(frame.state, trial.owner)
    asked = ", is ending" if trial.stopping else ", asked to stop" if trial.stop else ""
    return f"{host} ({site}), epoch {trial.epoch}{asked}"


def _seen(page: PageContext, number: int, epoch: int) -> bool:
    """Show the trial as it is now. Returns whether it still has the lease that was chosen."""
    frame = page.frame
    if frame is None or number >= len(frame.state.trials):
        theme.nothing("This trial no longer exists.")
        return False
    trial = frame.state.trials[number]
    step = max(trial.reports, default=None)
    where = _where(frame, trial) + (f", step {step}" if step is not None else "")
    link, pill = theme.trial_link(frame.name, number, "Trial "), theme.pill(trial.state.name.lower())
    st.html(f"<p>{link} {pill} {safe(where)}</p>")
    if trial.state is not TrialState.RUNNING or trial.epoch != epoch:
        st.warning("You chose an earlier lease of this trial; that lease has ended.")
        return False
    return True


@st.dialog("Ask this trial to end?")
def _confirm_stop(page: PageContext, number: int, epoch: int) -> None:
    still = _seen(page, number, epoch)
    reason = st.text_input("Reason (shown to its peer)", max_chars=200) or "stopped from the dashboard"
    st.caption("Its next should_prune() returns true. Its training code then decides how to end, usually as PRUNED.")
    if st.button("Ask it to end", type="primary", disabled=not still):
        stop = partial(_stop, page=page, number=number, epoch=epoch, reason=reason)
        page.act("owner", stop, done=f"Trial {number} is asked to end. Its peer learns of it at its next exchange.")


def _stop(study: Study, page: PageContext, number: int, epoch: int, reason: str) -> None:
    study.stop_trial(number, reason=f"{reason} ({page.person})" if page.person else reason, epoch=epoch)


@st.dialog("Requeue this trial?")
def _confirm_take(page: PageContext, number: int, epoch: int) -> None:
    still = _seen(page, number, epoch)
    st.caption(
        "The trial fails, and its parameters are queued again if attempts remain. Its peer learns of it at its next "
        "contact with the store. If the peer still completes the trial, its result is kept."
    )
    if st.button("Requeue", type="primary", disabled=not still):
        page.act("owner", lambda study: study.requeue(number, epoch=epoch), done=f"Trial {number} is requeued.")


# --- trials to come ---


def _enqueue(page: PageContext, frame: Frame) -> None:
    theme.heading("Queue a trial")
    if not frame.columns.parameters:
        theme.nothing("The study has no search space yet. Its parameters will be known after the first trial.")
        return
    space = frame.state.dists
    with st.form("enqueue", clear_on_submit=True):
        theme.caption("Leave a field empty to let the sampler choose.")
        places, given = st.columns(3), {}
        for at, (name, one) in enumerate(list(space.items())[:_FIELDS]):
            with places[at % 3]:
                value = _field(name, one)
            if value is not None:
                given[name] = value
        if len(space) > _FIELDS:
            theme.caption(f"The sampler chooses {count(len(space) - _FIELDS, 'more parameter')}.")
        times = int(st.number_input("How many times", 1, 100, value=1, step=1, width=220))
        if st.form_submit_button("Queue", type="primary", icon=":material/add:"):
            page.act("worker", lambda it: _each(*[lambda: it.enqueue_trial(given)] * times), done="Queued for a peer.")


def _field(name: str, one: Distribution) -> Any:
    label, key = theme.plain(name, longest=60), f"new-{name}"
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
