"""What pruning saved: an estimate, because nobody ran the pruned trials to their end."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from hopaas_p2p.analysis.facts import duration
from hopaas_p2p.analysis.table import COMPLETE, PRUNED, Floats, TrialTable

ESTIMATOR: Final = (
    "Without pruning, each pruned trial would have continued, at its own seconds per step, to the length of a complete "
    "trial; the estimate is the mean over the lengths of the complete trials. It does not account for pruned trials "
    "that would have been longer, shorter or slower."
)


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

    @property
    def share(self) -> float:
        """The share of the steps that would have been needed without pruning."""
        return self.steps / (self.steps + self.made) if self.steps else 0.0

    @property
    def time(self) -> str:
        """The hours that were saved, in words."""
        return duration(self.hours * 3600) if self.hours < 0.1 else f"{self.hours:.3g} h"


def savings(table: TrialTable) -> Savings:
    """What pruning saved."""
    steps, total = table.steps.astype(np.float64), int(table.steps.sum())
    pruned = (table.state == PRUNED) & (steps > 0)
    whole, cut = steps[(table.state == COMPLETE) & (steps > 0)], steps[pruned]
    if not len(whole) or not len(cut):
        return Savings(made=total)
    pace = np.nan_to_num(table.seconds()[pruned]) / cut / 3600
    lacking = missing(whole, cut)
    return Savings(len(cut), float(whole.mean()), float(lacking.sum()), total, float(pace @ lacking))


def missing(lengths: Floats, made: Floats) -> Floats:
    """The mean number of steps that remain after so many were made, E[max(0, L - k)], over these lengths."""
    ordered = np.sort(lengths)
    at = np.searchsorted(ordered, made, side="right")
    rest = np.concatenate([np.cumsum(ordered[::-1])[::-1], [0.0]])
    found: Floats = (rest[at] - (len(ordered) - at) * made) / len(ordered)
    return found
