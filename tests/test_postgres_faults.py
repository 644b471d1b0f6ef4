"""What goes wrong between a peer and Postgres, on real servers and over a link that is cut on purpose."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import psycopg2
import psycopg2.extras
import pytest

import hopaas_p2p
from hopaas_p2p import access
from hopaas_p2p.errors import ConfigurationError, Denied, StoreCorrupt, StoreUnreachable
from hopaas_p2p.stores.base import Beat, Outgoing
from hopaas_p2p.stores.postgres import PostgresStore
from hopaas_p2p.testing.conformance import append_many, everything, outgoing, together
from hopaas_p2p.testing.latency import Cut, Relay
from hopaas_p2p.testing.postgres import Server, find_binaries
from tests.peers import Peers, check
from tests.postgres_fixtures import MAJORS, OWNER, missing
from tests.processes import until

optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture
def relay(postgres: Server) -> Iterator[Relay]:
    with Relay(postgres.port) as relay:
        yield relay


@pytest.fixture
def far_url(postgres: Server, postgres_url: str, relay: Relay) -> str:
    """The empty store, through the relay."""
    return postgres.url("store", user=OWNER, port=relay.port)


@pytest.fixture
def store(far_url: str) -> Iterator[PostgresStore]:
    store = PostgresStore(far_url)
    yield store
    store.close()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers that a test may harm; the newest version there is."""
    with contextlib.ExitStack() as stack:

        def start(**settings: str) -> Server:
            if not find_binaries():
                missing("a Postgres server")
            server = Server(settings=settings)
            stack.callback(server.stop)
            server.start()
            access.initialise(server.url())
            return server

        yield start


# --- the link ----------------------------------------------------------------------------------------------------


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
    storage.courier.memberships[next(iter(storage.courier.memberships))].pulled_at = -1e9
    assert len(study.trials) == 3
    relay.refuse(False)
    storage.close()


def test_a_store_that_was_never_reached_says_so(far_url: str, relay: Relay) -> None:
    relay.refuse()
    store = PostgresStore(far_url)
    with pytest.raises(StoreUnreachable, match="Nothing acknowledged is lost"):
        store.catalog().exchange(None, 0)


# --- the server --------------------------------------------------------------------------------------------------


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
        until(lambda: _takes(log, outgoing("after-0"), 3))
        assert [entry.payload for entry in everything(log)] == [
            outgoing(name).payload for name in ("before-0", "before-1", "before-2", "after-0")
        ]
        store.close()
    finally:
        standby.stop()


def _takes(log: Any, commit: Outgoing, since: int) -> bool:
    try:
        log.exchange(commit, since)
    except StoreUnreachable:
        return False
    return True


def test_too_many_clients_is_waited_out(own_server: Callable[..., Server]) -> None:
    server = own_server(max_connections="6", superuser_reserved_connections="0", autovacuum="off")
    others: list[Any] = []
    with contextlib.suppress(psycopg2.OperationalError):
        for _ in range(10):
            others.append(psycopg2.connect(server.url()))
    store = PostgresStore(server.url())
    with pytest.raises(StoreUnreachable, match=r"too many clients|no free connection|remaining connection slots"):
        store.catalog().exchange(None, 0)
    storage = hopaas_p2p.open_storage(server.url())
    threading.Timer(0.3, lambda: [other.close() for other in others]).start()
    until(lambda: _reads(store))
    store.close()
    study = optuna.create_study(storage=storage)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    storage.close()


def _reads(store: PostgresStore) -> bool:
    try:
        store.catalog().exchange(None, 0)
    except StoreUnreachable:
        return False
    return True


def test_a_statement_that_takes_too_long_is_sent_again(postgres: Server, postgres_url: str) -> None:
    access.add_user(postgres_url, "ann")
    made = access.create_token(postgres_url, "ann")
    postgres.execute(f"ALTER ROLE \"{made.name}\" SET statement_timeout = '200ms'")
    secret = made.secret.reveal().partition(":")[2]
    store = PostgresStore(postgres.url("store", user=made.name, password=secret))
    log = store.log("u")
    append_many(log, "a", 1)
    with contextlib.closing(psycopg2.connect(postgres.url("store"))) as blocker, blocker.cursor() as cursor:
        cursor.execute("SELECT FROM hopaas.logs FOR UPDATE")
        with pytest.raises(StoreUnreachable, match="statement_timeout"):
            log.exchange(outgoing("b"), 1)
    until(lambda: _takes(log, outgoing("b"), 1))
    assert len(everything(log)) == 2
    store.close()


