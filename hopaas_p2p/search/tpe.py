"""Compares candidates in the tree-structured Parzen estimator, at a cost that stays small in large studies.

Optuna's estimator (Bergstra et al., 2011; Watanabe, arXiv:2304.11127) has one kernel per trial, a product with one
factor per parameter. The factor is a truncated normal for a real number, its integral over a cell for a whole or
stepped number, and a categorical distribution for a choice. In a large study, nearly every bandwidth of the worse
trials is at its lower limit, a hundredth of the range. Kernels that share this bandwidth are evaluated together. The
exponents of the normals are a matrix product, the factors of other parameters come from small tables, and terms that
depend only on the trial are computed once. If there are many trials, only kernels near a candidate are evaluated,
because all others together add at most a trillionth of the sum. The few wider kernels, at most 200 per parameter, are
evaluated one by one.

The wider kernels and the prior give an upper bound for each candidate's score. The narrow kernels are therefore
evaluated only for the most promising candidates, until the score of one exceeds the bounds of all others.

Because of rounding, the logarithm of a score can differ from Optuna's, by less than 1e-9.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from hopaas_p2p.analysis.table import Floats, Ints, distinct
from hopaas_p2p.search.axes import BANDWIDTHS, LARGEST_TABLE, Cells, Choices, Near, Normal, log_cells
from hopaas_p2p.search.gauss import log_normal, log_range_mass
from hopaas_p2p.search.known import KnownTrials

FEWEST: Final = 100
"""With at least this many kernels besides the prior, Optuna's lower limit of a bandwidth is constant."""
_CHUNK: Final = 1024  # rows at a time; with 24 candidates, they fit into the L2 cache, and BLAS uses one core
_SORTED_IN: Final = 128  # sorting this many rows anew costs about as much as inserting one row
_FLOOR: Final = -600.0  # smaller exponents give slow denormal numbers; with up to 100 parameters, the prior's is larger
_CUT: Final = 4096  # rows; with fewer, choosing the near ones costs more than it saves
_CERTAIN: Final = math.log(1e12)
_SELECTED: Final = 256  # rows; once so few remain, the other parameters are not checked
_MOST: Final = 4  # if more than a quarter of the rows are near a candidate, all rows are evaluated
_MARGIN: Final = 1e-9  # added to a bound to cover rounding errors


class Kernels(NamedTuple):
    """The trials of a density and their weights."""

    rows: Ints
    weights: Floats
    """The weights of the rows and, last, of the prior; they sum to 1."""


class Mixture(NamedTuple):
    """A mixture of one kernel per trial and, last, the prior, as in Optuna's estimator."""

    weights: Floats
    numbers: Sequence[tuple[Floats, Floats]]
    """One pair per numeric parameter, in the order of the space, with the places and bandwidths of the kernels."""
    choices: Sequence[Floats]
    """One matrix per categorical parameter, in the order of the space, with a row of probabilities per kernel."""


