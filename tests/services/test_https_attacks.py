"""Bytes that no honest client sends, or not like that: splitting, smuggling, dawdling, bombs, and secrets."""

from __future__ import annotations

import contextlib
import itertools
import logging
import random
import select
import socket
import ssl
import threading
import time
import traceback
import tracemalloc
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import psycopg2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hopaas_p2p import access
from hopaas_p2p.core import codec
from hopaas_p2p.core.records import Commit, StudyRegistered
from hopaas_p2p.errors import HopaasError, InvalidInput, StoreUnreachable
from hopaas_p2p.open import open_store
from hopaas_p2p.remote import client
from hopaas_p2p.remote.client import RemoteStore
from hopaas_p2p.remote.protocol import LARGEST, StoreRequest, answered, decode_request, encode, encode_header
from hopaas_p2p.stores.base import Entry, ExchangeResult, Outgoing, append, read_all
from hopaas_p2p.testing.commits import append_many
from tests.support.ports import free_port
from tests.support.processes import patient, until
from tests.support.s3_faults import FaultProxy
from tests.support.s3_server import S3Server
from tests.support.served import HOST, Authority, Centre, HttpsProcess, forget_servers


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
            line.settimeout(patient(1.0))
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
    unannounced = request(plain.token, b"", "Transfer-Encoding: chunked")
    assert plain.says(unannounced, b"%x\r\n" % (1 << 20)).startswith(b"HTTP/1.1 411")


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


def test_a_transaction_that_locks_a_study_keeps_nobody_of_another_waiting(centre: Centre) -> None:
    """However many peers, with tokens of their own, wait for it at this server."""
    served, ben = Plain(centre), centre.token("ben").secret.reveal()
    tokens = [centre.token("ann").secret.reveal() for _ in range(5)]
    for token, uuid in ((served.token, "locked"), (ben, "free")):
        one = StoreRequest("exchange", uuid, (_first(uuid), 0))
        assert served.says(request(token, encode(one), "Connection: close")).startswith(b"HTTP/1.1 200")
    role, _, password = served.token.partition(":")
    url = centre.server.url("store", user=role, password=password)
    with contextlib.closing(psycopg2.connect(url)) as holding, contextlib.ExitStack() as lines:
        with holding.cursor() as cursor:
            cursor.execute("SELECT hopaas.exchange_v1('locked', 0, 'held', 'p', NULL, NULL, NULL, 64, NULL)")
        waiting = [lines.enter_context(served.connect()) for _ in range(40)]
        for number, (line, token) in enumerate(zip(waiting, tokens * 8, strict=True)):
            line.sendall(request(token, encode(StoreRequest("exchange", "locked", (_first(f"w{number}"), 1)))))
        time.sleep(2)
        with served.connect() as line:
            line.sendall(request(ben, encode(StoreRequest("exchange", "free", (None, 0)))))
            assert line.recv(65536).startswith(b"HTTP/1.1 200 OK")
        assert select.select(waiting, [], [], 0)[0] == [], "he is answered before the first of them gives up"
        holding.rollback()


def _first(writer: str) -> Outgoing:
    commit = Commit(writer, 1, writer, 0, (StudyRegistered("o", "o"),))
    return Outgoing(f"{writer}:1", codec.encode(commit))


# --- a directory that is served: callers with a token ------------------------------------------------------------


@pytest.fixture
def listed(tmp_path: Path) -> Iterator[Callable[[str], Plain]]:
    """A directory with a log of 8 MB that bob views and ann works in, served without TLS; as somebody with a token."""
    url = str(tmp_path / "store")
    with contextlib.closing(open_store(url)) as store:
        for number in range(8):
            body = encode([1, f"w{number}", 1, None, 0, [["of another version", random.randbytes(900_000)]]])
            payload = zlib.crc32(body).to_bytes(4, "little") + body
            append(store.log("u"), Outgoing(f"w{number}:1", payload), 0)
        opened = Commit("opener", 1, "opener", 0, (StudyRegistered("u", "s"),))
        append(store.catalog(), Outgoing("opener:1", codec.encode(opened), about="u"), 0)
    tokens = {}
    for user, role in (("ann", "worker"), ("bob", "viewer")):
        access.add_user(url, user)
        access.grant(url, "s", user, role)
        tokens[user] = access.create_token(url, user).secret.reveal()
    process = HttpsProcess(tmp_path, url, "--behind-proxy", "127.0.0.1").start()

    def as_(user: str) -> Plain:
        made = Plain.__new__(Plain)
        made.process, made.token = process, tokens[user]
        return made

    yield as_
    assert process.events("failed") == []
    process.kill()


