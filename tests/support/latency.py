"""A TCP relay that makes a link long, counts what crosses it, and cuts it where a test wants it cut.

    with Relay(5432, round_trip=0.030) as relay:
        connect to 127.0.0.1:relay.port
        relay.flights          # changes of direction so far: a round trip is two
        relay.cut("reply")     # the next reply is lost: the server did it, the client does not know
        relay.hang()           # nothing gets through, and nobody is told

Bytes of each direction leave half a round trip after they came, in order, and not one by one: the link is long, not
narrow. One event loop in a thread of its own serves all connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import socket
from typing import Final, Literal

from tests.support.http_server import ThreadedServer

Cut = Literal["request", "reply", "mid-reply"]
_CHUNK: Final = 1 << 16
_SELECTABLE: Final = 512  # of 1,024, which leaves room for connections


class Relay(ThreadedServer):
    """Relays connections to a port of 127.0.0.1.

    Args:
        target: the port of the server.
        round_trip: seconds that a request and its reply take longer than without it.
        listener: where clients come, if not at a free port of 127.0.0.1: a socket of another network namespace, say.

    """

    def __init__(self, target: int, *, round_trip: float = 0.0, listener: socket.socket | None = None) -> None:
        self._listener = listener or socket.create_server(("127.0.0.1", 0))
        super().__init__(loop=asyncio.SelectorEventLoop(self._selector()))
        self.target = target
        self.round_trip = round_trip
        self.flights = 0
        """Changes of direction, over all connections: a request and its reply are two."""
        self.connections = 0
        """Connections made so far."""
        self.sent = 0
        """Bytes from clients."""
        self.received = 0
        """Bytes from the server."""
        self.cuts = 0
        """How often the link was cut as asked."""
        self._cut: Cut | None = None
        self._refusing = False
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._open: set[_Link] = set()

    def _selector(self) -> selectors.BaseSelector:
        """The finest clock there is: that of epoll has steps of 1 ms, and select takes small descriptors only."""
        crowded = self._listener.fileno() > _SELECTABLE
        return selectors.DefaultSelector() if crowded else selectors.SelectSelector()

    @property
    def round_trips(self) -> float:
        """Requests that were answered: half the flights."""
        return self.flights / 2

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, sock=self._listener)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _shut(self) -> None:
        await self._drop()
        await super()._shut()

    def cut(self, where: Cut) -> None:
        """Cut the connection that comes there next: at its request, its reply, or in the middle of that."""
        self._cut = where

    def drop(self) -> None:
        """Cut all connections now; new ones are served."""
        self.call(self._drop())

    async def _drop(self) -> None:
        for link in list(self._open):
            link.cut()

    def refuse(self, yes: bool = True) -> None:
        """Cut all connections, and every new one at once, until told otherwise."""
        self._refusing = yes
        if yes:
            self.drop()

    def hang(self, yes: bool = True) -> None:
        """Let nothing through in either direction, and close nothing, until told otherwise: new ones wait too."""
        self.call(self._hang(yes))

    async def _hang(self, yes: bool) -> None:
        if yes:
            self._flowing.clear()
        else:
            self._flowing.set()

    def reset(self) -> None:
        """Count from zero."""
        self.flights = self.connections = self.sent = self.received = self.cuts = 0

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            return
        self.connections += 1
        await self._flowing.wait()
        await asyncio.sleep(self.round_trip)  # TCP's own handshake
        there = await asyncio.open_connection("127.0.0.1", self.target)
        link = _Link(self, (reader, writer), there)
        self._open.add(link)
        try:
            await link.run()
        finally:
            self._open.discard(link)

    async def flowing(self) -> None:
        """Return when bytes may go on."""
        await self._flowing.wait()

    def take_cut(self, *candidates: Cut) -> Cut | None:
        """The cut that was asked for, if it is one of these; it is done once."""
        if self._cut not in candidates:
            return None
        found, self._cut = self._cut, None
        self.cuts += 1
        return found


class _Link:
    """One client and its connection to the server."""

    def __init__(
        self,
        relay: Relay,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._relay = relay
        self._client, self._server = client, server
        self._direction = ""

    async def run(self) -> None:
        tasks = [
            asyncio.create_task(self._pump("request", self._client[0], self._server[1])),
            asyncio.create_task(self._pump("reply", self._server[0], self._client[1])),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            self.cut()

    def cut(self) -> None:
        """End both connections without a word."""
        for _, writer in (self._client, self._server):
            writer.transport.abort()

    async def _pump(self, direction: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        sender = asyncio.create_task(self._send(queue, writer))
        loop = asyncio.get_running_loop()
        try:
            with contextlib.suppress(OSError):
                while data := await reader.read(_CHUNK):
                    await self._relay.flowing()
                    data, last = self._inspect(direction, data)
                    queue.put_nowait((loop.time() + self._relay.round_trip / 2, data))
                    if last:
                        break
            queue.put_nowait((loop.time() + self._relay.round_trip / 2, b""))
            await sender
        finally:
            sender.cancel()

    def _inspect(self, direction: str, data: bytes) -> tuple[bytes, bool]:
        """Count the bytes; returns what of them goes on, and whether it is the last of this connection."""
        relay = self._relay
        if self._direction != direction:
            self._direction = direction
            relay.flights += 1
        if direction == "request":
            relay.sent += len(data)
            return (b"", True) if relay.take_cut("request") else (data, False)
        relay.received += len(data)
        where = relay.take_cut("reply", "mid-reply")
        if where is None:
            return data, False
        return (data[: len(data) // 2] if where == "mid-reply" else b""), True

    @staticmethod
    async def _send(queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, data = await queue.get()
            wait = due - loop.time()
            if wait > 0:
                await asyncio.sleep(wait)
            if not data:
                return
            writer.write(data)
            with contextlib.suppress(OSError):
                await writer.drain()
