"""A Gaussian process over ranks, which chooses the next candidate when few trials are known and many are running.

A tree-structured Parzen estimator compares densities, and needs about a hundred trials to estimate the density of the
better ones. A Gaussian process learns from every trial. Even a running trial reduces the uncertainty around it, so
peers that ask at the same time explore different regions (kriging believer; Ginsbourger et al., 2010).

The process is fitted to normal scores of ranks instead of values, so the scale of an objective does not matter, and a
few huge losses do no harm. Pruned and infeasible trials have ranks, too. Trials that are close together share their
weight in the ranks (declustering; Deutsch and Journel, GSLIB, 1998). Otherwise the many trials around the best one
would fill all ranks, from the best to the worst, and the search would stay there. Every second trial must go where the
process is uncertain.

The kernel is Matern 5/2, with a length per parameter; the lengths and the noise maximize the likelihood of the trials
times a prior of the lengths.

The score that an earlier study predicts for a configuration (`search.priors`) is a feature of the process's mean, with
a coefficient fitted to the trials. The likelihood of the trials' order under each prior gives the probability that this
prior applies, or that none does.

The code needs only numpy. Its matrix products are kept so small that BLAS stays on one core, because on a busy training
machine the threads of BLAS would wait for each other.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Any, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from hopaas_p2p.analysis.table import Floats, Ints

MOST: Final = 200
"""The most trials that a process is fitted to. If there are more, half of them are the best, and the others are spread
evenly over the remaining ranks."""
_FITTED: Final = 100  # trials to which the lengths are fitted
_SWEEPS: Final = 2
_STEP: Final = 2.0  # the factor for trying a longer and a shorter length
_NOISE_STEP: Final = 3.0
_FIRST_LENGTH: Final = 1.0
_FIRST_NOISE: Final = 0.05
_LENGTHS: Final = (0.1, 16.0)
_NOISES: Final = (1e-3, 1.0)
_WIDTH: Final = 1.5  # standard deviation of the prior of a length, as a logarithm
_CROWDED: Final = 0.25  # of a length; trials that are closer than this share their weight
_UNKNOWN: Final = 2.0  # times the noise; every second trial goes where the remaining variance is at least this
_OPTIMISM: Final = 1.0  # standard deviations; the best of 0.5, 1 and 1.7 on the tables of tests/benchmarks
CONSTANT: Final = 4.0
"""The prior variance of a process's mean. It is large, because trials cluster where results are good, and so reveal
little about the mean."""
_SPREAD: Final = 0.5  # standard deviation of a prior's coefficient, whose mean is 1
_COEFFICIENTS: Final = np.array([CONSTANT, _SPREAD**2])  # variances of the constant and of the priors' coefficient
_FIRST_OPTIMISM: Final = 0.2  # with priors but no result yet; more would lead a first wave too far from the priors
_NONE: Final = 0.02  # probability before the first trial that no prior applies; a wrong prior is as good as random
_LONE: Final = 2 / 3  # the same if there is a single prior, which may be a wrong belief
_SHARP: Final = 2.0  # weight of the evidence from the trials' order
_TOGETHER: Final = 0.95  # fraction of the asks with priors that use the mean of all, if the priors are alike
_APART: Final = 0.1  # the factor for that fraction if the priors have nothing in common
_ALIKE: Final = 0.3  # mean correlation from which on priors are alike; unrelated problems have 0.05, related ones 0.3
_DOUBT: Final = 5.0  # trials; with priors, ranks among this many count half
_FADES: Final = 6.0  # trials; with this many, priors count half
_QUIET: Final = 0.05  # the most noise with priors; with more, trials could not overrule the priors
_SMALLEST: Final = 1e-9
_LAST: Final = 1e3  # more than any cost
_BLOCK: Final = 24
_FEW: Final = 32  # trials; up to this many, the factor is inverted
_FEW_CHOICES: Final = 64  # choices of all parameters together
_ALONE: Final = 250_000  # multiplications in a product; OpenBLAS uses no threads up to 4 * 65536
_STEPS: Final = (-7.0, -1.7)  # of a local move, as powers of two of the range


_Reals = NDArray[np.floating[Any]]


class Lengths(NamedTuple):
    """How quickly the objective changes with each parameter."""

    scales: Floats
    noise: float
    trials: int
    """The number of known trials when the lengths were fitted."""

    def quiet(self) -> Lengths:
        """The same lengths, with the noise limited for use with priors."""
        return self._replace(noise=min(self.noise, _QUIET))


def first_lengths(parameters: int) -> Lengths:
    """The lengths to assume before there are trials."""
    return Lengths(np.full(parameters, _FIRST_LENGTH), _FIRST_NOISE, 0)


class Cube:
    """A search space with each value mapped to a place from 0 to 1. Two different choices have distance 1.

    Args:
        space: the search space.
        coded: the parameters whose choices have features, by default all. The others must have an infinite length.

    """

    def __init__(self, space: Mapping[str, BaseDistribution], coded: Container[str] | None = None) -> None:
        self.space = dict(space)
        self._choices = [isinstance(one, CategoricalDistribution) for one in space.values()]
        self._numbers = np.flatnonzero(~np.array(self._choices, np.bool_))
        some = [one if coded is None or name in coded else None for name, one in space.items()]
        counts = [len(one.choices) + 1 if isinstance(one, CategoricalDistribution) else 0 for one in some]
        self._owners = np.repeat(np.arange(len(counts)), counts)
        """The parameter of each code. The first code of each parameter is for choices outside the space, whose index is
        -1."""
        self._codes = np.array([code for count in counts for code in range(-1, count - 1)])

    def points(self, values: Mapping[str, Floats]) -> Floats:
        """One row per configuration, given in Optuna's internal representation."""
        return np.array([_places(one, values[name]) for name, one in self.space.items()]).T

    def squares(self, left: Floats, right: Floats) -> list[Floats]:
        """For each parameter, the squared distances between rows of `left` and rows of `right`."""
        found = []
        for place, choice in enumerate(self._choices):
            gaps = left[:, place, None] - right[None, :, place]
            found.append((gaps != 0).astype(np.float64) if choice else gaps * gaps)
        return found

    def near(self, left: Floats, right: Floats, lengths: Floats) -> Floats:
        """The kernel between rows of `left` and rows of `right`."""
        if len(self._codes) > _FEW_CHOICES:  # a product of so many features takes longer
            return kernel(self.squares(left, right), lengths)
        return np.concatenate(list(correlations(self.multipliers(left, lengths), self.features(right))), axis=1)

    def features(self, points: Floats) -> Floats:
        """A row per configuration. Its product with a row of `multipliers` is five times the squared distance."""
        numbers = points[:, self._numbers]
        chosen = points[:, self._owners] == self._codes
        return np.concatenate([np.ones((len(points), 1)), numbers, numbers**2, chosen], axis=1)

    def multipliers(self, points: Floats, scales: Floats) -> Floats:
        """A row per configuration. Its product with a row of `features` is five times the squared distance, in
        lengths.
        """
        factors = 5 / scales**2
        numbers, weights = points[:, self._numbers], factors[self._numbers]
        constant = (weights * numbers**2).sum(axis=1, keepdims=True)
        others = (points[:, self._owners] != self._codes) * factors[self._owners]
        return np.concatenate(
            [constant, -2 * weights * numbers, np.broadcast_to(weights, numbers.shape), others], axis=1
        )

    def anywhere(self, numbers: np.random.RandomState, count: int) -> dict[str, Floats]:
        """Configurations drawn uniformly."""
        return {name: values_at(one, numbers.uniform(size=count)) for name, one in self.space.items()}

    def nearby(self, numbers: np.random.RandomState, best: Mapping[str, Floats], count: int) -> dict[str, Floats]:
        """Configurations that differ from one of these in a single parameter, by steps of various sizes."""
        chosen = numbers.randint(len(next(iter(best.values()))), size=count)
        moved = numbers.randint(len(self.space), size=count)
        found = {}
        for place, (name, one) in enumerate(self.space.items()):
            found[name] = best[name][chosen].astype(np.float64)
            rows = np.flatnonzero(moved == place)
            found[name][rows] = _moved(one, found[name][rows], numbers)
        return found


