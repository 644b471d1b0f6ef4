"""What rungs save, on recorded curves and a virtual clock: the short form of `make bench ONLY=fidelity`."""

from __future__ import annotations

import math

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.pruners import NopPruner
from optuna.samplers import RandomSampler

from hopaas_p2p.core.fidelity import Rungs
from tests.benchmarks.bench_fidelity import METHODS, NONE, Method, first_wave
from tests.benchmarks.curves import DATA_SETS, EPOCHS, FILE, Curves, drawn, late_bloomers, recorded
from tests.benchmarks.fidelity_clock import promote, prune
from tests.benchmarks.search_clock import Recorded, Table

SEEDS = range(3)
ONE_BRACKET, THREE_BRACKETS = (name for name in METHODS if "Rungs" in name)
FOUR = Curves({"x": 4}, np.repeat([[4.0], [3.0], [2.0], [1.0]], EPOCHS, axis=1), np.ones((4, EPOCHS)))
"""Four configurations whose order never changes; an epoch takes a second."""


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def found(share: float, curves: Curves, method: Method) -> int:
    """How many of the best configurations 16 peers train to the end within ten whole trainings, over all seeds.

    The time to the first one says the same and varies more: it would take hundreds of seeds.
    """
    target, until = curves.best(share), 10 * curves.training
    runs = [method(curves, RandomSampler(seed=seed), peers=16, until=until) for seed in SEEDS]
    return sum(one.value <= target for run in runs for one in run.found)


def test_the_file_of_curves_is_small_and_holds_what_is_promised() -> None:
    assert FILE.stat().st_size < 600_000
    for name in DATA_SETS:
        curves = recorded(name)
        assert len(curves.values) >= 1000
        assert curves.values.shape == curves.seconds.shape == (math.prod(curves.sizes.values()), EPOCHS)
        assert np.isfinite(curves.values).all()
        assert (curves.seconds > 0).all()
        assert curves.row(dict(zip(curves.sizes, curves.places(1234), strict=True))) == 1234


def test_curves_that_are_drawn_end_in_the_order_of_what_was_recorded() -> None:
    space = {"a": CategoricalDistribution((0, 1)), "b": IntDistribution(0, 2)}
    records = {(a, b): Recorded(1.0 + a + 0.1 * b, 10.0 + b) for a in range(2) for b in range(3) if (a, b) != (1, 2)}
    curves = drawn(Table(space, records))
    assert list(np.argsort(curves.values[:, -1], kind="stable")) == [0, 1, 2, 3, 4, 5]  # what is missing is the worst
    assert curves.best(0) == 0.0
    assert np.allclose(curves.seconds.sum(1), [10, 11, 12, 10, 11, 1])
    assert (curves.values[:, 0] > curves.values[:, -1]).all()


def test_without_pruning_every_configuration_is_trained_to_its_end() -> None:
    done = prune(FOUR, RandomSampler(seed=1), NopPruner(), peers=2, until=math.inf, budget=4)
    assert (done.epochs, done.configurations) == (4 * EPOCHS, 4)
    assert [found.at for found in done.found] == [50.0, 50.0, 100.0, 100.0]


def test_a_configuration_that_goes_on_repeats_no_epoch_and_is_not_counted_again() -> None:
    done = promote(FOUR, RandomSampler(seed=1), Rungs(min=10, max=EPOCHS, eta=4), peers=1, until=math.inf, budget=4)
    assert done.configurations == 4
    assert done.epochs == 4 * 10 + 30 + 10  # four to the first rung, one to the second and then to its end
    assert len(done.found) == 1


def test_a_peer_that_finds_nothing_to_do_goes_on_when_another_has_paused() -> None:
    done = promote(FOUR, RandomSampler(seed=1), Rungs(min=10, max=EPOCHS, eta=2), peers=3, until=math.inf, budget=4)
    assert done.found


@pytest.mark.parametrize("table", DATA_SETS)
@pytest.mark.parametrize("method", [ONE_BRACKET, THREE_BRACKETS])
def test_a_first_wave_of_256_saves_two_fifths_of_its_epochs(table: str, method: str) -> None:
    saved, regret = first_wave(recorded(table), METHODS[method], seed=1)
    assert saved >= 0.4
    assert regret < 0.25


@pytest.mark.parametrize(("table", "times"), [("digits", 6.0), ("breast_cancer", 3.5)])
def test_rungs_find_several_times_as_many_of_the_best(table: str, times: float) -> None:
    curves = recorded(table)
    assert found(0.02, curves, METHODS[ONE_BRACKET]) >= times * found(0.02, curves, METHODS[NONE])


@pytest.mark.parametrize("latest", [5, 15, 40])
def test_three_brackets_protect_curves_that_cross(latest: int) -> None:
    curves = late_bloomers(latest)
    assert found(0.05, curves, METHODS[THREE_BRACKETS]) >= found(0.05, curves, METHODS[NONE]) / 1.1
