"""Encodes a State as bytes, and computes the digest by which two States are compared.

A snapshot is a head and separate pieces, each compressed by itself. The pieces are blocks of 1,024 finished trials (see
`blocks`), and groups of 256 peers that have not written for a long time. Such a piece hardly ever changes. Its name
contains its place and a hash of its bytes, so stores write it once and share it among snapshots; see `split`. A trial
therefore costs a constant number of bytes, however many snapshots are written. A State keeps the bytes of a block
instead of its trials, so joining does not decode trials. No peer is forgotten, because a peer's commit may stay in a
spool for any length of time, and must count only once.

On every machine, the same State gives the same bytes before compression. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Final, TypeVar

import msgspec

from hopaas_p2p.core import blocks
from hopaas_p2p.core.apply import can_be_repeated, follow_fidelity
from hopaas_p2p.core.codec import MAX_BYTES, PRIME
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

VERSION: Final = 8
_PEERS: Final = 256
_QUIET: Final = 4096
"""Commits after which a group of peers that wrote none of them moves from the head to a separate piece."""
_LEVEL: Final = 6
_NAME: Final = re.compile(r"[0-9wp][0-9]{7}-[0-9a-f]{32}")
_MAGIC: Final = b"hopaas-snapshot\n"
_DIGEST: Final = 16


class CorruptSnapshot(Exception):
    """These bytes are not a snapshot that this version can read; replay the log instead, which is still readable."""


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
    """The log's sum at the snapshot; see `core.codec`."""
    inline: dict[str, memoryview]
    """Pieces that may still change, by place."""
    names: list[str]
    """The names of the separate pieces."""


_OF_A_STATE: Final = _Header.__struct_fields__[1:15]
"""The fields that a header has in common with a State."""
_encode: Final = msgspec.msgpack.Encoder().encode
_decode_header: Final = msgspec.msgpack.Decoder(_Header).decode
_decode_writers: Final = msgspec.msgpack.Decoder(dict[str, LastCommit]).decode
_decode_peers: Final = msgspec.msgpack.Decoder(dict[str, dict[str, str]]).decode
_decode_whole: Final = msgspec.msgpack.Decoder(tuple[bytes, list[memoryview]]).decode


def dump(state: State) -> bytes:
    """The snapshot of this State."""
    blocks.close_settled(state)
    header, parts = _header(state), list[bytes | memoryview]()
    for place, packed, settled in _pieces(state):
        if settled:
            header.names.append(block_name(place, packed))
            parts.append(packed)
        else:
            header.inline[place] = memoryview(packed)
    return _joined(seal(_MAGIC, _encode(header)), parts)


def digest(state: State) -> str:
    """A fingerprint of the whole State: equal for any two peers at the same lsn.

    The digest is computed before compression, because versions of zlib produce different bytes.
    """
    header = _header(state)
    header.chain = None  # the study does not depend on its log's sum
    plain = [(place, zlib.decompress(packed)) for place, packed, _ in _pieces(state)]
    return hashlib.blake2b(_encode((header, plain)), digest_size=_DIGEST).hexdigest()


def _header(state: State) -> _Header:
    """All of the State except the pieces."""
    of_state = {name: getattr(state, name) for name in _OF_A_STATE}
    of_state |= {"user": flat(state.user), "system": flat(state.system)}
    return _Header(VERSION, **of_state, trials=len(state.trials), chain=state.sum, inline={}, names=[])


