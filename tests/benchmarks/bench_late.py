"""Whether the default sampler falls behind Optuna's TPE after many evaluations, on spaces of choices only.

The tables are HPOLib's four with every parameter made a choice, and five made-up ones. Peers search them on a virtual
clock (`search_clock`), both samplers with the same seeds. LATE_SEEDS, LATE_MINUTES, LATE_TABLES, LATE_PEERS and
LATE_PROCESSES say how much. HPOBench and NAS-Bench-201 are kept for judging, and are not here.
"""

from __future__ import annotations

import itertools
import math
import os
import statistics
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
import optuna
import scipy.stats
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler

from hopaas_p2p.analysis.table import Floats, Ints
from hopaas_p2p.samplers import default_sampler
from tests.benchmarks.bench_search import _HPOLIB, paired, read_table
from tests.benchmarks.search_clock import Recorded, Table, search

_MOMENTS: Final = (200, 400)
"""Evaluations after which the regret is compared."""
_SMALLEST: Final = 1e-6  # of a regret, as a part of the median configuration's: the very best counts as that
_LUCK: Final = 0.02  # of a made-up table's values, as a part of the median's regret: what no parameter explains
_FLAT: Final = {"cells": 3, "lists": 3}
"""Made-up tables where many configurations are nearly the best: the power to which regrets are raised."""
_OPTUNA: Final = "Optuna's TPE"
_DEFAULT: Final = "the default"
_SAMPLERS: Final[dict[str, Callable[[int], BaseSampler]]] = {
    _OPTUNA: lambda seed: optuna.samplers.TPESampler(seed=seed),
    _DEFAULT: default_sampler,
}
_SHAPES: Final = {"sums": [4] * 7, "pairs": [4] * 7, "cells": [5] * 6, "switches": [2] * 14, "lists": [12] * 4}
"""Of the made-up tables: how many choices each parameter has."""


class Case(NamedTuple):
    """What is searched how."""

    table: str
    sampler: str
    peers: int


@cache
def table_of(name: str) -> Table:
    """A table by its name, such as `naval_propulsion` or `cells/3`."""
    kind, _, number = name.partition("/")
    if number:
        return _made_up(kind, int(number))
    recorded = read_table(name)
    space: dict[str, BaseDistribution] = {}
    for parameter, one in recorded.space.items():
        space[parameter] = CategoricalDistribution(range(one.high + 1)) if isinstance(one, IntDistribution) else one
    return recorded._replace(space=space)


def _made_up(kind: str, number: int) -> Table:
    """A table of values that single choices, pairs and triples of them decide, and a little luck."""
    shape = _SHAPES[kind]
    numbers = np.random.default_rng((number, list(_SHAPES).index(kind)))
    codes = np.array(list(itertools.product(*map(range, shape))))
    values = _cells(codes, numbers) if kind == "cells" else _sums(kind, codes, numbers)
    values = ((values - values.min()) / (np.median(values) - values.min())) ** _FLAT.get(kind, 1)
    values += numbers.normal(0, _LUCK, len(values))
    seconds = np.exp(numbers.normal(0, 0.4, len(values)))
    space: dict[str, BaseDistribution] = {
        f"c{place}": CategoricalDistribution(range(n)) for place, n in enumerate(shape)
    }
    rows = zip(codes.tolist(), values.tolist(), seconds.tolist(), strict=True)
    return Table(space, {tuple(one): Recorded(value, lasts) for one, value, lasts in rows})


def _sums(kind: str, codes: Ints, numbers: np.random.Generator) -> Floats:
    shape = _SHAPES[kind]
    alone, together = (0.3, 0.6) if kind == "pairs" else (1.0, 0.3)
    values = np.zeros(len(codes))
    for place, count in enumerate(shape):
        values += numbers.normal(0, alone * math.exp(numbers.normal(0, 0.5)), count)[codes[:, place]]
        for other in range(place):
            if kind == "pairs" or numbers.random() < 0.4:
                values += numbers.normal(0, together, (count, shape[other]))[codes[:, place], codes[:, other]]
    for _ in range(4 if kind == "switches" else 0):
        three = numbers.choice(len(shape), 3, replace=False)
        values += numbers.normal(0, 0.6, (2, 2, 2))[tuple(codes[:, three].T)]
    return values


