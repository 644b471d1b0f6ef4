"""Certificates: which servers are trusted, which never, and what happens before one expires."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import ssl
import struct
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trustme

import hopaas_p2p
from hopaas_p2p import access
from hopaas_p2p.errors import ConfigurationError, Denied, HopaasError, StoreUnreachable
from hopaas_p2p.net import trust
from hopaas_p2p.open import open_store
from hopaas_p2p.remote import client
from hopaas_p2p.remote.access import LOG as ACCESS
from hopaas_p2p.remote.certificate import Certificate
from hopaas_p2p.remote.client import RemoteStore
from hopaas_p2p.remote.https import HttpsServer
from hopaas_p2p.remote.server import PostgresService
from hopaas_p2p.stores.directory.log import FolderLog
from hopaas_p2p.testing.commits import append_many
from tests.support.listening import Listening
from tests.support.ports import free_port
from tests.support.postgres import Server
from tests.support.postgres_fixtures import missing
from tests.support.processes import cli, until
from tests.support.served import HOST, PROXIES, Authority, Centre, forget_servers

TOKEN = "ann.12345678:canary"


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """One that is trusted."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    made = Authority(tmp_path)
    monkeypatch.setenv("HOPAAS_CA_FILE", str(made.file))
    monkeypatch.setenv("HOPAAS_TOKEN", TOKEN)
    forget_servers()
    return made


class Impostor(Listening):
    """A server that answers whatever it is asked in one way, and remembers what it was told."""

    def __init__(self, pair: tuple[Path, Path] | None, answer: bytes, *, newest: ssl.TLSVersion | None = None) -> None:
        super().__init__()
        self._answer = answer
        self._context: ssl.SSLContext | None = None
        if pair is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(*pair)
            if newest is not None:
                self._context.set_ciphers("ALL:@SECLEVEL=0")
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)
                    self._context.minimum_version = ssl.TLSVersion.TLSv1
                    self._context.maximum_version = newest
        self.told = b""

    def serve(self, client: socket.socket) -> None:
        client.settimeout(30)
        wrapped = client if self._context is None else self._context.wrap_socket(client, server_side=True)
        with wrapped:
            self.told += wrapped.recv(65536)
            wrapped.sendall(self._answer)
            while data := wrapped.recv(65536):
                self.told += data


