"""Trial: one trial, from its parameters to who owned it; or two to five beside each other, and in what they differ."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Final

import streamlit as st

from dashboard_app import theme, url
from dashboard_app.frames import Frame
from dashboard_app.page_context import PageContext
from dashboard_app.pages.notes import fetched, files_of, note_of, tags_of
from dashboard_app.redraw import live
from dashboard_app.theme import draw
from dashboard_app.views import trial as views
from hopaas_p2p.analysis import charts as drawings
from hopaas_p2p.analysis.chart import number as shown
from hopaas_p2p.analysis.facts import duration
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.state import Trial
from hopaas_p2p.errors import HopaasError
from hopaas_p2p.files import artifacts
from hopaas_p2p.files.artifacts import OUTPUT
from hopaas_p2p.study.method import chosen_by

_UNFINISHED: Final = (TrialState.RUNNING, TrialState.WAITING)
_CHARTS: Final = 6  # metrics whose charts are unfolded
_LONGEST_OUTPUT: Final = 1 << 18  # bytes


def show(page: PageContext) -> None:
    """The page."""
    frame = page.frame
    page.title("Trial")
    if frame is None or not len(frame.columns):
        theme.nothing("No trial yet.")
        return
    count, best = len(frame.columns), _best(frame)
    first = count - 1 if best is None else best
    if not url.given("trial"):  # a default would be left out of the address, and the best trial is another tomorrow
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
    note_of(page, frame, numbers[0])
    tags_of(page, frame, numbers[0])
    files_of(page, frame, numbers[0])


def _best(frame: Frame) -> int | None:
    return frame.columns.best() if len(frame.columns.directions) == 1 else None


def _side_by_side(frame: Frame, numbers: Sequence[int], *, only: bool) -> None:
    found = views.side_by_side(frame.state, frame.columns, numbers)
    params = [one.differs for one in found if one.kind == "parameter"]
    theme.caption(f"{sum(params)} of {len(params)} parameters differ.")
    best, rows = _best(frame), [["state"]]
    for one in numbers:
        pill = theme.pill("best" if one == best else frame.state.trials[one].state.name.lower())
        rows[0].append(f"{pill} {theme.trial_link(frame.name, one, 'open ')}")
    for fact in found:
        if only and not fact.differs:
            continue
        marked = fact.kind == "parameter" and fact.differs  # in words, and its values are bold
        name = ("metric " if fact.kind == "metric" else "") + theme.safe(fact.name)
        cells = [theme.safe(cell) or "-" for cell in fact.cells]
        rows.append(
            [f"{name} {theme.tag('differs')}", *(f"<b>{cell}</b>" for cell in cells)] if marked else [name, *cells]
        )
    theme.table(["what", *(f"trial {one}" for one in numbers)], rows, label="Trials side by side")
    draw(views.curves(frame.state, numbers), key="curves", empty="None of these trials has a learning curve.")


def _body(page: PageContext, frame: Frame, number: int) -> None:
    if number >= len(frame.state.trials):
        theme.nothing(f"There is no trial {number}.")
        return
    trial = frame.state.trials[number]
    _head(frame, trial)
    if trial.reason:
        theme.heading("Why it ended")
        theme.long_text(trial.reason, label="Why it ended", longest=4000)
    best = _best(frame)
    if best is not None and best != trial.number:
        link = theme.link("best trial", "trial", study=frame.name, trial=f"{trial.number}, {best}")
        st.html(f'<p class="hp-caption">Compare it with the {link}.</p>')
    _output(page, frame, trial)
    left, right = st.columns(2)
    with left:
        _parameters(frame, trial)
    with right:
        draw(
            drawings.curve(frame.state, frame.columns, number),
            key="curve",
            empty="No reports yet." if trial.state in _UNFINISHED else "It ended without reports.",
        )
    _metrics(frame, trial, best)
    _attempts(frame, trial)
    _pairs("Attributes", ("attribute", "value"), dict(list(trial.user.items())[:200]))
    with st.expander("Owners, and where it ran", expanded=bool(trial.history), key="ran"):
        _leases(page, frame, trial)
        _pairs("Where it ran", ("what", "as its peer said"), frame.state.peers.get(trial.owner or "", {}))
    with st.expander("Run it again", expanded=False, key="again"):
        if page.may_act and trial.state not in _UNFINISHED and st.button("Queue it again", icon=":material/replay:"):
            page.act(lambda study: study.requeue(number), done="A trial with the same parameters waits for a peer.")
        python, shell = st.tabs(["Python", "Shell"])
        # wrapped: what only a mouse can scroll shuts out those who use a keyboard
        python.code(views.as_python(frame.name, page.cache.url, frame.state, trial), language="python", wrap_lines=True)
        shell.code(views.as_shell(frame.name, page.cache.url, frame.state, trial), language="shell", wrap_lines=True)


def _output(page: PageContext, frame: Frame, trial: Trial) -> None:
    """The end of what the command wrote, if its worker kept it: folded, and fetched when it is unfolded."""
    if trial.state is not TrialState.FAIL:
        return
    found = [one for one in artifacts.listed(frame.state, frame.study_id, trial.number) if one.filename == OUTPUT]
    if not found:
        return
    one = found[-1]
    box = st.expander("Output of the command", expanded=False, key="output", on_change="rerun")
    if not box.open:
        return
    with box:
        if one.size is None or one.size > _LONGEST_OUTPUT:
            theme.nothing("It is too long to show here. Download it below, under Files.")
            return
        try:
            text = views.readable(fetched(page, one))
        except HopaasError as error:
            theme.error(error)
            return
        theme.long_text(text, label="Output of the command", longest=_LONGEST_OUTPUT)


def _head(frame: Frame, trial: Trial) -> None:
    asked = f' <span class="hp-tag">asked to stop: {theme.safe(trial.stop)}</span>' if trial.stop else ""
    st.html(f'<div class="hp-row hp-start">{theme.pill(trial.state.name.lower())}{asked}</div>')
    rank = views.rank(frame.columns, trial.number)
    value = ", ".join(map(shown, trial.values or ())) or ("none yet" if trial.state in _UNFINISHED else "none")
    peer = frame.state.peers.get(trial.owner or "", {})
    took = "unfinished" if trial.end is None or trial.start is None else duration(max(0, trial.end - trial.start) / 1e6)
    last = max(trial.reports, default=None)
    reported = "no reports" if last is None else f"last {shown(trial.reports[last])} at step {last}"
    theme.tiles([
        ("Value", value, f"rank {rank[0]:,} of {rank[1]:,} complete trials" if rank else "of the objective"),
        ("Steps", f"{len(trial.reports):,}", reported),
        ("Duration", took, f"started {_when(trial.start)}"),
        ("Attempt", str(trial.attempt), f"of at most {frame.state.policy.attempts}"),
        ("Site", peer.get("site") or "none", peer.get("host") or "no peer runs it"),
    ])  # fmt: skip


def _when(at: float | None) -> str:
    """A time in microseconds since 1970, for people."""
    if at is None:
        return "at an unknown time"
    try:
        return datetime.datetime.fromtimestamp(at / 1e6, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, OSError, ValueError):
        return "at an impossible time"


def _parameters(frame: Frame, trial: Trial) -> None:
    theme.heading("Parameters")
    who = chosen_by(trial, frame.state)
    if who:
        st.html(f'<p class="hp-small">Parameters from: {theme.safe(who)}</p>')
    rows = []
    for name, value, share, words in views.standings(frame.state, frame.columns, trial.number):
        where = "" if share is None else f"{theme.share(share)} <span class='hp-small'>{words}</span>"
        rows.append([theme.safe(name), f"<b>{theme.safe(value)}</b>", where])
    headers = ["parameter", "value", "of the complete trials"]
    theme.table(
        headers, rows, label="Parameters", titled=True, empty="None yet. The objective has not suggested a parameter."
    )


def _metrics(frame: Frame, trial: Trial, best: int | None) -> None:
    """What it logged beside the reports."""
    found = views.last_values(trial)
    if not found:
        return
    theme.heading("Metrics")
    theme.caption("Logged beside the reports. They do not affect pruning.")
    rows = [[theme.safe(name), *map(shown, of), f"{step:,}", f"{steps:,}"] for name, *of, step, steps in found]
    headers = ["metric", "last", "lowest", "highest", "at step", "steps"]
    theme.table(headers, rows, label="Metrics")
    charts = drawings.metrics(trial, None if best is None else frame.state.trials[best])
    folded = len(charts) - _CHARTS
    for first, some in ((0, charts[:_CHARTS]), (_CHARTS, charts[_CHARTS:])):
        with st.expander(f"{folded} more metrics", expanded=False, key="more-metrics") if first else st.container():
            columns = st.columns(2) if len(some) > 1 else [st.container()]
            for at, chart in enumerate(some):
                with columns[at % len(columns)]:
                    draw(chart, key=f"metric-{first + at}")
        if folded <= 0:
            return


def _leases(page: PageContext, frame: Frame, trial: Trial) -> None:
    rows = []
    for one in views.leases(frame.state, trial):
        left = page.cache.lease_left(frame.uuid, one.uuid) if one.end is None else None
        how = theme.safe(one.how) + ("" if left is None else f", {round(left)} s left of its lease")
        if one.kept_as is not None:
            how += f"; its late result is {theme.trial_link(frame.name, one.kept_as, 'trial ')}"
        took = "" if one.start is None or one.end is None else duration(max(0, one.end - one.start) / 1e6)
        peer = f'<span title="{theme.safe(one.uuid)}">{theme.safe(one.uuid[:8])}</span>'
        rows.append([str(one.epoch), peer, theme.safe(one.site), theme.safe(one.host), _when(one.start), took, how])
    headers = ["epoch", "peer", "site", "node", "from", "for", "how it ended"]
    theme.table(headers, rows, label="Owners", titled=True, empty="No peer has run it.")


def _attempts(frame: Frame, trial: Trial) -> None:
    found = views.family(frame.state, trial.number)
    if len(found) > 1:
        theme.heading("Attempts with these parameters")
        rows = []
        for one, what in found:
            mine = one == trial.number
            link = f"<b>trial {one}</b>" if mine else theme.trial_link(frame.name, one, "trial ")
            rows.append([link, theme.safe(what)])
        theme.table(["trial", "relation"], rows, label="Attempts")
    if trial.checkpoints:
        rows = [
            [str(one.step), f"{one.size:,}", theme.safe(one.sha256[:16]), theme.safe(one.key)]
            for one in trial.checkpoints
        ]
        theme.table(["after step", "bytes", "SHA-256", "kept as"], rows, label="Checkpoints", titled=True)


def _pairs(title: str, headers: tuple[str, str], pairs: Mapping[str, object]) -> None:
    if pairs:
        rows = [[theme.safe(key), theme.safe(value, longest=400)] for key, value in pairs.items()]
        theme.table(headers, rows, label=title, titled=True)
