"""What pruning did: the steps at which trials were cut, and the compute that it saved."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from hopaas_p2p.analysis import palette
from hopaas_p2p.analysis.chart import Chart, ChartAxis, Series
from hopaas_p2p.analysis.facts import duration
from hopaas_p2p.analysis.table import Floats, Ints, TrialTable
from hopaas_p2p.core.records import TrialState

_DRAWS: Final = 400  # of the bootstrap; the ends of a 90 % interval move by about a percent of it with more
_FEWER_DRAWS: Final = 100  # where each takes long, and the interval is narrow
_MANY: Final = 5000
_BARS: Final = 40


class Saved(NamedTuple):
    """Hours that pruning saved: an estimate, because nobody ran the pruned trials to their end."""

    hours: float
    low: float
    """5 % of the resamplings gave less."""
    high: float
    """5 % gave more."""
    spent: float
    """Hours that all trials together took."""
    pruned: int
    steps: float
    """Steps of a whole trial: the mean of the complete ones."""

    @property
    def share(self) -> float:
        """The share of the compute that would have been needed without pruning."""
        return self.hours / (self.hours + self.spent) if self.hours + self.spent > 0 else 0.0


ESTIMATOR: Final = (
    "Without pruning, each pruned trial would have continued, at its own seconds per step, to the length of a complete "
    "trial; the estimate is the mean over the lengths of the complete trials. The interval is the middle 90% of "
    "bootstrap resamples of the pruned and complete trials. It does not account for pruned trials that would have been "
    "longer, shorter or slower."
)


def hours(value: float) -> str:
    """Compute-hours as people read them."""
    return duration(value * 3600) if value < 0.1 else f"{value:.3g} h"


def saved(columns: TrialTable) -> Saved | None:
    """See `ESTIMATOR`. None when no trial was pruned, no complete trial reported anything, or times are unknown.

    Deterministic: the resampling is seeded.
    """
    seconds = columns.seconds()
    whole = columns.is_(TrialState.COMPLETE) & (columns.steps > 0)
    cut = columns.is_(TrialState.PRUNED) & (columns.steps > 0) & np.isfinite(seconds)
    if not whole.any() or not cut.any():
        return None
    made = columns.steps[cut].astype(np.float64)
    pace = seconds[cut] / made
    lengths, counts = np.unique(columns.steps[whole].astype(np.float64), return_counts=True)
    estimate = float((pace * missing(lengths, counts, made)).sum())
    chance = np.random.default_rng(0)
    draws = np.empty(_DRAWS if len(made) < _MANY else _FEWER_DRAWS)
    for at in range(len(draws)):
        some = chance.integers(len(made), size=len(made))
        drawn = chance.multinomial(counts.sum(), counts / counts.sum())
        draws[at] = (pace[some] * missing(lengths, drawn, made[some])).sum()
    low, high = np.quantile(draws, [0.05, 0.95])
    spent = float(np.nansum(seconds))
    hours = (estimate / 3600, float(low) / 3600, float(high) / 3600, spent / 3600)
    return Saved(*hours, int(cut.sum()), float(np.average(lengths, weights=counts)))


def missing(lengths: Floats, counts: Ints, made: Floats) -> Floats:
    """The mean number of steps that remain after so many were made, E[max(0, L - k)].

    `counts` says how often each of the ascending `lengths` occurs.
    """
    steps = np.concatenate([[0.0], np.cumsum(lengths * counts)])
    trials = np.concatenate([[0], np.cumsum(counts)])
    at = np.searchsorted(lengths, made, side="right")
    found: Floats = ((steps[-1] - steps[at]) - (trials[-1] - trials[at]) * made) / trials[-1]
    return found


def pruned_at(columns: TrialTable) -> tuple[list[tuple[int, int]], Chart] | None:
    """[(step, trials pruned there)], and the chart; many steps are gathered in bars of equal width."""
    mask = columns.is_(TrialState.PRUNED) & np.isfinite(columns.last_step)
    if not mask.any():
        return None
    steps, counts = np.unique(columns.last_step[mask].astype(np.int64), return_counts=True)
    table = list(zip(steps.tolist(), counts.tolist(), strict=True))
    width = max(1, math.ceil((int(steps[-1]) - int(steps[0]) + 1) / _BARS))
    bars = np.bincount((steps - steps[0]) // width, weights=counts).astype(np.int64)
    starts = steps[0] + width * np.arange(len(bars))
    names = [str(start) if width == 1 else f"{start} to {start + width - 1}" for start in starts.tolist()]
    busiest = max(table, key=lambda pair: pair[1])
    alt = (
        f"{int(mask.sum()):,} trials were pruned between steps {table[0][0]} and {table[-1][0]}, most of them, "
        f"{busiest[1]:,}, after step {busiest[0]}."
    )
    data = {"step": np.array(names), "trials": bars}
    x, y = ChartAxis("last step reported", choices=tuple(names)), ChartAxis("trials pruned", zero=True, whole=True)
    series = Series("pruned", "bars", data, palette.PRUNED)
    return table, Chart("Where trials were pruned", [series], x, y, alt, height=260)
