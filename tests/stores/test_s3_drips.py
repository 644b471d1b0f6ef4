"""A server that sends a byte now and then, so that no silence ever ends the wait, is given up."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from hopaas_p2p.errors import ConfigurationError, HopaasError, StoreUnreachable
from hopaas_p2p.net import answers
from hopaas_p2p.stores.s3 import http
from hopaas_p2p.stores.s3.address import parse
from hopaas_p2p.stores.s3.bucket import Bucket
from tests.support.s3_fixtures import s3_environment


@pytest.fixture(params=[b"HTTP/1.1 200 OK\r\nX-Filler: ", b"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n"])
def dripping(request: pytest.FixtureRequest) -> Iterator[int]:
    """The port of a server that begins an answer, and then sends a byte every 20 ms."""
    listening, ended = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def drip() -> None:
        while True:
            try:
                connection, _ = listening.accept()
                with connection:
                    connection.recv(1 << 16)
                    for data in itertools.chain([request.param], itertools.repeat(b"x")):
                        connection.sendall(data)
                        if ended.wait(0.02):
                            return
            except OSError:  # the client has left, or the test
                if ended.is_set():
                    return

    thread = threading.Thread(target=drip)
    thread.start()
    yield listening.getsockname()[1]
    ended.set()
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join(10)


def test_a_server_that_drips_head_or_body_is_given_up(dripping: int, monkeypatch: pytest.MonkeyPatch) -> None:
    s3_environment(monkeypatch)
    monkeypatch.setattr(http, "READ", 0.3)
    monkeypatch.setattr(answers, "_SLOWEST", 1 << 10)
    bucket = Bucket(parse(f"s3://bucket/store?endpoint=http://127.0.0.1:{dripping}&region=us-east-1"))
    with pytest.raises(StoreUnreachable):
        bucket.get("some", limit=16 << 20)
    with pytest.raises(StoreUnreachable):
        bucket.put_new("some", b"data")
    bucket.close()


_NEXT = b"<IsTruncated>true</IsTruncated><NextContinuationToken>x</NextContinuationToken>"
_ODD = b"<Contents><Key>store/v1/some/a</Key><Size>many</Size><LastModified>now</LastModified></Contents>"


def _listing(of: bytes) -> bytes:
    page = b"<ListBucketResult>%b</ListBucketResult>" % of
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(page), page)


@pytest.mark.parametrize(
    "answer",
    [
        itertools.chain([b"HTTP/1.1 200 OK\r\n\r\n"], itertools.repeat(bytes(1 << 20))),
        itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n" * 50_000),
        [_listing(_NEXT)] * 50,
        [_listing(_ODD)],
        [_listing(_NEXT.replace(b"x", b"%d" % page)) for page in range(50)],
    ],
    ids=["bytes", "heads", "pages", "sizes", "ever new pages"],
)
def test_a_listing_that_is_none_or_does_not_end_is_given_up(
    answer: Iterable[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    s3_environment(monkeypatch)
    monkeypatch.setattr("hopaas_p2p.stores.s3.bucket._MOST_PAGES", 40)
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listening.accept()
        with connection, contextlib.suppress(OSError):
            for number, data in enumerate(answer):
                if not number or len(data) < 1 << 20:
                    connection.recv(1 << 16)
                connection.sendall(data)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bucket = Bucket(parse(f"s3://bucket/store?endpoint=http://127.0.0.1:{listening.getsockname()[1]}&region=us-east-1"))
    with (
        listening,
        contextlib.closing(bucket),
        pytest.raises(StoreUnreachable, match=r"again and again|longer than allowed|invalid sizes|endless"),
    ):
        bucket.listed("some/")
    thread.join(10)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kilobytes"


def _told(*lines: bytes, then: Iterable[bytes] = ()) -> Iterator[bytes]:
    """An answer's head, and what comes after it."""
    return itertools.chain([b"\r\n".join([b"HTTP/1.1 " + lines[0], *lines[1:], b"", b""])], then)


