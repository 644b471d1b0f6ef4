"""What has been tried of a search space, and what is near."""

from __future__ import annotations

import itertools

import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from hopaas_p2p.core.records import Categorical
from hopaas_p2p.core.state import COMPLETE, Trial
from hopaas_p2p.search.repeats import Tried

GRID: dict[str, BaseDistribution] = {
    "n": IntDistribution(1, 7, step=2),
    "x": FloatDistribution(0.0, 0.3, step=0.1),
    "c": CategoricalDistribution(["a", "b", "c"]),
    "one": IntDistribution(5, 5),
}
POINTS = [
    {"n": float(n), "x": x, "c": float(c), "one": 5.0}
    for n, x, c in itertools.product((1, 3, 5, 7), (0.0, 0.1, 0.2, 0.30000000000000004), range(3))
]


def trial(number: int, params: dict[str, float]) -> Trial:
    return Trial(number, COMPLETE, params=params)


@pytest.mark.parametrize(
    ("space", "size"),
    [
        (GRID, 48),
        ({"x": FloatDistribution(0, 1)}, None),
        ({"x": FloatDistribution(1, 1)}, 1),
        ({"n": IntDistribution(1, 64, log=True)}, 64),
        ({"n": IntDistribution(0, 1 << 50)}, None),  # too many to be used up
    ],
)
def test_a_space_with_an_end_is_counted(space: dict[str, BaseDistribution], size: int | None) -> None:
    assert Tried(space).size == size


def test_the_same_parameters_are_found_whatever_their_order() -> None:
    tried = Tried(GRID)
    tried.note([trial(4, dict(reversed(POINTS[7].items()))), trial(5, {"n": 1.0}), trial(6, {})])
    assert tried.number_of(POINTS[7]) == 4
    assert tried.number_of(POINTS[8]) is None


@pytest.mark.parametrize("x", [0.05, 0.199, -0.1, 0.4, float("inf"), float("nan")])
def test_what_is_outside_the_space_is_none_of_its_configurations(x: float) -> None:
    space: dict[str, BaseDistribution] = {"x": GRID["x"], "c": GRID["c"]}
    tried = Tried(space)
    tried.note([trial(0, {"x": x, "c": 0.0}), trial(1, {"x": 0.1, "c": 3.0})])
    tried.note([Trial(2, COMPLETE, params={"x": 0.1, "c": 0.0}, dists={"c": Categorical(("b", "a", "c"))})])
    tried.reserve({"x": x, "c": 0.0}, 3)
    points = [{"x": place * 0.1, "c": float(choice)} for place, choice in itertools.product(range(4), range(3))]
    assert [tried.number_of(point) for point in points] == [None] * 12
    tried.note([trial(number, point) for number, point in enumerate(points[1:])])
    assert not tried.used_up
    assert tried.number_of({"x": 0.1, "c": 3.0}) == 1, "it is known as what it is"
    assert tried.neighbour({"x": 0.2, "c": 2.0}) == points[0]


def test_a_neighbour_differs_in_one_parameter_by_one_step_while_there_is_such_a_one() -> None:
    tried = Tried(GRID)
    tried.note([trial(0, POINTS[0])])
    near = tried.neighbour(POINTS[0])
    assert near is not None
    differ = [name for name in GRID if near[name] != POINTS[0][name]]
    assert len(differ) == 1
    assert differ[0] != "one"


def test_neighbour_after_neighbour_the_whole_space_is_tried_once() -> None:
    tried = Tried(GRID)
    here: dict[str, float] | None = POINTS[20]
    seen = []
    for number in range(48):
        assert here is not None
        assert not tried.used_up
        assert here in POINTS
        seen.append(tuple(here.values()))
        tried.note([trial(number, here)])
        here = tried.neighbour(POINTS[20])
    assert len(set(seen)) == 48
    assert here is None
    assert tried.used_up


@pytest.mark.parametrize("log", [True, False])
def test_where_there_is_no_grid_a_neighbour_is_near_and_in_the_range(log: bool) -> None:
    tried = Tried({"x": FloatDistribution(1e-3, 1.0, log=log)})
    for edge in (1e-3, 1.0):
        tried.note([trial(0, {"x": edge})])
        near = tried.neighbour({"x": edge})
        assert near is not None
        assert 1e-3 <= near["x"] <= 1.0
        assert near["x"] != edge
        assert abs(near["x"] - edge) < 0.2
