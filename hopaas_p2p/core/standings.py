"""Where the configurations of a study stand, and in which order: what rungs and populations have in common."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Collection
from typing import Final, NamedTuple

_CHUNK: Final = 512  # entries of a ranking that are moved by one insertion at most, times 2


class RungStanding(NamedTuple):
    """Where a configuration stands among the rungs, which are counted from the lowest, from 0."""

    reached: tuple[float, ...] = ()
    """What it was worth at each rung that it has reached, lowest first."""
    promoted: int = 0
    """From how many rungs it has gone on; it pauses at the next."""
    waits: bool = False
    """Whether it waits at the highest rung that it has reached, to go on."""
    over: bool = False
    """Whether it is complete, or has failed for good."""
    end: float | None = None
    """What it was worth at the end, if it was trained to the end without a pause."""
    copied: int = 0
    """In a population, how many rungs it had reached when it last copied another: its values there are not of it."""


class RungCount(NamedTuple):
    """A rung of a bracket, for people."""

    bracket: int
    epochs: int
    reached: int
    waiting: int
    promoted: int
    quota: int
    """How many of those that reached it are to be promoted, by now."""
    passed: bool = False
    """Whether none pauses here, because the best at the end stood behind."""


class Ranking:
    """Pairs in order: adding one and asking for a rank cost hardly more with a million of them."""

    __slots__ = ("_chunks", "_count")

    def __init__(self) -> None:
        self._chunks: list[list[tuple[float, int]]] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def first(self, skip: Collection[int] = ()) -> tuple[float, int] | None:
        """The smallest, but for those with these second numbers."""
        if not skip:
            return self._chunks[0][0] if self._chunks else None
        return next((entry for entry in itertools.chain.from_iterable(self._chunks) if entry[1] not in skip), None)

    def smallest(self, count: int) -> list[tuple[float, int]]:
        """The smallest so many, in order."""
        found: list[tuple[float, int]] = []
        for chunk in self._chunks:
            if len(found) >= count:
                break
            found += chunk[: count - len(found)]
        return found

    def rank(self, entry: tuple[float, int]) -> int:
        """How many are smaller."""
        at = self._chunk_of(entry)
        if at == len(self._chunks):
            return self._count
        return sum(map(len, self._chunks[:at])) + bisect.bisect_left(self._chunks[at], entry)

    def add(self, entry: tuple[float, int]) -> None:
        """Put it in."""
        self._count += 1
        if not self._chunks:
            self._chunks.append([entry])
            return
        at = min(self._chunk_of(entry), len(self._chunks) - 1)
        chunk = self._chunks[at]
        bisect.insort(chunk, entry)
        if len(chunk) > 2 * _CHUNK:
            self._chunks[at : at + 1] = [chunk[:_CHUNK], chunk[_CHUNK:]]

    def remove(self, entry: tuple[float, int]) -> None:
        """Take it out; it is there."""
        at = self._chunk_of(entry)
        chunk = self._chunks[at]
        del chunk[bisect.bisect_left(chunk, entry)]
        self._count -= 1
        if not chunk:
            del self._chunks[at]

    def _chunk_of(self, entry: tuple[float, int]) -> int:
        """The chunk in which it is or belongs; their number if it is larger than all."""
        return bisect.bisect_left(self._chunks, entry, key=_last)


def _last(chunk: list[tuple[float, int]]) -> tuple[float, int]:
    return chunk[-1]