@contextlib.contextmanager
def _small_disk(path: Path) -> Iterator[Callable[[], None]]:
    """A file system of 3 MB there; yields what makes it larger."""
    owner = path.stat()
    options = f"size=3m,uid={owner.st_uid},gid={owner.st_gid}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", path], check=True, capture_output=True)
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,size=64m", path], check=True) and None
    finally:
        subprocess.run(["umount", "-l", path], check=True)


@contextlib.contextmanager
def _full_disk(server: Server) -> Iterator[Callable[[], None]]:
    """Commits go to a disk that soon is full; yields what makes room there.

    Where nothing may be mounted, a trigger says what the server says then.
    """
    path = server.directory("small")
    with contextlib.ExitStack() as stack:
        try:
            make_room = stack.enter_context(_small_disk(path))
        except (OSError, subprocess.CalledProcessError):
            server.execute(
                "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION "
                "'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$"
            )
            server.execute("CREATE TRIGGER full BEFORE INSERT ON hopaas.commits EXECUTE FUNCTION full_disk()")
            yield lambda: server.execute("DROP TRIGGER full ON hopaas.commits") and None
            return
        server.execute(f"CREATE TABLESPACE small LOCATION '{path}'")
        server.execute("ALTER TABLE hopaas.commits SET TABLESPACE small")
        yield make_room
        server.halt()


