"""Which of some candidates to try next, when few trials are known and many run: a Gaussian process over their ranks.

Tree-structured Parzen estimators compare densities, and need some hundred trials until the better ones have a shape.
A Gaussian process learns from each trial, the running ones included: they make their surroundings certain, so that
peers which ask at the same time go to different places (kriging believer; Ginsbourger et al., 2010).

It sees ranks, as normal scores, and not values: it does not matter how an objective is scaled, and a few huge losses do
no harm. Pruned and infeasible trials have ranks too. The kernel is Matern's with 5/2, with a length per parameter;
lengths and noise are those under which the trials are likeliest, with a prior.

Numpy alone is needed, and all of it in pieces that BLAS computes on one core: its threads would wait for each other on
a machine that trains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from hopaas_p2p.analysis.table import Floats, Ints

MOST: Final = 200
"""Of more trials, the best half of this number is taken, and as many of the others, spread evenly over their ranks."""
_FITTED: Final = 100  # trials that the lengths are fitted to
_SWEEPS: Final = 2
_STEP: Final = 2.0  # factor by which a length is tried longer and shorter
_NOISE_STEP: Final = 3.0
_FIRST_LENGTH: Final = 1.0
_FIRST_NOISE: Final = 0.05
_LENGTHS: Final = (0.1, 16.0)
_NOISES: Final = (1e-3, 1.0)
_WIDTH: Final = 1.5  # standard deviation of the prior of a length, as a logarithm
_OPTIMISM: Final = 1.0  # standard deviations: measured with 0.5, 1 and 1.7 on the tables of tests/benchmarks
_SMALLEST: Final = 1e-9
_BLOCK: Final = 24
_ALONE: Final = 250_000  # multiplications in a product that OpenBLAS does without threads: 4 * 65536
_STEPS: Final = (-7.0, -1.7)  # of a local move, as powers of two of the range


class Lengths(NamedTuple):
    """How quickly the objective changes with each parameter."""

    scales: Floats
    noise: float
    trials: int
    """How many were known when this was fitted."""


class Cube:
    """A search space as places from 0 to 1; a choice is as far from each other choice as 0 is from 1."""

    def __init__(self, space: Mapping[str, BaseDistribution]) -> None:
        self.space = dict(space)
        self._choices = [isinstance(one, CategoricalDistribution) for one in space.values()]

    def points(self, values: Mapping[str, Floats]) -> Floats:
        """A row per configuration, given in Optuna's internal representation."""
        return np.array([_places(one, values[name]) for name, one in self.space.items()]).T

    def squares(self, left: Floats, right: Floats) -> list[Floats]:
        """Of each parameter the squared distances between rows of `left` and rows of `right`."""
        found = []
        for place, choice in enumerate(self._choices):
            gaps = left[:, place, None] - right[None, :, place]
            found.append((gaps != 0).astype(np.float64) if choice else gaps * gaps)
        return found

    def anywhere(self, numbers: np.random.RandomState, count: int) -> dict[str, Floats]:
        """Configurations drawn evenly."""
        return {name: _values(one, numbers.uniform(size=count)) for name, one in self.space.items()}

    def nearby(self, numbers: np.random.RandomState, best: Mapping[str, Floats], count: int) -> dict[str, Floats]:
        """Configurations that differ from one of these in a single parameter, by a step of any size."""
        chosen = numbers.randint(len(next(iter(best.values()))), size=count)
        moved = numbers.randint(len(self.space), size=count)
        found = {}
        for place, (name, one) in enumerate(self.space.items()):
            found[name] = best[name][chosen].astype(np.float64)
            rows = np.flatnonzero(moved == place)
            found[name][rows] = _moved(one, found[name][rows], numbers)
        return found


def _range(one: BaseDistribution) -> tuple[float, float]:
    assert isinstance(one, FloatDistribution | IntDistribution)
    low, high = float(one.low), float(one.high)
    return (math.log(low), math.log(high)) if one.log else (low, high)


