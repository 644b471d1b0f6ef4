"""An answer within so many seconds and bytes: a server that sends a byte now and then could block a client forever."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, Final
from urllib.parse import urlsplit

from hopaas_p2p.net import proxies, trust

_HEAD: Final = 64 << 10  # bytes of an answer's head, which `http.client` would otherwise read without end
_SLOWEST: Final = 16 << 10  # bytes per second, after the time of silence
_latest: Final = ContextVar("latest", default=math.inf)


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """In this block, each answer that this thread begins to read has to end before so many seconds have passed."""
    before = _latest.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _latest.reset(before)


class AnswerBytes(io.RawIOBase):
    """The bytes of an answer, for `http.client.HTTPResponse`, which takes this in place of a socket.

    Args:
        receive: reads into a buffer, as `socket.recv_into` does.
        silence: seconds within which the first byte must arrive; later bytes at 16 KiB/s at least.
        end: called when the answer is closed.
        wait: is told how many seconds `receive` may take, as `socket.settimeout`.

    """

    def __init__(
        self,
        receive: Callable[[Any], int | None],
        silence: float,
        *,
        end: Callable[[], None] | None = None,
        wait: Callable[[float], None] | None = None,
    ) -> None:
        self._receive, self._end, self._wait = receive, end, wait
        self.room: int | None = _HEAD
        """The most bytes that may still come; None for no limit. To be set once the head was read."""
        self._silence, self._latest = silence, _latest.get()
        self._deadline = min(time.monotonic() + silence, self._latest)

    def makefile(self, _mode: str) -> io.BufferedReader:
        """The file that `http.client` reads from."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.room is not None and self.room < 0:
            raise http.client.HTTPException("the answer is longer than allowed")
        if self._wait is not None:
            self._wait(min(self._silence, proxies.remaining(self._deadline)))
        size = self._receive(buffer) or 0
        if self.room is not None:
            self.room -= size
        self._deadline = min(self._deadline + size / _SLOWEST, self._latest)
        if time.monotonic() > self._deadline:
            raise TimeoutError("the server sends its answer too slowly")
        return size

    def close(self) -> None:
        if self._end is not None:
            self._end()
        super().close()


def post(url: str, body: bytes, headers: Mapping[str, str], *, seconds: float) -> int:
    """Send this to an http or https URL, which no log and no error shows; returns the status of the answer.

    Follows no redirect. All of it takes at most `seconds`.

    Args:
        url: where to send it.
        body: what to send.
        headers: those to send with it.
        seconds: when to give up.

    Raises:
        HopaasError: there is no connection to the server.
        OSError, http.client.HTTPException: there is no answer, or it is too slow or too large.

    """
    deadline, server, parts = time.monotonic() + seconds, proxies.server_of(url), urlsplit(url)
    target, headers = (parts.path or "/") + (f"?{parts.query}" if parts.query else ""), dict(headers)
    proxy = proxies.proxy_for(server, scheme=parts.scheme)
    if (
        proxy is not None and parts.scheme == "http" and proxy.scheme == "http"
    ):  # not every proxy has tunnels to port 80
        if proxy.login is not None:
            headers["Proxy-Authorization"] = f"Basic {base64.b64encode(proxy.login.reveal().encode()).decode()}"
        made, target = proxies.connect_through(None, proxy.address, timeout=seconds), url
    else:
        made = proxies.connect_through(proxy, server, timeout=seconds)
    asking = http.client.HTTPConnection(server.host, server.port)
    with contextlib.closing(asking), proxies.closed_on_error(made):
        asking.sock = made if parts.scheme == "http" else trust.secure(made, server.host, deadline=deadline)
        asking.sock.settimeout(proxies.remaining(deadline))
        asking.request("POST", target, body, headers)
        with within(proxies.remaining(deadline)):
            coming = AnswerBytes(asking.sock.recv_into, seconds, wait=asking.sock.settimeout)
        answer = http.client.HTTPResponse(coming, method="POST")  # type: ignore[arg-type]
        with contextlib.closing(answer):
            answer.begin()
            return answer.status
