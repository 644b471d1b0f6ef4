"""Who may do what on a real server: users, tokens, grants, and everything that is denied."""

from __future__ import annotations

import contextlib
import datetime
import json
import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import psycopg2
import pytest

import hopaas_p2p
from hopaas_p2p import access
from hopaas_p2p.access import study_grants
from hopaas_p2p.core import codec
from hopaas_p2p.core.records import Commit, StudyControl
from hopaas_p2p.errors import ConfigurationError, Denied, InvalidInput, NoSuchStudy, StoreUnreachable
from hopaas_p2p.stores import postgres_schema as schema
from hopaas_p2p.stores.base import Beat, Outgoing
from hopaas_p2p.stores.postgres import PostgresStore
from hopaas_p2p.testing.conformance import outgoing
from hopaas_p2p.testing.postgres import Server
from tests.processes import cli

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Place:
    """A store with an administrator, and people in it."""

    def __init__(self, server: Server, admin: str) -> None:
        self.server, self.admin = server, admin
        self._open: list[Any] = []

    def token(self, user: str, **options: Any) -> tuple[str, str]:
        """A new token of this user, made if need be: (role, password)."""
        with contextlib.suppress(InvalidInput):
            access.add_user(self.admin, user)
        made = access.create_token(self.admin, user, **options)
        role, _, password = made.secret.reveal().partition(":")
        return role, password

    def url(self, token: tuple[str, str]) -> str:
        return self.server.url("store", user=token[0], password=token[1])

    def person(self, user: str) -> str:
        return self.url(self.token(user))

    def storage(self, url: str, **options: Any) -> hopaas_p2p.storage.Storage:
        storage = hopaas_p2p.open_storage(url, **options)
        self._open.append(storage)
        return storage

    def store(self, url: str) -> PostgresStore:
        store = PostgresStore(url)
        self._open.append(store)
        return store

    def study(self, url: str, name: str = "s") -> optuna.Study:
        study = optuna.create_study(storage=self.storage(url), study_name=name)
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
        return study

    @contextlib.contextmanager
    def session(self, url: str) -> Iterator[Callable[[str], list[tuple[Any, ...]]]]:
        """A login with psql's powers."""
        with contextlib.closing(psycopg2.connect(url)) as connection:
            connection.autocommit = True

            def say(sql: str) -> list[tuple[Any, ...]]:
                with connection.cursor() as cursor:
                    cursor.execute(sql)
                    return list(cursor.fetchall()) if cursor.description else []

            yield say

    def close(self) -> None:
        for one in self._open:
            one.close()


@pytest.fixture
def place(any_postgres: Server, any_postgres_url: str) -> Iterator[Place]:
    place = Place(any_postgres, any_postgres_url)
    yield place
    place.close()


# --- people ------------------------------------------------------------------------------------------------------


def test_the_creator_owns_a_study_and_every_commit_names_its_author(place: Place) -> None:
    ann = place.person("ann")
    place.study(ann)
    assert [(g.user, g.role) for g in access.grants(ann, "s")] == [("ann", "owner")]
    rows = place.server.execute("SELECT DISTINCT author, role, at > 0 FROM hopaas.commits", database="store")
    in_catalog = f"owner:{_uuid(place, ann, 's')}"
    assert sorted(rows) == [("ann", "owner", True), ("ann", in_catalog, True)]


def _uuid(place: Place, url: str, name: str) -> str:
    return study_grants._uuid(place.store(url), name)


