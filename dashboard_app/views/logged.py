"""The metrics that a trial logged beside its reports, at a glance."""

from __future__ import annotations

import math
from typing import NamedTuple

from hopaas_p2p.core.state import Trial


class LastValue(NamedTuple):
    """A metric at a glance."""

    name: str
    value: float
    step: int
    low: float
    high: float
    steps: int


def last_values(trial: Trial) -> list[LastValue]:
    """The trial's metrics in the order in which they were first logged."""
    found = []
    for name, values in list(trial.metrics.items()):
        if not values:  # all its steps came after the checkpoint that the attempt resumed from
            continue
        numbers = [value for value in values.values() if math.isfinite(value)] or [math.nan]
        last = max(values)
        found.append(LastValue(name, values[last], last, min(numbers), max(numbers), len(values)))
    return found
