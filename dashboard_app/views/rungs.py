"""Who descends from whom in a population."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from hopaas_p2p.analysis import palette
from hopaas_p2p.analysis.chart import PLAIN, Chart, ChartAxis, Series
from hopaas_p2p.core.lineage import copied_trial, own_steps, segments
from hopaas_p2p.core.state import State

_MEMBERS: Final = 40  # lines of a family tree
_LINES: Final = {"members": (PLAIN, 2.0), "copied": ("#009E73", 1.5), "led to the best": (palette.BEST, 4.0)}


def tree(state: State) -> Chart | None:
    """A line per member of a population, epochs from left to right; a slanted one leads from a member to its copy."""
    population, trials, root = state.configurations.population, state.trials, state.configurations.root
    if population is None:
        return None
    sign = -1 if state.define is not None and state.define.directions[0] == "maximize" else 1
    best = min(((sign * value, number) for number, value in trials.results()), default=None)
    led = set() if best is None else {part.trial for part in segments(trials, best[1])}
    rows, lines = dict[int, int](), {name: list[tuple[int, float, int, float, int]]() for name in _LINES}
    for trial in list(trials):
        own = own_steps(trials, trial, max(trial.reports)) if trial.reports else None
        if own is None:
            continue
        row = rows.setdefault(root(trial.number), len(rows) + 1)
        line = (trial.number, max(0, population.epochs(own.after)), row, population.epochs(own.last), row)
        lines["members"].append(line)
        if trial.number in led:
            lines["led to the best"].append(line)
        source = copied_trial(trial) if trial.continues is not None else None
        if source is not None:
            at, from_row = population.epochs(max(trials[source].reports, default=-1)), rows.get(root(source), row)
            lines["copied"].append((trial.number, at, from_row, at + population.every / 4, row))
    layers = []
    for name, some in lines.items():
        drawn = [line for line in some if max(line[2], line[4]) <= _MEMBERS]
        data = {
            "epochs": np.array([x for _, begin, _, end, _ in drawn for x in (begin, end, math.nan)]),
            "row": np.array([y for _, _, first, _, last in drawn for y in (first, last, math.nan)]),
            "member": np.repeat(np.array([root(line[0]) for line in drawn], int), 3),
            "trial": np.repeat(np.array([line[0] for line in drawn], int), 3),
        }
        if drawn:
            layers.append(Series(name, "line", data, *_LINES[name], "none", opacity=0.8))
    if not layers:
        return None
    said = f"{len(rows):,} members, {len({root(one) for one, *_ in lines['copied']}):,} of which copied another member"
    more = f"; the first {_MEMBERS} are drawn" if len(rows) > _MEMBERS else ""
    caption = f"{said}{more}; a line from one member to another shows where it continued from the former's checkpoint"
    shown = min(len(rows), _MEMBERS)
    x, y = ChartAxis("epochs", 0, zero=True), ChartAxis("member", 0, shown + 1, whole=True, down=True)
    return Chart("Family tree", layers, x, y, f"Family tree of {said}.", caption, height=120 + 18 * shown)
