"""What everything that reaches a server shares: the pauses between attempts, and whom to trust."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from pathlib import Path

import certifi
import pytest

from hopaas_p2p.errors import ConfigurationError, StoreUnreachable
from hopaas_p2p.net import checks
from hopaas_p2p.net.backoff import Backoff
from hopaas_p2p.net.proxies import Proxy, ServerAddress, connect_through, proxy_for
from hopaas_p2p.net.trust import authorities, client_context
from tests.support.listening import Answering, Dripping, Listening


def test_pauses_double_up_to_the_limit_and_begin_again_after_a_success() -> None:
    backoff = Backoff(0.5, 3.0, uniform=lambda low, high: (low + high) / 2)
    assert [backoff.pause() for _ in range(4)] == [0.5, 1.0, 2.0, 3.0]
    backoff.reset()
    assert backoff.pause() == 0.5


def test_pauses_vary_by_the_given_factors() -> None:
    drawn: list[tuple[float, float]] = []

    def lowest(low: float, high: float) -> float:
        drawn.append((low, high))
        return low

    assert Backoff(2.0, 8.0, jitter=(0.75, 1.25), uniform=lowest).pause() == 1.5
    assert drawn == [(0.75, 1.25)]


def test_the_file_of_authorities_is_the_one_that_was_asked_for_before_the_environments(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("url", "HOPAAS_CA_FILE", "AWS_CA_BUNDLE", "SSL_CERT_FILE")}
    for file in files.values():
        file.touch()
    env = {name: str(file) for name, file in files.items() if name != "url"}
    assert authorities(str(files["url"]), aws=True, env=env) == str(files["url"])
    for name in ("HOPAAS_CA_FILE", "AWS_CA_BUNDLE", "SSL_CERT_FILE"):
        assert authorities(aws=True, env=env) == str(files[name])
        del env[name]
    assert authorities(env=env) == certifi.where()
    assert authorities(env={"AWS_CA_BUNDLE": "/nowhere"}) == certifi.where(), "only S3 has to do with AWS"
    with pytest.raises(ConfigurationError, match="no file /nowhere"):
        authorities(env={"SSL_CERT_FILE": "/nowhere"})


def test_a_context_verifies_and_is_made_anew_when_its_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text(Path(certifi.where()).read_text())
    context = client_context(str(file))
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert client_context(str(file)) is context
    file.write_text("nothing")
    with pytest.raises(ConfigurationError, match="contains no certificate authorities"):
        client_context(str(file))


class _InTwoPieces(Listening):
    """A proxy whose answer comes in two packets, and then the server's first words."""

    def serve(self, client: socket.socket) -> None:
        client.recv(4096)
        for piece in (b"HTTP/1.1 200 OK\r\n", b"Via: 1.1 site\r\n\r\n", b"the server"):
            client.sendall(piece)
            time.sleep(0.1)


def test_the_answer_of_a_proxy_is_read_to_its_end_and_no_further() -> None:
    with _InTwoPieces() as listening:
        proxy = Proxy("http", ServerAddress("127.0.0.1", listening.port), None)
        with contextlib.closing(connect_through(proxy, ServerAddress("store.example", 443), timeout=5.0)) as made:
            assert made.recv(100) == b"the server"


def test_what_a_proxy_is_called_does_not_decide_what_its_refusal_means(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *more, **given: resolve("127.0.0.1", *more, **given))
    for answer, expected in ((b"502 Acc\xe8s", StoreUnreachable), (b"403 Acc\xe8s", ConfigurationError)):
        with Answering(b"HTTP/1.1 " + answer + b"\r\n\r\n") as listening:
            proxy = Proxy("http", ServerAddress("login1", listening.port), None)
            with pytest.raises(expected, match=r"http://login1.* answered .* store.example:443") as refused:
                connect_through(proxy, ServerAddress("store.example", 443), timeout=5.0)
            assert str(refused.value).encode(), "can be printed"


@pytest.mark.parametrize(
    ("scheme", "begins"),
    [
        ("http", b"HTTP/1.1 200 OK\r\nX-Filler: "),
        ("http", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
        ("socks5h", b"\x05\x00\x05\x00\x00\x03\xff"),
    ],
)
def test_a_proxy_that_drips_its_answer_is_given_up_at_the_deadline(scheme: str, begins: bytes) -> None:
    with Dripping(begins) as listening:
        proxy, began = Proxy(scheme, ServerAddress("127.0.0.1", listening.port), None), time.monotonic()
        with pytest.raises(StoreUnreachable, match=f"^the proxy {scheme}://127.0.0.1:{listening.port} "):
            connect_through(proxy, ServerAddress("store.example", 443), timeout=0.5)
        assert time.monotonic() - began < 3


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "ALL_PROXY", "all_proxy"])
def test_an_error_of_a_proxy_names_the_variable_that_it_came_from(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for other in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(other, raising=False)
    server = ServerAddress("gateway.example.org")
    monkeypatch.setenv(name, "ftp://proxy")
    with pytest.raises(ConfigurationError, match=f"^{name} cannot be parsed"):
        proxy_for(server)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
    *_, found = checks.checks(server, None, proxy_for(server))
    assert (found.passed, found.cure.split(",")[0]) == (False, f"fix {name}")
