"""The trials of a study in the form in which samplers learn from them, updated at every ask."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from hopaas_p2p.analysis.table import COMPLETE, PRUNED, RUNNING, Floats, Ints, Mask, TrialTable
from hopaas_p2p.core.attributes import CONTINUES
from hopaas_p2p.core.state import BlockColumns

_LEARNED: Final = (TrialState.COMPLETE, TrialState.PRUNED)
_SUPERSEDED: Final = -1
_FAR: Final = 1e3  # ranges; Optuna's estimator overflows at about 1e100
_PRESENT: Final = 32  # cached sets of parameters with the trials that have them
_STRIDE: Final = 64  # costs per group, of which the minimum is checked first


class ReadBlock(NamedTuple):
    """A block of finished trials."""

    columns: BlockColumns
    special: list[FrozenTrial]
    """The trials of the block that cannot be read from the columns."""


class Changes(NamedTuple):
    """The changes in a study since its reader's last read."""

    reset: bool
    """Whether these are all trials of the study, so that earlier reads are obsolete."""
    number_of_trials: int
    """The number of all trials, including waiting and failed ones."""
    blocks: Sequence[ReadBlock]
    trials: Sequence[FrozenTrial]
    """Changed trials outside the blocks, ordered by number, each as its own process sees it."""
    distributions: Mapping[str, BaseDistribution]
    """The distributions of the parameters in the blocks."""


class TrialReader(Protocol):
    """Returns the changes since its last read; our storage provides one, so that no list of all trials is built."""

    def read(self) -> Changes:
        """The changes since the last read."""


