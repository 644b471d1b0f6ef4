"""What populations gain, trained for real on a virtual clock: the short form of `make bench ONLY=populations`."""

from __future__ import annotations

import numpy as np
import pytest

from hopaas_p2p import Population
from tests.benchmarks.bench_populations import WAYS
from tests.benchmarks.population_clock import Way, replayed, search
from tests.benchmarks.schedules import task

RANDOM, PAIRS = WAYS["random search"], Population(size=4, every=4, max=40, quantile=0.25)


@pytest.mark.parametrize("name", ["sphere", "noise", "digits", "breast_cancer"])
def test_a_training_begins_and_goes_on_as_its_numbers_say(name: str) -> None:
    trained = task(name)
    params = {key: one.low for key, one in trained.space.items()} | {"rate": 0.05, "first": 1.0, "second": 1.0}
    model = trained.begin(np.random.default_rng(1))
    before = trained.losses(model)
    for done in range(3):
        one, other = (trained.epoch(model, params, np.random.default_rng(done)) for _ in range(2))
        assert (one == other).all()
        model = one
    assert trained.losses(model)[0] < before[0]


def test_a_population_trains_as_many_epochs_as_random_search_and_repeats_none() -> None:
    trained = task("sphere")
    way = Way(RANDOM.sampler, PAIRS, peers=4)
    population, constant = (search(trained, one, size=4, seed=1) for one in (way, RANDOM._replace(peers=4)))
    assert len(population.best) == len(constant.best) == 4 * trained.epochs
    assert population.schedule is not None
    assert replayed(trained, population.schedule, seed=1).best[-1] == pytest.approx(population.schedule.value)


def test_members_at_peers_of_different_speed_copy_and_gain() -> None:
    trained = task("sphere")
    way = Way(RANDOM.sampler, Population(size=8, every=5, max=40), peers=8)
    population, constant = (search(trained, one, size=8, seed=1) for one in (way, RANDOM._replace(peers=8)))
    assert population.judged < constant.judged
