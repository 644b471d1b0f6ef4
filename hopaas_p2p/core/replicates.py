"""The mean of the trials that tried one configuration, and how well it is known."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from typing import NamedTuple


class Mean(NamedTuple):
    """What the trials of one configuration were worth."""

    numbers: tuple[int, ...]
    """Of the trials."""
    mean: float
    """Infinite where one of the values is; NaN where both infinities are among them."""
    standard_error: float
    """Of the mean; NaN for a single trial, and where a value is infinite."""

    def __str__(self) -> str:
        spread = "" if math.isnan(self.standard_error) else f" ± {self.standard_error:.2g}"
        return f"{self.mean:.6g}{spread} (n = {len(self.numbers)})"


def means(measured: Iterable[tuple[int, Hashable, float]], *, maximize: bool) -> list[Mean]:
    """The mean of each configuration, the best first; NaN last.

    Args:
        measured: (number of the trial, configuration, value).
        maximize: whether large values are good.

    """
    found: dict[Hashable, tuple[list[int], list[float]]] = {}
    for number, configuration, value in measured:
        numbers, values = found.setdefault(configuration, ([], []))
        numbers.append(number)
        values.append(value)
    groups = []
    for numbers, values in found.values():
        count, mean, error = len(values), sum(values), math.nan
        if all(map(math.isfinite, values)):
            scale = max(map(abs, values)) or 1.0  # so that the sum of the largest numbers is one, too
            scaled = [value / scale for value in values]
            middle = math.fsum(scaled) / count
            mean = middle * scale
            if count > 1:
                error = math.sqrt(math.fsum((one - middle) ** 2 for one in scaled) / (count - 1) / count) * scale
        groups.append(Mean(tuple(numbers), mean, error))
    sign = -1.0 if maximize else 1.0
    return sorted(groups, key=lambda one: (math.isnan(one.mean), sign * one.mean))
