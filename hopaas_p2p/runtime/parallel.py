"""Makes several calls at once, each of which waits for a server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_Given = TypeVar("_Given")
_Result = TypeVar("_Result")


def each(do: Callable[[_Given], _Result], given: Iterable[_Given], *, at_once: int) -> list[_Result]:
    """What `do` returns for each of these, in order; `at_once` of them run at a time. Raises the first error of any
    call.

    The calls run one by one, in this thread, if there is only one, or no more threads because the interpreter is
    ending.
    """
    items = list(given)
    if len(items) < 2:
        return [do(one) for one in items]
    with ThreadPoolExecutor(min(at_once, len(items)), thread_name_prefix="hopaas-each") as threads:
        results: Iterator[_Result]
        try:
            results = threads.map(do, items)
        except RuntimeError:
            results = map(do, items)
        return list(results)
