"""Where the configurations of a study stand, and in which order: what rungs and populations have in common."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Collection
from typing import NamedTuple

import msgspec

Worth = tuple[tuple[int, float], ...]
"""For each rung that a configuration has reached: the trial that counts there, and its value."""
Ranking = list[tuple[float, int]]
"""Configurations in order: what each is ranked by, the smallest first, and its number."""


def first(ranking: Ranking, skip: Collection[int]) -> tuple[float, int] | None:
    """The first, but for those to pass over."""
    return next((entry for entry in ranking if entry[1] not in skip), None)


def remove(ranking: Ranking, entry: tuple[float, int]) -> None:
    """Take out an entry, which is there."""
    del ranking[bisect.bisect_left(ranking, entry)]


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

    def pauses_at(self, _number: int) -> int | None:
        """After how many epochs it pauses next; None if it runs to the end, by what is known now."""
        return None

    def may_pause_at(self, number: int) -> int | None:
        """The same, by any earlier state of the rungs: the peer that paused may not have known this one."""
        return self.pauses_at(number)

    def standing_of(self, chain: TrialChain, reached: tuple[float, ...], *, live: bool) -> RungStanding:
        """Where the configuration of this chain stands, with what it was worth at each rung."""
        idle = not live and not chain.complete
        waits = idle and chain.paused >= 0
        if idle and chain.failed:
            reached = (math.nan,) * len(reached)
        end = None if live or chain.promoted or chain.end is None else chain.end[1]
        return RungStanding(reached, chain.promoted, waits, not live and not waits, end)

    def place(self, number: int, to: RungStanding) -> None:
        """Say where a configuration stands now."""
        before = self._standing[number]
        if to == before and repr(to) == repr(before):  # nan differs from itself
            return
        self._standing[number] = to
        for at, (old, new) in enumerate(itertools.zip_longest(before.reached, to.reached)):
            if old is not new and old != new:
                ranking = self.ranking(number, at)
                if old is not None:
                    remove(ranking, (self._key(old), number))
                if new is not None:
                    bisect.insort(ranking, (self._key(new), number))
        self._placed(number, before, to)

    def ranking(self, number: int, at: int) -> Ranking:  # noqa: ARG002
        """All that have reached a rung with which a configuration is compared there."""
        return []

    def _placed(self, number: int, before: RungStanding, to: RungStanding) -> None:
        """Take into account that a configuration stands elsewhere now."""

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
