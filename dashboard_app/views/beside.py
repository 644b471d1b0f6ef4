"""Some trials of one study beside each other: what was the same, and what was not."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np

from dashboard_app.views.trial import rank
from hopaas_p2p.analysis.chart import Chart, ChartAxis, cut, dashed, data_of, finite, number
from hopaas_p2p.analysis.facts import last_metrics, params_of, shown, took
from hopaas_p2p.analysis.table import Mask, TrialTable, place
from hopaas_p2p.core.state import State, Trial

MOST: Final = 5
_NUMBER: Final = re.compile(r"[0-9]{1,9}")
_POINTS: Final = 400
_LONGEST: Final = 120


class Fact(NamedTuple):
    """One line of the table: a text per trial, empty where a trial has none."""

    name: str
    cells: tuple[str, ...]

    @property
    def differs(self) -> bool:
        """Whether the trials do not agree."""
        return len(set(self.cells)) > 1


class SideBySide(NamedTuple):
    """The table, in parts."""

    results: list[Fact]
    params: list[Fact]
    metrics: list[Fact]


def numbers_in(text: str, count: int) -> list[int]:
    """The trials that a text names, each once, the first five that exist."""
    found = dict.fromkeys(int(one) for one in _NUMBER.findall(text))
    return [one for one in found if one < count][:MOST]


def first_choice(columns: TrialTable, mask: Mask | None = None) -> list[int]:
    """What to begin with: the three best complete trials, else the newest ones; of those that pass the mask."""
    rows = np.arange(len(columns)) if mask is None else np.flatnonzero(mask)
    complete = rows[columns.complete()[rows]]
    if len(columns.directions) == 1 and len(complete) >= 2:
        order = np.argsort(columns.cost()[complete], kind="stable")
        return [int(one) for one in complete[order[:3]]]
    return [int(one) for one in rows[-2:]]


def side_by_side(state: State, columns: TrialTable, numbers: Sequence[int]) -> SideBySide:
    """What there is to say of these trials."""
    trials = [state.trials[one] for one in numbers]

    def facts(name: str, of: Callable[[Trial], str]) -> Fact:
        return Fact(name, tuple([of(one) for one in trials]))

    def standing(trial: Trial) -> str:
        found = rank(columns, trial.number)
        return "" if found is None else f"{found[0]:,} of {found[1]:,}"

    def reported(trial: Trial) -> str:
        last = max(trial.reports, default=None)
        return "" if last is None else f"{number(trial.reports[last])} at step {last:,}"

    results = [
        facts("value", lambda one: ", ".join(map(number, one.values or ()))),
        facts("rank", standing),
        facts("last report", reported),
        facts("time", took),
        facts("attempt", lambda one: str(one.attempt)),
        facts("site", lambda one: place(state, one.owner or "")[0] if one.owner else ""),
        facts("reason", lambda one: (one.reason or "").split("\n", 1)[0]),
    ]
    params = [params_of(one, state) for one in trials]
    logged = [last_metrics(one) for one in trials]
    return SideBySide(
        [one for one in results if any(one.cells)],
        [_fact(name, params) for name in dict.fromkeys(name for some in params for name in some)],
        [_fact(name, logged) for name in dict.fromkeys(name for some in logged for name in some)],
    )


def _fact(name: str, of: Sequence[dict[str, object]] | Sequence[dict[str, float]]) -> Fact:
    """Numbers are written in full where they differ only in digits that would not be shown."""
    values = [some.get(name) for some in of]
    cells = ["" if value is None else cut(shown(value), _LONGEST) for value in values]
    if len(set(cells)) < len({repr(value) for value in values}):
        cells = ["" if value is None else cut(str(value), _LONGEST) for value in values]
    return Fact(name, tuple(cells))


def curves(state: State, numbers: Sequence[int]) -> Chart | None:
    """The learning curves of these trials in one chart."""
    layers, words = [], []
    for at, one in enumerate(numbers):
        points = finite(state.trials[one].reports, most=_POINTS)
        if len(points) < 2:
            continue
        layers.append(dashed(f"trial {one}", at, data_of(points)))
        words.append(f"trial {one}: {number(points[-1][1])} at step {points[-1][0]:.0f}")
    if not layers:
        return None
    alt = f"Reports by step. {'; '.join(words)}."
    return Chart(
        "Learning curves", layers, ChartAxis("step"), ChartAxis("reported value"), alt, height=340, legend=True
    )
