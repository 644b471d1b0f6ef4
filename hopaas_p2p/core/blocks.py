"""Encodes blocks of 1,024 trials as bytes, each compressed separately; they make up most of a snapshot.

A block consists of columns; see `state.BlockColumns`. Reals are stored as planes of bytes, because the high bytes of
neighbours mostly agree and compress well. A set of parameters or steps is an index into a table of sets.
"""

from __future__ import annotations

import itertools
import math
import sys
import zlib
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from hopaas_p2p.core.inherited import flat
from hopaas_p2p.core.records import Categorical, Distribution, Natural, Step, TrialState
from hopaas_p2p.core.state import BLOCK, BlockColumns, Rare, State, Trial
from hopaas_p2p.core.validity import (
    MOST_ATTEMPTS,
    MOST_METRICS,
    possible_attributes,
    possible_distributions,
    possible_metric,
    possible_system,
    widened_distributions,
)

RATIO: Final = 32
"""Readers refuse a snapshot that inflates to more than this many times its size, so a forged one uses little memory."""
_LEVEL: Final = 1  # zlib 1 packs a block in 4 ms; level 6 takes 3 times that to save 2 %
_STATES: Final = tuple(TrialState)
_LIVE: Final = (TrialState.RUNNING, TrialState.WAITING)


class _Metrics(msgspec.Struct, array_like=True):
    """The metrics of a block, packed separately so that readers of columns need not decode them."""

    names: list[str]
    step_sets: list[tuple[Step, ...]]
    rows: list[tuple[Natural, Natural, Natural]]
    """For each metric of each trial: the trial's place in the block, the name, the set of steps."""
    values: bytes


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(BlockColumns).decode
_WHOLE: Final = ("epochs", "owner", "param_set", "step_set", "widths")
"""Columns of whole numbers. If all trials have the same value, the value is stored once."""
_decode_metrics: Final = msgspec.msgpack.Decoder(_Metrics).decode
_COMMON: Final = Rare()
_RARE: Final = Rare.__struct_fields__


class PackedBlock:
    """A settled block: full, with all of its trials finished. Only a late result may change it, after opening it."""

    __slots__ = ("_ends", "packed")

    def __init__(self, packed: memoryview) -> None:
        self.packed = packed
        """The bytes that a snapshot holds for this block."""
        self._ends: BlockColumns | None = None
        """The columns for `end_of`, kept after its first call, so that it inflates the block only once."""

    def end_of(self, place: int) -> Trial:
        """The trial at this place with some of its fields, as a new object; see `ClosedBlock`."""
        ends = self._ends
        if ends is None:
            ends = self._ends = _opened(zlib.decompress(self.packed))
            ends.params = ends.reports = ends.values = ends.metrics = b""
            for one in ends.rare.values():
                one.dists, one.user, one.system = {}, {}, {}
        trial = Trial(
            ends.first + place, _STATES[ends.states[place]], ends.epochs[place], ends.owners[ends.owner[place]]
        )
        _give(trial, ends.rare.get(place))
        return trial

    def trials(self) -> list[Trial]:
        """The trials, as new objects."""
        return unpack(zlib.decompress(self.packed))

    def columns(self) -> BlockColumns:
        """The trials as columns, whose numbers are arrays; NaN stands for an unknown time."""
        block = _decode(zlib.decompress(self.packed))
        for name in _WHOLE:
            column = array("q", getattr(block, name))
            setattr(block, name, column * BLOCK if len(column) == 1 else column)
        for name in ("starts", "ends"):
            times = getattr(block, name)
            known = [math.nan if one is None else one for one in times] if None in times else times
            setattr(block, name, array("d", known))
        block.params, block.reports, block.values = map(_reals, (block.params, block.reports, block.values))
        return block


