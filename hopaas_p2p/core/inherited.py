"""Data that a trial inherits from an earlier one, without a copy.

A record may name a trial with any number of reports and attributes at no extra cost. Up to `FEW` attributes, or
`FEW_STEPS` steps of each metric, are copied. Larger mappings are linked: a retry, a continuation or a late result has
the mapping of the trial before it below its own entries. The lower mapping belongs to a finished trial, which never
changes again.

Steps are kept in order, so that a trial that goes back to an earlier step only drops what came after it.
"""

from __future__ import annotations

import bisect
from collections.abc import Collection, ItemsView, Iterator, Mapping, MutableMapping, Sequence, ValuesView
from typing import Final, TypeVar

from hopaas_p2p.core.records import FROM_START

K = TypeVar("K")
V = TypeVar("V")

FEW: Final = 256
"""Attributes that are copied rather than linked."""
FEW_STEPS: Final = 8
"""Steps of a metric that are copied rather than linked; fewer, because a trial may have many metrics."""
_DEEPEST: Final = 64
"""Links from one mapping to the next before all of them are copied into one."""
_MANY: Final = 4096
"""Steps that may arrive out of order before all are sorted again."""
LAST_STEP: Final = (1 << 63) - 1


class _Chained(Mapping[K, V]):
    """A mapping that readers see as one dictionary."""

    __slots__ = ()

    def flat(self) -> dict[K, V]:
        """All entries, in order of insertion. The caller must not change them."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[K]:
        return iter(self.flat())

    def __len__(self) -> int:
        return len(self.flat())

    def items(self) -> ItemsView[K, V]:
        return self.flat().items()

    def values(self) -> ValuesView[V]:
        return self.flat().values()

    def __eq__(self, other: object) -> bool:
        return self.flat() == (other.flat() if isinstance(other, _Chained) else other)

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return repr(self.flat())


class Layered(_Chained[K, V], MutableMapping[K, V]):
    """Entries on top of a base, some of whose entries are hidden."""

    __slots__ = ("base", "depth", "hidden", "own")

    def __init__(self, base: Mapping[K, V], own: dict[K, V], hidden: Collection[K] = ()) -> None:
        self.base, self.own, self.hidden = base, own, set(hidden)
        self.depth: int = base.depth + 1 if isinstance(base, Layered) else 0

    def flat(self) -> dict[K, V]:
        return {**{key: value for key, value in self.base.items() if key not in self.hidden}, **self.own}

    def __getitem__(self, key: K) -> V:
        if key in self.own:
            return self.own[key]
        if key in self.hidden:
            raise KeyError(key)
        return self.base[key]

    def __bool__(self) -> bool:
        return bool(self.own) or any(key not in self.hidden for key in self.base)

    def __setitem__(self, key: K, value: V) -> None:
        self.own[key] = value

    def __delitem__(self, key: K) -> None:
        self.own.pop(key, None)
        self.hidden.add(key)


def merged(old: Mapping[K, V], new: Mapping[K, V]) -> MutableMapping[K, V]:
    """The old attributes, updated with those that a record sets, as a new object, so readers see that they changed.

    If there are many attributes, `old` shares entries with the result and changes, too.
    """
    if not isinstance(old, Layered):
        return {**old, **new} if len(old) <= FEW else Layered(old, dict(new))
    old.own.update(new)
    found = Layered(old.base, old.own)
    found.hidden = old.hidden
    return found


def branch(old: Mapping[K, V], without: Collection[K] = ()) -> MutableMapping[K, V]:
    """The same entries except those in `without`, for another trial; `old` must never change again."""
    if not isinstance(old, Layered):
        return {key: old[key] for key in old if key not in without} if len(old) <= FEW else Layered(old, {}, without)
    if old.depth >= _DEEPEST:
        return Layered(old.flat(), {}, without)
    if len(old.own) <= FEW:
        return Layered(old.base, {key: old.own[key] for key in old.own if key not in without}, {*old.hidden, *without})
    return Layered(old, {}, without)


def if_few(attributes: Mapping[K, V]) -> Mapping[K, V] | None:
    """These attributes, if there are at most `FEW`; None for more, which are too many to process one by one."""
    found = flat(attributes) if _at_least(attributes) <= FEW else None
    return found if found is None or len(found) <= FEW else None


def _at_least(attributes: Mapping[K, V]) -> int:
    if not isinstance(attributes, Layered):
        return len(attributes)
    return max(len(attributes.own), _at_least(attributes.base) - len(attributes.hidden))


class _Steps:
    """Values by step, with the steps in order; steps that arrived after a higher one are kept in `late`."""

    __slots__ = ("late", "steps", "values")

    def __init__(self, values: dict[int, float]) -> None:
        self.values, self.steps, self.late = values, sorted(values), list[int]()

    def floor(self, first: int, last: int) -> int | None:
        """The highest known step in [first, last]."""
        places = [(steps, bisect.bisect_right(steps, last)) for steps in (self.steps, self.late)]
        return max([steps[at - 1] for steps, at in places if at and steps[at - 1] >= first], default=None)

    def ceiling(self, first: int, last: int) -> int | None:
        """The lowest known step in [first, last]."""
        places = [(steps, bisect.bisect_left(steps, first)) for steps in (self.steps, self.late)]
        return min([steps[at] for steps, at in places if at < len(steps) and steps[at] <= last], default=None)


class StepValues(_Chained[int, float]):
    """Values by step; the last step, or the first one from a given step on, is found without scanning all of them.

    A trial's own values take precedence over those of `older` trials, the newest first, each with a range of steps that
    counts.
    """

    __slots__ = ("older", "own")

    def __init__(self, own: dict[int, float], older: Sequence[tuple[_Steps, int, int]] = ()) -> None:
        self.own, self.older = _Steps(own), older

    def _layers(self) -> list[tuple[_Steps, int, int]]:
        return [(self.own, FROM_START, LAST_STEP), *self.older]

    def flat(self) -> dict[int, float]:
        if not self.older:
            return self.own.values
        found: dict[int, float] = {}
        for one, first, last in reversed(self._layers()):
            found |= {step: value for step, value in one.values.items() if first <= step <= last}
        return found

    def __getitem__(self, step: int) -> float:
        for one, first, last in self._layers():
            if first <= step <= last and step in one.values:
                return one.values[step]
        raise KeyError(step)

    def __bool__(self) -> bool:
        return bool(self.own.values or self.older)

    def add(self, values: Mapping[int, float]) -> None:
        """Add these values."""
        own, steps, late = self.own.values, self.own.steps, self.own.late
        for step in values:
            if step not in own:
                if not steps or step > steps[-1]:
                    steps.append(step)
                else:
                    bisect.insort(late, step)
                    if len(late) > _MANY:
                        steps += late
                        steps.sort()
                        late.clear()
        own.update(values)

    def floor(self, step: int) -> int | None:
        """The last step up to this one."""
        found = [one.floor(first, min(step, last)) for one, first, last in self._layers()]
        return max([one for one in found if one is not None], default=None)

    def ceiling(self, step: int) -> int | None:
        """The first step from this one on."""
        found = [one.ceiling(max(step, first), last) for one, first, last in self._layers()]
        return min([one for one in found if one is not None], default=None)

    def cut(self, first: int, last: int) -> None:
        """Drop the values outside these steps."""
        for steps in (self.own.steps, self.own.late):
            if not steps or first <= steps[0] <= steps[-1] <= last:
                continue
            low, high = bisect.bisect_left(steps, first), bisect.bisect_right(steps, last)
            for step in (*steps[:low], *steps[high:]):
                del self.own.values[step]
            del steps[high:], steps[:low]
        self.older = _within(self.older, first, last) if self.older else ()

    def branch(self, first: int, last: int) -> StepValues:
        """The values at these steps, for another trial."""
        if len(self.own.values) <= FEW_STEPS and self.older:
            return StepValues(_between(self.own.values, first, last), _within(self.older, first, last))
        if len(self.older) >= _DEEPEST:
            return StepValues({}, _within([(_Steps(self.flat()), first, last)], first, last))
        return StepValues({}, _within(self._layers(), first, last))


def _within(layers: Sequence[tuple[_Steps, int, int]], first: int, last: int) -> list[tuple[_Steps, int, int]]:
    """What remains of these layers at the steps from `first` to `last`."""
    cut_ = [(one, max(first, begin), min(last, end)) for one, begin, end in layers]
    return [layer for layer in cut_ if layer[0].ceiling(*layer[1:]) is not None]


def grown(old: Mapping[int, float], new: Mapping[int, float]) -> Mapping[int, float]:
    """The values of a running trial with those of a record added; `old` may be changed and returned."""
    if old.__class__ is dict:
        old.update(new)
        return old if len(old) <= FEW_STEPS else StepValues(old)
    old.add(new)  # type: ignore[attr-defined]
    return old


def linked(values: Mapping[int, float]) -> Mapping[int, float]:
    """The same values, as `StepValues` if there are many."""
    return StepValues(values) if isinstance(values, dict) and len(values) > FEW_STEPS else values


def cut(values: Mapping[int, float], first: int, last: int) -> Mapping[int, float]:
    """The values of a running trial at these steps; its other values are discarded."""
    if isinstance(values, StepValues):
        values.cut(first, last)
        return values
    return cut(linked(values), first, last) if len(values) > FEW_STEPS else _between(values, first, last)


def inherited(values: Mapping[int, float], first: int, last: int) -> Mapping[int, float]:
    """The values at these steps, for another trial that inherits them.

    `values` must never change again, and are `linked` if there are many.
    """
    return values.branch(first, last) if isinstance(values, StepValues) else _between(values, first, last)


def _between(values: Mapping[int, float], first: int, last: int) -> dict[int, float]:
    return {step: value for step, value in values.items() if first <= step <= last}


def last_step(values: Mapping[int, float]) -> int | None:
    """The last step that has a value; None if there is none."""
    return values.floor(LAST_STEP) if isinstance(values, StepValues) else max(values, default=None)


def value_from(values: Mapping[int, float], step: int) -> float | None:
    """The value at this step, or at the first one after it that has one; None if there is none."""
    value = values.get(step)
    if value is not None:
        return value
    at = values.ceiling(step) if isinstance(values, StepValues) else min((s for s in values if s >= step), default=None)
    return None if at is None else values[at]


def flat(values: Mapping[K, V]) -> dict[K, V]:
    """A plain dictionary for callers that accept nothing else, which must not change it."""
    return values.flat() if isinstance(values, _Chained) else values  # type: ignore[return-value]
