"""Servers that stop in the moment in which somebody connects."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from hopaas_p2p.open import open_store
from hopaas_p2p.remote.https import LOOPBACK, HttpsServer
from hopaas_p2p.remote.relay import Relay
from hopaas_p2p.remote.server import ListedService
from hopaas_p2p.runtime.settings import Secret

Started = tuple[int, Callable[[], Awaitable[None]]]


async def https(folder: Path) -> Started:
    server = HttpsServer(ListedService(open_store(str(folder / "store"))), behind=LOOPBACK)
    server.hurry()
    return await server.start("127.0.0.1", 0), server.drain


async def relay(_: Path) -> Started:
    server = Relay([], Secret("password"))
    return await server.listen("127.0.0.1", 0), server.close


@pytest.mark.parametrize("turns", range(6))
@pytest.mark.parametrize("start", [https, relay])
def test_who_connects_while_a_server_stops_is_not_kept_waiting(
    start: Callable[[Path], Awaitable[Started]], turns: int, tmp_path: Path
) -> None:
    async def connected_while_it_stops() -> socket.socket:
        port, stop = await start(tmp_path)
        client = socket.create_connection(("127.0.0.1", port), timeout=30)
        for _ in range(turns):  # of the event loop, in which the server accepts the connection step by step
            await asyncio.sleep(0)
        await stop()
        return client

    gc.disable()  # it would close what nobody else does
    try:
        with asyncio.run(connected_while_it_stops()) as client, contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
    finally:
        gc.enable()
