"""A link to Postgres that is cut, dropped, slow, or shared with a forked child."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import optuna
import psycopg2
import psycopg2.extras
import pytest

import hopaas_p2p
from hopaas_p2p.errors import StoreUnreachable
from hopaas_p2p.stores.postgres.store import PostgresStore
from hopaas_p2p.testing.commits import append_many, everything, outgoing
from tests.support.latency import Cut, Relay
from tests.support.postgres import Server
from tests.support.postgres_fixtures import OWNER
from tests.support.processes import until

optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture
def store(far_url: str) -> Iterator[PostgresStore]:
    store = PostgresStore(far_url)
    yield store
    store.close()


@pytest.mark.parametrize("where", ["request", "reply", "mid-reply"])
def test_a_link_that_is_cut_loses_nothing_and_doubles_nothing(store: PostgresStore, relay: Relay, where: Cut) -> None:
    log = store.log("u")
    since = log.exchange(outgoing("first", 5000), 0).entries[-1].lsn
    relay.cut(where)
    receipt = log.exchange(outgoing("second", 5000), since)
    assert relay.cuts == 1
    assert [entry.payload for entry in receipt.entries] == [outgoing("second", 5000).payload]
    assert len(everything(log)) == 2


def test_a_link_that_is_cut_at_every_exchange_loses_nothing(far_url: str, relay: Relay) -> None:
    storage = hopaas_p2p.open_storage(far_url)
    study = optuna.create_study(storage=storage, sampler=optuna.samplers.RandomSampler())
    cuts: Iterator[Cut] = iter(["reply", "request", "mid-reply"] * 4)

    def objective(trial: optuna.Trial) -> float:
        relay.cut(next(cuts))
        return trial.suggest_float("x", 0, 1)

    study.optimize(objective, n_trials=12)
    assert relay.cuts >= 11
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 12
    storage.close()


def test_a_connection_that_was_dropped_while_idle_is_replaced_without_a_word(
    store: PostgresStore, relay: Relay
) -> None:
    log = store.log("u")
    for number in range(5):
        append_many(log, f"n{number}", 1, number)
        relay.drop()
    assert len(everything(log)) == 5
    assert relay.connections == 6


def test_a_session_that_the_administrator_ended_is_replaced(store: PostgresStore, postgres: Server) -> None:
    log = store.log("u")
    append_many(log, "a", 1)
    postgres.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'hopaas-p2p'")
    append_many(log, "b", 1, 1)
    assert len(everything(log)) == 2


def test_one_process_has_one_connection(far_url: str, relay: Relay) -> None:
    storage = hopaas_p2p.open_storage(far_url)
    study = optuna.create_study(storage=storage, sampler=optuna.samplers.RandomSampler())
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=20, n_jobs=4)
    assert relay.connections == 1
    storage.close()


def test_a_reader_goes_on_with_what_it_knows_while_the_link_is_down(far_url: str, relay: Relay) -> None:
    storage = hopaas_p2p.open_storage(far_url)
    study = optuna.create_study(storage=storage)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    relay.refuse()
    storage.peer.logs[next(iter(storage.peer.logs))].pulled_at = -1e9
    assert len(study.trials) == 3
    relay.refuse(False)
    storage.close()


def test_a_store_that_was_never_reached_says_so(far_url: str, relay: Relay) -> None:
    relay.refuse()
    store = PostgresStore(far_url)
    with pytest.raises(StoreUnreachable, match="Nothing acknowledged is lost"):
        store.catalog().exchange(None, 0)


def test_a_peer_that_does_not_read_its_reply_holds_up_nobody(postgres: Server, postgres_url: str) -> None:
    """Its commit waits for a lock and gives it back before much of the reply has to cross the network."""
    near = PostgresStore(postgres_url)
    for lsn in range(16):
        near.log("u").exchange(outgoing(f"large-{lsn}", 1 << 18), lsn)
    with contextlib.closing(psycopg2.connect(postgres_url, async_=True)) as stalled, Relay(postgres.port) as relay:
        psycopg2.extras.wait_select(stalled)
        cursor = stalled.cursor()
        cursor.execute("SELECT * FROM hopaas.exchange_v1('u', 0, 'stalled', 'x', NULL, NULL, NULL, 4194304)")
        until(lambda: postgres.execute("SELECT max(lsn) FROM hopaas.commits", database="store") == [(17,)])
        store = PostgresStore(postgres.url("store", user=OWNER, port=relay.port))
        receipt = store.log("u").exchange(outgoing("mine"), 0)
        assert receipt.more
        assert relay.received < 4 / 3 * (3 << 17) + 10_000, "128 KiB, and one commit"
        entries = everything(near.log("u"))
        assert [entry.payload for entry in entries[16:]] == [b"x", outgoing("mine").payload]
        store.close()
    near.close()


def test_a_fork_leaves_its_parents_connection_alone(postgres: Server, postgres_url: str) -> None:
    storage = hopaas_p2p.open_storage(postgres_url)
    study = optuna.create_study(storage=storage, sampler=optuna.samplers.RandomSampler())
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=5)
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=5)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    storage.peer.pull(next(iter(storage.peer.logs.values())))
    assert [trial.number for trial in study.trials] == list(range(26))
    assert all(trial.state.name == "COMPLETE" for trial in study.trials)
    storage.close()