def range_of(one: BaseDistribution) -> tuple[float, float]:
    """The bounds of a number's range, as logarithms if it has a logarithmic scale."""
    assert isinstance(one, FloatDistribution | IntDistribution)
    low, high = float(one.low), float(one.high)
    return (math.log(low), math.log(high)) if one.log else (low, high)


def _places(one: BaseDistribution, values: Floats) -> Floats:
    if isinstance(one, CategoricalDistribution):
        return values
    low, high = range_of(one)
    assert isinstance(one, FloatDistribution | IntDistribution)
    scaled = np.log(np.maximum(values, 1e-300)) if one.log else values
    return _within((scaled - low) / ((high - low) or 1.0), -1.0, 2.0)


def values_at(one: BaseDistribution, places: Floats) -> Floats:
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
    return _within(values, one.low, one.high)


def _within(values: Floats, low: float, high: float) -> Floats:
    return np.asarray(np.minimum(np.maximum(values, low), high))  # np.clip takes longer for a few


def _moved(one: BaseDistribution, values: Floats, numbers: np.random.RandomState) -> Floats:
    if isinstance(one, CategoricalDistribution):
        steps = numbers.randint(1, max(2, len(one.choices)), size=len(values))
        return np.asarray((values + steps) % len(one.choices))
    assert isinstance(one, FloatDistribution | IntDistribution)
    low, high = range_of(one)
    far = numbers.normal(size=len(values)) * 2.0 ** numbers.uniform(*_STEPS, size=len(values)) * (high - low)
    scaled = (np.log(values) if one.log else values) + far
    new = _rounded(one, np.exp(_within(scaled, low, high)) if one.log else scaled)
    if one.step is None:
        return new
    stayed = new == values
    new[stayed] += one.step * np.where(far[stayed] < 0, -1, 1)
    beyond = (new < one.low) | (new > one.high)
    new[beyond] = 2 * values[beyond] - new[beyond]
    return _rounded(one, new)


