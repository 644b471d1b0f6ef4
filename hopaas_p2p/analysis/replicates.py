"""The mean of several trials of one configuration, and its standard error."""

from __future__ import annotations

import math
import statistics
from typing import Any, NamedTuple

from hopaas_p2p.analysis.facts import params_of
from hopaas_p2p.core.attributes import REUSED
from hopaas_p2p.core.state import COMPLETE, State


class ReplicateGroup(NamedTuple):
    """The COMPLETE trials of one configuration. With several objectives, the first objective counts.

    A trial that received the values of another trial (`repeats="reuse"`) measured nothing and does not count.
    """

    params: dict[str, Any]
    numbers: tuple[int, ...]
    """The numbers of the trials."""
    mean: float
    """Infinite if one of the values is; NaN if both infinities occur."""
    standard_error: float
    """The standard error of the mean; NaN for a single trial, or if a value is infinite."""

    def __str__(self) -> str:
        spread = "" if math.isnan(self.standard_error) else f" ± {self.standard_error:.2g}"
        return f"{self.mean:.6g}{spread} (n = {len(self.numbers)})"


def replicates(state: State) -> list[ReplicateGroup]:
    """The configurations of the COMPLETE trials, the best mean first. Those with a trial that violates its constraints
    come after all others, and those with the mean NaN are last.
    """
    found: dict[tuple[tuple[str, str], ...], tuple[dict[str, Any], list[int], list[float]]] = {}
    bad: set[int] = set()
    for trial in list(state.trials):
        if trial.state is COMPLETE and trial.values and REUSED not in trial.system:
            params = params_of(trial, state.dists)
            key = tuple(sorted((name, repr(value)) for name, value in params.items()))
            _, numbers, values = found.setdefault(key, (params, [], []))
            numbers.append(trial.number)
            values.append(trial.values[0])
            bad |= set() if trial.feasible else {numbers[0]}
    groups = [ReplicateGroup(params, tuple(numbers), *mean(values)) for params, numbers, values in found.values()]
    sign = -1.0 if state.define is not None and state.define.directions[0] == "maximize" else 1.0
    return sorted(groups, key=lambda one: (math.isnan(one.mean), one.numbers[0] in bad, sign * one.mean))


def mean(values: list[float]) -> tuple[float, float]:
    """The mean of some values and its standard error."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return sum(values), math.nan
    root = math.sqrt(len(values))  # divides first, because the deviation of the largest numbers would overflow
    return statistics.mean(values), statistics.stdev([value / root for value in values])
