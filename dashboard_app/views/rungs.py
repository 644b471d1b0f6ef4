"""Where trials were pruned, who stands on which rung, curves of configurations that went on, and configurations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from hopaas_p2p.analysis import configurations, palette
from hopaas_p2p.analysis.chart import FAINT, PLAIN, Chart, ChartAxis, Series, bundle, curves_chart, finite, spread
from hopaas_p2p.analysis.configurations import ConfigurationRow
from hopaas_p2p.analysis.table import TrialTable
from hopaas_p2p.core.lineage import segments
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.state import State

_BARS: Final = 40
_PAUSED: Final = 40  # curves that are drawn
_WHOLE: Final = 20
_RUNNING: Final = 20
_MEMBERS: Final = 40  # lines of a family tree
_MOST_RUNGS: Final = 24  # that are shown, the highest ones: a population may have thousands
_WENT_ON: Final = "#009E73"


def pruned_at(columns: TrialTable) -> Chart | None:
    """How many trials were pruned at which step; many steps are gathered in bars of equal width."""
    mask = columns.is_(TrialState.PRUNED) & np.isfinite(columns.last_step)
    if not mask.any():
        return None
    steps, counts = np.unique(columns.last_step[mask].astype(np.int64), return_counts=True)
    width = max(1, math.ceil((int(steps[-1]) - int(steps[0]) + 1) / _BARS))
    bars = np.bincount((steps - steps[0]) // width, weights=counts).astype(np.int64)
    starts = steps[0] + width * np.arange(len(bars))
    names = [str(start) if width == 1 else f"{start} to {start + width - 1}" for start in starts.tolist()]
    busiest = int(np.argmax(counts))
    alt = (
        f"{int(mask.sum()):,} trials were pruned between steps {steps[0]} and {steps[-1]}, most of them, "
        f"{counts[busiest]:,}, after step {steps[busiest]}."
    )
    data = {"step": np.array(names), "trials": bars}
    x, y = ChartAxis("last step reported", choices=tuple(names)), ChartAxis("trials pruned", zero=True, whole=True)
    series = Series("pruned", "bars", data, palette.PRUNED)
    return Chart("Where trials were pruned", [series], x, y, alt, height=260)


def standing(state: State) -> Chart | None:
    """A bar for each rung: how many went on from it, wait there, or run past it now."""
    places = configurations.rung_counts(state)[-_MOST_RUNGS:]
    if not any(place.reached for place in places):
        return None
    brackets = len({place.bracket for place in places})
    words = [f"{place.epochs:,} epoch{'s' * (place.epochs != 1)}" for place in places]
    if brackets > 1:
        words = [f"bracket {place.bracket}: {word}" for place, word in zip(places, words, strict=True)]
    names = np.array(words)
    parts = (
        ("promoted", _WENT_ON, [place.promoted for place in places]),
        ("waiting", FAINT, [place.waiting for place in places]),
        ("not paused there", PLAIN, [max(0, place.reached - place.promoted - place.waiting) for place in places]),
    )
    layers = [
        Series(name, "bars", {"configurations": np.array(counts), "rung": names}, colour, stack="rung")
        for name, colour, counts in parts
        if any(counts)
    ]
    said = [configurations.in_words(place, brackets=brackets) for place in places if place.reached]
    x, y = ChartAxis("configurations", zero=True, whole=True), ChartAxis(choices=tuple(words))
    return Chart("Configurations at each rung", layers, x, y, f"{'; '.join(said)}.", height=90 + 30 * len(places))


def curves(state: State, rows: Sequence[ConfigurationRow]) -> Chart | None:
    """A curve for each configuration, through all its trials, with a mark where it was promoted."""
    policy = state.configurations.policy
    rows = [row for row in rows if row.epochs > 1]
    if policy is None or not rows:
        return None
    sign = -1.0 if state.define is not None and state.define.directions[0] == "maximize" else 1.0
    words = ("paused", "complete", "running")
    paused, complete, running = ([row for row in rows if row.state == word] for word in words)
    valued = [(sign * row.newest.values[0], row.first, row) for row in complete if row.newest.values]
    best = [min(valued)[-1]] if valued else []
    paused, running = [paused[at] for at in spread(len(paused), _PAUSED)], running[:_RUNNING]
    whole = [complete[at] for at in spread(len(complete), _WHOLE)]

    def layer(name: str, some: Sequence[ConfigurationRow], colour: str, dash: str, width: float) -> Series:
        """All trials of a configuration are one curve."""
        drawn = []
        for row in some:
            said = {step: value for one in row.trials for step, value in state.trials[one].reports.items()}
            drawn.append((row.first, finite({policy.epochs(step): value for step, value in said.items()})))
        return bundle(name, drawn, colour, dash, width, along="epochs", of="configuration")

    layers = [
        layer("paused", paused, FAINT, "dotted", 1.0),
        layer("complete", whole, PLAIN, "solid", 1.0),
        layer("running", running, _WENT_ON, "dashed", 1.8),
        layer("best", best, palette.BEST, "solid", 3.0),
    ]
    shown = {row.first for row in (*paused, *whole, *running, *best)}
    marks = []
    for one in configurations.promotions(state):
        reports = state.trials[one.paused].reports
        if one.first in shown and reports and math.isfinite(reports[max(reports)]):
            marks.append((one.epochs, reports[max(reports)], one.first))
    data = dict(zip(("epochs", "value", "configuration"), map(np.array, zip(*marks, strict=True)), strict=False))
    layers += [Series("promoted", "points", data, _WENT_ON, 8, "triangle")] if marks else []
    said = (
        f"{len(paused)} paused, {len(whole)} complete and {len(running)} running configurations, of the {len(rows):,} "
        "that are beyond the first epoch"
    )
    return curves_chart(
        "Learning curves across rungs",
        layers,
        along="epochs",
        minimize=sign > 0,
        alt=f"Learning curves of {said}.",
        caption=f"{said}; each curve runs through all trials of a configuration, and a triangle marks a promotion",
        height=400,
    )


def tree(state: State) -> Chart | None:
    """A line per member of a population, epochs from left to right; a slanted one leads from a member to its copy."""
    found = configurations.stretches(state)
    members = list(dict.fromkeys(member for member, *_ in found))
    population = state.configurations.population
    if not members or population is None:
        return None
    rows = {member: at for at, member in enumerate(members[:_MEMBERS], 1)}
    events = configurations.copies(state)
    every = population.every
    by_trial = {one[1]: one for one in found}
    complete = [(value, number) for number, value in state.trials.results()]
    if state.define is not None and state.define.directions[0] == "maximize":
        complete = [(-value, number) for value, number in complete]
    best = (
        [by_trial[part.trial] for part in segments(state.trials, min(complete)[1]) if part.trial in by_trial]
        if complete
        else []
    )
    jumps = [
        (one.first, one.trial, (one.epochs, one.epochs + every / 4), (rows[one.source], rows[one.first]))
        for one in events
        if one.first in rows and one.source in rows
    ]
    trained, led = (
        [(member, trial, ends, (rows[member],) * 2) for member, trial, *ends in some if member in rows]
        for some in (found, best)
    )
    layers = []
    for name, lines, colour, width in (
        ("members", trained, PLAIN, 2.0), ("copied", jumps, _WENT_ON, 1.5), ("led to the best", led, palette.BEST, 4.0),
    ):  # fmt: skip
        data = {
            "epochs": np.array([x for _, _, ends, _ in lines for x in (*ends, math.nan)]),
            "row": np.array([y for *_, ends in lines for y in (*ends, math.nan)]),
            "member": np.repeat(np.array([one[0] for one in lines], int), 3),
            "trial": np.repeat(np.array([one[1] for one in lines], int), 3),
        }
        if lines:
            layers.append(Series(name, "line", data, colour, width, "none", opacity=0.8))
    said = f"{len(members):,} members, {len({one.first for one in events}):,} of which copied another member"
    more = f"; the first {len(rows)} are drawn" if len(rows) < len(members) else ""
    caption = f"{said}{more}; a line from one member to another shows where it continued from the former's checkpoint"
    x, y = ChartAxis("epochs", 0, zero=True), ChartAxis("member", 0, len(rows) + 1, whole=True, down=True)
    return Chart("Family tree", layers, x, y, f"Family tree of {said}.", caption, height=120 + 18 * len(rows))
