"""The trials of a study as columns, for code that reads many trials: charts, rankings, the monitor and samplers.

Finished trials never change, so each is read once, and those of a State are read in whole packed blocks. Only waiting,
running and new trials are read again. Parameters are in Optuna's internal representation (for a choice, its index)
under the first distribution that a trial of the study has for that name.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final, Literal, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from hopaas_p2p.analysis.objectives import objectives
from hopaas_p2p.core.attributes import COPIED
from hopaas_p2p.core.spending import earlier_seconds
from hopaas_p2p.core.state import BLOCK, BlockColumns, State, Trial
from hopaas_p2p.translate import external, to_optuna

T = TypeVar("T")
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

COMPLETE: Final = int(TrialState.COMPLETE)
PRUNED: Final = int(TrialState.PRUNED)
FAIL: Final = int(TrialState.FAIL)
RUNNING: Final = int(TrialState.RUNNING)
_OVER: Final = frozenset({COMPLETE, PRUNED, FAIL})
_WORDS: Final = np.array([one.name for one in TrialState])
_NAN: Final = float("nan")
_MOST_ON_FRONT: Final = 10_000


class Parameter(NamedTuple):
    """A parameter's range, for an axis."""

    name: str
    low: float
    high: float
    log: bool = False
    choices: tuple[str, ...] | None = None
    """The choices as text, by index; None for a numeric parameter."""
    whole: bool = False


