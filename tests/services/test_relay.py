"""The relay: a proxy with one login and one target, for nodes that reach only a login node."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

import hopaas_p2p
from hopaas_p2p.errors import ConfigurationError
from hopaas_p2p.net.proxies import ServerAddress
from hopaas_p2p.open import open_store
from hopaas_p2p.remote import relay as relays
from hopaas_p2p.remote.relay import Relay, read_password, targets_of
from hopaas_p2p.runtime.settings import Secret
from hopaas_p2p.testing.commits import append_many
from tests.support.processes import CLI, cli, environment, until
from tests.support.relay_process import RelayProcess
from tests.support.s3_faults import FaultProxy
from tests.support.s3_server import S3Server
from tests.support.served import HOST, Centre
from tests.support.site_fixtures import Squid


class Running:
    """A relay in this process, in a thread of its own, before a server that sends everything back."""

    def __init__(self, *, limit: int = 100) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.server = self._call(asyncio.start_server(self._echo, "127.0.0.1", 0))
        self.target = ServerAddress("127.0.0.1", self.server.sockets[0].getsockname()[1])
        self.relay = Relay([self.target], Secret("s3cret"), limit=limit)
        self.port = self._call(self.relay.listen("127.0.0.1", 0))

    async def _echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
            writer.write(b"the end")
        writer.close()

    def _call(self, coroutine):  # type: ignore[no-untyped-def]
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def close(self) -> None:
        self._call(self.relay.close())
        self._call(_closed(self.server))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)


@pytest.fixture
def running() -> Iterator[Running]:
    made = Running()
    yield made
    made.close()


def request(target: object, login: str = "relay:s3cret", method: str = "CONNECT") -> bytes:
    header = f"Proxy-Authorization: Basic {base64.b64encode(login.encode()).decode()}\r\n" if login else ""
    return f"{method} {target} HTTP/1.1\r\nHost: {target}\r\n{header}\r\n".encode()


def answer(connection: socket.socket) -> bytes:
    """The head of the answer."""
    head = b""
    while b"\r\n\r\n" not in head and (data := connection.recv(4096)):
        head += data
    return head


def test_who_has_the_login_gets_to_the_target_and_both_directions_end_apart(running: Running) -> None:
    with running.connect() as connection:
        connection.sendall(request(running.target))
        assert answer(connection).startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"there and back")
        assert connection.recv(100) == b"there and back"
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(100) == b"the end"
        assert connection.recv(100) == b""


def test_twenty_megabytes_and_a_slow_reader(running: Running) -> None:
    data = bytes(range(256)) * 4096 * 20
    with running.connect() as connection:
        connection.sendall(request(running.target))
        answer(connection)
        sender = threading.Thread(target=connection.sendall, args=(data,))
        sender.start()
        received = bytearray()
        while len(received) < len(data):
            received += connection.recv(1 << 14)
        sender.join()
    assert received == data


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ("{target}", 407),
        ("relay:guess@{target}", 407),
        ("other:s3cret@{target}", 407),
        ("relay:s3cret@127.0.0.1:22", 403),
        ("relay:s3cret@example.org:443", 403),
        ("relay:s3cret@{target}0", 403),
        ("relay:s3cret@nonsense", 403),
    ],
)
def test_nobody_else_gets_anywhere(running: Running, sent: str, status: int) -> None:
    login, _, target = sent.format(target=running.target).rpartition("@")
    with running.connect() as connection:
        connection.sendall(request(target, login))
        head = answer(connection)
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"Via: 1.1 hopaas-p2p-relay" in head
    assert (b"Proxy-Authenticate: Basic" in head) == (status == 407)
    assert b"s3cret" not in head
    assert running.relay.carried == 0


@pytest.mark.parametrize(
    "sent",
    [b"nonsense\r\n\r\n", b"CONNECT\r\n\r\n", b"\x16\x03\x01" + b"x" * 20_000, b"GET / SMTP\r\n\r\n"],
    ids=["words", "short", "tls", "protocol"],
)
def test_what_is_no_request_is_refused(running: Running, sent: bytes) -> None:
    with running.connect() as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        assert answer(connection)[:12] in (b"HTTP/1.1 400", b"")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"CONNECT h:443 HTTP/1.1\r\nProxy-Authorization: Basic \xe9\xe9\r\n\r\n", 407),
        (request("h:?").replace(b"h:?", b"h:\xb2"), 403),  # a digit to Python's isdigit, and no number
    ],
    ids=["login", "port"],
)
def test_bytes_that_are_no_ascii_are_answered_like_any_other_nonsense(
    running: Running, sent: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    with running.connect() as connection:
        connection.sendall(sent)
        assert answer(connection).startswith(f"HTTP/1.1 {status} ".encode())
    assert caplog.messages == []


def test_a_plain_request_through_the_proxy_is_refused(running: Running) -> None:
    with running.connect() as connection:
        connection.sendall(request("http://127.0.0.1/", method="GET"))
        assert answer(connection).startswith(b"HTTP/1.1 403 ")


def test_a_request_that_never_ends_is_given_up(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relays, "_TIMEOUT", 0.2)
    with running.connect() as connection:
        connection.sendall(b"CONNECT ")
        assert answer(connection).startswith(b"HTTP/1.1 400 ")


def test_a_target_that_is_down_is_told_from_a_refusal(running: Running) -> None:
    running._call(_closed(running.server))
    with running.connect() as connection:
        connection.sendall(request(running.target))
        assert answer(connection).startswith(b"HTTP/1.1 502 ")


async def _closed(server: asyncio.Server) -> None:
    server.close()


def test_more_connections_than_allowed_wait_outside() -> None:
    running = Running(limit=1)
    try:
        with running.connect() as first, running.connect() as second:
            first.sendall(request(running.target))
            answer(first)
            second.sendall(request(running.target))
            assert answer(second).startswith(b"HTTP/1.1 503 ")
    finally:
        running.close()


# --- where it leads, and who may use it --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "targets"),
    [
        ("https://gw.example.org", ["gw.example.org:443"]),
        ("https://GW.Example.org/db", ["gw.example.org:443"]),
        ("https://one:8443,two/db", ["one:8443", "two:443"]),
        ("s3://bucket/p?endpoint=https://s3.example.org:9000", ["s3.example.org:9000"]),
        ("s3://bucket/p?region=eu-1", ["s3.eu-1.amazonaws.com:443", "bucket.s3.eu-1.amazonaws.com:443"]),
        ("https://tracker.example.org", ["tracker.example.org:443"]),
    ],
)
def test_the_targets_of_a_url(url: str, targets: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    assert sorted(map(str, targets_of(url))) == sorted(targets)


@pytest.mark.parametrize(
    "url", ["postgresql://u@h/d", "http://plain.example.org", "s3://b/p?endpoint=http://h:1", "./x"]
)
def test_a_target_that_is_not_encrypted_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError):
        targets_of(url)


def test_a_login_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "login"
    file.write_text("http://relay:s3cret@h:1\n")
    file.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600") as refused:
        read_password(file)
    assert "s3cret" not in str(refused.value)
    file.chmod(0o600)
    assert read_password(file).reveal() == "s3cret"
    file.write_text("something else")
    with pytest.raises(ConfigurationError, match="does not hold"):
        read_password(file)


# --- the command, before real servers ----------------------------------------------------------------------------


def test_a_server_is_reached_through_the_relay_and_only_so(
    centre: Centre, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = centre.serve()
    url = centre.url(server.port)
    monkeypatch.setenv("HOPAAS_TOKEN", centre.token().secret.reveal())
    relay = RelayProcess(url, tmp_path).start()
    try:
        monkeypatch.setenv("HTTPS_PROXY", relay.proxy)
        study = hopaas_p2p.open_study(url, "s", space={"x": hopaas_p2p.Float(0, 1)}, budget=3)
        study.optimize(lambda trial: trial.params["x"], n_trials=3)
        study.close()
        assert relay.file.stat().st_mode & 0o777 == 0o600
        before = relay.proxy
        relay.kill()
        relay.start()
        assert relay.proxy.rpartition("@")[0] == before.rpartition("@")[0], "the login stays over a restart"
        assert relay.process is not None
        relay.process.send_signal(signal.SIGTERM)
        assert relay.process.wait(30) == 0
        secret = before.split(":")[2].partition("@")[0]
        assert secret not in relay.log()
        assert all(secret not in word for word in relay.words)
    finally:
        relay.kill()


def test_a_bucket_is_reached_through_the_relay_which_itself_goes_through_the_sites_proxy(
    s3_server: S3Server, squid: Squid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST).configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("HOPAAS_CA_FILE", str(tmp_path / "ca.pem"))
    with FaultProxy(s3_server.port, tls=context) as secure:
        url = s3_server.url("relayed", endpoint=secure.endpoint.replace("127.0.0.1", HOST))
        relay = RelayProcess(url, tmp_path, HTTPS_PROXY=squid.url()).start()
        try:
            monkeypatch.setenv("HTTPS_PROXY", relay.proxy)
            store = open_store(url)
            assert append_many(store.log("study-1"), "a", 3) == [1, 2, 3]
            store.close()
        finally:
            relay.kill()
    until(lambda: any(f"CONNECT {HOST}:" in line for line in squid.requests()))


def test_a_relay_without_a_place_for_its_login_is_refused() -> None:
    result = cli("serve", "relay", "--listen", "127.0.0.1:0", "--to", "https://example.org", check=False)
    assert result.returncode == 2
    assert "--login-file" in result.stderr


def test_the_file_of_the_login_may_be_in_the_home_directory(tmp_path: Path) -> None:
    words = [*CLI, "serve", "relay", "--listen", "127.0.0.1:0", "--to", "https://example.org", "--login-file=~/login"]
    env = {**environment(), "HOME": str(tmp_path)}
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, env=env, cwd=tmp_path) as process:
        try:
            until((tmp_path / "login").exists)
        finally:
            process.terminate()
    assert process.returncode == 0


def test_a_port_that_is_in_use_is_one_clear_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        words = ["serve", "relay", "--listen", where, "--to", "https://example.org", "--login-file", "login"]
        result = cli(*words, cwd=tmp_path, check=False)
    assert result.returncode == 78
    assert result.stderr.startswith("hopaas-p2p: cannot listen on ")
    assert "in use" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_relay_speaks_json(tmp_path: Path) -> None:
    words = [*CLI, "serve", "relay", "--listen", "127.0.0.1:0", "--to", "https://example.org", "--json"]
    words += ["--login-file=~/login"]  # which a shell passes on as it is
    env = environment(HOME=str(tmp_path))
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=env) as process:
        assert process.stdout is not None
        begun = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        ended = json.loads(process.stdout.readline())
    assert begun["listening"].startswith("127.0.0.1:")
    assert begun["to"] == ["example.org:443"]
    assert (tmp_path / "login").read_text().endswith(f"{begun['listening']}\n")
    assert ended == {"carried": 0, "refused": 0}
    assert process.returncode == 0