def chosen(count: int) -> Ints:
    """Which of `count` trials, by rank, the process learns from."""
    if count <= MOST:
        return np.arange(count)
    half = MOST // 2
    others = half + ((np.arange(MOST - half) + 0.5) * (count - half) / (MOST - half)).astype(np.int64)
    return np.concatenate([np.arange(half), others])


def scores(ranks: Ints, count: int) -> Floats:
    """Normal scores for these ranks among `count` trials; the best has the lowest."""
    return _normal((ranks + 0.5) / count)


def declustered(near: Floats, count: int) -> Floats:
    """Normal scores of the trials that are `chosen`, the best first. Trials that are close together share their weight.

    Half of a weight is cut off at either end of the ranks.

    Args:
        near: how close each trial is to each other trial, from 0 to 1.
        count: the number of all trials.

    """
    stands_for = np.diff(chosen(count), append=count)
    weights = stands_for / (near @ stands_for)
    total = max(1.0, float(weights.sum()))
    return _normal(np.clip((np.cumsum(weights) - weights / 2) / total, 0.5 / total, 1 - 0.5 / total))


def _normal(fractions: Floats) -> Floats:
    normal = NormalDist()
    return np.array([normal.inv_cdf(one) for one in fractions.tolist()])


def kernel(squares: Sequence[Floats], lengths: Floats) -> Floats:
    """The Matern 5/2 kernel, from squared distances per parameter."""
    far = np.zeros_like(squares[0])
    for one, length in zip(squares, lengths.tolist(), strict=True):
        far += one * (5 / length**2)
    return _matern(far)