class KernelDensity:
    """The trials of a study in one search space, as a density that follows the study's columns. One sampler owns it."""

    def __init__(self, space: Mapping[str, BaseDistribution], columns: KnownTrials) -> None:
        self._columns = columns
        self._seen = 0
        self._room = columns.room
        self.names = tuple(space)
        self.axes: dict[str, Normal | Cells] = {}
        self.choices: dict[str, Choices] = {}
        self._mu = np.zeros((sum(not isinstance(one, CategoricalDistribution) for one in space.values()), self._room))
        for name, one in space.items():
            if isinstance(one, CategoricalDistribution):
                self.choices[name] = Choices(one, self._room)
            elif isinstance(one, FloatDistribution | IntDistribution):
                mu = self._mu[len(self.axes)]
                self.axes[name] = Normal(one, mu) if one.step is None else Cells(one, mu)
        self.normals = {name: one for name, one in self.axes.items() if isinstance(one, Normal)}
        self.cells = {name: one for name, one in self.axes.items() if isinstance(one, Cells)}
        self._low, self._high, self._sigma = np.reshape(
            [(one.low, one.high, one.sigma) for one in self.axes.values()], (-1, 3, 1)
        ).transpose(1, 0, 2)
        self._real = np.array([isinstance(one, Normal) for one in self.axes.values()], np.bool_)
        self.matrix = np.zeros((self._room, len(self.normals) + 2))
        """The columns are the places, in bandwidths from the middle of the range, then the sum of the terms that depend
        only on the trial, then ones. Rows of trials that were never in the density stay zero and add nothing."""
        self.log_highest = len(self.axes) * math.log(BANDWIDTHS)
        self.log_highest += sum(math.log(one.count) for one in self.choices.values())
        """The logarithm of the largest ratio of a kernel to the prior, which is a product with a factor of 100 per
        number and of the number of choices per categorical parameter."""
        self._chosen = np.zeros(self._room, np.bool_)
        """The trials of the density."""

    @property
    def tabled(self) -> bool:
        """Whether every parameter with cells has a table."""
        return all(one.tabled for one in self.cells.values())

    @property
    def rows(self) -> int:
        """The number of trials, in the density or not."""
        return len(self._columns)

    def catch_up(self) -> bool:
        """Read the changes in the columns. Returns False if the columns have outgrown this density, so a new one is
        needed.
        """
        if self._columns.room > self._room:
            return False
        changes = self._columns.changes
        if self._seen < len(changes):
            rows = distinct(np.asarray(changes[self._seen :], np.int64))
            self._seen = len(changes)
            self._read(rows)
        return True

    def _read(self, rows: Ints) -> None:
        absent = np.full(len(rows), np.nan)
        values = {
            name: self._columns.merged(name, rows) if name in self._columns.params else absent for name in self.names
        }
        present = ~np.isnan([values[name] for name in self.names]).any(axis=0)
        self._leave_out(rows[self._chosen[rows] & ~present])
        if not present.all():
            rows, values = rows[present], {name: some[present] for name, some in values.items()}
        mu = np.reshape([axis.placed(values[name]) for name, axis in self.axes.items()], (len(self.axes), len(rows)))
        self._leave_out(rows[self._chosen[rows] & (self._mu[:, rows] != mu).any(axis=0)])
        self._mu[:, rows] = mu
        for name, choices in self.choices.items():
            choices.codes[rows] = values[name].astype(np.int64)
        masses = log_range_mass((self._low - mu) / self._sigma, (self._high - mu) / self._sigma)
        made = np.empty((len(rows), self.matrix.shape[1]))
        made[:, -1] = 1
        made[:, -2] = -masses[self._real].sum(axis=0)
        for place, normal in enumerate(self.normals.values()):
            scaled = (normal.mu[rows] - normal.middle) / normal.sigma
            made[:, place] = scaled
            made[:, -2] -= scaled**2 / 2
        self.matrix[rows] = made
        for axis, mass in zip(self.cells.values(), masses[~self._real], strict=True):
            axis.note(rows, mass)

    def _leave_out(self, rows: Ints) -> None:
        """Remove these rows from the density before their places change."""
        self._chosen[rows] = False
        for axis in self.axes.values():
            for row in rows.tolist():
                axis.sorted.remove(row, axis.mu[row])

    def _choose(self, rows: Ints) -> None:
        """Make these rows the trials of the density."""
        chosen = np.zeros(self._room, np.bool_)
        chosen[rows] = True
        changed = np.flatnonzero(chosen != self._chosen)
        self._chosen = chosen
        for axis in self.axes.values():
            if len(changed) * _SORTED_IN > len(rows):
                axis.sorted.fill(rows, axis.mu[rows])
                continue
            for row in changed.tolist():
                (axis.sorted.insert if chosen[row] else axis.sorted.remove)(row, axis.mu[row])

    def points(self, candidates: Mapping[str, Floats]) -> dict[str, Floats]:
        """The places of candidates on each axis (logarithms for real numbers with a logarithmic scale)."""
        return {name: axis.points(candidates[name]) for name, axis in self.axes.items()}

    def at_edge(self, candidates: Mapping[str, Floats]) -> bool:
        """Whether rounding decides if a candidate is inside the range, so that Optuna's own code has to decide."""
        return any(axis.at_edge(axis.points(candidates[name])) for name, axis in self.normals.items())

    def compare(
        self, below: Mixture, above: Kernels, candidates: Mapping[str, Floats], *, prior_weight: float, endpoints: bool
    ) -> Comparison:
        """Compare candidates by their likelihood ratio of a few good trials to many others.

        Valid until the next call of `catch_up` or `compare`.
        """
        self._choose(above.rows)
        return Comparison(self, below, above, candidates, prior_weight=prior_weight, endpoints=endpoints)

    def wide(self, rows: Ints, *, endpoints: bool) -> tuple[Ints, dict[str, Floats]]:
        """The kernels that are wide in some parameter, as indices into `rows`, and their bandwidths in each
        parameter.
        """
        found = {name: axis.wide(rows, endpoints=endpoints) for name, axis in self.axes.items()}
        wide = distinct(np.concatenate([places for places, _ in found.values()] or [np.empty(0, np.int64)]))
        sigmas = {}
        for name, (places, wider) in found.items():
            sigmas[name] = np.full(len(wide), self.axes[name].sigma)
            sigmas[name][np.searchsorted(wide, places)] = wider
        return wide, sigmas

    def log_kernels(
        self, mu: Sequence[Floats], sigma: Sequence[Floats], points: Mapping[str, Floats], shape: tuple[int, int]
    ) -> Floats:
        """The logarithms of some kernels, one row each, at each candidate, without the choices.

        Args:
            mu: the places of the kernels, for each axis.
            sigma: the bandwidths of the kernels, for each axis.
            points: the places of the candidates.
            shape: how many kernels and candidates there are.

        """
        terms = np.zeros(shape)
        if not self.axes:
            return terms
        places, widths = np.array(mu), np.array(sigma)
        terms -= log_range_mass((self._low - places) / widths, (self._high - places) / widths).sum(axis=0)[:, None]
        if self.normals:
            at = np.array([points[name] for name in self.normals])
            wide = widths[self._real]
            distances = (at[:, None, :] - places[self._real][:, :, None]) / wide[:, :, None]
            terms += log_normal(distances).sum(axis=0) - np.log(wide).sum(axis=0)[:, None]
        if self.cells:
            for part in self._log_cells(places[~self._real], widths[~self._real], points):
                terms += part
        return terms

    def _log_cells(self, mu: Floats, sigma: Floats, points: Mapping[str, Floats]) -> Iterator[Floats]:
        """The logarithms of the kernels on each axis with cells, computed together to save calls of numpy."""
        parts = []
        for here, width, (name, axis) in zip(mu[:, :, None], sigma[:, :, None], self.cells.items(), strict=True):
            different, inverse = np.unique(points[name], return_inverse=True)
            left, right = axis.span(different)
            parts.append(((left - here) / width, (right - here) / width, axis.is_outside(here), inverse))
        logs = log_cells(
            np.concatenate([left.ravel() for left, _, _, _ in parts]),
            np.concatenate([right.ravel() for _, right, _, _ in parts]),
            np.concatenate([np.broadcast_to(outside, left.shape).ravel() for left, _, outside, _ in parts]),
        )
        ends = np.cumsum([left.size for left, _, _, _ in parts])
        for (left, _, _, inverse), part in zip(parts, np.split(logs, ends[:-1]), strict=True):
            yield part.reshape(left.shape)[:, inverse]


