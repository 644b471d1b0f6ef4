"""The schema of a store: made, brought up to date, missing, of another version."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable
from typing import Any

import optuna
import pytest

import hopaas_p2p
from hopaas_p2p import access
from hopaas_p2p.core import snapshot
from hopaas_p2p.errors import ConfigurationError, HopaasError
from hopaas_p2p.stores.postgres import schema
from hopaas_p2p.stores.postgres.store import PostgresStore
from hopaas_p2p.testing.commits import outgoing
from tests.support.postgres import Server
from tests.support.postgres_fixtures import MAJORS, missing

optuna.logging.set_verbosity(optuna.logging.WARNING)


def _initialise(url: str, barrier: Any, results: Any) -> None:
    barrier.wait()
    results.put(access.initialise(url))


def test_two_may_initialise_at_once(any_postgres: Server, new_database: Callable[[Server], str]) -> None:
    url = any_postgres.url(new_database(any_postgres), user="dba")
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    both = [context.Process(target=_initialise, args=(url, barrier, results)) for _ in range(2)]
    for one in both:
        one.start()
    assert sorted(results.get(timeout=30) for _ in both) == [0, schema.SCHEMA_VERSION]
    for one in both:
        one.join()
        assert one.exitcode == 0
    assert access.initialise(url) == schema.SCHEMA_VERSION, "and it may be repeated"


def test_a_login_that_may_not_create_roles_gets_a_store_for_itself(
    any_postgres: Server, new_database: Callable[[Server], str]
) -> None:
    database = new_database(any_postgres)
    any_postgres.execute("DROP ROLE IF EXISTS plain")
    any_postgres.execute("CREATE ROLE plain LOGIN PASSWORD 'p'")
    any_postgres.execute(f"ALTER DATABASE {database} OWNER TO plain")
    url = any_postgres.url(database, user="plain", password="p")
    assert access.initialise(url) == 0
    with contextlib.closing(hopaas_p2p.open_storage(url)) as storage:
        study = optuna.create_study(storage=storage)
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    with pytest.raises(ConfigurationError, match="CREATEROLE"):
        access.add_user(url, "ann")
    any_postgres.execute(f"DROP DATABASE {database} WITH (FORCE)")
    any_postgres.execute("DROP ROLE plain")


def test_a_missing_older_or_newer_schema_says_what_to_run(
    any_postgres: Server, new_database: Callable[[Server], str]
) -> None:
    database = new_database(any_postgres)
    url = any_postgres.url(database, user="dba")

    def complaint() -> str:
        with contextlib.closing(PostgresStore(url)) as store, pytest.raises(ConfigurationError) as refused:
            store.catalog().exchange(None, 0)
        return str(refused.value)

    assert "has no store yet" in complaint()
    assert "hopaas-p2p admin init" in complaint()
    with pytest.raises(ConfigurationError, match="hopaas-p2p admin init"):
        access.users(url)
    access.initialise(url)
    any_postgres.execute(
        "DROP FUNCTION hopaas.exchange_v1; UPDATE hopaas.schema_version SET version = 1", database=database
    )
    assert "of version 1" in complaint()
    assert "before the first release" in complaint(), "init refuses it"
    assert "admin init" not in complaint()
    with pytest.raises(ConfigurationError, match="before the first release"):
        access.initialise(url)
    any_postgres.execute("INSERT INTO hopaas.schema_version (version) VALUES (99)", database=database)
    assert "newer hopaas_p2p; upgrade" in complaint()
    with pytest.raises(ConfigurationError, match="newer"):
        access.initialise(url)
    any_postgres.execute(
        f"UPDATE hopaas.schema_version SET version = {schema.SCHEMA_VERSION} WHERE version = 99", database=database
    )
    assert access.initialise(url) == schema.SCHEMA_VERSION
    with contextlib.closing(PostgresStore(url)) as store:
        assert store.catalog().exchange(None, 0).entries == []


def test_an_older_schema_is_brought_forward_step_by_step_and_keeps_what_it_holds(
    any_postgres: Server, new_database: Callable[[Server], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    database = new_database(any_postgres)
    url = any_postgres.url(database, user="dba")
    access.initialise(url)
    with contextlib.closing(PostgresStore(url)) as store:
        store.log("u").exchange(outgoing("kept"), 0)
    (migrations, functions), now = schema.script(), schema.SCHEMA_VERSION

    def release(**steps: str) -> None:
        added = {now + count: sql for count, sql in enumerate(steps.values(), 1)}
        monkeypatch.setattr(schema, "script", lambda: ({**migrations, **added}, functions))
        monkeypatch.setattr(schema, "SCHEMA_VERSION", now + len(steps))

    def versions() -> list[int]:
        rows = any_postgres.execute("SELECT version FROM hopaas.schema_version ORDER BY version", database=database)
        return [row[0] for row in rows]

    widen = "ALTER TABLE hopaas.logs ADD COLUMN colour text"
    release(widen=widen, broken="SELECT 1 / 0")
    with pytest.raises(ConfigurationError, match="division by zero"):
        access.initialise(url)
    assert versions() == [now], "all of it or nothing"
    release(widen=widen, paint="UPDATE hopaas.logs SET colour = '100% red'")
    assert access.initialise(url) == now
    assert access.initialise(url) == now + 2, "and each step only once"
    assert versions() == [now, now + 1, now + 2]
    assert any_postgres.execute("SELECT DISTINCT colour FROM hopaas.logs", database=database) == [("100% red",)]
    with contextlib.closing(PostgresStore(url)) as store:
        assert [entry.payload for entry in store.log("u").exchange(None, 0).entries] == [outgoing("kept").payload]


def test_nobody_can_put_other_bytes_under_the_name_of_a_block(postgres_url: str) -> None:
    with contextlib.closing(PostgresStore(postgres_url)) as store:
        store.log("study").exchange(outgoing("first"), 0)
        with pytest.raises(HopaasError, match="not the block"):
            store.call("put_block", log="study", name=snapshot.block_name("00000000", b"one"), data=b"other")


def test_two_versions_of_the_server_are_tested() -> None:
    if len(MAJORS) < 2:
        missing("a second version of Postgres, beside the wheel's")