def http(status: str, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", "Content-Length: 0", "Connection: close", *headers, "", ""]).encode()


def days_left(centre: Centre, port: int) -> float:
    context = ssl.create_default_context(cafile=centre.authority.file)
    with (
        socket.create_connection((HOST, port), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname=HOST) as secured,
    ):
        return trust.days_left(secured.getpeercert() or {})


def refused(port: int) -> HopaasError:
    """What dialling says, whatever a user may have set to make it less strict."""
    with pytest.raises(HopaasError) as caught, contextlib.closing(RemoteStore(f"https://{HOST}:{port}")) as store:
        store.facts()
    said = str(caught.value)
    assert "\n" not in said
    assert "canary" not in said
    return caught.value


# --- who is not trusted ------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _careless(monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes other programs careless makes no difference here."""
    for name, value in (("PYTHONHTTPSVERIFY", "0"), ("PGSSLMODE", "disable"), ("NODE_TLS_REJECT_UNAUTHORIZED", "0")):
        monkeypatch.setenv(name, value)


def test_a_certificate_of_another_name_is_refused(authority: Authority) -> None:
    with Impostor(authority.certificate("other.example.org"), http("200 OK")) as server:
        error = refused(server.port)
        assert isinstance(error, ConfigurationError)
        assert "another name" in str(error)
    assert server.told == b""


def test_a_certificate_of_an_unknown_authority_is_refused(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "else").mkdir()
    stranger = Authority(tmp_path / "else")
    with Impostor(stranger.certificate(), http("200 OK")) as server:
        error = refused(server.port)
        assert isinstance(error, ConfigurationError)
        assert "HOPAAS_CA_FILE" in str(error)
    assert server.told == b""


def test_a_self_signed_certificate_is_refused(authority: Authority, tmp_path: Path) -> None:
    own = trustme.CA()
    own.cert_pem.write_to_path(str(tmp_path / "own.crt"))
    own.private_key_pem.write_to_path(str(tmp_path / "own.key"))
    with Impostor((tmp_path / "own.crt", tmp_path / "own.key"), http("200 OK")) as server:
        error = refused(server.port)
        assert isinstance(error, ConfigurationError)
        assert "self-signed" in str(error)
    assert server.told == b""


def test_an_expired_certificate_is_refused_and_worth_another_try_when_it_has_been_renewed(authority: Authority) -> None:
    with Impostor(authority.certificate(days=-1.0), http("200 OK")) as server:
        error = refused(server.port)
        assert isinstance(error, StoreUnreachable)
        assert "has expired" in str(error)
    assert server.told == b""


def test_a_server_in_the_clear_is_told_nothing(authority: Authority) -> None:
    with Impostor(None, http("400 Bad Request")) as server:
        error = refused(server.port)
        assert isinstance(error, ConfigurationError)
        assert "does not speak TLS" in str(error)
    assert b"Bearer" not in server.told


def test_an_outdated_tls_is_refused(authority: Authority) -> None:
    with Impostor(authority.certificate(), b"", newest=ssl.TLSVersion.TLSv1_1) as server:
        refused(server.port)
    assert server.told == b""


@pytest.mark.parametrize("status", ["301 Moved Permanently", "302 Found", "307 Temporary Redirect"])
def test_a_redirect_into_the_clear_is_not_followed(authority: Authority, status: str) -> None:
    with Impostor(None, http("200 OK")) as trap:
        answer = http(status, f"Location: http://{HOST}:{trap.port}/v1")
        with Impostor(authority.certificate(), answer) as server:
            error = refused(server.port)
            assert isinstance(error, ConfigurationError)
            assert "not followed" in str(error)
        assert trap.told == b""


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (http("200 OK"), "not a hopaas-p2p server"),
        (http("404 Not Found"), "not a hopaas-p2p server"),
        (http("418 I'm a teapot"), "not a hopaas-p2p server"),
        (http("401 Unauthorized"), "a proxy in between refused"),  # its own page: our token is as good as before
        (http("403 Forbidden"), "a proxy in between refused"),
        (http("200 OK", "Hopaas-Server: 99"), "its version is '99', and here 1"),
        (http("404 Not Found", "Hopaas-Server: 2"), "its version is '2', and here 1"),
        (http("403 Forbidden", "Hopaas-Server: 1"), "X-Forwarded-Proto: https"),
        (http("411 Length Required", "Hopaas-Server: 1"), "whether a proxy changes requests"),
    ],
)
def test_a_server_of_another_kind_or_version_and_a_proxys_own_page_are_told_apart(
    authority: Authority, answer: bytes, complaint: str
) -> None:
    with Impostor(authority.certificate(), answer) as server:
        error = refused(server.port)
        assert isinstance(error, ConfigurationError)
        assert complaint in str(error)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 101 Switch", b"SSH-2.0-OpenSSH_9.9\r\n"])