def correlations(multipliers: _Reals, features: _Reals) -> Iterator[Any]:
    """The Matern 5/2 kernel, with a row per multiplier and a column per configuration (`Cube.features`), in blocks."""
    step = max(1, _ALONE // (multipliers.size or 1))
    for at in range(0, len(features) or 1, step):
        far = multipliers @ features[at : at + step].T
        yield _matern(np.maximum(far, 0, out=far))


def _matern(far: Floats) -> Floats:
    """The Matern 5/2 kernel, from five times the squared distances, which are overwritten."""
    near = far / 3
    np.sqrt(far, out=far)
    near += far
    near += 1
    np.negative(far, out=far)
    near *= np.exp(far, out=far)
    return near


def _eliminated(kernel: Floats, noise: float, right: Floats) -> tuple[Floats, Floats]:
    """The solution x of L x = `right`, and the diagonal of L, the lower Cholesky factor of `kernel` with the noise."""
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
    columns = _ALONE // _FEW**2
    return [wide[:, at : at + columns] for at in range(0, wide.shape[1], columns)]


def fit(
    squares: Sequence[Floats], found: Floats, count: int, start: Lengths | None = None, shared: Floats | None = None
) -> Lengths:
    """Lengths and noise that make these scores likely, starting from earlier ones.

    Args:
        squares: squared distances between the trials, per parameter.
        found: the trials' scores.
        count: the number of known trials.
        start: the result with fewer trials.
        shared: what the priors add to the covariance of the trials.

    """
    if len(found) > _FITTED:
        some = ((np.arange(_FITTED) + 0.5) * len(found) / _FITTED).astype(np.int64)
        squares, found = [one[some][:, some] for one in squares], found[some]
        shared = None if shared is None else shared[some][:, some]
    first = start or first_lengths(len(squares))
    values = np.append(np.clip(first.scales, *_LENGTHS), first.noise)
    best = _likelihood(squares, found, values[:-1], values[-1], shared)
    for place in [*range(len(values))] * _SWEEPS:
        (low, high), step = (_NOISES, _NOISE_STEP) if place == len(squares) else (_LENGTHS, _STEP)
        for factor in (1 / step, step):
            other = values.copy()
            other[place] *= factor
            if low <= other[place] <= high:
                likely = _likelihood(squares, found, other[:-1], other[-1], shared)
                if likely > best:
                    best, values = likely, other
    return Lengths(values[:-1], float(values[-1]), count)


def _likelihood(
    squares: Sequence[Floats], found: Floats, lengths: Floats, noise: float, shared: Floats | None
) -> float:
    """The log likelihood of the scores under the best variance, plus the log prior of the lengths, up to a constant."""
    covariance = kernel(squares, lengths)
    if shared is not None:
        covariance += shared
    whitened, diagonal = _eliminated(covariance, noise, found[:, None])
    scale = max(_SMALLEST, float((whitened**2).sum())) / len(found)
    prior = float((np.log(lengths / _FIRST_LENGTH) ** 2).sum()) / (2 * _WIDTH**2)
    return -len(found) * math.log(scale) / 2 - float(np.log(diagonal).sum()) - prior


class Process(NamedTuple):
    """Predicts the score of any configuration from the trials of one study, with a constant mean learned from them.

    Most trials of a search are where results are good, so their average is not typical of the rest of the space. In
    ordinary kriging (Cressie, 1993, section 3.2), trials that are close together count less for the mean.
    """

    rows: Floats
    """For each trial, the factors by which `Cube.features` of a configuration are multiplied."""
    weights: Floats
    mean: float

    @classmethod
    def of(cls, cube: Cube, points: Floats, found: Floats, lengths: Lengths) -> Self:
        """The process of trials with these scores."""
        size = len(found)
        rows = cube.multipliers(points, lengths.scales)
        covariance = np.concatenate(list(correlations(rows, cube.features(points))), axis=1)
        solved, _ = _eliminated(covariance, lengths.noise, np.column_stack([np.eye(size), np.ones(size), found]))
        whiten, ones, scored = solved[:, :size], solved[:, size], solved[:, size + 1]
        mean = float(ones @ scored / (ones @ ones + 1 / CONSTANT))
        return cls(rows, (scored - mean * ones) @ whiten, mean)


class Processes:
    """Several processes over one space, evaluated together, because the calls of numpy cost more than the arithmetic.

    Single precision takes half the time of double, and changes a score by less than 1e-4.
    """

    def __init__(self, processes: Sequence[Process]) -> None:
        ends = np.cumsum([len(one.rows) for one in processes]).tolist()
        self._rows = np.concatenate([one.rows for one in processes]).astype(np.float32)
        self._weights = np.zeros((len(processes), len(self._rows)), np.float32)
        for place, (one, end) in enumerate(zip(processes, ends, strict=True)):
            self._weights[place, end - len(one.rows) : end] = one.weights
        self._means = np.array([one.mean for one in processes])

    def means(self, features: Floats, mixture: Floats) -> Floats:
        """The scores that a mixture (a weight per process) predicts for configurations. Several mixtures are
        columns.
        """
        weights = (mixture.T @ self._weights).astype(np.float32)
        found = [weights @ near for near in correlations(self._rows, features.astype(np.float32))]
        return np.asarray(np.concatenate(found, axis=-1).T + self._means @ mixture)


class Trust(NamedTuple):
    """How strongly the trials of a study support each prior."""

    weights: Floats
    """The coefficient of the score that each prior predicts; 0 if the prior is ignored."""
    mixtures: Floats
    """One hypothesis per row, as weights of the priors. The rows are that none applies, the mean of all, and each
    single one."""
    chances: Floats
    """How likely each row is."""

    def drawn(self, number: float) -> Floats | None:
        """One of the mixtures, chosen by a random number from 0 to 1; None if the choice is that no prior applies.

        Each mixture is drawn with the probability that it is right (Thompson, Biometrika, 1933). While that is
        uncertain, peers that ask at the same time follow different priors, without knowing what the others drew.
        """
        place = int(np.searchsorted(np.cumsum(self.chances)[:-1], number, side="right"))
        return self.mixtures[place] if place else None


class Hypotheses:
    """The hypotheses about some priors, and how likely each is before the first trial.

    Args:
        elsewhere: the scores that each prior (a column) predicts for evenly spread configurations. If the priors agree
            there, their mean is more likely to be right than any one of them.

    """

    def __init__(self, elsewhere: Floats) -> None:
        priors = elsewhere.shape[1]
        self._mixtures = np.concatenate([np.zeros((1, priors)), np.full((1, priors), 1 / priors), np.eye(priors)])
        none, together = _LONE, 1.0
        if priors > 1:
            ratio = float(elsewhere.mean(axis=1).var() / (elsewhere.var(axis=0).mean() or 1.0))
            correlation = (priors * ratio - 1) / (priors - 1)  # the mean over pairs of priors
            alike = min(1.0, max(_APART, correlation / _ALIKE))
            none, together = _NONE, _TOGETHER * alike
        self._before = np.array([none, *(1 - none) * np.array([together, *[(1 - together) / priors] * priors])])

    def trust(self, means: Floats) -> Trust:
        """How well each hypothesis agrees with the trials, by the likelihood of their order under its predicted scores.

        The likelihood is that of the Plackett-Luce model (Luce, Individual Choice Behavior, 1959). It does not depend
        on how far apart the trials are, because most of them were chosen for the good score that a prior predicts.

        Args:
            means: the score that each prior (a column) predicts for each trial, the best trial first.

        """
        appeal = -_SHARP * means @ self._mixtures.T
        logs = (appeal - np.logaddexp.accumulate(appeal[::-1])[::-1]).sum(axis=0)
        chances = self._before * np.exp(logs - logs.max())
        chances /= chances.sum()
        return Trust(fading(len(means)) * chances @ self._mixtures, self._mixtures, chances)


def agreement(means: Floats) -> Floats:
    """The fraction of pairs of trials that each prior ranks correctly; 0.5 is chance. The best trial is first."""
    first, second = np.triu_indices(len(means), 1)
    if not len(first):
        return np.full(means.shape[1], 0.5)
    return np.asarray(0.5 - 0.5 * np.sign(means[first] - means[second]).mean(axis=0))


def fading(count: int) -> float:
    """The weight of priors in a study with this many trials."""
    return _FADES / (_FADES + count)


def doubted(found: Floats) -> Floats:
    """Smaller scores, for use with priors, because a rank among few trials reveals little about the rank among all."""
    return found * (len(found) / (len(found) + _DOUBT))


class Surrogate:
    """The predictions of some trials for all configurations.

    Args:
        cube: the search space.
        points: the points of the known trials, the best first.
        found: the scores of those trials.
        running: points of the running trials.
        count: the number of all known trials.
        lengths: the lengths of the last fit, which is repeated once there are about a third more trials.
        expected: the scores that the priors predict for `points` and `running`; None if no prior applies.

    """

    def __init__(
        self,
        cube: Cube,
        points: Floats,
        found: Floats,
        running: Floats,
        *,
        count: int,
        lengths: Lengths | None,
        expected: Floats | None = None,
    ) -> None:
        self._cube, self._fade = cube, fading(len(found))
        self._points = np.concatenate([points, running])
        known = len(points)
        self._explores = (count + len(running)) % 2 == 1
        if lengths is not None:
            found = declustered(cube.near(points, points, _CROWDED * lengths.scales), count)
        self._features, self._found = None, found
        shared = None
        if expected is not None:
            assert lengths is not None
            self._features = self._featured(expected)
            self._found = doubted(found) - self._features[:known, 1]
            shared = (self._features * _COEFFICIENTS) @ self._features.T
            lengths = lengths.quiet()
        if known and (lengths is None or count > 1.3 * lengths.trials + 2):
            squares = cube.squares(points, points)
            lengths = fit(squares, self._found, count, lengths, None if shared is None else shared[:known, :known])
            lengths = lengths if expected is None else lengths.quiet()
        self._whiten: Floats | None = None
        self.lengths = lengths or first_lengths(len(cube.space))
        self._kernel = cube.near(self._points, self._points, self.lengths.scales)
        if shared is not None:
            self._kernel += shared

    def _featured(self, expected: Floats) -> Floats:
        return np.column_stack([np.ones(len(expected)), self._fade * expected])

    def _whitened(self, right: Floats) -> Floats:
        """The first result of `_eliminated`. With few trials, the factor is inverted once, because it is used several
        times.
        """
        size = len(self._kernel)
        if size > _FEW:
            return _eliminated(self._kernel, self.lengths.noise, right)[0]
        if self._whiten is None:
            self._whiten = np.linalg.inv(np.linalg.cholesky(self._kernel + self.lengths.noise * np.eye(size)))
        return np.concatenate([self._whiten @ part for part in _pieces(right)], axis=1)

    def costs(self, points: Floats, expected: Floats | None = None) -> Floats:
        """An optimistic cost of each configuration. The configuration with the lowest cost is tried.

        Running trials have no score yet. They are the last rows, and only the rows before them predict scores.
        `expected` has the score that the priors predict for each point; None if no prior applies.
        """
        known = len(self._found)
        near = self._cube.near(self._points, points, self.lengths.scales)
        mean, left, optimism = np.zeros(len(points)), np.ones(len(points)), _OPTIMISM
        if self._features is not None:
            assert expected is not None
            features = self._featured(expected)
            near += (self._features * _COEFFICIENTS) @ features.T
            mean, left = features[:, 1], 1 + features**2 @ _COEFFICIENTS
            optimism = _OPTIMISM if known else _FIRST_OPTIMISM
        scored = np.concatenate([self._found, np.zeros(len(self._points) - known)])
        solved = self._whitened(np.concatenate([near, scored[:, None]], axis=1))
        mean = mean + (solved[:known, :-1] * solved[:known, -1:]).sum(axis=0)
        left = left - (solved[:, :-1] ** 2).sum(axis=0)
        costs = np.asarray(mean - optimism * np.sqrt(np.maximum(left, _SMALLEST)))
        if self._explores:
            costs[left < _UNKNOWN * self.lengths.noise] += _LAST
        return costs


def joined(parts: Sequence[Mapping[str, NDArray[np.float64]]]) -> dict[str, Floats]:
    """The configurations of all these parts."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
