"""The density of the worse trials in the tree-structured Parzen estimator, at a cost that stays small in large studies.

Optuna's estimator (Bergstra et al., 2011; Watanabe, arXiv:2304.11127) puts a kernel on every trial: a product of
truncated normals, of their integrals over a cell for whole or stepped numbers, and of categorical distributions.
In a large study nearly every bandwidth is at its lower limit, a hundredth of the range. With one bandwidth for all, the
exponents of the normals are a matrix product, the factors of other parameters come from small tables, and what depends
on the trial alone is computed once. Where trials are many, only kernels near a candidate are looked at: those far from
it in some parameter count, all together, a trillionth of the prior at most. The few kernels that are wider, at most 200
for each parameter, are evaluated one by one.

The result differs from Optuna's by rounding only: less than 1e-9 in the logarithm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from hopaas_p2p.search.columns import Floats, Ints, Mask, TrialColumns
from hopaas_p2p.search.gauss import cell_mass, log_normal, log_range_mass

FEWEST: Final = 100
"""From so many kernels on, the prior not counted, Optuna's lower limit of a bandwidth is constant."""
_BANDWIDTHS: Final = 100.0  # the range over the lower limit
_CHUNK: Final = 1024  # rows at a time: 24 candidates fit into the second-level cache, and BLAS stays on one core
_FEW: Final = 64  # new rows that are sorted in; for more, all are sorted anew
_FLOOR: Final = -600.0  # exponents below make denormal numbers, which are slow; the prior is above for 100 parameters
_VANISHED: Final = 1e-120
_FARTHEST: Final = 1e6  # bandwidths outside the range: a place beyond would make numbers that overflow
_CUT: Final = 4096  # rows; with fewer, to choose the near ones costs more than it saves
_CERTAIN: Final = math.log(1e12)
_SELECTED: Final = 256  # rows that are near in some parameters and evaluated without a look at the others
_LARGEST_TABLE: Final = 1024  # rows; 24 candidates of it fit into the second-level cache


class Kernels(NamedTuple):
    """The trials that make the density, and how much each counts."""

    rows: Ints
    weights: Floats
    """Of the rows and, last, of the prior; they sum to 1."""


class Mixture(NamedTuple):
    """A density of a few trials as Optuna's estimator has it, the prior last."""

    weights: Floats
    kernels: Sequence[tuple[Floats, Floats] | Floats]
    """Of each parameter: centres and bandwidths, or a row of probabilities for each kernel."""


class Near(NamedTuple):
    """For each candidate the trials that are not far from it on one axis."""

    left: Floats
    right: Floats
    starts: Ints
    """Their places in the order of the axis."""
    ends: Ints


