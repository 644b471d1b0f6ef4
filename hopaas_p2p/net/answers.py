"""The answer to one request, within limits: a server that sends a byte now and then could block its client forever."""

from __future__ import annotations

import http.client
import io
import time
from collections.abc import Callable
from typing import Any, Final

_SLOWEST: Final = 16 << 10  # bytes per second, after the time of silence


class AnswerBytes(io.RawIOBase):
    """The bytes of an answer, for `http.client.HTTPResponse`, which takes this in place of a socket.

    Args:
        receive: reads into a buffer, as `socket.recv_into` does.
        silence: seconds within which the first byte must arrive; later bytes at 16 KiB/s at least.
        room: the maximum number of bytes; None for no limit. May be changed while the answer is read.
        end: called when the answer is closed.

    """

    def __init__(
        self,
        receive: Callable[[Any], int | None],
        silence: float,
        *,
        room: int | None = None,
        end: Callable[[], None] | None = None,
    ) -> None:
        self._receive, self._end, self.room = receive, end, room
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
