"""What pruning did: learning curves, the steps at which trials were cut, and the compute that it saved."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from dashboard_app.views import spec
from dashboard_app.views.curves import STEPS, Points, bundle, downsampled, finite, option_of
from dashboard_app.views.downsample import spread
from dashboard_app.views.spec import ChartSpec
from hopaas_p2p.analysis import palette
from hopaas_p2p.analysis.facts import duration
from hopaas_p2p.analysis.table import Floats, Ints, TrialTable
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.state import State, Trial

_DRAWS: Final = 400  # of the bootstrap; the ends of a 90 % interval move by about a percent of it with more
_FEWER_DRAWS: Final = 100  # where each takes long, and the interval is narrow
_MANY: Final = 5000
_CUT: Final = 40  # pruned curves that are drawn
_WHOLE: Final = 20
_RUNNING: Final = 20
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


def pruned_at(columns: TrialTable) -> tuple[list[tuple[int, int]], ChartSpec] | None:
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
    series = {"type": "bar", "name": "pruned", "encode": {"x": 0, "y": 1}, "itemStyle": {"color": palette.PRUNED}}
    option = spec.base(
        [spec.Layer(series, spec.frame(step=np.array(names), trials=bars))],
        xAxis={**spec.axis("last step reported"), "type": "category"},
        yAxis=spec.axis("trials pruned", tight=False, nameGap=44, minInterval=1),
    )
    busiest = max(table, key=lambda pair: pair[1])
    alt = (
        f"{int(mask.sum()):,} trials were pruned between steps {table[0][0]} and {table[-1][0]}, most of them, "
        f"{busiest[1]:,}, after step {busiest[0]}."
    )
    return table, ChartSpec("Where trials were pruned", option, alt, height=260)


def curves(state: State, columns: TrialTable, *, height: int = 400) -> ChartSpec | None:
    """Reports by step: the best trial, the running ones, and samples of complete and pruned ones."""
    mask = columns.steps > 1
    single = len(columns.directions) == 1
    whole = np.flatnonzero(mask & columns.is_(TrialState.COMPLETE))
    cut = np.flatnonzero(mask & columns.is_(TrialState.PRUNED))
    running = np.flatnonzero(mask & columns.is_(TrialState.RUNNING))[:_RUNNING]
    if not single or not (len(whole) or len(cut) or len(running)):
        return None
    some_cut, some_whole = cut[spread(len(cut), _CUT)], whole[spread(len(whole), _WHOLE)]
    best = whole[np.argsort(np.where(columns.complete(), columns.cost(), np.inf)[whole], kind="stable")[:1]]

    def drawn(numbers: Ints) -> list[tuple[int, Points]]:
        return [(number, curve_of(state.trials[number])) for number in numbers.tolist()]

    layers = [
        bundle("pruned", drawn(some_cut), palette.PRUNED, "dotted", 1.0),
        bundle("complete", drawn(some_whole), spec.PLAIN, "solid", 1.0),
        bundle("running", drawn(running), palette.RUNNING, "dashed", 1.8),
        bundle("best", drawn(best), spec.BEST, "solid", 3.0),
    ]
    option = option_of(layers, along="step", minimize=columns.directions[0] == "minimize", marks=())
    about = [f"{len(some_cut)} of {len(cut):,} pruned", f"{len(some_whole)} of {len(whole):,} complete"]
    about += [f"{len(running)} running"] if len(running) else []
    about += [f"the best (trial {number})" for number in best]
    caption = f"Trials with at least two reports: {', '.join(about)}."
    return ChartSpec("Learning curves", option, f"Learning curves: {', '.join(about)}.", caption, height=height)


def curve_of(trial: Trial, *, most: int = STEPS) -> Points:
    """A trial's finite reports by step, downsampled."""
    return downsampled(finite(trial.reports), most=most)
