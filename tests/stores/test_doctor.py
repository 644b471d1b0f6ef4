"""The doctor at every kind of store, on real ones: what it finds, what it says to do, and that it stops in time."""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from hopaas_p2p import access
from hopaas_p2p.errors import Denied
from hopaas_p2p.net import checks as net_checks
from hopaas_p2p.net.findings import AGAIN, Finding, clock
from hopaas_p2p.net.proxies import Proxy, ServerAddress
from hopaas_p2p.net.trust import client_context
from hopaas_p2p.open import open_store
from hopaas_p2p.remote.client import RemoteStore
from hopaas_p2p.runtime.settings import Secret
from hopaas_p2p.stores import checks
from hopaas_p2p.stores.base import ExchangeResult
from hopaas_p2p.stores.memory import MemoryLog
from hopaas_p2p.stores.objects.contract import Found
from hopaas_p2p.stores.objects.race import race
from hopaas_p2p.stores.postgres.errors import SCHEMA_VERSION
from hopaas_p2p.stores.postgres.store import PostgresStore
from hopaas_p2p.stores.s3.store import S3Store
from tests.support.connect_proxy import ConnectProxy
from tests.support.listening import Answering
from tests.support.postgres import Server, find_binaries
from tests.support.postgres_fixtures import missing
from tests.support.processes import cli
from tests.support.s3_server import S3Server
from tests.support.served import Centre


