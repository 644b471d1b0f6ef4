"""Several calls at once, each of which waits for a server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_Given = TypeVar("_Given")
_Result = TypeVar("_Result")


def each(do: Callable[[_Given], _Result], given: Iterable[_Given], *, at_once: int) -> list[_Result]:
    """What `do` returns for each of these, in their order; so many run at once. Raises the first error of any of them.

    One by one, and in this thread, if there is but one, or if there are no more threads: the interpreter is ending.
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
