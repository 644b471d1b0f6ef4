"""Handles how a trial's code can end other than by returning: by exceptions, which it describes, and by signals."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Final

INTERRUPTIONS: Final = (KeyboardInterrupt, SystemExit, GeneratorExit)
"""Exceptions that end a program, or a generator."""
PREEMPTIONS: Final = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that batch systems send before they end a job."""
REASON_LINES: Final = 12
REASON_CHARACTERS: Final = 2000


def interruptions() -> tuple[type[BaseException], ...]:
    """Exceptions that end a trial's code but say nothing about the trial.

    In a program that uses asyncio, they include a task's cancellation: `asyncio.run` turns Ctrl-C into one.
    """
    asyncio = sys.modules.get("asyncio")
    cancelled = getattr(asyncio, "CancelledError", None)  # another thread may be importing it
    return INTERRUPTIONS if cancelled is None else (*INTERRUPTIONS, cancelled)


def describe(error: BaseException) -> str:
    """Why a trial failed: type, message, and the last lines of the traceback; bounded in length."""
    text = "".join(traceback.format_exception(error)).strip().splitlines()
    tail = "\n".join(text[-REASON_LINES:])
    head = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return f"{head}\n{tail}"[:REASON_CHARACTERS]


terminated = False
"""Whether SIGTERM arrived in a block of `sigterm_raises`."""
_in_block_of = 0
"""The process that is in such a block; a child forked in it inherits the handler but is in no block."""


def _raises(_signal: int, _frame: FrameType | None) -> None:
    global terminated
    terminated = True
    raise SystemExit(128 + signal.SIGTERM)


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """In this block, SIGTERM raises SystemExit(143), unless the program has a handler of its own.

    Only the main thread can change handlers; in other threads, nothing changes.
    """
    global terminated, _in_block_of
    before = signal.getsignal(signal.SIGTERM)
    inherited = before is _raises and os.getpid() != _in_block_of
    if not _in_main_thread() or not (inherited or before is signal.SIG_DFL):
        yield
        return
    _in_block_of = os.getpid()
    signal.signal(signal.SIGTERM, _raises)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        terminated = False


@contextlib.contextmanager
def handled(numbers: Iterable[int], by: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Let `by` handle these signals in this block, which must run in the main thread."""
    before = {number: signal.signal(number, by) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_again() -> None:
    """Raise SystemExit again if SIGTERM arrived, since a callback from C, or a bare `except`, may have swallowed it."""
    if terminated and _in_main_thread():
        raise SystemExit(128 + signal.SIGTERM)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
