"""What the servers of this program share: a limit on connections without a request, and the error for an address that
is in use.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, ClassVar, Final

from hopaas_p2p.errors import ConfigurationError

if TYPE_CHECKING:
    from asyncio import Transport

MOST_STRANGERS: Final = 64
"""The most simultaneous connections without a request; one more closes the oldest."""
STRANGERS_IDLE: Final = 5.0
"""Seconds after which a connection without a request is closed."""


@contextlib.contextmanager
def listening_on(host: str, port: int) -> Iterator[None]:
    """Raise ConfigurationError from this block if the address is in use, is another machine's, or needs more rights."""
    try:
        yield
    except OSError as error:
        own = error.errno and not isinstance(error, socket.gaierror)  # without the text that event loops put around it
        why = os.strerror(error.errno or 0) if own else error.strerror or error
        raise ConfigurationError(f"cannot listen on {host}:{port}: {why}") from None


async def stop_listening(server: asyncio.Server) -> None:
    """Close a server's sockets once each accepted connection has its handler; asyncio would leave the others open."""
    for listener in server.sockets:
        asyncio.get_running_loop().remove_reader(listener.fileno())
    for _ in range(3):  # a connection gets its transport, then its protocol, then its handler
        await asyncio.sleep(0)
    server.close()


class FewStrangers(ThreadingMixIn):
    """A server with a thread per connection, and a limit on connections that have not yet been authorized."""

    def __init__(self, *arguments: Any) -> None:
        self.strangers: dict[socket.socket, None] = {}
        """Unauthorized connections, oldest first. A handler removes its connection once it is authorized."""
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        for oldest in list(self.strangers)[: 1 - MOST_STRANGERS]:
            self.strangers.pop(oldest, None)
            with contextlib.suppress(OSError):  # its own thread closes it
                oldest.shutdown(socket.SHUT_RDWR)
        self.strangers[request] = None
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.strangers.pop(request, None)
        super().shutdown_request(request)  # type: ignore[misc]  # the server's


def bound_strangers() -> None:
    """Make uvicorn close idle connections without a request before they use up the descriptors of this process."""
    from uvicorn.protocols.http import auto

    kind: Any = auto.AutoHTTPProtocol

    class Bounded(kind):  # type: ignore[misc]
        strangers: ClassVar[dict[Any, None]] = {}
        """Oldest first."""

        def connection_made(self, transport: Transport) -> None:
            super().connection_made(transport)
            for oldest in list(self.strangers)[: 1 - MOST_STRANGERS]:
                oldest.turn_away()
            self.strangers[self] = None
            self.loop.call_later(STRANGERS_IDLE, self.turn_away)

        def turn_away(self) -> None:
            if self in self.strangers:
                del self.strangers[self]
                self.transport.abort()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None or self not in self.connections:  # it has made a request, or uses a web socket
                self.strangers.pop(self, None)

        def connection_lost(self, exc: Exception | None) -> None:
            self.strangers.pop(self, None)
            super().connection_lost(exc)

    auto.AutoHTTPProtocol = Bounded
