"""Pruning: where trials were cut and what that saved; with rungs, who stands where, and what was promoted or copied."""

from __future__ import annotations

from functools import partial
from typing import Final

from dashboard_app import theme
from dashboard_app.frames import Frame
from dashboard_app.page_context import PageContext
from dashboard_app.redraw import live
from dashboard_app.theme import draw
from dashboard_app.views import rungs
from hopaas_p2p.analysis import charts, configurations
from hopaas_p2p.analysis.chart import number
from hopaas_p2p.analysis.configurations import ConfigurationRow
from hopaas_p2p.analysis.savings import ESTIMATOR, savings
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.spec.fidelity import in_words

_EVENTS: Final = 40
_ROWS: Final = 60
_VALUES: Final = 6  # at the highest rungs


def show(page: PageContext) -> None:
    """The page."""
    page.title("Pruning")
    live(page, _body)


def offered(frame: Frame) -> bool:
    """Whether the study has something to show here: rungs, or reports by which trials may be pruned."""
    return frame.state.configurations.policy is not None or bool((frame.columns.steps > 0).any())


def _body(_here: PageContext, frame: Frame) -> None:
    if frame.state.configurations.policy is not None:
        _rungs(frame)
        return
    columns = frame.columns
    if len(columns.directions) > 1:
        theme.nothing("Optuna prunes studies with one objective only; this one has several.")
        return
    if not offered(frame):
        theme.nothing(
            "No trial has reported a value yet. Pruning and curves need trial.report(value, step). "
            "With open_study(…, fidelity=hopaas_p2p.Rungs(min=1, max=27)), trials pause at rungs and the best "
            "continue; with fidelity=hopaas_p2p.Population(size=16, every=5), the worst copy the best."
        )
        return
    saved = frame.once(lambda one: savings(one.columns), "saved")
    pruned = int(columns.is_(TrialState.PRUNED).sum())
    over = int(columns.is_(TrialState.PRUNED, TrialState.COMPLETE).sum())
    tiles = [
        ("pruned", f"{pruned:,}", f"{pruned / over:.0%} of the {over:,} that were not interrupted" if over else "")
    ]
    if saved.pruned:
        middle, interval = saved.in_words()
        tiles += [
            ("estimated compute saved", middle, f"{interval} (90%)" if interval else "all resamples agree"),
            ("of the steps that would have been needed", f"{saved.share:.0%}", f"{saved.made:,} were made"),
            ("steps of a complete trial", number(saved.length), "on average"),
        ]
    else:
        tiles.append(("compute saved", "-", "needs pruned and complete trials with reports"))
    theme.tiles(tiles)
    if saved.pruned:
        theme.caption(f"How it is estimated: {ESTIMATOR}")
    empty = "Only trials with at least two reports have a curve."
    draw(frame.once(lambda one: charts.curves(one.state, one.columns), "curves"), key="curves", empty=empty)
    found = frame.once(lambda one: rungs.pruned_at(one.columns), "pruned at")
    draw(found, key="pruned-at", empty="No trial has been pruned yet.")


def _rungs(frame: Frame) -> None:
    state, sorted_ = frame.state, frame.state.configurations
    assert sorted_.policy is not None
    rows = frame.once(lambda one: configurations.rows(one.state), "configurations")
    events = configurations.promotions(state)
    words = [row.state for row in rows]
    elsewhere = sum(None not in (one.site, one.site_before) and one.site != one.site_before for one in events)
    theme.tiles([
        ("configurations", f"{len(rows):,}", in_words(sorted_.policy)),
        ("running", f"{words.count('running'):,}", "now"),
        ("waiting at a rung", f"{words.count('paused'):,}", "with a checkpoint"),
        ("promoted", f"{len(events):,}", f"{elsewhere:,} continued at another site"),
        ("complete", f"{words.count('complete'):,}", "trained to the end"),
    ])  # fmt: skip
    theme.caption(configurations.next_in_words(state).capitalize() + ".")
    standing = frame.once(lambda one: rungs.standing(one.state), "standing")
    draw(standing, key="standing", empty="No configuration has reached a rung yet.")
    curves = frame.once(lambda one: rungs.curves(one.state, rows), "chains")
    draw(curves, key="chains", empty="Curves need reports: trial.report(value, step).")
    link, descents = partial(theme.trial_link, frame.name), dict[int, list[int]]()
    headers = ["configuration", "state", "epochs", "pauses after", "value at its rungs", "sites", "trials"]
    title, who, where = "Promotions", ["configuration"], "paused at"
    if sorted_.population is not None:
        draw(frame.once(lambda one: rungs.tree(one.state), "family"), key="family", empty="No member has reported yet.")
        events, title, who, where = configurations.copies(state), "Copies", ["member", "copied"], "its site"
        descents = frame.once(lambda one: configurations.families(one.state), "families")
        headers.append("descends from")
    lines = [
        [
            "" if one.at is None else theme.ago(one.at / 1e6),
            *map(link, (one.first, one.source)[: len(who)]),
            f"{one.epochs:,}",
            *(theme.safe(site or "?") for site in (one.site_before, one.site)),
            f"{link(one.paused)} → {link(one.trial)}",
        ]
        for one in reversed(events[-_EVENTS:])
    ]
    heads = ["when", *who, "after epochs", where, "continued at", "trial"]
    theme.table(heads, lines, label=title, titled=True)
    if len(events) > _EVENTS:
        theme.caption(f"and {len(events) - _EVENTS:,} earlier ones")

    def cells(row: ConfigurationRow) -> list[str]:
        return [
            link(row.first),
            theme.pill(row.state),
            f"{row.epochs:,}",
            "" if row.pauses_at is None else f"{row.pauses_at:,}",
            ", ".join(number(value) for value in row.reached[-_VALUES:]),
            theme.safe(", ".join(row.sites)),
            ", ".join(map(link, row.trials[-4:])),
            *([" → ".join(map(link, descents[row.first]))] if descents else []),
        ]

    order = sorted(rows, key=lambda row: (-row.epochs, -row.first))
    theme.table(headers, [cells(row) for row in order[:_ROWS]], label="Configurations", titled=True)
    if len(rows) > _ROWS:
        theme.caption(f"and {len(rows) - _ROWS:,} more that are not as far along")
