"""Trials in blocks of 1,024 <-> bytes, each block compressed alone: what a snapshot mostly is.

In a block everything is a column: numbers as planes of bytes (the high bytes of neighbours agree, so they compress
away), parameter and step sets as indexes into a table of the few that occur.
"""

from __future__ import annotations

import itertools
import math
import sys
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, NamedTuple

import msgspec

from hopaas_p2p.core.inherited import flat
from hopaas_p2p.core.records import (
    LAST_TIME,
    LONGEST_PEER,
    Categorical,
    Checkpoint,
    Distribution,
    Natural,
    PastLease,
    Step,
    TrialState,
)
from hopaas_p2p.core.state import BLOCK, CHECKPOINTS_KEPT, BlockColumns, State, Trial
from hopaas_p2p.core.validity import (
    MOST_METRICS,
    outliers,
    possible_attributes,
    possible_distributions,
    possible_metric,
    possible_system,
    possible_time,
)

_LEVEL: Final = 1  # zlib 1 packs a block in 4 ms; level 6 takes 3 times that to save 2 %
_STATES: Final = tuple(TrialState)
_FINISHED: Final = bytes([TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL])
ABSENT: Final = -(1 << 62)
_ABSENT_TOP: Final = 0xC0  # its highest byte, which no time has
_SMALL: Final = bytes(range(256))
_ZEROS: Final = bytes(7 * BLOCK)
_FEW: Final = 16  # sets; with more, to count each costs more than to look at each trial


class _Rare(msgspec.Struct, array_like=True, omit_defaults=True):
    """What few trials have."""

    dists: dict[str, Distribution] = {}
    user: dict[str, str] = {}
    system: dict[str, str] = {}
    reason: str | None = None
    stop: str | None = None
    stopping: bool = False
    attempt: Natural = 1
    retry_of: Natural | None = None
    retried_by: Natural | None = None
    late_of: Natural | None = None
    checkpoints: Annotated[tuple[Checkpoint, ...], msgspec.Meta(max_length=CHECKPOINTS_KEPT)] = ()
    history: tuple[PastLease, ...] = ()
    paused: bool = False
    continues: Natural | None = None
    resumed: Step | None = None


class _TrialBlock(msgspec.Struct, array_like=True):
    """The large columns are views of the bytes that were decoded: a block that is only checked copies none of them."""

    states: bytes
    epochs: bytes
    owners: list[str | None]
    owner: bytes
    starts: bytes
    durations: bytes
    param_sets: list[tuple[str, ...]]
    param_set: bytes
    params: memoryview
    step_sets: list[tuple[Step, ...]]
    step_set: bytes
    reports: memoryview
    widths: bytes
    values: memoryview
    rare: dict[int, _Rare]
    metrics: bytes


class _Ends(NamedTuple):
    """What a block keeps of its trials after a record has named one of them, so that it is inflated but once."""

    states: bytes
    epochs: Sequence[int]
    owners: list[str | None]
    owner: Sequence[int]
    rare: dict[int, list[Any]]
    """By place: what is in `_OF_THE_END`."""


class _Metrics(msgspec.Struct, array_like=True):
    """The metrics of a block. Packed apart: who reads columns does not decode them."""

    names: list[str]
    step_sets: list[tuple[Step, ...]]
    rows: list[tuple[int, int, int]]
    """Of each metric of each trial: place of the trial in the block, name, step set."""
    values: bytes


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(_TrialBlock).decode
_decode_metrics: Final = msgspec.msgpack.Decoder(_Metrics).decode
_COMMON: Final = _Rare()


_OF_THE_END: Final = ("attempt", "retry_of", "retried_by", "late_of", "history", "paused", "continues")


