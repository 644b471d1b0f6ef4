"""A server on a port of 127.0.0.1, whose event loop runs in a thread of its own. Subclasses answer."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections import Counter
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

from tests.support.http_messages import LIMIT

T = TypeVar("T")


class ThreadedServer:
    """See the module; it runs between `start` and `stop`, or in a `with` block.

    Args:
        tls: the certificate to speak HTTPS with; plain HTTP without.
        loop: its event loop, if it is to be a special one.

    """

    def __init__(self, *, tls: ssl.SSLContext | None = None, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self.port = 0
        self.requests: Counter[str] = Counter()
        """Requests that came in, by kind."""
        self._tls = tls
        self._loop = loop or asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=type(self).__name__, daemon=True)
        self._server: asyncio.Server | None = None

    @property
    def endpoint(self) -> str:
        return f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self.port}"

    def start(self) -> Self:
        self._thread.start()
        self.call(self._listen())
        return self

    def stop(self) -> None:
        self.call(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run this in the server's thread, and wait for it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until it ends. An error of it ends this one only."""
        raise NotImplementedError

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=LIMIT, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _shut(self) -> None:
        assert self._server is not None
        self._server.close()
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self.connected(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
