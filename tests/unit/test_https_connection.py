"""A connection of the server's, with a client that cuts its bytes as it likes."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import pytest
import trustme

from hopaas_p2p.remote.connection import Connection


@pytest.fixture(scope="module")
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """(server's, client's)."""
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)
    return server, client


class Echo(Connection):
    """Answers with what it was told, and notes what happens."""

    def __init__(self, server_context: ssl.SSLContext) -> None:
        super().__init__(server_context)
        self.heard: list[bytes] = []
        self.over = asyncio.Event()

    def received(self, data: bytes) -> None:
        self.heard.append(data)
        self.send(b"you said " + data)

    def disconnected(self) -> None:
        self.over.set()


async def served(handler: Echo, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to a server that takes one."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: handler, "127.0.0.1", 0)
    try:
        return await asyncio.open_connection(*server.sockets[0].getsockname(), **options)
    finally:
        server.close()


def test_what_comes_along_with_the_end_of_the_handshake_is_heard_and_answered_in_tls(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    async def run() -> None:
        handler = Echo(contexts[0])
        reader, writer = await served(handler)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = contexts[1].wrap_bio(incoming, outgoing, server_hostname="localhost")
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
        tls.write(b"hello")
        writer.write(outgoing.read())  # the end of the handshake and the first bytes in one
        heard = b""
        while heard != b"you said hello":
            incoming.write(await reader.read(1 << 16))
            try:
                heard += tls.read(1 << 16)
            except ssl.SSLWantReadError:
                continue
        assert handler.heard == [b"hello"]
        assert handler.address == "127.0.0.1"
        writer.transport.abort()
        await asyncio.wait_for(handler.over.wait(), 10)

    asyncio.run(run())


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05hello", b""])
def test_a_client_that_does_not_speak_tls_is_let_go_and_heard_nothing_of(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], said: bytes
) -> None:
    async def run() -> None:
        handler = Echo(contexts[0])
        reader, writer = await served(handler)
        writer.write(said)
        writer.write_eof()
        await asyncio.wait_for(handler.over.wait(), 10)
        await reader.read()
        assert handler.heard == []
        writer.transport.abort()

    asyncio.run(run())


def test_a_connection_in_tls_keeps_a_buffer_of_one_record(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    """Asyncio's is 256 kB by default; that would be a quarter of a gigabyte for a thousand peers."""

    async def run() -> None:
        handler = Echo(contexts[0])
        reader, writer = await served(handler, ssl=contexts[1], server_hostname="localhost")
        writer.write(b"hello")
        assert await reader.readexactly(14) == b"you said hello"
        assert len(handler._transport._ssl_protocol._ssl_buffer) == 1 << 14  # type: ignore[union-attr]
        writer.close()
        await asyncio.wait_for(handler.over.wait(), 10)

    asyncio.run(run())