def _is_answered(ann: Plain, within: float) -> bool:
    """Whether ann, who works in the study, is served, and soon."""
    began = time.monotonic()
    with ann.connect() as line:
        line.sendall(request(ann.token, encode(StoreRequest("exchange", "u", (None, 8)))))
        return line.recv(65536).startswith(b"HTTP/1.1 200 OK") and time.monotonic() - began < within


def test_a_token_that_asks_for_everything_at_once_keeps_nobody_out(listed: Callable[[str], Plain]) -> None:
    """A viewer has 250 connections, asks for the whole log on each, and takes nothing of the answers."""
    bob = listed("bob")
    assert bob.process.process is not None
    lines = [bob.connect() for _ in range(250)]
    for line in lines:
        line.sendall(request(bob.token, encode(StoreRequest("exchange", "u", (None, 0)))))
    assert _is_answered(listed("ann"), within=15.0)
    time.sleep(5)
    status = Path(f"/proc/{bob.process.process.pid}/status")
    assert int(status.read_text().partition("VmRSS:")[2].split()[0]) < 600_000, "kilobytes"
    for line in lines:
        line.close()


def test_bodies_of_one_token_that_do_not_end_keep_nobody_out(listed: Callable[[str], Plain]) -> None:
    bob = listed("bob")
    lines = [bob.connect() for _ in range(10)]
    for line in lines:
        line.settimeout(1.0)
        with contextlib.suppress(OSError):
            line.sendall(request(bob.token, b"", f"Content-Length: {LARGEST}") + bytes(55 << 20))
    assert _is_answered(listed("ann"), within=15.0)
    for line in lines:
        line.close()


def test_of_a_file_that_may_not_be_kept_nothing_is_kept(listed: Callable[[str], Plain]) -> None:
    bob = listed("bob")
    assert bob.process.process is not None
    held = Path(f"/proc/{bob.process.process.pid}/fd")
    with bob.connect() as line:
        line.sendall(request(bob.token, b"", f"Content-Length: {50 << 20}", path="/v1/files/u/x", method="PUT"))
        line.sendall(bytes(20 << 20))
        time.sleep(0.5)
        assert not [one for one in held.iterdir() if "hopaas-" in str(one.readlink())]
        line.sendall(bytes(30 << 20))
        assert b"Denied" in line.recv(65536)


def test_blocks_that_a_caller_names_take_the_room_of_an_answer(listed: Callable[[str], Plain]) -> None:
    """Everybody may keep blocks in a study of his own. Whoever breaks off in the middle of an answer fails nothing."""
    bob = listed("bob")
    assert bob.process.process is not None
    begun = Outgoing("b:1", codec.encode(Commit("b", 1, "b", 0, (StudyRegistered("o", "o"),))))
    requests = [StoreRequest("exchange", "own", (begun, 0))]
    requests += [StoreRequest("put_block", "own", (f"b{number}", bytes(8 << 20))) for number in range(20)]
    for one in requests:
        assert bob.says(request(bob.token, encode(one), "Connection: close")).startswith(b"HTTP/1.1 200 OK")
    for names in (["b0"] * 1000, [f"b{number}" for number in range(20)]):
        with bob.connect() as line:
            line.sendall(request(bob.token, encode(StoreRequest("blocks", "own", (names,))), "Connection: close"))
            assert line.recv(65536).startswith(b"HTTP/1.1 200 OK")
            while line.recv(1 << 20):
                pass
    status = Path(f"/proc/{bob.process.process.pid}/status")
    assert int(status.read_text().partition("VmHWM:")[2].split()[0]) < 400_000, "kilobytes"


def test_of_a_bucket_a_token_that_asks_for_many_objects_keeps_nobody_waiting(
    s3_server: S3Server, tmp_path: Path
) -> None:
    """Each object is a request to the bucket, of which so many are under way at once."""
    with FaultProxy(s3_server.port, get=0.02) as bucket:
        s3_url = s3_server.url(s3_server.new_prefix(), endpoint=bucket.endpoint)
        with contextlib.closing(open_store(s3_url)) as store:
            append_many(store.log("u"), "w", 1)
        access.add_user(s3_url, "eve")
        token = access.create_token(s3_url, "eve").secret.reveal()
        served = Plain.__new__(Plain)
        served.process, served.token = HttpsProcess(tmp_path, s3_url, "--behind-proxy", "127.0.0.1").start(), token
        many = request(token, encode(StoreRequest("beats", "", ([f"nobody-{number}" for number in range(1000)],))))
        lines = [served.connect() for _ in range(16)]
        for line in lines:
            line.sendall(many * 3)
        until(lambda: bucket.requests.total() > 500)
        passed = []
        for _ in range(3):
            with served.connect() as line:
                before = bucket.requests.total()
                line.sendall(request(token, encode(StoreRequest("exchange", "catalog", (None, 0)))))
                assert line.recv(65536).startswith(b"HTTP/1.1 200 OK")
                passed.append(bucket.requests.total() - before)
        for line in lines:
            line.close()
        served.process.kill()
    assert max(passed) < 500, "requests to the bucket"


