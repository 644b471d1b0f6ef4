"""How parameters change: within their range, and the same on every machine."""

from __future__ import annotations

import pytest

from hopaas_p2p.core.perturbation import fraction, perturbed
from hopaas_p2p.core.records import Categorical, Distribution, Float, Int

KINDS: list[tuple[Distribution, list[float]]] = [
    (Float(0.001, 10.0, log=True), [0.001, 0.5, 10.0]),
    (Float(0.0, 1.0), [0.0, 0.3, 1.0]),
    (Float(-5.0, 5.0), [-5.0, 0.0, 4.9]),
    (Float(0.0, 1.0, step=0.25), [0.0, 0.5, 1.0]),
    (Int(1, 4), [1.0, 2.0, 4.0]),
    (Int(0, 100, step=10), [0.0, 50.0, 100.0]),
    (Int(1, 1024, log=True), [1.0, 2.0, 1000.0]),
    (Int(-3, 3), [-3.0, 0.0, 3.0]),
]


def _once(value: float, distribution: Distribution, seed: int, *, resample: float = 0.0) -> float:
    return perturbed({"x": value}, {"x": distribution}, resample=resample, fixed=(), seed=f"s\0{seed}")["x"]


def _is_in(value: float, distribution: Distribution) -> bool:
    if isinstance(distribution, Categorical):
        return value in range(len(distribution.choices))
    steps = 0.0 if distribution.step is None else (value - distribution.low) / distribution.step
    return distribution.low <= value <= distribution.high and abs(steps - round(steps)) < 1e-9


@pytest.mark.parametrize(("distribution", "values"), KINDS)
def test_a_parameter_moves_within_its_range_and_never_stays(distribution: Distribution, values: list[float]) -> None:
    for value in values:
        moved = [_once(value, distribution, seed) for seed in range(40)]
        assert all(_is_in(one, distribution) for one in moved)
        assert value not in moved
        assert len(set(moved)) <= 2


@pytest.mark.parametrize(("distribution", "_values"), [*KINDS, (Categorical(("a", "b", "c")), [])])
def test_a_parameter_that_is_drawn_anew_covers_its_range(distribution: Distribution, _values: list[float]) -> None:
    drawn = [_once(1.0, distribution, seed, resample=1.0) for seed in range(200)]
    assert all(_is_in(one, distribution) for one in drawn)
    assert len(set(drawn)) >= 3


def test_factors_are_those_of_the_paper() -> None:
    assert {_once(0.5, Float(0.0, 1.0), seed) for seed in range(40)} == {0.5 * 0.8, 0.5 * 1.2}


def test_a_choice_stays_unless_it_is_drawn_anew_and_fixed_ones_always_do() -> None:
    choices = Categorical(("sgd", "adam", "lion"))
    assert {_once(1.0, choices, seed) for seed in range(40)} == {1.0}
    both = {"layers": 2.0, "lr": 0.5}
    kinds: dict[str, Distribution] = {"layers": Int(1, 8), "lr": Float(0.0, 1.0)}
    found = perturbed(both, kinds, resample=1.0, fixed=("layers",), seed="s\0001")
    assert found["layers"] == 2.0
    assert found["lr"] != 0.5


def test_a_range_of_one_value_keeps_it() -> None:
    end = 1.7e308  # of the doubles: 1.2 times that is infinite
    ends = Float(end, end), Float(end, end, step=1.0)
    for distribution in (Float(0.5, 0.5), Int(1, 1), Float(1.0, 1.0, log=True), *ends):
        for resample in (0.0, 1.0):
            value = float(distribution.low)
            assert _once(value, distribution, 1, resample=resample) == value


def test_draws_follow_from_their_seed_alone() -> None:
    assert fraction("study\0007", "lr", "value") == 0.8778588075186586
    assert _once(0.0, Float(1e-5, 1.0, log=True), 3, resample=1.0) == 0.0010164033831417906
