"""HTTP messages as a proxy sees them: read whole, passed on as they came, so that their signatures stay valid."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

LIMIT = 1 << 16
"""Bytes of a head, at most."""


class Request(NamedTuple):
    """What came in."""

    kind: str
    """PUT, GET, LIST, DELETE, HEAD or POST."""
    path: str
    headers: list[tuple[str, str]]
    body: bytes


class Answer(NamedTuple):
    """What the server said."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


class Upstream:
    """A connection to the server, made when needed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: Request) -> Answer:
        """Pass it on, and wait for the answer."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=LIMIT)
        reader, writer = self._streams
        method = "GET" if request.kind == "LIST" else request.kind
        lines = [f"{method} {request.path} HTTP/1.1", *(f"{name}: {value}" for name, value in request.headers)]
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + request.body)
        await writer.drain()
        status_line, headers = await _read_head(reader)
        status = int(status_line.split(" ", 2)[1])
        body = b"" if method == "HEAD" or status in (204, 304) else await _read_body(reader, headers)
        kept = [(name, value) for name, value in headers if name.lower() != "transfer-encoding"]
        return Answer(status, kept, body)

    def close(self) -> None:
        """Cut it."""
        if self._streams is not None:
            self._streams[1].transport.abort()


async def read_request(reader: asyncio.StreamReader) -> Request | None:
    """The next request, or None at the connection's end."""
    try:
        line, headers = await _read_head(reader)
    except asyncio.IncompleteReadError:
        return None
    method, path, _ = line.split(" ", 2)
    body = await _read_body(reader, headers) if method in ("PUT", "POST") else b""
    kind = "LIST" if method == "GET" and "list-type=" in path else method
    return Request(kind, path, headers, body)


async def _read_head(reader: asyncio.StreamReader) -> tuple[str, list[tuple[str, str]]]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head[:-4].split("\r\n")
    pairs = [line.partition(":") for line in lines]
    return first, [(name.strip(), value.strip()) for name, _, value in pairs]


async def _read_body(reader: asyncio.StreamReader, headers: list[tuple[str, str]]) -> bytes:
    named = {name.lower(): value for name, value in headers}
    if "chunked" in named.get("transfer-encoding", "").lower():
        return await _read_chunks(reader)
    return await reader.readexactly(int(named.get("content-length", "0")))


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    parts = []
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass
    return b"".join(parts)
