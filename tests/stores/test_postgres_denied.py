"""What is denied to a peer on a real server, whatever it says."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import psycopg2
import pytest

from hopaas_p2p import access
from hopaas_p2p.core import codec
from hopaas_p2p.stores.base import Beat, Outgoing, read_all
from tests.support.postgres_people import Place

optuna.logging.set_verbosity(optuna.logging.WARNING)

_TABLES = ("logs", "commits", "snapshots", "beats", "artifacts", "artifact_parts", "grants", "users")
_TABLES += ("tokens", "schema_version", "blocks", "peers")


@pytest.mark.parametrize(
    "sql",
    [
        *[
            statement.format(table)
            for table in _TABLES
            for statement in (
                "SELECT * FROM hopaas.{}",
                "INSERT INTO hopaas.{} SELECT",
                "UPDATE hopaas.{} SET ctid = ctid",
                "DELETE FROM hopaas.{}",
                "TRUNCATE hopaas.{}",
                "DO $$ BEGIN LOCK TABLE hopaas.{}; END $$",
                "ALTER TABLE hopaas.{} DISABLE TRIGGER ALL",
                "DROP TABLE hopaas.{}",
            )
        ],
        "SELECT hopaas.caller()",
        "SELECT hopaas.role_in(1, 'catalog', 'ann')",
        "SELECT hopaas.renew_beat('p', 'v', 'bob')",
        "SELECT hopaas.check_peer('p', 'bob')",
        "SELECT hopaas.end_transactions(interval '0')",
        "SET ROLE dba",
        "SET ROLE admin",
        "SET ROLE bob",
        "SET ROLE hopaas_store_owner",
        "SET SESSION AUTHORIZATION bob",
        "CREATE TABLE mine (x int)",
        "CREATE TABLE public.mine (x int)",
        "CREATE TABLE hopaas.mine (x int)",
        "CREATE TEMPORARY TABLE mine (x int)",
        "CREATE SCHEMA mine",
        "CREATE DATABASE mine",
        "CREATE ROLE mine",
        "CREATE FUNCTION public.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE OR REPLACE FUNCTION hopaas.caller() RETURNS text LANGUAGE sql AS $$ SELECT 'bob' $$",
        "CREATE VIEW public.v AS SELECT 1",
        "CREATE EXTENSION pgcrypto",
        "COPY (SELECT 1) TO PROGRAM 'true'",
        "COPY hopaas.commits TO STDOUT",
        "COPY (SELECT 1) TO '/tmp/mine'",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'dba'",
        "GRANT hopaas_store_owner TO ann",
        "ALTER ROLE ann SUPERUSER",
        "ALTER ROLE bob PASSWORD 'mine'",
        "ALTER SYSTEM SET fsync = off",
        "DO $$ BEGIN EXECUTE 'DROP TABLE hopaas.commits'; END $$",
        "SELECT lo_import('/etc/passwd')",
    ],
)
def test_denied_to_a_peer(peers_session: dict[str, Any], sql: str) -> None:
    for say in peers_session.values():
        with pytest.raises(psycopg2.Error) as refused:
            say(sql)
        assert refused.value.pgcode in ("42501", "0LP01", "0A000"), refused.value


def test_every_table_and_every_function_is_among_those(place: Place) -> None:
    """What is added to the schema later is either in these lists, or for peers to call: then it checks who calls."""
    tables = place.server.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'hopaas'", database="store")
    assert {name for (name,) in tables} == set(_TABLES)
    functions = place.server.execute(
        "SELECT proname, prosecdef, array_to_string(proconfig, ' '), has_function_privilege('hopaas_store_peers', "
        "oid, 'EXECUTE'), has_function_privilege('public', oid, 'EXECUTE') FROM pg_proc "
        "WHERE pronamespace = 'hopaas'::regnamespace",
        database="store",
    )
    assert functions
    for name, definer, settings, for_peers, for_all in functions:
        assert "search_path=pg_catalog, pg_temp" in settings, name
        assert definer == for_peers == (name.rpartition("_v")[2].isdigit()), name
        assert not for_all, name


@pytest.fixture(scope="module")
def peers_session(postgres_servers: Any) -> Iterator[dict[str, Any]]:
    """Ann's session on a server of each version, with bob beside her, and a session of the administrator open."""
    from tests.support.postgres_fixtures import MAJORS, emptied

    with contextlib.ExitStack() as stack:
        sessions = {}
        for major in MAJORS:
            server = postgres_servers.get(major)
            place = Place(server, emptied(server))
            stack.callback(place.close)
            place.token("bob")
            stack.enter_context(place.session(place.admin))
            sessions[f"postgres{major}"] = stack.enter_context(place.session(place.person("ann")))
        yield sessions


