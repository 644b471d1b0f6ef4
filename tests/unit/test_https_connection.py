"""A connection of the server's, with a client that cuts its bytes as it likes."""

from __future__ import annotations

import asyncio
import errno
import ssl
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hopaas_p2p.errors import StoreUnreachable
from hopaas_p2p.remote import protocol
from hopaas_p2p.remote.certificate import Certificate
from hopaas_p2p.remote.client import RemoteStore
from hopaas_p2p.remote.https import _WHERE, LOOPBACK, HttpsLimits, HttpsServer
from hopaas_p2p.remote.protocol import PATH, StoreRequest
from hopaas_p2p.remote.server import Service, Token
from hopaas_p2p.remote.tokens import TokenStatus
from hopaas_p2p.runtime.settings import Secret
from tests.support.served import Authority

PAGE = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def served(authority: Authority, do: Callable[[HttpsServer, int], Awaitable[None]]) -> None:
    """Do this with a server of nothing, and its port."""

    async def run() -> None:
        service: Any = SimpleNamespace(tick=lambda _: asyncio.sleep(0), end_waits=int, close=int, gauges=dict)
        server = HttpsServer(service, certificate=Certificate(*authority.certificate()))
        await do(server, await server.start("127.0.0.1", 0))
        server.hurry()
        await server.drain()

    asyncio.run(run())


