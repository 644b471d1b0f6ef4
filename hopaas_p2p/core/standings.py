"""Where the configurations of a study stand, and in which order: what rungs and populations have in common."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

import msgspec

Worth = tuple[tuple[int, float], ...]
"""For each rung that a configuration has reached: the trial that counts there, and its value."""
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


class TrialChain(msgspec.Struct, gc=False):
    """A configuration. What its finished trials say is kept; those that wait or run are read again."""

    values: Worth = ()
    """What its finished trials reported at the rungs."""
    promoted: int = 0
    """From how many rungs it has gone on."""
    paused: int = -1
    """The trial that paused, and has not been continued; -1: none."""
    paused_rungs: int = 0
    """How many rungs that one has reached."""
    pauses: dict[int, int] = {}
    """The trial of its last pause at each rung, by how many rungs it had reached."""
    failures: int = 0
    """Trials that failed for good since the last pause."""
    copied: int = 0
    """In a population, from how many rungs it had gone on when it last copied another."""
    continued: int = -1
    """The last trial that was continued."""
    complete: bool = False
    end: tuple[int, float] | None = None
    """The first complete one that reported anything, and what it reported last."""
    last: int = -1
    """The newest trial that is over."""
    failed: bool = False
    """Whether that one failed. If nothing is left to be run, the configuration then ranks behind all others."""
    takes: bool = False
    """Whether a finished trial takes a place in the budget."""
    live: tuple[int, ...] = ()
    """Its trials that wait or run."""
    counted: bool = False
    """Whether it takes a place in the budget now."""


class Standings:
    """Where configurations stand, each known by the number of its first trial. Here none pauses.

    It depends only on the order in which they were admitted and on where each stands now: standings that are made anew
    from these decide as those that were kept.
    """

    def __init__(self, *, maximize: bool = False) -> None:
        self._sign = -1.0 if maximize else 1.0
        self._standing: dict[int, RungStanding] = {}

    def __len__(self) -> int:
        return len(self._standing)

    def __contains__(self, number: int) -> bool:
        return number in self._standing

    def _key(self, value: float) -> float:
        return math.inf if math.isnan(value) else self._sign * value

    def admit(self, number: int) -> int:
        """Take in a new configuration; returns its bracket."""
        self._standing[number] = RungStanding()
        return 0

    def bracket(self, _number: int) -> int:
        """The bracket of a configuration."""
        return 0

    def standing(self, number: int) -> RungStanding:
        """Where a configuration stands."""
        return self._standing[number]

    def levels(self, _number: int) -> Sequence[int]:
        """The rungs at which a configuration is compared, in epochs."""
        return ()

    def pauses_at(self, _number: int) -> int | None:
        """After how many epochs it pauses next; None if it runs to the end, by what is known now."""
        return None

    def may_pause_at(self, number: int) -> int | None:
        """The same, by any earlier state of the rungs: the peer that paused may not have known this one."""
        return self.pauses_at(number)

    def since(self, _chain: TrialChain) -> int:
        """From which rung on what another trial of this configuration reports is looked at."""
        return 0

    def merged(self, values: Worth, number: int, reached: Sequence[float], _since: int) -> Worth:
        """`values` with what another trial reported at the rungs; of two trials the first counts."""
        if not reached or (len(reached) <= len(values) and all(by < number for by, _ in values)):
            return values
        new = [(number, value) for value in reached]
        for at, before in enumerate(values):
            if at >= len(new):
                new.append(before)
            elif before[0] < number:
                new[at] = before
        return tuple(new)

    def place_chain(self, number: int, chain: TrialChain, reached: tuple[float, ...], *, live: bool) -> None:
        """Say where the configuration of this chain stands, with what it was worth at each rung."""

    def best(self, *, closing: bool = False, room: bool = False, skip: Collection[int] = ()) -> int | None:  # noqa: ARG002
        """The configuration to go on with; None if no rung promotes one now.

        Args:
            closing: nobody runs and no new configuration will come. Then each rung that somebody has reached promotes
                at least one, so that a study too small for its rungs ends with a whole training, too.
            room: whether a new configuration may begin.
            skip: configurations to pass over.

        """
        return None

    def better(self, _number: int) -> list[int]:
        """The configurations that one that waits may copy, the best first; none if it keeps its own parameters."""
        return []

    def may_be_continued(self, _number: int, _chain: TrialChain, _trial: int, *, used: int, most: int | None) -> bool:  # noqa: ARG002
        """Whether a trial may yet go on from where this one paused, if `most` configurations come at most."""
        return False

    def waiting(self) -> int:
        """How many configurations wait to go on, or for ever."""
        return 0

    def places(self) -> list[RungCount]:
        """Each rung of each bracket, and how many configurations are there."""
        return []


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
