"""Pruning: learning curves, where trials were cut, and what that saved."""

from __future__ import annotations

from dashboard_app import theme
from dashboard_app.frames import Frame
from dashboard_app.page_context import PageContext
from dashboard_app.redraw import live
from dashboard_app.theme import draw
from dashboard_app.views import pruning
from hopaas_p2p.analysis import charts
from hopaas_p2p.analysis.chart import number
from hopaas_p2p.analysis.savings import ESTIMATOR, Savings, savings
from hopaas_p2p.core.records import TrialState


def show(page: PageContext) -> None:
    """The page."""
    page.title("Pruning")
    live(page, _body)


def _body(_here: PageContext, frame: Frame) -> None:
    columns = frame.columns
    if len(columns.directions) > 1:
        theme.nothing("Optuna prunes studies with one objective only; this one has several.")
        return
    if not (columns.steps > 0).any():
        theme.nothing("No trial has reported a value yet. Pruning and curves need trial.report(value, step).")
        return
    saved = frame.once(lambda one: savings(one.columns), "saved")
    pruned = int(columns.is_(TrialState.PRUNED).sum())
    over = int(columns.is_(TrialState.PRUNED, TrialState.COMPLETE).sum())
    theme.tiles(_tiles(saved, pruned, over))
    if saved.pruned:
        theme.caption(f"How it is estimated: {ESTIMATOR}")
    draw(
        frame.once(lambda one: charts.curves(one.state, one.columns), "curves"),
        key="curves",
        empty="Only trials with at least two reports have a curve.",
    )
    found = frame.once(lambda one: pruning.pruned_at(one.columns), "pruned at")
    draw(found[1] if found else None, key="pruned-at", empty="No trial has been pruned yet.")


def _tiles(saved: Savings, pruned: int, over: int) -> list[tuple[str, str, str]]:
    share = f"{pruned / over:.0%} of the {over:,} that were not interrupted" if over else ""
    tiles = [("pruned", f"{pruned:,}", share)]
    if not saved.pruned:
        return [*tiles, ("compute saved", "-", "needs pruned and complete trials with reports")]
    middle, low, high = saved.in_words()
    return [
        *tiles,
        ("estimated compute saved", middle, f"between {low} and {high} (90%)"),
        ("of the steps that would have been needed", f"{saved.share:.0%}", f"{saved.made:,} were made"),
        ("steps of a complete trial", number(saved.length), "on average"),
    ]
