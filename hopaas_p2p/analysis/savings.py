"""What pruning saved: an estimate, because nobody ran the pruned trials to their end."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from hopaas_p2p.analysis.facts import duration
from hopaas_p2p.analysis.table import COMPLETE, PRUNED, Floats, Ints, TrialTable

ESTIMATOR: Final = (
    "Without pruning, each pruned trial would have continued, at its own seconds per step, to the length of a complete "
    "trial; the estimate is the mean over the lengths of the complete trials. The interval is the middle 90% of "
    "bootstrap resamples of the pruned and complete trials. It does not account for pruned trials that would have been "
    "longer, shorter or slower."
)
_DRAWS: Final = 400  # of the bootstrap; the ends of a 90 % interval move by about a percent of it with more
_FEWER_DRAWS: Final = 100  # where each takes long, and the interval is narrow
_MANY: Final = 5000


class Savings(NamedTuple):
    """See `ESTIMATOR`. Nothing, where no trial was pruned after a report, or no complete trial reported anything."""

    pruned: int = 0
    """How many trials were cut short."""
    length: float = 0.0
    """Steps of a whole trial: the mean of the complete ones."""
    steps: float = 0.0
    """Reports (epochs, steps) that the pruned trials lack to a whole trial."""
    made: int = 0
    """Those that all trials made."""
    hours: float = 0.0
    """What those steps would have taken, as far as times are known."""
    low: float = 0.0
    """5 % of the resamplings gave less."""
    high: float = 0.0
    """5 % gave more."""

    @property
    def share(self) -> float:
        """The share of the steps that would have been needed without pruning."""
        return self.steps / (self.steps + self.made) if self.steps else 0.0

    def in_words(self) -> tuple[str, str]:
        """The hours that were saved; and the interval, or nothing where both its ends would be said alike."""
        low, middle, high = (
            duration(one * 3600) if one < 0.1 else f"{one:.3g} h" for one in (self.low, self.hours, self.high)
        )
        return middle, f"{low} to {high}" if low != high else ""


def savings(table: TrialTable) -> Savings:
    """What pruning saved. Deterministic: the resampling is seeded."""
    whole = (table.state == COMPLETE) & (table.steps > 0)
    cut = (table.state == PRUNED) & (table.steps > 0)
    total = int(table.steps.sum())
    if not whole.any() or not cut.any():
        return Savings(made=total)
    made = table.steps[cut].astype(np.float64)
    pace = np.nan_to_num(table.seconds()[cut]) / made / 3600
    lengths, counts = np.unique(table.steps[whole].astype(np.float64), return_counts=True)
    lacking = missing(lengths, counts, made)
    chance = np.random.default_rng(0)
    draws = np.empty(_DRAWS if len(made) < _MANY else _FEWER_DRAWS)
    for at in range(len(draws)):
        some = chance.integers(len(made), size=len(made))
        drawn = chance.multinomial(counts.sum(), counts / counts.sum())
        draws[at] = (pace[some] * missing(lengths, drawn, made[some])).sum()
    low, high = np.quantile(draws, [0.05, 0.95]).tolist()
    length = float(np.average(lengths, weights=counts))
    return Savings(len(made), length, float(lacking.sum()), total, float(pace @ lacking), low, high)


def missing(lengths: Floats, counts: Ints, made: Floats) -> Floats:
    """The mean number of steps that remain after so many were made, E[max(0, L - k)].

    `counts` says how often each of the ascending `lengths` occurs.
    """
    steps = np.concatenate([[0.0], np.cumsum(lengths * counts)])
    trials = np.concatenate([[0], np.cumsum(counts)])
    at = np.searchsorted(lengths, made, side="right")
    found: Floats = ((steps[-1] - steps[at]) - (trials[-1] - trials[at]) * made) / trials[-1]
    return found
