"""A population for people: who copied whom, and from which member each one's weights come. Pure: no I/O, no clock."""

from __future__ import annotations

from typing import NamedTuple

from hopaas_p2p.analysis import configurations
from hopaas_p2p.core.lineage import copied_trial, own_steps, segments
from hopaas_p2p.core.state import State


class CopyEvent(NamedTuple):
    """A member went on from another one's checkpoint."""

    member: int
    """Known by the number of its first trial."""
    trial: int
    """The trial that goes on."""
    source: int
    """The member that was copied."""
    source_trial: int
    """Its trial that had paused."""
    epochs: int
    """How many were done at the checkpoint."""
    at: int | None
    """When, in microseconds since 1970, by the clock of the peer that goes on."""
    site_before: str | None
    site: str | None


class FamilyStretch(NamedTuple):
    """Epochs of a member that one trial trained."""

    member: int
    trial: int
    begin: int
    end: int


def copies(state: State) -> list[CopyEvent]:
    """Who copied whom, in the order of the log."""
    found = []
    root = state.configurations.root
    for trial in state.trials:
        number = copied_trial(trial)
        if number is None or trial.continues is None:  # a retry has copied nothing anew
            continue
        source = state.trials[number]
        sites = (state.peers.get(one.owner or "", {}).get("site") for one in (source, trial))
        epochs = configurations.epochs_of(state, max(source.reports, default=-1))
        found.append(CopyEvent(root(trial.number), trial.number, root(number), number, epochs, trial.start, *sites))
    return found


def stretches(state: State) -> list[FamilyStretch]:
    """What each trial has trained that has come beyond where it began, by the order of the log."""
    found = []
    for trial in state.trials:
        own = own_steps(state.trials, trial, max(trial.reports)) if trial.reports else None
        if own is None:
            continue
        root = state.configurations.root(trial.number)
        begin, end = (configurations.epochs_of(state, step) for step in (own.after, own.last))
        found.append(FamilyStretch(root, trial.number, max(0, begin), end))
    return found


def families(state: State) -> dict[int, list[int]]:
    """Member -> the members whose training led to what it is now, the first one first."""
    root = state.configurations.root
    found = {}
    for row in configurations.rows(state):
        members = [root(one.trial) for one in segments(state.trials, row.newest.number)]
        found[row.first] = [one for at, one in enumerate(members) if at == 0 or members[at - 1] != one]
    return found
