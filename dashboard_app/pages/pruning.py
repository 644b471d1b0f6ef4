"""The page Pruning, with learning curves and savings, or, with rungs or a population, the progress of each
configuration.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from dashboard_app import theme
from dashboard_app.frames import Frame
from dashboard_app.page_context import PageContext
from dashboard_app.redraw import live
from dashboard_app.theme import draw
from dashboard_app.views.rungs import tree
from hopaas_p2p.analysis import charts, configurations
from hopaas_p2p.analysis.chart import number
from hopaas_p2p.analysis.html import Html
from hopaas_p2p.analysis.savings import ESTIMATOR, savings
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.spec.fidelity import in_words

_ROWS: Final = 60
_MOST_RUNGS: Final = 24  # only the highest ones are shown, because a population can have thousands
_VALUES: Final = 6  # values shown per configuration, those at the highest rungs


def show(page: PageContext) -> None:
    """The page."""
    page.title("Pruning")
    live(page, _body)


def offered(frame: Frame) -> bool:
    """Whether this page has anything to show, which is rungs, or reports on which pruning can be based."""
    return frame.state.configurations.policy is not None or bool((frame.columns.steps > 0).any())


def _body(_here: PageContext, frame: Frame) -> None:
    if frame.state.configurations.policy is not None:
        _rungs(frame)
        return
    columns = frame.columns
    if len(columns.directions) > 1:
        theme.nothing("Optuna prunes only studies with one objective; this one has several.")
        return
    if not offered(frame):
        theme.nothing(
            "No trial has reported a value yet. Pruning and curves need trial.report(value, step). "
            "With open_study(…, fidelity=hopaas_p2p.Rungs(min=1, max=27)), trials pause at rungs and the best "
            "continue; with fidelity=hopaas_p2p.Population(size=16, every=5), the worst copy the best."
        )
        return
    saved = frame.once(lambda one: savings(one.state, one.columns), "saved")
    pruned = int(columns.is_(TrialState.PRUNED).sum())
    over = int(columns.is_(TrialState.PRUNED, TrialState.COMPLETE).sum())
    tiles = [
        ("pruned", f"{pruned:,}", f"{pruned / over:.0%} of the {over:,} that were not interrupted" if over else ""),
        ("compute saved", saved.time if saved.pruned else "-", "an estimate; it needs pruned and complete trials"),
        ("steps saved", f"{saved.share:.0%}", f"{saved.made:,} were run"),
        ("steps of a complete trial", number(saved.length), "on average"),
    ]
    theme.tiles(tiles if saved.pruned else tiles[:2])
    if saved.pruned:
        theme.caption(f"How it is estimated: {ESTIMATOR}")
    _curves(frame, "Only trials with at least two reports have a curve.")


def _rungs(frame: Frame) -> None:
    state = frame.state
    policy, population = state.configurations.policy, state.configurations.population
    assert policy is not None
    rows = frame.once(lambda one: configurations.rows(one.state), "configurations")
    words = [row.state for row in rows]
    places = state.configurations.places()
    theme.tiles([
        ("configurations", f"{len(rows):,}", in_words(policy)),
        ("running", f"{words.count('running'):,}", "now"),
        ("waiting at a rung", f"{words.count('paused'):,}", "with a checkpoint"),
        ("promoted", f"{sum(one.promoted for one in places):,}", "from one rung to the next"),
        ("complete", f"{words.count('complete'):,}", "trained to the end"),
        ("moved", f"{sum(len(row.sites) > 1 for row in rows):,}", "continued at another site"),
    ])  # fmt: skip
    theme.caption(configurations.next_in_words(state).capitalize() + ".")
    table = [
        [f"{one:,}" for one in (place.bracket, place.epochs, place.reached, place.promoted, place.waiting)]
        for place in places[-_MOST_RUNGS:]
        if place.reached
    ]
    headers = ["bracket", "after epochs", "reached it", "promoted", "waiting"]
    empty = "No configuration has reached a rung yet."
    theme.table(headers, table, label="Configurations at each rung", titled=True, empty=empty)
    _curves(frame, "Curves need reports: trial.report(value, step).")
    if population is not None:
        draw(frame.once(lambda one: tree(one.state), "family"), key="family", empty="No member has reported yet.")
    link = partial(theme.trial_link, frame.name)
    cells = [
        [
            link(row.first),
            theme.pill(row.state),
            f"{row.epochs:,}",
            "" if row.pauses_at is None else f"{row.pauses_at:,}",
            ", ".join(number(value) for value in row.reached[-_VALUES:]),
            ", ".join(row.sites),
            Html(", ".join(map(link, row.trials[-4:]))),
        ]
        for row in sorted(rows, key=lambda row: (-row.epochs, -row.first))[:_ROWS]
    ]
    headers = ["configuration", "state", "epochs", "pauses after", "value at its rungs", "sites", "trials"]
    others = "more that are not as far along"
    theme.table(headers, cells, label="Configurations", titled=True, of=len(rows), others=others)


def _curves(frame: Frame, empty: str) -> None:
    draw(frame.once(lambda one: charts.curves(one.state, one.columns), "curves"), key="curves", empty=empty)
