"""Pauses between attempts, and a function that repeats an attempt."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final, TypeVar

from hopaas_p2p.errors import StoreUnreachable

_ATTEMPTS: Final = 5
_FIRST_PAUSE: Final = 0.2  # seconds
_LONGEST_PAUSE: Final = 10.0
_T = TypeVar("_T")


class Backoff:
    """Pauses that double, up to a limit, and vary at random, so that peers do not all retry at the same moment.

    Args:
        first, longest: seconds.
        jitter: the smallest and the largest factor by which a pause varies.
        uniform: draws between two numbers; a simulator passes its own.

    """

    def __init__(
        self,
        first: float,
        longest: float,
        *,
        jitter: tuple[float, float] = (0.5, 1.5),
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._first, self.longest = first, longest
        self._jitter, self._uniform = jitter, uniform
        self._next = first

    def pause(self) -> float:
        """Seconds to wait before the next attempt."""
        seconds = min(self._next, self.longest)
        self._next = 2 * seconds
        return seconds * self._uniform(*self._jitter)

    def reset(self) -> None:
        """After an attempt that succeeded, begin with the first pause again."""
        self._next = self._first


def persistently(attempt: Callable[[], _T]) -> _T:
    """The result of `attempt`, which is made up to five times, within about 3 s, while the store cannot be reached."""
    backoff = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)
    for _ in range(_ATTEMPTS - 1):
        try:
            return attempt()
        except StoreUnreachable:
            time.sleep(backoff.pause())
    return attempt()