class _Axis:
    """A number: where the trials lie on it, on a logarithmic scale if it has one."""

    def __init__(self, distribution: FloatDistribution | IntDistribution, room: int) -> None:
        low, high, step = float(distribution.low), float(distribution.high), distribution.step
        self.half = 0.0 if step is None else step / 2
        self.log = distribution.log
        self.low, self.high = self.scaled(low - self.half), self.scaled(high + self.half)
        self.sigma = (self.high - self.low) / _BANDWIDTHS
        self.middle = 0.5 * (self.low + self.high)
        self.mu = np.zeros(room)
        self._placed = np.zeros(room, np.bool_)
        self._order = np.empty(0, np.int64)
        """The rows that have this parameter, by where they lie."""
        self._sorted = np.empty(0)
        """Where they lie."""

    def scaled(self, value: float) -> float:
        return float(np.log(value)) if self.log else value

    def read(self, rows: Ints, values: Floats) -> None:
        """Where these trials are now."""
        with np.errstate(divide="ignore", invalid="ignore"):  # a trial from another range
            mu = np.log(values) if self.log else values
        far = _FARTHEST * self.sigma
        mu = np.fmin(np.fmax(mu, self.low - far), self.high + far)  # also where there is no logarithm
        moved = (self.mu[rows] != mu) | ~self._placed[rows]
        self.mu[rows] = mu
        self._sort_in(rows[moved])

    def forget(self, rows: Ints) -> None:
        """These trials have no such parameter."""
        gone = rows[self._placed[rows]]
        if len(gone):
            self._placed[gone] = False
            kept = self._placed[self._order]
            self._order, self._sorted = self._order[kept], self._sorted[kept]

    def _sort_in(self, rows: Ints) -> None:
        self.forget(rows)
        self._placed[rows] = True
        if len(rows) > _FEW:
            rows = np.flatnonzero(self._placed)
            self._order = rows[np.argsort(self.mu[rows])]
            self._sorted = self.mu[self._order]
            return
        rows = rows[np.argsort(self.mu[rows])]
        places = np.searchsorted(self._sorted, self.mu[rows])
        self._order = np.insert(self._order, places, rows)
        self._sorted = np.insert(self._sorted, places, self.mu[rows])

    def span(self, points: Floats) -> tuple[Floats, Floats]:
        """Where each candidate begins and ends on the axis."""
        raise NotImplementedError

    def near(self, points: Floats, reach: float) -> Near:
        """Which trials are within so many bandwidths of each candidate."""
        left, right = self.span(points)
        left, right = left - reach * self.sigma, right + reach * self.sigma
        starts, ends = np.searchsorted(self._sorted, left), np.searchsorted(self._sorted, right, "right")
        return Near(left, right, starts, ends)

    def rows_between(self, start: int, end: int) -> Ints:
        """The rows of these places in the order of the axis."""
        return self._order[start:end]

    def wide(self, rows: Ints, chosen: Mask, *, endpoints: bool) -> tuple[Ints, Floats]:
        """Which of these rows have a bandwidth above the lower limit, as places among them, and the bandwidths.

        `chosen` is the same as a mask. Of equal values the first and the last get the bandwidth of the gap beside them.
        Which these are depends on how Optuna's sort orders equals; where that matters, it is repeated.
        """
        here = chosen[self._order]
        order = self._order[here]
        sigmas, tied = self._sorted_bandwidths(self._sorted[here], endpoints=endpoints)
        found = np.flatnonzero(sigmas > self.sigma)
        if tied[found].any():
            mu = self.mu[rows]
            order = rows[np.argsort(mu)]
            sigmas, _ = self._sorted_bandwidths(self.mu[order], endpoints=endpoints)
            found = np.flatnonzero(sigmas > self.sigma)
        return np.searchsorted(rows, order[found]), np.minimum(sigmas[found], self.high - self.low)

    def _sorted_bandwidths(self, mu: Floats, *, endpoints: bool) -> tuple[Floats, Mask]:
        """Optuna's bandwidths before they are limited, and which of the values occur more than once."""
        points = np.empty(len(mu) + 2)
        points[0], points[1:-1], points[-1] = self.low, mu, self.high
        gaps = points[1:] - points[:-1]
        sigmas = np.maximum(gaps[:-1], gaps[1:])
        if not endpoints and len(mu) > 1:
            sigmas[0], sigmas[-1] = gaps[1], gaps[-2]
        same = gaps == 0
        same[0] = same[-1] = False
        return sigmas, same[:-1] | same[1:]

    def log_kernel(self, mu: Floats, sigma: Floats, points: Floats) -> Floats:
        """The logarithm of a kernel at each candidate: a row for each kernel, a column for each candidate."""
        raise NotImplementedError


class _Normal(_Axis):
    """A real number."""

    def candidates(self, values: Floats) -> Floats:
        return np.log(values) if self.log else values

    def span(self, points: Floats) -> tuple[Floats, Floats]:
        return points, points

    def log_kernel(self, mu: Floats, sigma: Floats, points: Floats) -> Floats:
        mu, sigma = mu[:, None], sigma[:, None]
        mass = log_range_mass((self.low - mu) / sigma, (self.high - mu) / sigma)
        return log_normal((points - mu) / sigma) - np.log(sigma) - mass

    def at_edge(self, points: Floats) -> bool:
        """Whether rounding decides if a point is inside the range."""
        margin = 1e-9 * (self.high - self.low)
        return bool((points < self.low + margin).any() or (points > self.high - margin).any())


