"""Whom a gateway lets in, whom it sends away and how, and what it tells."""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from hopaas_p2p import access
from hopaas_p2p.errors import Denied
from hopaas_p2p.net.proxies import ServerAddress
from hopaas_p2p.open import open_store
from hopaas_p2p.runtime.settings import Secret
from hopaas_p2p.tunnel import SUBPROTOCOL, client, dial, encode_header
from hopaas_p2p.tunnel.dial import GatewayBusy
from tests.support.ports import free_port
from tests.support.postgres import Server
from tests.support.processes import cli, until
from tests.support.tunnel_fixtures import HOST, Authority, Centre, GatewayProcess, Raw, fetch, forget_gateways, startup

LOGINS = "hopaas_gateway_token_logins_total"


@pytest.fixture
def gateway(centre: Centre) -> GatewayProcess:
    return centre.gateway()


def asked(gateway: GatewayProcess, authority: Authority, *headers: str, path: str = "/v1/pg") -> tuple[int, str]:
    """(status, the whole answer) for a request for a tunnel with these headers."""
    context = ssl.create_default_context(cafile=authority.file)
    upgrade = [f"Host: {HOST}", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]
    upgrade += ["Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", f"Sec-WebSocket-Protocol: {SUBPROTOCOL}"]
    with socket.create_connection((HOST, gateway.port), timeout=60) as plain:
        secured = context.wrap_socket(plain, server_hostname=HOST)
        secured.sendall("\r\n".join([f"GET {path} HTTP/1.1", *upgrade, *headers, "", ""]).encode())
        answer = b""
        while b"\r\n\r\n" not in answer and (data := secured.recv(65536)):
            answer += data
        secured.close()
    return int(answer.split()[1]), answer.decode()


def bearer(token: str) -> str:
    return f"Authorization: Bearer {encode_header(token)}"


def connects(gateway: GatewayProcess, token: Secret, **options: Any) -> Any:
    role, _, password = token.reveal().partition(":")
    login = {"dbname": "store", "user": role, "password": password, **options}
    return client.connect([ServerAddress(HOST, gateway.port)], **login)


# --- tokens ------------------------------------------------------------------------------------------------------


def test_who_is_refused_gets_no_hint_why(gateway: GatewayProcess, centre: Centre) -> None:
    good, revoked, expired = (centre.token() for _ in range(3))
    access.revoke_token(centre.store, revoked.name)
    centre.server.execute(f"ALTER ROLE \"{expired.name}\" VALID UNTIL '2001-01-01'")
    tokens = ["nobody:x", f"{good.name}:wrong", revoked.secret.reveal(), expired.secret.reveal()]
    headers = [bearer(token) for token in tokens]
    headers += ["X: y", "Authorization: Basic YTpi", "Authorization: Bearer", "Authorization: Bearer !!", bearer("a")]
    headers += [
        bearer("a\0b:c"),
        bearer(":c"),
        bearer("ä:" + "x" * 3000),
        bearer("postgres:"),
        "Authorization: Bearer _zp4",
    ]
    answers = {
        "\n".join(line for line in asked(gateway, centre.authority, header)[1].splitlines() if "Date:" not in line)
        for header in headers
    }
    (answer,) = answers
    assert answer.startswith("HTTP/1.1 401 Unauthorized\n")
    assert "Content-Length: 0" in answer
    assert asked(gateway, centre.authority, bearer(good.secret.reveal()))[0] == 101


def test_two_authorizations_are_none(gateway: GatewayProcess, centre: Centre) -> None:
    good = bearer(centre.token().secret.reveal())
    assert asked(gateway, centre.authority, good, good)[0] == 401


def test_a_thousand_wrong_tokens_cost_postgres_a_few_logins_and_good_ones_nothing(centre: Centre) -> None:
    gateway = centre.gateway()
    good = centre.token()
    connects(gateway, good.secret).close()
    before = gateway.metrics(centre.authority)[LOGINS]
    began = time.monotonic()

    def guess(number: int) -> str:
        try:
            dial.dial(ServerAddress(HOST, gateway.port), Secret(f"{good.name}:guess-{number}"), timeout=60)
        except Denied:
            return "401"
        except GatewayBusy as error:
            return "429" if "429" in str(error) and error.retry_after >= 1.0 else str(error)
        return "let in"

    with ThreadPoolExecutor(8) as pool:
        half = list(pool.map(guess, range(500)))
        connects(gateway, good.secret).close()
        half += list(pool.map(guess, range(500, 1000)))
    seconds = time.monotonic() - began
    assert set(half) <= {"401", "429"}
    logins = gateway.metrics(centre.authority)[LOGINS] - before
    told = until(lambda: gateway.events("turned away"))
    assert sum(line["times"] for line in told) > len(told), "together, a line a second"
    assert half.count("401") <= logins <= 20 + 8 + seconds, "twenty at once, one a second, and those under way"
    connects(gateway, good.secret).close()
    assert gateway.events("failed") == []
    other = centre.token("bob")
    forget_gateways()
    until(lambda: _succeeds(gateway, other.secret), 60)


