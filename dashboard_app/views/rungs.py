"""Who stands on which rung, what was promoted when and where, and the curves of configurations that went on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from hopaas_p2p.analysis import configurations, palette
from hopaas_p2p.analysis.chart import (
    FAINT,
    PLAIN,
    Chart,
    ChartAxis,
    Points,
    Series,
    bundle,
    curves_chart,
    finite,
    spread,
)
from hopaas_p2p.analysis.configurations import ConfigurationRow
from hopaas_p2p.core.standings import RungCount
from hopaas_p2p.core.state import State

_PAUSED: Final = 40  # curves that are drawn
_WHOLE: Final = 20
_RUNNING: Final = 20
MOST_RUNGS: Final = 24
"""That are shown, the highest ones: a population may have thousands."""
_WENT_ON: Final = "#009E73"


class Overview(NamedTuple):
    """A study's configurations by where they stand now."""

    configurations: int
    running: int
    waiting: int
    complete: int
    promotions: int
    elsewhere: int
    """Promotions that another site took up than the one where the configuration had paused."""


def overview(state: State) -> Overview:
    """How many configurations are where."""
    rows, events = configurations.rows(state), configurations.promotions(state)
    words = [row.state for row in rows]
    elsewhere = sum(
        one.site is not None and one.site_before is not None and one.site != one.site_before for one in events
    )
    running, paused, complete = (words.count(word) for word in ("running", "paused", "complete"))
    return Overview(len(rows), running, paused, complete, len(events), elsewhere)


def name_of(place: RungCount, brackets: int) -> str:
    """A rung, as people call it."""
    epochs = f"{place.epochs:,} epoch{'s' * (place.epochs != 1)}"
    return epochs if brackets == 1 else f"bracket {place.bracket}: {epochs}"


def standing(state: State) -> Chart | None:
    """A bar for each rung: how many went on from it, wait there, or run past it now."""
    places = configurations.rung_counts(state)[-MOST_RUNGS:]
    if not any(place.reached for place in places):
        return None
    brackets = len({place.bracket for place in places})
    names = np.array([name_of(place, brackets) for place in places])
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
    x, y = ChartAxis("configurations", zero=True, whole=True), ChartAxis(choices=tuple(names.tolist()))
    return Chart("Configurations at each rung", layers, x, y, f"{'; '.join(said)}.", height=90 + 30 * len(places))


def curves(state: State, *, height: int = 400) -> Chart | None:
    """A curve for each configuration, through all its trials, with a mark where it was promoted."""
    policy = state.configurations.policy
    rows = [row for row in configurations.rows(state) if row.epochs > 1]
    if policy is None or not rows:
        return None
    running = [row for row in rows if row.state == "running"][:_RUNNING]
    paused, whole = _some(rows, "paused", _PAUSED), _some(rows, "complete", _WHOLE)
    best = _best(state, [row for row in rows if row.state == "complete"])

    def layer(name: str, some: list[ConfigurationRow], colour: str, dash: str, width: float) -> Series:
        drawn = [(row.first, reports(state, row)) for row in some]
        return bundle(name, drawn, colour, dash, width, along="epochs", of="configuration")

    layers = [
        layer("paused", paused, FAINT, "dotted", 1.0),
        layer("complete", whole, PLAIN, "solid", 1.0),
        layer("running", running, _WENT_ON, "dashed", 1.8),
        layer("best", best, palette.BEST, "solid", 3.0),
    ]
    marks = _marks(state, {row.first for row in (*paused, *whole, *running, *best)})
    minimize = state.define is None or state.define.directions[0] == "minimize"
    said = (
        f"{len(paused)} paused, {len(whole)} complete and {len(running)} running configurations, of the {len(rows):,} "
        "that are beyond the first epoch"
    )
    return curves_chart(
        "Learning curves across rungs",
        layers,
        along="epochs",
        minimize=minimize,
        marks=marks,
        alt=f"Learning curves of {said}.",
        caption=f"{said}; each curve runs through all trials of a configuration, and a triangle marks a promotion",
        height=height,
    )


def _some(rows: Sequence[ConfigurationRow], word: str, most: int) -> list[ConfigurationRow]:
    found = [row for row in rows if row.state == word]
    return [found[at] for at in spread(len(found), most)]


def _best(state: State, complete: Sequence[ConfigurationRow]) -> list[ConfigurationRow]:
    sign = -1.0 if state.define is not None and state.define.directions[0] == "maximize" else 1.0
    valued = [(sign * row.newest.values[0], row.first, row) for row in complete if row.newest.values]
    return [min(valued)[-1]] if valued else []


def reports(state: State, row: ConfigurationRow) -> Points:
    """The finite reports of a configuration by epoch, of all its trials, downsampled."""
    policy = state.configurations.policy
    said: dict[int, float] = {}
    for number in row.trials:
        said |= state.trials[number].reports
    return finite({step if policy is None else policy.epochs(step): one for step, one in said.items()})


def _marks(state: State, shown: set[int]) -> list[Series]:
    """Where the configurations that are drawn were promoted."""
    found = [
        (one.epochs, value, one.first)
        for one in configurations.promotions(state)
        if one.first in shown and (value := _last(state.trials[one.paused].reports)) is not None
    ]
    if not found:
        return []
    epochs, values, numbers = zip(*found, strict=True)
    data = {"epochs": np.array(epochs), "value": np.array(values), "configuration": np.array(numbers)}
    return [Series("promoted", "points", data, _WENT_ON, 8, "triangle")]


def _last(said: Mapping[int, float]) -> float | None:
    value = said[max(said)] if said else math.nan
    return value if math.isfinite(value) else None