def _pieces(state: State) -> Iterator[tuple[str, bytes | memoryview, bool]]:
    """Blocks of trials and groups of peers: the place of each, its bytes, and whether it is settled."""
    for index in range(-(-len(state.trials) // BLOCK)):
        closed = state.trials.closed.get(index)
        packed = blocks.pack(state.trials.open[index]) if closed is None else closed.packed
        yield f"{index:08d}", packed, closed is not None
    for kind, mapping in (("w", state.writers), ("p", state.peers)):
        items = list(mapping.items())
        for index in range(-(-len(items) // _PEERS)):
            place, part = f"{kind}{index:07d}", dict(items[index * _PEERS : (index + 1) * _PEERS])
            last = max([state.writers[name].lsn if name in state.writers else 0 for name in part])
            settled = len(part) == _PEERS and last <= state.lsn - _QUIET
            before = state.quiet.get(place)
            if before is None or before[0] != last or len(part) < _PEERS:
                before = state.quiet[place] = last, blocks.deflated(_encode(part), _LEVEL)
            yield place, before[1], settled


# --- what stores keep separately ---


def seal(magic: bytes, body: bytes) -> bytes:
    """The body, framed so that damage can be detected."""
    return magic + hashlib.blake2b(body, digest_size=_DIGEST).digest() + body


def unseal(magic: bytes, data: bytes) -> memoryview:
    """The body. Raises CorruptSnapshot if it is not what was sealed."""
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
    """A snapshot's head, and its separate pieces by name. Other bytes are returned unchanged, without pieces."""
    try:
        head, parts = _decode_whole(data)
        return head, dict(zip(names_in(head), map(bytes, parts), strict=True))
    except (CorruptSnapshot, ValueError, RecursionError):
        return data, {}


def names_in(head: bytes) -> list[str]:
    """The names of the separate pieces of the snapshot with this head; none for other bytes. Raises CorruptSnapshot."""
    return _opened(head).names if head.startswith(_MAGIC) else []


def whole(head: bytes, apart: Mapping[str, bytes | memoryview]) -> bytes:
    """The snapshot that was split. Raises CorruptSnapshot if the head is damaged or a piece is missing."""
    try:
        return _joined(head, [apart[name] for name in names_in(head)])
    except KeyError:
        raise CorruptSnapshot from None


def _opened(head: bytes) -> _Header:
    try:
        header = _decode_header(unseal(_MAGIC, head))
    except (msgspec.MsgspecError, RecursionError):
        raise CorruptSnapshot from None
    if not all(map(_NAME.fullmatch, header.names)):  # the head may be hostile, and these become file names
        raise CorruptSnapshot
    return header


# --- reading ---


class _Pieces:
    """The pieces of a snapshot by place, each inflated when it is taken, to at most `room` bytes in all."""

    def __init__(self, header: _Header, apart: Sequence[memoryview], room: int) -> None:
        self._packed, self._left = dict(header.inline), room
        for name, part in zip(header.names, apart, strict=True):
            if name[:8] in self._packed or block_name(name[:8], part) != name:
                raise CorruptSnapshot
            self._packed[name[:8]] = part

    def __len__(self) -> int:
        """How many have not been taken."""
        return len(self._packed)

    def take(self, place: str) -> tuple[memoryview, bytes]:
        """Take the piece at this place: packed, and inflated. Raises KeyError if there is none, or like `inflated`."""
        packed = self._packed.pop(place)
        plain = blocks.inflated(packed, at_most=self._left)
        self._left -= len(plain)
        return packed, plain

    def together(self, kind: str, decode: Callable[[bytes], dict[str, T]]) -> dict[str, T]:
        """The entries of all pieces of this kind, which are about peers. Raises like `take`, or CorruptSnapshot."""
        found: dict[str, T] = {}
        for index in itertools.count():
            if f"{kind}{index:07d}" not in self._packed:
                return found
            found |= decode(self.take(f"{kind}{index:07d}")[1])
            if not index * _PEERS < len(found) <= (index + 1) * _PEERS:
                break
        raise CorruptSnapshot


def load(data: bytes) -> State:
    """The State of a snapshot.

    Raises:
        CorruptSnapshot: the bytes are damaged, of a version that this code does not read, or not a possible study.

    """
    try:
        head, parts = (data, []) if data.startswith(_MAGIC) else _decode_whole(data)
        header = _opened(head)
        return _load(header, _Pieces(header, parts, blocks.RATIO * len(data)))
    except Exception:  # noqa: BLE001  # a snapshot is only an optimisation, whatever it contains
        raise CorruptSnapshot from None


def _load(header: _Header, pieces: _Pieces) -> State:
    state, define = State(), header.define
    for name in _OF_A_STATE:
        setattr(state, name, getattr(header, name))
    state.policy = state.policy if define is None else define.policy
    state.sum = header.chain
    state.peers = pieces.together("p", _decode_peers)
    state.writers = pieces.together("w", _decode_writers)
    directions, most = 0 if define is None else len(define.directions), MAX_BYTES * (header.lsn + 1)
    rules = blocks.StudyRules(directions, header.dists, header.trials, most)
    for index in range(-(-header.trials // BLOCK)):
        packed, plain = pieces.take(f"{index:08d}")
        counts = blocks.check(plain, rules, first=index * BLOCK)
        if len(state.trials) != index * BLOCK:
            raise CorruptSnapshot
        state.counts = [sum(both) for both in zip(state.counts, counts, strict=True)]
        if counts[TrialState.COMPLETE] + counts[TrialState.PRUNED] + counts[TrialState.FAIL] == BLOCK:
            state.trials.closed[index] = blocks.PackedBlock(packed)
        else:
            state.trials.open[index] = blocks.unpack(plain)
        state.trials.size += sum(counts)
    if header.version != VERSION or pieces or not _possible(header, state, most):
        raise CorruptSnapshot
    follow_fidelity(state)
    return state


def _possible(header: _Header, state: State, most: int) -> bool:
    """Whether `apply` can have made this State, in which no count has reached `most`."""
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
        and max(header.failures_in_a_row, ledger.since_best, *header.refusals.values()) < most
        and (header.chain is None or 0 <= header.chain < PRIME)
        and ledger.maximize == (define.directions[0] == "maximize")
        and possible_ledger(ledger, len(define.directions), header.running, header.trials)
        and all(
            0 <= number < header.trials and 1 <= one.seed < one.count and can_be_repeated(state, one, one.count)
            for number, one in header.replicates.items()
        )
        and all(one.dists.keys() <= header.dists.keys() for one in header.replicates.values())
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
    """Whether `index` holds exactly the trials in this state."""
    return len(index) == state.counts[what] and all(
        0 <= number < len(state.trials) and state.trials[number].state is what for number in index
    )
