"""How the code of a trial may end other than by returning: by an exception that is described, or by a signal."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
import traceback
from collections.abc import Callable, Collection, Iterator
from types import FrameType
from typing import Final

from hopaas_p2p import process

INTERRUPTIONS: Final = (KeyboardInterrupt, SystemExit, GeneratorExit)
"""What ends the code of a trial without telling anything of the trial."""
_REASON_LINES: Final = 12
_REASON_CHARACTERS: Final = 2000


def describe(error: BaseException) -> str:
    """Why a trial failed: type, message, and the last lines of the traceback; bounded."""
    lines = traceback.format_exception(error)
    text = "".join(lines).strip().splitlines()
    tail = "\n".join(text[-_REASON_LINES:])
    head = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return f"{head}\n{tail}"[:_REASON_CHARACTERS]


class _Terminated(SystemExit):
    """SIGTERM came."""


terminated = False
"""Whether SIGTERM came in a block of `sigterm_raises`."""


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """In this block SIGTERM raises SystemExit(143), unless the program has a handler of its own.

    Only the main thread may do that; on others nothing changes.
    """
    global terminated
    if not _in_main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def raise_it(_signal: int, _frame: FrameType | None) -> None:
        global terminated
        terminated = True
        raise _Terminated(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, raise_it)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        terminated = False


@contextlib.contextmanager
def noticed_at_once(numbers: Collection[int], call: Callable[[], object]) -> Iterator[None]:
    """In this block, call this on another thread as soon as one of these signals comes, if the program handles it.

    Handlers run between two steps of the main thread, and a call of libpq to a silent server is one step: half a
    minute. Only the main thread may do that, and only one part of a program; otherwise nothing changes.
    """
    if not _in_main_thread():
        yield
        return
    _watch_forks()
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)

    def read() -> None:
        while number := os.read(read_end, 1)[0]:
            if number in numbers:
                call()

    reader = threading.Thread(target=read, name="hopaas-signals", daemon=True)
    try:
        if _notify(write_end, instead_of=-1):
            _notified.add(write_end)
            reader.start()
        yield
    finally:
        _notify(-1, instead_of=write_end)
        if write_end in _notified:  # else this is a child, and the pipe is its parent's, too
            _notified.discard(write_end)
            if reader.ident is not None:
                os.set_blocking(write_end, True)
                os.write(write_end, bytes(1))
                reader.join()
        os.close(read_end)
        os.close(write_end)


def _notify(descriptor: int, *, instead_of: int) -> bool:
    """Let Python write the numbers of signals to this descriptor; whether another one was in its place."""
    before = signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)
    if before != instead_of:
        signal.set_wakeup_fd(before, warn_on_full_buffer=False)
    return before == instead_of


_notified: Final[set[int]] = set()


def _in_child() -> None:
    """A child of a fork would tell its parent of its own signals."""
    for descriptor in _notified:
        _notify(-1, instead_of=descriptor)
    _notified.clear()


@functools.cache
def _watch_forks() -> None:
    process.call_in_child(_in_child)


def raise_again() -> None:
    """Raise once more if SIGTERM came in this block: a callback from C, or a bare `except`, may have swallowed it."""
    if terminated and _in_main_thread():
        raise _Terminated(128 + signal.SIGTERM)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
