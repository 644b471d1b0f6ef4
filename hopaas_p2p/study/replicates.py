"""Several trials of one configuration: their mean, and how well it is known."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import Any, NamedTuple

from optuna.trial import FrozenTrial, TrialState

from hopaas_p2p.core.attributes import REUSED


class ReplicateGroup(NamedTuple):
    """The COMPLETE trials of one configuration; the first value of each, if there are several objectives.

    A trial that was told the known values of another one, with `repeats="reuse"`, measures nothing and does not count.
    """

    params: dict[str, Any]
    numbers: tuple[int, ...]
    """Of the trials."""
    mean: float
    standard_error: float
    """Of the mean; NaN for a single trial."""

    def __str__(self) -> str:
        spread = "" if math.isnan(self.standard_error) else f" ± {self.standard_error:.2g}"
        return f"{self.mean:.6g}{spread} (n = {len(self.numbers)})"


def replicate_groups(trials: Iterable[FrozenTrial], *, maximize: bool) -> list[ReplicateGroup]:
    """The configurations of the COMPLETE trials, the best mean first."""
    found: dict[tuple[tuple[str, str], ...], list[FrozenTrial]] = {}
    for trial in trials:
        if trial.state is TrialState.COMPLETE and REUSED not in trial.system_attrs:
            found.setdefault(tuple(sorted((name, repr(value)) for name, value in trial.params.items())), []).append(
                trial
            )
    groups = []
    for same in found.values():
        values = [trial.values[0] for trial in same]
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        groups.append(
            ReplicateGroup(same[0].params, tuple(one.number for one in same), statistics.fmean(values), error)
        )
    return sorted(groups, key=lambda group: -group.mean if maximize else group.mean)