def test_the_audit_lists_who_did_what_and_when_by_the_servers_word(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, bob = place.person("ann"), place.person("bob")
    place.study(ann)
    access.grant(ann, "s", "bob", "worker")
    monkeypatch.setenv("USER", "somebody-else")
    work = optuna.load_study(study_name="s", storage=place.storage(bob))
    work.tell(work.ask(), 1.0)
    place.store(bob).log(_uuid(place, bob, "s")).exchange(_stop("forged"), 0)
    audited = cli("study", "show", "--audit", "--json", "--study", "s", HOPAAS_STORE=ann)
    lines = json.loads(audited.stdout)
    assert [line["lsn"] for line in lines] == sorted(line["lsn"] for line in lines)
    assert {line["clock"] for line in lines} == {"store"}
    authors = {line["lsn"]: line["author"] for line in lines}
    assert set(authors.values()) == {"ann", "bob"}
    finished = [(line["author"], line["trial"]) for line in lines if line["kind"] == "trial.finish"]
    assert finished == [("ann", 0), ("ann", 1), ("bob", 2)]
    (stop,) = [line for line in lines if line["kind"] == "study.control"]
    assert (stop["author"], stop["refused"]) == ("bob", "role"), "a worker's word does not stop a study"
    table = cli("study", "show", "--audit", "--study", "s", HOPAAS_STORE=ann).stdout
    assert "bob" in table
    assert place.server.password not in table


def _stop(nonce: str) -> Outgoing:
    commit = Commit("forger", 1, "forger", 0, (StudyControl("stopped", None),))
    return Outgoing(nonce, codec.encode(commit))


def test_a_worker_works_and_a_viewer_looks(place: Place) -> None:
    ann, bob, eve = place.person("ann"), place.person("bob"), place.person("eve")
    place.study(ann)
    access.grant(ann, "s", "bob", "worker")
    access.grant(ann, "s", "eve", "viewer")
    work = optuna.load_study(study_name="s", storage=place.storage(bob))
    work.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    look = optuna.load_study(study_name="s", storage=place.storage(eve))
    assert len(look.trials) == 4
    with pytest.raises(Denied, match="only a viewer"):
        look.ask()
    assert len(look.trials) == 4, "a viewer whose write was refused goes on reading"


def test_a_study_without_a_grant_can_neither_be_read_nor_written(place: Place) -> None:
    ann, bob = place.person("ann"), place.person("bob")
    place.study(ann)
    uuid = _uuid(place, ann, "s")
    log = place.store(bob).log(uuid)
    for attempt in (
        lambda: log.exchange(None, 0),
        lambda: log.exchange(outgoing("b"), 0),
        log.newest_snapshot,
        lambda: log.put_snapshot(1, b"forged"),
        log.destroy,
        lambda: access.grant(bob, "s", "bob", "owner"),
        lambda: access.revoke(bob, "s", "ann"),
        lambda: access.grants(bob, "s"),
        lambda: optuna.load_study(study_name="s", storage=place.storage(bob)).trials,
    ):
        with pytest.raises(Denied, match="no grant for this study"):
            attempt()
    assert place.storage(bob).get_all_studies() == [], "other people's studies are left out of a list"


def test_a_viewer_changes_nothing(place: Place) -> None:
    ann, eve = place.person("ann"), place.person("eve")
    place.study(ann)
    access.grant(ann, "s", "eve", "viewer")
    log = place.store(eve).log(_uuid(place, ann, "s"))
    assert log.exchange(None, 0).entries
    for attempt in (
        lambda: log.exchange(outgoing("b"), 0),
        lambda: log.put_snapshot(1, b"forged"),
        log.destroy,
        lambda: access.grant(eve, "s", "eve", "worker"),
    ):
        with pytest.raises(Denied, match="only a viewer"):
            attempt()


def test_only_an_owner_deletes_a_study(place: Place) -> None:
    ann, bob = place.person("ann"), place.person("bob")
    place.study(ann)
    access.grant(ann, "s", "bob", "worker")
    with pytest.raises((Denied, KeyError)):
        optuna.delete_study(study_name="s", storage=place.storage(bob))
    assert len(optuna.load_study(study_name="s", storage=place.storage(ann)).trials) == 2
    access.grant(ann, "s", "bob", "owner")
    optuna.delete_study(study_name="s", storage=place.storage(bob))
    with pytest.raises(KeyError):
        optuna.load_study(study_name="s", storage=place.storage(ann))


def test_a_grant_ends_when_it_is_revoked(place: Place) -> None:
    ann, bob = place.person("ann"), place.person("bob")
    place.study(ann)
    access.grant(ann, "s", "bob", "worker")
    study = optuna.load_study(study_name="s", storage=place.storage(bob))
    trial = study.ask()
    access.revoke(ann, "s", "bob")
    with pytest.raises(Denied):
        study.tell(trial, 1.0)


def test_a_study_keeps_an_owner(place: Place) -> None:
    ann = place.person("ann")
    place.person("bob")
    place.study(ann)
    for attempt in (lambda: access.revoke(ann, "s", "ann"), lambda: access.grant(ann, "s", "ann", "viewer")):
        with pytest.raises(Denied, match="only owner"):
            attempt()
    access.grant(ann, "s", "bob", "owner")
    access.revoke(ann, "s", "ann")


def test_grants_of_what_is_not_there_say_so(place: Place) -> None:
    ann = place.person("ann")
    place.study(ann)
    with pytest.raises(NoSuchStudy):
        access.grant(ann, "other", "ann", "worker")
    with pytest.raises(ConfigurationError, match="no user nobody-here"):
        access.grant(ann, "s", "nobody-here", "worker")
    with pytest.raises(ConfigurationError, match="has no grant"):
        access.revoke(ann, "s", "nobody-here")
    with pytest.raises(InvalidInput, match="viewer, worker, owner"):
        access.grant(ann, "s", "ann", "king")


def test_users_are_made_listed_and_removed(place: Place) -> None:
    ann = place.person("ann")
    place.person("bob")
    place.study(ann)
    assert [(user.name, user.tokens) for user in access.users(place.admin)] == [("ann", 1), ("bob", 1)]
    with pytest.raises(InvalidInput, match="exists already"):
        access.add_user(place.admin, "ann")
    for name in ("", "a b", 'x"; DROP SCHEMA hopaas', "-x", "a" * 46):
        with pytest.raises(InvalidInput):
            access.add_user(place.admin, name)
    access.remove_user(place.admin, "ann")
    assert [user.name for user in access.users(place.admin)] == ["bob"]
    with pytest.raises(Denied):
        place.store(ann).catalog().exchange(None, 0)
    with pytest.raises(InvalidInput, match="no user"):
        access.remove_user(place.admin, "ann")
    assert len(optuna.load_study(study_name="s", storage=place.storage(place.admin)).trials) == 2


def test_a_login_of_the_servers_own_can_be_adopted_and_outlives_it(place: Place) -> None:
    place.server.execute("DROP ROLE IF EXISTS carla")
    place.server.execute("CREATE ROLE carla LOGIN PASSWORD 'c'")
    carla = place.server.url("store", user="carla", password="c")
    with pytest.raises(Denied, match="user add"):
        place.store(carla).catalog().exchange(None, 0)
    with pytest.raises(InvalidInput, match="--existing"):
        access.add_user(place.admin, "carla")
    access.add_user(place.admin, "carla", existing=True)
    place.study(carla, "hers")
    access.remove_user(place.admin, "carla")
    assert place.server.execute("SELECT 1 FROM pg_roles WHERE rolname = 'carla'")
    with pytest.raises(Denied):
        place.store(carla).catalog().exchange(None, 0)
    with pytest.raises(InvalidInput, match="powers over the server"):
        access.add_user(place.admin, "dba", existing=True)
    place.server.execute("DROP ROLE carla")


# --- tokens ------------------------------------------------------------------------------------------------------


def test_a_token_is_shown_once_and_known_to_nobody_else(place: Place) -> None:
    access.add_user(place.admin, "ann")
    made = access.create_token(place.admin, "ann", label="laptop", valid="week", connections=3)
    secret = made.secret.reveal().partition(":")[2]
    assert secret not in repr(made)
    place.study(place.url((made.name, secret)))
    (token,) = access.tokens(place.admin)
    assert (token.name, token.user, token.label, token.connections) == (made.name, "ann", "laptop", 3)
    assert token.last_used is not None
    assert token.expires is not None
    assert abs(token.expires - token.created - datetime.timedelta(days=7)) < datetime.timedelta(minutes=1)
    kept = place.server.execute("SELECT rolpassword FROM pg_authid WHERE rolname = %s", made.name)
    assert kept[0][0].startswith("SCRAM-SHA-256$")
    assert secret not in place.server.log()


@pytest.mark.parametrize(("valid", "days"), [("day", 1), ("month", 30), ("year", 365)])
def test_a_token_is_valid_for_what_was_asked(postgres: Server, postgres_url: str, valid: str, days: int) -> None:
    access.add_user(postgres_url, "ann")
    made = access.create_token(postgres_url, "ann", valid=valid)
    left = made.expires - datetime.datetime.now(datetime.UTC)
    assert abs(left - datetime.timedelta(days=days)) < datetime.timedelta(days=2)


def test_a_date_may_be_given_and_has_to_come(postgres: Server, postgres_url: str) -> None:
    access.add_user(postgres_url, "ann")
    made = access.create_token(postgres_url, "ann", valid="2099-12-31")
    assert made.expires == datetime.datetime(2099, 12, 31, tzinfo=datetime.UTC)
    for wrong in ("2001-01-01", "someday", ""):
        with pytest.raises(InvalidInput, match="valid"):
            access.create_token(postgres_url, "ann", valid=wrong)
    with pytest.raises(InvalidInput, match="no user"):
        access.create_token(postgres_url, "nobody-here")


def test_an_expired_token_is_denied_in_one_clear_line(place: Place) -> None:
    token = place.token("ann")
    place.server.execute(f"ALTER ROLE \"{token[0]}\" VALID UNTIL '2001-01-01'")
    with pytest.raises(Denied, match="wrong, expired or revoked") as refused:
        place.store(place.url(token)).catalog().exchange(None, 0)
    assert "\n" not in str(refused.value)
    assert token[1] not in str(refused.value)


def test_a_token_that_expires_under_an_open_session_is_denied_in_it(place: Place) -> None:
    """Postgres itself looks at an expiry only when somebody logs in."""
    token = place.token("ann")
    study = place.study(place.url(token))
    log = place.store(place.url(token)).log(_uuid(place, place.admin, "s"))
    before = len(log.exchange(None, 0).entries)
    with place.session(place.url(token)) as say:
        place.server.execute(f"ALTER ROLE \"{token[0]}\" VALID UNTIL '2001-01-01'")
        with pytest.raises(psycopg2.Error, match="this token has expired"):
            say("SELECT hopaas.exchange_v1('u1', 0, 'n', 'p', NULL, NULL, NULL, 1000)")
    for attempt in (lambda: log.exchange(None, before), lambda: log.exchange(outgoing("late"), before), study.ask):
        with pytest.raises(Denied, match="expired") as refused:
            attempt()
        assert "\n" not in str(refused.value)
    admins = place.store(place.admin).log(_uuid(place, place.admin, "s"))
    assert len(admins.exchange(None, 0).entries) == before


def test_a_token_that_is_renewed_in_its_file_goes_on_under_a_running_program(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    tokens = [place.token("ann") for _ in range(2)]
    monkeypatch.setenv("HOPAAS_TOKEN_FILE", str(file))
    file.write_text(":".join(tokens[0]))
    study = place.study(f"postgresql://127.0.0.1:{place.server.port}/store")
    trial = study.ask()
    file.write_text(":".join(tokens[1]))
    place.server.execute(f"ALTER ROLE \"{tokens[0][0]}\" VALID UNTIL '2001-01-01'")
    study.tell(trial, 1.0)
    trial = study.ask()
    file.write_text(":".join(place.token("ann")))
    access.revoke_token(place.admin, tokens[1][0])
    study.tell(trial, 2.0)
    assert [trial.value for trial in study.trials[2:]] == [1.0, 2.0]


def test_a_revoked_tokens_open_session_ends_at_once_and_no_other_begins(place: Place) -> None:
    mine, other = place.token("ann", label="lost"), place.token("ann")
    ours = [place.store(place.url(token)) for token in (mine, other)]
    for store in ours:
        store.catalog().exchange(None, 0)
    with place.session(place.url(mine)) as say:
        assert access.revoke_token(place.admin, "lost") == mine[0]
        with pytest.raises(psycopg2.OperationalError):
            say("SELECT 1")
    with pytest.raises(Denied):
        ours[0].catalog().exchange(None, 0)
    ours[1].catalog().exchange(None, 0)
    assert [token.name for token in access.tokens(place.admin)] == [other[0]]
    with pytest.raises(InvalidInput, match="no token"):
        access.revoke_token(place.admin, mine[0])


def test_a_token_serves_no_more_processes_than_it_may(place: Place) -> None:
    token = place.token("ann", connections=1)
    first, second = place.store(place.url(token)), place.store(place.url(token))
    first.catalog().exchange(None, 0)
    with pytest.raises(StoreUnreachable, match="in use by as many processes as it may be"):
        second.catalog().exchange(None, 0)
    first.close()
    _until(lambda: not access.tokens(place.admin)[0].sessions)
    second.catalog().exchange(None, 0)


def _until(true: Callable[[], bool]) -> None:
    import time

    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_only_administrators_make_users_and_tokens(place: Place) -> None:
    ann = place.person("ann")
    for attempt in (
        lambda: access.add_user(ann, "bob"),
        lambda: access.create_token(ann, "ann"),
        lambda: access.tokens(ann),
        lambda: access.users(ann),
        lambda: access.remove_user(ann, "ann"),
        lambda: access.initialise(ann),
    ):
        with pytest.raises(Denied):
            attempt()


# --- denied to a peer, whatever it says ----------------------------------------------------------------------------

_TABLES = ("logs", "commits", "snapshots", "beats", "artifacts", "grants", "users", "tokens", "schema_version")


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


@pytest.fixture(scope="module")
def peers_session(postgres_servers: Any) -> Iterator[dict[str, Any]]:
    """Ann's session on a server of each version, with bob beside her, and a session of the administrator open."""
    from tests.postgres_fixtures import MAJORS, emptied

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


def test_nobody_beats_for_anothers_peer(place: Place) -> None:
    ann, bob = place.store(place.person("ann")), place.store(place.person("bob"))
    ann.beat(Beat("p", "1"))
    bob.beat(Beat("p", "2"))
    assert ann.beats(["p"]) == {"p": "1"}


def test_nobody_takes_anothers_nonce(place: Place) -> None:
    ann, bob = place.person("ann"), place.person("bob")
    place.study(ann)
    access.grant(ann, "s", "bob", "worker")
    uuid = _uuid(place, ann, "s")
    before = len(place.store(ann).log(uuid).exchange(None, 0).entries)
    place.store(bob).log(uuid).exchange(Outgoing("n", b"bob's"), 0)
    receipt = place.store(ann).log(uuid).exchange(Outgoing("n", b"ann's"), before)
    assert [entry.payload for entry in receipt.entries] == [b"bob's", b"ann's"]


def test_a_stranger_with_advisory_locks_stops_nobody(place: Place) -> None:
    ann, eve = place.person("ann"), place.person("eve")
    study = place.study(ann)
    with place.session(eve) as say:
        say("SELECT count(pg_advisory_lock(k)) FROM generate_series(0, 200) k")
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)


# --- the schema --------------------------------------------------------------------------------------------------


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
    assert sorted(results.get(timeout=30) for _ in both) == [0, 1]
    for one in both:
        one.join()
        assert one.exitcode == 0
    assert access.initialise(url) == 1, "and it may be repeated"


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

    assert "holds no store yet" in complaint()
    assert "hopaas-p2p init" in complaint()
    with pytest.raises(ConfigurationError, match="hopaas-p2p init"):
        access.users(url)
    access.initialise(url)
    any_postgres.execute(
        "DROP FUNCTION hopaas.exchange_v1; UPDATE hopaas.schema_version SET version = 0", database=database
    )
    assert "of version 0" in complaint()
    any_postgres.execute("UPDATE hopaas.schema_version SET version = 99", database=database)
    assert "newer hopaas_p2p; upgrade" in complaint()
    with pytest.raises(ConfigurationError, match="newer"):
        access.initialise(url)
    any_postgres.execute("UPDATE hopaas.schema_version SET version = 1", database=database)
    assert access.initialise(url) == 1
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
    with pytest.raises(StoreUnreachable, match="division by zero"):
        access.initialise(url)
    assert versions() == list(range(1, now + 1)), "all of it or nothing"
    release(widen=widen, paint="UPDATE hopaas.logs SET colour = '100% red'")
    assert access.initialise(url) == now
    assert access.initialise(url) == now + 2, "and each step only once"
    assert versions() == list(range(1, now + 3))
    assert any_postgres.execute("SELECT DISTINCT colour FROM hopaas.logs", database=database) == [("100% red",)]
    with contextlib.closing(PostgresStore(url)) as store:
        assert [entry.payload for entry in store.log("u").exchange(None, 0).entries] == [outgoing("kept").payload]


def test_commands_print_data_on_stdout_and_messages_on_stderr(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from hopaas_p2p.cli import access as commands

    monkeypatch.setenv("HOPAAS_STORE", place.admin)

    def run(command: Any, *arguments: str) -> Any:
        result = CliRunner().invoke(command, list(arguments), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        assert place.server.password not in result.output
        return result

    assert json.loads(run(commands.init, place.admin, "--json").stdout)["was"] == 1
    run(commands.user, "add", "ann")
    made = run(commands.token, "create", "ann", "--valid", "day", "--label", "here")
    role, _, password = made.stdout.strip().partition(":")
    assert "valid until" in made.stderr
    assert password not in made.stderr
    place.study(place.url((role, password)))
    listed = json.loads(run(commands.token, "list", "--json").stdout)
    assert [(one["name"], one["label"]) for one in listed] == [(role, "here")]
    run(commands.user, "add", "bob")
    run(commands.grant, "s", "bob", "worker")
    assert [(g.user, g.role) for g in access.grants(place.admin, "s")] == [("ann", "owner"), ("bob", "worker")]
    run(commands.revoke, "s", "bob")
    run(commands.token, "revoke", role)
    assert "ann" in run(commands.user, "list").stdout
    run(commands.user, "rm", "ann")
    assert json.loads(run(commands.user, "list", "--json").stdout)[0]["user"] == "bob"