class TrialTable:
    """The trials of one study as columns, which grow with it. Only one thread may use a table during an update.

    A trial's row is its number. Columns have one entry per trial, and are valid until the next update.
    """

    COLUMNS: ClassVar[dict[str, tuple[type, float]]] = {
        "state": (np.int8, -1),
        "start": (np.float64, _NAN),
        "end": (np.float64, _NAN),
        "earlier": (np.float64, 0),
        "steps": (np.int64, 0),
        "last_step": (np.float64, _NAN),
        "last": (np.float64, _NAN),
        "attempt": (np.int64, 1),
        "owner": (np.int64, -1),
        "infeasible": (np.bool_, False),
        "paused": (np.bool_, False),
    }
    """Name -> the column's type, and the column's value for a trial without one."""
    state: NDArray[np.int8]
    """The trial's `TrialState` as a number."""
    start: Floats
    """Seconds since 1970; NaN when unknown."""
    end: Floats
    earlier: Floats
    """The seconds that a trial ran before its last lease."""
    steps: Ints
    """The number of reported values."""
    last_step: Floats
    last: Floats
    """The value reported last; NaN without reports."""
    attempt: Ints
    owner: Ints
    """The index of the trial's owner in `owners`; -1 for a trial that no peer ran."""
    infeasible: Mask
    """Which trials violate their constraints, and so are never the best."""
    paused: Mask
    """Which of the PRUNED trials paused at a rung or in a population."""
    values: Floats
    """One row per trial, one column per objective; NaN without a value."""
    params: dict[str, Floats]
    """Name -> the parameter's values; NaN for a trial without the parameter."""

    def __init__(self, directions: Sequence[str] = ("minimize",)) -> None:
        self.lsn = 0
        self.directions = tuple(directions)
        self.objectives: tuple[str, ...] = ("value",)
        """The objectives' names; for a State, those of `objectives(state)`."""
        self.distributions: dict[str, BaseDistribution] = {}
        """The first distribution of each parameter."""
        self.parameters: dict[str, Parameter] = {}
        self.mixed: set[str] = set()
        """Parameters whose kind differs between trials."""
        self.owners: tuple[str, ...] = ()
        self.sites: tuple[str, ...] = ()
        self.site: Ints = np.empty(0, np.int64)
        """The index of the trial's site in `sites`."""
        self.own: set[int] = set()
        """Rows of a State's trials that have their own distributions."""
        self._merged: dict[str, Ints] = {}
        """For a parameter with equal choices, such as 1 and True, index -> index of the first equal choice."""
        self._compared: dict[str, BaseDistribution] = {}
        """The most recently compared distribution of each parameter."""
        self._codes: dict[str, int] = {}
        self._open: dict[int, object] = {}
        """Rows of unfinished trials -> the trial as it was read."""
        self._arrays: dict[str, NDArray[Any]] = {name: np.full(256, *one[::-1]) for name, one in self.COLUMNS.items()}
        self._arrays["values"] = np.full((256, len(self.directions)), _NAN)
        self._places: dict[str, Floats] = {}
        self.make_room(0, {})

    @classmethod
    def of(cls, state: State, before: Self | None = None) -> Self:
        """The trials of this State, whose lock must be held. `before`, an earlier table of the same study, makes this
        fast.
        """
        directions = state.define.directions if state.define else ("minimize",)
        if before is None or before.directions != directions:
            table = cls(directions)
        else:
            table = copy.copy(before)
            for name, one in vars(before).items():
                if isinstance(one, dict | set):
                    setattr(table, name, one.copy())
            for columns in (table._arrays, table._places):
                columns |= {name: column.copy() for name, column in columns.items()}
        table.follow(state)
        return table

    def __len__(self) -> int:
        return len(self.state)

    @property
    def room(self) -> int:
        """How many trials fit before the arrays are reallocated."""
        return len(self._arrays["state"])

    @property
    def number(self) -> Ints:
        """The trials' numbers."""
        return np.arange(len(self))

    # --- questions ---

    def seconds(self) -> Floats:
        """Each trial's duration over all its leases; NaN for an unfinished trial or unknown times."""
        spent: Floats = np.maximum(0.0, self.end - self.start) + self.earlier
        return spent

    @property
    def words(self) -> NDArray[np.str_]:
        """Each trial's state, as in `facts.trial_word`."""
        return np.where(self.paused, "PAUSED", _WORDS[self.state])

    @property
    def cut_short(self) -> str:
        """What the PRUNED trials are called together."""
        return "pruned or paused" if self.paused.any() else "pruned"

    def is_(self, *states: int) -> Mask:
        """Which trials are in one of these states."""
        return np.isin(self.state, states)

    def cost(self, objective: int = 0) -> Floats:
        """The objective's values, with the sign chosen so that smaller is better; infinite for infeasible trials."""
        sign = -1.0 if self.directions[objective] == "maximize" else 1.0
        return np.where(self.infeasible, np.inf, sign * self.values[:, objective])

    def worst(self, objective: int = 0) -> Literal["low", "high"]:
        """The end of this objective's axis where the worst values are."""
        return "low" if self.directions[objective] == "maximize" else "high"

    def front(self, shown: Mask | None = None) -> Ints:
        """The rows of the COMPLETE and feasible trials that no other trial dominates. Equal trials are all on the
        front.

        With three or more objectives, only the 10,000 points of the front that are best in the first objective are
        found.

        Args:
            shown: the trials that count; by default all.

        """
        rows = self._valued(slice(None), shown)
        rows = rows[~self.infeasible[rows]]
        costs = np.stack([self.cost(one)[rows] for one in range(len(self.directions))])
        order = np.lexsort(costs[::-1])  # only an earlier trial in this order can beat a later one
        rows, costs = rows[order], costs[:, order]
        differs = np.append(True, (costs[:, 1:] != costs[:, :-1]).any(axis=0))[: len(rows)]
        points, point_of = costs[:, differs], np.cumsum(differs) - 1
        on_front, left = np.zeros(points.shape[1], np.bool_), np.arange(points.shape[1])
        if len(costs) == 2:
            on_front[:1], on_front[1:] = True, points[1, 1:] < np.minimum.accumulate(points[1])[:-1]
            left = left[:0]
        for _ in range(_MOST_ON_FRONT):
            if not len(left):
                break
            on_front[left[0]] = True
            better = (points[:, 1:] < points[:, :1]).any(axis=0)
            left, points = (left[1:], points[:, 1:]) if better.all() else (left[1:][better], points[:, 1:][:, better])
        return np.sort(rows[on_front[point_of]])

    def complete(self, objective: int = 0, shown: Mask | None = None) -> Mask:
        """The COMPLETE trials, or those of them in `shown`, that have a finite value, so that a chart can show them."""
        complete: Mask = (self.state == COMPLETE) & np.isfinite(self.values[:, objective])
        return complete if shown is None else complete & shown

    def ranked(self, objective: int = 0, shown: Mask | None = None) -> Ints:
        """The rows of the COMPLETE trials, or of those in `shown`, best first and infeasible ones last, and equals by
        number.
        """
        rows = self._valued([objective], shown)
        return rows[np.lexsort((self.cost(objective)[rows], self.infeasible[rows]))]

    def best(self, objective: int | None = None, shown: Mask | None = None) -> int | None:
        """The row of the best COMPLETE and feasible trial, or of the best in `shown`; the earliest of equals. None with
        several objectives, unless one is given.
        """
        if objective is None and len(self.directions) > 1:
            return None
        objective = objective or 0
        rows = self._valued([objective], shown)
        rows = rows[~self.infeasible[rows]]
        return int(rows[np.argmin(self.cost(objective)[rows])]) if len(rows) else None

    def _valued(self, objectives: slice | list[int], shown: Mask | None) -> Ints:
        """The rows of the COMPLETE trials, or of those in `shown`, that have a value for each of these objectives."""
        mask = (self.state == COMPLETE) & ~np.isnan(self.values[:, objectives]).any(axis=1)
        return np.flatnonzero(mask if shown is None else mask & shown)

    def merged(self, name: str, rows: Ints | slice) -> Floats:
        """A parameter's values in these rows, where equal choices have one index, as in Optuna."""
        column, codes = self.params[name][rows], self._merged.get(name)
        if codes is None:
            return column
        known = np.isfinite(column)
        return np.where(known, codes[np.where(known, column, 0).astype(np.int64)], np.nan)

    # --- reading ---

    def follow(self, state: State) -> None:
        """Read the changes in this State, whose lock must be held. Blocks of finished trials are read as a whole."""
        trials, row = state.trials, len(self)
        self.objectives = objectives(state)
        new = list(state.dists.items())[len(self._places) :]
        self.make_room(len(trials), {name: to_optuna(one) for name, one in new})
        for number in sorted(self._open):
            self._read_logged(number, trials[number], state)
        while row < len(trials):
            closed = trials.closed.get(row // BLOCK) if row % BLOCK == 0 else None
            if closed is None:
                self._read_logged(row, trials[row], state)
                row += 1
                continue
            block = closed.columns()
            alone = {
                at
                for at, rare in block.rare.items()
                if rare.dists or rare.history or "earlier" in rare.system.get(COPIED, "")
            }
            self.read_block(block, but=alone)
            for at in alone:
                self._read_logged(row + at, trials[row + at], state)
            row += BLOCK
        self.lsn, self.owners = state.lsn, tuple(self._codes)
        names = [place(state, one)[0] for one in self.owners] + ["-"] * bool((self.owner < 0).any())
        sites, codes = np.unique(np.array(names, object), return_inverse=True)
        self.sites, self.site = tuple(sites.tolist()), codes[self.owner]  # the index -1 takes the last code

    def read_block(self, block: BlockColumns, *, but: Collection[int]) -> Ints:
        """Read a block of finished trials except those at these places; returns the places that were read."""
        states = np.frombuffer(block.states, np.uint8)
        plain = np.ones(len(states), np.bool_)
        plain[list(but)] = False
        rows, those = np.flatnonzero(plain), slice(block.first, block.first + len(states))
        owners = np.array([-1 if one is None else self._code(one) for one in block.owners] or [-1])
        for column, made in (
            (self.state, states),
            (self.start, np.asarray(block.starts) / 1e6),
            (self.end, np.asarray(block.ends) / 1e6),
            (self.owner, owners[np.asarray(block.owner)]),
        ):
            column[those][plain] = made[plain]
        for at, rare in block.rare.items():
            self.attempt[block.first + at] = rare.attempt
            self.infeasible[block.first + at] = not rare.feasible
            self.paused[block.first + at] = rare.paused
        widths, values = np.asarray(block.widths), np.asarray(block.values)
        valued = rows[widths[rows] == len(self.directions)]
        at = _starts(np.maximum(widths, 0))[valued]
        self.values[block.first + valued] = values[at[:, None] + np.arange(len(self.directions))]
        reports, params = np.asarray(block.reports), np.asarray(block.params)
        for steps, some, begin in _alike(block.step_sets, block.step_set, rows):
            if steps:
                last = int(np.argmax(steps))
                self.steps[block.first + some] = len(steps)
                self.last_step[block.first + some] = steps[last]
                self.last[block.first + some] = reports[begin + last]
        for names, some, begin in _alike(block.param_sets, block.param_set, rows):
            for offset, name in enumerate(names):
                column = params[begin + offset]
                self._places[name][block.first + some] = np.where(np.isfinite(column), column, np.nan)
        return rows

    def _read_logged(self, row: int, trial: Trial, state: State) -> None:
        self._read_scalars(row, trial, trial.reports, trial.start, trial.end)
        self.earlier[row] = earlier_seconds(trial)
        self.attempt[row] = trial.attempt
        self.infeasible[row] = not trial.feasible
        self.paused[row] = trial.paused
        self.owner[row] = -1 if trial.owner is None else self._code(trial.owner)
        if trial.dists:
            self.own.add(row)
        for name, value in list(trial.params.items()):
            if name not in trial.dists:
                self._places[name][row] = value if math.isfinite(value) else _NAN
                continue
            own = to_optuna(trial.dists[name])
            self._place(row, name, external(own, value), own)

    def refresh(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Read the changes of an Optuna study, given all its trials. Returns those for which `read` is true."""
        known = len(self)
        self.make_room(max(known, len(trials)), {})
        rows = [*sorted(self._open), *range(known, len(trials))]
        return [trials[row] for row in rows if row < len(trials) and self.read(row, trials[row])]

    def read(self, row: int, trial: FrozenTrial) -> bool:
        """Read one trial of an Optuna study; returns whether it differs from the one last read in this row."""
        if trial is self._open.get(row):
            return False
        both = (trial.datetime_start, trial.datetime_complete)
        times = [None if one is None else one.timestamp() * 1e6 for one in both]
        self._read_scalars(row, trial, trial.intermediate_values, *times)
        self._read_params(row, self.params_of(trial), trial.distributions)
        return True

    def params_of(self, trial: FrozenTrial) -> Mapping[str, Any]:
        """The parameters of a trial to read, as the objective sees them."""
        return trial.params

    def _read_scalars(
        self, row: int, trial: Trial | FrozenTrial, reports: Mapping[int, float], start: float | None, end: float | None
    ) -> None:
        state, values = int(trial.state), trial.values
        if state in _OVER:
            self._open.pop(row, None)
        else:
            self._open[row] = trial
        self.state[row] = state
        self.start[row] = _NAN if start is None else start / 1e6
        self.end[row] = _NAN if end is None else end / 1e6
        if values is not None and len(values) == len(self.directions):
            self.values[row] = values
        steps = list(reports)
        if steps:
            last = max(steps)
            self.steps[row], self.last_step[row], self.last[row] = len(steps), last, reports.get(last, _NAN)

    def _read_params(self, row: int, params: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]) -> None:
        for column in self._places.values():  # a trial need not use all parameters that it announced while it ran
            column[row] = _NAN
        for name, value in params.items():
            one = distributions.get(name)  # None if the sampler of a running trial has only announced it
            if name not in self._places and one is not None:
                self._new_parameter(name, one)
            if name in self._places:
                self._place(row, name, value, one)

    def _place(self, row: int, name: str, value: Any, one: BaseDistribution | None) -> None:
        """Enter a parameter's value. It is NaN if it has no place on the axis of the first distribution."""
        kind = self.distributions[name]
        if one is not None and one is not kind and one is not self._compared.get(name):
            self._compared[name] = one
            if isinstance(one, CategoricalDistribution) != isinstance(kind, CategoricalDistribution) or (
                isinstance(one, CategoricalDistribution) and one != kind
            ):
                self.mixed.add(name)
        try:
            if isinstance(kind, CategoricalDistribution):
                place: float = kind.to_internal_repr(value)
                if name in self._merged:  # look for the identical choice, not just an equal one
                    same = [at for at, choice in enumerate(kind.choices) if type(choice) is type(value)]
                    place = next((at for at in same if kind.choices[at] == value), place)
            else:
                place = float(value)
            self._places[name][row] = place if math.isfinite(place) else _NAN
        except (ValueError, TypeError, OverflowError):  # not a number, or not among the choices
            if one is not None:
                self.mixed.add(name)

    def _new_parameter(self, name: str, one: BaseDistribution) -> None:
        self.distributions[name] = one
        self.parameters[name] = _parameter(name, one)
        self._places[name] = np.full(self.room, np.nan)
        self.params[name] = self._places[name][: len(self)]
        if isinstance(one, CategoricalDistribution):
            first: dict[Any, int] = {}  # equal choices have one place, as in Optuna's lookup
            with contextlib.suppress(TypeError):  # Optuna also accepts lists, which have no hash
                codes = np.array([first.setdefault(choice, at) for at, choice in enumerate(one.choices)], np.int64)
                if (codes != np.arange(len(codes))).any():
                    self._merged[name] = codes

    def _code(self, owner: str) -> int:
        return self._codes.setdefault(owner, len(self._codes))

    def make_room(self, count: int, parameters: Mapping[str, BaseDistribution]) -> None:
        """Extend the columns to this length, and add those of new parameters."""
        if count > self.room:
            more = 2 * count - self.room
            for name, column in self._arrays.items():
                empty = self.COLUMNS.get(name, (np.float64, _NAN))[1]
                fill = np.full((more, *column.shape[1:]), empty, column.dtype)
                self._arrays[name] = np.concatenate([column, fill])
            fill = np.full(more, np.nan)
            self._places = {name: np.concatenate([column, fill]) for name, column in self._places.items()}
        for name, column in self._arrays.items():
            setattr(self, name, column[:count])
        self.params = {name: column[:count] for name, column in self._places.items()}
        for name, one in parameters.items():
            if name not in self._places:
                self._new_parameter(name, one)


def _parameter(name: str, one: BaseDistribution) -> Parameter:
    if isinstance(one, FloatDistribution | IntDistribution):
        log = one.log and one.low > 0
        return Parameter(name, float(one.low), float(one.high), log, whole=isinstance(one, IntDistribution))
    choices = tuple(map(str, one.choices)) if isinstance(one, CategoricalDistribution) else ()
    return Parameter(name, 0, max(0, len(choices) - 1), choices=choices)


def place(state: State, owner: str | None) -> tuple[str, str]:
    """The site and node of a peer, as it reported them; "?" if it did not."""
    info = state.peers.get(owner or "", {})
    return info.get("site") or "?", info.get("host") or "?"


def distinct(numbers: Ints) -> Ints:
    """These numbers in ascending order, without repeats. For many numbers, np.unique takes ten times as long."""
    ordered = np.sort(numbers)
    first = np.ones(len(ordered), np.bool_)
    first[1:] = ordered[1:] != ordered[:-1]
    return ordered[first]


def _alike(sets: Sequence[tuple[T, ...]], of: Sequence[int], rows: Ints) -> Iterator[tuple[tuple[T, ...], Ints, Ints]]:
    """Each set of names or steps that trials of a block share, which of these rows have it, and where the values of
    each row begin.
    """
    which = np.asarray(of)
    starts = _starts(np.array([len(one) for one in sets] or [0])[which])
    for index in distinct(which[rows]).tolist():
        some = rows[which[rows] == index]
        yield sets[index], some, starts[some]


def _starts(lengths: Ints) -> Ints:
    """Where each of several consecutive runs begins, if the runs have these lengths."""
    return np.asarray(np.cumsum(lengths, dtype=np.int64) - lengths)