class _Cells(_Axis):
    """A whole number, or one with a step: probabilities of cells."""

    def __init__(self, distribution: FloatDistribution | IntDistribution, room: int) -> None:
        super().__init__(distribution, room)
        self.codes = np.zeros(room, np.int64)
        self.known: dict[float, int] = {}
        self._places = np.empty(0)

    def read(self, rows: Ints, values: Floats) -> None:
        super().read(rows, values)
        different, inverse = np.unique(self.mu[rows], return_inverse=True)
        codes = [self.known.setdefault(float(one), len(self.known)) for one in different]
        self.codes[rows] = np.asarray(codes, np.int64)[inverse]
        if len(self.known) > len(self._places):
            self._places = np.fromiter(self.known, np.float64)

    def span(self, points: Floats) -> tuple[Floats, Floats]:
        left, right = points - self.half, points + self.half
        return (np.log(left), np.log(right)) if self.log else (left, right)

    def table(self, values: Floats) -> Floats:
        """The kernel of each different trial (a row) at each candidate (a column), with the smallest bandwidth."""
        factors = np.exp(self.log_kernel(self._places, np.full(len(self._places), self.sigma), values))
        factors[factors < _VANISHED] = 0
        return np.ascontiguousarray(factors)

    def log_kernel(self, mu: Floats, sigma: Floats, points: Floats) -> Floats:
        different, inverse = np.unique(points, return_inverse=True)
        edges = self.span(different)
        mu, sigma = mu[:, None], sigma[:, None]
        left, right = (edges[0] - mu) / sigma, (edges[1] - mu) / sigma
        with np.errstate(divide="ignore"):
            factors = np.log(cell_mass(left, right))
        outside = ((mu < self.low) | (mu > self.high))[:, 0]  # from another range: only the far tail is inside
        factors[outside] = log_range_mass(left[outside], right[outside])
        factors -= log_range_mass((self.low - mu) / sigma, (self.high - mu) / sigma)
        return np.asarray(factors[:, inverse])


class _Choices:
    """A categorical parameter."""

    def __init__(self, distribution: CategoricalDistribution, room: int) -> None:
        self.count = len(distribution.choices)
        self.codes = np.zeros(room, np.int64)

    def read(self, rows: Ints, values: Floats) -> None:
        self.codes[rows] = values.astype(np.int64)

    def table(self, values: Floats, kernels: int, prior_weight: float) -> Floats:
        other = prior_weight / kernels
        factors = np.full((self.count, self.count), other)
        np.fill_diagonal(factors, 1 + other)
        factors /= 1 + self.count * other
        return np.ascontiguousarray(factors[:, values.astype(np.int64)])