def by_check(findings: Iterator[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings}


def without_login(url: str) -> str:
    return re.sub("//.*@", "//", url)


def given() -> dict[str, str]:
    """Settings of this test, for a command."""
    return {name: value for name, value in os.environ.items() if name.startswith(("HOPAAS_", "AWS_"))}


def one(findings: Iterator[Finding]) -> Finding:
    """The only one that failed, and the last."""
    found = list(findings)
    assert [finding.passed for finding in found] == [True] * (len(found) - 1) + [False], found
    return found[-1]


# --- certificates and the way there ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@contextlib.contextmanager
def tls_server(authority: trustme.CA, *names: str, days: float = 90.0, begun: float = -1.0) -> Iterator[int]:
    """Something that speaks TLS with a certificate of so many days; its port."""
    now = datetime.datetime.now(tz=datetime.UTC)
    certificate = authority.issue_cert(
        *names,
        not_before=now + datetime.timedelta(days=min(begun, days - 1)),
        not_after=now + datetime.timedelta(days=days, minutes=5),
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    with client, contextlib.suppress(OSError), context.wrap_socket(client, server_side=True) as secured:
                        secured.recv(1)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.fixture
def trust(authority: trustme.CA, tmp_path: Path) -> ssl.SSLContext:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return client_context(str(tmp_path / "ca.pem"))


def test_a_good_certificate_passes_with_the_days_it_has_left(authority: trustme.CA, trust: ssl.SSLContext) -> None:
    with tls_server(authority, "localhost", days=90) as port:
        found = by_check(net_checks.checks(ServerAddress("localhost", port), trust))
    assert list(found) == ["name", "connect", "tls"]
    assert all(finding.passed for finding in found.values())
    assert "90 days left" in found["tls"].detail
    assert "trustme" in found["tls"].detail


def test_a_certificate_of_less_than_21_days_is_a_loud_failure(authority: trustme.CA, trust: ssl.SSLContext) -> None:
    for days, passed in ((21, True), (20, False), (1, False)):
        with tls_server(authority, "localhost", days=days) as port:
            found = by_check(net_checks.checks(ServerAddress("localhost", port), trust))["tls"]
        assert found.passed is passed
        if not passed:
            assert f"THE CERTIFICATE EXPIRES IN {days} DAYS" in found.detail
            assert "renew it now" in found.cure


def test_certificates_that_are_not_to_be_trusted_are_named_for_what_is_wrong(
    authority: trustme.CA, trust: ssl.SSLContext
) -> None:
    with tls_server(authority, "localhost", days=-1) as port:
        expired = one(net_checks.checks(ServerAddress("localhost", port), trust))
    assert "expired" in expired.detail
    assert "has to renew it" in expired.detail
    with tls_server(authority, "gateway.example.org") as port:
        elsewhere = one(net_checks.checks(ServerAddress("localhost", port), trust))
    assert "match" in elsewhere.detail.lower()
    assert "the name that it is for" in elsewhere.detail
    with tls_server(trustme.CA(), "localhost") as port:
        unknown = one(net_checks.checks(ServerAddress("localhost", port), trust))
    assert unknown.check == "tls"
    assert "HOPAAS_CA_FILE" in unknown.detail


def test_a_name_that_is_not_known_and_a_port_where_nobody_listens(trust: ssl.SSLContext) -> None:
    nowhere = one(net_checks.checks(ServerAddress("no-such-host.invalid", 443), trust))
    assert (nowhere.check, "name server" in nowhere.cure) == ("name", True)
    assert "Errno" not in nowhere.detail
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    closed = one(net_checks.checks(ServerAddress("127.0.0.1", port), trust))
    assert (closed.check, "hopaas-p2p serve relay" in closed.cure) == ("connect", True)


def test_a_server_that_speaks_something_else_is_told_from_a_bad_certificate(trust: ssl.SSLContext) -> None:
    with Answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as server:
        found = one(net_checks.checks(ServerAddress("localhost", server.port), trust))
    assert found.check == "tls"
    assert "does not speak TLS" in found.detail


# --- directories --------------------------------------------------------------------------------------------------


def test_a_directory_that_is_mounted_for_reading_only_is_no_defect_of_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path / "store"))

    def refuse(_text: str, path: str | Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(os, "symlink", refuse)
    findings = list(checks.examine(store))
    failed = [finding for finding in findings if not finding.passed]
    assert [finding.check for finding in failed] == ["store", "write and read"]
    for finding in failed:
        assert "Read-only file system" in finding.detail
        assert "this node can read studies" in finding.cure
    assert by_check(iter(findings))["reach"].passed


# --- proxies -----------------------------------------------------------------------------------------------------


def test_a_proxy_lets_through_whom_it_knows_and_is_named_to_others(
    authority: trustme.CA, trust: ssl.SSLContext
) -> None:
    with ConnectProxy("ann", "s3cret") as proxy, tls_server(authority, "localhost") as port:

        def way(login: str | None) -> Iterator[Finding]:
            by = Proxy("http", ServerAddress("127.0.0.1", proxy.port), login and Secret(login))
            return net_checks.checks(ServerAddress("localhost", port), trust, by)

        found = by_check(way("ann:s3cret"))
        assert list(found) == ["name", "proxy", "tls"]
        assert all(finding.passed for finding in found.values())
        without, wrong = one(way(None)), one(way("ann:guess"))
    assert f"http://127.0.0.1:{proxy.port} answered 407" in without.detail
    assert "it requires a login" in without.detail
    assert "the login in HTTPS_PROXY is wrong" in wrong.detail
    assert "HTTPS_PROXY" in wrong.cure
    assert "guess" not in str(wrong)
    assert "s3cret" not in str(found)


def test_a_proxy_that_is_not_there_is_not_taken_for_the_server(trust: ssl.SSLContext) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    found = one(
        net_checks.checks(
            ServerAddress("gateway.example.org", 443), trust, Proxy("http", ServerAddress("127.0.0.1", port), None)
        )
    )
    assert found.check == "proxy"
    assert f"the proxy http://127.0.0.1:{port} cannot be reached" in found.detail


# --- Postgres ----------------------------------------------------------------------------------------------------


def test_a_sound_postgres_passes(any_postgres_url: str) -> None:
    store = PostgresStore(any_postgres_url)
    found = by_check(checks.examine(store))
    store.close()
    assert [finding for finding in found.values() if not finding.passed] == []
    expected = ["name", "connect", "server", "token", "clock", "open to all", "schema", "reach", "write and read"]
    assert list(found)[: len(expected)] == expected
    assert "login dba, which does not expire" in found["token"].detail
    assert "Postgres 1" in found["server"].detail


def test_a_tokens_user_and_expiry_are_told_and_its_last_hours_are_a_failure(
    postgres: Server, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    access.add_user(postgres_url, "ann")
    token = access.create_token(postgres_url, "ann", days=7)
    monkeypatch.setenv("HOPAAS_TOKEN", token.secret.reveal())
    store = PostgresStore(without_login(postgres_url))
    found = by_check(checks.examine(store))
    assert f"user ann, token {token.name}" in found["token"].detail
    assert "7.0 days left" in found["token"].detail
    assert [finding for finding in found.values() if not finding.passed] == []
    postgres.execute(
        f"""ALTER ROLE "{token.name}" VALID UNTIL '{datetime.datetime.now() + datetime.timedelta(hours=2)}'"""
    )
    late = by_check(checks.examine(store))["token"]
    store.close()
    assert not late.passed
    assert "hopaas-p2p admin token create ann" in late.cure
    assert token.secret.reveal().partition(":")[2] not in str(found) + str(late)


def test_a_study_that_is_not_shared_is_no_failure(postgres_url: str, postgres: Server, monkeypatch: Any) -> None:
    import hopaas_p2p

    hopaas_p2p.open_study(postgres_url, "private").close()
    access.add_user(postgres_url, "bob")
    token = access.create_token(postgres_url, "bob")
    monkeypatch.setenv("HOPAAS_TOKEN", token.secret.reveal())
    store = PostgresStore(without_login(postgres_url))
    found = by_check(checks.examine(store))
    store.close()
    assert found["study private"] == Finding("study private", "not shared with this user")


def test_nor_is_one_of_which_only_the_commits_are_denied(monkeypatch: pytest.MonkeyPatch) -> None:
    import hopaas_p2p

    url = "memory://nor-is-one"
    hopaas_p2p.open_study(url, "private").close()
    store, exchange = open_store(url), MemoryLog.exchange
    (private,) = store._logs.values()  # type: ignore[attr-defined]

    def guarded(self: MemoryLog, *given: Any) -> ExchangeResult:
        if self is private:
            raise Denied("user bob has no grant for this study")
        return exchange(self, *given)

    monkeypatch.setattr(MemoryLog, "exchange", guarded)
    found = by_check(checks.examine(store))
    assert found["study private"] == Finding("study private", "not shared with this user")


def test_a_wrong_secret_and_a_database_without_a_store_are_said_once(
    postgres: Server, new_database: Any, postgres_url: str
) -> None:
    wrong = PostgresStore(re.sub("dba:.*@", "dba:guess@", postgres_url))
    denied = one(checks.examine(wrong))
    assert denied.check == "token"
    assert "wrong, expired or revoked. Ask an administrator of the store" in denied.detail
    assert denied.cure == AGAIN, "and nothing about grants"
    assert "guess" not in str(denied)
    empty = PostgresStore(postgres.url(new_database(postgres), user="dba"))
    found = by_check(checks.examine(empty))
    assert not found["schema"].passed
    assert "hopaas-p2p admin init" in found["schema"].detail
    assert list(found)[-1] == "schema"
    empty.close()


def test_an_older_schema_is_told_from_a_newer_one(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from hopaas_p2p.stores.postgres import checks as postgres_checks
    from hopaas_p2p.stores.postgres import errors as postgres_errors

    needs = {
        SCHEMA_VERSION + 1: "brings it up to date with: hopaas-p2p admin init",
        SCHEMA_VERSION - 1: "upgrade hopaas_p2p",
    }
    for version, cure in needs.items():
        for module in (postgres_checks, postgres_errors):
            monkeypatch.setattr(module, "SCHEMA_VERSION", version)
        store = PostgresStore(postgres_url)
        found = by_check(checks.examine(store))["schema"]
        store.close()
        assert not found.passed
        assert cure in found.detail


def test_a_postgres_that_is_down_ends_the_examination_at_once(postgres_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    store = PostgresStore(f"postgresql://u@127.0.0.1:{port}/d")
    assert one(checks.examine(store)).check == "connect"


def test_a_socket_has_no_way_to_look_at(postgres: Server) -> None:
    store = PostgresStore("postgresql://u@/d?host=/var/run/postgresql")
    assert store.address.destinations == [("/var/run/postgresql", 0)]
    assert list(checks.way_to(store)) == []


@pytest.mark.parametrize(
    ("url", "servers"),
    [
        ("postgresql://u@db.example.org/d", [("db.example.org", 5432)]),
        ("postgresql://u@db.example.org:6432/d", [("db.example.org", 6432)]),
        ("postgresql://u@/d?host=one:1&host=two:2", [("one", 1), ("two", 2)]),
        ("postgresql://u@/d?host=one,two&port=1,2", [("one", 1), ("two", 2)]),
        ("postgresql://u@[::1]:7/d", [("::1", 7)]),
    ],
)
def test_the_servers_of_a_url_are_those_that_libpq_tries(
    url: str, servers: list[tuple[str, int]], monkeypatch: Any
) -> None:
    monkeypatch.delenv("PGPORT", raising=False)
    assert PostgresStore(url).address.destinations == servers


def test_a_postgres_behind_tls_shows_its_certificate(authority: trustme.CA, tmp_path: Path) -> None:
    able = [binaries for binaries in find_binaries().values() if binaries.speaks_tls]
    if not able:
        missing("a Postgres server that speaks TLS")
    now = datetime.datetime.now(tz=datetime.UTC)
    certificate = authority.issue_cert("localhost", not_after=now + datetime.timedelta(days=5, minutes=5))
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    server = Server(max(able))
    chain = b"".join(part.bytes() for part in certificate.cert_chain_pems)
    server.settings |= {
        "ssl": "on",
        "ssl_cert_file": str(server.place("server.crt", chain)),
        "ssl_key_file": str(server.place("server.key", certificate.private_key_pem.bytes())),
    }
    with server:
        access.initialise(server.url())
        url = server.url().replace("127.0.0.1", "localhost") + "?sslmode=verify-full"
        store = PostgresStore(f"{url}&sslrootcert={ca}")
        found = by_check(checks.examine(store))
        store.close()
        stranger = one(checks.examine(PostgresStore(url)))
    assert [name for name, finding in found.items() if not finding.passed] == ["tls"]
    assert "THE CERTIFICATE EXPIRES IN 5 DAYS" in found["tls"].detail
    assert stranger.check == "tls"
    assert "HOPAAS_CA_FILE" in stranger.detail


def test_a_postgres_without_tls_is_told_from_one_with_a_bad_certificate(
    postgres: Server, postgres_url: str, authority: trustme.CA, tmp_path: Path
) -> None:
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    found = one(checks.examine(PostgresStore(f"{postgres_url}?sslmode=verify-full&sslrootcert={ca}")))
    assert "does not speak TLS" in found.detail


# --- the server -------------------------------------------------------------------------------------------------


def test_a_sound_server_passes_and_a_wrong_token_does_not(centre: Centre, monkeypatch: pytest.MonkeyPatch) -> None:
    server, token = centre.serve(), centre.token("ann", days=7)
    monkeypatch.setenv("HOPAAS_TOKEN", token.secret.reveal())
    store = RemoteStore(centre.url(server.port))
    found = by_check(checks.examine(store))
    store.close()
    assert [finding for finding in found.values() if not finding.passed] == []
    assert list(found)[:5] == ["name", "connect", "tls", "server", "reach"]
    assert f"accepts {token.name}, whose token expires in 7.0 days" in found["server"].detail
    access.revoke_token(centre.store, token.name)
    revoked = one(checks.examine(RemoteStore(centre.url(server.port))))
    assert revoked.check == "server"
    assert "revoked" in revoked.detail
    monkeypatch.setenv("HOPAAS_TOKEN", f"{token.name}:guess")
    denied = one(checks.examine(RemoteStore(centre.url(server.port))))
    assert denied.check == "server"
    assert "answered 401" in denied.detail
    assert "Ask an administrator of the store" in denied.detail
    assert token.secret.reveal().partition(":")[2] not in str(found) + str(denied)


def test_a_servers_certificate_that_ends_soon_is_told_though_all_else_works(
    centre: Centre, monkeypatch: pytest.MonkeyPatch
) -> None:
    centre.pair = centre.authority.certificate("localhost", days=10.01, name="short")
    server = centre.serve()
    monkeypatch.setenv("HOPAAS_TOKEN", centre.token().secret.reveal())
    found = json.loads(cli("doctor", centre.url(server.port), "--json", check=False, **given()).stdout)
    failed = [finding for finding in found if not finding["passed"]]
    assert [finding["check"] for finding in failed] == ["tls"]
    assert "THE CERTIFICATE EXPIRES IN 10 DAYS" in failed[0]["detail"]


def test_of_two_servers_one_is_enough_and_both_are_told(centre: Centre, monkeypatch: pytest.MonkeyPatch) -> None:
    server = centre.serve()
    monkeypatch.setenv("HOPAAS_TOKEN", centre.token().secret.reveal())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = listener.getsockname()[1]
    store = RemoteStore(centre.url(closed, server.port))
    found = list(checks.examine(store))
    store.close()
    assert [finding.check for finding in found if not finding.passed] == ["connect"]
    assert "server" in [finding.check for finding in found]
    assert found[-1].check == "studies"


def test_without_a_token_nothing_is_tried(centre: Centre) -> None:
    server = centre.serve()
    found = one(checks.examine(RemoteStore(centre.url(server.port))))
    assert (found.check, "HOPAAS_TOKEN_FILE" in found.detail) == ("server", True)


# --- S3 ----------------------------------------------------------------------------------------------------------


def test_a_sound_bucket_passes_and_nothing_of_the_race_stays(s3_url: str) -> None:
    store = S3Store(s3_url)
    found = by_check(checks.examine(store))
    assert [finding for finding in found.values() if not finding.passed] == []
    expected = ["name", "connect", "race", "clock", "reach", "write and read"]
    assert list(found)[: len(expected)] == expected
    assert "exactly one winner each" in found["race"].detail
    assert found["clock"].detail.startswith("the store's clock ")
    assert [key for key in store.objects.listed("study/") if "/snapshot/" in key] == []
    store.close()


@pytest.mark.parametrize(
    ("ahead", "said"),
    [
        (-1.0, "agrees with ours to the second"),
        (-30.0, "differs from ours by -30 s"),
        (86400.0, "differs from ours by +86400 s"),
    ],
)
def test_a_clock_that_tells_whole_seconds_is_not_called_wrong_by_one(ahead: float, said: str) -> None:
    found = clock(ahead)
    assert found.detail == f"the store's clock {said}"
    assert found.passed == (abs(ahead) < 60)


def test_a_race_whose_winner_is_not_what_is_there_fails(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = S3Store(s3_url)
    monkeypatch.setattr(store.objects, "get_many", lambda keys, limit: [Found(b"another", 7)] * len(keys))
    assert "not the winner's" in race(store.objects, "race/").seen
    monkeypatch.setattr(store.objects, "get_many", lambda keys, limit: [None] * len(keys))
    assert "the object is missing" in race(store.objects, "race/").seen
    store.close()


def test_wrong_keys_are_said_once(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "guess")
    found = one(checks.examine(S3Store(s3_url)))
    assert "keys are invalid or expired" in found.detail
    assert "guess" not in str(found)


def test_a_bucket_behind_a_proxy_says_that_it_answered_407(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ConnectProxy("ann", "s3cret") as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://ann:guess@127.0.0.1:{proxy.port}")
        store = S3Store("s3://bucket/x?endpoint=https://s3.example.org&region=r")
        found = one(checks.examine(store))
        store.close()
    assert f"http://127.0.0.1:{proxy.port} answered 407" in found.detail
    assert "guess" not in str(found)


# --- the command -------------------------------------------------------------------------------------------------


def test_the_command_speaks_json_of_every_kind_of_store(postgres_url: str, s3_url: str, tmp_path: Path) -> None:
    cli("study", "create", "s", "--store", str(tmp_path / "store"))
    for url in (str(tmp_path / "store"), postgres_url, s3_url):
        if url == s3_url:
            cli("study", "create", "s", "--store", url, **given())
        found = json.loads(cli("doctor", url, "--json", **given()).stdout)
        assert all(finding["passed"] and set(finding) == {"check", "passed", "detail", "cure"} for finding in found)
        assert {"reach", "write and read", "exchange", "beat", "clock"} <= {finding["check"] for finding in found}