class Comparison:
    """Candidates scored by the log likelihood ratio of the better trials to the others."""

    def __init__(
        self,
        density: KernelDensity,
        below: Mixture,
        above: Kernels,
        candidates: Mapping[str, Floats],
        *,
        prior_weight: float,
        endpoints: bool,
    ) -> None:
        self._density = density
        self._candidates = candidates
        self._points = density.points(candidates)
        self._count = len(next(iter(candidates.values())))
        codes = {name: candidates[name].astype(np.int64) for name in density.choices}
        tables = {
            name: one.table(codes[name], len(above.weights), prior_weight) for name, one in density.choices.items()
        }
        self._tables = [(one.codes, tables[name]) for name, one in density.choices.items()]
        self._tables += [
            (one.codes, one.table(self._points[name])) for name, one in density.cells.items() if one.tabled
        ]
        wide, sigmas = density.wide(above.rows, endpoints=endpoints)
        rows = above.rows[wide]
        self._weights = np.zeros(density.rows)
        """The weights of the narrow kernels, by row."""
        self._weights[above.rows] = above.weights[:-1]
        self._weights[rows] = 0
        mu = [np.append(few, one.mu[rows]) for (few, _), one in zip(below.numbers, density.axes.values(), strict=True)]
        sigma = [np.append(few, sigmas[name]) for (_, few), name in zip(below.numbers, density.axes, strict=True)]
        terms = density.log_kernels(mu, sigma, self._points, (len(below.weights) + len(rows), self._count))
        better, worse = terms[: len(below.weights)], terms[len(below.weights) :]
        prior = better[-1] - sum(math.log(one.count) for one in density.choices.values())
        better += np.log(below.weights)[:, None]
        worse += np.log(above.weights[wide])[:, None]
        for few, (name, one) in zip(below.choices, density.choices.items(), strict=True):
            better += np.log(few[:, codes[name]])
            worse += np.log(tables[name])[one.codes[rows]]
        self._below = _log_sum(better)
        self._rest = _log_sum(np.vstack([worse, prior + math.log(above.weights[-1])]))
        """The log density of the other trials, without the narrow kernels."""
        self.bounds = self._below - self._rest + _MARGIN
        """Upper bounds of the scores."""
        self._reach = np.sqrt(2 * (density.log_highest + _CERTAIN - (self._rest - prior)))
        self._near: list[Near] | None = None
        scaled = [(self._points[name] - one.middle) / one.sigma for name, one in density.normals.items()]
        squares = np.sum(np.square(scaled), axis=0)
        self._factor = np.vstack([*scaled, np.ones(self._count), np.zeros(self._count) - squares / 2])
        self._scores: Floats | None = None
        if density.rows < _CUT and density.tabled:
            self._scores = self._scored(self._sum_all(), slice(None))

    def ranked(self) -> Iterator[int]:
        """The candidates from best to worst; among equals, the earlier comes first. Scores are computed only as
        needed.
        """
        for place, _ in self._ranked(math.inf):
            yield place

    def best(self) -> int | None:
        """The best candidate; None if another one is equally good up to rounding."""
        ranked = self._ranked(_MARGIN)
        best, _ = next(ranked)
        for place, _ in ranked:
            if any(column[place] != column[best] for column in self._candidates.values()):
                return None
        return best

    def _ranked(self, within: float) -> Iterator[tuple[int, float]]:
        """The candidates whose scores are at most `within` below the best, with their scores, the best first."""
        lowest = -math.inf
        waiting = [(-bound, 0, place) for place, bound in enumerate(self.bounds.tolist())]
        heapq.heapify(waiting)
        while waiting and -waiting[0][0] >= lowest:
            score, known, place = heapq.heappop(waiting)
            if known:
                lowest = max(lowest, -score - within)
                yield place, -score
            else:
                heapq.heappush(waiting, (-self.score(place), 1, place))

    def score(self, place: int) -> float:
        """The score of a candidate."""
        if self._scores is not None:
            return float(self._scores[place])
        rows = self._rows_near(place)
        if rows is None:  # the same is likely for the other candidates
            self._scores = self._scored(self._sum_all(), slice(None))
            return float(self._scores[place])
        return float(self._scored(self._sum_near(rows, place), slice(place, place + 1))[0])

    def _scored(self, sums: Floats, columns: slice) -> Floats:
        constant = sum(math.log(one.sigma * math.sqrt(2 * math.pi)) for one in self._density.normals.values())
        with np.errstate(divide="ignore"):
            narrow = np.log(sums) - constant
        return np.asarray(self._below[columns] - np.logaddexp(narrow, self._rest[columns]))

    def _rows_near(self, place: int) -> Ints | None:
        """The rows of the narrow kernels that are not negligible at a candidate; None if there are too many."""
        axes = list(self._density.axes.items())
        if not axes:
            return None
        if self._near is None:
            self._near = [axis.near(self._points[name], self._reach) for name, axis in axes]
        near = sorted(zip(self._near, axes, strict=True), key=lambda one: one[0].ends[place] - one[0].starts[place])
        (first, (_, axis)), *others = near
        rows = axis.sorted.rows[first.starts[place] : first.ends[place]]
        if _MOST * len(rows) > 2 * self._density.rows:
            return None
        for other, (_, axis) in others:
            if len(rows) <= _SELECTED:
                break
            mu = axis.mu[rows]
            rows = rows[(mu >= other.left[place]) & (mu <= other.right[place])]
        return rows if _MOST * len(rows) <= self._density.rows else None

    def _sum_near(self, rows: Ints, place: int) -> Floats:
        """The sum of these rows' narrow kernels at a candidate."""
        part = np.exp(np.maximum(self._density.matrix[rows] @ self._factor[:, place], _FLOOR))
        for codes, table in self._tables:
            part *= table[codes[rows], place]
        for name, one in self._density.cells.items():
            if not one.tabled:
                part *= one.factors_at(rows, self._points[name][place : place + 1])[:, 0]
        return np.array([self._weights[rows] @ part])

    def _sum_all(self) -> Floats:
        """The sum of all narrow kernels at each candidate."""
        tables = _merged(self._tables, len(self._weights))
        if not self._density.normals and len(tables) == 1 and self._density.tabled:
            ((codes, table),) = tables
            return np.asarray(np.bincount(codes[: len(self._weights)], self._weights, len(table)) @ table)
        total = np.zeros(self._count)
        made, taken = np.empty((_CHUNK, self._count)), np.empty((_CHUNK, self._count))
        for start in range(0, len(self._weights), _CHUNK):
            rows = slice(start, min(start + _CHUNK, len(self._weights)))
            part = made[: rows.stop - start]
            if self._density.normals:
                np.dot(self._density.matrix[rows], self._factor, out=part)
                np.maximum(part, _FLOOR, out=part)
                np.exp(part, out=part)
            else:
                part[:] = 1
            for codes, table in tables:
                np.take(table, codes[rows], axis=0, out=taken[: len(part)], mode="clip")
                part *= taken[: len(part)]
            for name, one in self._density.cells.items():
                if not one.tabled:
                    part *= one.factors_at(rows, self._points[name])
            total += self._weights[rows] @ part
        return total


def _merged(tables: Sequence[tuple[Ints, Floats]], rows: int) -> list[tuple[Ints, Floats]]:
    """Fewer tables with the same product. Each multiplication of two small tables saves a pass over all trials."""
    merged: list[tuple[Ints, Floats]] = []
    for codes, table in sorted(tables, key=lambda one: len(one[1])):
        if merged and len(merged[-1][1]) * len(table) <= LARGEST_TABLE:
            others, other = merged.pop()
            product = (other[:, None] * table).reshape(-1, table.shape[1])
            merged.append((others[:rows] * len(table) + codes[:rows], product))
        else:
            merged.append((codes, np.ascontiguousarray(table)))
    return merged


def _log_sum(terms: Floats) -> Floats:
    """The logarithm of the sum over the rows."""
    largest = terms.max(axis=0)
    largest[np.isneginf(largest)] = 0
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.exp(terms - largest).sum(axis=0)) + largest)
