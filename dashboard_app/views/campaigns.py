"""One study at a glance: what a card of the Campaigns page says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from hopaas_p2p.analysis.chart import cut, number, spread
from hopaas_p2p.analysis.facts import state_word
from hopaas_p2p.analysis.table import TrialTable, place
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.state import State
from hopaas_p2p.peer.liveness import SignOfLife, any_alive, owners_of

ARCHIVED: Final = "archived"
"""The tag that takes a study off the list."""
_POINTS: Final = 48
_FIRST_LINE: Final = 140


class Card(NamedTuple):
    """What distinguishes a study at a glance."""

    word: str
    """See `analysis.facts.state_word`."""
    best: str
    best_of: str
    """What the best is: which trial, or how many objectives."""
    counts: dict[str, int]
    """State in lower case -> how many trials are in it; only states that occur."""
    used: int
    budget: int | None
    sites: dict[str, int]
    """Site -> peers that run a trial there and show signs of life."""
    spark: list[float]
    """The best value so far, over the COMPLETE trials; downsampled."""
    begun_by: str
    last: float | None
    """When a trial last began or ended: seconds since 1970, by that peer's clock."""


def card(state: State, columns: TrialTable, *, alive: Callable[[str], bool | None] = lambda _owner: True) -> Card:
    """The card of this study; `alive(owner)`: whether that peer is alive, None while that is not known."""
    owners = owners_of(state)
    signs = [SignOfLife(alive(owner), None) for owner in owners]
    sites = Counter(place(state, owner)[0] for owner in owners if alive(owner))
    best, of = _best(columns)
    return Card(
        word=state_word(state, working=any_alive(signs)),
        best=best,
        best_of=of,
        counts={one.name.lower(): state.counts[one] for one in TrialState if state.counts[one]},
        used=state.used(),
        budget=state.budget,
        sites=dict(sorted(sites.items())),
        spark=_spark(columns),
        begun_by=next((info["user"] for info in list(state.peers.values()) if info.get("user")), ""),
        last=_last(columns),
    )


def _best(columns: TrialTable) -> tuple[str, str]:
    if len(columns.directions) > 1:
        front = len(columns.front())
        return f"{front:,} on the front", f"of {len(columns.directions)} objectives"
    row = columns.best()
    if row is None:
        return "none", "no complete trial yet"
    aim = "highest" if columns.directions[0] == "maximize" else "lowest"
    return number(float(columns.values[row, 0])), f"{aim}, trial {row}"


def _spark(columns: TrialTable) -> list[float]:
    if len(columns.directions) != 1:
        return []
    values = columns.values[columns.complete(), 0]
    best = (np.maximum if columns.directions[0] == "maximize" else np.minimum).accumulate(values)
    return [float(one) for one in best[spread(len(best), _POINTS)]]


def _last(columns: TrialTable) -> float | None:
    times = np.concatenate([columns.start, columns.end])
    return float(np.nanmax(times)) if np.isfinite(times).any() else None


def first_line(note: str) -> str:
    """The first line of a note that is not empty, without Markdown's marks before it."""
    texts = (line.strip().lstrip("#>*- ").strip() for line in note.splitlines())
    return cut(next(filter(None, texts), ""), _FIRST_LINE)
