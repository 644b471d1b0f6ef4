"""What populations gain over parameters that stay the same; see `population_clock` and `schedules`.

Everything is trained for real, on a virtual clock. POPULATION_SEEDS and POPULATION_TASKS say how often and what.
"""

from __future__ import annotations

import math
import os
import random
import statistics
import sys
import warnings
from collections.abc import Sequence
from typing import Final

import numpy as np
import optuna
from optuna.samplers import BaseSampler, RandomSampler

from hopaas_p2p import Population, Rungs
from tests.benchmarks.population_clock import Trained, Way, replayed, search
from tests.benchmarks.schedules import Task, task

_SIZE: Final = 16
_RESAMPLED: Final = 1000
_RANDOM: Final = "random search"
_COSINE: Final = "random search, the rate falls as half a cosine"
_METHOD: Final = f"""\
Each method trains as many epochs as {_SIZE} complete training runs of 40 epochs, with {_SIZE} peers \
(Optuna's TPE: one, so that
it can learn). A study in memory decides which trials continue, and the training is real. The model that reported the
lowest loss at any epoch is judged by its loss on unseen data (`sphere` and `noise`: the same loss). Losses are medians
over {{seeds}} paired seeds; the ratio is the geometric mean of the ratios to random search with the same seed, \
with a 90 %
bootstrap interval. The target is random search's median best reported loss; the number of seeds that reach it is in
brackets. A replay trains one new model with the best member's schedule.

* `sphere` is the paper's example, with two weights of a surrogate. Constant weights of 1 are best, so no schedule is
  needed.
* `noise` is a quadratic with noisy gradients, in which only the learning rate is tuned.
* `digits` trains networks with one hidden layer on scikit-learn's digits. Learning rate, momentum, decay and dropout
  are tuned.
* `breast_cancer` trains such networks on scikit-learn's breast cancer data.
"""


def _random(seed: int) -> BaseSampler:
    return RandomSampler(seed=seed)


def _tpe(seed: int) -> BaseSampler:
    return optuna.samplers.TPESampler(seed=seed)


WAYS: Final[dict[str, Way]] = {
    _RANDOM: Way(_random),
    _COSINE: Way(_random, cosine=True),
    "Optuna's TPE, one peer": Way(_tpe, peers=1),
    "`Rungs(1, 40)`": Way(_random, Rungs(min=1, max=40)),
    "`Population(16, 2)`": Way(_random, Population(size=_SIZE, every=2, max=40)),
    "`Population(16, 5)`": Way(_random, Population(size=_SIZE, every=5, max=40)),
}


def main() -> str:
    """The table as Markdown."""
    warnings.simplefilter("ignore")
    seeds = int(os.environ.get("POPULATION_SEEDS", "10"))
    names = os.environ.get("POPULATION_TASKS", "sphere noise digits breast_cancer").split()
    lines = [
        _METHOD.format(seeds=seeds),
        "| task | method | loss | ratio to random search | epochs to the target |",
        "|---|---|--:|--:|--:|",
    ]
    return "\n".join(lines + [line for name in names for line in _rows(name, seeds)])


def _rows(name: str, seeds: int) -> list[str]:
    found: dict[str, list[Trained]] = {}
    trained = task(name)
    for way in WAYS:
        if way == _COSINE and "rate" not in trained.space:
            continue
        found[way] = [search(trained, WAYS[way], size=_SIZE, seed=seed) for seed in range(seeds)]
        if all(one.schedule for one in found[way]):
            found[f"{way}, replayed, {trained.epochs} epochs"] = _replays(trained, found[way])
        print(f"{name}, {way}: {[round(one.judged, 4) for one in found[way]]}", file=sys.stderr, flush=True)
    target = statistics.median(one.best[-1] for one in found[_RANDOM])
    return [_row(name, way, mine, found[_RANDOM], target) for way, mine in found.items()]


def _replays(trained: Task, found: Sequence[Trained]) -> list[Trained]:
    return [replayed(trained, one.schedule, seed=seed) for seed, one in enumerate(found) if one.schedule is not None]


def _row(name: str, way: str, mine: Sequence[Trained], base: Sequence[Trained], target: float) -> str:
    loss = statistics.median(one.judged for one in mine)
    firsts = [next((count for count, best in enumerate(one.best, 1) if best <= target), math.inf) for one in mine]
    median = statistics.median(firsts)
    reached = f"{'never' if median == math.inf else f'{median:.0f}'} ({sum(one < math.inf for one in firsts)})"
    return f"| {name} | {way} | {loss:.4f} | {_ratio(mine, base)} | {reached} |"


def _ratio(mine: Sequence[Trained], base: Sequence[Trained]) -> str:
    if mine is base:
        return "1"
    ratios = [math.log(one.judged / other.judged) for one, other in zip(mine, base, strict=True)]
    numbers = random.Random(1)
    means = [statistics.fmean(numbers.choices(ratios, k=len(ratios))) for _ in range(_RESAMPLED)]
    low, high = np.quantile(means, [0.05, 0.95])
    return f"{math.exp(statistics.fmean(ratios)):.2f} ({math.exp(low):.2f} to {math.exp(high):.2f})"