@pytest.mark.parametrize(
    "body",
    [
        encode(["beats", "", [["p"] * 1001]]),
        encode(["blocks", "u", [["../" * 9 + "etc/passwd"]]]),
        encode(["put_block", "u", ["../x", b"y"]]),
        encode(["put_block", "u", ["x\n", b"y"]]),
        encode(["exchange", "u", [None, -1]]),
        encode(["snapshot_head", "u", [1 << 63]]),
        encode(["exchange", "x" * 2000, [None, 0]]),
        b"\x93\xa5beats\xa0\x91\xdd\x00\xff\xff\xff" + bytes(0xFFFFFF).replace(b"\0", b"\xa1a"),
    ],
    ids=range(8),
)
def test_arguments_have_bounds(body: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(InvalidInput):
        decode_request(body)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


# --- a server that lies --------------------------------------------------------------------------------------------


class Liar:
    """A server that says what a test lets it, once per request of a connection."""

    def __init__(self, authority: Authority, *answers: Iterable[bytes]) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(*authority.certificate())
        self._answers = answers
        self._listening = socket.create_server((HOST, 0))
        self.store = RemoteStore(f"https://{HOST}:{self._listening.getsockname()[1]}")
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = self._listening.accept()
                with contextlib.suppress(OSError), self._context.wrap_socket(plain, server_side=True) as line:
                    for pieces in self._answers:
                        if not line.recv(1 << 20):
                            break
                        for piece in pieces:
                            line.sendall(piece)

    def __enter__(self) -> RemoteStore:
        return self.store

    def __exit__(self, *_: object) -> None:
        self._listening.close()
        self.store.close()


OK = b"HTTP/1.1 200 OK\r\nHopaas-Server: 1\r\nContent-Type: application/msgpack\r\n"


def _answer(result: object) -> bytes:
    body = answered(result)
    return OK + b"Content-Length: %d\r\n\r\n" % len(body) + body


def _slowly(data: bytes) -> Iterator[bytes]:
    for at in range(len(data)):
        time.sleep(0.3)
        yield data[at : at + 1]


LIES: dict[str, Callable[[], tuple[Iterable[bytes], ...]]] = {
    "chunks without end": lambda: (itertools.chain([OK, b"Transfer-Encoding: chunked\r\n\r\n-1\r\n"], _ENDLESS),),
    "a body without end": lambda: (itertools.chain([OK, b"\r\n"], _ENDLESS),),
    "one more moment, for ever": lambda: (itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n" * 100),),
    "a head by drops": lambda: (_slowly(OK),),
    "a body by drops": lambda: (itertools.chain([OK, b"Content-Length: 9999\r\n\r\n"], _slowly(bytes(9999))),),
    "a chunk that breaks off, on a connection in use": lambda: (
        [_answer((ExchangeResult([]), 0.0))],
        [OK, b"Transfer-Encoding: chunked\r\n\r\n10\r\nabc"],
    ),
    "a body that breaks off, on a connection in use": lambda: (
        [_answer((ExchangeResult([]), 0.0))],
        [OK, b"Content-Length: 1000\r\n\r\nabc"],
    ),
    "there is more, and nothing": lambda: tuple([_answer((ExchangeResult([], True), 0.0))] for _ in range(99)),
    "the same commit again": lambda: tuple([_answer((ExchangeResult([Entry(1, b"x")], True), 0.0))] for _ in range(99)),
}
_ENDLESS = itertools.repeat(bytes(1 << 18))


@pytest.mark.parametrize("lie", LIES)
def test_a_server_that_lies_is_one_that_cannot_be_reached(
    lie: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It costs neither the memory nor the time of its peer, however it begins."""
    authority = Authority(tmp_path)
    monkeypatch.setenv("HOPAAS_CA_FILE", str(authority.file))
    monkeypatch.setenv("HOPAAS_TOKEN", "ann.1:secret")
    monkeypatch.setattr(client, "_ANSWER", 3.0)
    forget_servers()
    began = time.monotonic()
    tracemalloc.start()
    with Liar(authority, *LIES[lie]()) as store, pytest.raises(StoreUnreachable):
        for _ in range(2):
            list(read_all(store.log("u")))
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
    assert time.monotonic() - began < 20
