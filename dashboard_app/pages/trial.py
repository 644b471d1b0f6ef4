"""The page Trial, with one trial from its parameters to its owners, or two to five trials side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import streamlit as st

from dashboard_app import theme, url
from dashboard_app.frames import Frame
from dashboard_app.page_context import PageContext
from dashboard_app.pages.notes import files_of, note_of, tags_of
from dashboard_app.redraw import live
from dashboard_app.theme import draw
from dashboard_app.views import trial as views
from hopaas_p2p.analysis import charts as drawings
from hopaas_p2p.analysis.chart import number
from hopaas_p2p.analysis.facts import duration, last_report, params_of, shown, trial_word
from hopaas_p2p.analysis.html import Html, safe
from hopaas_p2p.analysis.table import place
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.spending import trial_seconds
from hopaas_p2p.core.state import Trial
from hopaas_p2p.runtime.times import to_utc
from hopaas_p2p.study.method import chosen_by

_UNFINISHED: Final = (TrialState.RUNNING, TrialState.WAITING)
_CHARTS: Final = 6  # with more charts, they are collapsed
_RELATIONS: Final = {
    "retry_of": "a retry of",
    "retried_by": "retried as",
    "continues": "continues",
    "late_of": "the late result of",
}


def show(page: PageContext) -> None:
    """The page."""
    frame = page.frame
    page.title("Trial")
    if frame is None or not len(frame.columns):
        theme.nothing("No trial yet.")
        return
    count, best = len(frame.columns), frame.columns.best()
    first = count - 1 if best is None else best
    if not url.given("trial"):  # widgets omit a default from the address, but the best trial changes
        st.session_state.setdefault("trial", str(first))
    text = st.text_input(
        "Trial, or several to compare", key="trial", bind="query-params", max_chars=100, width=420,
        placeholder="numbers, such as 3, 17, 42",
    )  # fmt: skip
    numbers = views.numbers_in(text or str(first), count)
    missing = [str(one) for one in views.numbers_in(text or "", 10**9) if one >= count]
    if missing or not numbers:
        theme.nothing(f"There is no trial {', '.join(missing) or text}. The study has trials 0 to {count - 1:,}.")
    if not numbers:
        return
    if len(numbers) > 1:
        only = st.toggle("Show differences only", key="differing", bind="query-params")
        live(page, lambda _page, frame: _side_by_side(frame, numbers, only=only), auto=False)
        return
    goes_on = frame.state.trials[numbers[0]].state in _UNFINISHED
    live(page, lambda page, frame: _body(page, frame, numbers[0]), auto=goes_on)
    for part in (note_of, tags_of, files_of):
        part(page, frame, numbers[0])


def _side_by_side(frame: Frame, numbers: Sequence[int], *, only: bool) -> None:
    found = views.side_by_side(frame.state, frame.columns, numbers)
    params = [len(set(cells)) > 1 for kind, _, cells in found if kind == "parameter"]
    theme.caption(f"{sum(params)} of {len(params)} parameters differ.")
    best, rows = frame.columns.best(), [["state"]]
    for one in numbers:
        pill = theme.pill("best" if one == best else trial_word(frame.state.trials[one]).lower())
        rows[0].append(Html(f"{pill} {theme.trial_link(frame.name, one, 'open ')}"))
    for kind, name, texts in found:
        differs, what, cells = len(set(texts)) > 1, safe(name), [text or "-" for text in texts]
        if kind == "parameter" and differs:  # shown by a tag and by bold values
            bold = [Html(f"<b>{safe(cell)}</b>") for cell in cells]
            rows.append([Html(f"{what} {theme.tag('differs')}"), *bold])
        elif differs or not only:
            rows.append([Html(f"metric {what}") if kind == "metric" else what, *cells])
    theme.table(["what", *(f"trial {one}" for one in numbers)], rows, label="Trials side by side")
    draw(views.curves(frame.state, numbers), key="curves", empty="None of these trials has a learning curve.")


def _body(page: PageContext, frame: Frame, number_: int) -> None:
    if number_ >= len(frame.state.trials):
        theme.nothing(f"There is no trial {number_}.")
        return
    state, trial, best = frame.state, frame.state.trials[number_], frame.columns.best()
    _head(frame, trial, best)
    if trial.reason:
        theme.heading("Why it ended")
        reason = safe(trial.reason, longest=4000)
        st.html(f'<pre class="hp-reason" role="region" tabindex="0" aria-label="Why it ended">{reason}</pre>')
    if page.may_act and trial.state not in _UNFINISHED and st.button("Queue it again", icon=":material/replay:"):
        page.act("worker", lambda study: study.requeue(number_), done="A trial with these parameters is now waiting.")
    left, right = st.columns(2)
    with left:
        empty = "No parameters yet. The objective has not suggested any."
        _pairs("Parameters", ("parameter", "value"), params_of(trial, state.dists), empty=empty)
        who = chosen_by(trial, state)
        if who:
            theme.caption(f"Parameters from: {who}")
    with right:
        empty = "No reports yet." if trial.state in _UNFINISHED else "The trial ended without reports."
        draw(drawings.curve(state, frame.columns, number_), key="curve", empty=empty)
    _metrics(frame, trial, best)
    _pairs("Attributes", ("attribute", "value"), dict(list(trial.user.items())[:200]))
    with st.expander("Owners, and where it ran", expanded=bool(trial.history), key="ran"):
        _leases(page, frame, trial)
        _pairs("Where it ran", ("what", "as its peer reported"), state.peers.get(trial.owner or "", {}))


def _head(frame: Frame, trial: Trial, best: int | None) -> None:
    said = [
        f"{words} {theme.trial_link(frame.name, getattr(trial, name), 'trial ')}"
        for name, words in _RELATIONS.items()
        if getattr(trial, name) is not None
    ]
    if best is not None and best != trial.number:
        link = theme.link("best trial", "trial", study=frame.name, trial=f"{trial.number}, {best}")
        said.append(f"compare it with the {link}")
    pill, more = theme.pill(trial_word(trial).lower()), f'<span class="hp-small">{" · ".join(said)}</span>'
    st.html(f'<div class="hp-row hp-start">{pill}{theme.asked_to_stop(trial)}{more}</div>')
    rank = views.rank(frame.columns, trial.number)
    value = ", ".join(map(number, trial.values or ())) or ("none yet" if trial.state in _UNFINISHED else "none")
    site, host = place(frame.state, trial.owner) if trial.owner else ("none", "no peer runs it")
    took, last = trial_seconds(trial), last_report(trial)
    which = "of the objective" if trial.feasible else "violates the constraints"
    theme.tiles([
        ("Value", value, f"rank {rank[0]:,} of {rank[1]:,} complete trials" if rank else which),
        ("Steps", f"{len(trial.reports):,}", f"last {last}" if last else "no reports"),
        ("Duration", "unfinished" if took is None else duration(took), f"started {_when(trial.start)}"),
        ("Attempt", str(trial.attempt), f"of at most {frame.state.policy.attempts}"),
        ("Site", site, host),
    ])  # fmt: skip


def _when(at: int | None) -> str:
    """A time of the log, in readable form."""
    when = to_utc(at)
    return "at an unknown time" if when is None else f"{when:%Y-%m-%d %H:%M:%S} UTC"


def _metrics(frame: Frame, trial: Trial, best: int | None) -> None:
    """The metrics that the trial logged besides its reports."""
    logged = {name: values for name, values in list(trial.metrics.items()) if values}
    if not logged:
        return
    rows = [
        [name, number(values[max(values)]), f"{max(values):,}", f"{len(values):,}"] for name, values in logged.items()
    ]
    theme.table(["metric", "last", "at step", "steps"], rows, label="Metrics", titled=True)
    theme.caption("Logged besides the reports; they do not affect pruning.")
    charts = drawings.metrics(trial, None if best is None else frame.state.trials[best])
    if charts:
        with st.expander("Metrics by step", expanded=len(charts) <= _CHARTS, key="metrics"):
            columns = st.columns(2) if len(charts) > 1 else [st.container()]
            for at, chart in enumerate(charts):
                with columns[at % len(columns)]:
                    draw(chart, key=f"metric-{at}")


def _leases(page: PageContext, frame: Frame, trial: Trial) -> None:
    rows = []
    for one in views.leases(trial):
        left = None if one.end else page.cache.leases(frame.uuid).get(one.owner)
        how = safe(one.why + ("" if left is None else f", {round(left)} s left of its lease"))
        if one.kept_as is not None:
            how = Html(f"{how}; its late result is {theme.trial_link(frame.name, one.kept_as, 'trial ')}")
        took = "" if one.start is None or not one.end else duration(max(0, one.end - one.start) / 1e6)
        peer = Html(f'<span title="{safe(one.owner)}">{safe(one.owner[:8])}</span>')
        rows.append([str(one.epoch), peer, *place(frame.state, one.owner), _when(one.start), took, how])
    headers = ["epoch", "peer", "site", "node", "from", "for", "how it ended"]
    theme.table(headers, rows, label="Owners", titled=True, empty="No peer has run this trial.")


def _pairs(title: str, headers: tuple[str, str], pairs: Mapping[str, object], *, empty: str = "") -> None:
    if pairs or empty:
        rows = [[key, safe(shown(value), longest=400)] for key, value in pairs.items()]
        theme.table(headers, rows, label=title, titled=True, empty=empty)
