"""One connection of a server's: bytes in, bytes out, and back-pressure by pausing.

TLS is asyncio's own, with smaller buffers than it has by default: a server holds a thousand connections, most of
them idle.
"""

from __future__ import annotations

import asyncio
import ssl
from abc import abstractmethod
from asyncio.sslproto import SSLProtocol
from typing import Final

from hopaas_p2p.net.proxies import configure

FRAME: Final = 1 << 16  # bytes

SSLProtocol.max_size = 1 << 14  # one TLS record; 256 kB by default, which each connection keeps to receive into

_received: Final = memoryview(bytearray(FRAME))
"""What all connections receive into: the bytes are taken out before another connection's turn."""


class Connection(asyncio.BufferedProtocol):
    """A connection over TCP or a Unix socket.

    Args:
        server_context: for TLS as a server; None for a connection that needs no TLS.

    """

    def __init__(self, server_context: ssl.SSLContext | None = None) -> None:
        self._context = server_context
        self._plain: asyncio.Transport | None = None
        self._transport: asyncio.Transport | None = None
        """What is written to; None until TLS is established."""
        self._early = b""
        self._handshake: asyncio.Task[None] | None = None
        self._written = 0
        self.address = ""
        """The other side's, over TCP."""

    # --- what happens to it ---

    def connected(self) -> None:
        """It is there; TLS as a server has not begun."""

    @abstractmethod
    def received(self, data: bytes) -> None:
        """These bytes came."""

    def disconnected(self) -> None:
        """The other side will send no more, or the connection is gone. May be called twice."""

    def writing_paused(self, paused: bool) -> None:
        """More bytes wait to be written than should; or no longer."""

    # --- called by asyncio ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._plain = transport
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple):  # not a Unix socket
            self.address = str(peer[0])
            configure(transport.get_extra_info("socket"))
        self.connected()
        if self._context is None:
            self._use(transport)
            return
        if transport.is_closing():
            return
        transport.pause_reading()
        self._handshake = asyncio.get_running_loop().create_task(self._start_tls(transport, self._context))

    async def _start_tls(self, plain: asyncio.Transport, context: ssl.SSLContext) -> None:
        try:
            secured = await asyncio.get_running_loop().start_tls(plain, self, context, server_side=True)
        except OSError:
            secured = None
        if secured is None:  # the handshake failed, or the connection was aborted meanwhile
            self.abort()
            self.disconnected()
            return
        secured.set_read_buffer_limits(high=FRAME)  # type: ignore[attr-defined]
        self._use(secured)
        if self._early:  # what came along with the end of the handshake
            self.received(self._early)

    def _use(self, transport: asyncio.Transport) -> None:
        transport.set_write_buffer_limits(high=FRAME)
        self._transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return _received

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(_received[:nbytes])
        if self._transport is None:
            self._early += data
        else:
            self.received(data)

    def eof_received(self) -> None:
        self.disconnected()

    def connection_lost(self, exc: Exception | None) -> None:
        self._plain = self._transport = None  # asyncio fails at a transport that is aborted once more
        self.disconnected()

    def pause_writing(self) -> None:
        self.writing_paused(True)

    def resume_writing(self) -> None:
        self.writing_paused(False)

    # --- what can be done with it ---

    def send(self, data: bytes) -> None:
        """Write, now or as soon as possible."""
        if self._transport is not None and not self._transport.is_closing():
            self._written += len(data)
            self._transport.write(data)

    @property
    def unsent(self) -> int:
        """Bytes that wait to be written."""
        transports = {self._plain, self._transport} - {None}
        return sum(transport.get_write_buffer_size() for transport in transports if transport is not None)

    @property
    def sent(self) -> int:
        """Bytes that the system has taken so far: as long as it rises, the other side reads."""
        return self._written - self.unsent

    def listen(self, yes: bool) -> None:
        """Whether to read from it. While nothing is read, the sender has to wait."""
        if self._transport is None or self._transport.is_closing():
            return
        if yes:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def close(self) -> None:
        """Write what waits, then end."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.close()

    def abort(self) -> None:
        """End at once."""
        if self._plain is not None:
            self._plain.abort()
