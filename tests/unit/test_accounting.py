"""Totals of a ledger are within a hundredth of the truth, whatever happens to the jobs."""

from __future__ import annotations

from collections import Counter

import pytest

from hopaas_p2p.core.admission import finished
from hopaas_p2p.core.records import Budget
from tests.support.accounting import Accounting, true_costs


@pytest.mark.parametrize("seed", [1, 2])
def test_totals_are_within_a_hundredth_of_the_truth_under_kills_and_resumes(seed: int) -> None:
    world = Accounting(seed, jobs=6, budget=Budget(gpu_hours=6.0))
    state = world.run(kill=1 / 1000, until=40_000.0)
    assert state.ledger.reached == "6 GPU hours are spent"
    assert world.kills >= 5
    truth = true_costs(world.leases, state)
    told: dict[str, Counter[tuple[str, str]]] = {name: Counter() for name in truth}
    for (site, _, outcome), cost in state.ledger.accounts.items():
        where = site, outcome
        told["seconds"][where] += cost.time / 1e6
        told["gpu_seconds"][where] += cost.gpu / 1e6
        told["joules"][where] += cost.energy / 1e3
        told["epochs"][where] += cost.epochs
    for amount in ("seconds", "gpu_seconds", "joules"):
        total = sum(truth[amount].values())
        assert sum(told[amount].values()) == pytest.approx(total, rel=0.01), amount
        for where in truth[amount].keys() | told[amount].keys():
            assert told[amount][where] == pytest.approx(truth[amount][where], abs=0.01 * total), (amount, where)
    for where, epochs in truth["epochs"].items():
        unsent = world.kills if where[1] == "lost" else 0
        assert epochs - unsent <= told["epochs"][where] <= epochs, where


def test_what_runs_at_the_limit_is_all_that_is_spent_beyond_it() -> None:
    world = Accounting(7, jobs=6, budget=Budget(gpu_hours=3.0))
    state = world.run(kill=0.0, until=40_000.0)
    hours = sum(lease.gpu_seconds for lease in world.leases) / 3600
    at_once = 3 * (4 + 1)  # GPUs of six jobs
    assert 3.0 <= hours <= 3.0 + at_once * 60 / 3600  # who runs hears of it with its next report, 40 s later at most
    assert finished(state)
