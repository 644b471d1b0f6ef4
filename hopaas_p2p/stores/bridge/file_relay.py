"""Carries files over a bridge, one after another, in a thread of its own: logs and beats do not wait for them."""

from __future__ import annotations

import logging
import tempfile
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

from hopaas_p2p.core import codec
from hopaas_p2p.errors import ConfigurationError, Denied, StoreUnreachable
from hopaas_p2p.stores.base import Artifacts
from hopaas_p2p.stores.bridge.messages import MISSING, FileRequest, Reply

_log: Final = logging.getLogger("hopaas_p2p")
_PAUSE: Final = 5.0  # seconds before a file is tried again


class FileRelay:
    """The queue of requests about files. Everything but the copying happens in the bridge's thread."""

    def __init__(
        self,
        near: Callable[[], Artifacts],
        far: Callable[[], Artifacts],
        *,
        reply: Callable[[Reply], None],
        logged_in: Callable[[], bool],
    ) -> None:
        self._near, self._far = near, far
        self._reply, self._logged_in = reply, logged_in
        self._queue: deque[tuple[int, FileRequest]] = deque()
        self._running: Future[str] | None = None
        self._retry_at = 0.0
        self._trouble: str | None = None
        """Why the oldest request could not be carried out at the last attempt."""
        self._thread: ThreadPoolExecutor | None = None

    @property
    def first(self) -> int | None:
        """The place of the oldest request that is not carried out, or None."""
        return self._queue[0][0] if self._queue else None

    def accept(self, place: int, request: FileRequest) -> None:
        """Queue a request."""
        self._queue.append((place, request))

    def step(self, now: float) -> None:
        """Start the next request, or finish the running one and reply to its sender."""
        if self._running is None:
            if self._queue and now >= self._retry_at:
                self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="hopaas-bridge-files")
                self._running = self._thread.submit(self._carry, self._queue[0][1])
            return
        if not self._running.done():
            return
        place, request = self._queue[0]
        try:
            reply = Reply(place, "", self._running.result())
        except KeyError:
            reply = Reply(place, MISSING, request.key)
        except Exception as error:  # noqa: BLE001  # whatever a store makes of a key, logs and beats go on
            if isinstance(error, StoreUnreachable) or (isinstance(error, Denied) and not self._logged_in()):
                if str(error) != self._trouble:
                    _log.warning("a file is waiting: %s", error)
                self._running, self._retry_at, self._trouble = None, now + _PAUSE, str(error)
                return
            _log.warning("file %s: %s", request.key, error)  # it will never be taken, so it stays where it is
            reply = Reply(place, type(error).__name__, str(error))
        if request.what != "delete":
            self._reply(reply)  # again with the next step, if the near store does not take it now
        self._queue.popleft()
        self._running = self._trouble = None

    def _carry(self, request: FileRequest) -> str:
        try:
            return self._carry_out(request.what, request.key)
        except OSError as error:  # of this node, where a copy is made
            raise StoreUnreachable(f"{error.filename or tempfile.gettempdir()}: {error.strerror or error}") from error

    def _carry_out(self, what: str, key: str) -> str:
        far = self._far()
        if what == "list":
            listed = "\n".join(far.keys(key))
            if len(listed) > codec.MAX_BYTES:
                raise ConfigurationError(
                    "this is a list of too many files for a bridge; use the store at its other end"
                )
            return listed
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
