"""The trials of a study as arrays: what a model of the objective reads at every ask.

A trial that is finished never changes, so it is read once. Only those that wait or run are looked at again, and those
that are new. A row is the place of a trial in the study's list, which is sorted by number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from hopaas_p2p.core.attributes import CONTINUES
from hopaas_p2p.core.state import BlockColumns

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

COMPLETE: Final = int(TrialState.COMPLETE)
PRUNED: Final = int(TrialState.PRUNED)
RUNNING: Final = int(TrialState.RUNNING)
_LEARNED: Final = (TrialState.COMPLETE, TrialState.PRUNED)
_SUPERSEDED: Final = -1
_PRESENT: Final = 32  # sets of parameters for which it is remembered which trials have them
_STRIDE: Final = 64  # of so many costs the smallest is looked at first
_NO_REPORT: Final = (1.0, 0.0)  # sorts a pruned trial without reports behind all others


class ReadBlock(NamedTuple):
    """A block of finished trials."""

    columns: BlockColumns
    special: list[FrozenTrial]
    """Those of its trials that cannot be read from the columns."""


class Changes(NamedTuple):
    """What is new in a study."""

    reset: bool
    """Whether this is all that there is, and nothing that was read before counts."""
    number_of_trials: int
    """How many trials there are."""
    blocks: Sequence[ReadBlock]
    trials: Sequence[FrozenTrial]
    """Those that changed, but for the blocks, by number; each as its own process sees it."""
    distributions: Mapping[str, BaseDistribution]
    """Of the parameters in the blocks."""


class TrialReader(Protocol):
    """Tells what changed since it was asked last; our storage gives one, so that no list of all trials is made."""

    def read(self) -> Changes:
        """What is new, as fresh as a read may expect."""


class TrialColumns:
    """Grows with its study. Not safe for use by several threads at once.

    Args:
        params_of: the parameters of a trial that still runs; its sampler may have announced more than were suggested.

    """

    def __init__(self, params_of: Callable[[FrozenTrial], Mapping[str, Any]]) -> None:
        self._params_of = params_of
        self._room = 256
        self._first: tuple[int, FrozenTrial] | None = None
        """The finished trial that was read first: another one in its place means that this is another study."""
        self._open: dict[int, FrozenTrial | None] = {}
        self.count = 0
        self.learned = 0
        """How many trials are COMPLETE or PRUNED."""
        self.state = np.full(self._room, -1, np.int8)
        self.value = np.full(self._room, np.nan)
        self.rank = np.zeros((self._room, 2))
        """What pruned trials are compared by: minus the last step, and the value that was reported there."""
        self.violation = np.zeros(self._room)
        """The sum of the constraints that are violated."""
        self.params: dict[str, Floats] = {}
        """In Optuna's internal representation; NaN for a trial that lacks the parameter."""
        self.kinds: dict[str, CategoricalDistribution | None] = {}
        """The categorical distribution of a parameter; None for a number."""
        self.mixed: set[str] = set()
        """Parameters that are not the same kind of thing in all trials."""
        self.changes: list[int] = []
        """Rows in the order in which they were read; a reader remembers how far it has come."""
        self.intersection: dict[str, BaseDistribution] | None = None
        """The parameters that all COMPLETE and PRUNED trials have, with the same distribution."""
        self.groups: list[dict[str, BaseDistribution]] = []
        """Parameters that were always there together, in the order of Optuna's `group`."""
        self._shapes: set[frozenset[str]] = set()
        self._last_shape: Mapping[str, BaseDistribution] = {}
        self._compared: dict[str, BaseDistribution] = {}
        """The distribution of each parameter that was compared last."""
        self._present: dict[tuple[str, ...], tuple[Mask, int]] = {}
        """Which trials have all of some parameters, and how many of the changes that takes into account."""

    def same_study(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether these can be the trials that were read before, or more of them."""
        if self._first is None:
            return True
        row, before = self._first
        return row < len(trials) and (trials[row] is before or trials[row] == before)

    def refresh(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Read what is new. Returns the trials that have become COMPLETE or PRUNED since the last time."""
        known = self.count
        if len(trials) > self._room:
            self._grow(len(trials))
        self.count = max(known, len(trials))
        finished = [trials[row] for row in sorted(self._open) if row < len(trials) and self._read(row, trials[row])]
        finished.extend(trials[row] for row in range(known, len(trials)) if self._read(row, trials[row]))
        self._learn(finished)
        return finished

    def take(self, changes: Changes) -> None:
        """Read what is new, where that is known."""
        if changes.number_of_trials > self._room:
            self._grow(changes.number_of_trials)
        self.count = max(self.count, changes.number_of_trials)
        for block in changes.blocks:
            self._read_block(block, changes.distributions)
        learned = (COMPLETE, PRUNED)
        new = [trial for trial in changes.trials if self.state[trial.number] not in learned]
        self._learn([trial for trial in new if self._read(trial.number, trial)])

    def _learn(self, finished: Sequence[FrozenTrial]) -> None:
        for trial in finished:
            shape = trial.distributions
            if shape is not self._last_shape:  # many trials share one
                self._intersect(shape)
                self._group(shape)
                self._last_shape = shape
        self.learned += len(finished)

    def row_of(self, number: int) -> int | None:
        """The row of a trial that is not finished."""
        for row, trial in self._open.items():
            if trial is not None and trial.number == number:
                return row
        return None

    def having(self, names: Iterable[str]) -> Mask:
        """Which trials have all these parameters. Not to be changed, and good until the next trials are read."""
        key = tuple(names)
        present, seen = self._present.pop(key, (None, 0))
        if present is None or len(present) < self._room:
            present = self._complete(key, slice(None))
        elif seen < len(self.changes):
            rows = np.asarray(self.changes[seen:], np.int64)
            present[rows] = self._complete(key, rows)
        self._present[key] = present, len(self.changes)
        if len(self._present) > _PRESENT:
            del self._present[next(iter(self._present))]
        return present[: self.count]

    def _complete(self, names: Iterable[str], rows: Ints | slice) -> Mask:
        present = np.ones(self._room, np.bool_)[rows]
        for name in names:
            present &= ~np.isnan(self.params[name][rows]) if name in self.params else False
        return present

    def observations(self, names: Iterable[str], rows: Ints) -> dict[str, Floats]:
        """The values of these parameters in these rows."""
        return {name: self.params[name][rows] if len(rows) else np.empty(0) for name in names}

    def contains(self, values: Mapping[str, float], but: int | None) -> bool:
        """Whether a trial that runs or has not failed, another than in row `but`, has these values."""
        if not values.keys() <= self.params.keys():
            return False
        (name, value), *others = values.items()
        rows = np.flatnonzero(self.params[name][: self.count] == value)
        for name, value in others:
            rows = rows[self.params[name][rows] == value]
        rows = rows[np.isin(self.state[rows], (COMPLETE, PRUNED, RUNNING))]
        return bool((rows != but).any())

    def _read(self, row: int, trial: FrozenTrial) -> bool:
        before = self._open.get(row)
        if trial is before:
            return False
        over = trial.state.is_finished()
        if over:
            self._open.pop(row, None)
        else:
            self._open[row] = trial
        earlier = trial.system_attrs.get(CONTINUES) if trial.system_attrs else None
        if earlier is not None and trial.state is TrialState.RUNNING:
            return False  # what it goes on from says more
        self.state[row] = int(trial.state)
        if trial.state in _LEARNED:
            self._supersede(earlier)
            self._first = self._first or (row, trial)
            self._read_outcome(row, trial)
        elif trial.state is not TrialState.RUNNING:
            return False
        if before is not None:  # what it announced when it ran need not be what it used
            for column in self.params.values():
                column[row] = np.nan
        self._read_params(row, trial.params if over else self._running(trial), trial.distributions)
        self.changes.append(row)
        return over

    def _supersede(self, earlier: object) -> None:
        """A paused trial that was continued counts no more: its configuration is seen once."""
        if type(earlier) is int and 0 <= earlier < self.count and self.state[earlier] in (COMPLETE, PRUNED):
            self.state[earlier] = _SUPERSEDED
            self.learned -= 1

    def _read_block(self, block: ReadBlock, distributions: Mapping[str, BaseDistribution]) -> None:
        columns = block.columns
        first, states = columns.first, np.frombuffer(columns.states, np.uint8)
        plain = np.ones(len(states), np.bool_)
        plain[list(columns.special)] = False
        self.state[first : first + len(states)][plain] = states[plain]
        complete, pruned = plain & (states == COMPLETE), plain & (states == PRUNED)
        learned = np.flatnonzero(complete | pruned)
        widths, values = np.asarray(columns.widths), np.asarray(columns.values)
        valued = learned[widths[learned] == 1]
        self.value[first + valued] = values[_starts(np.maximum(widths, 0))[valued]]
        self._read_ranks(columns, np.flatnonzero(pruned))
        sets = np.asarray(columns.param_set)
        starts = _starts(np.array([len(names) for names in columns.param_sets] or [0])[sets])
        params, shapes = np.asarray(columns.params), {}
        for index in distinct(sets[learned]).tolist():
            rows, names = learned[sets[learned] == index], columns.param_sets[index]
            table = params[starts[rows][:, None] + np.arange(len(names))]
            for offset, name in enumerate(names):
                self._read_places(name, first + rows, table[:, offset], distributions[name])
            shapes[first + int(rows[0])] = {name: distributions[name] for name in names}
        self.changes.extend((first + learned).tolist())
        self.learned += len(learned)
        special = [trial for trial in block.special if self._read(trial.number, trial)]
        self.learned += len(special)
        shapes |= {trial.number: trial.distributions for trial in special}
        for _, shape in sorted(shapes.items(), key=lambda one: one[0]):
            self._intersect(shape)
            self._group(shape)

    def _read_ranks(self, columns: BlockColumns, rows: Ints) -> None:
        if not len(rows):
            return
        sets, reports = np.asarray(columns.step_set), np.asarray(columns.reports())
        starts = _starts(np.array([len(steps) for steps in columns.step_sets] or [0])[sets])
        for index in distinct(sets[rows]).tolist():
            steps, some = columns.step_sets[index], rows[sets[rows] == index]
            if not steps:
                self.rank[columns.first + some] = _NO_REPORT
                continue
            last = int(np.argmax(steps))
            self.rank[columns.first + some, 0] = -steps[last]
            self.rank[columns.first + some, 1] = reports[starts[some] + last]

    def _read_places(self, name: str, rows: Ints, places: Floats, distribution: BaseDistribution) -> None:
        column = self.params.get(name)
        if column is None:
            column = self._new_column(name, distribution)
        if isinstance(distribution, CategoricalDistribution):
            codes = [distribution.to_internal_repr(choice) for choice in distribution.choices]  # equal ones are one
            places = np.asarray(codes)[places.astype(np.int64)]
        column[rows] = np.where(np.isfinite(places), places, np.nan)

    def _running(self, trial: FrozenTrial) -> Mapping[str, Any]:
        try:
            return self._params_of(trial)
        except (TypeError, ValueError, AttributeError):  # what another peer announced is not what it should be
            return trial.params

    def _read_outcome(self, row: int, trial: FrozenTrial) -> None:
        values = trial.values
        if values is not None and len(values) == 1:
            self.value[row] = values[0]
        if trial.state is TrialState.PRUNED:
            self.rank[row] = _rank(trial.intermediate_values)
        if trial.system_attrs:
            self.violation[row] = sum(value for value in trial.constraints.values() if value > 0)

    def _read_params(self, row: int, params: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]) -> None:
        for name, value in params.items():
            column = self.params.get(name)
            if column is None:
                if name not in distributions:  # announced by a trial that runs, and known from no other
                    continue
                column = self._new_column(name, distributions[name])
            elif name in distributions:
                self._compare_kinds(name, distributions[name])
            kind = self.kinds[name]
            try:
                place = float(value) if kind is None else kind.to_internal_repr(value)
                column[row] = place if math.isfinite(place) else math.nan
            except (ValueError, TypeError, OverflowError):  # no number, or not among the choices
                if name in distributions:
                    self.mixed.add(name)

    def _new_column(self, name: str, distribution: BaseDistribution) -> Floats:
        self.kinds[name] = distribution if isinstance(distribution, CategoricalDistribution) else None
        column = self.params[name] = np.full(self._room, np.nan)
        return column

    def _compare_kinds(self, name: str, distribution: BaseDistribution) -> None:
        kind = self.kinds[name]
        if distribution is kind or distribution is self._compared.get(name):
            return
        self._compared[name] = distribution
        if isinstance(distribution, CategoricalDistribution):
            if distribution != kind:
                self.mixed.add(name)
        elif kind is not None:
            self.mixed.add(name)

    def _intersect(self, distributions: Mapping[str, BaseDistribution]) -> None:
        if self.intersection is None:
            self.intersection = dict(distributions)
            return
        for name, one in list(self.intersection.items()):
            other = distributions.get(name)
            if other is not one and other != one:
                del self.intersection[name]

    def _group(self, distributions: Mapping[str, BaseDistribution]) -> None:
        shape = frozenset(distributions)
        if shape in self._shapes:
            return
        self._shapes.add(shape)
        split = []
        for group in self.groups:
            split.append({name: one for name, one in group.items() if name in shape})
            split.append({name: one for name, one in group.items() if name not in shape})
            shape -= group.keys()
        split.append({name: distributions[name] for name in shape})
        self.groups = [group for group in split if group]

    def _grow(self, rows: int) -> None:
        old = self._room
        self._room = 2 * rows
        self.state = _longer(self.state, self._room, -1)
        self.value = _longer(self.value, self._room, np.nan)
        self.violation = _longer(self.violation, self._room, 0)
        self.rank = np.concatenate([self.rank, np.zeros((self._room - old, 2))])
        self.params = {name: _longer(column, self._room, np.nan) for name, column in self.params.items()}


