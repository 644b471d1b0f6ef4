"""Calls that wait for a server: several at once, and one that may never return."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

_Given = TypeVar("_Given")
_Result = TypeVar("_Result")
_P = ParamSpec("_P")


def each(do: Callable[[_Given], _Result], given: Iterable[_Given], *, at_once: int) -> list[_Result]:
    """The results of `do` for each of these, in order; `at_once` calls run at a time. Raises the first error of any
    call.

    If fewer threads can be started, these do everything. The calls run one by one in this thread if there is only one,
    or if the interpreter is ending and no thread can be started.
    """
    items = list(given)
    if min(at_once, len(items)) < 2:
        return [do(one) for one in items]
    waiting, results, errors = deque(enumerate(items)), dict[int, _Result](), dict[int, BaseException]()

    def work() -> None:
        with contextlib.suppress(IndexError):
            while True:
                place, one = waiting.popleft()
                try:
                    results[place] = do(one)
                except BaseException as error:  # noqa: BLE001  # raised below
                    errors[place] = error
                    waiting.clear()

    with ThreadPoolExecutor(min(at_once, len(items)), thread_name_prefix="hopaas-each") as threads:
        workers = list[Future[None]]()
        try:
            with contextlib.suppress(RuntimeError):
                while len(workers) < min(at_once, len(items)):
                    workers.append(threads.submit(work))
            if not workers:
                work()
            for worker in workers:
                worker.result()
        finally:
            waiting.clear()
    if errors:
        raise errors[min(errors)]
    return [results[place] for place in range(len(items))]


def within(seconds: float, do: Callable[_P, _Result], *args: _P.args, **named: _P.kwargs) -> _Result:
    """The result of this call. If it takes longer, raises TimeoutError, and leaves the call to a thread."""
    future = Future[_Result]()

    def work() -> None:
        try:
            future.set_result(do(*args, **named))
        except BaseException as error:  # noqa: BLE001  # raised in the caller
            future.set_exception(error)

    threading.Thread(target=work, name="hopaas-within", daemon=True).start()
    return future.result(seconds)