def _succeeds(gateway: GatewayProcess, token: Secret) -> bool:
    with contextlib.suppress(GatewayBusy):
        forget_gateways()
        connects(gateway, token).close()
        return True
    return False


def test_a_wrong_token_again_is_refused_without_asking_postgres(gateway: GatewayProcess, centre: Centre) -> None:
    for _ in range(10):
        assert asked(gateway, centre.authority, bearer("ann.00000000:old"))[0] == 401
    assert gateway.metrics(centre.authority)[LOGINS] == 1


def test_many_peers_that_come_at_once_with_one_token_cost_one_login(gateway: GatewayProcess, centre: Centre) -> None:
    token = centre.token()
    with ThreadPoolExecutor(20) as pool:
        made = list(pool.map(lambda _: connects(gateway, token.secret), range(40)))
    assert gateway.metrics(centre.authority)[LOGINS] == 1
    assert gateway.metrics(centre.authority)["hopaas_gateway_connections"] == 40
    for connection in made:
        connection.close()


def test_a_token_has_so_many_tunnels_and_the_gateway_too(centre: Centre) -> None:
    gateway = centre.gateway("--per-token", "2", "--connections", "3")
    ann, bob = centre.token("ann"), centre.token("bob")
    first = [connects(gateway, ann.secret) for _ in range(2)]
    with pytest.raises(GatewayBusy, match="429"):
        connects(gateway, ann.secret)
    forget_gateways()
    first.append(connects(gateway, bob.secret))
    with pytest.raises(GatewayBusy, match="503"):
        connects(gateway, bob.secret)
    first[0].close()
    until(lambda: _succeeds(gateway, ann.secret))
    for one in first:
        one.close()


def test_a_gateway_that_is_busy_is_left_alone_for_a_while(centre: Centre) -> None:
    gateway = centre.gateway("--per-token", "1")
    token = centre.token()
    first = connects(gateway, token.secret)
    with pytest.raises(GatewayBusy, match="429"):
        connects(gateway, token.secret)
    with pytest.raises(GatewayBusy, match="asked to retry in"):
        connects(gateway, token.secret)
    assert gateway.metrics(centre.authority)['hopaas_gateway_handshakes_total{status="429"}'] == 1
    first.close()


def test_the_end_of_a_token_ends_its_tunnels(centre: Centre) -> None:
    """At its very end, though the next regular look at it is minutes away."""
    gateway = centre.gateway("--recheck", "300")
    now = centre.server.execute("SELECT now()")[0][0]
    token = centre.token(valid=(now + datetime.timedelta(seconds=4)).isoformat())
    line = dial.dial(ServerAddress(HOST, gateway.port), token.secret)
    assert line.role == token.name
    assert line.expires is not None
    assert datetime.datetime.fromisoformat(line.expires) == token.expires.replace(microsecond=0)
    raw = Raw(line)
    assert raw.until_closed()[1] == 1008
    with pytest.raises(Denied, match="wrong, expired or revoked"):
        connects(gateway, token.secret)


def test_a_token_that_lost_its_right_loses_its_tunnels_at_the_next_look(centre: Centre) -> None:
    gateway = centre.gateway("--recheck", "0.4")
    ann, bob = centre.token("ann"), centre.token("bob")
    theirs = [connects(gateway, ann.secret) for _ in range(3)]
    others = connects(gateway, bob.secret)
    centre.server.execute(f"ALTER ROLE \"{ann.name}\" VALID UNTIL '2001-01-01'")
    ended = until(lambda: gateway.events("token ended"))
    assert ended[0]["role"] == ann.name
    for connection in theirs:
        with pytest.raises(psycopg2.OperationalError), connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        connection.close()
    with others.cursor() as cursor:
        cursor.execute("SELECT 1")
    others.close()