class PackedBlock:
    """A settled block: full, and all of its trials finished. Only a late result may touch it, which opens it first.

    Args:
        packed: its bytes.
        first: the number of its first trial.

    """

    __slots__ = ("_ends", "first", "packed")

    def __init__(self, packed: memoryview, first: int) -> None:
        self.packed, self.first = packed, first
        self._ends: _Ends | None = None

    def end_of(self, place: int) -> Trial:
        """How the trial at this place ended, and who had it: no parameters, reports or attributes."""
        if self._ends is None:
            block = _decode(zlib.decompress(self.packed))
            rare = {at: [getattr(one, name) for name in _OF_THE_END] for at, one in block.rare.items()}
            self._ends = _Ends(block.states, _narrow(block.epochs), block.owners, _narrow(block.owner), rare)
        ends = self._ends
        owner = ends.owners[ends.owner[place]]
        trial = Trial(self.first + place, _STATES[ends.states[place]], ends.epochs[place], owner)
        for name, value in zip(_OF_THE_END, ends.rare.get(place, ()), strict=False):
            setattr(trial, name, value)
        return trial

    def trials(self) -> list[Trial]:
        """The trials, made anew."""
        return unpack(zlib.decompress(self.packed), first=self.first)

    def results(self) -> list[tuple[int, float]]:
        """Number and first value of each COMPLETE trial."""
        block = _decode(zlib.decompress(self.packed))
        widths, values = _whole(block.widths), _reals(block.values)
        starts = itertools.accumulate([max(width, 0) for width in widths], initial=0)
        rows = zip(itertools.count(self.first), block.states, widths, starts, strict=False)
        return [(number, values[at]) for number, state, width, at in rows if state == TrialState.COMPLETE and width > 0]

    def numbers_of(self, state: TrialState) -> list[int]:
        """The numbers of the trials in this state."""
        states = _decode(zlib.decompress(self.packed)).states
        return [number for number, one in enumerate(states, self.first) if one == state]

    def columns(self) -> BlockColumns:
        """The trials as columns, whose numbers are arrays."""
        block = _decode(zlib.decompress(self.packed))
        return BlockColumns(
            first=self.first,
            states=block.states,
            param_sets=block.param_sets,
            param_set=_narrow(block.param_set),
            params=_column(block.params, "d"),
            step_sets=block.step_sets,
            step_set=_narrow(block.step_set),
            reports=lambda: _column(block.reports, "d"),
            widths=_narrow(block.widths),
            values=_column(block.values, "d"),
            owners=block.owners,
            owner=_narrow(block.owner),
            times=lambda: (_column(block.starts, "q"), _column(block.durations, "q")),
            attempts={place: rare.attempt for place, rare in block.rare.items() if rare.attempt > 1},
            leased=[place for place, rare in block.rare.items() if rare.history],
            special=[place for place, rare in block.rare.items() if rare.dists or rare.system],
            dists={place: rare.dists for place, rare in block.rare.items() if rare.dists},
        )