def _cells(codes: Ints, numbers: np.random.Generator) -> Floats:
    """What arrives at the end of a small network of four nodes, whose six edges choose among five operations."""
    gains = np.concatenate([[0.0, 1.0], numbers.uniform(0.2, 1.6, 3)])
    costs = np.concatenate([[0.0, 0.0], numbers.uniform(0.0, 0.3, 3)])
    ends = list(itertools.combinations(range(4), 2))
    nodes = [np.ones(len(codes)), *np.zeros((3, len(codes)))]
    for edge, (start, end) in sorted(enumerate(ends), key=lambda one: one[1]):
        nodes[end] = nodes[end] + np.tanh(gains[codes[:, edge]] * numbers.uniform(0.7, 1.3) * nodes[start])
    return np.asarray(costs[codes].sum(axis=1) - nodes[3])


def _run(case: Case, seed: int) -> list[float]:
    """The regret after so many evaluations each, as a logarithm to base 10."""
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    table = table_of(case.table)
    told = search(table, _SAMPLERS[case.sampler](seed), peers=case.peers, evaluations=max(_MOMENTS)).told
    best, middle = table.best(0), table.best(0.5)
    regrets = [(min(one.value for one in told[:count]) - best) / (middle - best) for count in _MOMENTS]
    return [math.log10(max(_SMALLEST, regret)) for regret in regrets]


def main() -> str:
    """The table as Markdown."""
    words: Any = {key: os.environ.get(f"LATE_{key}", default) for key, default in _DEFAULTS.items()}
    tables, peers = words["TABLES"].split(), [int(one) for one in words["PEERS"].split()]
    cases = [Case(*one) for one in itertools.product(tables, _SAMPLERS, peers)]
    limits: Any = {"seeds": int(words["SEEDS"]), "minutes": float(words["MINUTES"])}
    found = paired(_run, cases, processes=int(words["PROCESSES"]), **limits)
    comparisons = len(tables) * len(peers) * len(_MOMENTS)
    lines = [
        f"{len(found[cases[0]])} paired seeds. The table shows the final regret as a logarithm to base 10, where the",
        "median configuration has 0 and the very best counts as -6: means of Optuna's TPE and of the default, and the",
        f"difference with an interval that holds for all {comparisons} comparisons at once (95 %, Student's t,",
        "Bonferroni). The default is worse where the whole interval is above 0.",
        "",
        "| table | evaluations | " + " | ".join(f"{one} peers" if one > 1 else "1 peer" for one in peers) + " |",
        "|---|--:|" + "--:|" * len(peers),
    ]
    worse = 0
    for table, (place, moment) in itertools.product(tables, enumerate(_MOMENTS)):
        cells = []
        for count in peers:
            theirs, ours = ([run[place] for run in found[Case(table, one, count)]] for one in _SAMPLERS)
            low, middle, high = interval(ours, theirs, comparisons)
            worse += low > 0
            means = f"{statistics.fmean(theirs):.1f}, {statistics.fmean(ours):.1f}"
            cells.append(f"{means}: {middle:+.1f} ({low:+.1f} to {high:+.1f})")
        lines.append(f"| {table} | {moment} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"The default is worse in {worse} of {comparisons} comparisons."])


_DEFAULTS: Final = {
    "SEEDS": "50",
    "MINUTES": "58",
    "TABLES": " ".join([*_HPOLIB, *(f"{kind}/0" for kind in _SHAPES)]),
    "PEERS": "1 8 64",
    "PROCESSES": "1",
}


def interval(ours: list[float], theirs: list[float], comparisons: int) -> tuple[float, float, float]:
    """The mean of the paired differences between the ends of an interval that holds for so many comparisons."""
    gaps = [mine - his for mine, his in zip(ours, theirs, strict=True)]
    middle, error = statistics.fmean(gaps), statistics.stdev(gaps) / math.sqrt(len(gaps))
    half = float(scipy.stats.t.ppf(1 - 0.05 / 2 / comparisons, len(gaps) - 1)) * error
    return middle - half, middle, middle + half