def test_a_store_whose_token_was_revoked_says_so(centre: Centre, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = centre.gateway("--recheck", "0.4")
    token = centre.token()
    monkeypatch.setenv("HOPAAS_TOKEN", token.secret.reveal())
    with contextlib.closing(open_store(centre.url(gateway.port))) as store:
        store.catalog().exchange(None, 0)
        access.revoke_token(centre.store, token.name)
        with pytest.raises(Denied, match="hopaas-p2p token create"):
            until(lambda: store.catalog().exchange(None, 0) and None)
        asked_so_far = _handshakes(centre, gateway)
        with pytest.raises(Denied):
            store.catalog().exchange(None, 0)
        assert _handshakes(centre, gateway) == asked_so_far, "a refusal is remembered, not asked for again"


def test_a_renewed_token_is_taken_up_by_a_running_program(
    centre: Centre, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gateway = centre.gateway("--recheck", "0.4")
    old, new = centre.token(), centre.token()
    file = tmp_path / "token"
    file.write_text(old.secret.reveal())
    monkeypatch.setenv("HOPAAS_TOKEN_FILE", str(file))
    with contextlib.closing(open_store(centre.url(gateway.port))) as store:
        store.catalog().exchange(None, 0)
        centre.server.execute(f"ALTER ROLE \"{old.name}\" VALID UNTIL '2001-01-01'")
        with pytest.raises(Denied):
            until(lambda: store.catalog().exchange(None, 0) and None)
        file.write_text(new.secret.reveal())
        store.catalog().exchange(None, 0)


def _handshakes(centre: Centre, gateway: GatewayProcess) -> float:
    return sum(count for name, count in gateway.metrics(centre.authority).items() if "handshakes_total" in name)


def _plain_login(server: Server) -> str:
    """The password of a new login without any power."""
    server.execute("CREATE ROLE ann LOGIN PASSWORD %s", server.password)
    return server.password


def test_superusers_are_not_let_in_from_the_internet(gateway: GatewayProcess, centre: Centre) -> None:
    with pytest.raises(Denied, match="401"):
        dial.dial(ServerAddress(HOST, gateway.port), Secret(f"admin:{centre.server.password}"))


def test_tokens_stay_good_while_postgres_is_away(centre: Centre) -> None:
    """A re-check that cannot be made is no verdict; and who comes anew is told to come later."""
    server = Server().start()
    try:
        gateway = centre.gateway("--recheck", "0.4", target=f"postgresql://127.0.0.1:{server.port}/postgres")
        secret = Secret(f"ann:{_plain_login(server)}")
        line = dial.dial(ServerAddress(HOST, gateway.port), secret)
        server.halt()
        raw = Raw(line)
        assert raw.until_closed()[1] == 1000, "Postgres ended the session, does not match the token"
        with pytest.raises(GatewayBusy, match="503") as refused:
            dial.dial(ServerAddress(HOST, gateway.port), secret)
        assert refused.value.retry_after >= 1.0
        server.start()
        until(lambda: _dials(gateway, secret))
    finally:
        server.stop()


def _dials(gateway: GatewayProcess, secret: Secret) -> bool:
    with contextlib.suppress(GatewayBusy):
        dial.dial(ServerAddress(HOST, gateway.port), secret).socket.close()
        return True
    return False


def test_the_target_may_be_a_unix_socket(centre: Centre) -> None:
    folder = centre.server.settings["unix_socket_directories"]
    gateway = centre.gateway(target=f"postgresql:///store?host={folder}&port={centre.server.port}")
    connection = connects(gateway, centre.token().secret)
    with connection.cursor() as cursor:
        cursor.execute("SELECT inet_server_addr() IS NULL")
        assert cursor.fetchone()[0]
    connection.close()


# --- what a token lets one do ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"user": "admin"}, "does not match the token"),
        ({"user": "admin", "database": "store"}, "does not match the token"),
        ({"database": "store"}, "does not match the token"),
        ({"user": "{role}", "database": "postgres"}, "another database"),
        ({"user": "{role}"}, "another database"),
        ({"user": "{role}", "database": "store", "replication": "database"}, "replication"),
    ],
)
def test_a_token_logs_in_as_its_own_role_to_the_one_database(
    gateway: GatewayProcess, centre: Centre, parameters: dict[str, str], complaint: str
) -> None:
    token = centre.token()
    raw = Raw(dial.dial(ServerAddress(HOST, gateway.port), token.secret))
    raw.send(startup(**{key: value.format(role=token.name) for key, value in parameters.items()}))
    said, code = raw.until_closed()
    assert code == 1008
    assert said[:1] == b"E"
    assert complaint in said.decode()


@pytest.mark.parametrize("code", [80877102, 80877103, 80877104, 2 << 16, 4 << 16, 0])
def test_other_first_messages_are_refused(gateway: GatewayProcess, centre: Centre, code: int) -> None:
    raw = Raw(dial.dial(ServerAddress(HOST, gateway.port), centre.token().secret))
    raw.send(struct.pack("!IIII", 16, code, 1, 1))
    said, closed = raw.until_closed()
    assert (closed, said[:1]) == (1008, b"E")


