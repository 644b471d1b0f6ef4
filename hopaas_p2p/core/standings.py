"""The types that rungs and populations share: where configurations stand, and in which order."""

from __future__ import annotations

import bisect
from collections.abc import Collection
from typing import NamedTuple

import msgspec

Worth = tuple[tuple[int, float], ...]
"""For each rung that a configuration has reached: the trial that counts there, and its value."""
Key = tuple[bool, float]
"""The rank key of a configuration, the smallest first: whether it diverged or violates its constraints; its value."""
Ranking = list[tuple[Key, int]]
"""Configurations in order: what each is ranked by, and its number."""


def first(ranking: Ranking, skip: Collection[int]) -> tuple[Key, int] | None:
    """The first entry whose number is not in `skip`."""
    return next((entry for entry in ranking if entry[1] not in skip), None)


def remove(ranking: Ranking, entry: tuple[Key, int]) -> None:
    """Remove an entry, which must be present."""
    del ranking[bisect.bisect_left(ranking, entry)]


class RungStanding(NamedTuple):
    """Where a configuration stands among the rungs, which are counted upwards from 0."""

    reached: tuple[float, ...] = ()
    """Its value at each rung that it has reached, lowest first."""
    promoted: int = 0
    """The number of rungs from which it has continued; it pauses at the next rung."""
    waits: bool = False
    """Whether the configuration waits to continue at the highest rung that it has reached."""
    over: bool = False
    """Whether the configuration is complete, or has failed for good."""
    end: float | None = None
    """Its final value, if it was trained to the end without a pause."""
    copied: int = 0
    """In a population, the number of rungs from which it had continued when it last copied another member. Its values
    at these rungs do not reflect its parameters."""
    infeasible: bool = False
    """Whether its newest finished trial violates its constraints, so that it ranks behind all that do not."""


class RungCount(NamedTuple):
    """A rung of a bracket, for display."""

    bracket: int
    epochs: int
    reached: int
    waiting: int
    promoted: int
    quota: int
    """How many of the configurations that reached it should have been promoted by now."""
    passed: bool = False
    """Whether no configuration pauses here, because those that were best at the end ranked low here."""


class TrialChain(msgspec.Struct, gc=False):
    """A configuration's trials. What its finished trials showed is kept; its waiting and running trials are read
    again.
    """

    values: Worth = ()
    """What the configuration's finished trials reported at the rungs."""
    promoted: int = 0
    """The number of rungs from which it has continued."""
    paused: int = -1
    """The trial that paused and has not been continued; -1 if there is none."""
    paused_rungs: int = 0
    """The number of rungs that the paused trial has reached."""
    pauses: dict[int, int] = {}
    """The number of rungs reached -> the last trial that paused there."""
    failures: int = 0
    """Trials that failed for good since the last pause."""
    copied: int = 0
    """In a population, the number of rungs from which it had continued when it last copied another."""
    continued: int = -1
    """The last trial that was continued."""
    complete: bool = False
    end: tuple[int, float] | None = None
    """Its first complete trial that reported anything, and that trial's last report."""
    last: int = -1
    """Its newest finished trial."""
    failed: bool = False
    """Whether its newest finished trial failed. If nothing is left to run, it then ranks behind all others."""
    takes: bool = False
    """Whether a finished trial takes a place in the budget."""
    infeasible: bool = False
    """Whether its newest finished trial violates its constraints."""
    live: tuple[int, ...] = ()
    """Its waiting and running trials."""
    counted: bool = False
    """Whether the configuration takes a place in the budget now."""
