"""The family tree of a population: a line for each member, and where it went on from another one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np

from hopaas_p2p.analysis import families, palette
from hopaas_p2p.analysis.chart import PLAIN, Chart, ChartAxis, Series
from hopaas_p2p.analysis.families import FamilyStretch
from hopaas_p2p.core.lineage import segments
from hopaas_p2p.core.state import State

_MEMBERS: Final = 40  # lines that are drawn
_COPIED: Final = "#009E73"


class _Line(NamedTuple):
    member: int
    trial: int
    begin: float
    end: float
    top: int
    bottom: int


def tree(state: State) -> Chart | None:
    """Members from top to bottom, epochs from left to right; a slanted line leads from a member to its copy."""
    found = families.stretches(state)
    members = list(dict.fromkeys(one.member for one in found))
    population = state.configurations.population
    if not members or population is None:
        return None
    rows = {member: at for at, member in enumerate(members[:_MEMBERS], 1)}
    events = families.copies(state)
    shown = [one for one in events if one.member in rows and one.source in rows]
    every = population.every
    jumps = [
        _Line(one.member, one.trial, one.epochs, one.epochs + every / 4, rows[one.source], rows[one.member])
        for one in shown
    ]
    layers = [
        _lines("members", _trained(found, rows), PLAIN, width=2.0),
        _lines("copied", jumps, _COPIED, width=1.5),
        _lines("led to the best", _best(state, rows), palette.BEST, width=4.0),
    ]
    said = f"{len(members):,} members, {len({one.member for one in events}):,} of which copied another member"
    more = f"; the first {len(rows)} are drawn" if len(rows) < len(members) else ""
    caption = (
        f"{said}{more}; a line from one member to another shows where the latter continued from the former's checkpoint"
    )
    return Chart(
        "Family tree",
        [layer for layer in layers if layer.drawn],
        ChartAxis("epochs", 0, zero=True),
        ChartAxis("member", 0, len(rows) + 1, whole=True, down=True),
        f"Family tree of {said}.",
        caption,
        height=120 + 18 * len(rows),
    )


def _trained(found: Iterable[FamilyStretch], rows: dict[int, int]) -> list[_Line]:
    """The lines of what the members that are drawn have trained."""
    return [_Line(*one, rows[one.member], rows[one.member]) for one in found if one.member in rows]


def _best(state: State, rows: dict[int, int]) -> list[_Line]:
    """The stretches that led to the best complete member."""
    sign = -1.0 if state.define is not None and state.define.directions[0] == "maximize" else 1.0
    complete = [(sign * value, number) for number, value in state.trials.results()]
    if not complete:
        return []
    by_trial = {one.trial: one for one in families.stretches(state)}
    path = [by_trial.get(part.trial) for part in segments(state.trials, min(complete)[1])]
    return _trained((one for one in path if one is not None), rows)


def _lines(name: str, drawn: Sequence[_Line], colour: str, *, width: float) -> Series:
    """Several lines as one series, separated by rows without a value."""
    data = {
        "epochs": np.array([x for one in drawn for x in (one.begin, one.end, math.nan)]),
        "row": np.array([y for one in drawn for y in (one.top, one.bottom, math.nan)]),
        "member": np.repeat(np.array([one.member for one in drawn], int), 3),
        "trial": np.repeat(np.array([one.trial for one in drawn], int), 3),
    }
    return Series(name, "line", data, colour, width, "none", opacity=0.8)
