"""A thread that does what is due, and sleeps until something is again, or until it is woken."""

from __future__ import annotations

import logging
import math
import threading
import time
import weakref
from collections.abc import Callable
from typing import Final

from hopaas_p2p.errors import HopaasError

_log: Final = logging.getLogger("hopaas_p2p")
_AFTER_TROUBLE: Final = 5.0  # seconds
_NEARLY: Final = 1.01  # a thread that sleeps hardly longer than it should is left alone
_MOMENT: Final = 5e-5  # seconds, in which a thread that waits for the interpreter gets it


class Background:
    """See the module. Any thread may call; the thread starts at the first `start`.

    Args:
        tick: a method that does what is due and gives the seconds until something is again. Its object is held by the
            thread only while it runs: a forgotten one ends.
        allowed: whether there may be a thread at all; a simulator calls `tick` itself.

    """

    def __init__(self, tick: Callable[[], float], *, allowed: bool = True) -> None:
        self.allowed = allowed
        self._tick = weakref.WeakMethod(tick)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._sleeping_for = 0.0
        self._due = math.inf
        """When it wakes, on this machine's monotonic clock; long ago while it is at work."""
        self._over = False

    def start(self) -> None:
        if self._thread is not None or self._over or not self.allowed:
            return
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="hopaas-courier", daemon=True)
                self._thread.start()

    def wake(self, *, after: float = 0.0) -> None:
        """See that it looks again within `after` seconds."""
        if self._thread is None or self._over:
            return
        if after == 0.0 or _NEARLY * after < self._sleeping_for:
            self._sleeping_for = after
            self._due = -math.inf
            self._wake.set()

    def let_work(self) -> None:
        """Pause for a moment if the thread has something to do.

        A program that lets go of the interpreter often, and takes it again at once, as one that calls NumPy for small
        arrays does, would else keep it from its work for as long as it likes, and be slowed down by its tries.
        """
        if time.monotonic() > self._due:
            time.sleep(_MOMENT)

    def stop(self, *, within: float) -> None:
        """End it; waits so many seconds for what it is at."""
        self._over = True
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=within)

    def _run(self) -> None:
        while not self._over:
            tick = self._tick()
            if tick is None:
                return
            self._due = -math.inf
            self._wake.clear()
            self._sleeping_for = pause = _guarded(tick)
            del tick
            self._due = time.monotonic() + pause
            self._wake.wait(pause)
        self._due = math.inf


def _guarded(tick: Callable[[], float]) -> float:
    """A thread that dies takes the leases with it."""
    try:
        return tick()
    except HopaasError as error:
        _log.warning("%s", error)
    except Exception:  # noqa: BLE001  # whatever it is, it is written down
        _log.exception("the courier stumbled and goes on")
    return _AFTER_TROUBLE