def close_settled(state: State, at_most: int | None = None) -> bool:
    """Pack blocks that will not change, so that they take less memory; whether there are more of them.

    Takes some milliseconds per block.
    """
    trials = state.trials
    unsettled = {number // BLOCK for number in (*state.waiting, *state.running)}
    settled = [one for one in trials.open if one not in unsettled and (one + 1) * BLOCK <= len(trials)]
    for index in settled[:at_most]:
        trials.close(index, PackedBlock(memoryview(pack(trials.open[index])), index * BLOCK))
    return at_most is not None and len(settled) > at_most


def pack(trials: Sequence[Trial]) -> bytes:
    """The bytes of these trials."""
    return zlib.compress(_encode(_columns(trials)), _LEVEL)


def _columns(trials: Sequence[Trial]) -> _TrialBlock:
    owners: dict[str | None, int] = {}
    param_sets: dict[tuple[str, ...], int] = {}
    step_sets: dict[tuple[int, ...], int] = {}
    params, reports, values = array("d"), array("d"), array("d")
    for trial in trials:
        params.extend(trial.params.values())
        reports.extend(trial.reports.values())
        values.extend(trial.values or ())
    starts = [ABSENT if trial.start is None else trial.start for trial in trials]
    return _TrialBlock(
        states=bytes([trial.state for trial in trials]),
        epochs=_integers(trial.epoch for trial in trials),
        owner=_integers(owners.setdefault(trial.owner, len(owners)) for trial in trials),
        owners=list(owners),
        starts=_integers(_differences(starts)),
        durations=_integers(ABSENT if t.end is None else t.end - (t.start or 0) for t in trials),
        param_set=_integers(param_sets.setdefault(tuple(trial.params), len(param_sets)) for trial in trials),
        param_sets=list(param_sets),
        params=memoryview(_planes(params)),
        step_set=_integers(step_sets.setdefault(tuple(trial.reports), len(step_sets)) for trial in trials),
        step_sets=list(step_sets),
        reports=memoryview(_planes(reports)),
        widths=_integers(-1 if trial.values is None else len(trial.values) for trial in trials),
        values=memoryview(_planes(values)),
        rare={i: rare for i, trial in enumerate(trials) if (rare := _rare(trial)) != _COMMON},
        metrics=_packed_metrics(trials),
    )


def _packed_metrics(trials: Sequence[Trial]) -> bytes:
    """The metrics of these trials; nothing where they have none."""
    names: dict[str, int] = {}
    step_sets: dict[tuple[int, ...], int] = {}
    rows, values = [], array("d")
    for place, trial in enumerate(trials):
        for name, by_step in trial.metrics.items():
            steps = step_sets.setdefault(tuple(by_step), len(step_sets))
            rows.append((place, names.setdefault(name, len(names)), steps))
            values.extend(by_step.values())
    return _encode(_Metrics(list(names), list(step_sets), rows, _planes(values))) if rows else b""


def _unpack_metrics(packed: bytes, trials: list[Trial]) -> None:
    """Give these trials their metrics."""
    metrics = _decode_metrics(packed)
    values = iter(_reals(metrics.values))
    for place, name, steps in metrics.rows:
        trials[place].metrics[metrics.names[name]] = dict(zip(metrics.step_sets[steps], values, strict=False))


def _fit_metrics(packed: bytes, trials: int) -> bool:
    """Whether `_unpack_metrics` takes these, and trials may have them. Raises a msgspec error."""
    metrics = _decode_metrics(packed)
    sizes = [len(steps) for steps in metrics.step_sets]
    most = max(Counter([place for place, _, _ in metrics.rows]).values(), default=0)
    return (
        most <= MOST_METRICS
        and all(map(possible_metric, metrics.names))
        and all(
            0 <= place < trials and 0 <= name < len(metrics.names) and 0 <= steps < len(sizes)
            for place, name, steps in metrics.rows
        )
        and 8 * sum([sizes[steps] for _, _, steps in metrics.rows]) == len(metrics.values)
    )


def _rare(trial: Trial) -> _Rare:
    rare = _Rare(*[getattr(trial, name) for name in _Rare.__struct_fields__])
    rare.dists, rare.user, rare.system = flat(rare.dists), flat(rare.user), flat(rare.system)
    rare.history = tuple(rare.history)
    return rare


class Checked(NamedTuple):
    """What is in a block, without its trials."""

    columns: bytes
    counts: list[int]
    """By state."""
    finished: bool
    """Whether all of them are."""


def check(columns: bytes, study: StudyRules, *, first: int) -> Checked:
    """Make sure that `unpack` takes these columns, and that `apply` could have made each of the trials.

    Raises ValueError, IndexError or a msgspec error.
    """
    block = _decode(columns)
    count = len(block.states)
    narrow = (block.epochs, block.owner, block.starts, block.durations, block.param_set, block.step_set, block.widths)
    if (
        count > BLOCK
        or any(len(column) != 8 * count for column in narrow)
        or max(block.states, default=0) >= len(_STATES)
        or any(not 0 <= index < count for index in block.rare)
        or (block.metrics and not _fit_metrics(block.metrics, count))
    ):
        raise ValueError
    _total(block.owner, [0] * len(block.owners))
    if (
        8 * _total(block.param_set, [len(names) for names in block.param_sets]) != len(block.params)
        or 8 * _total(block.step_set, [len(steps) for steps in block.step_sets]) != len(block.reports)
        or 8 * _width(block.widths) != len(block.values)
    ):
        raise ValueError
    counts = [block.states.count(one) for one in range(len(_STATES))]
    ended = count - _absences(block.durations)
    if ended != counts[TrialState.COMPLETE] + counts[TrialState.PRUNED] + counts[TrialState.FAIL]:
        raise ValueError
    if not (
        _possible_leases(block, counts)
        and _possible_times(block, all_ended=ended == count)
        and _possible_values(block, study.directions)
        and _possible_params(block, study.dists)
        and all(_possible_rare(block, place, rare, study, first + place) for place, rare in block.rare.items())
    ):
        raise ValueError
    return Checked(columns, counts, finished=ended == count)


class StudyRules(NamedTuple):
    """What a study asks of its trials."""

    directions: int
    dists: Mapping[str, Distribution]
    """The first distributions of its parameters."""
    trials: int
    """How many it has."""


def _possible_leases(block: _TrialBlock, counts: Sequence[int]) -> bool:
    """Whether the epochs and owners can be; a trial that runs has both."""
    if any(owner is not None and not 0 < len(owner) <= LONGEST_PEER for owner in block.owners):
        return False
    if not counts[TrialState.RUNNING] and _lowest(block.epochs) is not None:
        return True
    leases = zip(block.states, _whole(block.epochs), _whole(block.owner), strict=True)
    return all(
        0 <= epoch < LAST_TIME and (state != TrialState.RUNNING or (epoch > 0 and block.owners[owner] is not None))
        for state, epoch, owner in leases
    )


def _possible_times(block: _TrialBlock, *, all_ended: bool) -> bool:
    """Whether clocks may show these, and what is finished has an end, and nothing else."""
    if all_ended and _are_near(block.starts, block.durations):
        return True
    starts = itertools.accumulate(_whole(block.starts))
    for state, start, duration in zip(block.states, starts, _whole(block.durations), strict=True):
        began = 0 if start == ABSENT else start
        if not possible_time(began) or (duration == ABSENT) == (state in _FINISHED):
            return False
        if duration != ABSENT and not possible_time(began + duration):
            return False
    return True


def _are_near(starts: bytes, durations: bytes) -> bool:
    """Whether the first trial began within 70 years of 1970, each other within 12 days of the one before, and none
    lasted longer than 8 years: what is true of most blocks, and seen from the highest bytes of their numbers.
    """
    count = len(starts) // 8
    first = int.from_bytes(starts[::count], "little", signed=True)
    *_, high, higher, highest = [starts[plane * count + 1 : (plane + 1) * count] for plane in range(8)]
    return (
        -(1 << 51) < first < 1 << 51
        and high == higher == highest
        and not highest.translate(None, b"\0\xff")
        and durations.endswith(_ZEROS[: 2 * count])
    )


def _possible_values(block: _TrialBlock, directions: int) -> bool:
    """Whether what is finished has a number per direction, or none and is not COMPLETE; and nothing else has any."""
    values = _column(block.values, "d")
    if any(map(math.isnan, values)):
        return False
    widths = _lowest(block.widths)
    if widths is not None and widths.count(directions) == len(widths):
        return block.states.translate(None, _FINISHED) == b""
    return all(
        (width == directions and state in _FINISHED) or (width == -1 and state != TrialState.COMPLETE)
        for state, width in zip(block.states, _whole(block.widths), strict=True)
    )


def _possible_params(block: _TrialBlock, dists: Mapping[str, Distribution]) -> bool:
    """Whether each value lies within its distribution: the study's, or the trial's own."""
    if any(len(set(names)) < len(names) for names in block.param_sets):
        return False
    params = _column(block.params, "d")
    if len(block.param_sets) == 1 and not any(rare.dists for rare in block.rare.values()):
        names = block.param_sets[0]
        told = params.tolist()
        return all(_within(told[at :: len(names)], dists.get(name)) for at, name in enumerate(names))
    at = 0
    for place, index in enumerate(_whole(block.param_set)):
        rare, names = block.rare.get(place, _COMMON), block.param_sets[index]
        own = dict(zip(names, params[at : at + len(names)], strict=True))
        at += len(names)
        outside = outliers(own, rare.dists, dists)
        if outside is None or any(rare.dists.get(name) != wider for name, wider in outside.items()):
            return False
    return True


def _within(values: Sequence[float], distribution: Distribution | None) -> bool:
    if distribution is None or math.isnan(sum(values)):
        return False
    if isinstance(distribution, Categorical):
        return min(values) >= 0 and max(values) < len(distribution.choices)
    return distribution.low <= min(values) and max(values) <= distribution.high


def _possible_rare(block: _TrialBlock, place: int, rare: _Rare, study: StudyRules, number: int) -> bool:
    """Whether readers can read the attributes of this trial, and its links lead to trials, and in no circle."""
    state = block.states[place]
    earlier = (rare.retry_of, rare.late_of, rare.continues)
    later = [rare.retried_by, *[past.kept_as for past in rare.history]]
    return (
        possible_distributions(rare.dists, study.dists)
        and possible_attributes(rare.user, rare.system)
        and possible_system(rare.system, study.directions)
        and all(one is None or one < number for one in earlier)
        and all(one is None or number < one < study.trials for one in later)
        and (not rare.paused or state == TrialState.PRUNED)
        and (rare.stop is None or state == TrialState.RUNNING)
        and rare.attempt > 0
    )


def _total(column: bytes, sizes: Sequence[int]) -> int:
    """The sizes that a column of indexes refers to, added up. Raises IndexError or ValueError for another one."""
    low = _lowest(column)
    if low is None or len(sizes) > _FEW:
        indexes = _whole(column)
        if min(indexes, default=0) < 0:
            raise ValueError
        return sum([sizes[index] for index in indexes])
    if low.translate(None, _SMALL[: len(sizes)]):
        raise ValueError
    if len(sizes) == 1:
        return sizes[0] * len(low)
    return sum([size * low.count(index) for index, size in enumerate(sizes) if size])


def _width(column: bytes) -> int:
    """How many values the trials have, added up."""
    low = _lowest(column)
    return sum([width for width in _whole(column) if width > 0]) if low is None else sum(low)


def _lowest(column: bytes) -> bytes | None:
    """A column as bytes, if no number in it is below 0 or above 255."""
    count = len(column) // 8
    return column[:count] if column.endswith(_ZEROS[: 7 * count]) else None


def _narrow(column: bytes) -> array[int]:
    """The numbers of a column, as bytes where they fit."""
    low = _lowest(column)
    return _column(column, "q") if low is None else array("B", low)


def _absences(column: bytes) -> int:
    """How many numbers of this column are absent."""
    top = column[len(column) // 8 * 7 :]
    return _whole(column).count(ABSENT) if _ABSENT_TOP in top else 0


def inflated(packed: bytes | memoryview, *, at_most: int) -> bytes:
    """The columns of a block. ValueError if they are longer than `at_most` bytes, end early, or more follows."""
    inflater = zlib.decompressobj()
    plain = inflater.decompress(packed, max(at_most, 1))
    if not inflater.eof or inflater.unused_data:
        raise ValueError
    return plain


def unpack(plain: bytes, *, first: int) -> list[Trial]:
    """The trials of a block that was inflated; `first` is the number of the first."""
    block = _decode(plain)
    params, reports, values = _reals(block.params), _reals(block.reports), _reals(block.values)
    param_sets, step_sets, owners = block.param_sets, block.step_sets, block.owners
    at_param = at_report = at_value = start = 0
    trials = []
    columns = zip(
        block.states,
        _whole(block.epochs),
        _whole(block.owner),
        _whole(block.starts),
        _whole(block.durations),
        _whole(block.param_set),
        _whole(block.step_set),
        _whole(block.widths),
        strict=True,
    )
    number = first
    for trial_state, epoch, owner, step, duration, param_set, step_set, width in columns:
        start += step
        began = None if start == ABSENT else start
        names, steps = param_sets[param_set], step_sets[step_set]
        to_param, to_report = at_param + len(names), at_report + len(steps)
        if width >= 0:
            told: tuple[float, ...] | None = tuple(values[at_value : at_value + width])
            at_value += width
        else:
            told = None
        trials.append(
            Trial(
                number,
                _STATES[trial_state],
                epoch,
                owners[owner],
                dict(zip(names, params[at_param:to_param], strict=True)),
                {},
                dict(zip(steps, reports[at_report:to_report], strict=True)),
                {},
                {},
                told,
                None,
                began,
                None if duration == ABSENT else (began or 0) + duration,
            )
        )
        at_param, at_report = to_param, to_report
        number += 1
    for index, rare in block.rare.items():
        for name in _Rare.__struct_fields__:
            setattr(trials[index], name, getattr(rare, name))
        if rare.history:
            trials[index].history = list(rare.history)
    if block.metrics:
        _unpack_metrics(block.metrics, trials)
    return trials


# --- columns -----------------------------------------------------------------------------------------------------


def _differences(numbers: Sequence[int]) -> Iterable[int]:
    before = 0
    for number in numbers:
        yield number - before
        before = number


def _integers(numbers: Iterable[int]) -> bytes:
    return _planes(array("q", numbers))


def _planes(column: array[Any]) -> bytes:
    """All first bytes, then all second bytes, …, little-endian."""
    if sys.byteorder == "big":
        column.byteswap()
    raw = column.tobytes()
    return b"".join([raw[i::8] for i in range(8)])


def _column(planes: bytes | memoryview, typecode: str) -> array[Any]:
    count = len(planes) // 8
    raw = bytearray(count * 8)
    for i in range(8):
        raw[i::8] = planes[i * count : (i + 1) * count]
    column = array(typecode)
    column.frombytes(raw)
    if sys.byteorder == "big":
        column.byteswap()
    return column


def _reals(planes: bytes | memoryview) -> list[float]:
    return _column(planes, "d").tolist()


def _whole(planes: bytes) -> list[int]:
    return _column(planes, "q").tolist()
