"""Learning curves, recorded once by `tests.benchmarks.train_curves`, or made.

A configuration is a place in each list of `SPACE`. A curve has the value after each epoch, to minimise, and the seconds
that each epoch takes.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from tests.benchmarks.search_clock import Table

EPOCHS: Final = 50
DATA_SETS: Final = ("digits", "breast_cancer")
SPACE: Final[dict[str, tuple[Any, ...]]] = {
    "rate": (0.001, 0.003, 0.01, 0.02, 0.05, 0.1, 0.25, 0.6),
    "momentum": (0.0, 0.8, 0.95),
    "decay": (0.0, 0.001, 0.01),
    "schedule": ("constant", "cosine"),
    "batch": (16, 32, 128),
    "width": (8, 20, 48),
    "depth": (1, 2),
}
SHAPE: Final = ("batch", "width", "depth")
"""What configurations that are trained together have in common; an epoch lasts as long in all of them."""
FILE: Final = Path(__file__).with_name("curves.npz")
_LOWEST: Final = 1e-3
_STEPS: Final = 900.0  # for each factor of e: 0.1 %

Numbers = np.ndarray[Any, np.dtype[np.float64]]


def keep(losses: Any, seconds: Any) -> None:
    """Write the file: logarithms in whole steps, each epoch as the difference to the one before."""
    steps = np.rint(np.log(np.maximum(losses, _LOWEST) / _LOWEST) * _STEPS).astype(np.int32)
    differences = np.diff(steps, axis=2, prepend=0).astype(np.int16)
    shapes, index = np.unique(seconds.reshape(-1, EPOCHS), axis=0, return_inverse=True)
    np.savez_compressed(
        FILE,
        differences_low=(differences & 0xFF).astype(np.uint8),
        differences_high=(differences >> 8).astype(np.int8),
        seconds=shapes.astype(np.float32),
        shape=index.reshape(seconds.shape[:2]).astype(np.uint8),
    )


class Curves(NamedTuple):
    """A space of configurations and how each learns; a row of the arrays is a configuration."""

    sizes: dict[str, int]
    """For each parameter how many values it has."""
    values: Numbers
    seconds: Numbers

    def space(self) -> dict[str, BaseDistribution]:
        """As Optuna has it: the place of each value in its list."""
        two = CategoricalDistribution((0, 1))
        return {name: two if size == 2 else IntDistribution(0, size - 1) for name, size in self.sizes.items()}

    def row(self, params: dict[str, Any]) -> int:
        """Which configuration has these parameters."""
        return int(np.ravel_multi_index([params[name] for name in self.sizes], tuple(self.sizes.values())))

    def places(self, row: int) -> tuple[int, ...]:
        """The parameters of a configuration."""
        return tuple(int(one) for one in np.unravel_index(row, tuple(self.sizes.values())))

    def best(self, share: float) -> float:
        """The last value that this share of all configurations reaches, at least one of them."""
        return float(np.sort(self.values[:, -1])[max(1, round(share * len(self.values))) - 1])

    def regret(self, value: float) -> float:
        """How far a value is from the best, as a share of the median configuration's distance."""
        return float((value - self.best(0)) / (np.median(self.values[:, -1]) - self.best(0)))

    @property
    def training(self) -> float:
        """The seconds that it takes to train a configuration to the end, on average."""
        return float(self.seconds.sum(1).mean())


@cache
def recorded(name: str) -> Curves:
    """The curves of a data set: the cross-entropy on its validation half."""
    with np.load(FILE) as file:
        row = DATA_SETS.index(name)
        high, low = file["differences_high"][row].astype(np.int64), file["differences_low"][row]
        steps = np.cumsum((high << 8) | low, axis=1)
        seconds = file["seconds"][file["shape"][row]].astype(float)
    return Curves({name: len(values) for name, values in SPACE.items()}, _LOWEST * np.exp(steps / _STEPS), seconds)


def drawn(table: Table) -> Curves:
    """Curves to the recorded values of a large table, of which the table knows the end and the time only.

    The last value is the logarithm of the recorded one, from 0 for the best to 1 for the median. A curve falls to it
    like a power of the epoch, with an exponent and a height of its own, and with noise that fades towards the end.
    """
    names = list(table.space)
    sizes = {name: 1 + max(one[at] for one in table.records) for at, name in enumerate(names)}
    shape = tuple(sizes.values())
    last, seconds = np.full(shape, np.nan), np.ones(shape)
    for configuration, record in table.records.items():
        last[configuration], seconds[configuration] = np.log(max(record.value, 1e-12)), record.seconds
    last = np.nan_to_num(last.ravel(), nan=float(np.nanmax(last)))
    last = np.minimum((last - last.min()) / (np.median(last) - last.min()), 4.0)[:, None]
    dice, epochs = np.random.default_rng(7), np.arange(1.0, EPOCHS + 1)[None]
    exponents, heights = dice.uniform(0.5, 1.5, len(last))[:, None], dice.uniform(3.2, 6.4, len(last))[:, None]
    noise = 0.05 * dice.standard_normal((len(last), EPOCHS)) * np.linspace(1.0, 0.0, EPOCHS)
    values = last + heights * (epochs**-exponents - float(EPOCHS) ** -exponents) + noise
    return Curves(sizes, values.astype(np.float32), np.repeat((seconds.ravel() / EPOCHS)[:, None], EPOCHS, 1))


@cache
def late_bloomers(latest: int) -> Curves:
    """Curves that cross: the better a configuration is in the end, the longer it looks like the worst.

    Until it blooms, a curve stays near one, the later ones above the earlier; then it halves its distance to its last
    value with every epoch. The best blooms at epoch `latest`, the worst at once.
    """
    sizes = {"a": 8, "b": 8, "c": 6, "d": 3, "e": 2}
    axes = np.meshgrid(*(np.linspace(0, 1, size) for size in sizes.values()), indexing="ij")
    a, b, c, d, e = (axis.ravel() for axis in axes)
    bowl = (a - 0.7) ** 2 + (b - 0.3) ** 2 + 0.5 * (a - 0.7) * (b - 0.3) + 0.3 * (c - 0.4) ** 2 + 0.2 * d * a + 0.1 * e
    last = bowl + 0.02 * np.random.default_rng(1).standard_normal(len(bowl))
    rank = np.argsort(np.argsort(last)) / len(last)
    blooms = np.rint(latest * (1 - rank) ** 2)[:, None]
    last = (0.9 * (last - last.min()) / (last.max() - last.min()))[:, None]
    epochs = np.arange(1, EPOCHS + 1)[None]
    before = 1.0 - 0.001 * epochs + 0.05 * (1 - rank[:, None])
    values = np.where(epochs <= blooms, before, last + (1 - last) * 0.5 ** (epochs - blooms))
    return Curves(sizes, values, np.ones_like(values) + 0.5 * e[:, None])
