"""Several calls at once, and what becomes of them where there are no more threads."""

from __future__ import annotations

import threading
from collections import Counter

import pytest

from hopaas_p2p.runtime.parallel import each


@pytest.mark.parametrize("threads", [0, 1, 3, 99])
def test_nothing_is_done_twice_where_there_are_too_few_threads(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket would be taken for one that breaks its condition, where the second of two writes is refused."""
    begun, start = [0], threading.Thread.start
    done: Counter[int] = Counter()

    def begin(thread: threading.Thread) -> None:
        if begun[0] == threads:
            raise RuntimeError("can't start new thread")
        begun[0] += 1
        start(thread)

    def do(number: int) -> int:
        done[number] += 1
        return -number

    monkeypatch.setattr(threading.Thread, "start", begin)
    assert each(do, range(20), at_once=8) == [-number for number in range(20)]
    assert set(done.values()) == {1}


def test_the_first_error_in_the_order_of_the_items_is_raised_and_nothing_more_is_begun() -> None:
    done: list[int] = []
    gate = threading.Barrier(2)

    def do(number: int) -> None:
        gate.wait(30)
        done.append(number)
        if number in (0, 1):
            raise ValueError(str(number))

    with pytest.raises(ValueError, match="0"):
        each(do, range(20), at_once=2)
    assert sorted(done) == [0, 1]