def test_nobody_speaks_for_another_user(place: Place) -> None:
    """The author is whom the server saw log in, whatever the session sets."""
    ann = place.person("ann")
    with place.session(ann) as say:
        say("SET search_path = pg_temp, public")
        with contextlib.suppress(psycopg2.Error):
            say("SET ROLE ann")  # before version 16 a member may; it changes nothing
        say("SELECT hopaas.exchange_v1('u1', 0, 'n', 'p', NULL, NULL, NULL, 1000)")
    (row,) = place.server.execute("SELECT author, role FROM hopaas.commits", database="store")
    assert row == ("ann", "owner")


@pytest.mark.parametrize("since", ["NULL", "0", "1", "-1", "-9223372036854775808"])
@pytest.mark.parametrize("total", ["NULL", "0"])
def test_no_arguments_store_a_commit_on_a_false_sum(place: Place, since: str, total: str) -> None:
    """It would end a worker's study, and the list of studies, which every user may write to, for everybody."""
    place.study(place.person("ann"))
    bob = place.person("bob")
    access.grant(place.admin, "s", "bob", "worker")
    admin = place.store(place.admin)
    logs = {"catalog": admin.catalog(), place.uuid(): admin.log(place.uuid())}
    with place.session(bob) as say:
        for uuid in logs:
            with contextlib.suppress(psycopg2.Error):
                say(f"SELECT hopaas.exchange_v1('{uuid}', {since}, 'n', 'bytes', NULL, NULL, NULL, 1000, {total})")
    for log in logs.values():
        sums = 0
        for entry in read_all(log):
            assert entry.before == sums
            sums = codec.following(sums, entry.payload)


def test_nobody_beats_for_anothers_peer(place: Place) -> None:
    ann, bob = place.store(place.person("ann")), place.store(place.person("bob"))
    ann.beat(Beat("p", "1"))
    bob.beat(Beat("p", "2"))
    assert ann.beats(["p"]) == {"p": "1"}


def test_a_token_also_expires_within_a_transaction_that_began_before(place: Place) -> None:
    token = place.token("ann")
    with place.session(place.url(token)) as say:
        say("BEGIN")
        call = "SELECT hopaas.exchange_v1('u1', 0, 'n', 'p', NULL, NULL, NULL, 1000)"
        say(call)
        place.server.execute(f"""ALTER ROLE "{token[0]}" VALID UNTIL '{datetime.datetime.now(datetime.UTC)}'""")
        with pytest.raises(psycopg2.Error, match="this token has expired"):
            say(call)
        say("ROLLBACK")


def test_nobody_takes_anothers_nonce(place: Place) -> None:
    ann, bob = place.person("ann"), place.person("bob")
    place.study(ann)
    access.grant(ann, "s", "bob", "worker")
    uuid = place.uuid()
    before = len(place.store(ann).log(uuid).exchange(None, 0).entries)
    place.store(bob).log(uuid).exchange(Outgoing("n", b"bob's"), 0)
    receipt = place.store(ann).log(uuid).exchange(Outgoing("n", b"ann's"), before)
    assert [entry.payload for entry in receipt.entries] == [b"bob's", b"ann's"]


def test_nobody_but_an_administrator_makes_a_snapshot_of_the_catalog(place: Place) -> None:
    """A false one would show a name that others know, and behind it a study of whoever made it."""
    ann = place.person("ann")
    place.study(ann)
    forge = "SELECT hopaas.put_snapshot_v1('catalog', 1, 'false', 1)"
    with place.session(ann) as say, pytest.raises(psycopg2.Error, match="takes an owner"):
        say(forge)
    with place.session(place.admin) as say:
        say(forge)


def test_nobody_uses_up_the_numbers_of_logs(place: Place) -> None:
    """An attempt that fails or is undone takes a number, too, and one login can make 2^31 of them in days."""
    ann = place.person("ann")
    place.token("bob")
    place.server.execute("SELECT setval('hopaas.logs_id_seq', 2147483647)", database="store")
    place.study(ann)
    access.grant(ann, "s", "bob", "worker")
    uuid = place.uuid()
    log = place.store(ann).log(uuid)
    log.put_block("0" * 8 + hashlib.sha256(b"b").hexdigest()[:32], b"b")
    log.put_snapshot_head(1, b"head")
    place.store(ann).artifacts().put(f"{uuid}/note", Path(__file__))
    with place.session(ann) as say:
        assert say(f"SELECT * FROM hopaas.unlock_v1('{uuid}')") == []
    for table in ("commits", "grants", "blocks", "snapshots", "artifacts"):
        found = place.server.execute(f"SELECT bool_or(log > 2147483647) FROM hopaas.{table}", database="store")
        assert found == [(True,)], table
    log.destroy()


