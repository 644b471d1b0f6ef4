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
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._taken = False

    def take(self, ticket: Decidable | None = None) -> bool:
        """Wait for the turn; whether this thread has it now, or need not exchange because its ticket is decided."""
        with self._changed:
            while True:
                if ticket is not None and ticket.decided:
                    return False
                if not self._taken:
                    self._taken = True
                    return True
                self._changed.wait()

    def give(self) -> None:
        """Let go of it. Everyone who waits looks at its ticket."""
        with self._changed:
            self._taken = False
            self._changed.notify_all()

    def __enter__(self) -> None:
        self.take()

    def __exit__(self, *_: object) -> None:
        self.give()