def test_what_comes_along_with_the_end_of_the_handshake_is_heard_and_answered_in_tls(authority: Authority) -> None:
    async def do(server: HttpsServer, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.create_default_context(cafile=authority.file)
        tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        writer.write(outgoing.read())
        while True:
            incoming.write(await reader.read(1 << 16))
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                continue
        tls.write(PAGE)
        writer.write(outgoing.read())  # the end of the handshake and the request in one
        heard = b""
        while not heard.endswith(b"ok\n"):
            incoming.write(await reader.read(1 << 16))
            try:
                heard += tls.read(1 << 16)
            except ssl.SSLWantReadError:
                continue
        assert heard.startswith(b"HTTP/1.1 200 OK")
        writer.transport.abort()

    served(authority, do)


@pytest.mark.parametrize("said", [PAGE, b"\x16\x03\x01\x00\x05hello", b""])
def test_a_client_that_does_not_speak_tls_is_let_go_and_heard_nothing_of(authority: Authority, said: bytes) -> None:
    async def do(server: HttpsServer, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(said)
        writer.write_eof()
        await reader.read()
        writer.transport.abort()
        await asyncio.wait_for(server.empty.wait(), 10)
        assert server.counted["requests_total", 'status="200"'] == 0

    served(authority, do)


def test_a_connection_in_tls_keeps_a_buffer_of_one_record(authority: Authority) -> None:
    """Asyncio's is 256 kB by default; that would be a quarter of a gigabyte for a thousand peers."""

    async def do(server: HttpsServer, port: int) -> None:
        context = ssl.create_default_context(cafile=authority.file)
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
        (session,) = server.sessions
        for _ in range(1000):
            if hasattr(session._writer.transport, "_ssl_protocol"):
                break
            await asyncio.sleep(0.01)
        assert len(session._writer.transport._ssl_protocol._ssl_buffer) == 1 << 14  # type: ignore[attr-defined]
        writer.transport.abort()

    served(authority, do)


class _Slow:
    """A service that lets everybody in, and takes half a second for what it is asked."""

    end_waits = close = int
    gauges = dict

    async def tick(self, _now: float) -> None:
        pass

    async def status(self, _token: Token, _address: str) -> TokenStatus:
        return TokenStatus(valid=True)

    async def answer(self, *_: object) -> bytes:
        await asyncio.sleep(0.5)
        return protocol.answered(None)

    async def carry_out(self, *_: object) -> bytes:
        return protocol.answered(None)


async def _asked(port: int, line: str, body: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A request of the proxy's before the server."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    token = protocol.encode_header("ann:secret")
    head = f"{line} HTTP/1.1\r\nHost: x\r\nX-Forwarded-Proto: https\r\nAuthorization: Bearer {token}\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return reader, writer


def behind_a_proxy(do: Callable[[HttpsServer, int], Awaitable[None]], limits: HttpsLimits | None = None) -> None:
    async def run() -> None:
        service: Any = _Slow()
        server = HttpsServer(service, behind=LOOPBACK, limits=limits)
        await do(server, await server.start("127.0.0.1", 0))

    asyncio.run(run())


def test_a_server_whose_connections_were_all_gone_once_still_answers_what_was_asked_before_it_stops() -> None:
    async def do(server: HttpsServer, port: int) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        await asyncio.wait_for(server.empty.wait(), 10)
        reader, writer = await _asked(port, f"POST {PATH}", protocol.encode(StoreRequest("hello", "")))
        await asyncio.sleep(0.2)
        await server.drain()
        assert (await reader.read()).startswith(b"HTTP/1.1 200 OK")
        writer.close()

    behind_a_proxy(do)


def test_a_connection_without_a_request_for_long_is_closed_and_one_whose_answer_takes_longer_is_not() -> None:
    async def do(server: HttpsServer, port: int) -> None:
        reader, writer = await _asked(port, f"POST {PATH}", protocol.encode(StoreRequest("hello", "")))
        (session,) = server.sessions
        session.idle_since = 0.0  # as if it had been idle before this request
        assert (await asyncio.wait_for(reader.read(), 30)).startswith(b"HTTP/1.1 200 OK")
        assert server.counted["shed_total", 'cause="idle"'] == 1
        writer.close()
        await server.drain()

    behind_a_proxy(do, HttpsLimits(idle=0.5))


def test_a_connection_is_not_idle_from_the_first_byte_of_a_request_on() -> None:
    async def do(server: HttpsServer, port: int) -> None:
        body = protocol.encode(StoreRequest("hello", ""))
        reader, writer = await _asked(port, f"POST {PATH}", body)
        assert (await reader.read(1 << 16)).startswith(b"HTTP/1.1 200 OK")
        (session,) = server.sessions
        session.idle_since -= server.limits.idle - 1.0
        writer.write(PAGE[:10])
        await asyncio.sleep(2.2)  # in which the server looks at it twice
        writer.write(PAGE[10:])
        assert (await asyncio.wait_for(reader.read(1 << 16), 30)).startswith(b"HTTP/1.1 200 OK")
        writer.close()
        await server.drain()

    behind_a_proxy(do)


def test_a_tokens_connections_go_when_it_has_not_asked_for_a_while_and_not_while_it_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closed: list[str] = []

    def opened(token: Token) -> RemoteStore:
        store = RemoteStore("https://gateway.example.org")
        monkeypatch.setattr(store, "close", lambda: closed.append(token[0]))
        return store

    async def run() -> None:
        service, request = Service(opened), StoreRequest("hello")
        ann, bob = ("ann", Secret("s")), ("bob", Secret("s"))
        for token in (ann, bob):
            async with service.lease(token, request) as store, service.lease(token, request) as other:
                assert store is not other
        async with service.lease(bob, request):
            await service.tick(time.monotonic())
            assert closed == []
            await service.tick(time.monotonic() + 100.0)
            assert closed == ["ann", "ann"]
        await service.tick(time.monotonic() + 200.0)
        assert closed == ["ann", "ann", "bob", "bob"]

    asyncio.run(run())


def test_a_server_whose_disk_is_full_says_that_it_failed_and_logs_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def do(server: HttpsServer, port: int) -> None:
        monkeypatch.setattr(tempfile, "TemporaryDirectory", full)
        reader, writer = await _asked(port, f"PUT {PATH}/files/u/model", b"weights")
        assert (await reader.read()).startswith(b"HTTP/1.1 500 Internal Server Error")
        writer.close()
        await server.drain()

    with caplog.at_level("ERROR"):
        behind_a_proxy(do)
    assert [record.about for record in caplog.records] == [{"why": "OSError"}]  # type: ignore[attr-defined]


def test_an_answer_of_another_version_says_so() -> None:
    """Before the first release the protocol changes under one number: an expiry was a text once."""
    with pytest.raises(StoreUnreachable, match=r"'hello' cannot be read: .* install the same version on both sides"):
        protocol.result_of("hello", protocol.answered(["token", "2026-12-01T00:00:00Z"]))


def test_files_of_one_token_that_nobody_takes_leave_room_on_the_disk_for_those_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = 10 << 20

    async def carry_out(_self: object, _token: Token, _request: StoreRequest, path: Path) -> bytes:
        await asyncio.to_thread(path.write_bytes, bytes(size))
        return protocol.answered(None)

    async def do(server: HttpsServer, port: int) -> None:
        def usage(_: object) -> SimpleNamespace:
            return SimpleNamespace(free=8 * size - sum(one.on_disk for one in server.sessions))

        monkeypatch.setattr("shutil.disk_usage", usage)
        lines = [await _asked(port, f"GET {PATH}/files/u/x", b"") for _ in range(6)]
        heads = [await asyncio.wait_for(reader.readline(), 60) for reader, _ in lines]
        assert sorted(heads) == [b"HTTP/1.1 200 OK\r\n"] * 2 + [b"HTTP/1.1 503 Service Unavailable\r\n"] * 4
        assert sum(one.on_disk for one in server.sessions) == 2 * size
        for _, writer in lines:
            writer.close()
        await server.drain()
        assert sum(one.on_disk for one in server.sessions) == 0

    monkeypatch.setattr(_Slow, "carry_out", carry_out)
    behind_a_proxy(do)


def test_a_path_is_looked_at_once_whatever_it_repeats() -> None:
    """It is looked at before the token. Where a part may match in two ways, this would take days."""
    for repeated in ("/v1/files/a", "/v1", "/a", "/v1/files", "a/"):
        assert _WHERE.fullmatch(f"/v1/files/{repeated * 500_000}%") is None
        assert _WHERE.fullmatch(f"{repeated * 500_000}%") is None
    for path in ("/v1/files/u/v1/x", "/gate/way/v1/files/u/v1/x"):
        found = _WHERE.fullmatch(path)
        assert found is not None
        assert found["key"] == "u/v1/x"
    assert _WHERE.fullmatch("/v1/x/v1") is not None
