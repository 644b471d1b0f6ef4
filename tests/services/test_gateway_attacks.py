"""Bytes that no honest client sends, or not like that: fuzzing, splitting, dawdling, and looking for secrets."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import struct
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hopaas_p2p.errors import HopaasError
from hopaas_p2p.gateway.startup import AuthenticationFilter, BadStartup, StartupParser, check, fatal
from hopaas_p2p.net.proxies import ServerAddress
from hopaas_p2p.open import open_store
from hopaas_p2p.runtime.settings import Secret
from hopaas_p2p.testing.commits import append_many
from hopaas_p2p.tunnel import SUBPROTOCOL, client, dial, encode_header
from tests.support.listening import Listening, join
from tests.support.ports import free_port
from tests.support.processes import until
from tests.support.tunnel_fixtures import HOST, Authority, Centre, GatewayProcess, Raw, forget_gateways, startup

_TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)
_PARAMETERS = st.dictionaries(_TEXT, _TEXT, max_size=6).map(lambda found: {"user": "ann.1", **found})


# --- the StartupMessage ------------------------------------------------------------------------------------------


@given(_PARAMETERS, st.binary(max_size=40), st.data())
def test_a_startup_message_is_read_however_it_is_cut(
    parameters: dict[str, str], more: bytes, data: st.DataObject
) -> None:
    message = startup(**parameters)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(message)), max_size=5)))
    reader, found = StartupParser(), []
    for start, end in zip([0, *cuts], [*cuts, len(message)], strict=True):
        found.append(reader.feed(message[start:end]))
        if found[-1] is not None:
            break
    assert found[-1] == parameters
    assert found[:-1] == [None] * (len(found) - 1)
    whole = StartupParser()
    assert whole.feed(message + more) == parameters
    assert whole.received == message + more


def test_a_startup_message_is_read_when_cut_at_every_offset() -> None:
    message = startup(user="ann.1", database="store", application_name="x")
    for cut in range(len(message)):
        reader = StartupParser()
        assert reader.feed(message[:cut]) is None
        assert reader.feed(message[cut:]) == {"user": "ann.1", "database": "store", "application_name": "x"}
    reader = StartupParser()
    assert [reader.feed(message[at : at + 1]) for at in range(len(message))][:-1] == [None] * (len(message) - 1)


def _mutations(message: bytes) -> st.SearchStrategy[bytes]:
    def mutate(edits: list[tuple[int, int]]) -> bytes:
        changed = bytearray(message)
        for at, value in edits:
            changed[at % len(changed)] = value
        return bytes(changed)

    return st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=8).map(mutate)


@settings(max_examples=500)
@given(st.one_of(st.binary(max_size=300), _mutations(startup(user="ann.1", database="store", options="-c x=y"))))
def test_whatever_is_let_through_logs_in_as_the_tokens_role(message: bytes) -> None:
    """As Postgres itself reads it: name and value by turns; whichever `user` there is, it is the token's."""
    reader = StartupParser()
    try:
        parameters = reader.feed(message)
        if parameters is None:
            return
        check(parameters, role="ann.1", database="store")
    except BadStartup:
        return
    (length,) = struct.unpack_from("!I", message)
    assert message[4:6] == b"\0\3"
    parts = message[8:length].split(b"\0")
    users = [value for name, value in zip(parts[::2], parts[1::2], strict=False) if name == b"user"]
    assert users == [b"ann.1"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(message=st.one_of(st.binary(min_size=1, max_size=200), _mutations(startup(user="ann.1", database="store"))))
def test_nonsense_never_reaches_postgres_and_never_harms_the_gateway(plain: GatewayProcess, message: bytes) -> None:
    raw = Raw(_lines[plain.port]())
    raw.send(message)
    raw.line.protocol.send_close(1000)
    raw.flush()
    said, code = raw.until_closed()
    assert code in (1000, 1008)
    assert said[:1] in (b"", b"E")


_lines: dict[int, object] = {}


@pytest.fixture
def plain(centre: Centre) -> Iterator[GatewayProcess]:
    """A gateway that is fuzzed; afterwards it has no trouble to tell of, and serves."""
    gateway = centre.gateway()
    token = centre.token()
    _lines[gateway.port] = lambda: dial.dial(ServerAddress(HOST, gateway.port), token.secret)
    yield gateway
    del _lines[gateway.port]
    role, _, password = token.secret.reveal().partition(":")
    client.connect([ServerAddress(HOST, gateway.port)], dbname="store", user=role, password=password).close()
    assert gateway.events("failed") == []
    assert "Traceback" not in gateway.log()


# --- Postgres' offer ---------------------------------------------------------------------------------------------


def _demand(*names: bytes) -> bytes:
    body = struct.pack("!I", 10) + b"".join(name + b"\0" for name in names) + b"\0"
    return b"R" + struct.pack("!I", len(body) + 4) + body


@given(st.binary(max_size=50), st.booleans(), st.data())
def test_an_offer_bound_to_another_channel_is_taken_out_however_it_is_cut(
    more: bytes, negotiated: bool, data: st.DataObject
) -> None:
    before = b"v" + struct.pack("!III", 12, 0, 0) if negotiated else b""
    sent = before + _demand(b"SCRAM-SHA-256-PLUS", b"SCRAM-SHA-256") + more
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=5)))
    offer = AuthenticationFilter()
    passed = b"".join(offer.feed(sent[start:end]) for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True))
    assert passed == before + _demand(b"SCRAM-SHA-256") + more
    assert offer.done


