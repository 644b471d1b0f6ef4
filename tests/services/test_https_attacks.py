"""Bytes that no honest client sends, or not like that: splitting, smuggling, dawdling, bombs, and secrets."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import time
import traceback
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hopaas_p2p.errors import HopaasError, InvalidInput
from hopaas_p2p.open import open_store
from hopaas_p2p.remote.protocol import LARGEST, StoreRequest, decode_request, encode, encode_header
from hopaas_p2p.testing.commits import append_many
from tests.support.ports import free_port
from tests.support.processes import until
from tests.support.served import HOST, Centre, HttpsProcess, forget_servers


def request(token: str, body: bytes = b"", *headers: str, path: str = "/v1", method: str = "POST") -> bytes:
    """A request as a proxy that terminates TLS passes it on."""
    length = [] if any(one.lower().startswith(("content-length", "transfer-")) for one in headers) else [len(body)]
    lines = [f"{method} {path} HTTP/1.1", "Host: x", "X-Forwarded-Proto: https", *headers]
    lines += [f"Content-Length: {one}" for one in length]
    return "\r\n".join([*lines, f"Authorization: Bearer {encode_header(token)}", "", ""]).encode() + body


class Plain:
    """A server without TLS, spoken to by hand."""

    def __init__(self, centre: Centre, *options: str) -> None:
        self.process = centre.serve("--behind-proxy", "127.0.0.1", *options, tls=False)
        self.token = centre.token().secret.reveal()

    def connect(self) -> socket.socket:
        made = socket.create_connection(("127.0.0.1", self.process.port), timeout=60)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def says(self, *parts: bytes) -> bytes:
        """All that comes for these bytes, until the server closes or has nothing more to say for a moment."""
        with self.connect() as line, contextlib.suppress(ConnectionError, TimeoutError):
            for part in parts:
                line.sendall(part)
            answer = b""
            line.settimeout(1.0)
            while data := line.recv(65536):
                answer += data
        return answer


@pytest.fixture
def plain(centre: Centre) -> Iterator[Plain]:
    """Afterwards it has no trouble to tell of, and serves."""
    made = Plain(centre)
    yield made
    assert made.says(request(made.token, encode(StoreRequest("hello")))).startswith(b"HTTP/1.1 200 OK")
    assert made.process.events("failed") == []
    assert "Traceback" not in made.process.log()


# --- cut, and put together ---------------------------------------------------------------------------------------


def test_a_request_cut_at_every_offset_is_understood(plain: Plain) -> None:
    whole = request(plain.token, encode(StoreRequest("exchange", "u", (None, 0))))
    with plain.connect() as line:
        for cut in range(len(whole)):
            line.sendall(whole[:cut])
            line.sendall(whole[cut:])
            answer = b""
            while b"\x92\x90\xc2\xcb" not in answer:  # no entries, nothing more, and no pause
                data = line.recv(65536)
                assert data, (cut, answer)
                answer += data


def test_a_request_whose_every_byte_comes_alone_is_like_any_other(plain: Plain) -> None:
    whole = request(plain.token, encode(StoreRequest("hello")))
    assert plain.says(*(whole[at : at + 1] for at in range(len(whole)))).startswith(b"HTTP/1.1 200 OK")


def test_requests_that_come_at_once_are_answered_one_after_the_other(plain: Plain) -> None:
    whole = request(plain.token, encode(StoreRequest("hello")))
    assert plain.says(whole * 5).count(b"HTTP/1.1 200 OK") == 5


@pytest.mark.parametrize(
    "headers",
    [
        ("Content-Length: 3", "Content-Length: 4"),
        ("Content-Length: 4", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked, identity",),
        ("Transfer-Encoding: xchunked",),
        ("Content-Length: -1",),
        ("Content-Length: +4",),
        ("Content-Length: 0x4",),
        ("Content-Length : 4",),
        ("X: a\rb",),
        ("X: a\0b",),
        (" folded: x",),
    ],
)
def test_what_two_servers_could_read_in_two_ways_is_refused(plain: Plain, headers: tuple[str, ...]) -> None:
    smuggled = request(plain.token, encode(StoreRequest("hello")))
    answer = plain.says(request(plain.token, b"0\r\n\r\n" + smuggled, *headers))
    assert answer.count(b"HTTP/1.1 ") <= 1
    assert not answer.startswith(b"HTTP/1.1 200")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.one_of(st.binary(min_size=1, max_size=300), st.integers(0, 400)))
def test_nonsense_harms_nobody(plain: Plain, data: bytes | int) -> None:
    whole = bytearray(request(plain.token, encode(StoreRequest("exchange", "u", (None, 0)))))
    if isinstance(data, int):
        whole[data % len(whole)] ^= 0x55
        data = bytes(whole)
    with plain.connect() as line, contextlib.suppress(ConnectionError):
        line.sendall(data)
        line.shutdown(socket.SHUT_WR)
        while line.recv(65536):
            pass


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_none(data: bytes) -> None:
    with contextlib.suppress(InvalidInput):
        decode_request(data)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x91" * 100_000,
        b"\xdf\xff\xff\xff\xff",
        encode(["exchange", "u", [None, -1]]),
        encode(["exchange", "u", [None, "0"]]),
        encode(["exchange", "u", [None, 1 << 63]]),
        encode(["exchange", "u", [["n", b"x" * 10, "", None, 7, 8, 9], 0]]),
        encode(["exchange", "u", [None, 0, 0]]),
        encode(["no such call", "u", []]),
        encode(["__init__", "u", []]),
        encode(["beats", "", [["p"] * 2_000]]),
        encode(["blocks", "u", [["../../etc/passwd"] * 10]]),
        encode(["put_block", "u", ["../../x", b"y"]]),
        encode(["put", "../x", []]),
        zlib.compress(bytes(10_000_000)),
    ],
    ids=range(16),
)
def test_a_request_that_is_none_is_answered_with_an_error(plain: Plain, body: bytes) -> None:
    answer = plain.says(request(plain.token, body))
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b"the server failed" not in answer


# --- too much ----------------------------------------------------------------------------------------------------


def test_a_request_that_is_too_large_is_ended(plain: Plain) -> None:
    announced = request(plain.token, b"x", f"Content-Length: {LARGEST + 1}")
    assert plain.says(announced).startswith(b"HTTP/1.1 413")
    chunk = b"%x\r\n%b\r\n" % (1 << 20, bytes(1 << 20))
    with plain.connect() as line, contextlib.suppress(ConnectionError):
        line.sendall(request(plain.token, b"", "Transfer-Encoding: chunked"))
        for _ in range(LARGEST // (1 << 20) + 2):
            line.sendall(chunk)
        assert line.recv(65536).startswith(b"HTTP/1.1 413")


def test_a_head_that_does_not_end_is_ended(plain: Plain) -> None:
    assert plain.says(b"POST /v1 HTTP/1.1\r\nX: ", b"y" * 20_000, b"z" * 20_000).startswith(b"HTTP/1.1 431")


def test_of_a_stranger_nothing_is_read_but_the_head(plain: Plain) -> None:
    """A body of hundreds of megabytes costs the server no memory before its token is known."""
    assert plain.process.process is not None
    status = Path(f"/proc/{plain.process.process.pid}/status")
    before = int(status.read_text().partition("VmRSS:")[2].split()[0])
    lines = []
    for number in range(10):
        line = plain.connect()
        line.settimeout(0.5)
        with contextlib.suppress(OSError):
            line.sendall(request(f"nobody.{number}:x", b"", f"Content-Length: {LARGEST}") + bytes(4 << 20))
        lines.append(line)
    after = int(status.read_text().partition("VmRSS:")[2].split()[0])
    for line in lines:
        line.close()
    assert after - before < 40_000, "kilobytes"


# --- dawdling ----------------------------------------------------------------------------------------------------


def test_those_who_dawdle_are_cut_off_and_keep_nobody_out(centre: Centre, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of TLS, of a head, and of a body."""
    server = centre.serve("--head", "2")
    token = centre.token().secret.reveal()
    monkeypatch.setenv("HOPAAS_TOKEN", token)
    context = ssl.create_default_context(cafile=centre.authority.file)
    idle = [socket.create_connection((HOST, server.port), timeout=60) for _ in range(230)]
    for one in idle[:100]:
        one.sendall(b"\x16\x03\x01")
    begun = [context.wrap_socket(one, server_hostname=HOST) for one in idle[200:]]
    for number, one in enumerate(begun):
        one.sendall(b"POST /v1 HTTP/1.1\r\nX-Slow: " if number % 2 else request(token, b"x", "Content-Length: 100"))
    with contextlib.closing(open_store(centre.url(server.port))) as store:
        store.catalog().exchange(None, 0)
        for each in (*idle[:200], *begun):
            with contextlib.suppress(ConnectionError):
                while each.recv(4096):
                    pass
            each.close()
        store.catalog().exchange(None, 0)
    metrics = server.metrics(centre.authority)
    assert metrics['hopaas_server_shed_total{cause="deadline"}'] >= 230
    assert metrics["hopaas_server_pending"] <= 1


