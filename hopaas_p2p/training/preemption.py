"""SIGTERM, kept until a training can act upon it: between two steps, when its state is whole."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self


class Preemption:
    """`with Preemption() as preemption:` notes SIGTERM instead of ending the program.

    In the main thread only, where Python lets a program do that; elsewhere nothing changes.
    """

    def __init__(self) -> None:
        self.signal: int = 0
        """The signal that came, or 0."""
        self._before: Any = None

    def start(self) -> None:
        """Begin to note it."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)

    def stop(self) -> None:
        """Let it be as it was before."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def leave(self) -> NoReturn:
        """End as the signal wants: `optimize` and `with study.trial()` give the trial back, to be run again."""
        raise SystemExit(128 + (self.signal or signal.SIGTERM))

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self.stop()
