"""What an ask reads of all trials is kept up to date, and says what a look at all of them would say."""

from __future__ import annotations

import random

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from hopaas_p2p.search.axes import SortedRows
from hopaas_p2p.search.known import KnownTrials, best_rows

UNIT = FloatDistribution(0.0, 1.0)


def trial(value: float, *names: str) -> FrozenTrial:
    return optuna.trial.create_trial(
        params=dict.fromkeys(names, 0.5), distributions=dict.fromkeys(names, UNIT), value=value
    )


def columns_of(trials: list[FrozenTrial]) -> KnownTrials:
    columns = KnownTrials(lambda running: running.params)
    columns.refresh(trials)
    return columns


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("different", [20, 1_000_000], ids=["many equal", "all different"])
@pytest.mark.parametrize("count", [0, 1, 25, 60, 2_900])
def test_the_best_of_thousands_are_found_the_earlier_of_equals_first(
    count: int, different: int, *, maximize: bool
) -> None:
    numbers = random.Random(1)
    trials = [trial(float(numbers.randrange(different)), "x") for _ in range(3_000)]
    trials[17].values = [-np.inf if maximize else np.inf]
    trials[40] = optuna.trial.create_trial(state=TrialState.FAIL)
    finished = [row for row, one in enumerate(trials) if one.state is TrialState.COMPLETE]
    expected = sorted(finished, key=lambda row: -trials[row].values[0] if maximize else trials[row].values[0])[:count]
    assert best_rows(columns_of(trials), count, maximize=maximize).tolist() == sorted(expected)


def test_where_most_values_are_infinite_the_best_are_found_too() -> None:
    trials = [trial(float("inf") if number % 500 else float(number), "x") for number in range(3_000)]
    assert best_rows(columns_of(trials), 8, maximize=False).tolist() == [0, 1, 2, 500, 1000, 1500, 2000, 2500]


def test_which_trials_have_a_parameter_follows_the_trials() -> None:
    numbers = random.Random(2)
    columns, trials = KnownTrials(lambda running: running.params), []
    for _ in range(60):
        for _ in range(numbers.randrange(20)):
            trials.append(trial(1.0, *[name for name in "ab" if numbers.random() < 0.7]))
        columns.refresh(trials)
        for names in ("a", "b", "ab", "c"):
            expected = [all(name in one.params for name in names) for one in trials]
            assert columns.having(names).tolist() == expected
    assert len(trials) > 256  # more than there was room for at first


def test_rows_stay_in_order_while_some_come_and_go() -> None:
    numbers = random.Random(3)
    values = np.array([numbers.randrange(30) / 3 for _ in range(200)])
    kept, there = SortedRows(200), set(range(0, 200, 2))
    kept.fill(np.array(sorted(there)), values[sorted(there)])
    for _ in range(500):
        row = numbers.randrange(200)
        (kept.remove if row in there else kept.insert)(row, values[row])
        there ^= {row}
        assert set(kept.rows.tolist()) == there
        assert (kept.values == values[kept.rows]).all()
        assert (np.diff(kept.values) >= 0).all()
