"""Through HTTPS to Postgres: a study, SQLAlchemy, Optuna's own storage, and what a connection leaves behind."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import optuna
import psycopg2
import pytest
import sqlalchemy

import hopaas_p2p
from hopaas_p2p import access
from hopaas_p2p.core import snapshot
from hopaas_p2p.errors import ConfigurationError, Denied, StoreUnreachable
from hopaas_p2p.net.proxies import ServerAddress
from hopaas_p2p.open import open_store
from hopaas_p2p.runtime.settings import Secret
from hopaas_p2p.stores.postgres.store import PostgresStore
from hopaas_p2p.testing.commits import append_many, everything, outgoing, study_snapshot
from hopaas_p2p.tunnel import client
from hopaas_p2p.tunnel.dial import dial
from hopaas_p2p.tunnel.dialect import TunnelDialect, gateways_of
from tests.support.ports import free_port
from tests.support.postgres_fixtures import OWNER
from tests.support.processes import SPACE, environment, until
from tests.support.tunnel_fixtures import HOST, Centre, tunnels


@pytest.fixture
def through(centre: Centre, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Starts a gateway, puts a token into the environment, and gives psycopg2 connections through it."""
    gateway = centre.gateway()
    monkeypatch.setenv("HOPAAS_TOKEN", centre.token().secret.reveal())

    def connect(**options: Any) -> Any:
        return client.connect([ServerAddress(HOST, gateway.port)], **{"dbname": "store", **options})

    return connect


def says(connection: Any, sql: str = "SELECT session_user") -> Any:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


# --- who may use it, and how -------------------------------------------------------------------------------------


