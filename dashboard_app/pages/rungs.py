"""Rungs: who stands where, what was promoted when and by which site, and why nothing is promoted now."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

from dashboard_app import theme
from dashboard_app.frames import Frame
from dashboard_app.page_context import PageContext
from dashboard_app.redraw import live
from dashboard_app.theme import draw
from dashboard_app.views import families, rungs
from hopaas_p2p.analysis import configurations
from hopaas_p2p.analysis import families as relations
from hopaas_p2p.analysis.chart import number
from hopaas_p2p.analysis.configurations import ConfigurationRow, PromotionEvent
from hopaas_p2p.analysis.families import CopyEvent
from hopaas_p2p.fidelity import in_words

_EVENTS: Final = 40
_ROWS: Final = 60
_VALUES: Final = 6  # at the highest rungs


def show(page: PageContext) -> None:
    """The page."""
    page.title("Rungs")
    live(page, _body)


def _body(_here: PageContext, frame: Frame) -> None:
    sorted_ = frame.state.configurations
    if sorted_.policy is None:
        theme.nothing(
            "This study has no rungs. With open_study(…, fidelity=hopaas_p2p.Rungs(min=1, max=27)), trials pause at "
            "rungs and the best continue; with fidelity=hopaas_p2p.Population(size=16, every=5), the worst copy the "
            "best."
        )
        return
    found = frame.once(lambda one: rungs.overview(one.state), "rungs")
    theme.tiles([
        ("configurations", f"{found.configurations:,}", in_words(sorted_.policy)),
        ("running", f"{found.running:,}", "now"),
        ("waiting at a rung", f"{found.waiting:,}", "with a checkpoint"),
        ("promoted", f"{found.promotions:,}", f"{found.elsewhere:,} continued at another site"),
        ("complete", f"{found.complete:,}", "trained to the end"),
    ])  # fmt: skip
    theme.caption(configurations.next_in_words(frame.state).capitalize() + ".")
    draw(
        frame.once(lambda one: rungs.standing(one.state), "standing"),
        key="standing",
        empty="No configuration has reached a rung yet.",
    )
    _rungs(frame)
    draw(
        frame.once(lambda one: rungs.curves(one.state), "chains"),
        key="chains",
        empty="Curves need reports: trial.report(value, step).",
    )
    if sorted_.population is not None:
        draw(
            frame.once(lambda one: families.tree(one.state), "family"),
            key="family",
            empty="No member has reported yet.",
        )
        _copies(frame)
    else:
        _promotions(frame)
    _configurations(frame)


def _rungs(frame: Frame) -> None:
    places = configurations.rung_counts(frame.state)[-rungs.MOST_RUNGS :]
    brackets = len({place.bracket for place in places})
    rows = [
        [theme.safe(rungs.name_of(one, brackets)),
         *(f"{count:,}" for count in (one.reached, one.promoted, one.waiting, one.quota))]
        for one in places
    ]  # fmt: skip
    headers = ["rung", "reached", "promoted", "waiting", "promotion limit"]
    theme.table(headers, rows, label="Rungs", numeric=(1, 2, 3, 4))


def _promotions(frame: Frame) -> None:
    events = [(one, (one.first,), one.paused) for one in configurations.promotions(frame.state)]
    headers = ["when", "configuration", "after epochs", "paused at", "continued at", "trial"]
    _events(frame, "Promotions", headers, events, empty="Nothing has been promoted yet.")


def _copies(frame: Frame) -> None:
    events = [(one, (one.member, one.source), one.source_trial) for one in relations.copies(frame.state)]
    headers = ["when", "member", "copied", "after epochs", "its site", "continued at", "trial"]
    _events(frame, "Copies", headers, events, empty="No member has copied another yet.")


def _events(
    frame: Frame, title: str, headers: list[str],
    events: Sequence[tuple[PromotionEvent | CopyEvent, tuple[int, ...], int]], *, empty: str,
) -> None:  # fmt: skip
    """The newest of these, each with who takes part and the trial that it continues from."""
    link = partial(theme.trial_link, frame.name)
    rows = [
        [
            "" if one.at is None else theme.ago(one.at / 1e6),
            *map(link, members),
            f"{one.epochs:,}",
            *(theme.safe(site or "?") for site in (one.site_before, one.site)),
            f"{link(before)} → {link(one.trial)}",
        ]
        for one, members, before in reversed(events[-_EVENTS:])
    ]
    theme.heading(title)
    theme.table(headers, rows, label=title, numeric=(headers.index("after epochs"),), empty=empty)
    if len(events) > _EVENTS:
        theme.caption(f"and {len(events) - _EVENTS:,} earlier ones")


def _configurations(frame: Frame) -> None:
    found = configurations.rows(frame.state)
    theme.heading("Configurations")
    order = sorted(found, key=lambda row: (-row.epochs, -row.first))
    headers = ["configuration", "state", "epochs", "pauses after", "value at its rungs", "sites", "trials"]
    rows = [_row(frame, row) for row in order[:_ROWS]]
    if frame.state.configurations.population is not None:
        trees = frame.once(lambda one: relations.families(one.state), "families")
        headers.append("descends from")
        for cells, row in zip(rows, order, strict=False):
            cells.append(" → ".join(theme.trial_link(frame.name, one) for one in trees[row.first]))
    theme.table(headers, rows, label="Configurations", numeric=(2, 3))
    if len(found) > _ROWS:
        theme.caption(f"and {len(found) - _ROWS:,} more that are not as far along")


def _row(frame: Frame, row: ConfigurationRow) -> list[str]:
    return [
        theme.trial_link(frame.name, row.first),
        theme.pill(row.state),
        f"{row.epochs:,}",
        "" if row.pauses_at is None else f"{row.pauses_at:,}",
        ", ".join(number(value) for value in row.reached[-_VALUES:]),
        theme.safe(", ".join(row.sites)),
        ", ".join(theme.trial_link(frame.name, one) for one in row.trials[-4:]),
    ]