def _places(one: BaseDistribution, values: Floats) -> Floats:
    if isinstance(one, CategoricalDistribution):
        return values
    low, high = _range(one)
    assert isinstance(one, FloatDistribution | IntDistribution)
    scaled = np.log(np.maximum(values, 1e-300)) if one.log else values
    return np.asarray(np.clip((scaled - low) / ((high - low) or 1.0), -1.0, 2.0))


def _values(one: BaseDistribution, places: Floats) -> Floats:
    """The values at places from 0 to 1, each cell of a stepped number as likely as any other."""
    if isinstance(one, CategoricalDistribution):
        return np.asarray(np.floor(np.minimum(places, 1 - _SMALLEST) * len(one.choices)))
    assert isinstance(one, FloatDistribution | IntDistribution)
    half = 0.0 if one.step is None else one.step / 2
    low, high = float(one.low) - half, float(one.high) + half
    scaled = np.exp(math.log(low) + places * math.log(high / low)) if one.log else low + places * (high - low)
    return _rounded(one, scaled)


def _rounded(one: FloatDistribution | IntDistribution, values: Floats) -> Floats:
    if one.step is not None:
        values = one.low + np.round((values - one.low) / one.step) * one.step
    return np.asarray(np.clip(values, one.low, one.high))


def _moved(one: BaseDistribution, values: Floats, numbers: np.random.RandomState) -> Floats:
    if isinstance(one, CategoricalDistribution):
        steps = numbers.randint(1, max(2, len(one.choices)), size=len(values))
        return np.asarray((values + steps) % len(one.choices))
    assert isinstance(one, FloatDistribution | IntDistribution)
    low, high = _range(one)
    far = numbers.normal(size=len(values)) * 2.0 ** numbers.uniform(*_STEPS, size=len(values)) * (high - low)
    scaled = (np.log(values) if one.log else values) + far
    new = _rounded(one, np.exp(np.clip(scaled, low, high)) if one.log else scaled)
    if one.step is None:
        return new
    stayed = new == values
    new[stayed] += one.step * np.where(far[stayed] < 0, -1, 1)
    beyond = (new < one.low) | (new > one.high)
    new[beyond] = 2 * values[beyond] - new[beyond]
    return _rounded(one, new)


def chosen(count: int) -> Ints:
    """Which of so many trials, by rank, the process learns from."""
    if count <= MOST:
        return np.arange(count)
    half = MOST // 2
    others = half + ((np.arange(MOST - half) + 0.5) * (count - half) / (MOST - half)).astype(np.int64)
    return np.concatenate([np.arange(half), others])


def scores(ranks: Ints, count: int) -> Floats:
    """What these ranks of so many trials would be if they were normally distributed; the best is the lowest."""
    normal = NormalDist()
    return np.array([normal.inv_cdf((rank + 0.5) / count) for rank in ranks.tolist()])


def _kernel(squares: Sequence[Floats], lengths: Floats) -> Floats:
    far = np.zeros_like(squares[0])
    for one, length in zip(squares, lengths.tolist(), strict=True):
        far += one * (5 / length**2)
    np.sqrt(far, out=far)
    return np.asarray((1 + far + far * far / 3) * np.exp(-far))


