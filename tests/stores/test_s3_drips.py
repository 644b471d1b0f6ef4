"""A server that sends a byte now and then, so that no silence ever ends the wait, is given up."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Iterator

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