def test_a_server_that_says_nothing_sensible_is_given_up_on_in_time(
    authority: Authority, answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_ANSWER", 1.0)
    with Impostor(authority.certificate(), answer) as server:
        assert isinstance(refused(server.port), StoreUnreachable)


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x93\xc0\xa0", b"\x94" + b"\x91" * 5000, b"\x93\x91\x01\xa0\xa0"])
def test_a_server_that_talks_nonsense_is_not_believed(authority: Authority, body: bytes) -> None:
    answer = b"HTTP/1.1 200 OK\r\nHopaas-Server: 1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    with Impostor(authority.certificate(), answer) as server:
        assert "cannot be read" in str(refused(server.port))


def test_a_server_that_hangs_is_told_in_plain_words(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "DIAL", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as hung:
        said = str(refused(hung.getsockname()[1]))
    assert said.startswith("localhost accepts the connection and then sends nothing. To find out why")


def test_a_connection_that_was_just_reset_is_closed(authority: Authority) -> None:
    with socket.create_server((HOST, 0)) as listener:
        plain = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    accepted.close()  # a reset
    select.select([plain], [], [])
    descriptor = plain.fileno()
    with pytest.raises(StoreUnreachable, match="reset"):
        trust.secure(plain, HOST, deadline=time.monotonic() + 10)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


@pytest.mark.parametrize("scheme", ["postgresql+https", "http", "ws"])
def test_no_scheme_leads_around_tls(scheme: str) -> None:
    with pytest.raises(ConfigurationError, match=r"no store has the scheme|is not encrypted"):
        open_store(f"{scheme}://gw.example.org/db")


def test_authorities_that_cannot_be_read_are_a_clear_line(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        monkeypatch.setenv("HOPAAS_CA_FILE", "/nowhere/ca.pem")
        assert "there is no file /nowhere/ca.pem" in str(refused(port))
        empty = authority.file.with_name("empty.pem")
        empty.write_text("nothing")
        monkeypatch.setenv("HOPAAS_CA_FILE", str(empty))
        assert "contains no certificate authorities" in str(refused(port))


# --- the server's own -------------------------------------------------------------------------------------------


def test_a_renewed_certificate_is_used_without_a_restart(centre: Centre) -> None:
    centre.pair = centre.authority.certificate(days=30.0)
    server = centre.serve()
    assert 29.0 < days_left(centre, server.port) < 30.1
    assert server.events("THE CERTIFICATE EXPIRES IN 20 DAYS: renew it") == []
    centre.authority.certificate(days=200.0)
    server.signal(signal.SIGHUP)  # as a hook of certbot's may say "reload"; it would not be needed
    until(lambda: server.events("certificate loaded"))
    assert 199.0 < days_left(centre, server.port) < 200.1
    centre.pair[1].write_text("half a file")
    until(lambda: server.events("certificate not loaded; the old one stays in use"))
    assert 199.0 < days_left(centre, server.port) < 200.1


@pytest.mark.parametrize(
    ("days", "said"),
    [(20.5, "THE CERTIFICATE EXPIRES IN 20 DAYS: renew it"), (-1.0, "THE CERTIFICATE HAS EXPIRED: renew it")],
)
def test_the_server_warns_three_weeks_before_its_certificate_ends(centre: Centre, days: float, said: str) -> None:
    centre.pair = centre.authority.certificate(days=days)
    server = centre.serve("--head", "1")
    (warning,) = until(lambda: server.events(said), what=server.log)
    assert warning["level"] == "warning"


def test_a_certificate_that_cannot_be_used_is_refused_at_the_start(authority: Authority, tmp_path: Path) -> None:
    chain, key = authority.certificate()
    _, other = authority.certificate(name="other")
    for pair in ((chain, other), (tmp_path / "none.crt", key), (key, key)):
        with pytest.raises(ConfigurationError):
            Certificate(*pair)


def test_who_grants_through_the_server_of_a_database_hears_where_an_owner_may() -> None:
    request: Any = SimpleNamespace(kind=SimpleNamespace(of="log"), place=ACCESS)
    unused: Any = None
    with (
        contextlib.closing(PostgresService("postgresql://127.0.0.1/store")) as service,
        pytest.raises(Denied, match=r"--store postgresql://.* owner of a study may grant with the same token"),
    ):
        service.call(unused, request, unused)


def test_a_server_without_tls_is_refused_unless_it_is_told_who_terminates_it() -> None:
    url = "postgresql://127.0.0.1/store"
    with contextlib.closing(PostgresService(url)) as service, pytest.raises(ConfigurationError, match="behind-proxy"):
        HttpsServer(service)
    done = cli("serve", "https", url, "--listen", "127.0.0.1:0", check=False)
    assert done.returncode == 78
    assert "--tls-cert" in done.stderr


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("postgresql://ann:secret@127.0.0.1/d", "leave out the login"),
        ("postgresql://db.example.org/d?sslmode=require", "would let others read"),
        ("https://gateway.example.org/d", "use the URL of the store itself"),
        ("mysql://db.example.org/d", "no store has the scheme"),
        ("./nothing/here", "there is no store"),
    ],
)
def test_a_store_that_cannot_be_served_is_refused(centre: Centre, url: str, complaint: str) -> None:
    pair = ["--tls-cert", str(centre.pair[0]), "--tls-key", str(centre.pair[1])]
    done = cli("serve", "https", url, "--listen", "127.0.0.1:0", *pair, check=False)
    assert done.returncode == 78
    assert complaint in done.stderr
    assert "secret" not in done.stderr


def test_a_proxys_header_is_needed_where_tls_is_terminated_by_it(centre: Centre) -> None:
    """So that a proxy which serves port 80 as well does not carry tokens in the clear."""
    server = centre.serve("--behind-proxy", "127.0.0.1", tls=False)
    request = "POST /v1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer YTpi\r\n{}\r\n"
    for header in ("", "X-Forwarded-Proto: http\r\n"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as plain:
            plain.sendall(request.format(header).encode())
            assert plain.recv(65536).startswith(b"HTTP/1.1 403 ")


def test_only_the_proxy_is_served_in_the_clear(centre: Centre) -> None:
    server = centre.serve("--behind-proxy", "192.0.2.1", tls=False)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as plain, contextlib.suppress(OSError):
        plain.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert plain.recv(65536) == b""


@pytest.fixture
def postgres_with_tls(authority: Authority) -> Iterator[Server]:
    """A server with a certificate for localhost of the trusted authority."""
    from tests.support.postgres import find_binaries

    able = [binaries for binaries in find_binaries().values() if binaries.speaks_tls]
    if not able:
        missing("a Postgres server that speaks TLS")
    server = Server(max(able))
    chain, key = authority.certificate(name="postgres")
    server.settings |= {
        "ssl": "on",
        "ssl_cert_file": str(server.place("server.crt", chain.read_bytes())),
        "ssl_key_file": str(server.place("server.key", key.read_bytes())),
    }
    server.start()
    yield server
    server.stop()


def test_the_server_speaks_tls_with_postgres(
    postgres_with_tls: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "centre"
    folder.mkdir()
    access.initialise(postgres_with_tls.url())
    centre = Centre(postgres_with_tls, postgres_with_tls.url(), folder)
    target = f"postgresql://localhost:{postgres_with_tls.port}/postgres?sslmode=verify-full"
    server = centre.serve(target=f"{target}&sslrootcert={os.environ['HOPAAS_CA_FILE']}")
    doubting = centre.serve(target=f"{target}&sslrootcert={centre.authority.file}")
    monkeypatch.setenv("HOPAAS_CA_FILE", str(centre.authority.file))
    monkeypatch.setenv("HOPAAS_TOKEN", centre.token().secret.reveal())
    try:
        with contextlib.closing(open_store(centre.url(server.port))) as store:
            log = store.log("u")
            append_many(log, "a", 3)
            sessions = "pg_stat_ssl s JOIN pg_stat_activity a USING (pid) WHERE a.usename LIKE 'ann.%%'"
            ((secured,),) = postgres_with_tls.execute(f"SELECT bool_and(s.ssl) FROM {sessions}")
            assert secured
        forget_servers()
        with (
            contextlib.closing(open_store(centre.url(doubting.port))) as store,
            pytest.raises(StoreUnreachable, match="503"),
        ):
            store.catalog().exchange(None, 0)
    finally:
        centre.stop()


@pytest.mark.parametrize("kind", [Denied, ConfigurationError])
def test_training_goes_on_while_a_proxy_answers_in_the_servers_place(
    kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_words: Any, **_named: Any) -> Any:
        raise kind("the server gw answered 403 Forbidden: a proxy in between refused")

    study = hopaas_p2p.open_study(tmp_path / "store", "s", space={"x": hopaas_p2p.Float(0, 1)})
    trial = study.ask()
    trial.report(0.5, 0)
    with monkeypatch.context() as page:
        page.setattr(FolderLog, "exchange", refuse)
        page.setattr(FolderLog, "changed", lambda _log, _since: True)
        trial.report(0.4, 1)
        assert not trial.should_prune()
    study.tell(trial, 0.3)
    assert study.trials[0].intermediate_values == {0: 0.5, 1: 0.4}
    study.close()
