"""Where configurations stand, and in which order: the values that rungs and populations have in common."""

from __future__ import annotations

import bisect
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
