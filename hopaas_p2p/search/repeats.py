"""Records which configurations of a search space have been tried, and finds untried neighbours.

Two configurations are the same if the log stores the same parameters for both. A sampler's proposal is looked up in a
dictionary; each trial is read once. Points outside the space, such as those of an imported trial or a grid, are not
configurations of it.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import operator
import random
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from hopaas_p2p.core.state import BLOCK, BlockColumns, Trial, Trials

Params = Mapping[str, float]
"""Parameters as the log stores them, as numbers or indices of choices."""
Key = tuple[float, ...]

_NEAR: Final = (1, 2, 4, 8)  # steps of the grid
_MIXED: Final = 64  # neighbours that differ in more than one parameter
_NEARBY: Final = 0.02  # of the range, for a parameter without a grid
_MOST_COUNTED: Final = 1 << 40
_SAME: Final = 1e-9  # grid steps; two ways to compute a point may differ in the last bits


class Tried:
    """The configurations of a search space that have been tried. Not safe for use by several threads at once.

    Args:
        space: the parameters.

    """

    def __init__(self, space: Mapping[str, BaseDistribution]) -> None:
        self._space = space
        self._names = tuple(space)
        axes = [_axis(one) for one in space.values()]
        self._lows = tuple([low - step / 2 for low, _, step in axes])
        self._highs = tuple([high + step / 2 for _, high, step in axes])
        self._stepped = [(place, low, step) for place, (low, _, step) in enumerate(axes) if step]
        self._choices = [name for name, one in space.items() if isinstance(one, CategoricalDistribution)]
        self._numbers: dict[Key, int] = {}
        self._outside: dict[Key, int] = {}
        """Tried configurations outside the space."""
        self.size = _size(space)
        """The number of configurations; None if infinite, or more than 2**40."""

    def note(self, trials: Iterable[Trial]) -> None:
        """Read these trials. Those that lack a parameter, or drew it from other choices, are ignored."""
        for trial in trials:
            if trial.params and not (trial.dists and self._has_other_choices(trial.dists)):
                with contextlib.suppress(KeyError):
                    numbers, key = self._place(trial.params)
                    numbers[key] = trial.number

    def _has_other_choices(self, dists: Mapping[str, object]) -> bool:
        """Whether a trial with these distributions of its own drew from other choices than this space has."""
        return any(name in dists for name in self._choices)

    def note_all(self, trials: Trials) -> None:
        """Read all trials of a study. No objects are created for trials in packed blocks."""
        for index in range(-(-len(trials) // BLOCK)):
            closed = trials.closed.get(index)
            if closed is None:
                self.note(trials.block(index))
            else:
                self._note_block(closed.columns())

    def _note_block(self, block: BlockColumns) -> None:
        sets, params = np.asarray(block.param_set), np.asarray(block.params)
        lengths = np.array([len(names) for names in block.param_sets])[sets]
        starts = np.cumsum(lengths) - lengths
        for index, names in enumerate(block.param_sets):
            if not names or not set(self._names) <= set(names):
                continue
            rows = np.flatnonzero(sets == index)
            foreign = [place for place, rare in block.rare.items() if self._has_other_choices(rare.dists)]
            rows = rows[~np.isin(rows, foreign)]
            values = [params[starts[rows] + names.index(name)] for name in self._names]
            keys, inside = list(values), np.ones(len(rows), dtype=bool)
            for column, low, high in zip(values, self._lows, self._highs, strict=True):
                inside &= (low <= column) & (column <= high)
            for place, low, step in self._stepped:
                exact = (values[place] - low) / step
                keys[place] = np.rint(exact)
                with np.errstate(invalid="ignore"):  # infinities, which are outside
                    inside &= np.abs(exact - keys[place]) <= _SAME * np.maximum(1.0, exact)
            for numbers, columns, chosen in ((self._numbers, keys, inside), (self._outside, values, ~inside)):
                found = zip(*[column[chosen].tolist() for column in columns], strict=True)
                for key, number in zip(found, (block.first + rows[chosen]).tolist(), strict=True):
                    numbers[key] = max(number, numbers.get(key, -1))

    def number_of(self, params: Params) -> int | None:
        """The number of the newest trial with these parameters; None if there is none."""
        numbers, key = self._place(params)
        return numbers.get(key)

    def reserve(self, params: Params, number: int = -1) -> int | None:
        """Reserve a configuration that is about to be tried, before the log has it. `number` is -1 while it is unknown.

        If a trial already has these parameters, nothing is reserved, and the number of the newest such trial is
        returned.
        """
        numbers, key = self._place(params)
        before = numbers.get(key)
        if before is None:
            numbers[key] = number
        return before

    def release(self, params: Params) -> None:
        """Cancel a reservation that was made without a number."""
        numbers, key = self._place(params)
        if numbers.get(key) == -1:
            del numbers[key]

    @property
    def used_up(self) -> bool:
        """Whether every configuration has been tried or reserved."""
        return self.size is not None and len(self._numbers) >= self.size

    def neighbour(self, params: Params, *, fixed: Collection[str] = ()) -> dict[str, float] | None:
        """A configuration near this one that has not been tried and has the same `fixed` parameters, or None.

        The first candidates differ in one parameter, by as few steps as possible, and later ones in several parameters.
        In a finite space (`size`) without `fixed` parameters, an untried configuration is found if there is one.
        """
        near = (one for one in self._near(params) if all(one[name] == params[name] for name in fixed if name in one))
        return next((one for one in near if self.number_of(one) is None), None)

    def _place(self, params: Params) -> tuple[dict[Key, int], Key]:
        """The dictionary and the key under which a configuration's number is kept. Raises KeyError if a parameter is
        missing.
        """
        values = tuple(map(params.__getitem__, self._names))
        if not (all(map(operator.le, self._lows, values)) and all(map(operator.le, values, self._highs))):
            return self._outside, values
        if not self._stepped:
            return self._numbers, values
        key = list(values)
        for place, low, step in self._stepped:
            exact = (values[place] - low) / step
            key[place] = round(exact)
            if abs(exact - key[place]) > _SAME * max(1.0, exact):
                return self._outside, values
        return self._numbers, tuple(key)

    def _near(self, params: Params) -> Iterator[dict[str, float]]:
        start = {name: params[name] for name in self._names}
        for steps in _NEAR:
            moves = [(name, value) for name in self._names for value in _moved(self._space[name], start[name], steps)]
            random.shuffle(moves)
            yield from [{**start, name: value} for name, value in moves]
        for _ in range(_MIXED):
            near = dict(start)
            for name in random.sample(self._names, random.randint(1, len(self._names))):
                near[name] = random.choice([start[name], *_moved(self._space[name], start[name], random.choice(_NEAR))])
            yield near
        if self.size is not None and not self.used_up:
            yield from self._anywhere()

    def _anywhere(self) -> Iterator[dict[str, float]]:
        """Consecutive configurations, from a random one on; enough of them for at least one to be new."""
        assert self.size is not None
        counts = [count_of(one) or 1 for one in self._space.values()]
        first = random.randrange(self.size)
        for index in itertools.islice(itertools.count(first), len(self._numbers) + 1):
            place, found = index % self.size, {}
            for (name, one), count in zip(self._space.items(), counts, strict=True):
                place, index_of_value = divmod(place, count)
                found[name] = _value(one, index_of_value)
            yield found


def _axis(one: BaseDistribution) -> tuple[float, float, float]:
    """The lowest and the highest value of a parameter, in the form of the log, and its step, which is 0 without a
    grid.
    """
    if isinstance(one, CategoricalDistribution):
        return 0.0, len(one.choices) - 1.0, 1.0
    assert isinstance(one, FloatDistribution | IntDistribution)
    return float(one.low), float(one.high), float(one.step or 0.0)


def _size(space: Mapping[str, BaseDistribution]) -> int | None:
    size = 1
    for one in space.values():
        count = count_of(one)
        if count is None:
            return None
        size *= count
    return size if size <= _MOST_COUNTED else None


def count_of(one: BaseDistribution) -> int | None:
    """How many values the distribution has; None if infinitely many."""
    if isinstance(one, CategoricalDistribution):
        return len(one.choices)
    if one.single():
        return 1
    assert isinstance(one, FloatDistribution | IntDistribution)
    if one.step is None:
        return None
    return math.floor((one.high - one.low) / one.step + 1e-9) + 1


def _value(one: BaseDistribution, index: int) -> float:
    if isinstance(one, CategoricalDistribution):
        return float(index)
    assert isinstance(one, FloatDistribution | IntDistribution)
    return float(one.low) if one.step is None or index == 0 else float(one.low + index * one.step)


def _moved(one: BaseDistribution, value: float, steps: int) -> list[float]:
    """The values `steps` steps away; for a categorical parameter, all other choices."""
    if isinstance(one, CategoricalDistribution):
        return [float(index) for index in range(len(one.choices)) if index != value] if steps == 1 else []
    assert isinstance(one, FloatDistribution | IntDistribution)
    if one.single():
        return []
    if one.step is not None:
        index = round((value - one.low) / one.step)
        last = (count_of(one) or 1) - 1
        return [_value(one, place) for place in (index - steps, index + steps) if 0 <= place <= last]
    low, high = (math.log(one.low), math.log(one.high)) if one.log else (one.low, one.high)
    here = math.log(max(value, one.low)) if one.log else value
    reach = steps * _NEARBY * (high - low)
    place = random.uniform(max(low, here - reach), min(high, here + reach))
    return [min(max(math.exp(place) if one.log else place, one.low), one.high)]