def test_a_full_disk_of_the_server_is_told_and_the_tell_is_kept(
    own_server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    server = own_server()
    storage = hopaas_p2p.open_storage(server.url(), patience=0.1)
    study = optuna.create_study(storage=storage, study_name="s")
    trial = study.ask()
    with _full_disk(server) as make_room:
        _fill(server.url())
        with caplog.at_level(logging.WARNING, "hopaas_p2p"):
            study.tell(trial, 1.0)
        (kept,) = tmp_path.rglob("*.commits")
        assert str(kept) in caplog.text
        assert "disk is full" in caplog.text
        make_room()
        until(lambda: _flushes(storage), 60)
        until(lambda: not kept.exists())
        again = hopaas_p2p.open_storage(server.url())
        (told,) = optuna.load_study(study_name="s", storage=again).trials
        assert told.value == 1.0
        again.close()
        storage.close()


def _fill(url: str) -> None:
    """Commit until not even a small one finds room any more."""
    store, noise, since = PostgresStore(url), random.Random(1), 0
    for size in (200_000, 1_000, 1):
        with pytest.raises(StoreUnreachable, match="disk is full"):
            while since < 10_000:
                store.log("filler").exchange(Outgoing(str(since), noise.randbytes(size)), since)
                since += 1
    store.close()


def _flushes(storage: Any) -> bool:
    try:
        storage.flush()
    except StoreUnreachable:
        return False
    return True


# --- a thin link ---------------------------------------------------------------------------------------------------


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
        assert relay.received < 2 * (3 << 17) + 5000, "hexadecimal, one commit over 128 KiB"
        entries = everything(near.log("u"))
        assert [entry.payload for entry in entries[16:]] == [b"x", outgoing("mine").payload]
        store.close()
    near.close()


# --- who may not ---------------------------------------------------------------------------------------------------


def test_a_wrong_password_is_one_clear_line_and_no_storm(
    postgres: Server, postgres_url: str, relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    url = postgres.url("store", user=OWNER, password="wrong", port=relay.port)
    storage = hopaas_p2p.open_storage(url)
    began = time.monotonic()
    for _ in range(20):
        with pytest.raises(Denied, match="wrong, expired or revoked") as refused:
            optuna.create_study(storage=storage)
        assert "\n" not in str(refused.value)
    assert time.monotonic() - began < 5
    assert relay.connections == 1, "the server is not asked again and again"
    storage.close()


def test_a_new_secret_is_tried_at_once(
    postgres: Server, postgres_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("wrong\n")
    monkeypatch.setenv("HOPAAS_TOKEN_FILE", str(file))
    store = PostgresStore(f"postgresql://{OWNER}@127.0.0.1:{postgres.port}/store?application_name=rotated")
    with pytest.raises(Denied):
        store.catalog().exchange(None, 0)
    file.write_text(f"{postgres.password}\n")
    store.catalog().exchange(None, 0)
    store.close()


def test_two_hundred_peers_connect_at_once(postgres: Server, postgres_url: str) -> None:
    """As many as the server has room for."""
    stores = [PostgresStore(postgres_url) for _ in range(200)]

    def take_part(store: PostgresStore, number: int) -> None:
        until(lambda: _takes(store.log("u"), outgoing(f"peer-{number}"), 0), 60)

    try:
        together(*[lambda s=store, n=number: take_part(s, n) for number, store in enumerate(stores)])
        assert len(everything(stores[0].log("u"))) == 200
        sessions = postgres.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'hopaas-p2p'")
        assert sessions[0][0] == 200
    finally:
        for store in stores:
            store.close()


def test_two_hundred_peers_share_a_server_that_has_room_for_fifty(own_server: Callable[..., Server]) -> None:
    """Who is turned away comes again; nobody fails, and everybody's commit counts once."""
    server = own_server(max_connections="50")
    turned_away: list[StoreUnreachable] = []
    room = threading.Event()

    def take_part(number: int) -> None:
        store = PostgresStore(server.url())

        def taken() -> bool:
            try:
                store.log("u").exchange(outgoing(f"peer-{number}"), 0)
            except StoreUnreachable as error:
                turned_away.append(error)
                room.set()
                return False
            room.wait(60)  # holds its place until somebody was turned away
            return True

        until(taken, 120)
        store.close()

    together(*[lambda n=number: take_part(n) for number in range(200)])
    store = PostgresStore(server.url())
    until(lambda: _reads(store))
    entries = everything(store.log("u"))
    store.close()
    assert sorted(entry.payload for entry in entries) == sorted(outgoing(f"peer-{n}").payload for n in range(200))
    assert turned_away
    assert {"clients" in str(error) or "connection" in str(error) for error in turned_away} == {True}


# --- a server that would lose or contradict ------------------------------------------------------------------------


def test_a_server_that_may_lose_commits_is_refused(postgres: Server, postgres_url: str) -> None:
    postgres.execute("ALTER DATABASE store SET synchronous_commit = off")
    try:
        with pytest.raises(ConfigurationError, match="synchronous_commit"):
            PostgresStore(postgres_url).log("u").exchange(outgoing("a"), 0)
    finally:
        postgres.execute("ALTER DATABASE store RESET synchronous_commit")


def test_another_isolation_is_refused(postgres: Server, postgres_url: str) -> None:
    postgres.execute("ALTER DATABASE store SET default_transaction_isolation = 'serializable'")
    try:
        with pytest.raises(ConfigurationError, match="read committed"):
            PostgresStore(postgres_url).log("u").exchange(outgoing("a"), 0)
    finally:
        postgres.execute("ALTER DATABASE store RESET default_transaction_isolation")


def test_a_database_that_takes_no_writes_is_refused(postgres: Server, postgres_url: str) -> None:
    postgres.execute("ALTER DATABASE store SET default_transaction_read_only = on")
    try:
        with pytest.raises(ConfigurationError, match="read-only"):
            PostgresStore(postgres_url).log("u").exchange(outgoing("a"), 0, Beat("p", "1"))
    finally:
        postgres.execute("ALTER DATABASE store RESET default_transaction_read_only")


def test_a_log_that_is_shorter_than_a_peer_has_seen_is_told(postgres: Server, postgres_url: str) -> None:
    store = PostgresStore(postgres_url)
    append_many(store.log("u"), "a", 3)
    for since, commit in ((4, None), (9, outgoing("b"))):
        with pytest.raises(StoreCorrupt, match="backup"):
            store.log("u").exchange(commit, since)
    with pytest.raises(StoreCorrupt):
        store.log("never-there").exchange(None, 1)
    store.close()


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
    storage.courier.pull(next(iter(storage.courier.memberships.values())))
    assert [trial.number for trial in study.trials] == list(range(26))
    assert all(trial.state.name == "COMPLETE" for trial in study.trials)
    storage.close()
