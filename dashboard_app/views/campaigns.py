"""One study at a glance: what a card of the Campaigns page says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from dashboard_app.views.columns import Columns
from dashboard_app.views.spec import number
from dashboard_app.views.spread import pareto_rows
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.state import State

ARCHIVED: Final = "archived"
"""The tag that takes a study off the list."""
_POINTS: Final = 48
_FIRST_LINE: Final = 140


class Card(NamedTuple):
    """What one wants to know of a study among others."""

    word: str
    """running, new, stalled, paused, stopped, failing or done."""
    best: str
    best_of: str
    """What the best is: which trial, or how many objectives."""
    counts: dict[str, int]
    """State in lower case -> trials, those that there are."""
    used: int
    budget: int | None
    sites: dict[str, int]
    """Site -> peers that run a trial there and show signs of life."""
    spark: list[float]
    """The best value so far, over the COMPLETE trials; thinned."""
    begun_by: str
    tags: list[str]
    note: str
    """The first line of the study's note."""
    last: float | None
    """When a trial last began or ended: seconds since 1970, by that peer's clock."""


def card(
    state: State, columns: Columns, *, tags: list[str], note: str, alive: Callable[[str], bool] = lambda _owner: True
) -> Card:
    """The card of this study; `alive` tells whether a peer shows signs of life."""
    owners = {owner for one in list(state.running) if (owner := state.trials[one].owner) is not None and alive(owner)}
    sites = Counter(state.peers.get(owner, {}).get("site") or "?" for owner in owners)
    best, of = _best(columns)
    return Card(
        word=word_of(state, working=bool(owners)),
        best=best,
        best_of=of,
        counts={one.name.lower(): state.counts[one] for one in TrialState if state.counts[one]},
        used=state.used(),
        budget=state.budget,
        sites=dict(sorted(sites.items())),
        spark=_spark(columns),
        begun_by=next((said["user"] for said in list(state.peers.values()) if said.get("user")), ""),
        tags=[one for one in tags if one != ARCHIVED],
        note=first_line(note),
        last=_last(columns),
    )


def word_of(state: State, *, working: bool) -> str:
    """The study's state in a word; `working` tells whether a living peer runs a trial of it."""
    closed = state.closed_because()
    if closed is not None and closed != "budget":
        return closed
    if state.finished():
        return "done"
    if working:
        return "running"
    return "stalled" if state.trials else "new"


def _best(columns: Columns) -> tuple[str, str]:
    if len(columns.directions) > 1:
        front = len(pareto_rows(columns))
        return f"{front:,} on the front", f"of {len(columns.directions)} objectives"
    row = columns.best()
    if row is None:
        return "none", "no complete trial yet"
    aim = "highest" if columns.directions[0] == "maximize" else "lowest"
    return number(float(columns.values[row, 0])), f"{aim}, trial {columns.number[row]}"


def _spark(columns: Columns) -> list[float]:
    if len(columns.directions) != 1:
        return []
    told = columns.told()
    values = columns.values[told, 0]
    if not len(values):
        return []
    up = columns.directions[0] == "maximize"
    best = np.maximum.accumulate(values) if up else np.minimum.accumulate(values)
    if len(best) > _POINTS:
        best = best[np.linspace(0, len(best) - 1, _POINTS).astype(int)]
    return [float(one) for one in best]


def _last(columns: Columns) -> float | None:
    times = np.concatenate([columns.start, columns.end])
    known = times[np.isfinite(times)]
    return float(known.max()) if len(known) else None


def first_line(note: str) -> str:
    """The first line of a note that says something, without the marks of Markdown before it."""
    for line in note.splitlines():
        text = line.strip().lstrip("#>*- ").strip()
        if text:
            return text if len(text) <= _FIRST_LINE else text[: _FIRST_LINE - 1] + "…"
    return ""
