"""One TCP connection of the gateway's: bytes in, bytes out, TLS or not, back-pressure by pausing.

asyncio's own TLS keeps a buffer of 256 kB for each connection; here OpenSSL works on memory and all connections share
one buffer to receive into, so an idle connection costs what OpenSSL keeps of it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Final, Protocol

from hopaas_p2p.tunnel import FRAME
from hopaas_p2p.tunnel.proxies import tune

_HIGH: Final = FRAME  # bytes waiting to be written, at which the other side is no longer read
_arrived: Final = memoryview(bytearray(FRAME))
"""What recv() writes into. Used up before the loop turns to another connection."""


class Owner(Protocol):
    """Who uses a wire. All calls come from the event loop."""

    def arrived(self, wire: Wire, data: bytes) -> None: ...
    def ended(self, wire: Wire) -> None:
        """The other side will send no more, or the connection is gone. May come twice."""

    def congested(self, wire: Wire, yes: bool) -> None:
        """More waits to be written than should; or no longer."""


class Wire(asyncio.BufferedProtocol):
    """A connection, seen by its owner.

    Args:
        owner: who is told what happens.
        tls: what makes the TLS object, from the two memories that it reads and writes; None for plain TCP.

    """

    def __init__(self, owner: Owner, tls: Callable[[ssl.MemoryBIO, ssl.MemoryBIO], ssl.SSLObject] | None) -> None:
        self.owner = owner
        self._make_tls = tls
        self._tls: ssl.SSLObject | None = None
        self._shaken = tls is None
        self._transport: asyncio.Transport | None = None
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done as soon as bytes may be sent."""
        self.ready.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._written = 0
        self.address = ""
        """Of the other side."""
        self.connected: Callable[[Wire], None] | None = None
        """Told once that the connection is there."""

    # --- asyncio's side ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=_HIGH)
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple):  # not a Unix socket
            self.address = str(peer[0])
            tune(transport.get_extra_info("socket"))
        if self.connected is not None:
            self.connected(self)
        if self._make_tls is None:
            self.ready.set_result(None)
        else:
            self.start_tls(self._make_tls)

    def get_buffer(self, _sizehint: int) -> memoryview:
        return _arrived

    def buffer_updated(self, size: int) -> None:
        if self._tls is None:
            self.owner.arrived(self, bytes(_arrived[:size]))
            return
        self._incoming.write(_arrived[:size])
        try:
            if not self._shaken and not self._shake():
                return
            self._decrypt(self._tls)
        except (ssl.SSLError, OSError) as error:
            self._fail(error)

    def eof_received(self) -> bool:
        self.owner.ended(self)
        return True  # what is still to be written is written

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(exc or ConnectionResetError("closed"))
        self.owner.ended(self)

    def pause_writing(self) -> None:
        self.owner.congested(self, True)

    def resume_writing(self) -> None:
        self.owner.congested(self, False)

    # --- TLS ---

    def start_tls(self, make: Callable[[ssl.MemoryBIO, ssl.MemoryBIO], ssl.SSLObject]) -> None:
        """Begin TLS; `ready` is done when it is agreed on."""
        if self.ready.done():
            self.ready = asyncio.get_running_loop().create_future()
            self.ready.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = make(self._incoming, self._outgoing)
        self._shaken = False
        try:
            self._shake()
        except (ssl.SSLError, OSError) as error:
            self._fail(error)

    def _shake(self) -> bool:
        assert self._tls is not None
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        finally:
            self._flush()
        self._shaken = True
        if not self.ready.done():
            self.ready.set_result(None)
        return True

    def _decrypt(self, tls: ssl.SSLObject) -> None:
        parts = []
        ended = False
        try:
            while part := tls.read(FRAME):
                parts.append(part)
                if not self._incoming.pending and not tls.pending():
                    break
            else:
                ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            ended = True
        if self._outgoing.pending:
            self._flush()
        if parts:
            data = parts[0] if len(parts) == 1 else b"".join(parts)
            self.owner.arrived(self, data)
        if ended:
            self.owner.ended(self)

    def _flush(self) -> None:
        data = self._outgoing.read()
        if data and self._transport is not None:
            self._written += len(data)
            self._transport.write(data)

    def _fail(self, error: BaseException) -> None:
        if not self.ready.done():
            self.ready.set_exception(error)
        self.abort()

    # --- the owner's side ---

    def send(self, data: bytes) -> None:
        """Write, now or as soon as it can be."""
        if self._transport is None or self._transport.is_closing():
            return
        if self._tls is None:
            self._written += len(data)
            self._transport.write(data)
            return
        view = memoryview(data)
        try:
            while view:
                view = view[self._tls.write(view) :]
            self._flush()
        except (ssl.SSLError, OSError) as error:
            self._fail(error)

    @property
    def waiting(self) -> int:
        """Bytes that wait to be written."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    @property
    def taken(self) -> int:
        """Bytes that the system has taken so far: as long as it rises, the other side reads."""
        return self._written - self.waiting

    def listen(self, yes: bool) -> None:
        """Whether to read from it. Who does not read lets the sender wait."""
        if self._transport is None or self._transport.is_closing():
            return
        if yes:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def close(self) -> None:
        """Write what waits, then end."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End at once."""
        if self._transport is not None:
            self._transport.abort()


def server_side(context: ssl.SSLContext) -> Callable[[ssl.MemoryBIO, ssl.MemoryBIO], ssl.SSLObject]:
    """TLS as a server."""
    return lambda incoming, outgoing: context.wrap_bio(incoming, outgoing, server_side=True)


def client_side(context: ssl.SSLContext, host: str) -> Callable[[ssl.MemoryBIO, ssl.MemoryBIO], ssl.SSLObject]:
    """TLS as a client of this host."""
    return lambda incoming, outgoing: context.wrap_bio(incoming, outgoing, server_hostname=host)
