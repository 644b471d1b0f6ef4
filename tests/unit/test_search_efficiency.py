"""Many peers search nearly as well as one, also where the store is slow: real sessions on a virtual clock.

Seeds are fixed and nothing depends on the machine's speed. `make bench ONLY=search` has the long form, on recorded
tables.
"""

from __future__ import annotations

import functools
import itertools
import math
import random

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from tests.benchmarks.search_clock import Recorded, Table


@functools.cache
def table() -> Table:
    """12,000 configurations of a network that might be: two numbers that depend on each other, two choices, noise."""
    space: dict[str, BaseDistribution] = {
        "rate": IntDistribution(0, 9),
        "batch": IntDistribution(0, 9),
        "width": IntDistribution(0, 9),
        "depth": IntDistribution(0, 3),
        "activation": CategoricalDistribution((0, 1, 2)),
    }
    numbers, records = random.Random(3), {}
    for rate, batch, width, depth, activation in itertools.product(*map(range, (10, 10, 10, 4, 3))):
        valley = (rate - 0.5 * batch - 1.5) ** 2 / 12 + (batch - 6) ** 2 / 40
        size = (width - 7 + depth) ** 2 / 30 + (0.3, 0.0, 0.15)[activation] * (1 + 0.2 * depth)
        loss = 1 - math.exp(-valley - size) + 0.02 * numbers.random()
        records[rate, batch, width, depth, activation] = Recorded(loss, 20 + 6 * width * (1 + depth) * numbers.random())
    return Table(space, records)
