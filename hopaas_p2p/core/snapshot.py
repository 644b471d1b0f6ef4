"""State <-> bytes, and the digest by which two States are compared.

A snapshot is a head and pieces that are kept apart from it, each compressed alone: blocks of 1,024 finished trials, see
`blocks`, and 256 peers at a time of which none has written for long. Such a piece hardly ever changes: its name holds
its place and a hash of its bytes, so stores write it once and share it among snapshots, see `split`, and a study of n
trials costs a constant number of bytes per trial, however many snapshots are written. A State keeps the bytes of a
block instead of its trials, so joining takes no trial apart. No peer is forgotten: a commit of a peer may lie in a
spool for as long as it likes, and counts once.

Canonical: the same State gives the same bytes, before compression, everywhere. No pickle.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Final, TypeVar

import msgspec

from hopaas_p2p.core import blocks
from hopaas_p2p.core.attributes import MOST_REPLICATES
from hopaas_p2p.core.chain import PRIME, sum_at
from hopaas_p2p.core.configurations import follow_fidelity
from hopaas_p2p.core.inherited import flat
from hopaas_p2p.core.ledger import Ledger, possible_ledger
from hopaas_p2p.core.records import Budget, Distribution, Natural, StudyDefine, TrialState
from hopaas_p2p.core.state import BLOCK, REFUSALS, LastCommit, Replicates, State
from hopaas_p2p.core.validity import (
    MAX_BUDGET,
    STATUSES,
    possible_attributes,
    possible_definition,
    possible_distributions,
    possible_system,
)

VERSION: Final = 4
_PEERS: Final = 256
_QUIET: Final = 4096
"""Commits without one of a peer after which it is kept apart, with 255 neighbours, and not written with every head."""
_LEVEL: Final = 6
_NAME: Final = re.compile(r"[0-9wp][0-9]{7}-[0-9a-f]{32}")
_MAGIC: Final = b"hopaas-snapshot\n"
_DIGEST: Final = 16
_ROOM: Final = 64 << 20
_RATIO: Final = 32
"""What a snapshot of n bytes may inflate to is _ROOM + _RATIO * n: real ones double, or are small."""


class CorruptSnapshot(Exception):
    """These bytes are not a snapshot this version can read; the log still is, replay it instead."""


T = TypeVar("T")


class _Header(msgspec.Struct, array_like=True):
    version: int
    lsn: Natural
    define: StudyDefine | None
    status: str
    budget: Annotated[int, msgspec.Meta(ge=0, le=MAX_BUDGET)] | None
    user: dict[str, str]
    system: dict[str, str]
    waiting: dict[Natural, None]
    running: dict[Natural, None]
    failures_in_a_row: Natural
    dists: dict[str, Distribution]
    draining: dict[str, None]
    refusals: dict[str, Natural]
    ledger: Ledger
    replicates: dict[int, Replicates]
    trials: Natural
    chain: int | None
    """The sum that the snapshot stands on, see `core.chain`."""
    peers: list[dict[str, dict[str, str]] | None]
    """In parts of 256; None for one that is kept apart, as in `writers` and `blocks`."""
    writers: list[dict[str, LastCommit] | None]
    blocks: list[memoryview | None]
    names: list[str]
    """Of what is kept apart: first blocks, then parts of `writers`, then of `peers`."""


_OF_A_STATE: Final = _Header.__struct_fields__[1:15]
"""What a header has as a State has it."""
_encode: Final = msgspec.msgpack.Encoder().encode
_decode_header: Final = msgspec.msgpack.Decoder(_Header).decode
_decode_writers: Final = msgspec.msgpack.Decoder(dict[str, LastCommit]).decode
_decode_peers: Final = msgspec.msgpack.Decoder(dict[str, dict[str, str]]).decode
_decode_whole: Final = msgspec.msgpack.Decoder(tuple[bytes, list[memoryview]]).decode


def dump(state: State) -> bytes:
    """The snapshot of this State."""
    blocks.close_settled(state)
    header, parts = _header(state), list[bytes | memoryview]()
    for index in range(-(-len(state.trials) // BLOCK)):
        closed = state.trials.closed.get(index)
        header.blocks.append(memoryview(blocks.pack(state.trials.open[index])) if closed is None else None)
        if closed is not None:
            header.names.append(block_name(f"{index:08d}", closed.packed))
            parts.append(closed.packed)
    for kind, some in (("w", header.writers), ("p", header.peers)):
        for index, part in enumerate(some):
            last = max([state.writers[name].lsn if name in state.writers else 0 for name in part or ()], default=0)
            if part is None or len(part) < _PEERS or last > state.lsn - _QUIET:
                continue
            place = f"{kind}{index:07d}"
            before = state.quiet.get(place)
            if before is None or before[0] != last:
                before = state.quiet[place] = last, zlib.compress(_encode(part), _LEVEL)
            some[index] = None
            header.names.append(block_name(place, before[1]))
            parts.append(before[1])
    return _joined(seal(_MAGIC, _encode(header)), parts)


def digest(state: State) -> str:
    """A fingerprint of the whole State: equal for any two peers at the same lsn.

    Taken before compression, whose bytes differ from one version of zlib to the next.
    """
    header, trials = _header(state), state.trials
    header.chain = None  # a study does not depend on its log's sum
    for index in range(-(-len(trials) // BLOCK)):
        closed = trials.closed.get(index)
        packed = blocks.pack(trials.open[index]) if closed is None else closed.packed
        header.blocks.append(memoryview(zlib.decompress(packed)))
    return hashlib.blake2b(_encode(header), digest_size=_DIGEST).hexdigest()


def _header(state: State) -> _Header:
    """All of it but the blocks."""
    of_state = {name: getattr(state, name) for name in _OF_A_STATE}
    of_state |= {"user": flat(state.user), "system": flat(state.system)}
    return _Header(
        VERSION,
        **of_state,
        trials=len(state.trials),
        chain=sum_at(state.lsn, state.chain),
        peers=_in_parts(state.peers),
        writers=_in_parts(state.writers),
        blocks=[],
        names=[],
    )


def _in_parts(mapping: dict[str, T]) -> list[dict[str, T] | None]:
    items = list(mapping.items())
    return [dict(items[first : first + _PEERS]) for first in range(0, len(items), _PEERS)]


# --- what stores keep apart ---


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


def block_name(place: str, packed: bytes | memoryview) -> str:
    """The name under which a store keeps this piece."""
    return f"{place}-{hashlib.sha256(packed).hexdigest()[:32]}"


def _joined(head: bytes, parts: Sequence[bytes | memoryview]) -> bytes:
    return _encode((head, parts)) if parts else head


def split(data: bytes) -> tuple[bytes, dict[str, bytes]]:
    """A snapshot's head, and what is kept apart from it, by name; other bytes stay as they are."""
    try:
        head, parts = _decode_whole(data)
        return head, dict(zip(names_in(head), map(bytes, parts), strict=True))
    except (CorruptSnapshot, ValueError, RecursionError):
        return data, {}


