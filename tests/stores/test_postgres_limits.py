"""A Postgres server that is full: of clients, of data, of time."""

from __future__ import annotations

import contextlib
import logging
import random
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import psycopg2
import psycopg2.extras
import pytest

import hopaas_p2p
from hopaas_p2p import access
from hopaas_p2p.errors import StoreUnreachable
from hopaas_p2p.stores.base import Outgoing
from hopaas_p2p.stores.postgres.store import PostgresStore
from hopaas_p2p.testing.commits import append_many, everything, outgoing, together
from tests.support.postgres import Server
from tests.support.postgres_fixtures import reads, takes
from tests.support.processes import until

optuna.logging.set_verbosity(optuna.logging.WARNING)


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
    until(lambda: reads(store))
    store.close()
    study = optuna.create_study(storage=storage)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    storage.close()


def test_a_statement_that_takes_too_long_is_sent_again(postgres: Server, postgres_url: str) -> None:
    access.add_user(postgres_url, "ann")
    made = access.create_token(postgres_url, "ann")
    postgres.execute(f"ALTER ROLE \"{made.name}\" SET statement_timeout = '1500ms'")
    secret = made.secret.reveal().partition(":")[2]
    store = PostgresStore(postgres.url("store", user=made.name, password=secret))
    log = store.log("u")
    append_many(log, "a", 1)
    with contextlib.closing(psycopg2.connect(postgres.url("store"))) as blocker, blocker.cursor() as cursor:
        cursor.execute("SELECT FROM hopaas.logs FOR UPDATE")
        with pytest.raises(StoreUnreachable, match="statement timeout"):
            log.exchange(outgoing("b"), 1)
    until(lambda: takes(log, outgoing("b"), 1))
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
    """Commits go to a disk that soon is full; yields what makes room there."""
    path = server.directory("small")
    with contextlib.ExitStack() as stack:
        try:
            make_room = stack.enter_context(_small_disk(path))
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"this user may mount nothing here: {error}")
        server.execute(f"CREATE TABLESPACE small LOCATION '{path}'")
        server.execute("ALTER TABLE hopaas.commits SET TABLESPACE small")
        yield make_room
        server.halt()


@contextlib.contextmanager
def _trigger(server: Server) -> Iterator[Callable[[], None]]:
    """A trigger says what the server says on a full disk; for machines on which nothing may be mounted."""
    server.execute(
        "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION "
        "'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$"
    )
    server.execute("CREATE TRIGGER full_disk BEFORE INSERT ON hopaas.commits EXECUTE FUNCTION full_disk()")
    yield lambda: server.execute("DROP TRIGGER full_disk ON hopaas.commits") and None


@pytest.mark.parametrize("full_disk", [_full_disk, _trigger], ids=["disk", "trigger"])
def test_a_full_disk_of_the_server_is_told_and_the_tell_is_kept(
    full_disk: Callable[[Server], contextlib.AbstractContextManager[Callable[[], None]]],
    own_server: Callable[..., Server],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    server = own_server()
    storage = hopaas_p2p.open_storage(server.url(), patience=0.1)
    study = optuna.create_study(storage=storage, study_name="s")
    trial = study.ask()
    with full_disk(server) as make_room:
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


def test_two_hundred_peers_connect_at_once(postgres: Server, postgres_url: str) -> None:
    """As many as the server has room for."""
    stores = [PostgresStore(postgres_url) for _ in range(200)]

    def take_part(store: PostgresStore, number: int) -> None:
        until(lambda: takes(store.log("u"), outgoing(f"peer-{number}"), 0), 60)

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
    until(lambda: reads(store))
    entries = everything(store.log("u"))
    store.close()
    assert sorted(entry.payload for entry in entries) == sorted(outgoing(f"peer-{n}").payload for n in range(200))
    assert turned_away
    assert {"clients" in str(error) or "connection" in str(error) for error in turned_away} == {True}


def test_a_snapshot_has_a_bound(postgres: Server, postgres_url: str) -> None:
    """A worker must not fill a server, or the memory of whoever joins."""
    store = PostgresStore(postgres_url)
    append_many(store.log("u"), "a", 1)
    with contextlib.closing(psycopg2.connect(postgres.url("store"))) as connection:
        cursor = connection.cursor()
        with pytest.raises(psycopg2.Error, match="268435457 bytes is too large"):
            cursor.execute("SELECT hopaas.put_snapshot_v1('u', 1, convert_to(repeat('x', 268435457), 'UTF8'), 3)")
    store.close()
