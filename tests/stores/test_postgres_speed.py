"""What a peer costs on the wire, counted exactly: round trips, flights and bytes. No clock decides anything here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import optuna
import pytest

import hopaas_p2p
from hopaas_p2p.core import codec
from hopaas_p2p.core.records import Commit, TrialCreate
from hopaas_p2p.peer.peer import Peer
from hopaas_p2p.stores.base import Outgoing
from hopaas_p2p.stores.postgres.store import PostgresStore
from tests.support.exchanges import waits_of_this_thread
from tests.support.latency import Relay
from tests.support.objectives import five_parameters as objective
from tests.support.postgres import Server
from tests.support.processes import until
from tests.support.scribe import defined
from tests.support.ticking import tick

TRIALS: Final = 10
_NEVER: Final = 1e6  # seconds


@pytest.fixture
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Options of a storage whose background thread has nothing to do, however slow the machine is."""
    monkeypatch.setattr(PostgresStore, "freshness", _NEVER)
    return {"linger": _NEVER, "lease_ttl": _NEVER}


def test_a_trial_costs_two_exchanges_with_optunas_own_optimize(
    far_url: str, relay: Relay, undisturbed: dict[str, Any]
) -> None:
    storage = hopaas_p2p.open_storage(far_url, **undisturbed)
    study = optuna.create_study(storage=storage, pruner=optuna.pruners.MedianPruner())
    study.optimize(objective, n_trials=2)
    relay.reset()
    study.optimize(objective, n_trials=TRIALS)
    assert relay.flights == 4 * TRIALS
    assert relay.connections == 0
    storage.close()


def test_a_trial_costs_one_exchange_with_ours(far_url: str, relay: Relay, undisturbed: dict[str, Any]) -> None:
    storage = hopaas_p2p.open_storage(far_url, **undisturbed)
    study = hopaas_p2p.open_study(storage, "s")
    study.optimize(objective, n_trials=2)
    relay.reset()
    study.optimize(objective, n_trials=TRIALS)
    assert relay.flights == 2 * TRIALS + 2, "and one to begin with"
    storage.close()


@pytest.mark.parametrize("reports", [0, 10])
def test_the_server_writes_few_bytes_of_wal_for_a_trial_however_many_there_are(
    own_server: Callable[..., Server], undisturbed: dict[str, Any], reports: int
) -> None:
    """Three parameters, and so many reports; the server writes no full pages here, and nothing for anybody else."""
    postgres = own_server(autovacuum="off")
    storage = hopaas_p2p.open_storage(postgres.url(), **undisturbed)
    space = {"x": hopaas_p2p.Float(0, 1), "rate": hopaas_p2p.Float(1e-5, 1, log=True), "layers": hopaas_p2p.Int(1, 9)}
    study = hopaas_p2p.open_study(storage, "s", space=space, sampler=optuna.samplers.RandomSampler(seed=1))

    def train(trial: hopaas_p2p.Trial) -> float:
        for step in range(reports):
            trial.report(trial.params["x"] / (step + 1), step)
        return float(trial.params["x"])

    def written(trials: int) -> float:
        ((before,),) = postgres.execute("SELECT pg_current_wal_insert_lsn()::text")
        study.optimize(train, n_trials=trials)
        ((size,),) = postgres.execute("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %s)::bigint", before)
        return float(size) / trials

    written(20)
    assert written(200) <= 700
    storage.close()


def test_the_thread_that_trains_waits_for_these_exchanges_and_for_no_other(
    far_url: str, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """How long that is on a long link is in `make bench`."""
    waits = waits_of_this_thread(monkeypatch)
    storage = hopaas_p2p.open_storage(far_url, **undisturbed)
    study = optuna.create_study(storage=storage, study_name="plain", sampler=optuna.samplers.RandomSampler())
    ours = hopaas_p2p.open_study(storage, "ours", sampler=optuna.samplers.RandomSampler())
    for one, expected in ((study, 2 * TRIALS), (ours, TRIALS + 1)):
        one.optimize(objective, n_trials=1)
        waits.clear()
        one.optimize(objective, n_trials=TRIALS)
        assert len(waits) == expected
    storage.close()


def test_joining_a_study_takes_a_handful_of_round_trips(far_url: str, postgres_url: str, relay: Relay) -> None:
    storage = hopaas_p2p.open_storage(postgres_url)
    study = optuna.create_study(storage=storage, study_name="s", sampler=optuna.samplers.RandomSampler())
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=300)
    part = storage.handle(study._study_id)
    until(lambda: part.log.log.newest_snapshot() is not None)
    relay.reset()
    other = hopaas_p2p.open_storage(far_url)
    assert len(optuna.load_study(study_name="s", storage=other).trials) == 300
    assert relay.connections == 1
    assert relay.round_trips + relay.connections <= 9, "12 with the three of TLS"
    for one in (storage, other):
        one.close()


class _Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_an_idle_peer_makes_one_exchange_every_third_of_its_ttl_and_says_nothing_else(
    far_url: str, relay: Relay
) -> None:
    ttl, rounds, clock = 12.0, 100, _Clock()
    store = PostgresStore(far_url)
    founding = Commit("founder", 1, "founder", 0, (defined(ttl=ttl),))
    store.log("u").exchange(Outgoing("f", codec.encode(founding)), 0)
    peer = Peer(store, clock=clock, threaded=False, describe=dict)
    driver = peer.log("u")
    peer.commit(driver, TrialCreate())  # it runs a trial, and reports nothing
    relay.reset()
    began = clock.now
    while clock.now < began + rounds * ttl:
        pause = tick(peer)
        clock.now += pause
    assert 2 * rounds <= relay.round_trips <= 3 * rounds
    assert peer.lease_valid(driver, peer.uuid)
    peer.close()


def _append(log: Any, count: int, since: int) -> None:
    for lsn in range(since, since + count):
        log.exchange(Outgoing(f"n{lsn}", b"x" * 500), lsn)


def test_what_a_reader_pulls_is_in_proportion_to_what_is_new_and_not_to_what_there_is(
    far_url: str, postgres_url: str, relay: Relay
) -> None:
    near, far = PostgresStore(postgres_url), PostgresStore(far_url)
    log, seen = near.log("u"), far.log("u")

    def cost(since: int) -> tuple[int, int, float]:
        relay.reset()
        seen.exchange(None, since)
        return relay.sent, relay.received, relay.round_trips

    _append(log, 100, 0)
    cost(0)  # connects
    short = cost(100)
    _append(log, 300, 100)
    assert cost(400) == short, "nothing new is as cheap in a long log as in a short one"
    assert short[2] == 1
    (_, hundred, _), (_, two, _), (_, three, trips) = cost(300), cost(200), cost(100)
    assert three - two == pytest.approx(two - hundred, rel=0.001), "a sum has as many digits as it has"
    assert trips == 1
    assert (two - hundred) / 100 < 500 * 4 / 3 + 100, "bytes a commit of 500"
    for store in (near, far):
        store.close()
