"""The family tree of a population."""

from __future__ import annotations

from typing import Final

from hopaas_p2p.analysis import palette
from hopaas_p2p.analysis.chart import PLAIN, Chart, ChartAxis, Points, Series, bundled
from hopaas_p2p.analysis.facts import best
from hopaas_p2p.core.lineage import copied_trial, own_steps, segments
from hopaas_p2p.core.state import State

_MEMBERS: Final = 40  # lines of a family tree
_LINES: Final = {"members": (PLAIN, 2.0), "copied": ("#009E73", 1.5), "led to the best": (palette.BEST, 4.0)}


def tree(state: State) -> Chart | None:
    """One horizontal line per member of a population, over its epochs; None for a study without a population.

    A slanted line leads from a member to the one that copied it.
    """
    population, trials, root = state.configurations.population, state.trials, state.configurations.root
    if population is None:
        return None
    top = best(state)
    led = set() if top is None else {part.trial for part in segments(trials, top.number)}
    rows, lines = dict[int, int](), {name: list[tuple[Points, int, int]]() for name in _LINES}
    for trial in list(trials):
        own, member = own_steps(trials, trial, max(trial.reports)) if trial.reports else None, root(trial.number)
        if own is None:
            continue
        row = rows.setdefault(member, len(rows) + 1)
        path: Points = [(max(0, population.epochs(own.after)), row), (population.epochs(own.last), row)]
        lines["members"].append((path, member, trial.number))
        if trial.number in led:
            lines["led to the best"].append((path, member, trial.number))
        source = copied_trial(trial) if trial.continues is not None else None
        if source is not None:
            at, from_row = population.epochs(max(trials[source].reports, default=-1)), rows.get(root(source), row)
            copied: Points = [(at, from_row), (at + population.every / 4, row)]
            lines["copied"].append((copied, member, trial.number))
    names, layers = ("epochs", "row", "member", "trial"), []
    for name, some in lines.items():
        drawn = [line for line in some if max(row for _, row in line[0]) <= _MEMBERS]
        if drawn:
            layers.append(Series(name, "line", bundled(names, drawn), *_LINES[name], "none", opacity=0.8))
    if not layers:
        return None
    said = (
        f"{len(rows):,} members, {len({member for _, member, _ in lines['copied']}):,} of which copied another member"
    )
    more = f"; the first {_MEMBERS} are drawn" if len(rows) > _MEMBERS else ""
    caption = f"{said}{more}; a line from one member to another shows which checkpoint the latter continued from"
    shown = min(len(rows), _MEMBERS)
    x, y = ChartAxis("epochs", 0, zero=True), ChartAxis("member", 0, shown + 1, whole=True, down=True)
    return Chart("Family tree", layers, x, y, f"Family tree of {said}.", caption, height=120 + 18 * shown)
