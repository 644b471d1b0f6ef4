"""An HTTP proxy before an S3 server, that makes it slow, counts what it is asked, and does to it what networks do.

    with FaultProxy(server.port) as proxy:
        open s3://bucket/prefix?endpoint=http://127.0.0.1:{proxy.port}
        proxy.next("PUT", LOSE_REPLY)       # the next PUT takes effect, and its answer is lost
        proxy.requests                      # Counter({"PUT": 1, "GET": 2, "LIST": 1})

Latency is added half on the way there, half on the way back. Requests are passed on as they were signed. As a program,
`python -m tests.support.s3_faults PORT --put 0.045 --get 0.02`, it prints its port and runs until it is killed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import email.utils
import ssl
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Final, NamedTuple

from tests.support.http_messages import Answer, Request, Upstream, read_request
from tests.support.http_server import ThreadedServer


class Fault(NamedTuple):
    """What is done to one request. The default passes it on."""

    name: str
    forward: bool = True
    """Whether the server gets it."""
    late: bool = False
    """The server gets it, but only at `release()`; the client's connection ends at once."""
    hang_up: bool = False
    """The client gets no answer."""
    status: int | None = None
    """The client gets this instead of the answer."""
    code: str = ""
    """S3's code in that."""
    cut: bool = False
    """The client gets the first half of the answer's body."""
    claim: int | None = None
    """The client is told that this many bytes follow."""
    strip: str | None = None
    """This header is taken away on the way there."""
    hide: int | None = None
    """An answer of this status becomes a 200."""
    skew: float = 0.0
    """Seconds by which the answer's Date is ahead."""


LOSE_REPLY: Final = Fault("reply lost", hang_up=True)
LOSE_REQUEST: Final = Fault("request lost", forward=False, hang_up=True)
UNAVAILABLE_AFTER: Final = Fault("503 after it took effect", status=503, code="ServiceUnavailable")
UNAVAILABLE: Final = Fault("503", forward=False, status=503, code="ServiceUnavailable")
BROKEN: Final = Fault("500", forward=False, status=500, code="InternalError")
CONFLICT: Final = Fault("409", forward=False, status=409, code="ConditionalRequestConflict")
TOO_MANY: Final = Fault("429", forward=False, status=429, code="TooManyRequests")
SLOW_DOWN: Final = Fault("SlowDown", forward=False, status=503, code="SlowDown")
LATE: Final = Fault("lands late", late=True, forward=False, hang_up=True)
EXPIRED: Final = Fault("keys run out", forward=False, status=400, code="ExpiredToken")
CUT_BODY: Final = Fault("body cut short", cut=True)
HUGE: Final = Fault("5 GB", forward=False, claim=5 << 30)
IGNORE_CONDITION: Final = Fault("condition ignored", hide=412)
STRIP_CONDITION: Final = Fault("condition stripped", strip="if-none-match")


class FaultProxy(ThreadedServer):
    """Relays HTTP to a port of 127.0.0.1.

    Args:
        target: the server's port.
        put, get: seconds that PUT (and LIST, DELETE, POST), and GET (and HEAD), take longer.
        tls: the certificate to speak HTTPS with; plain HTTP without.

    """

    def __init__(self, target: int, *, put: float = 0.0, get: float = 0.0, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(tls=tls)
        self.target = target
        self.put, self.get = put, get
        self.happened: Counter[str] = Counter()
        """Faults so far, by name."""
        self.always: Callable[[Request], Fault | None] | None = None
        """Asked about every request for which nothing is planned."""
        self._planned: deque[tuple[str, str, Fault]] = deque()
        self._held: list[Request] = []

    def next(self, kind: str, *faults: Fault, path: str = "/log/") -> None:
        """Plan these for the next requests of this kind whose path holds this text."""
        self._planned.extend((kind, path, fault) for fault in faults)

    @property
    def planned(self) -> int:
        """Faults that have not happened yet."""
        return len(self._planned)

    def clear(self) -> None:
        """Nothing planned, nothing counted."""
        self._planned.clear()
        self.always = None
        self.requests.clear()
        self.happened.clear()

    def release(self) -> list[int]:
        """Send to the server what was held back; its answers' statuses."""
        held, self._held = self._held, []
        return [self.call(self._send_late(request)) for request in held]

    # --- one connection ---

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(Upstream(self.target)) as upstream:
            while (request := await read_request(reader)) is not None:
                self.requests[request.kind] += 1
                if not await self._handle(request, writer, upstream):
                    return

    async def _handle(self, request: Request, writer: asyncio.StreamWriter, upstream: Upstream) -> bool:
        """Answer one request; whether the connection goes on."""
        fault = self._fault_for(request)
        half = (self.get if request.kind in ("GET", "HEAD") else self.put) / 2
        await _pause(half)
        if fault.late:
            self._held.append(request)
        answer = Answer(200, [("Date", _date(0.0))], b"")
        if fault.forward:
            answer = await upstream.ask(_without(request, fault.strip))
        await _pause(half)
        if fault.hang_up:
            return False
        writer.write(_as_told(answer, fault, head_only=request.kind == "HEAD"))
        await writer.drain()
        return not fault.cut and fault.claim is None

    def _fault_for(self, request: Request) -> Fault:
        fault = None
        for i, (kind, path, planned) in enumerate(self._planned):
            if kind == request.kind and path in request.path:
                del self._planned[i]
                fault = planned
                break
        if fault is None and self.always is not None:
            fault = self.always(request)
        if fault is None:
            return Fault("")
        self.happened[fault.name] += 1
        return fault

    async def _send_late(self, request: Request) -> int:
        with contextlib.closing(Upstream(self.target)) as upstream:
            return (await upstream.ask(request)).status


def _as_told(answer: Answer, fault: Fault, *, head_only: bool) -> bytes:
    """The bytes that the client gets."""
    status, headers, body = answer
    if fault.hide == status:
        status, body = 200, b""
    if fault.status is not None:
        status = fault.status
        xml = f"<?xml version='1.0'?><Error><Code>{fault.code}</Code><Message>{fault.name}</Message></Error>"
        body, headers = xml.encode(), [("Content-Type", "application/xml"), ("Date", _date(fault.skew))]
    length = len(body) if fault.claim is None else fault.claim
    if not head_only:
        headers = [(name, value) for name, value in headers if name.lower() != "content-length"]
        headers.append(("Content-Length", str(length)))
    head = "\r\n".join([f"HTTP/1.1 {status} .", *(f"{name}: {value}" for name, value in headers), "", ""])
    return head.encode("latin-1") + (body[: len(body) // 2] if fault.cut else body)


def _without(request: Request, header: str | None) -> Request:
    if header is None:
        return request
    return request._replace(headers=[(name, value) for name, value in request.headers if name.lower() != header])


def _date(ahead: float) -> str:
    return email.utils.formatdate(time.time() + ahead, usegmt=True)


async def _pause(seconds: float) -> None:
    if seconds:
        await asyncio.sleep(seconds)


def main() -> None:
    """Run until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=int)
    parser.add_argument("--put", type=float, default=0.0)
    parser.add_argument("--get", type=float, default=0.0)
    said = parser.parse_args()
    with FaultProxy(said.target, put=said.put, get=said.get) as proxy, contextlib.suppress(KeyboardInterrupt):
        print(proxy.port, flush=True)  # noqa: T201
        threading.Event().wait()


if __name__ == "__main__":
    main()