def distinct(numbers: Ints) -> Ints:
    """These numbers, ascending, each once: np.unique, whose hash table takes ten times as long for many."""
    ordered = np.sort(numbers)
    first = np.ones(len(ordered), np.bool_)
    first[1:] = ordered[1:] != ordered[:-1]
    return ordered[first]


def _starts(lengths: Ints) -> Ints:
    """Where each of several runs of these lengths begins."""
    return np.asarray(np.cumsum(lengths) - lengths)


def _rank(reports: Mapping[int, float]) -> tuple[float, float]:
    if not reports:
        return _NO_REPORT
    step = max(reports)
    return float(-step), reports[step]


def _longer(column: NDArray[Any], rows: int, fill: float) -> NDArray[Any]:
    grown = np.full(rows, fill, column.dtype)
    grown[: len(column)] = column
    return grown


def best_rows(columns: TrialColumns, count: int, *, maximize: bool) -> Ints:
    """The rows of the `count` best trials, ascending: COMPLETE ones, then PRUNED ones, then those that violate most.

    The order is the one of Optuna's TPE: by value; pruned ones by the last step they reached, then by what they
    reported there; infeasible ones by how much they violate. Of equals the earlier one is the better.
    """
    complete = (columns.state[: columns.count] == COMPLETE) & (columns.violation[: columns.count] <= 0)
    if count > np.count_nonzero(complete):
        return np.sort(ranked_rows(columns, maximize=maximize)[:count])
    values = columns.value[: columns.count]
    return _smallest(complete, np.where(complete, -values if maximize else values, np.inf), count)


