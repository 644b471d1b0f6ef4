"""A server that sends a byte now and then, so that no silence ever ends the wait, is given up."""

from __future__ import annotations

import contextlib
import itertools
import resource
import socket
import threading
from collections.abc import Iterable, Iterator

import pytest

from hopaas_p2p.errors import StoreUnreachable
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
_ODD = b"<Contents><Key>a</Key><Size>many</Size><LastModified>now</LastModified></Contents>"


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
    ],
    ids=["bytes", "heads", "pages", "sizes"],
)
def test_a_listing_that_is_none_or_does_not_end_is_given_up(
    answer: Iterable[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    s3_environment(monkeypatch)
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
    with pytest.raises(StoreUnreachable, match=r"again and again|more came|that are none"):
        bucket.listed("some/")
    bucket.close()
    listening.close()
    thread.join(10)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kilobytes"
