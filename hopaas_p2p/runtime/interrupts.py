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
TERMINATIONS: Final = (signal.SIGTERM, signal.SIGHUP)
"""Signals that ask a program to end; a closed terminal or a lost ssh connection sends SIGHUP."""
PREEMPTIONS: Final = (*TERMINATIONS, signal.SIGUSR1, signal.SIGUSR2)
"""These, and those that batch systems send before they end a job."""
REASON_LINES: Final = 12
REASON_CHARACTERS: Final = 2000


def interruptions() -> tuple[type[BaseException], ...]:
    """Exceptions that end a trial's code but say nothing about the trial.

    In a program that uses asyncio, they include a task's cancellation: `asyncio.run` turns Ctrl-C into one.
    """
    cancelled = getattr(sys.modules.get("asyncio"), "CancelledError", None)  # another thread may be importing it
    return INTERRUPTIONS if cancelled is None else (*INTERRUPTIONS, cancelled)


def describe(error: BaseException) -> str:
    """Why a trial failed: type, message, and the last lines of the traceback; bounded in length."""
    text = "".join(traceback.format_exception(error)).strip().splitlines()
    tail = "\n".join(text[-REASON_LINES:])
    head = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return f"{head}\n{tail}"[:REASON_CHARACTERS]


terminated = 0
"""The signal that arrived in a block of `termination_raises`; 0 for none."""
_in_block_of = 0
"""The process that is in such a block; a child forked in it inherits the handler but is in no block."""


def _raises(number: int, _frame: FrameType | None) -> None:
    global terminated
    terminated = number
    raise SystemExit(128 + number)


@contextlib.contextmanager
def termination_raises() -> Iterator[None]:
    """In this block, SIGTERM and SIGHUP raise SystemExit(143 or 129), unless the program handles or ignores them.

    Only the main thread can change handlers; in other threads, nothing changes.
    """
    global terminated, _in_block_of
    free = (signal.SIG_DFL,) if os.getpid() == _in_block_of else (signal.SIG_DFL, _raises)
    numbers = [number for number in TERMINATIONS if signal.getsignal(number) in free]
    if not _in_main_thread() or not numbers:
        yield
        return
    _in_block_of = os.getpid()
    for number in numbers:
        signal.signal(number, _raises)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
        terminated = 0


@contextlib.contextmanager
def handled(numbers: Iterable[int], by: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Let `by` handle these signals in this block, which must run in the main thread. nohup's SIGHUP stays ignored."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    before = {number: signal.signal(number, by) for number in numbers if not (ignored and number == signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_again() -> None:
    """Raise SystemExit again if a signal has, since a callback from C, or a bare `except`, may have swallowed it."""
    if terminated and _in_main_thread():
        raise SystemExit(128 + terminated)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
