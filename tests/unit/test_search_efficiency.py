"""Many peers search nearly as well as one, also where the store is slow: real sessions on a virtual clock.

Seeds are fixed and nothing depends on the machine's speed. `make bench ONLY=search` has the long form, on recorded
tables.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
import statistics
from collections.abc import Iterable
from typing import Final

import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from hopaas_p2p.samplers import default_sampler
from tests.benchmarks.search_clock import Recorded, Search, Table
from tests.benchmarks.search_stores import POSTGRES, S3, ZERO, ModelledStore, search_on_store

_MOST: Final = 300


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


def evaluations(store: ModelledStore, *, peers: int, seeds: int, seconds: float = 60.0) -> list[Search]:
    """Searches of the default sampler until one of the best 0.1 % was found."""
    target = table().best(0.001)
    return [
        search_on_store(
            table(),
            default_sampler,
            peers=peers,
            evaluations=_MOST,
            store=store,
            seed=seed,
            seconds=seconds,
            until=target,
        )
        for seed in range(seeds)
    ]


def middle(searches: Iterable[Search]) -> float:
    return statistics.median(len(one.told) for one in searches)


@pytest.mark.parametrize(
    ("store", "peers", "seeds", "seconds", "bound"),
    [
        pytest.param(ZERO, 8, 5, 60.0, 50, id="8 peers that know everything at once"),
        pytest.param(POSTGRES, 8, 5, 10.0, 50, id="8 peers on Postgres"),
        pytest.param(S3, 8, 5, 60.0, 50, id="8 peers on S3"),
        pytest.param(S3, 64, 2, 60.0, 120, id="64 peers on S3"),
    ],
)
def test_many_peers_search_well(store: ModelledStore, peers: int, seeds: int, seconds: float, bound: int) -> None:
    """Medians over 20 seeds were 42, 38 and 36 with 8 peers; Optuna's TPE needs 57, random search several hundred."""
    found = evaluations(store, peers=peers, seeds=seeds, seconds=seconds)
    assert middle(found) <= bound
    assert max(one.repeated for one in found) <= 0.02


def test_what_a_peer_drew_is_known_to_the_others_while_it_trains() -> None:
    """No two of the first 64 trials, which all run at once, are the same; and most end in another order."""
    (found,) = evaluations(S3, peers=64, seeds=1)
    assert len(set(found.proposed[:64])) == 64
    assert [one.peer for one in found.told[:10]] != list(range(10))