def ranked_rows(columns: TrialColumns, *, maximize: bool) -> Ints:
    """The rows of all COMPLETE and PRUNED trials, the best first, in the order that `best_rows` says."""
    state, violation = columns.state[: columns.count], columns.violation[: columns.count]
    sign = -1.0 if maximize else 1.0
    complete = np.flatnonzero((state == COMPLETE) & (violation <= 0))
    complete = complete[np.argsort(sign * columns.value[complete], kind="stable")]
    pruned = np.flatnonzero((state == PRUNED) & (violation <= 0))
    steps, values = columns.rank[pruned].T
    values = np.where(np.isnan(values), np.inf, sign * values)
    infeasible = np.flatnonzero(((state == COMPLETE) | (state == PRUNED)) & (violation > 0))
    infeasible = infeasible[np.argsort(violation[infeasible], kind="stable")]
    return np.concatenate([complete, pruned[np.lexsort((values, steps))], infeasible])


def _smallest(candidates: Mask, costs: Floats, count: int) -> Ints:
    """The rows of the smallest costs among these candidates, ascending; of equals the first ones."""
    rows = _promising(costs, count)
    if rows is None:
        rows = np.flatnonzero(candidates)
    costs = costs[rows]
    if count == 0 or count == len(rows):
        return rows[:count]
    limit = np.partition(costs, count - 1)[count - 1]
    below = np.flatnonzero(costs < limit)
    equal = np.flatnonzero(costs == limit)[: count - len(below)]
    chosen: Ints = rows[np.sort(np.concatenate([below, equal]))]
    return chosen


def _promising(costs: Floats, count: int) -> Ints | None:
    """Rows among which the smallest costs are: those not above the largest of the `count` smallest of some minima."""
    minima = np.fmin.reduce(costs[: len(costs) // _STRIDE * _STRIDE].reshape(_STRIDE, -1), axis=0)
    if not 0 < count < len(minima):
        return None
    limit = np.partition(minima, count - 1)[count - 1]
    return np.flatnonzero(costs <= limit) if np.isfinite(limit) else None
