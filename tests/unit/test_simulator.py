"""Campaigns on a made-up clock with real peers: every promise, after every run, from seeds that show it again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hopaas_p2p.core.state import State
from tests.support import simulator
from tests.support.simulator import CALM, Broken, Weather, simulate

_SECONDS = 60.0 if os.environ.get("HOPAAS_TEST_REQUIRE") == "all" else 15.0
_TEMPEST = Weather(lose_request=0.1, lose_reply=0.1, cut_off=0.01, kill=0.02, freeze=0.02, preempt=0.01, stop=0.01)


def test_every_promise_holds_in_one_storm_after_another(record_property: Callable[[str, object], None]) -> None:
    end = time.monotonic() + _SECONDS
    runs = operations = faults = 0
    while time.monotonic() < end or runs < 20:
        result = simulate(seed=runs, weather=_TEMPEST if runs % 3 == 0 else simulator.STORMY)
        runs, operations, faults = runs + 1, operations + result.operations, faults + result.faults
    record_property(
        "summary", f"simulator: {runs} campaigns, {operations:,} operations, {faults:,} faults, no promise broken"
    )
    assert faults > 20 * runs


def test_two_hundred_peers_share_one_campaign() -> None:
    result = simulate(seed=1, peers=200, budget=400, until=60.0)
    assert result.reclaims > 0
    assert result.operations > 5000


def test_a_seed_replays_a_run_exactly() -> None:
    assert simulate(seed=3, peers=10, budget=20) == simulate(seed=3, peers=10, budget=20)


def test_nothing_is_reclaimed_in_calm_weather() -> None:
    result = simulate(seed=5, peers=10, budget=40, weather=CALM)
    assert (result.faults, result.reclaims, result.late, result.trials) == (0, 0, 0, 40)


def test_a_broken_promise_is_found_and_names_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def two_too_many(state: State, _trial: int | None = None) -> bool:
        return state.budget is None or state.used() < state.budget + 2

    monkeypatch.setattr(State, "has_room", two_too_many)

    with pytest.raises(Broken, match=r"simulate\(seed=4, .*22 trials counted, with a budget of 20"):
        simulate(seed=4, peers=10, budget=20, weather=CALM)


@pytest.mark.soak
def test_a_thousand_peers_share_one_campaign(tmp_path: Path) -> None:
    assert simulate(seed=1, peers=1000, budget=1500, until=60.0).trials >= 1500
