"""A Postgres server that is killed under its peers, or replaced by its standby."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

from hopaas_p2p import access
from hopaas_p2p.errors import ConfigurationError, StoreUnreachable
from hopaas_p2p.stores.postgres.store import PostgresStore
from hopaas_p2p.testing.commits import append_many, everything, outgoing
from tests.support.peers import Peers, check
from tests.support.postgres import Server, find_binaries
from tests.support.postgres_fixtures import MAJORS, missing, takes
from tests.support.processes import until

optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.mark.parametrize("major", MAJORS)
def test_a_server_that_is_killed_under_eight_peers_loses_nothing(tmp_path: Path, major: int) -> None:
    if major not in find_binaries():
        missing(f"Postgres {major}")
    with Server(find_binaries()[major]) as server:
        access.initialise(server.url())
        peers = Peers(server.url(), tmp_path, 8)
        try:
            until(lambda: len(peers.acknowledged()) > 40, 60)
            server.kill()
            server.start()
            before = len(peers.acknowledged())
            until(lambda: len(peers.acknowledged()) > before + 100, 60)
            peers.finish()
        finally:
            peers.kill()
        state = check(server.url(), peers.acknowledged())
        assert not state.running, "everybody lives, so no trial is left behind"


def test_peers_that_are_killed_leave_nothing_but_trials_to_take_over(any_postgres_url: str, tmp_path: Path) -> None:
    chooser = random.Random(7)
    peers = Peers(any_postgres_url, tmp_path, 8, lease_ttl=2.0)
    try:
        for _ in range(8):
            before = len(peers.acknowledged())
            until(lambda before=before: len(peers.acknowledged()) > before + 10, 60)
            peers.replace_one(chooser)
        at_the_last_kill = set(check(any_postgres_url, peers.acknowledged()).running)
        until(lambda: not at_the_last_kill & set(check(any_postgres_url, {}).running), 60)
        peers.finish()
    finally:
        peers.kill()
    state = check(any_postgres_url, peers.acknowledged())
    left = [trial.number for trial in state.trials if trial.number in state.running]
    assert not left, "the trials of the killed were taken over"


def test_a_fail_over_to_a_standby_loses_nothing(own_server: Callable[..., Server]) -> None:
    primary = own_server()
    standby = primary.standby()
    try:
        standby.start()
        primary.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        primary.execute("SELECT pg_reload_conf()")
        with pytest.raises(ConfigurationError, match="read-only replica"):
            PostgresStore(standby.url()).log("u").exchange(outgoing("x"), 0)
        hosts = f"host=127.0.0.1:{primary.port}&host=127.0.0.1:{standby.port}"
        login = primary.url().partition("@")[0]
        store = PostgresStore(f"{login}@/postgres?{hosts}&target_session_attrs=read-write")
        log = store.log("u")
        append_many(log, "before", 3)
        primary.kill()
        with pytest.raises(StoreUnreachable):
            log.exchange(outgoing("after-0"), 3)
        standby.execute("ALTER SYSTEM SET synchronous_standby_names = ''")
        standby.execute("SELECT pg_promote()")
        until(lambda: takes(log, outgoing("after-0"), 3))
        assert [entry.payload for entry in everything(log)] == [
            outgoing(name).payload for name in ("before-0", "before-1", "before-2", "after-0")
        ]
        store.close()
    finally:
        standby.stop()
