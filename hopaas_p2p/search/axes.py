"""The parameters of a search space in the form of Optuna's Parzen estimator, as places on axes, cells, and choices.

The place of a trial on an axis is its value, or the logarithm of its value if the parameter has a logarithmic scale.
Each axis keeps the trials of a density sorted, to find the widths of their kernels and the trials near a point.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from hopaas_p2p.analysis.table import Floats, Ints, Mask, distinct
from hopaas_p2p.search.gauss import cell_mass, log_range_mass

BANDWIDTHS: Final = 100.0
"""The range of a parameter divided by Optuna's lower limit of a bandwidth, in densities of a hundred kernels or
more."""
LARGEST_TABLE: Final = 1024  # rows; with 24 candidates, they fit into the L2 cache
_FARTHEST: Final = 1e6  # bandwidths outside the range; places farther away would cause overflows
_VANISHED: Final = 1e-120


class Near(NamedTuple):
    """For each candidate, the trials near it on one axis."""

    left: Floats
    right: Floats
    starts: Ints
    """`starts` and `ends` are the range of these trials' positions in the order of the axis."""
    ends: Ints


class SortedRows:
    """Rows sorted by a value, with insertion and removal.

    Args:
        room: the maximum number of rows.

    """

    def __init__(self, room: int) -> None:
        self._rows = np.empty(room, np.int64)
        self._values = np.empty(room)
        self._count = 0

    @property
    def rows(self) -> Ints:
        return self._rows[: self._count]

    @property
    def values(self) -> Floats:
        return self._values[: self._count]

    def fill(self, rows: Ints, values: Floats) -> None:
        """Replace the content with these rows."""
        order = np.argsort(values)
        self._count = len(rows)
        self.rows[:] = rows[order]
        self.values[:] = values[order]

    def insert(self, row: int, value: float) -> None:
        place, count = int(np.searchsorted(self.values, value)), self._count
        self._rows[place + 1 : count + 1] = self._rows[place:count]  # numpy handles the overlap
        self._values[place + 1 : count + 1] = self._values[place:count]
        self._rows[place], self._values[place] = row, value
        self._count = count + 1

    def remove(self, row: int, value: float) -> None:
        """Remove a row that was inserted with this value."""
        first, count = int(np.searchsorted(self.values, value)), self._count
        end = int(np.searchsorted(self.values, value, "right"))
        place = first + int(np.argmax(self._rows[first:end] == row))
        self._rows[place : count - 1] = self._rows[place + 1 : count]
        self._values[place : count - 1] = self._values[place + 1 : count]
        self._count = count - 1


class Axis:
    """The axis of a number.

    Args:
        mu: an array for the place of each trial, which is a view into the density's array.

    """

    def __init__(self, distribution: FloatDistribution | IntDistribution, mu: Floats) -> None:
        low, high, step = float(distribution.low), float(distribution.high), distribution.step
        self.half = 0.0 if step is None else step / 2
        self.log = distribution.log
        self.low, self.high = self._scaled(low - self.half), self._scaled(high + self.half)
        self.sigma = (self.high - self.low) / BANDWIDTHS
        self.middle = 0.5 * (self.low + self.high)
        self.mu = mu
        self.sorted = SortedRows(len(mu))
        """The trials of the density."""

    def _scaled(self, value: float) -> float:
        return float(np.log(value)) if self.log else value

    def placed(self, values: Floats) -> Floats:
        """The places of trials with these values, which can be outside the range. A NaN gets an arbitrary place."""
        with np.errstate(divide="ignore", invalid="ignore"):  # a trial may have another range
            mu = np.log(values) if self.log else values
        far = _FARTHEST * self.sigma
        return np.fmin(np.fmax(mu, self.low - far), self.high + far)

    def points(self, values: Floats) -> Floats:
        """The places of candidates, in the form that the other methods expect."""
        raise NotImplementedError

    def span(self, points: Floats) -> tuple[Floats, Floats]:
        """The bounds of each candidate on the axis."""
        raise NotImplementedError

    def near(self, points: Floats, reach: Floats) -> Near:
        """Which trials are within `reach` bandwidths of each candidate."""
        left, right = self.span(points)
        left, right = left - reach * self.sigma, right + reach * self.sigma
        values = self.sorted.values
        return Near(left, right, np.searchsorted(values, left), np.searchsorted(values, right, "right"))

    def wide(self, rows: Ints, *, endpoints: bool) -> tuple[Ints, Floats]:
        """The rows of the density whose bandwidth is above the lower limit, as indices into `rows`, and their
        bandwidths.

        Among equal values, the first and the last get the bandwidth of the adjacent gap. Which trials these are depends
        on how Optuna's sort orders equal values. If that matters, the same sort is used.

        Args:
            rows: all rows of the density, ascending.
            endpoints: whether a gap at the end of the range counts.

        """
        found, sigmas, tied = self._wide(self.sorted.values, endpoints=endpoints)
        wide = self.sorted.rows[found]
        if tied:
            mu = self.mu[rows]
            wide = rows[np.argsort(mu)[found]]
        return np.searchsorted(rows, wide), np.minimum(sigmas, self.high - self.low)

    def _wide(self, mu: Floats, *, endpoints: bool) -> tuple[Ints, Floats, bool]:
        """The indices of the sorted values with a wide bandwidth, these bandwidths, and whether such a value occurs
        twice.
        """
        gaps = np.flatnonzero(mu[1:] - mu[:-1] > self.sigma)
        last = len(mu) - 1
        found = distinct(np.concatenate([gaps, gaps + 1, [0, last]])) if len(gaps) else np.array([0, last])
        left, right = mu[found] - mu[found - 1], mu[np.minimum(found + 1, last)] - mu[found]
        left[0], right[-1] = mu[0] - self.low, self.high - mu[-1]
        sigmas = np.maximum(left, right)
        if not endpoints and last > 0:
            sigmas[0], sigmas[-1] = right[0], left[-1]
        wide = sigmas > self.sigma
        same_left, same_right = left == 0, right == 0
        same_left[0] = same_right[-1] = False
        return found[wide], sigmas[wide], bool((same_left | same_right)[wide].any())