def test_a_crowd_at_the_door_gives_way(centre: Centre, monkeypatch: pytest.MonkeyPatch) -> None:
    server = centre.serve()
    monkeypatch.setenv("HOPAAS_TOKEN", centre.token().secret.reveal())
    crowd = [socket.create_connection((HOST, server.port), timeout=60) for _ in range(700)]
    with contextlib.closing(open_store(centre.url(server.port))) as store:
        store.catalog().exchange(None, 0)
    assert server.metrics(centre.authority)['hopaas_server_shed_total{cause="crowd"}'] >= 188
    for one in crowd:
        one.close()
    until(lambda: server.metrics(centre.authority)["hopaas_server_pending"] <= 1)


def test_who_takes_nothing_of_its_answer_is_cut_off_and_holds_no_memory(plain: Plain, tmp_path: Path) -> None:
    """A file of 64 MB for a reader that reads nothing stays on the disk."""
    assert plain.process.process is not None
    (tmp_path / "big").write_bytes(bytes(60 << 20))
    body = (tmp_path / "big").read_bytes()
    with plain.connect() as line:
        line.sendall(request(plain.token, body, path="/v1/files/u/big", method="PUT"))
        assert line.recv(65536).startswith(b"HTTP/1.1 200")
    status = Path(f"/proc/{plain.process.process.pid}/status")
    before = int(status.read_text().partition("VmRSS:")[2].split()[0])
    lines = [plain.connect() for _ in range(5)]
    for line in lines:
        line.sendall(request(plain.token, b"", path="/v1/files/u/big", method="GET"))
    time.sleep(3)
    after = int(status.read_text().partition("VmRSS:")[2].split()[0])
    assert after - before < 60_000, "kilobytes"
    for line in lines:
        line.close()