def names_in(head: bytes) -> list[str]:
    """The pieces that belong to the head of a snapshot; none for other bytes. Raises CorruptSnapshot."""
    return _opened(head).names if head.startswith(_MAGIC) else []


def whole(head: bytes, apart: Mapping[str, bytes | memoryview]) -> bytes:
    """The snapshot that was split. Raises CorruptSnapshot for a head that is damaged, or lacks a piece."""
    try:
        return _joined(head, [apart[name] for name in names_in(head)])
    except KeyError:
        raise CorruptSnapshot from None


def _opened(head: bytes) -> _Header:
    try:
        header = _decode_header(unseal(_MAGIC, head))
    except (msgspec.MsgspecError, RecursionError):
        raise CorruptSnapshot from None
    if not all(map(_NAME.fullmatch, header.names)):  # a hostile one: they become names of files
        raise CorruptSnapshot
    return header


# --- reading ---


class _Parts:
    """What was kept apart from a head, inflated to no more bytes than it may have."""

    def __init__(self, names: Sequence[str], parts: Sequence[memoryview], room: int) -> None:
        self._parts = dict(zip([name[:8] for name in names], zip(names, parts, strict=True), strict=True))
        self._left = room

    def take(self, place: str) -> memoryview:
        name, part = self._parts.pop(place)
        if block_name(place, part) != name:
            raise CorruptSnapshot
        return part

    def inflated(self, packed: bytes | memoryview) -> bytes:
        """The bytes of this part. ValueError if they are too many, or end early."""
        plain = blocks.inflated(packed, at_most=self._left)
        self._left -= len(plain)
        return plain

    def together(
        self, kind: str, some: list[dict[str, T] | None], decode: Callable[[bytes], dict[str, T]]
    ) -> dict[str, T]:
        """What `_in_parts` took apart."""
        found: dict[str, T] = {}
        for index, one in enumerate(some):
            found |= decode(self.inflated(self.take(f"{kind}{index:07d}"))) if one is None else one
            if len(found) > (index + 1) * _PEERS or (len(found) < (index + 1) * _PEERS and index + 1 < len(some)):
                raise CorruptSnapshot
        return found

    def are_used(self) -> bool:
        return not self._parts