class Normal(Axis):
    """The axis of a real number."""

    def points(self, values: Floats) -> Floats:
        return np.log(values) if self.log else values

    def span(self, points: Floats) -> tuple[Floats, Floats]:
        return points, points

    def at_edge(self, points: Floats) -> bool:
        """Whether a point is so close to the edge that rounding decides if it is inside the range."""
        margin = 1e-9 * (self.high - self.low)
        return bool((points < self.low + margin).any() or (points > self.high - margin).any())


class Cells(Axis):
    """The axis of a whole or stepped number, for which kernels give probabilities of cells."""

    def __init__(self, distribution: FloatDistribution | IntDistribution, mu: Floats) -> None:
        super().__init__(distribution, mu)
        self._first, self._step = float(distribution.low), 2 * self.half
        self._cells = round((distribution.high - distribution.low) / self._step) + 1
        self.tabled = self._cells <= LARGEST_TABLE
        """Whether there are few enough distinct places for kernels to come from a table."""
        self.codes = np.zeros(len(mu), np.int64)
        self._log_mass = np.zeros(len(mu))
        self._known: dict[float, int] = {}
        self._places = np.empty(0)
        self._table = np.empty((0, self._cells if self.tabled else 0))
        """The kernel of each distinct place (a row) at each cell (a column); NaN where it was not needed so far."""

    def points(self, values: Floats) -> Floats:
        return values

    def note(self, rows: Ints, log_mass: Floats) -> None:
        """Record new places of these trials; `log_mass` is the mass of their narrow kernels inside the range."""
        self._log_mass[rows] = log_mass
        if not self.tabled:
            return
        different, inverse = np.unique(self.mu[rows], return_inverse=True)
        codes = [self._known.setdefault(one, len(self._known)) for one in different.tolist()]
        self.codes[rows] = np.asarray(codes, np.int64)[inverse]
        if len(self._known) > len(self._places):
            self._places = np.fromiter(self._known, np.float64)
            self.tabled = len(self._known) <= LARGEST_TABLE

    def span(self, points: Floats) -> tuple[Floats, Floats]:
        left, right = points - self.half, points + self.half
        return (np.log(left), np.log(right)) if self.log else (left, right)

    def table(self, points: Floats) -> Floats:
        """The kernel of each distinct place (a row) at each candidate (a column), with the smallest bandwidth."""
        places = len(self._places)
        if places > len(self._table):
            grown = np.full((min(2 * places, LARGEST_TABLE), self._cells), np.nan)
            grown[: len(self._table)] = self._table
            self._table = grown
        cells = np.rint((points - self._first) / self._step).astype(np.int64)
        missing = np.isnan(self._table[places - 1, cells])
        if missing.any():
            here = self._places
            masses = log_range_mass((self.low - here) / self.sigma, (self.high - here) / self.sigma)
            self._table[:places, cells[missing]] = self._factors(here, masses, points[missing])
        return self._table[:places, cells]

    def factors_at(self, rows: Ints | slice, points: Floats) -> Floats:
        """The kernel of each of these trials (a row) at each candidate (a column), with the smallest bandwidth."""
        return self._factors(self.mu[rows], self._log_mass[rows], points)

    def _factors(self, mu: Floats, log_mass: Floats, points: Floats) -> Floats:
        left, right = self.span(points)
        here = mu[:, None]
        cells = log_cells((left - here) / self.sigma, (right - here) / self.sigma, self.is_outside(here))
        factors = np.exp(cells - log_mass[:, None])
        factors[factors < _VANISHED] = 0
        return np.asarray(factors)

    def is_outside(self, mu: Floats) -> Mask:
        """Whether a place is outside the range."""
        return (mu < self.low) | (mu > self.high)


def log_cells(left: Floats, right: Floats, outside: Mask) -> Floats:
    """The logarithms of the masses of cells, given by their bounds in standard deviations.

    Args:
        left: each cell's left bound.
        right: each cell's right bound.
        outside: whether the kernel's centre is outside the range, so that only its far tail counts; any shape that can
            be broadcast.

    """
    with np.errstate(divide="ignore"):
        logs = np.log(cell_mass(left, right))
    if outside.any():
        outside = np.broadcast_to(outside, logs.shape)
        logs[outside] = log_range_mass(left[outside], right[outside])
    return np.asarray(logs)


class Choices:
    """The choices of a categorical parameter."""

    def __init__(self, distribution: CategoricalDistribution, room: int) -> None:
        self.count = len(distribution.choices)
        self.codes = np.zeros(room, np.int64)

    def table(self, codes: Ints, kernels: int, prior_weight: float) -> Floats:
        """The kernel of each choice (a row) at each candidate (a column), in a density of `kernels` kernels."""
        other = prior_weight / kernels
        factors = np.full((self.count, self.count), other)
        np.fill_diagonal(factors, 1 + other)
        factors /= 1 + self.count * other
        return np.asarray(factors[:, codes])
