"""Limits the time and size of an answer, since a server that sends a byte now and then could block a client forever."""

from __future__ import annotations

import contextlib
import http.client
import io
import time
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from hopaas_p2p.net import proxies, trust

_HEAD: Final = 64 << 10  # bytes of an answer's head, which `http.client` would otherwise read without end
_SLOWEST: Final = 16 << 10  # bytes per second, after the time of silence


class AnswerBytes(io.RawIOBase):
    """The bytes of an answer, for `http.client.HTTPResponse`, which takes this in place of a socket.

    Args:
        receive: reads into a buffer, as `socket.recv_into` does.
        silence: seconds within which the first byte must arrive; later bytes at 16 KiB/s at least.
        end: called when the answer is closed.

    """

    def __init__(
        self, receive: Callable[[Any], int | None], silence: float, *, end: Callable[[], None] | None = None
    ) -> None:
        self._receive, self._end = receive, end
        self.room: int | None = _HEAD
        """The most bytes that may still come; None for no limit. The caller sets it after reading the head."""
        self._deadline = time.monotonic() + silence

    def makefile(self, _mode: str) -> io.BufferedReader:
        """The file that `http.client` reads from."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.room is not None and self.room < 0:
            raise http.client.HTTPException("the answer is longer than allowed")
        size = self._receive(buffer) or 0
        if self.room is not None:
            self.room -= size
        self._deadline += size / _SLOWEST
        if time.monotonic() > self._deadline:
            raise TimeoutError("the server sends its answer too slowly")
        return size

    def close(self) -> None:
        if self._end is not None:
            self._end()
        super().close()


def post(url: str, body: bytes, headers: Mapping[str, str], *, seconds: float) -> int:
    """POST this body to an http or https URL, and return the answer's status.

    No log and no error shows more of the URL than its host and port. Redirects are not followed.

    Args:
        url: where to send it.
        body: what to send.
        headers: the headers to send with the body.
        seconds: the most that the whole request may take.

    Raises:
        HopaasError: there is no connection to the server.
        OSError, http.client.HTTPException: there is no answer, or it is too slow or too large.

    """
    deadline, server, parts = time.monotonic() + seconds, proxies.server_of(url), urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    proxy = proxies.proxy_for(server, scheme=parts.scheme)
    if proxy is not None and (parts.scheme, proxy.scheme) == ("http", "http"):  # not every proxy has tunnels to port 80
        target, headers = parts.geturl(), {**headers, **proxy.headers}
        server, proxy = proxy.address, None
    made = proxies.connect_through(proxy, server, timeout=seconds)
    asking = http.client.HTTPConnection(server.host, server.port)

    def receive(buffer: Any) -> int:
        asking.sock.settimeout(proxies.remaining(deadline))
        return asking.sock.recv_into(buffer)

    with contextlib.closing(asking), proxies.closed_on_error(made):
        asking.sock = made if parts.scheme == "http" else trust.secure(made, server.host, deadline=deadline)
        asking.sock.settimeout(proxies.remaining(deadline))
        asking.request("POST", target, body, headers)
        answer = http.client.HTTPResponse(AnswerBytes(receive, seconds), method="POST")  # type: ignore[arg-type]
        with contextlib.closing(answer):
            answer.begin()
            return answer.status