def test_one_request_at_a_time_is_read_of_a_connection(plain: Plain) -> None:
    """Whoever sends without end and reads nothing is not read any more."""
    whole = request(plain.token, encode(StoreRequest("block_names", "u")))
    with plain.connect() as line, contextlib.suppress(ConnectionError):
        line.settimeout(3.0)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 400 << 20:
                line.sendall(whole * 1000)
                sent += 1000 * len(whole)


# --- secrets -----------------------------------------------------------------------------------------------------


def test_a_secret_is_in_no_log_repr_traceback_process_list_or_metric(
    centre: Centre, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server: HttpsProcess = centre.serve()
    token = centre.token()
    secret = token.secret.reveal().partition(":")[2]
    wrong = "wrong-canary-7613"
    shown: list[str] = []

    def note_failure(url: str) -> None:
        forget_servers()
        store = open_store(url)
        try:
            store.catalog().exchange(None, 0)
        except HopaasError as error:
            shown.extend(traceback.format_exception(error))
            shown.append(repr(error))
        finally:
            shown.append(repr(vars(store)))
            store.close()

    (tmp_path / "token").write_text(token.secret.reveal())
    monkeypatch.setenv("HOPAAS_TOKEN_FILE", str(tmp_path / "token"))
    with monkeypatch.context() as env:
        env.setenv("HTTPS_PROXY", f"http://site:proxy-canary-1105@127.0.0.1:{free_port()}")
        note_failure(centre.url(server.port))
    note_failure(centre.url(free_port()))
    note_failure(centre.url(server.port) + "/elsewhere")
    (tmp_path / "token").write_text(f"{token.name}:{wrong}")
    note_failure(centre.url(server.port))
    (tmp_path / "token").write_text(token.secret.reveal())
    forget_servers()
    store = open_store(centre.url(server.port))
    append_many(store.log("u"), "a", 1)
    shown += [repr(store), repr(vars(store)), store.url]
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            shown.append(entry.read_bytes().decode(errors="replace"))
    until(lambda: server.events("turned away"))
    shown += [server.log(), caplog.text, str(server.metrics(centre.authority))]
    server.kill()
    with pytest.raises(HopaasError) as failed:
        append_many(store.log("u"), "b", 1)
    shown += traceback.format_exception(failed.value)
    everything = "\n".join(shown)
    assert len(everything) > 2000
    for canary in (
        secret,
        wrong,
        encode_header(token.secret.reveal()),
        encode_header(f"{token.name}:{wrong}"),
        "proxy-canary-1105",
    ):
        assert canary not in everything
    store.close()
