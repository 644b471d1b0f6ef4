"""How the code of a trial may end other than by returning: by an exception that is described, or by a signal."""

from __future__ import annotations

import contextlib
import signal
import threading
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Final

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


def raise_again() -> None:
    """Raise once more if SIGTERM came in this block: a callback from C, or a bare `except`, may have swallowed it."""
    if terminated and _in_main_thread():
        raise _Terminated(128 + signal.SIGTERM)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
