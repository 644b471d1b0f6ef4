"""State <-> bytes, and the digest by which two States are compared.

A snapshot is a header and blocks of 1,024 trials, see `blocks`. A block whose trials are all finished never changes
again: its bytes are kept in `State.blocks`, so a snapshot costs what is new, not what is there.

Canonical: the same State gives the same bytes, before compression, everywhere. No pickle.
"""

from __future__ import annotations

import hashlib
import zlib
from typing import Final

import msgspec

from hopaas_p2p.core import blocks
from hopaas_p2p.core.records import Distribution, StudyDefine, TrialState
from hopaas_p2p.core.state import BLOCK, LastCommit, State, Verdict

VERSION: Final = 1
_MAGIC: Final = b"hopaas-snapshot\n"
_DIGEST: Final = 16


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


_encode: Final = msgspec.msgpack.Encoder().encode
_decode_header: Final = msgspec.msgpack.Decoder(_Header).decode


def dump(state: State) -> bytes:
    """The snapshot of this State."""
    packed = [_block(state, first) for first in range(0, len(state.trials), BLOCK)]
    return seal(_MAGIC, _encode(_header(state, packed)))


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
    plain = [zlib.decompress(_block(state, first)) for first in range(0, len(state.trials), BLOCK)]
    return hashlib.blake2b(_encode(_header(state, plain)), digest_size=_DIGEST).hexdigest()


def _header(state: State, packed: list[bytes]) -> _Header:
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
        packed,
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
        trials = blocks.unpack(packed, first=index * BLOCK)
        state.trials.extend(trials)
        if blocks.is_settled(trials):
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


def _block(state: State, first: int) -> bytes:
    index = first // BLOCK
    kept = state.blocks.get(index)
    if kept is not None:
        return kept
    trials = state.trials[first : first + BLOCK]
    packed = blocks.pack(trials)
    if blocks.is_settled(trials):
        state.blocks[index] = packed
    return packed
