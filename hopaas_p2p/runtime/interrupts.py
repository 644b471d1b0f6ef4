"""How the code of a trial may end other than by returning: by an exception that is described, or by a signal."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import select
import signal
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Collection, Iterator
from types import FrameType
from typing import Final

from hopaas_p2p.runtime import process

INTERRUPTIONS: Final = (KeyboardInterrupt, SystemExit, GeneratorExit)
"""What ends a program, or a generator."""
_REASON_LINES: Final = 12
_REASON_CHARACTERS: Final = 2000
_MARKS: Final = range(128, 256)  # no signals have these numbers
_SETTLED: Final = 5.0  # seconds at most, on a machine that lets the thread wait


def interruptions() -> tuple[type[BaseException], ...]:
    """What ends the code of a trial without telling anything of the trial.

    In a program that uses asyncio the cancellation of a task does, too: Ctrl-C is one in `asyncio.run`.
    """
    asyncio = sys.modules.get("asyncio")
    cancelled = getattr(asyncio, "CancelledError", None)  # another thread may be importing it
    return INTERRUPTIONS if cancelled is None else (*INTERRUPTIONS, cancelled)


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


class _Raises:
    """The handler of a block of `sigterm_raises`."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    def __call__(self, _signal: int, _frame: FrameType | None) -> None:
        global terminated
        terminated = True
        raise _Terminated(128 + signal.SIGTERM)

    @property
    def is_inherited(self) -> bool:
        """Whether this is a child that was forked in the block, which is its parent's."""
        return os.getpid() != self._pid


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """In this block SIGTERM raises SystemExit(143), unless the program has a handler of its own.

    Only the main thread may do that; on others nothing changes.
    """
    global terminated
    before = signal.getsignal(signal.SIGTERM)
    inherited = isinstance(before, _Raises) and before.is_inherited
    if not _in_main_thread() or not (inherited or before is signal.SIG_DFL):
        yield
        return
    signal.signal(signal.SIGTERM, _Raises())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        terminated = False


@contextlib.contextmanager
def noticed_at_once(numbers: Collection[int], call: Callable[[], object]) -> Iterator[None]:
    """In this block, call this on another thread as soon as one of these signals comes, if the program handles it.

    Python runs handlers between two steps of the main thread, and a call of libpq to a silent server is one step, which
    lasts half a minute. Has no effect outside the main thread, where the program has a wakeup descriptor of its own
    (asyncio's, for example), or where no descriptor or thread is left. Blocks may be nested.
    """
    reader = _signal_reader() if _in_main_thread() else None
    if reader is None:
        yield
        return
    subscription = _Subscription(numbers, call)
    try:
        reader.add(subscription)
        reader.take()
        yield
    finally:
        try:
            if reader is _reader:  # else this is a child, and has closed them
                reader.settle()
        finally:
            subscription.numbers = ()  # whatever a second Ctrl-C prevents
            if reader is _reader and not [one for one in reader.subscriptions() if one.numbers]:
                reader.let_go()


class _Subscription:
    """What is to be called for which signals."""

    def __init__(self, numbers: Collection[int], call: Callable[[], object]) -> None:
        self.numbers, self.call = numbers, call


class _SignalReader:
    """A thread that is told of each signal, by a pipe that Python writes the numbers of signals to.

    There is one for the process, and it is never closed: Ctrl-C may come at any step, also before Python has been told
    to write no more, and then it would write to whatever file has the number of the descriptor next.
    """

    def __init__(self) -> None:
        self.ends = os.pipe()
        self._subscriptions: list[weakref.ref[_Subscription]] = []
        """Weak, because Ctrl-C may prevent that one is removed. The main thread replaces the list."""
        self._marks = itertools.cycle(_MARKS)
        self._last_mark = 0
        for end in self.ends:
            os.set_blocking(end, False)
        try:
            threading.Thread(target=self._run, name="hopaas-signals", daemon=True).start()
        except RuntimeError:  # no more threads
            self.close()
            raise

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self.ends[0], select.POLLIN)
        while True:
            poll.poll()
            self._read()

    def _read(self) -> None:
        for number in os.read(self.ends[0], select.PIPE_BUF):
            for one in self.subscriptions():
                if number in one.numbers:
                    one.call()
            if number in _MARKS:
                self._last_mark = number

    def add(self, subscription: _Subscription) -> None:
        """Call it from now on, for as long as somebody else keeps it."""
        self._subscriptions = [weakref.ref(one) for one in (*self.subscriptions(), subscription)]

    def subscriptions(self) -> list[_Subscription]:
        """Those that are kept."""
        return [one for ref in self._subscriptions if (one := ref()) is not None]

    def settle(self) -> None:
        """Return when the calls for the signals that have come are made. No lock: Ctrl-C could leave it taken."""
        over, mark = time.monotonic() + _SETTLED, next(self._marks)  # a new one: a call that gave up has left its own
        with contextlib.suppress(BlockingIOError):  # a storm of signals
            os.write(self.ends[1], bytes([mark]))
            while self._last_mark != mark and time.monotonic() < over:
                time.sleep(0.0)

    def take(self) -> None:
        """Let Python write the numbers of signals here, unless they go elsewhere."""
        self._write_to(self.ends[1])

    def let_go(self) -> None:
        """Let Python write no numbers of signals here."""
        self._write_to(-1)

    def _write_to(self, descriptor: int) -> None:
        before = signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)
        if before not in (-1, self.ends[1]):
            with contextlib.suppress(OSError, ValueError):  # its owner has closed it
                signal.set_wakeup_fd(before, warn_on_full_buffer=False)

    def close(self) -> None:
        for end in self.ends:
            os.close(end)


_reader: _SignalReader | None = None


def _signal_reader() -> _SignalReader | None:
    """Those of this process; None if it has no descriptor or thread left for them."""
    global _reader
    if _reader is None:
        _watch_forks()
        with contextlib.suppress(OSError, RuntimeError):
            _reader = _SignalReader()
    return _reader


def _in_child() -> None:
    """A child of a fork would tell its parent of its own signals."""
    global _reader
    if _reader is not None:
        _reader.let_go()
        _reader.close()
        _reader = None


@functools.cache
def _watch_forks() -> None:
    """At first use: the hooks of modules that were imported earlier are to find no log locked."""
    process.call_in_child(_in_child)


def raise_again() -> None:
    """Raise once more if SIGTERM came in this block: a callback from C, or a bare `except`, may have swallowed it."""
    if terminated and _in_main_thread():
        raise _Terminated(128 + signal.SIGTERM)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