class KnownTrials(TrialTable):
    """A `TrialTable` with queries for samplers. Not safe for use by several threads at once.

    Args:
        params_of: the parameters of a running trial; its sampler may have announced more than were suggested.
        objectives: the number of the study's objectives.

    """

    COLUMNS: ClassVar[dict[str, tuple[type, float]]] = TrialTable.COLUMNS | {
        "role": (np.int8, _SUPERSEDED),
        "violation": (np.float64, 0),
    }
    role: NDArray[np.int8]
    """The state of a trial to learn from (COMPLETE, PRUNED or RUNNING), or -1 for any other trial, such as one that
    another trial continued."""
    violation: Floats
    """The sum of the values of the violated constraints."""

    def __init__(self, params_of: Callable[[FrozenTrial], Mapping[str, Any]], objectives: int = 1) -> None:
        super().__init__(("minimize",) * objectives)
        self._params_of = params_of
        self._first: tuple[int, FrozenTrial] | None = None
        """The first finished trial that was read. If another trial is in its place later, it is another study."""
        self.learned = 0
        """The number of COMPLETE and PRUNED trials."""
        self.changes: list[int] = []
        """Rows in the order in which they were read. Each density remembers its position in this list."""
        self.intersection: dict[str, BaseDistribution] | None = None
        """The parameters that all COMPLETE and PRUNED trials have with the same distribution."""
        self.groups: list[dict[str, BaseDistribution]] = []
        """Sets of parameters that always occurred together, in the same order as with Optuna's option `group`."""
        self._shapes: set[frozenset[str]] = set()
        self._last_shape: Mapping[str, BaseDistribution] = {}
        self._present: dict[tuple[str, ...], tuple[Mask, int]] = {}
        """For each set of parameters, which trials have all of them, and how many of `changes` this takes into
        account."""

    def same_study(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether these can be the trials that were read before, possibly with new ones."""
        if self._first is None:
            return True
        row, before = self._first
        return row < len(trials) and (trials[row] is before or trials[row] == before)

    def take(self, changes: Changes) -> None:
        """Read the given changes."""
        self.make_room(max(len(self), changes.number_of_trials), changes.distributions)
        for block, special in changes.blocks:
            places = self.read_block(block, but=[trial.number - block.first for trial in special])
            states = self.state[block.first + places]
            learned = places[(states == COMPLETE) | (states == PRUNED)]
            self.role[block.first + learned] = self.state[block.first + learned]
            self.changes.extend((block.first + learned).tolist())
            self.learned += len(learned)
            sets, firsts = np.unique(np.asarray(block.param_set)[learned], return_index=True)
            shapes = {
                block.first + int(learned[first]): {name: changes.distributions[name] for name in block.param_sets[one]}
                for one, first in zip(sets.tolist(), firsts.tolist(), strict=True)
            }
            shapes |= {trial.number: trial.distributions for trial in special if self.read(trial.number, trial)}
            for _, shape in sorted(shapes.items(), key=lambda one: one[0]):
                self._learn(shape)
        for trial in changes.trials:
            if self.role[trial.number] not in (COMPLETE, PRUNED) and self.read(trial.number, trial):
                self._learn(trial.distributions)

    def refresh(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        found = super().refresh(trials)
        for trial in found:
            self._learn(trial.distributions)
        return found

    def read(self, row: int, trial: FrozenTrial) -> bool:
        """Read one trial; returns whether it has become COMPLETE or PRUNED."""
        if not super().read(row, trial):
            return False
        earlier = trial.system_attrs.get(CONTINUES) if trial.system_attrs else None
        learned = trial.state in _LEARNED
        if not learned and (trial.state is not TrialState.RUNNING or earlier is not None):
            self.role[row] = _SUPERSEDED  # while a continuation runs, the earlier trial has more to learn from
            return False
        self.role[row] = int(trial.state)
        self.changes.append(row)
        if learned:
            if type(earlier) is int and 0 <= earlier < len(self) and self.role[earlier] in (COMPLETE, PRUNED):
                self.role[earlier] = _SUPERSEDED  # a configuration counts once
                self.learned -= 1
            self.learned += 1
            self._first = self._first or (row, trial)
            if trial.system_attrs:
                self.violation[row] = sum(value for value in trial.constraints.values() if value > 0)
        return learned

    def params_of(self, trial: FrozenTrial) -> Mapping[str, Any]:
        if not trial.state.is_finished():
            with contextlib.suppress(TypeError, ValueError, AttributeError):  # of another peer's malformed announcement
                return self._params_of(trial)
        return trial.params

    def row_of(self, number: int) -> int | None:
        """The row of the unfinished trial with this number; None if there is none."""
        for row, trial in self._open.items():
            if isinstance(trial, FrozenTrial) and trial.number == number:
                return row
        return None

    def having(self, names: Iterable[str]) -> Mask:
        """Which trials have all these parameters. Do not modify the result; it is valid until the next read."""
        key = tuple(names)
        present, seen = self._present.pop(key, (None, 0))
        if present is None or len(present) < len(self):
            present = np.zeros(self.room, np.bool_)
            present[: len(self)] = self._complete(key, slice(None))
        elif seen < len(self.changes):
            rows = np.asarray(self.changes[seen:], np.int64)
            present[rows] = self._complete(key, rows)
        self._present[key] = present, len(self.changes)
        if len(self._present) > _PRESENT:
            del self._present[next(iter(self._present))]
        return present[: len(self)]

    def _complete(self, names: Iterable[str], rows: Ints | slice) -> Mask:
        present = np.ones(len(self), np.bool_)[rows]
        for name in names:
            present &= ~np.isnan(self.params[name][rows]) if name in self.params else False
        return present

    def observations(self, space: Mapping[str, BaseDistribution], rows: Ints) -> dict[str, Floats]:
        """The values of these parameters in these rows. A value many ranges away is moved nearer."""
        found = {name: self.merged(name, rows) if len(rows) else np.empty(0) for name in space}
        for name, one in space.items():
            if isinstance(one, FloatDistribution | IntDistribution):
                far = _FAR * (one.high - one.low)
                found[name] = found[name].clip(one.low / _FAR if one.log else one.low - far, one.high + far)
        return found

    def contains(self, values: Mapping[str, float], but: int | None) -> bool:
        """Whether a trial that has not failed, other than the one in row `but`, has these values."""
        if not values.keys() <= self.params.keys():
            return False
        (name, value), *others = values.items()
        rows = np.flatnonzero(self.merged(name, slice(None)) == value)
        for name, value in others:
            rows = rows[self.merged(name, rows) == value]
        rows = rows[np.isin(self.role[rows], (COMPLETE, PRUNED, RUNNING))]
        return bool((rows != but).any())

    def tried(self, names: Iterable[str], but: int | None) -> set[tuple[float, ...]]:
        """The values of all trials for which `contains` is true."""
        names = list(names)
        if not set(names) <= self.params.keys():
            return set()
        rows = np.flatnonzero(np.isin(self.role, (COMPLETE, PRUNED, RUNNING)))
        rows = rows[rows != but] if but is not None else rows
        return set(zip(*[self.merged(name, rows).tolist() for name in names], strict=True))

    def _learn(self, shape: Mapping[str, BaseDistribution]) -> None:
        """Update `intersection` and `groups` with the parameters of a COMPLETE or PRUNED trial."""
        if shape is self._last_shape:  # many trials share one
            return
        self._last_shape = shape
        if self.intersection is None:
            self.intersection = dict(shape)
        for name, one in list(self.intersection.items()):
            other = shape.get(name)
            if other is not one and other != one:
                del self.intersection[name]
        names = frozenset(shape)
        if names in self._shapes:
            return
        self._shapes.add(names)
        split = []
        for group in self.groups:
            if names.isdisjoint(group):
                split.append(group)
                continue
            split.append({name: one for name, one in group.items() if name in names})
            split.append({name: one for name, one in group.items() if name not in names})
            names -= group.keys()
        split.append({name: shape[name] for name in names})
        self.groups = [group for group in split if group]


def best_rows(trials: KnownTrials, count: int, *, maximize: bool) -> Ints:
    """The rows of the `count` best trials, in ascending order.

    The order is that of Optuna's TPE. COMPLETE trials are better than PRUNED ones, and infeasible ones are the worst.
    COMPLETE trials are ordered by value, PRUNED ones by their last step and then by their report at that step, and
    infeasible ones by their violation. Among equals, the earlier one is better.
    """
    complete = (trials.role == COMPLETE) & (trials.violation <= 0)
    if count > np.count_nonzero(complete):
        return np.sort(ranked_rows(trials, maximize=maximize)[:count])
    values = trials.values[:, 0]
    costs = np.where(complete, -values if maximize else values, np.inf)
    rows, minima = None, np.fmin.reduce(costs[: len(costs) // _STRIDE * _STRIDE].reshape(_STRIDE, -1), axis=0)
    if 0 < count < len(minima):  # the `count` smallest costs cannot exceed the `count`-th smallest group minimum
        limit = np.partition(minima, count - 1)[count - 1]
        rows = np.flatnonzero(costs <= limit) if np.isfinite(limit) else None
    if rows is None:
        rows = np.flatnonzero(complete)
    costs = costs[rows]
    if count == 0 or count == len(rows):
        return rows[:count]
    limit = np.partition(costs, count - 1)[count - 1]
    below = np.flatnonzero(costs < limit)
    equal = np.flatnonzero(costs == limit)[: count - len(below)]
    chosen: Ints = rows[np.sort(np.concatenate([below, equal]))]
    return chosen


def ranked_rows(trials: KnownTrials, *, maximize: bool) -> Ints:
    """The rows of all COMPLETE and PRUNED trials, the best first, in the order of `best_rows`."""
    role, violation = trials.role, trials.violation
    sign = -1.0 if maximize else 1.0
    complete = np.flatnonzero((role == COMPLETE) & (violation <= 0))
    complete = complete[np.argsort(sign * trials.values[complete, 0], kind="stable")]
    pruned = np.flatnonzero((role == PRUNED) & (violation <= 0))
    steps = np.nan_to_num(-trials.last_step[pruned], nan=1.0)  # trials without reports come last
    values = np.nan_to_num(sign * trials.last[pruned], nan=np.inf, posinf=np.inf, neginf=-np.inf)
    infeasible = np.flatnonzero(((role == COMPLETE) | (role == PRUNED)) & (violation > 0))
    infeasible = infeasible[np.argsort(violation[infeasible], kind="stable")]
    return np.concatenate([complete, pruned[np.lexsort((values, steps))], infeasible])