@given(st.binary(min_size=1, max_size=300))
def test_what_postgres_says_otherwise_is_passed_on_as_it_is(said: bytes) -> None:
    offer = AuthenticationFilter()
    passed = offer.feed(said)
    assert offer.feed(b"") == b""
    assert said.startswith(passed) or said[:1] in (b"R", b"v")
    for message in (fatal("no"), b"R" + struct.pack("!II", 8, 0), b"R" + struct.pack("!II", 8, 3)):
        offer = AuthenticationFilter()
        assert offer.feed(message) == message
        assert offer.done


# --- cut at every offset -----------------------------------------------------------------------------------------


def _request(token: Secret) -> bytes:
    return (
        f"GET /v1/pg HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: {SUBPROTOCOL}\r\n"
        f"X-Forwarded-Proto: https\r\nAuthorization: Bearer {encode_header(token.reveal())}\r\n\r\n"
    ).encode()


def test_a_handshake_cut_at_every_offset_is_understood(centre: Centre) -> None:
    """The request, the frame, and the StartupMessage in it; the answer is Postgres' own."""
    gateway = centre.gateway("--behind-proxy", "127.0.0.1", tls=False)
    token = centre.token()
    request = _request(token.secret)
    message = startup(user=token.name, database="store")
    assert len(message) < 126
    frame = b"\x82" + bytes([0x80 | len(message)]) + bytes(4) + message

    def ask(request_cut: int, frame_cut: int) -> None:
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=60) as plain:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for sent, cut, until_seen in ((request, request_cut, b"\r\n\r\n"), (frame, frame_cut, b"SCRAM-SHA-256\0")):
                if cut:
                    plain.sendall(sent[:cut])
                plain.sendall(sent[cut:])
                answer = b""
                while until_seen not in answer:
                    data = plain.recv(65536)
                    assert data, (cut, answer)
                    answer += data

    for cut in range(len(request)):
        ask(cut, cut % len(frame))


def test_who_speaks_before_being_let_in_is_cut_off(centre: Centre) -> None:
    gateway = centre.gateway("--behind-proxy", "127.0.0.1", tls=False)
    with (
        socket.create_connection(("127.0.0.1", gateway.port), timeout=60) as plain,
        contextlib.suppress(ConnectionError),
    ):
        plain.sendall(_request(centre.token().secret) + b"\x82\x81\0\0\0\0x")
        assert plain.recv(65536) == b""


class Dribble(Listening):
    """Terminates TLS before a gateway that speaks plainly, and hands every byte on in a record of its own."""

    def __init__(self, authority: Authority, target: int) -> None:
        super().__init__()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(*authority.certificate(name="dribble"))
        self._target = target

    def serve(self, client: socket.socket) -> None:
        with (
            self._context.wrap_socket(client, server_side=True) as secured,
            socket.create_connection(("127.0.0.1", self._target)) as there,
        ):
            for one in (secured, there):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            there.sendall(secured.recv(65536).replace(b"\r\n\r\n", b"\r\nX-Forwarded-Proto: https\r\n\r\n"))
            join(secured, there, _dribble)


def _dribble(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError, ValueError):
        while data := source.recv(65536):
            for at in range(len(data)):
                target.sendall(data[at : at + 1])
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def test_a_session_whose_every_byte_comes_alone_is_like_any_other(centre: Centre) -> None:
    gateway = centre.gateway("--behind-proxy", "127.0.0.1", tls=False)
    role, _, password = centre.token().secret.reveal().partition(":")
    with Dribble(centre.authority, gateway.port) as slow:
        connection = client.connect([ServerAddress(HOST, slow.port)], dbname="store", user=role, password=password)
        with connection.cursor() as cursor:
            cursor.execute("SELECT %s || repeat('y', 2000)", ("x" * 2000,))
            assert cursor.fetchone()[0] == "x" * 2000 + "y" * 2000
        connection.close()


# --- dawdling ----------------------------------------------------------------------------------------------------