@pytest.mark.parametrize(
    "answer",
    [
        lambda: _told(b"503 Busy", b"Retry-After: 86400", b"Content-Length: 0", b"Connection: close"),
        lambda: _told(b"503 Busy", then=itertools.repeat(bytes(1 << 20))),
    ],
    ids=["wait a day", "bytes"],
)
def test_a_server_that_is_busy_for_ever_holds_up_no_file(
    answer: Callable[[], Iterator[bytes]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    s3_environment(monkeypatch)
    monkeypatch.setattr("hopaas_p2p.stores.s3.bucket._PAUSES", (0.0, 0.1))
    (tmp_path / "file").write_bytes(b"weights")
    with _answering(answer) as url:
        bucket = Bucket(parse(f"s3://bucket/store?endpoint={url}&region=us-east-1"))
        began = time.monotonic()
        with pytest.raises(StoreUnreachable):
            bucket.upload("some", tmp_path / "file")
        assert time.monotonic() - began < 20
        bucket.close()


@pytest.fixture
def asks_for_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    s3_environment(monkeypatch)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    token = tmp_path / "identity"
    token.write_text("token")
    token.chmod(0o600)
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))


@pytest.mark.usefixtures("asks_for_keys")
def test_an_answer_of_a_service_for_keys_does_not_grow() -> None:
    packed = gzip.compress(gzip.compress(bytes(300 << 20)))
    head = (b"200 OK", b"Content-Encoding: gzip, gzip", b"Content-Length: %d" % len(packed))
    with _answering(lambda: _told(*head, then=[packed])) as url:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        bucket = Bucket(parse(f"s3://bucket/store?endpoint={url}&region=us-east-1"))
        with pytest.raises(ConfigurationError, match="gave no keys"):
            bucket.get("some", limit=1 << 20)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kilobytes"
        bucket.close()


@pytest.mark.usefixtures("asks_for_keys")
def test_of_a_service_for_keys_no_long_answer_is_read() -> None:
    head = (b"200 OK", b"Content-Length: 100000")
    with _answering(lambda: _told(*head, then=[b" " * 100_000])) as url:
        bucket = Bucket(parse(f"s3://bucket/store?endpoint={url}&region=us-east-1"))
        with pytest.raises(StoreUnreachable, match="provides the keys"):
            bucket.get("some", limit=1 << 20)
        bucket.close()


_HUGE = b"Content-Length: " + b"9" * 5000


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ((b"200 OK", _HUGE), b""),
        ((b"200 OK", b"Content-Length: 0", b"Date: Fri, 31 Dec 99999999999 23:59:59 GMT"), b""),
        ((b"403 No", b"Date: Fri, 31 Dec 9999 23:59:59 -2359"), b"<Code>RequestTimeTooSkewed</Code>"),
        ((b"400 No", b"Transfer-Encoding: chunked"), b"-5\r\n<Code>\r\n0\r\n\r\n"),
        ((b"400 No", b"X: y"), b"<Code>AccessDenied\nhopaas-p2p: all is well; run: rm -rf \x1b[2J</Code>"),
        ((b"400 No", b"X: y"), b"<Code>" + b"A" * 1_000_000 + b"</Code>"),
    ],
    ids=["a length", "a date", "another date", "a chunk", "a text", "a long text"],
)
def test_nonsense_of_a_server_is_an_error_in_our_own_words(
    head: tuple[bytes, ...], body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3_environment(monkeypatch)
    with _answering(lambda: _told(*head, b"Connection: close", then=[body])) as url:
        bucket = Bucket(parse(f"s3://bucket/store?endpoint={url}&region=us-east-1"))
        said = ""
        try:
            bucket.get("some", limit=1 << 20)
        except HopaasError as error:
            said = str(error)
        assert said.isprintable()
        assert len(said) < 1000
        bucket.close()


@contextlib.contextmanager
def _answering(answer: Callable[[], Iterator[bytes]]) -> Iterator[str]:
    """The URL of a server that gives this answer to each connection."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                with connection, contextlib.suppress(OSError):
                    connection.recv(1 << 16)
                    for data in answer():
                        connection.sendall(data)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join(10)