def load(data: bytes) -> State:
    """The State of a snapshot.

    Raises:
        CorruptSnapshot: damaged, of a version this code does not read, or not of a study that `apply` can have made.

    """
    try:
        head, parts = (data, []) if data.startswith(_MAGIC) else _decode_whole(data)
        header = _opened(head)
        return _load(header, _Parts(header.names, parts, _ROOM + _RATIO * len(data)))
    except Exception:  # noqa: BLE001  # whatever somebody wrote there, it is an optimisation only
        raise CorruptSnapshot from None


def _load(header: _Header, parts: _Parts) -> State:
    state, define = State(), header.define
    for name in _OF_A_STATE:
        setattr(state, name, getattr(header, name))
    state.policy = state.policy if define is None else define.policy
    state.chain = state.chain if header.chain is None else (header.lsn, header.chain)
    state.peers = parts.together("p", header.peers, _decode_peers)
    state.writers = parts.together("w", header.writers, _decode_writers)
    rules = blocks.StudyRules(0 if define is None else len(define.directions), header.dists, header.trials)
    for index, open_ in enumerate(header.blocks):
        packed = parts.take(f"{index:08d}") if open_ is None else open_
        plain = parts.inflated(packed)
        counts = blocks.check(plain, rules, first=len(state.trials))
        if len(state.trials) % BLOCK:
            raise CorruptSnapshot
        state.counts = [sum(both) for both in zip(state.counts, counts, strict=True)]
        if counts[TrialState.COMPLETE] + counts[TrialState.PRUNED] + counts[TrialState.FAIL] == BLOCK:
            state.trials.extend_closed(blocks.PackedBlock(packed))
        else:
            state.trials.extend_open(blocks.unpack(plain))
    if header.version != VERSION or not parts.are_used() or not _possible(header, state):
        raise CorruptSnapshot
    follow_fidelity(state)
    return state


def _possible(header: _Header, state: State) -> bool:
    """Whether `apply` can have made this."""
    define, ledger = header.define, header.ledger
    if define is None:
        return header.trials == 0 and ledger == Ledger(Budget()) and not header.dists and not header.system
    return (
        possible_definition(define)
        and possible_distributions(header.dists, define.space)
        and header.dists.keys() >= define.space.keys()
        and header.status in STATUSES
        and possible_attributes(header.user, header.system)
        and possible_system(header.system, len(define.directions))
        and header.refusals.keys() <= REFUSALS.keys()
        and (header.chain is None or 0 <= header.chain < PRIME)
        and ledger.maximize == (define.directions[0] == "maximize")
        and possible_ledger(ledger, len(define.directions), header.running, header.trials)
        and all(
            0 <= number < header.trials
            and 1 <= one.seed < one.count <= MOST_REPLICATES
            and header.dists.keys() | one.dists.keys() >= one.params.keys()
            for number, one in header.replicates.items()
        )
        and all(
            last.lsn <= header.lsn
            and all(
                (one.number is None or one.number < header.trials) and (one.refusal is None or one.refusal in REFUSALS)
                for one in last.verdicts
            )
            for last in state.writers.values()
        )
        and len(state.trials) == header.trials
        and _lists(state, state.waiting, TrialState.WAITING)
        and _lists(state, state.running, TrialState.RUNNING)
    )


def _lists(state: State, index: dict[int, None], what: TrialState) -> bool:
    """Whether `index` holds the trials in this state, each of them and no other."""
    return len(index) == state.counts[what] and all(
        0 <= number < len(state.trials) and state.trials[number].state is what for number in index
    )
