"""The answer to one request, within limits: a server that sends a byte now and then could block its client forever."""

from __future__ import annotations

import http.client
import io
import time
from collections.abc import Callable
from typing import Any, Final

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
        """The most bytes that may still come; None for no limit. To be set once the head was read."""
        self._deadline = time.monotonic() + silence

    def makefile(self, _mode: str) -> io.BufferedReader:
        """The file that `http.client` reads from."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.room is not None and self.room < 0:
            raise http.client.HTTPException("more came than an answer has")
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
