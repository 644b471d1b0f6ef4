"""State <-> bytes, and the digest by which two States are compared.

A snapshot is a header and blocks of 1,024 trials, each compressed alone. In a block everything is a column: numbers
as planes of bytes (the high bytes of neighbours agree, so they compress away), parameter and step sets as indexes
into a table of the few that occur. A block whose trials are all finished never changes again: its bytes are kept in
`State.blocks`, so a snapshot costs what is new, not what is there.

Canonical: the same State gives the same bytes, before compression, everywhere. No pickle.
"""

from __future__ import annotations

import hashlib
import sys
import zlib
from array import array
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from hopaas_p2p.core.records import Checkpoint, Distribution, StudyDefine, TrialState
from hopaas_p2p.core.state import BLOCK, LastCommit, State, Tenure, Trial, Verdict

VERSION: Final = 1
_MAGIC: Final = b"hopaas-snapshot\n"
_DIGEST: Final = 16
_LEVEL: Final = 1  # zlib 1 packs a block in 4 ms; level 6 takes 3 times that to save 2 %
_STATES: Final = tuple(TrialState)
_ABSENT: Final = -(1 << 62)


class CorruptSnapshot(Exception):
    """These bytes are not a snapshot this version can read; the log still is, replay it instead."""


class _Header(msgspec.Struct, array_like=True):
    version: int
    lsn: int
    define: StudyDefine | None
    status: str
    budget: int | None
    user: dict[str, str]
    system: dict[str, str]
    waiting: list[int]
    running: list[int]
    failures_in_a_row: int
    dists: dict[str, Distribution]
    peers: dict[str, dict[str, str]]
    draining: list[str]
    writers: dict[str, tuple[int, int, list[tuple[bool, int | None, str | None]]]]
    refusals: dict[str, int]
    trials: int
    blocks: list[bytes]


class _Rare(msgspec.Struct, array_like=True, omit_defaults=True):
    """What few trials have."""

    dists: dict[str, Distribution] = {}
    user: dict[str, str] = {}
    system: dict[str, str] = {}
    reason: str | None = None
    stop: str | None = None
    stopping: bool = False
    attempt: int = 1
    retry_of: int | None = None
    retried_by: int | None = None
    late_of: int | None = None
    checkpoints: tuple[Checkpoint, ...] = ()
    history: tuple[Tenure, ...] = ()


class _Block(msgspec.Struct, array_like=True):
    states: bytes
    epochs: bytes
    owners: list[str | None]
    owner: bytes
    starts: bytes
    durations: bytes
    param_sets: list[tuple[str, ...]]
    param_set: bytes
    params: bytes
    step_sets: list[tuple[int, ...]]
    step_set: bytes
    reports: bytes
    widths: bytes
    values: bytes
    rare: dict[int, _Rare]


_encode: Final = msgspec.msgpack.Encoder().encode
_decode_header: Final = msgspec.msgpack.Decoder(_Header).decode
_decode_block: Final = msgspec.msgpack.Decoder(_Block).decode
_COMMON: Final = _Rare()


def dump(state: State) -> bytes:
    """The snapshot of this State."""
    blocks = [_block(state, first) for first in range(0, len(state.trials), BLOCK)]
    return seal(_MAGIC, _encode(_header(state, blocks)))


def seal(magic: bytes, body: bytes) -> bytes:
    """A body that can be told from a damaged one."""
    return magic + hashlib.blake2b(body, digest_size=_DIGEST).digest() + body


def unseal(magic: bytes, data: bytes) -> memoryview:
    """The body. Raises CorruptSnapshot where it is not what was sealed."""
    start = len(magic) + _DIGEST
    body = memoryview(data)[start:]
    if data[: len(magic)] != magic or hashlib.blake2b(body, digest_size=_DIGEST).digest() != data[len(magic) : start]:
        raise CorruptSnapshot
    return body


def digest(state: State) -> str:
    """A fingerprint of the whole State: equal for any two peers at the same lsn.

    Taken before compression, whose bytes differ from one version of zlib to the next.
    """
    blocks = [zlib.decompress(_block(state, first)) for first in range(0, len(state.trials), BLOCK)]
    return hashlib.blake2b(_encode(_header(state, blocks)), digest_size=_DIGEST).hexdigest()


def _header(state: State, blocks: list[bytes]) -> _Header:
    return _Header(
        VERSION,
        state.lsn,
        state.define,
        state.status,
        state.budget,
        state.user,
        state.system,
        list(state.waiting),
        list(state.running),
        state.failures_in_a_row,
        state.dists,
        state.peers,
        list(state.draining),
        {
            w: (last.seq, last.lsn, [(v.accepted, v.number, v.refusal) for v in last.verdicts])
            for w, last in state.writers.items()
        },
        state.refusals,
        len(state.trials),
        blocks,
    )


def load(data: bytes) -> State:
    """The State of a snapshot.

    Raises:
        CorruptSnapshot: damaged, or of a version this code does not read.

    """
    try:
        return _load(_decode_header(unseal(_MAGIC, data)))
    except (msgspec.MsgspecError, zlib.error, ValueError, IndexError, RecursionError):
        raise CorruptSnapshot from None