class KernelDensity:
    """The trials of a study in one search space. Owned by one sampler; follows the columns of its study."""

    def __init__(self, space: Mapping[str, BaseDistribution], columns: TrialColumns) -> None:
        self._columns = columns
        self._seen = 0
        self._room = len(columns.state)
        self.names = tuple(space)
        self._numbers: dict[str, _Normal | _Cells] = {}
        self._choices: dict[str, _Choices] = {}
        for name, one in space.items():
            if isinstance(one, CategoricalDistribution):
                self._choices[name] = _Choices(one, self._room)
            elif isinstance(one, FloatDistribution) and one.step is None:
                self._numbers[name] = _Normal(one, self._room)
            elif isinstance(one, FloatDistribution | IntDistribution):
                self._numbers[name] = _Cells(one, self._room)
        self._normals = {name: one for name, one in self._numbers.items() if isinstance(one, _Normal)}
        self._matrix = np.zeros((self._room, len(self._normals) + 2))
        """The places in bandwidths from the middle; then what depends on the trial alone; then ones."""
        self._matrix[:, -1] = 1

    def catch_up(self) -> bool:
        """Read what changed in the columns. False if they have outgrown this density: make another."""
        if len(self._columns.state) > self._room:
            return False
        changes = self._columns.changes
        if self._seen < len(changes):
            rows = np.unique(np.asarray(changes[self._seen :], np.int64))
            self._seen = len(changes)
            self._read(rows)
        return True

    def _read(self, rows: Ints) -> None:
        absent = np.full(len(rows), np.nan)
        values = {
            name: self._columns.params[name][rows] if name in self._columns.params else absent for name in self.names
        }
        present = ~np.isnan([values[name] for name in self.names]).any(axis=0)
        for axis in self._numbers.values():
            axis.forget(rows[~present])
        rows = rows[present]
        for name in self.names:
            (self._numbers.get(name) or self._choices[name]).read(rows, values[name][present])
        alone = np.zeros(len(rows))
        for place, axis in enumerate(self._normals.values()):
            mu = axis.mu[rows]
            scaled = (mu - axis.middle) / axis.sigma
            self._matrix[rows, place] = scaled
            alone -= scaled**2 / 2 + log_range_mass((axis.low - mu) / axis.sigma, (axis.high - mu) / axis.sigma)
        self._matrix[rows, -2] = alone

    def points(self, candidates: Mapping[str, Floats]) -> dict[str, Floats]:
        """Where candidates are on each axis: a logarithm for a real number that has one."""
        return {
            name: axis.candidates(candidates[name]) if isinstance(axis, _Normal) else candidates[name]
            for name, axis in self._numbers.items()
        }

    def at_edge(self, candidates: Mapping[str, Floats]) -> bool:
        """Whether rounding decides if a candidate is inside the range; Optuna's own code has to say it then."""
        points = self.points(candidates)
        return any(axis.at_edge(points[name]) for name, axis in self._normals.items())

    def log_above(
        self, kernels: Kernels, candidates: Mapping[str, Floats], *, prior_weight: float, endpoints: bool
    ) -> Floats:
        """The logarithm of the density of many trials at each candidate."""
        points = self.points(candidates)
        count = len(next(iter(candidates.values())))
        tables = {
            name: one.table(candidates[name], len(kernels.weights), prior_weight) for name, one in self._choices.items()
        }
        rows, wide, sigmas = self._wide(kernels.rows, endpoints=endpoints)
        weights = np.zeros(self._columns.count)
        weights[kernels.rows] = kernels.weights[:-1]
        weights[rows] = 0
        parts = [self._narrow(weights, points, tables, count, prior=float(kernels.weights[-1]))]
        if len(rows):
            terms = np.log(kernels.weights[wide])[:, None] + np.zeros((1, count))
            for name, axis in self._numbers.items():
                terms += axis.log_kernel(axis.mu[rows], sigmas[name], points[name])
            for name, one in self._choices.items():
                terms += np.log(tables[name])[one.codes[rows]]
            parts.append(_log_sum(terms))
        parts.append(self._prior(points, count) + math.log(kernels.weights[-1]))
        return _log_sum(np.array(parts))

    def log_below(self, mixture: Mixture, candidates: Mapping[str, Floats]) -> Floats:
        """The logarithm of Optuna's density of a few trials at each candidate."""
        points = self.points(candidates)
        terms = np.log(mixture.weights)[:, None] + np.zeros((1, len(next(iter(candidates.values())))))
        for name, kernel in zip(self.names, mixture.kernels, strict=True):
            if isinstance(kernel, tuple):
                terms += self._numbers[name].log_kernel(*kernel, points[name])
            else:
                terms += np.log(kernel[:, candidates[name].astype(np.int64)])
        return _log_sum(terms)

    def _wide(self, rows: Ints, *, endpoints: bool) -> tuple[Ints, Ints, dict[str, Floats]]:
        """The rows whose kernel is wider in any parameter, their places among all, and all their bandwidths."""
        chosen = np.zeros(self._room, np.bool_)
        chosen[rows] = True
        found = {name: axis.wide(rows, chosen, endpoints=endpoints) for name, axis in self._numbers.items()}
        wide = np.unique(np.concatenate([places for places, _ in found.values()] or [np.empty(0, np.int64)]))
        sigmas = {}
        for name, (places, wider) in found.items():
            sigmas[name] = np.full(len(wide), self._numbers[name].sigma)
            sigmas[name][np.searchsorted(wide, places)] = wider
        return rows[wide], wide, sigmas

    def _narrow(
        self, weights: Floats, points: Mapping[str, Floats], choices: Mapping[str, Floats], count: int, *, prior: float
    ) -> Floats:
        """The logarithm of what the kernels with the smallest bandwidths add up to."""
        tables = [(self._choices[name].codes, table) for name, table in choices.items()]
        tables += [
            (one.codes, one.table(points[name])) for name, one in self._numbers.items() if isinstance(one, _Cells)
        ]
        scaled = np.empty((len(self._normals), count))
        for place, (name, axis) in enumerate(self._normals.items()):
            scaled[place] = (points[name] - axis.middle) / axis.sigma
        factor = np.vstack([*scaled, np.ones(count), -(scaled**2).sum(axis=0) / 2])
        total = self._sum_near(weights, points, tables, factor, prior) if len(weights) >= _CUT else None
        if total is None:
            total = self._sum_all(weights, _merged(tables, len(weights)), factor)
        constant = sum(math.log(axis.sigma * math.sqrt(2 * math.pi)) for axis in self._normals.values())
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(total) - constant)

    def _sum_near(
        self,
        weights: Floats,
        points: Mapping[str, Floats],
        tables: Sequence[tuple[Ints, Floats]],
        factor: Floats,
        prior: float,
    ) -> Floats | None:
        """What the kernels near each candidate add up to; None if those are most of them.

        Per number, a kernel is at most a hundred times as high as the prior; per choice, as many times as there are
        choices. That says how far is far enough.
        """
        axes = list(self._numbers.values())
        if not axes:
            return None
        highest = len(axes) * math.log(_BANDWIDTHS) + sum(math.log(one.count) for one in self._choices.values())
        reach = math.sqrt(2 * (highest - math.log(prior) + _CERTAIN))
        near = [axis.near(points[name], reach) for name, axis in self._numbers.items()]
        sizes = np.array([one.ends - one.starts for one in near])
        count = factor.shape[1]
        if 2 * sizes.min(axis=0).sum() > count * len(weights):
            return None
        total = np.empty(count)
        for column in range(count):
            first, *others = np.argsort(sizes[:, column]).tolist()
            rows = axes[first].rows_between(near[first].starts[column], near[first].ends[column])
            for other in others:
                if len(rows) <= _SELECTED:
                    break
                mu = axes[other].mu[rows]
                rows = rows[(mu >= near[other].left[column]) & (mu <= near[other].right[column])]
            part = np.exp(np.maximum(self._matrix[rows] @ factor[:, column], _FLOOR))
            for codes, table in tables:
                part *= table[codes[rows], column]
            total[column] = weights[rows] @ part
        return total

    def _sum_all(self, weights: Floats, tables: Sequence[tuple[Ints, Floats]], factor: Floats) -> Floats:
        """What all of these kernels add up to."""
        count = factor.shape[1]
        total = np.zeros(count)
        made, taken = np.empty((_CHUNK, count)), np.empty((_CHUNK, count))
        for start in range(0, len(weights), _CHUNK):
            rows = slice(start, min(start + _CHUNK, len(weights)))
            size = rows.stop - start
            part = made[:size]
            if self._normals:
                np.dot(self._matrix[rows], factor, out=part)
                np.maximum(part, _FLOOR, out=part)
                np.exp(part, out=part)
            else:
                part[:] = 1
            for codes, table in tables:
                np.take(table, codes[rows], axis=0, out=taken[:size], mode="clip")
                part *= taken[:size]
            total += weights[rows] @ part
        return total

    def _prior(self, points: Mapping[str, Floats], count: int) -> Floats:
        terms = np.zeros(count)
        for name, axis in self._numbers.items():
            terms += axis.log_kernel(np.array([axis.middle]), np.array([axis.high - axis.low]), points[name])[0]
        return terms - sum(math.log(one.count) for one in self._choices.values())


def _merged(tables: Sequence[tuple[Ints, Floats]], rows: int) -> list[tuple[Ints, Floats]]:
    """Fewer tables whose product is the same: the smallest are multiplied out, which saves a pass over all trials."""
    merged: list[tuple[Ints, Floats]] = []
    for codes, table in sorted(tables, key=lambda one: len(one[1])):
        if merged and len(merged[-1][1]) * len(table) <= _LARGEST_TABLE:
            others, other = merged.pop()
            product = (other[:, None] * table).reshape(-1, table.shape[1])
            merged.append((others[:rows] * len(table) + codes[:rows], product))
        else:
            merged.append((codes, table))
    return merged


def _log_sum(terms: Floats) -> Floats:
    """The logarithm of the sum over the rows."""
    largest = terms.max(axis=0)
    largest[np.isneginf(largest)] = 0
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.exp(terms - largest).sum(axis=0)) + largest)
