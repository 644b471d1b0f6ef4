"""Who stands on which rung, what was promoted when and where, and the curves of configurations that went on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from dashboard_app.views import spec
from dashboard_app.views.curves import Points, bundle, downsampled, finite, option_of
from dashboard_app.views.downsample import spread
from dashboard_app.views.spec import ChartSpec
from hopaas_p2p.analysis import configurations
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


def standing(state: State) -> ChartSpec | None:
    """A bar for each rung: how many went on from it, wait there, or run past it now."""
    places = configurations.rung_counts(state)[-MOST_RUNGS:]
    if not any(place.reached for place in places):
        return None
    brackets = len({place.bracket for place in places})
    names = np.array([name_of(place, brackets) for place in places])
    parts = (
        ("promoted", _WENT_ON, [place.promoted for place in places]),
        ("waiting", spec.FAINT, [place.waiting for place in places]),
        ("not paused there", spec.PLAIN, [max(0, place.reached - place.promoted - place.waiting) for place in places]),
    )
    layers = [
        spec.Layer(
            {
                "type": "bar", "name": name, "stack": "rung", "itemStyle": {"color": colour},
                "encode": {"x": 1, "y": 0}, "barMaxWidth": 22,
            },
            spec.frame(rung=names, configurations=np.array(counts)),
        )
        for name, colour, counts in parts
        if any(counts)
    ]  # fmt: skip
    option = spec.base(
        layers,
        xAxis=spec.axis("configurations", tight=False, minInterval=1),
        yAxis={"type": "category", "data": names.tolist()},
    )
    said = [configurations.in_words(place, brackets=brackets) for place in places if place.reached]
    return ChartSpec("Configurations at each rung", option, f"{'; '.join(said)}.", height=90 + 30 * len(places))


def curves(state: State, *, height: int = 400) -> ChartSpec | None:
    """A curve for each configuration, through all its trials, with a mark where it was promoted."""
    policy = None if state.configurations is None else state.configurations.policy
    rows = [row for row in configurations.rows(state) if row.epochs > 1]
    if policy is None or not rows:
        return None
    running = [row for row in rows if row.state == "running"][:_RUNNING]
    paused, whole = _some(rows, "paused", _PAUSED), _some(rows, "complete", _WHOLE)
    best = _best(state, [row for row in rows if row.state == "complete"])

    def layer(name: str, some: list[ConfigurationRow], colour: str, dash: str, width: float) -> spec.Layer:
        drawn = [(row.first, reports(state, row)) for row in some]
        return bundle(name, drawn, colour, dash, width, along="epochs", of="configuration")

    layers = [
        layer("paused", paused, spec.FAINT, "dotted", 1.0),
        layer("complete", whole, spec.PLAIN, "solid", 1.0),
        layer("running", running, _WENT_ON, "dashed", 1.8),
        layer("best", best, spec.BEST, "solid", 3.0),
    ]
    marks = _marks(state, {row.first for row in (*paused, *whole, *running, *best)})
    minimize = state.define is None or state.define.directions[0] == "minimize"
    option = option_of(layers, along="epochs", minimize=minimize, marks=marks)
    said = (
        f"{len(paused)} paused, {len(whole)} complete and {len(running)} running configurations, of the {len(rows):,} "
        "that are beyond the first epoch"
    )
    return ChartSpec(
        "Learning curves across rungs",
        option,
        f"Learning curves of {said}.",
        f"{said}; each curve runs through all trials of a configuration, and a triangle marks a promotion",
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
    policy = state.configurations.policy if state.configurations is not None else None
    said: dict[int, float] = {}
    for number in row.trials:
        said |= state.trials[number].reports
    return downsampled(finite({step if policy is None else policy.epochs(step): one for step, one in said.items()}))


def _marks(state: State, shown: set[int]) -> list[spec.Layer]:
    """Where the configurations that are drawn were promoted."""
    found = [
        (one.epochs, value, one.first)
        for one in configurations.promotions(state)
        if one.first in shown and (value := _last(state.trials[one.paused].reports)) is not None
    ]
    if not found:
        return []
    epochs, values, numbers = zip(*found, strict=True)
    rows = spec.frame(epochs=np.array(epochs), value=np.array(values), configuration=np.array(numbers))
    return [spec.scatter("promoted", rows, colour=_WENT_ON, symbol="triangle", size=8)]


def _last(said: dict[int, float]) -> float | None:
    value = said[max(said)] if said else math.nan
    return value if math.isfinite(value) else None
