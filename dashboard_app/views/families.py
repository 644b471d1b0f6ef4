"""The family tree of a population: a line for each member, and where it went on from another one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from dashboard_app.views import spec
from dashboard_app.views.spec import ChartSpec
from hopaas_p2p.core.lineage import segments
from hopaas_p2p.core.state import State
from hopaas_p2p.report import families

_MEMBERS: Final = 40  # lines that are drawn
_COPIED: Final = "#009E73"


def tree(state: State) -> ChartSpec | None:
    """Members from top to bottom, epochs from left to right; a slanted line leads from a member to its copy."""
    found = families.stretches(state)
    members = list(dict.fromkeys(one.member for one in found))
    if not members or state.configurations is None or state.configurations.members is None:
        return None
    rows = {member: at for at, member in enumerate(members[:_MEMBERS], 1)}
    trained = [
        (one.begin, rows[one.member], one.member, one.trial, one.end, rows[one.member])
        for one in found
        if one.member in rows
    ]
    events = families.copies(state)
    shown = [one for one in events if one.member in rows and one.source in rows]
    every = state.configurations.members.policy.every
    jumps = [
        (one.epochs, rows[one.source], one.member, one.trial, one.epochs + every / 4, rows[one.member]) for one in shown
    ]
    layers = [
        _lines("members", trained, spec.PLAIN, width=2.0),
        _lines("copied", jumps, _COPIED, width=1.5),
        _lines("led to the best", _best(state, rows), spec.BEST, width=4.0),
    ]
    option = spec.base(
        [layer for layer in layers if len(layer.rows)],
        xAxis=spec.axis("epochs", min=0),
        yAxis=spec.axis("member", min=0, max=len(rows) + 1, inverse=True, minInterval=1),
    )
    said = f"{len(members):,} members, {len({one.member for one in events}):,} of which copied another member"
    more = f"; the first {len(rows)} are drawn" if len(rows) < len(members) else ""
    return ChartSpec(
        "Family tree",
        option,
        f"Family tree of {said}.",
        f"{said}{more}; a line from one member to another shows where the latter continued from the former's "
        f"checkpoint",
        height=120 + 18 * len(rows),
    )


def _best(state: State, rows: dict[int, int]) -> list[tuple[float, int, int, int, float, int]]:
    """The stretches that led to the best complete member."""
    sign = -1.0 if state.define is not None and state.define.directions[0] == "maximize" else 1.0
    complete = [(sign * value, number) for number, value in state.trials.results()]
    if not complete or state.configurations is None:
        return []
    by_trial = {one.trial: one for one in families.stretches(state)}
    path = segments(state.trials, min(complete)[1])
    return [
        (one.begin, rows[one.member], one.member, one.trial, one.end, rows[one.member])
        for part in path
        if (one := by_trial.get(part.trial)) is not None and one.member in rows
    ]


def _lines(
    name: str, drawn: Sequence[tuple[float, int, int, int, float, int]], colour: str, *, width: float
) -> spec.Layer:
    """Several lines as one series, separated by rows without a value."""
    epochs: list[float] = []
    members: list[float] = []
    first: list[int] = []
    trials: list[int] = []
    for begin, top, member, trial, end, bottom in drawn:
        epochs += [begin, end, math.nan]
        members += [top, bottom, math.nan]
        first += [member] * 3
        trials += [trial] * 3
    look = {"color": colour, "width": width, "opacity": 0.8}
    rows = spec.frame(
        epochs=np.array(epochs), row=np.array(members), member=np.array(first, int), trial=np.array(trials, int)
    )
    return spec.line(name, rows, colour=colour, connectNulls=False, lineStyle=look, symbol="none")
