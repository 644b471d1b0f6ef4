"""Estimates what pruning saved. An estimate is needed, because pruned trials did not run to their end.

With rungs, the trials of one configuration count as one. A population saves nothing: each member trains to the end.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from hopaas_p2p.analysis.facts import duration
from hopaas_p2p.analysis.table import COMPLETE, PRUNED, Floats, TrialTable
from hopaas_p2p.core.state import State

ESTIMATOR: Final = (
    "Without pruning, each pruned trial would have continued, at its own seconds per step, to the length of a complete "
    "trial; the estimate is the mean over the lengths of the complete trials. It does not account for pruned trials "
    "that would have been longer, shorter or slower."
)


class Savings(NamedTuple):
    """What pruning saved, as estimated by `ESTIMATOR`. It is zero if no trial was pruned after a report, if no complete
    trial reported, or in a population.
    """

    pruned: int = 0
    """The number of pruned trials that the estimate uses."""
    length: float = 0.0
    """The mean number of steps of the complete trials."""
    steps: float = 0.0
    """The steps (epochs) that the pruned trials did not run."""
    made: int = 0
    """The steps that all trials reported."""
    hours: float = 0.0
    """The hours that the saved steps would have taken, for trials whose times are known."""

    @property
    def share(self) -> float:
        """The saved fraction of the steps that would have been needed without pruning."""
        return self.steps / (self.steps + self.made) if self.steps else 0.0

    @property
    def time(self) -> str:
        """The saved time, in words."""
        return duration(self.hours * 3600) if self.hours < 0.1 else f"{self.hours:.3g} h"


def savings(state: State, table: TrialTable) -> Savings:
    """What pruning saved. `table` has the study's trials."""
    roots = np.fromiter(map(state.configurations.root, range(len(table))), np.int64)
    newest = np.fromiter(dict(zip(roots.tolist(), table.number, strict=True)).values(), np.int64)  # has all reports
    newest = newest[table.steps[newest] > 0]
    steps = table.steps[newest].astype(np.float64)
    pruned = (table.state[newest] == PRUNED) & (state.configurations.population is None)
    whole, cut, total = steps[table.state[newest] == COMPLETE], steps[pruned], int(steps.sum())
    if not len(whole) or not len(cut):
        return Savings(made=total)
    spent = np.bincount(roots, np.nan_to_num(table.seconds()))[roots[newest[pruned]]]
    lacking = missing(whole, cut)
    return Savings(len(cut), float(whole.mean()), float(lacking.sum()), total, float(spent / cut @ lacking) / 3600)


def missing(lengths: Floats, made: Floats) -> Floats:
    """The mean number of remaining steps after k steps, E[max(0, L - k)], over these lengths."""
    ordered = np.sort(lengths)
    at = np.searchsorted(ordered, made, side="right")
    rest = np.concatenate([np.cumsum(ordered[::-1])[::-1], [0.0]])
    found: Floats = (rest[at] - (len(ordered) - at) * made) / len(ordered)
    return found