def _load(header: _Header) -> State:
    if header.version != VERSION:
        raise CorruptSnapshot
    state = State()
    state.lsn, state.define, state.status, state.budget = header.lsn, header.define, header.status, header.budget
    state.user, state.system = header.user, header.system
    state.waiting, state.running = dict.fromkeys(header.waiting), dict.fromkeys(header.running)
    state.failures_in_a_row = header.failures_in_a_row
    state.dists, state.peers, state.refusals = header.dists, header.peers, header.refusals
    state.draining = dict.fromkeys(header.draining)
    state.writers = {
        writer: LastCommit(seq, lsn, tuple([Verdict(*verdict) for verdict in verdicts]))
        for writer, (seq, lsn, verdicts) in header.writers.items()
    }
    for index, packed in enumerate(header.blocks):
        trials = _unpack(packed, first=index * BLOCK)
        state.trials.extend(trials)
        if _is_settled(trials):
            state.blocks[index] = packed
    if len(state.trials) != header.trials:
        raise CorruptSnapshot
    for trial in state.trials:
        state.counts[trial.state] += 1
    if not (_lists(state, state.waiting, TrialState.WAITING) and _lists(state, state.running, TrialState.RUNNING)):
        raise CorruptSnapshot
    state.changed.update(range(header.trials))
    return state


def _lists(state: State, index: dict[int, None], what: TrialState) -> bool:
    """Whether `index` holds the trials in this state, each of them and no other."""
    return len(index) == state.counts[what] and all(
        0 <= number < len(state.trials) and state.trials[number].state is what for number in index
    )


# --- blocks ------------------------------------------------------------------------------------------------------


def _block(state: State, first: int) -> bytes:
    index = first // BLOCK
    kept = state.blocks.get(index)
    if kept is not None:
        return kept
    trials = state.trials[first : first + BLOCK]
    settled = _is_settled(trials)
    packed = zlib.compress(_encode(_pack(trials)), _LEVEL if settled else 0)  # what is packed anew soon is stored as is
    if settled:
        state.blocks[index] = packed
    return packed


def _is_settled(trials: Sequence[Trial]) -> bool:
    """A full block of finished trials. The one thing that may still touch it, a late result, drops it from `blocks`."""
    return len(trials) == BLOCK and all(trial.end is not None for trial in trials)


def _pack(trials: Sequence[Trial]) -> _Block:
    owners: dict[str | None, int] = {}
    param_sets: dict[tuple[str, ...], int] = {}
    step_sets: dict[tuple[int, ...], int] = {}
    params, reports, values = array("d"), array("d"), array("d")
    for trial in trials:
        params.extend(trial.params.values())
        reports.extend(trial.reports.values())
        values.extend(trial.values or ())
    starts = [_ABSENT if trial.start is None else trial.start for trial in trials]
    return _Block(
        states=bytes([trial.state for trial in trials]),
        epochs=_integers(trial.epoch for trial in trials),
        owner=_integers(owners.setdefault(trial.owner, len(owners)) for trial in trials),
        owners=list(owners),
        starts=_integers(_differences(starts)),
        durations=_integers(_ABSENT if t.end is None else t.end - (t.start or 0) for t in trials),
        param_set=_integers(param_sets.setdefault(tuple(trial.params), len(param_sets)) for trial in trials),
        param_sets=list(param_sets),
        params=_planes(params),
        step_set=_integers(step_sets.setdefault(tuple(trial.reports), len(step_sets)) for trial in trials),
        step_sets=list(step_sets),
        reports=_planes(reports),
        widths=_integers(-1 if trial.values is None else len(trial.values) for trial in trials),
        values=_planes(values),
        rare={i: rare for i, trial in enumerate(trials) if (rare := _rare(trial)) != _COMMON},
    )


def _rare(trial: Trial) -> _Rare:
    return _Rare(
        trial.dists,
        trial.user,
        trial.system,
        trial.reason,
        trial.stop,
        trial.stopping,
        trial.attempt,
        trial.retry_of,
        trial.retried_by,
        trial.late_of,
        trial.checkpoints,
        trial.history,
    )


def _unpack(packed: bytes, first: int) -> list[Trial]:
    block = _decode_block(zlib.decompress(packed))
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
        began = None if start == _ABSENT else start
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
                None if duration == _ABSENT else (began or 0) + duration,
            )
        )
        at_param, at_report = to_param, to_report
        number += 1
    for index, rare in block.rare.items():
        for name in _Rare.__struct_fields__:
            setattr(trials[index], name, getattr(rare, name))
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


def _column(planes: bytes, typecode: str) -> array[Any]:
    count = len(planes) // 8
    raw = bytearray(count * 8)
    for i in range(8):
        raw[i::8] = planes[i * count : (i + 1) * count]
    column = array(typecode)
    column.frombytes(raw)
    if sys.byteorder == "big":
        column.byteswap()
    return column


def _reals(planes: bytes) -> list[float]:
    return _column(planes, "d").tolist()


def _whole(planes: bytes) -> list[int]:
    return _column(planes, "q").tolist()