def test_a_tunnel_that_its_client_closes_is_told_of_and_counted(gateway: GatewayProcess, centre: Centre) -> None:
    token = centre.token()
    raw = Raw(dial.dial(ServerAddress(HOST, gateway.port), token.secret))
    raw.send(startup(user=token.name, database="store"))
    assert raw.receive()[:1] == b"R", "Postgres asks for the login"
    raw.line.protocol.send_close(1000)
    raw.flush()
    assert raw.until_closed()[1] == 1000
    until(lambda: gateway.events("closed"))
    assert [one["connection"] for one in gateway.events("opened")] == [gateway.events("closed")[0]["connection"]]
    assert gateway.metrics(centre.authority)['hopaas_gateway_ended_total{code="1000"}'] == 1


def test_text_is_not_taken_for_bytes(gateway: GatewayProcess, centre: Centre) -> None:
    raw = Raw(dial.dial(ServerAddress(HOST, gateway.port), centre.token().secret))
    raw.line.protocol.send_text(b"hello")
    raw.flush()
    assert raw.until_closed()[1] == 1003


def test_a_frame_that_is_too_large_is_refused(gateway: GatewayProcess, centre: Centre) -> None:
    raw = Raw(dial.dial(ServerAddress(HOST, gateway.port), centre.token().secret))
    raw.send(bytes(1 << 20))
    assert raw.until_closed()[1] == 1009


# --- pages -------------------------------------------------------------------------------------------------------


def test_pages_for_machines(gateway: GatewayProcess, centre: Centre) -> None:
    connection = connects(gateway, centre.token().secret)
    assert fetch(gateway.port, "/healthz", centre.authority) == (200, "ok\n")
    found = gateway.metrics(centre.authority)
    assert found["hopaas_gateway_connections"] == 1
    assert found['hopaas_gateway_handshakes_total{status="101"}'] == 1
    assert found['hopaas_gateway_bytes_total{direction="down"}'] > 100
    assert found["hopaas_gateway_postgres_up"] == 1
    assert found["hopaas_gateway_certificate_expiry_seconds"] > time.time()
    status, text = fetch(gateway.port, "/metrics", centre.authority)
    assert "ann" not in text
    for path in ("/", "/v1", "/v1/pg/", "/../etc/passwd", "/metrics/"):
        assert fetch(gateway.port, path, centre.authority) == (404, "")
    assert gateway.events("turned away") == []
    assert fetch(gateway.port, "/v1/pg", centre.authority)[0] == 401
    (told,) = until(lambda: gateway.events("turned away"))
    assert (told["status"], told["times"]) == (401, 1)
    connection.close()
    assert status == 200


def test_metrics_are_for_those_who_may_read_them(centre: Centre) -> None:
    gateway = centre.gateway("--metrics-from", "192.0.2.0/24")
    assert fetch(gateway.port, "/metrics", centre.authority)[0] == 404
    behind = centre.gateway("--behind-proxy", "127.0.0.1", tls=False)
    for forwarded, status in (("198.51.100.1", b"404"), ("127.0.0.1, 198.51.100.1", b"404"), ("127.0.0.1", b"200")):
        with socket.create_connection(("127.0.0.1", behind.port), timeout=30) as plain:
            plain.sendall(f"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: {forwarded}\r\n\r\n".encode())
            assert plain.recv(65536).split()[1] == status


def test_a_wrong_call_of_the_command_is_a_clear_line(centre: Centre) -> None:
    pair = ["--tls-cert", str(centre.pair[0]), "--tls-key", str(centre.pair[1])]
    for words, complaint in (
        (["--listen", "nonsense", "--postgres", centre.target, *pair], "write HOST:PORT"),
        (["--postgres", centre.target, "--tls-cert", str(centre.pair[0])], "must be given together"),
        (["--postgres", centre.target, *pair, "--behind-proxy", "here"], "write a network"),
        (["--postgres", centre.target, *pair, "--listen", f"192.0.2.1:{free_port()}"], "cannot listen on 192.0.2.1"),
        (["--postgres", centre.target, *pair, "--listen", "127.0.0.1:99999"], "write HOST:PORT"),
        (["--postgres", centre.target, *pair, "--listen", "name.invalid:443"], "cannot listen on name.invalid:443: "),
        (["--postgres", centre.target, *pair, "--drain", "-1"], "--drain"),
        (["--postgres", centre.target, "--tls-cert", pair[3], "--tls-key", pair[1]], "must be PEM"),
    ):
        done = cli("gateway", *words, check=False)
        assert done.returncode not in (0, None)
        assert complaint in done.stderr
        assert "Unknown" not in done.stderr
        assert done.stderr.count("\n") == 1