def test_those_who_dawdle_are_cut_off_and_keep_nobody_out(centre: Centre) -> None:
    """In the middle of TLS, of the request, and of the StartupMessage."""
    gateway = centre.gateway("--handshake", "2")
    token = centre.token()
    context = ssl.create_default_context(cafile=centre.authority.file)
    idle = [socket.create_connection((HOST, gateway.port), timeout=60) for _ in range(300)]
    for one in idle[:100]:
        one.sendall(b"\x16\x03\x01")
    begun = [context.wrap_socket(one, server_hostname=HOST) for one in idle[200:230]]
    for one in begun:
        one.sendall(b"GET /v1/pg HTTP/1.1\r\nX-Slow: ")
    silent = [dial.dial(ServerAddress(HOST, gateway.port), token.secret) for _ in range(5)]
    role, _, password = token.secret.reveal().partition(":")
    connection = client.connect([ServerAddress(HOST, gateway.port)], dbname="store", user=role, password=password)
    for each in (*idle[:200], *idle[230:], *begun, *(line.socket for line in silent)):
        with contextlib.suppress(ConnectionError):
            while each.recv(4096):
                pass
        each.close()
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    connection.close()
    metrics = gateway.metrics(centre.authority)
    assert metrics['hopaas_gateway_shed_total{cause="deadline"}'] >= 300
    assert metrics["hopaas_gateway_pending"] <= 1


def test_a_crowd_at_the_door_gives_way(centre: Centre) -> None:
    gateway = centre.gateway()
    token = centre.token()
    crowd = [socket.create_connection((HOST, gateway.port), timeout=60) for _ in range(700)]
    role, _, password = token.secret.reveal().partition(":")
    client.connect([ServerAddress(HOST, gateway.port)], dbname="store", user=role, password=password).close()
    assert gateway.metrics(centre.authority)['hopaas_gateway_shed_total{cause="crowd"}'] >= 188
    for one in crowd:
        one.close()
    until(lambda: gateway.metrics(centre.authority)["hopaas_gateway_pending"] <= 1)


def test_a_flood_of_pings_whose_answers_nobody_reads_ends_the_connection(centre: Centre) -> None:
    gateway = centre.gateway()
    line = dial.dial(ServerAddress(HOST, gateway.port), centre.token().secret)
    line.socket.settimeout(60)
    with pytest.raises(OSError):  # noqa: PT011  # whichever way the system says that it is closed
        while True:
            for _ in range(500):
                line.protocol.send_ping(bytes(125))
            line.socket.sendall(b"".join(line.protocol.data_to_send()))
    line.socket.close()


# --- secrets -----------------------------------------------------------------------------------------------------


def test_a_secret_is_in_no_log_repr_traceback_process_list_or_metric(
    centre: Centre, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("websockets").setLevel(logging.DEBUG)
    gateway = centre.gateway()
    token = centre.token()
    secret = token.secret.reveal().partition(":")[2]
    wrong = "wrong-canary-7613"
    (tmp_path / "token").write_text(token.secret.reveal())
    monkeypatch.setenv("HOPAAS_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("HTTPS_PROXY", f"http://site:proxy-canary-1105@127.0.0.1:{free_port()}")
    shown: list[str] = []

    def note_failure(url: str) -> None:
        store = open_store(url)
        try:
            store.catalog().exchange(None, 0)
        except HopaasError as error:
            shown.extend(traceback.format_exception(error))
            shown.append(repr(error))
        finally:
            shown.append(repr(vars(store)))
            store.close()

    note_failure(centre.url(gateway.port))
    monkeypatch.delenv("HTTPS_PROXY")
    note_failure(centre.url(gateway.port).replace("//", f"//{token.name}:{wrong}@"))
    note_failure(centre.url(free_port()))
    note_failure(centre.url(gateway.port).replace("/store", "/postgres"))
    forget_gateways()
    store = open_store(centre.url(gateway.port))
    append_many(store.log("u"), "a", 1)
    (tunnel,) = client._tunnels
    shown += [repr(tunnel), repr(vars(tunnel)), repr(tunnel._connection), repr(store), store.url]
    raw = Raw(dial.dial(ServerAddress(HOST, gateway.port), token.secret))
    raw.send(startup(user="someone else"))
    raw.until_closed()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            shown.append(entry.read_bytes().decode(errors="replace"))
    shown += [gateway.log(), caplog.text, str(gateway.metrics(centre.authority))]
    gateway.kill()
    with pytest.raises(HopaasError) as failed:
        append_many(store.log("u"), "b", 1)
    shown += traceback.format_exception(failed.value)
    assert len(everything_of(shown)) > 2000
    for canary in (
        secret,
        wrong,
        encode_header(token.secret.reveal()),
        encode_header(f"{token.name}:{wrong}"),
        "proxy-canary-1105",
    ):
        assert canary not in everything_of(shown)
    store.close()


def everything_of(shown: list[str]) -> str:
    return "\n".join(shown)