@pytest.mark.path
def test_a_study_is_run_through_a_gateway(centre: Centre, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = centre.gateway()
    monkeypatch.setenv("HOPAAS_TOKEN", centre.token().secret.reveal())
    url = centre.url(gateway.port)
    with contextlib.closing(hopaas_p2p.open_study(url, "s", space=SPACE, budget=5)) as study:
        study.optimize(lambda trial: trial.params["lr"])
        assert len(study.state.trials) == 5
        assert study.storage.url == url
        assert tunnels() == 1
    until(lambda: tunnels() == 0)
    assert len(gateway.events("opened")) == 1


def test_the_blocks_of_a_snapshot_come_through_a_gateway(centre: Centre, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway, data = centre.gateway(), study_snapshot(3000)
    monkeypatch.setenv("HOPAAS_TOKEN", centre.token().secret.reveal())
    with contextlib.closing(PostgresStore(centre.url(gateway.port))) as store:
        log = store.log("study")
        log.exchange(outgoing("first"), 0)
        log.put_snapshot(1, data)
        assert log.newest_snapshot() == (1, data)
        names = snapshot.names_in(snapshot.split(data)[0])
        assert len(store.call("blocks", log="study", names=names, copied=True)) == 2


def test_the_token_may_be_in_a_file_or_in_the_url(
    centre: Centre, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = centre.gateway()
    token = centre.token()
    url = centre.url(gateway.port)
    with pytest.raises(Denied, match="HOPAAS_TOKEN_FILE"):
        open_store(url).catalog().exchange(None, 0)
    (tmp_path / "token").write_text(token.secret.reveal())
    with monkeypatch.context() as env:
        env.setenv("HOPAAS_TOKEN_FILE", str(tmp_path / "token"))
        for text in (url, url.replace("//", "//ann@"), url.replace("//", f"//{token.name}@")):
            with contextlib.closing(open_store(text)) as store:
                store.catalog().exchange(None, 0)
        with pytest.raises(Denied, match="not bob's"):
            client.connect([ServerAddress(HOST, gateway.port)], dbname="store", user="bob")
    with contextlib.closing(open_store(url.replace("//", f"//{token.secret.reveal()}@"))) as store:
        store.catalog().exchange(None, 0)
        assert token.secret.reveal().partition(":")[2] not in store.url


def test_an_administrator_works_through_a_gateway_too(centre: Centre) -> None:
    gateway = centre.gateway()
    url = centre.url(gateway.port).replace("//", f"//{OWNER}:{centre.server.password.replace(' ', '%20')}@")
    access.add_user(url, "eve")
    assert [user.name for user in access.users(url)] == ["eve"]


def test_sqlalchemy_knows_the_scheme_in_a_process_that_has_not_heard_of_us(centre: Centre) -> None:
    gateway = centre.gateway()
    body = (
        "import sys, sqlalchemy; engine = sqlalchemy.create_engine(sys.argv[1]); connection = engine.connect(); "
        "print(connection.scalar(sqlalchemy.text('SELECT session_user'))); connection.close(); engine.dispose()"
    )
    token = centre.token()
    env = environment(HOPAAS_TOKEN=token.secret.reveal(), HOPAAS_CA_FILE=str(centre.authority.file))
    done = subprocess.run(
        [sys.executable, "-c", body, centre.url(gateway.port)], capture_output=True, text=True, timeout=60, env=env
    )
    assert done.stdout.strip() == token.name, done.stderr


def test_optunas_own_storage_goes_through_a_gateway(
    centre: Centre, new_database: Callable[[Any], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    database = new_database(centre.server)
    gateway = centre.gateway(target=f"postgresql://127.0.0.1:{centre.server.port}/{database}")
    monkeypatch.setenv("HOPAAS_TOKEN", f"{OWNER}:{centre.server.password}")
    storage = optuna.storages.RDBStorage(f"postgresql+https://{HOST}:{gateway.port}/{database}")
    study = optuna.create_study(storage=storage, study_name="s")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    assert len(optuna.load_study(storage=storage, study_name="s").trials) == 2
    storage.engine.dispose()


def test_an_sqlalchemy_error_is_the_drivers_and_says_what_ours_says(centre: Centre) -> None:
    engine = sqlalchemy.create_engine(f"postgresql+https://{HOST}:{free_port()}/store")
    with pytest.raises(sqlalchemy.exc.OperationalError, match="HOPAAS_TOKEN_FILE"):
        engine.connect()


@pytest.mark.parametrize(
    ("url", "gateways"),
    [
        ("postgresql+https://gw.example.org/d", ["gw.example.org:443"]),
        ("postgresql+https://gw.example.org:8443/d", ["gw.example.org:8443"]),
        ("postgresql+https://one,two:8443/d", ["one:8443", "two:8443"]),
        ("postgresql+https://one/d?host=two:8443&host=three", ["one:443", "two:8443", "three:443"]),
        ("postgresql+https:///d?host=one,two:1", ["one:443", "two:1"]),
        ("postgresql+https://[::1]:8443/d?host=[2001:db8::1]:1", ["[::1]:8443", "[2001:db8::1]:1"]),
    ],
)
def test_a_url_lists_gateways(url: str, gateways: list[str]) -> None:
    assert [str(one) for one in gateways_of(sqlalchemy.make_url(url))] == gateways
    store = open_store(url)
    assert isinstance(store, PostgresStore)
    assert unquote(store.url) == url
    store.close()


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("postgresql+https://gw", "name the database"),
        ("postgresql+https:///d", "name a gateway"),
        ("postgresql+https://gw/d?host=a:port", "is not a port"),
        ("postgresql+https://gw/d?host=/tmp", "needs a name"),
        ("postgresql+https://gw/d?sslmode=disable", "option sslmode"),
        ("postgresql+https://gw/d?sslrootcert=/x", "option sslrootcert"),
        ("postgresql+https://gw/d?channel_binding=require", "option channel_binding"),
    ],
)
def test_a_url_that_cannot_be_a_gateways_is_refused(url: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        open_store(url)


def test_the_plain_dialect_refuses_what_it_cannot_use() -> None:
    for url in ("postgresql+https://gw", "postgresql+https:///d"):
        with pytest.raises(sqlalchemy.exc.ArgumentError, match="name"):
            TunnelDialect().create_connect_args(sqlalchemy.make_url(url))


# --- several gateways --------------------------------------------------------------------------------------------


def test_a_gateway_that_is_down_is_passed_over_and_the_one_that_answered_is_kept(
    centre: Centre, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = centre.gateway(), centre.gateway()
    monkeypatch.setenv("HOPAAS_TOKEN", centre.token().secret.reveal())
    store = open_store(centre.url(first.port, second.port))
    log = store.log("u")
    append_many(log, "a", 2)
    used, other = (first, second) if first.events("opened") else (second, first)
    used.kill()
    append_many(log, "b", 2)
    store.close()
    append_many(log, "c", 2)
    assert len(everything(log)) == 6
    store.close()
    assert len(other.events("opened")) == 2


def test_all_gateways_down_is_one_clear_line(centre: Centre, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOPAAS_TOKEN", "ann.1:x")
    store = open_store(centre.url(free_port(), free_port()))
    with pytest.raises(StoreUnreachable, match="cannot be reached") as refused:
        store.catalog().exchange(None, 0)
    assert "\n" not in str(refused.value)
    with pytest.raises(StoreUnreachable, match="cannot be resolved on this node"):
        dial(ServerAddress("no-such-host.invalid", 443), Secret("a:b"))


# --- what a connection leaves behind -----------------------------------------------------------------------------


def test_the_socket_is_private_and_gone_when_libpq_has_come(
    through: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[tuple[int, str]] = []
    real = psycopg2.connect

    def look(**options: Any) -> Any:
        folder = Path(options["host"])
        seen.append((stat.S_IMODE(folder.stat().st_mode), str(folder)))
        return real(**options)

    monkeypatch.setattr(psycopg2, "connect", look)
    connection = through()
    ((mode, folder),) = seen
    assert mode == 0o700
    assert len(folder) < 60
    assert not Path(folder).exists()
    connection.close()


def test_nobody_else_is_let_into_the_socket(centre: Centre, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = centre.gateway()
    token = centre.token()
    tunnel = client.Tunnel(dial(ServerAddress(HOST, gateway.port), token.secret))
    stranger = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(s.recv(1))"
    path = f"{tunnel.folder}/.s.PGSQL.5432"
    done = subprocess.run([sys.executable, "-c", stranger, path], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "b''", "another process of the same user was let in"
    ours = socket.socket(socket.AF_UNIX)
    ours.connect(path)
    until(lambda: not Path(path).exists())
    ours.close()
    until(lambda: tunnels() == 0)


@pytest.mark.parametrize("name", ["PGHOSTADDR", "PGSERVICE"])
def test_what_would_lead_past_the_gateway_is_refused(
    through: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "127.0.0.1")
    with pytest.raises(ConfigurationError, match=name):
        through()


def test_a_login_that_postgres_refuses_says_what_postgres_said(through: Callable[..., Any]) -> None:
    with pytest.raises(psycopg2.OperationalError, match="serves another database"):
        through(dbname="postgres")
    until(lambda: tunnels() == 0)


def test_a_database_that_the_gateway_does_not_lead_to_is_one_clear_line_at_once(
    centre: Centre, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = centre.gateway()
    monkeypatch.setenv("HOPAAS_TOKEN", centre.token().secret.reveal())
    store = open_store(f"postgresql+https://{HOST}:{gateway.port}/other")
    with pytest.raises(ConfigurationError, match="serves another database: correct the name") as caught:
        store.catalog().exchange(None, 0)
    assert "socket" not in str(caught.value)
    until(lambda: len(gateway.events("refused")) == 1)


def _inodes() -> set[int]:
    """What this process has open."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(entry.stat().st_ino)
    return found


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_nothing_survives_a_fork(through: Callable[..., Any]) -> None:
    """The child's use of its parent's connection fails there, harms nobody, and leaves no descriptor to the gateway."""
    connection = through()
    pid = says(connection, "SELECT pg_backend_pid()")
    copy = os.dup(connection.fileno())  # as the store's watch over silence has one
    (tunnel,) = client._tunnels
    assert tunnel._unix is not None
    ours = {os.fstat(one).st_ino for one in (tunnel._unix.fileno(), tunnel._connection.socket.fileno(), copy)}
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        outcome = b"?"
        try:
            says(connection)
            outcome = b"the child spoke on its parent's connection"
        except psycopg2.OperationalError:
            outcome = b"open" if _inodes() & ours else b"dead"
            fresh = through()
            outcome += b" fresh" if says(fresh, "SELECT pg_backend_pid()") != pid else b" same"
            fresh.close()
        finally:
            os.write(writing, outcome)
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == b"dead fresh"
    os.waitpid(child, 0)
    os.close(copy)
    assert says(connection, "SELECT pg_backend_pid()") == pid, "the parent's connection goes on"
    connection.close()
    until(lambda: tunnels() == 0)


def test_a_process_with_many_files_open_connects_too(through: Callable[..., Any]) -> None:
    """Beyond the 1024 descriptors that select() can take."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2048:
        pytest.skip("this system does not let a process open 2048 files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    many = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        connection = through()
        assert connection.fileno() > 1024
        assert says(connection, "SELECT 1") == 1
        connection.close()
    finally:
        for one in many:
            os.close(one)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _sockets_in(place: Path) -> list[Path]:
    """Where libpq meets a tunnel of this user."""
    mine = Path("/proc/self").owner()
    found = []
    for one in place.glob("hopaas-*/.s.PGSQL.5432"):
        with contextlib.suppress(FileNotFoundError):
            found += [one] if one.owner() == mine else []
    return found


def test_five_hundred_connections_leave_no_descriptor_and_no_thread(
    centre: Centre, through: Callable[..., Any]
) -> None:
    gateway = centre._gateways[0]
    assert gateway.process is not None
    theirs = Path(f"/proc/{gateway.process.pid}/fd")

    def counted() -> tuple[int, int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count(), len(list(theirs.iterdir()))

    for _ in range(5):
        through().close()
    until(lambda: tunnels() == 0)
    until(lambda: gateway.metrics(centre.authority)["hopaas_gateway_connections"] == 0)
    before = counted()
    places = [Path(one) for one in (os.environ.get("XDG_RUNTIME_DIR"), "/dev/shm", "/tmp") if one]
    there = {one for place in places for one in _sockets_in(place)}  # of a process that was killed, say
    for _ in range(500):
        through().close()
    until(lambda: counted() <= before, what=lambda: f"{before} before, {counted()} now")
    for place in places:
        until(lambda place=place: there.issuperset(_sockets_in(place)))  # another test may have one for a moment