def close_settled(state: State, at_most: int | None = None) -> bool:
    """Pack up to `at_most` blocks that will not change, so that they take less memory; return whether more remain.

    Packing takes a few milliseconds per block.
    """
    trials = state.trials
    unsettled = {number // BLOCK for number in (*state.waiting, *state.running)}
    settled = [one for one in trials.open if one not in unsettled and (one + 1) * BLOCK <= len(trials)]
    for index in settled[:at_most]:
        trials.close(index, PackedBlock(memoryview(pack(trials.open[index]))))
    return at_most is not None and len(settled) > at_most


def pack(trials: Sequence[Trial]) -> bytes:
    """The bytes of these trials."""
    return deflated(_encode(columns(trials)), _LEVEL)


def deflated(plain: bytes, level: int) -> bytes:
    """These bytes, compressed by at most the factor `RATIO` that readers accept."""
    packed = zlib.compress(plain, level)
    if len(plain) <= RATIO * len(packed):
        return packed
    weaker = zlib.compressobj(strategy=zlib.Z_HUFFMAN_ONLY)  # compresses to an eighth at best
    return weaker.compress(plain) + weaker.flush()


def _opened(plain: bytes) -> BlockColumns:
    block = _decode(plain)
    for name in _WHOLE:
        column = getattr(block, name)
        if len(column) == 1:
            setattr(block, name, column * len(block.states))
    return block


def _shortened(numbers: list[int]) -> list[int]:
    return numbers[:1] if numbers.count(numbers[0]) == len(numbers) else numbers


def columns(trials: Sequence[Trial]) -> BlockColumns:
    """These trials, at least one, as columns ready for packing."""
    owners: dict[str | None, int] = {}
    param_sets: dict[tuple[str, ...], int] = {}
    step_sets: dict[tuple[int, ...], int] = {}
    params, reports, values = array("d"), array("d"), array("d")
    names: dict[str, int] = {}
    metric_sets: dict[tuple[int, ...], int] = {}
    rows, metrics, rare = [], array("d"), {}
    for place, trial in enumerate(trials):
        params.extend(trial.params.values())
        reports.extend(trial.reports.values())
        values.extend(trial.values or ())
        for name, by_step in trial.metrics.items():
            steps = metric_sets.setdefault(tuple(by_step), len(metric_sets))
            rows.append((place, names.setdefault(name, len(names)), steps))
            metrics.extend(by_step.values())
        one = Rare(**{name: getattr(trial, name) for name in _RARE})
        one.dists, one.user, one.system = flat(one.dists), flat(one.user), flat(one.system)
        if one != _COMMON:
            rare[place] = one
    return BlockColumns(
        first=trials[0].number,
        states=bytes([trial.state for trial in trials]),
        epochs=_shortened([trial.epoch for trial in trials]),
        owner=_shortened([owners.setdefault(trial.owner, len(owners)) for trial in trials]),
        owners=list(owners),
        starts=[trial.start for trial in trials],
        ends=[trial.end for trial in trials],
        param_set=_shortened([param_sets.setdefault(tuple(trial.params), len(param_sets)) for trial in trials]),
        param_sets=list(param_sets),
        params=_planes(params),
        step_set=_shortened([step_sets.setdefault(tuple(trial.reports), len(step_sets)) for trial in trials]),
        step_sets=list(step_sets),
        reports=_planes(reports),
        widths=_shortened([-1 if trial.values is None else len(trial.values) for trial in trials]),
        values=_planes(values),
        rare=rare,
        metrics=_encode(_Metrics(list(names), list(metric_sets), rows, _planes(metrics))) if rows else b"",
    )


def _give(trial: Trial, rare: Rare | None) -> None:
    for name in _RARE if rare is not None else ():
        setattr(trial, name, getattr(rare, name))
    trial.history = trial.history or ()


def inflated(packed: bytes | memoryview, *, at_most: int) -> bytes:
    """The inflated bytes of a piece.

    Raises ValueError if they are more than `at_most`, end early, or are followed by others, and zlib.error if the
    compressed bytes are damaged.
    """
    inflater = zlib.decompressobj()
    plain = inflater.decompress(packed, max(at_most, 1))
    if not inflater.eof or inflater.unused_data:
        raise ValueError
    return plain


def unpack(plain: bytes) -> list[Trial]:
    """The trials of an inflated block."""
    block = _opened(plain)
    params, reports, values = [_reals(one).tolist() for one in (block.params, block.reports, block.values)]
    at_param = at_report = at_value = 0
    trials = []
    columns = block.states, block.epochs, block.owner, block.starts, block.ends, block.param_set, block.step_set
    rows = zip(itertools.count(block.first), *columns, block.widths, strict=False)
    for number, state, epoch, owner, start, end, param_set, step_set, width in rows:
        names, steps = block.param_sets[param_set], block.step_sets[step_set]
        to_param, to_report = at_param + len(names), at_report + len(steps)
        to_value = at_value + width if width > 0 else at_value
        own = dict(zip(names, params[at_param:to_param], strict=True))
        by_step = dict(zip(steps, reports[at_report:to_report], strict=True))
        result = tuple(values[at_value:to_value]) if width >= 0 else None
        trials.append(Trial(number, _STATES[state], epoch, block.owners[owner], own, by_step, result, start, end))
        at_param, at_report, at_value = to_param, to_report, to_value
    for place, rare in block.rare.items():
        _give(trials[place], rare)
    if block.metrics:
        metrics = _decode_metrics(block.metrics)
        told = iter(_reals(metrics.values))
        for place, name, metric_set in metrics.rows:
            by_step = dict(zip(metrics.step_sets[metric_set], told, strict=False))
            trials[place].metrics[metrics.names[name]] = by_step
    return trials


# --- whether a block is possible ---


class StudyRules(NamedTuple):
    """What a study requires of its trials."""

    directions: int
    dists: Mapping[str, Distribution]
    """The first distributions of its parameters."""
    trials: int
    """How many trials it has."""
    most: int
    """A number that no count has reached, because a commit raises a count by less than the commit's bytes."""


def check(plain: bytes, study: StudyRules, *, first: int) -> list[int]:
    """Check that `unpack` accepts this block, and that `apply` could have made each of its trials, numbered from
    `first`. Returns how many trials are in each state.

    Otherwise raises ValueError, IndexError or a msgspec error.
    """
    block = _opened(plain)
    states, count = block.states, len(block.states)
    counts = [states.count(one) for one in _STATES]
    over = count - counts[TrialState.RUNNING] - counts[TrialState.WAITING]
    of_each = (block.epochs, block.owner, block.starts, block.ends, block.param_set, block.step_set, block.widths)
    sound = (
        block.first == first
        and 0 < count <= BLOCK
        and sum(counts) == count
        and all(len(column) == count for column in of_each)
        and max(block.owner) < len(block.owners)
        and max(block.epochs) < study.most
        and 8 * _total(block.param_sets, block.param_set) == len(block.params)
        and 8 * _total(block.step_sets, block.step_set) == len(block.reports)
        and 8 * (sum(block.widths) + block.widths.count(-1)) == len(block.values)
        and (
            None not in block.ends
            if over == count
            else all((end is None) == (state in _LIVE) for end, state in zip(block.ends, states, strict=True))
        )
        and all(
            block.epochs[at] > 0 and block.owners[block.owner[at]] is not None
            for at, state in enumerate(states if counts[TrialState.RUNNING] else b"")
            if state == TrialState.RUNNING
        )
        and _possible_values(block, study.directions, all_over=over == count)
        and _possible_params(block, study.dists)
        and all(_possible_rare(block, place, rare, study) for place, rare in block.rare.items())
        and (not block.metrics or _possible_metrics(block))
    )
    if not sound:
        raise ValueError
    return counts


def _total(sets: Sequence[Sequence[object]], column: Sequence[int]) -> int:
    """The total number of entries in the sets that this column refers to. Raises IndexError."""
    if column.count(0) == len(column):
        return len(sets[0]) * len(column)
    return sum(map([len(one) for one in sets].__getitem__, column))


def _possible_values(block: BlockColumns, directions: int, *, all_over: bool) -> bool:
    """Whether each finished trial has one number per direction, or none if it is not COMPLETE; others have none."""
    if any(map(math.isnan, _reals(block.values))):
        return False
    if all_over and block.widths.count(directions) == len(block.widths):
        return True
    return all(
        (width == directions and state not in _LIVE) or (width == -1 and state != TrialState.COMPLETE)
        for state, width in zip(block.states, block.widths, strict=True)
    )


def _possible_params(block: BlockColumns, dists: Mapping[str, Distribution]) -> bool:
    """Whether each value lies within its distribution: the study's, or the trial's own."""
    if any(len(set(names)) < len(names) or not dists.keys() >= set(names) for names in block.param_sets):
        return False
    params = _reals(block.params).tolist()
    if len(block.param_sets) == 1 and not any(rare.dists for rare in block.rare.values()):
        names = block.param_sets[0]
        return all(_within(params[at :: len(names)], dists.get(name)) for at, name in enumerate(names))
    at = 0
    for place, index in enumerate(block.param_set):
        dists_, names = block.rare.get(place, _COMMON).dists, block.param_sets[index]
        own = dict(zip(names, params[at : at + len(names)], strict=True))
        at += len(names)
        outside = widened_distributions(own, dists_, dists)
        if outside is None or any(dists_.get(name) != wider for name, wider in outside.items()):
            return False
    return True


def _within(values: Sequence[float], distribution: Distribution | None) -> bool:
    if distribution is None or math.isnan(sum(values)):
        return False
    if isinstance(distribution, Categorical):
        return min(values) >= 0 and max(values) < len(distribution.choices)
    return distribution.low <= min(values) and max(values) <= distribution.high


def _possible_rare(block: BlockColumns, place: int, rare: Rare, study: StudyRules) -> bool:
    """Whether this trial's attributes can be read, and its links lead to existing trials without a cycle."""
    state, number = block.states[place], block.first + place
    earlier = (rare.retry_of, rare.late_of, rare.continues)
    later = [rare.retried_by, *[past.kept_as for past in rare.history]]
    return (
        place >= 0
        and rare.attempt <= min(number + 1, MOST_ATTEMPTS)
        and all(past.epoch <= block.epochs[place] for past in rare.history)
        and possible_distributions(rare.dists, study.dists)
        and possible_attributes(rare.user, rare.system)
        and possible_system(rare.system, study.directions)
        and all(one is None or one < number for one in earlier)
        and all(one is None or number < one < study.trials for one in later)
        and (not rare.paused or state == TrialState.PRUNED)
        and (rare.stop is None or state == TrialState.RUNNING)
    )


def _possible_metrics(block: BlockColumns) -> bool:
    metrics = _decode_metrics(block.metrics)
    places, names, sets = zip(*metrics.rows, strict=True)
    return (
        max(places) < len(block.states)
        and max(names) < len(metrics.names)
        and max(Counter(places).values()) <= MOST_METRICS
        and all(map(possible_metric, metrics.names))
        and 8 * sum([len(metrics.step_sets[one]) for one in sets]) == len(metrics.values)
    )


# --- reals -------------------------------------------------------------------------------------------------------


def _planes(column: array[Any]) -> bytes:
    """All first bytes, then all second bytes, …, little-endian."""
    if sys.byteorder == "big":
        column.byteswap()
    raw = column.tobytes()
    return b"".join([raw[i::8] for i in range(8)])


def _reals(planes: bytes | memoryview) -> array[float]:
    count = len(planes) // 8
    raw = bytearray(count * 8)
    for i in range(8):
        raw[i::8] = planes[i * count : (i + 1) * count]
    column = array("d")
    column.frombytes(raw)
    if sys.byteorder == "big":
        column.byteswap()
    return column
