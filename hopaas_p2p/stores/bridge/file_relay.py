"""Carries files over a bridge, one after another, in a thread of its own: logs and beats do not wait for them."""

from __future__ import annotations

import logging
import tempfile
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

from hopaas_p2p.errors import HopaasError, StoreUnreachable
from hopaas_p2p.stores.base import Artifacts
from hopaas_p2p.stores.bridge.messages import MISSING, FileRequest, Reply

_log: Final = logging.getLogger("hopaas_p2p")
_PAUSE: Final = 5.0  # seconds before a file is tried again


class FileRelay:
    """The queue of requests about files. Everything but the copying happens in the bridge's thread."""

    def __init__(self, near: Callable[[], Artifacts], far: Callable[[], Artifacts]) -> None:
        self._near, self._far = near, far
        self._queue: deque[tuple[int, FileRequest]] = deque()
        self._running: Future[Reply] | None = None
        self._retry_at = 0.0
        self._thread: ThreadPoolExecutor | None = None

    @property
    def first(self) -> int | None:
        """The place of the oldest request that is not carried out, or None."""
        return self._queue[0][0] if self._queue else None

    def accept(self, place: int, request: FileRequest) -> None:
        """Queue a request."""
        self._queue.append((place, request))

    def step(self, now: float) -> Reply | None:
        """Start the next request, or finish the running one; the reply if its sender waits for one."""
        if self._running is None:
            if self._queue and now >= self._retry_at:
                self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="hopaas-bridge-files")
                self._running = self._thread.submit(self._carry, *self._queue[0])
            return None
        if not self._running.done():
            return None
        ended, self._running = self._running, None
        try:
            reply = ended.result()
        except StoreUnreachable as error:
            _log.warning("a file is waiting: %s", error)
            self._retry_at = now + _PAUSE
            return None
        _, request = self._queue.popleft()
        return reply if request.what != "delete" else None

    def _carry(self, place: int, request: FileRequest) -> Reply:
        try:
            return Reply(place, "", self._carry_out(request.what, request.key))
        except KeyError:
            return Reply(place, MISSING, request.key)
        except StoreUnreachable:
            raise
        except HopaasError as error:  # it will never be taken, so it stays where it is
            _log.warning("file %s: %s", request.key, error)
            return Reply(place, type(error).__name__, str(error))

    def _carry_out(self, what: str, key: str) -> str:
        far = self._far()
        if what == "list":
            return "\n".join(far.keys(key))
        if what == "delete":
            far.delete(key)
            return ""
        near = self._near()
        source, target = (near, far) if what == "put" else (far, near)
        with tempfile.TemporaryDirectory(prefix="hopaas-bridge-") as folder:
            copy = Path(folder, "file")
            source.get(key, copy)
            target.put(key, copy)
        return ""

    def close(self) -> None:
        """Finish the file that is under way, and end the thread."""
        if self._thread is not None:
            self._thread.shutdown()
