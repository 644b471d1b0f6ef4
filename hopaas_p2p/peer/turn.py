"""Whose turn it is to exchange with a log: one thread at a time, and nobody who need not waits for it."""

from __future__ import annotations

import threading
from typing import Protocol


class Decidable(Protocol):
    """Something whose fate another thread may learn."""

    @property
    def decided(self) -> bool: ...


class Turn:
    """A lock that a thread stops to want as soon as its ticket is decided.

    With a plain lock, the thread that has just exchanged mostly takes it again before the others wake, and they wait
    through exchange after exchange to be told what was decided in the first.

    Ctrl-C may come at any call. A thread that it stops does not keep the turn.
    """

    def __init__(self) -> None:
        self._taken = threading.RLock()  # of its owner, so that an interrupted `take` can tell
        self._lock = threading.Lock()
        self._given = threading.Condition(self._lock)
        self._waiting = 0

    def take(self, ticket: Decidable | None = None) -> bool:
        """Wait for the turn; whether this thread has it now, or need not exchange because its ticket is decided."""
        if ticket is not None and ticket.decided:
            return False
        self._drop()
        try:
            return self._taken.acquire(blocking=False) or self._wait(ticket)
        except BaseException:
            self._drop()
            raise

    def _drop(self) -> None:
        """Let go of a turn that this thread has without knowing: it was interrupted as it took it, or gave it."""
        if self._taken._is_owned():  # type: ignore[attr-defined]  # as threading.Condition asks it
            self.give()

    def _wait(self, ticket: Decidable | None) -> bool:
        with self._lock:
            self._waiting += 1  # before the next look, so that a turn which is given after it is told
            try:
                while ticket is None or not ticket.decided:
                    if self._taken.acquire(blocking=False):
                        return True
                    self._given.wait()
                return False
            finally:
                self._waiting -= 1

    def give(self) -> None:
        """Let go of it. Everyone who waits looks at its ticket."""
        self._taken.release()
        if self._waiting:
            with self._lock:
                self._given.notify_all()

    def __enter__(self) -> None:
        self.take()

    def __exit__(self, *_: object) -> None:
        self.give()
