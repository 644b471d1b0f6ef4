"""Certificates: which gateways are trusted, which never, and what happens before one expires."""

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

import psycopg2
import pytest
import trustme
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from hopaas_p2p.errors import ConfigurationError, HopaasError, StoreUnreachable
from hopaas_p2p.gateway.certificate import Certificate
from hopaas_p2p.gateway.postgres import PostgresTarget
from hopaas_p2p.gateway.server import Gateway as Serving
from hopaas_p2p.net import trust
from hopaas_p2p.net.proxies import ServerAddress
from hopaas_p2p.open import open_store
from hopaas_p2p.runtime.settings import Secret
from hopaas_p2p.tunnel import SUBPROTOCOL, client, dial
from hopaas_p2p.tunnel.dial import GatewayConnection
from tests.support.listening import Listening
from tests.support.ports import free_port
from tests.support.postgres import Server
from tests.support.postgres_fixtures import missing
from tests.support.processes import cli, until
from tests.support.tunnel_fixtures import HOST, PROXIES, Authority, Centre, forget_gateways, tunnels

TOKEN = Secret("ann.12345678:canary")


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """One that is trusted."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    made = Authority(tmp_path)
    monkeypatch.setenv("HOPAAS_CA_FILE", str(made.file))
    forget_gateways()
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


def days_left(connection: GatewayConnection) -> float:
    return trust.days_left(connection.socket.getpeercert() or {})


def refused(port: int) -> HopaasError:
    """What dialling says, whatever a user may have set to make it less strict."""
    with pytest.raises(HopaasError) as caught:
        dial.dial(ServerAddress(HOST, port), TOKEN, timeout=20)
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
    with Impostor(authority.certificate("other.example.org"), http("101 Switching Protocols")) as server:
        error = refused(server.port)
        assert isinstance(error, ConfigurationError)
        assert "another name" in str(error)
    assert server.told == b""


def test_a_certificate_of_an_unknown_authority_is_refused(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "else").mkdir()
    stranger = Authority(tmp_path / "else")
    with Impostor(stranger.certificate(), http("101 Switching Protocols")) as server:
        error = refused(server.port)
        assert isinstance(error, ConfigurationError)
        assert "HOPAAS_CA_FILE" in str(error)
    assert server.told == b""


def test_a_self_signed_certificate_is_refused(authority: Authority, tmp_path: Path) -> None:
    own = trustme.CA()
    own.cert_pem.write_to_path(str(tmp_path / "own.crt"))
    own.private_key_pem.write_to_path(str(tmp_path / "own.key"))
    with Impostor((tmp_path / "own.crt", tmp_path / "own.key"), http("101 Switching Protocols")) as server:
        error = refused(server.port)
        assert isinstance(error, ConfigurationError)
        assert "self-signed" in str(error)
    assert server.told == b""


def test_an_expired_certificate_is_refused_and_worth_another_try_when_it_has_been_renewed(authority: Authority) -> None:
    with Impostor(authority.certificate(days=-1.0), http("101 Switching Protocols")) as server:
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
        answer = http(status, f"Location: http://{HOST}:{trap.port}/v1/pg")
        with Impostor(authority.certificate(), answer) as server:
            error = refused(server.port)
            assert isinstance(error, ConfigurationError)
            assert "not followed" in str(error)
        assert trap.told == b""


@pytest.mark.parametrize(
    "answer",
    [
        http("200 OK"),
        http("404 Not Found"),
        http("101 Switching Protocols"),
        http("101 Switching Protocols", "Upgrade: websocket", "Connection: upgrade", "Sec-WebSocket-Accept: no"),
    ],
)
def test_a_server_that_is_no_gateway_is_refused(authority: Authority, answer: bytes) -> None:
    with Impostor(authority.certificate(), answer) as server:
        error = refused(server.port)
        assert isinstance(error, ConfigurationError)
        assert "not a hopaas-p2p gateway" in str(error)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 101 Switch", b"SSH-2.0-OpenSSH_9.9\r\n"])
def test_a_server_that_says_nothing_sensible_is_given_up_on_in_time(authority: Authority, answer: bytes) -> None:
    with Impostor(authority.certificate(), answer) as server, pytest.raises(HopaasError):
        dial.dial(ServerAddress(HOST, server.port), TOKEN, timeout=1)


def test_a_gateway_that_hangs_is_told_in_plain_words(authority: Authority) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as hung,
        pytest.raises(
            StoreUnreachable,
            match=r"^localhost accepts the connection and then sends nothing. Is a "
            r"gateway",
        ),
    ):
        dial.dial(ServerAddress(HOST, hung.getsockname()[1]), TOKEN, timeout=0.2)


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


@pytest.mark.parametrize("scheme", ["postgresql+http", "http", "ws"])
def test_no_scheme_leads_around_tls(scheme: str) -> None:
    with pytest.raises(ConfigurationError, match="no store has the scheme"):
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
        assert "holds no certificate authorities" in str(refused(port))


class FalseGateway(Impostor):
    """One that lets everybody in, and then says these bytes for ever."""

    def __init__(self, pair: tuple[Path, Path], says: bytes) -> None:
        super().__init__(pair, b"")
        self._says = says

    def serve(self, client: socket.socket) -> None:
        assert self._context is not None
        with self._context.wrap_socket(client, server_side=True) as secured:
            protocol = ServerProtocol(subprotocols=[Subprotocol(SUBPROTOCOL)])
            protocol.receive_data(secured.recv(65536))
            (request,) = protocol.events_received()
            assert isinstance(request, Request)
            protocol.send_response(protocol.accept(request))
            secured.sendall(b"".join(protocol.data_to_send()))
            while True:
                secured.sendall(self._says)


@pytest.mark.parametrize(
    "says",
    [
        b"\xff\xff\xff",
        b"\x81\x02\xff\xff",
        b"\x82\x81\0\0\0\0x",
        b"\x82\x7f\0\0\0\xff\0\0\0\0",
        b"\x88\x02\x03\xe8",
        b"\x82\x09R\0\0\0\x08\0\0\0\x63",
        b"\x82\x05E\0\0\0\x04",
    ],
    ids=["no frame", "text", "masked", "too large", "close", "an unknown demand", "an empty error"],
)
def test_a_gateway_that_talks_nonsense_is_left(authority: Authority, says: bytes) -> None:
    with FalseGateway(authority.certificate(), says) as server:
        with pytest.raises(psycopg2.OperationalError):
            client.connect([ServerAddress(HOST, server.port)], dbname="d", user="u", password="p", connect_timeout=5)
        until(lambda: tunnels() == 0)


# --- the gateway's own -------------------------------------------------------------------------------------------


def test_a_renewed_certificate_is_used_without_a_restart(centre: Centre, monkeypatch: pytest.MonkeyPatch) -> None:
    centre.pair = centre.authority.certificate(days=30.0)
    gateway = centre.gateway("--ping", "0.4")
    token = centre.token()
    old = dial.dial(ServerAddress(HOST, gateway.port), token.secret)
    assert 29.0 < days_left(old) < 30.1
    assert gateway.events("THE CERTIFICATE EXPIRES IN 20 DAYS: renew it") == []
    centre.authority.certificate(days=200.0)
    gateway.signal(signal.SIGHUP)  # as a hook of certbot's may say "reload"; it would not be needed
    until(lambda: gateway.events("certificate loaded"))
    new = dial.dial(ServerAddress(HOST, gateway.port), token.secret)
    assert 199.0 < days_left(new) < 200.1
    centre.pair[1].write_text("half a file")
    until(lambda: gateway.events("certificate not loaded, the old one stays in use"))
    still = dial.dial(ServerAddress(HOST, gateway.port), token.secret)
    for line in (old, new, still):
        line.socket.close()


@pytest.mark.parametrize(
    ("days", "said"),
    [(20.5, "THE CERTIFICATE EXPIRES IN 20 DAYS: renew it"), (-1.0, "THE CERTIFICATE HAS EXPIRED: renew it")],
)
def test_the_gateway_warns_three_weeks_before_its_certificate_ends(centre: Centre, days: float, said: str) -> None:
    centre.pair = centre.authority.certificate(days=days)
    gateway = centre.gateway("--ping", "0.4")
    (warning,) = until(lambda: gateway.events(said), what=gateway.log)
    assert warning["level"] == "warning"


def test_a_certificate_that_cannot_be_used_is_refused_at_the_start(authority: Authority, tmp_path: Path) -> None:
    chain, key = authority.certificate()
    _, other = authority.certificate(name="other")
    for pair in ((chain, other), (tmp_path / "none.crt", key), (key, key)):
        with pytest.raises(ConfigurationError):
            Certificate(*pair)


def test_a_gateway_without_tls_is_refused_unless_it_is_told_who_terminates_it(tmp_path: Path) -> None:
    target = PostgresTarget.of("postgresql://127.0.0.1/store")
    with pytest.raises(ConfigurationError, match="behind-proxy"):
        Serving(target)
    done = cli("gateway", "--listen", "127.0.0.1:0", "--postgres", "postgresql://127.0.0.1/store", check=False)
    assert done.returncode == 78
    assert "--tls-cert" in done.stderr


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("postgresql://ann:secret@127.0.0.1/d", "leave out the login"),
        ("postgresql://one,two/d", "give one host"),
        ("postgresql:///d", "give one host"),
        ("mysql://db.example.org/d", "not a Postgres"),
        ("postgresql+https://gateway.example.org/d", "connects to a database"),
        ("postgresql://db.example.org/d?sslmode=require", "would let others read"),
    ],
)
def test_a_target_that_is_not_one_is_refused(url: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint) as caught:
        PostgresTarget.of(url)
    assert "secret" not in str(caught.value)


def test_a_proxys_header_is_needed_where_tls_is_terminated_by_it(centre: Centre) -> None:
    """So that a proxy which serves port 80 as well does not carry tokens in the clear."""
    gateway = centre.gateway("--behind-proxy", "127.0.0.1", tls=False)
    request = "GET /v1/pg HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer YTpi\r\n{}\r\n"
    for header in ("", "X-Forwarded-Proto: http\r\n"):
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as plain:
            plain.sendall(request.format(header).encode())
            assert plain.recv(65536).startswith(b"HTTP/1.1 403 ")


def test_only_the_proxy_is_served_in_the_clear(centre: Centre) -> None:
    gateway = centre.gateway("--behind-proxy", "192.0.2.1", tls=False)
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as plain, contextlib.suppress(OSError):
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


def test_the_gateway_speaks_tls_with_postgres(
    postgres_with_tls: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "centre"
    folder.mkdir()
    centre = Centre(postgres_with_tls, postgres_with_tls.url(), folder)
    target = f"postgresql://localhost:{postgres_with_tls.port}/postgres?sslmode=verify-full"
    gateway = centre.gateway(target=f"{target}&sslrootcert={os.environ['HOPAAS_CA_FILE']}")
    doubting = centre.gateway(target=f"{target}&sslrootcert={centre.authority.file}")
    monkeypatch.setenv("HOPAAS_CA_FILE", str(centre.authority.file))
    postgres_with_tls.execute("CREATE ROLE ann LOGIN PASSWORD %s", postgres_with_tls.password)
    login = {"dbname": "postgres", "user": "ann", "password": postgres_with_tls.password}
    try:
        connection = client.connect([ServerAddress(HOST, gateway.port)], **login)
        with connection.cursor() as cursor:
            cursor.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
            assert cursor.fetchone()[0]
            cursor.execute("SELECT repeat('x', 1000000)")
            assert len(cursor.fetchone()[0]) == 1_000_000
        connection.close()
        with pytest.raises(StoreUnreachable, match="503"):
            client.connect([ServerAddress(HOST, doubting.port)], **login)
    finally:
        centre.stop()