def _eliminated(kernel: Floats, noise: float, right: Floats) -> tuple[Floats, Floats]:
    """X of L x = `right`, where L is the lower Cholesky factor of `kernel` with the noise; and the diagonal of L."""
    size = len(kernel)
    rest = np.concatenate([kernel, right], axis=1)
    rest[np.arange(size), np.arange(size)] += noise
    solved, diagonal = np.empty_like(right), np.empty(size)
    strip = max(1, _ALONE // (_BLOCK * rest.shape[1]))
    for start in range(0, size, _BLOCK):
        end = min(start + _BLOCK, size)
        root = np.linalg.cholesky(rest[start:end, start:end])
        diagonal[start:end] = np.diag(root)
        inverse = np.linalg.inv(root)
        top = np.concatenate([inverse @ part for part in _pieces(rest[start:end, end:])], axis=1)
        solved[start:end] = top[:, size - end :]
        for row in range(end, size, strip):
            to = min(row + strip, size)
            rest[row:to, end:] -= top[:, row - end : to - end].T @ top
    return solved, diagonal


def _pieces(wide: Floats) -> list[Floats]:
    columns = _ALONE // _BLOCK**2
    return [wide[:, at : at + columns] for at in range(0, wide.shape[1], columns)]


def fit(squares: Sequence[Floats], found: Floats, count: int, start: Lengths | None = None) -> Lengths:
    """The lengths and the noise under which these scores are likely, from those that were found before.

    Args:
        squares: of the distances between the trials, per parameter.
        found: their scores.
        count: of the trials that are known.
        start: what was found with fewer trials.

    """
    if len(found) > _FITTED:
        some = ((np.arange(_FITTED) + 0.5) * len(found) / _FITTED).astype(np.int64)
        squares, found = [one[some][:, some] for one in squares], found[some]
    lengths = np.full(len(squares), _FIRST_LENGTH) if start is None else start.scales.copy()
    noise = _FIRST_NOISE if start is None else start.noise
    best = _likelihood(squares, found, lengths, noise)
    for _ in range(_SWEEPS):
        for place in range(len(lengths)):
            for factor in (1 / _STEP, _STEP):
                other = lengths.copy()
                other[place] *= factor
                if _LENGTHS[0] <= other[place] <= _LENGTHS[1]:
                    likely = _likelihood(squares, found, other, noise)
                    if likely > best:
                        best, lengths = likely, other
        for factor in (1 / _NOISE_STEP, _NOISE_STEP):
            if _NOISES[0] <= noise * factor <= _NOISES[1]:
                likely = _likelihood(squares, found, lengths, noise * factor)
                if likely > best:
                    best, noise = likely, noise * factor
    return Lengths(lengths, noise, count)


def _likelihood(squares: Sequence[Floats], found: Floats, lengths: Floats, noise: float) -> float:
    """Of the scores, with the variance that suits them, and of the lengths: a logarithm but for a constant."""
    whitened, diagonal = _eliminated(_kernel(squares, lengths), noise, found[:, None])
    scale = max(_SMALLEST, float((whitened**2).sum())) / len(found)
    prior = float((np.log(lengths / _FIRST_LENGTH) ** 2).sum()) / (2 * _WIDTH**2)
    return -len(found) * math.log(scale) / 2 - float(np.log(diagonal).sum()) - prior


class Surrogate:
    """What some trials say of all configurations.

    Args:
        cube: the search space.
        points: of the trials that are known, the best first.
        found: their scores.
        running: points of the trials that run.
        count: of all trials that are known.
        lengths: what was found before; they are fitted anew once there are a third more trials.

    """

    def __init__(
        self, cube: Cube, points: Floats, found: Floats, running: Floats, *, count: int, lengths: Lengths | None
    ) -> None:
        self._cube, self._found = cube, found
        self._points = np.concatenate([points, running])
        known = len(points)
        self._squares = cube.squares(self._points, self._points)
        if lengths is None or count > 1.3 * lengths.trials + 2:
            lengths = fit([one[:known, :known] for one in self._squares], found, count, lengths)
        self.lengths = lengths

    def costs(self, points: Floats) -> Floats:
        """How bad each configuration would be if one is optimistic: the lowest is the one to try.

        The running trials are known by place only, and come last: what is expected rests on the rows of the others.
        """
        known, scales = len(self._found), self.lengths.scales
        kernel = _kernel(self._squares, scales)
        near = _kernel(self._cube.squares(self._points, points), scales)
        scored = np.concatenate([self._found, np.zeros(len(self._points) - known)])
        solved, _ = _eliminated(kernel, self.lengths.noise, np.concatenate([near, scored[:, None]], axis=1))
        mean = (solved[:known, :-1] * solved[:known, -1:]).sum(axis=0)
        left = 1 - (solved[:, :-1] ** 2).sum(axis=0)
        return np.asarray(mean - _OPTIMISM * np.sqrt(np.maximum(left, _SMALLEST)))


def joined(parts: Sequence[Mapping[str, NDArray[np.float64]]]) -> dict[str, Floats]:
    """The configurations of all these."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