def test_a_guest_leaves_no_trace_of_a_study_that_it_may_not_create(place: Place) -> None:
    place.study(place.person("ann"))
    guest = access.guest(place.admin, place.uuid(), "worker", "x")
    access.grant(place.admin, "s", guest, "worker")
    last = "SELECT last_value FROM hopaas.logs_id_seq"
    before = place.server.execute(last, database="store")
    with place.session(place.person(guest)) as say, pytest.raises(psycopg2.Error, match="is the guest of one study"):
        say("SELECT hopaas.exchange_v1('u1', 0, 'n', 'p', NULL, NULL, NULL, 1000)")
    assert place.server.execute(last, database="store") == before


def test_no_reply_is_larger_than_the_server_allows_whatever_is_asked_for(place: Place) -> None:
    ann = place.person("ann")
    with place.session(ann) as say:
        for number in range(5):
            say(f"SELECT hopaas.exchange_v1('u1', 0, 'n{number}', repeat('x', 4000000)::bytea, NULL, NULL, NULL, 64)")
        everything = "SELECT lsn, head FROM hopaas.exchange_v1('u1', -5, NULL, NULL, NULL, NULL, NULL, 2147483647)"
        assert say(everything) == [(1, 5), (2, 5), (3, 5)]
        assert say(everything.replace("-5", "3")) == [(4, 5), (5, 5)]


def test_a_stranger_with_advisory_locks_stops_nobody(place: Place) -> None:
    ann, eve = place.person("ann"), place.person("eve")
    study = place.study(ann)
    with place.session(eve) as say:
        say("SELECT count(pg_advisory_lock(k)) FROM generate_series(0, 200) k")
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
        held = say("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()")
        assert held == [(201,)], "while eve held every lock"
    stored = optuna.load_study(study_name="s", storage=place.storage(place.admin))
    assert [trial.state.name for trial in stored.trials] == ["COMPLETE"] * 4, "two from before"


_ODD = {
    "text": ("NULL", "''", "'catalog'", "'ann'", "'owner'", "'%'", "'a:b:c'", "repeat('x', 1000)"),
    "bigint": ("NULL", "-1", "0", "1", "9223372036854775807", "-9223372036854775808"),
    "integer": ("NULL", "-1", "0", "2147483647", "-2147483648"),
    "bytea": ("NULL", "''", "'bytes'"),
    "boolean": ("NULL", "true", "false"),
    "text[]": ("NULL", "'{}'", "'{NULL,a}'", "'{{a},{b}}'"),
}
_OF = {"text": "'n'", "bigint": "0", "integer": "0", "bytea": "'bytes'", "boolean": "true", "text[]": "'{a}'"}


@pytest.mark.parametrize("role", ["worker", "viewer", None])
def test_odd_arguments_of_any_function_harm_nobody(place: Place, role: str | None) -> None:
    """Each argument in turn, beside such as an honest peer gives."""
    ann, bob = place.person("ann"), place.person("bob")
    place.study(ann)
    uuid = place.uuid()
    if role is not None:
        access.grant(place.admin, "s", "bob", role)
    functions = place.server.execute(
        "SELECT proname, string_to_array(oidvectortypes(proargtypes), ', ') FROM pg_proc"
        " WHERE pronamespace = 'hopaas'::regnamespace AND proname ~ '_v[0-9]+$' ORDER BY 1",
        database="store",
    )
    tables = ("grants", "users", "tokens", "logs", "snapshots", "commits", "blocks", "artifacts")
    before = {name: _rows(place, name, uuid) for name in tables}
    with place.session(bob) as say:
        for name, kinds in functions:
            for named in (uuid, "catalog"):
                usual = [f"'{named}'", *(_OF[kind] for kind in kinds[1:])] if kinds else []
                for at, kind in enumerate(kinds):
                    for odd in _ODD[kind]:
                        with contextlib.suppress(psycopg2.Error):
                            say(f"SELECT hopaas.{name}({', '.join([*usual[:at], odd, *usual[at + 1 :]])})")
    admin = place.store(place.admin)
    for log in (admin.catalog(), admin.log(uuid)):
        sums = 0
        for entry in read_all(log):
            assert entry.before == sums
            sums = codec.following(sums, entry.payload)
    for name in tables if role != "worker" else ("grants", "users", "tokens"):
        assert _rows(place, name, uuid) == before[name], name
    study = optuna.load_study(study_name="s", storage=place.storage(ann))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    assert [one.state.name for one in study.trials] == ["COMPLETE"] * 3


def _rows(place: Place, table: str, uuid: str) -> list[Any]:
    """What a table says of a study, or of all users."""
    where = {"users": "true", "tokens": "true", "logs": f"uuid = '{uuid}'"}
    of_log = where.get(table, f"log = (SELECT id FROM hopaas.logs WHERE uuid = '{uuid}')")
    columns = {"tokens": "role, username, label", "logs": "uuid, created_by, deleted"}.get(table, "t.*")
    rows = place.server.execute(f"SELECT {columns} FROM hopaas.{table} t WHERE {of_log}", database="store")
    return sorted(rows, key=repr)
