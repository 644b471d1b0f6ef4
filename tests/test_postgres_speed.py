"""What a peer costs on the wire, counted exactly: round trips, flights and bytes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import optuna
import pytest

import hopaas_p2p
from hopaas_p2p.stores.postgres import PostgresStore
from hopaas_p2p.testing.latency import Relay
from hopaas_p2p.testing.postgres import Server
from tests.postgres_fixtures import OWNER
from tests.processes import until

TRIALS = 10


@pytest.fixture
def relay(postgres: Server) -> Iterator[Relay]:
    with Relay(postgres.port) as relay:
        yield relay


@pytest.fixture
def far_url(postgres: Server, postgres_url: str, relay: Relay) -> str:
    return postgres.url("store", user=OWNER, port=relay.port)


def objective(trial: optuna.Trial) -> float:
    """A trial of 5 parameters and 10 reports."""
    xs = [trial.suggest_float(f"x{i}", 0, 1) for i in range(5)]
    for step in range(10):
        trial.report(sum(xs) / (step + 1), step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return sum(xs)


def test_a_trial_costs_two_exchanges_with_optunas_own_optimize(far_url: str, relay: Relay) -> None:
    storage = hopaas_p2p.open_storage(far_url)
    study = optuna.create_study(storage=storage, pruner=optuna.pruners.MedianPruner())
    study.optimize(objective, n_trials=2)
    relay.reset()
    study.optimize(objective, n_trials=TRIALS)
    assert 4 * TRIALS <= relay.flights <= 5 * TRIALS
    assert relay.connections == 0
    storage.close()


def test_a_trial_costs_one_exchange_with_ours(far_url: str, relay: Relay) -> None:
    storage = hopaas_p2p.open_storage(far_url)
    study = hopaas_p2p.open_study(storage, "s")
    study.optimize(objective, n_trials=2)
    relay.reset()
    study.optimize(objective, n_trials=TRIALS)
    assert 2 * TRIALS <= relay.flights <= 3 * TRIALS
    storage.close()


def test_a_trial_waits_for_the_store_twice_at_most_or_once_with_ours(
    far_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls of the thread that trains, counted: their time on a long link is in `make bench`."""
    waits = _waits(monkeypatch)
    storage = hopaas_p2p.open_storage(far_url)
    study = optuna.create_study(storage=storage, study_name="plain", sampler=optuna.samplers.RandomSampler())
    ours = hopaas_p2p.open_study(storage, "ours", sampler=optuna.samplers.RandomSampler())
    for one, most in ((study, 2.3), (ours, 1.3)):
        one.optimize(objective, n_trials=1)
        waits.clear()
        one.optimize(objective, n_trials=TRIALS)
        assert len(waits) / TRIALS <= most, waits
    storage.close()


def _waits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What this thread asks of the store."""
    mine, call, waits = threading.get_ident(), PostgresStore.call, list[str]()

    def counted(store: PostgresStore, name: str, **parameters: object) -> list[object]:
        if threading.get_ident() == mine:
            waits.append(name)
        return call(store, name, **parameters)

    monkeypatch.setattr(PostgresStore, "call", counted)
    return waits


def test_joining_a_study_takes_a_handful_of_round_trips(far_url: str, postgres_url: str, relay: Relay) -> None:
    storage = hopaas_p2p.open_storage(postgres_url)
    study = optuna.create_study(storage=storage, study_name="s", sampler=optuna.samplers.RandomSampler())
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=300)
    part = storage.part(study._study_id)
    until(lambda: part.replica.log.newest_snapshot() is not None)
    relay.reset()
    other = hopaas_p2p.open_storage(far_url)
    assert len(optuna.load_study(study_name="s", storage=other).trials) == 300
    assert relay.connections == 1
    assert relay.round_trips + relay.connections <= 9, "12 with the three of TLS"
    for one in (storage, other):
        one.close()


def test_an_idle_peer_says_one_thing_every_third_of_its_ttl(far_url: str, relay: Relay) -> None:
    ttl = 1.5
    storage = hopaas_p2p.open_storage(far_url, lease_ttl=ttl)
    study = optuna.create_study(storage=storage)
    study.ask()
    storage.flush()
    membership = storage.part(study._study_id).membership
    membership.read_at = -1e9  # nobody looks
    relay.reset()
    began = time.monotonic()
    until(lambda: relay.flights >= 8)
    elapsed = time.monotonic() - began
    assert relay.round_trips <= elapsed / (ttl / 3) + 2.5, "and what was under way"
    storage.close()


def test_a_readers_bytes_are_in_proportion_to_what_is_new(far_url: str, postgres_url: str, relay: Relay) -> None:
    writer = hopaas_p2p.open_storage(postgres_url)
    study = optuna.create_study(storage=writer, study_name="s", sampler=optuna.samplers.RandomSampler())
    reader = hopaas_p2p.open_storage(far_url)
    seen = optuna.load_study(study_name="s", storage=reader)
    assert seen.trials == []

    def cost(trials: int) -> int:
        relay.reset()
        before = len(seen.trials)
        study.optimize(objective, n_trials=trials)
        until(lambda: len(seen.trials) == before + trials)
        return relay.received

    cost(5)
    small, large = cost(20), cost(100)
    assert 3 < large / small < 7
    assert large / 100 < 3000, "bytes a trial of 5 parameters and 10 reports"
    for one in (writer, reader):
        one.close()
