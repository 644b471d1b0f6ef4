"""How long to wait between attempts."""

from __future__ import annotations

import random
from collections.abc import Callable


class Backoff:
    """Pauses that double up to a limit, and vary at random, so that peers do not come back all at once.

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
        """An attempt succeeded: begin with the first pause again."""
        self._next = self._first
