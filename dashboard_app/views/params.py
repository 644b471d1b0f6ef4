"""What two parameters do together, and which parameters the best trials have."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from hopaas_p2p.analysis.chart import Chart, ChartAxis, Series, label, number
from hopaas_p2p.analysis.charts import value_text
from hopaas_p2p.analysis.table import EVERYTHING, Ints, Selection, TrialTable

_BINS: Final = 20
_LEADERS: Final = 10


def bins(columns: TrialTable, name: str, count: int = _BINS) -> tuple[Ints, list[str]]:
    """Each trial's bin along a parameter's range, and the bins' names; a choice is a bin of its own.

    A bin of a whole-number parameter holds whole numbers, and is named after the first and the last.
    """
    one = columns.parameters[name]
    x = columns.params[name]
    if one.choices is not None:
        return np.nan_to_num(x, nan=-1).astype(np.int64), [label(choice, 16) for choice in one.choices]
    known = x[np.isfinite(x)]
    low, high = min(one.low, known.min(initial=np.inf)), max(one.high, known.max(initial=-np.inf))
    log = one.log and low > 0
    if one.whole:
        ends = (low, high + 1, count + 1)
        firsts = np.unique(np.floor(np.geomspace(*ends) if log else np.linspace(*ends))[:-1])
        at = np.where(np.isfinite(x), np.clip(np.searchsorted(firsts, x, side="right") - 1, 0, None), -1)
        lasts = [*(firsts[1:] - 1), math.floor(high)]
        return at, [f"{a:.0f}" if a >= z else f"{a:.0f} to {z:.0f}" for a, z in zip(firsts, lasts, strict=True)]
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled, low, high = (np.log(each) if log else each for each in (x, low, high))
    edges = np.linspace(low, high, count + 1)
    at = np.floor((scaled - low) / ((high - low) or 1.0) * count)
    at = np.where(np.isfinite(at), np.clip(at, 0, count - 1), -1).astype(np.int64)
    centres = (edges[:-1] + edges[1:]) / 2
    return at, [number(float(centre)) for centre in (np.exp(centres) if log else centres)]


def contour(columns: TrialTable, first: str, second: str, selection: Selection = EVERYTHING) -> Chart | None:
    """The mean value over two parameters, in bins; empty bins stay empty, because nothing is known there."""
    mask = columns.selected(selection, first, second)
    if not mask.any() or first == second:
        return None
    cells = contour_cells(columns, first, second, selection)
    names = bins(columns, first)[1], bins(columns, second)[1]
    data = {
        "x": np.array([names[0][cell[0]] for cell in cells]),
        "y": np.array([names[1][cell[1]] for cell in cells]),
        "mean": np.array([mean for _, _, mean, _ in cells]),
        "trials": [cell[3] for cell in cells],
    }
    pick = min if columns.directions[selection.objective] == "minimize" else max
    top = pick(cells, key=lambda cell: cell[2])
    alt = (
        f"Mean value over {first} and {second}: {int(mask.sum()):,} trials in {len(cells)} cells; the best cell is at "
        f"{names[0][top[0]]}, {names[1][top[1]]} with {number(top[2])}."
    )
    x, y = ChartAxis(first, choices=tuple(names[0])), ChartAxis(second, choices=tuple(names[1]))
    caption = "Mean of the complete trials in each cell."
    return Chart(f"Contour: {first}, {second}", [Series("mean", "cells", data)], x, y, alt, caption, height=420)


def contour_cells(
    columns: TrialTable, first: str, second: str, selection: Selection = EVERYTHING
) -> list[tuple[int, int, float, int]]:
    """(bin of the first, bin of the second, mean value, trials) of each cell that has any."""
    mask = columns.selected(selection, first, second)
    x, y = bins(columns, first)[0][mask], bins(columns, second)[0][mask]
    cells, inverse, counts = np.unique(x * 100_000 + y, return_inverse=True, return_counts=True)
    means = np.bincount(inverse, weights=columns.values[mask, selection.objective]) / counts
    return list(zip(*(part.tolist() for part in (*np.divmod(cells, 100_000), means, counts)), strict=True))


def leaders(
    columns: TrialTable, numbers: list[int], names: tuple[str, ...], *, objective: int = 0, most: int = _LEADERS
) -> list[tuple[int, str, list[str]]]:
    """The best of the lines of `parallel`, the very best first: number, value, parameters as the objective saw them."""
    found = []
    for one in numbers[: -most - 1 : -1]:
        shown = [value_text(columns.parameters[name], columns.params[name][one]) for name in names]
        found.append((one, number(float(columns.values[one, objective])), shown))
    return found
