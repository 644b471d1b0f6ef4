"""The virtual clock of the benchmark of search: what a peer knows when it asks."""

from __future__ import annotations

from typing import Any

import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from tests.benchmarks.search_clock import Recorded, Table, search

SPACE: dict[str, BaseDistribution] = {"x": IntDistribution(0, 5)}
SECONDS = (3.0, 5.0, 1.0, 2.0, 4.0, 9.0)
TABLE = Table(SPACE, {(x,): Recorded(10.0 - x, SECONDS[x]) for x in range(6)})


class Watching(optuna.samplers.BaseSampler):
    """Goes through 0, 1, 2, …, 0, 1, … and notes what it is shown."""

    def __init__(self) -> None:
        self.seen: list[tuple[list[int], list[int]]] = []  # told, running

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return SPACE

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: Any) -> dict[str, Any]:
        others = [one for one in study.get_trials(deepcopy=False) if one.number != trial.number]
        told = [one.params["x"] for one in others if one.state == TrialState.COMPLETE]
        running = [one.params["x"] for one in others if one.state == TrialState.RUNNING]
        self.seen.append((told, running))
        return {"x": trial.number % 6}

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, name: str, one: BaseDistribution) -> Any:
        raise AssertionError(name)


def test_a_peer_sees_what_was_told_by_then_and_the_parameters_of_what_runs() -> None:
    sampler = Watching()
    done = search(TABLE, sampler, peers=2, evaluations=6)
    assert sampler.seen == [
        ([], []),  # both begin at once, one after the other
        ([], [0]),
        ([0], [1]),  # at 3 s the first one ends; 2 takes a second
        ([0, 2], [1]),  # at 4 s
        ([0, 1, 2], [3]),  # at 5 s
        ([0, 1, 2, 3], [4]),  # at 6 s
    ]
    assert [(one.at, one.peer, one.configuration) for one in done.told] == [
        (3.0, 0, (0,)),
        (4.0, 0, (2,)),
        (5.0, 1, (1,)),
        (6.0, 0, (3,)),
        (9.0, 1, (4,)),
        (15.0, 0, (5,)),
    ]


def test_what_ends_at_one_instant_is_told_before_anybody_asks() -> None:
    table = Table(SPACE, {(x,): Recorded(float(x), 1.0) for x in range(6)})
    sampler = Watching()
    search(table, sampler, peers=3, evaluations=6)
    assert sampler.seen[3:] == [([0, 1, 2], []), ([0, 1, 2], [3]), ([0, 1, 2], [3, 4])]


def test_evaluations_are_counted_as_they_end_and_repeats_as_they_are_asked() -> None:
    done = search(TABLE, Watching(), peers=2, evaluations=8)
    assert len(done.proposed) == len(done.told) == 8
    assert done.repeated == 0.25
    assert (done.first(9.0), done.first(8.0), done.first(0.0)) == (2, 2, None)
    assert (TABLE.best(0.5), TABLE.best(0.001)) == (7.0, 5.0)
