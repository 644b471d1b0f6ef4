"""State <-> bytes, and the digest by which two States are compared.

A snapshot is a header and blocks of 1,024 trials, see `blocks`. A block whose trials are all finished never changes
again: a State keeps its bytes instead of its trials, so a snapshot costs what is new, and joining takes no trial apart.
What is known of peers that have long been quiet is packed likewise, 256 at a time. Nobody is forgotten: a commit of a
peer may lie in a spool for as long as it likes, and counts once.

A store keeps those blocks apart from the rest, see `split`: each is written once and shared by the snapshots after it,
so a study of n trials costs a constant number of bytes per trial, however many snapshots are written.

Canonical: the same State gives the same bytes, before compression, everywhere. No pickle.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Annotated, Final, TypeVar

import msgspec

from hopaas_p2p.core import blocks
from hopaas_p2p.core.attributes import MOST_REPLICATES
from hopaas_p2p.core.chain import PRIME, sum_at
from hopaas_p2p.core.configurations import follow_fidelity
from hopaas_p2p.core.inherited import flat
from hopaas_p2p.core.ledger import Ledger, possible_ledger
from hopaas_p2p.core.records import Budget, Distribution, Natural, StudyDefine, TrialState
from hopaas_p2p.core.state import BLOCK, REFUSALS, LastCommit, Replicates, State, Verdict
from hopaas_p2p.core.validity import (
    MAX_BUDGET,
    STATUSES,
    possible_attributes,
    possible_definition,
    possible_distributions,
    possible_system,
)

VERSION: Final = 3
_PEERS: Final = 256
_QUIET: Final = 4096
"""Commits without one of a peer after which it is written with 255 neighbours once, and not with every head."""
_MOST_PARTS: Final = 1 << 16
_LEVEL: Final = 6
_NAME: Final = re.compile(r"[0-9wp][0-9]{7}-[0-9a-f]{32}")
_MAGIC: Final = b"hopaas-snapshot\n"
_HEAD_MAGIC: Final = b"hopaas-snapshot-head\n"
_DIGEST: Final = 16
_ROOM: Final = 64 << 20
_RATIO: Final = 32
"""What a snapshot of n bytes may inflate to is _ROOM + _RATIO * n: real ones double, or are small."""


class CorruptSnapshot(Exception):
    """These bytes are not a snapshot this version can read; the log still is, replay it instead."""


_Last = tuple[Natural, Natural, list[tuple[bool, Natural | None, str | None]], str]
T = TypeVar("T")


class _Header(msgspec.Struct, array_like=True):
    version: int
    lsn: Natural
    define: StudyDefine | None
    status: str
    budget: Annotated[int, msgspec.Meta(ge=0, le=MAX_BUDGET)] | None
    user: dict[str, str]
    system: dict[str, str]
    waiting: list[Natural]
    running: list[Natural]
    failures_in_a_row: Natural
    dists: dict[str, Distribution]
    peers: dict[str, dict[str, str]]
    draining: list[str]
    writers: dict[str, _Last]
    refusals: dict[str, Natural]
    trials: Natural
    blocks: list[memoryview]
    """Views of the bytes that were decoded: a closed block is kept as it came, and not copied."""
    chain: int | None = None
    """The sum that the snapshot stands on, see `core.chain`."""
    quiet: list[tuple[str, int, bytes]] = []
    """Of `writers` and of `peers`, the parts of 256 of which none has written for long: which, where, and packed."""
    ledger: Ledger = msgspec.field(default_factory=lambda: Ledger(Budget()))
    replicates: dict[int, Replicates] = {}


class _SplitSnapshot(msgspec.Struct, array_like=True):
    """A snapshot whose settled blocks are kept elsewhere."""

    pieces: list[bytes]
    """What is before, between and behind those blocks."""
    names: list[str]
    """The blocks, one between any two pieces."""


_encode: Final = msgspec.msgpack.Encoder().encode
_decode_header: Final = msgspec.msgpack.Decoder(_Header).decode
_decode_writers: Final = msgspec.msgpack.Decoder(dict[str, _Last]).decode
_decode_peers: Final = msgspec.msgpack.Decoder(dict[str, dict[str, str]]).decode
_decode_head: Final = msgspec.msgpack.Decoder(_SplitSnapshot).decode


def dump(state: State) -> bytes:
    """The snapshot of this State."""
    blocks.close_settled(state)
    packed = [_packed(state, index) for index in range(_count(state))]
    header = _header(state, packed)
    header.writers = _without_quiet(state, header, "w", header.writers)
    header.peers = _without_quiet(state, header, "p", header.peers)
    return seal(_MAGIC, _encode(header))


def _without_quiet(state: State, header: _Header, kind: str, mapping: dict[str, T]) -> dict[str, T]:
    """Move what has long been quiet from this mapping of the header to `header.quiet`; the rest, in the same order."""
    names = list(mapping)
    kept: dict[str, T] = {}
    for first in range(0, len(names), _PEERS):
        some = names[first : first + _PEERS]
        part = {name: mapping[name] for name in some}
        last = max([state.writers[name].lsn if name in state.writers else 0 for name in some])
        if len(some) < _PEERS or last > state.lsn - _QUIET:
            kept |= part
            continue
        before = state.quiet.get((kind, first))
        if before is None or before[0] != last:
            before = state.quiet[kind, first] = last, zlib.compress(_encode(part), _LEVEL)
        header.quiet.append((kind, first // _PEERS, before[1]))
    return kept


def _with_quiet(
    header: _Header, kind: str, mapping: dict[str, T], decode: Callable[[bytes], dict[str, T]], room: _Room
) -> dict[str, T]:
    """What `_without_quiet` took apart. Raises CorruptSnapshot."""
    quiet = {index: packed for of, index, packed in header.quiet if of == kind}
    if not quiet:
        return mapping
    names = iter(mapping.items())
    found: dict[str, T] = {}
    for index in range(max(quiet) + 1) if max(quiet) < _MOST_PARTS else ():
        packed = quiet.get(index)
        part = dict(itertools.islice(names, _PEERS)) if packed is None else decode(room.inflated(packed))
        if len(part) != _PEERS:
            raise CorruptSnapshot
        found |= part
    return found | dict(names)


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


# --- what stores keep apart ---


def split(data: bytes) -> tuple[bytes, dict[str, bytes]]:
    """A snapshot without its settled blocks and quiet peers, and those by name; other bytes stay as they are.

    A block's name holds its place and a hash of its bytes, so the same name has the same bytes whoever writes it.
    """
    try:
        header = _decode_header(unseal(_MAGIC, data))
    except (CorruptSnapshot, msgspec.MsgspecError, RecursionError):
        return data, {}
    unsettled = {number // BLOCK for number in (*header.waiting, *header.running)}
    pieces: list[bytes] = []
    apart: dict[str, bytes] = {}
    position = 0
    settled = [one for one in enumerate(header.blocks[: header.trials // BLOCK]) if one[0] not in unsettled]
    parts = [(f"{index:08d}", packed) for index, packed in settled]
    parts += [(f"{kind}{index:07d}", memoryview(packed)) for kind, index, packed in header.quiet if kind in ("w", "p")]
    for place, view in parts:
        packed = bytes(view)
        at = data.find(packed, position)
        if at < 0:
            return data, {}
        pieces.append(data[position:at])
        apart[block_name(place, packed)] = packed
        position = at + len(packed)
    if not apart:
        return data, {}
    return seal(_HEAD_MAGIC, _encode(_SplitSnapshot([*pieces, data[position:]], list(apart)))), apart


def block_name(place: str, packed: bytes) -> str:
    """The name under which a store keeps this block."""
    return f"{place}-{hashlib.sha256(packed).hexdigest()[:32]}"


def names_in(head: bytes) -> list[str]:
    """The blocks that belong to what `split` made; none for other bytes. Raises CorruptSnapshot."""
    return _opened(head).names


def whole(head: bytes, apart: Mapping[str, bytes | memoryview]) -> bytes:
    """The snapshot that was split. Raises CorruptSnapshot for a head that is damaged, or lacks a block."""
    opened = _opened(head)
    try:
        parts = [
            part for piece, name in zip(opened.pieces, opened.names, strict=False) for part in (piece, apart[name])
        ]
    except KeyError:
        raise CorruptSnapshot from None
    return b"".join([*parts, *opened.pieces[len(opened.names) :]])


def _opened(head: bytes) -> _SplitSnapshot:
    if not head.startswith(_HEAD_MAGIC):
        return _SplitSnapshot([head], [])
    try:
        opened = _decode_head(unseal(_HEAD_MAGIC, head))
    except msgspec.MsgspecError:
        raise CorruptSnapshot from None
    if not all(map(_NAME.fullmatch, opened.names)):  # a hostile one: they become names of files
        raise CorruptSnapshot
    return opened


def digest(state: State) -> str:
    """A fingerprint of the whole State: equal for any two peers at the same lsn.

    Taken before compression, whose bytes differ from one version of zlib to the next.
    """
    plain = [memoryview(zlib.decompress(_packed(state, index))) for index in range(_count(state))]
    header = _header(state, plain)
    header.chain = None  # a study does not depend on its log's sum
    return hashlib.blake2b(_encode(header), digest_size=_DIGEST).hexdigest()


def _header(state: State, packed: list[memoryview]) -> _Header:
    return _Header(
        VERSION,
        state.lsn,
        state.define,
        state.status,
        state.budget,
        flat(state.user),
        flat(state.system),
        list(state.waiting),
        list(state.running),
        state.failures_in_a_row,
        state.dists,
        state.peers,
        list(state.draining),
        {
            w: (last.seq, last.lsn, [(v.accepted, v.number, v.refusal) for v in last.verdicts], last.author)
            for w, last in state.writers.items()
        },
        state.refusals,
        len(state.trials),
        packed,
        sum_at(state.lsn, state.chain),
        ledger=state.ledger,
        replicates=state.replicates,
    )


class _Room:
    """How many bytes the parts of a snapshot may still inflate to."""

    def __init__(self, left: int) -> None:
        self._left = left

    def inflated(self, packed: bytes | memoryview) -> bytes:
        """The bytes of this part. ValueError if they are too many, or end early."""
        plain = blocks.inflated(packed, at_most=self._left)
        self._left -= len(plain)
        return plain


def load(data: bytes) -> State:
    """The State of a snapshot.

    Raises:
        CorruptSnapshot: damaged, of a version this code does not read, or not of a study that `apply` can have made.

    """
    try:
        return _load(_decode_header(unseal(_MAGIC, data)), _Room(_ROOM + _RATIO * len(data)))
    except Exception:  # noqa: BLE001  # whatever somebody wrote there, it is an optimisation only
        raise CorruptSnapshot from None


def _load(header: _Header, room: _Room) -> State:
    if header.version != VERSION or not _possible(header):
        raise CorruptSnapshot
    state = State()
    if header.chain is not None:
        state.chain = header.lsn, header.chain
    state.lsn, state.define, state.status, state.budget = header.lsn, header.define, header.status, header.budget
    if header.define is not None:
        state.policy = header.define.policy
    state.user, state.system, state.ledger = header.user, header.system, header.ledger
    state.waiting, state.running = dict.fromkeys(header.waiting), dict.fromkeys(header.running)
    state.failures_in_a_row, state.replicates = header.failures_in_a_row, header.replicates
    state.dists, state.refusals = header.dists, header.refusals
    state.peers = _with_quiet(header, "p", header.peers, _decode_peers, room)
    state.draining = dict.fromkeys(header.draining)
    writers = _with_quiet(header, "w", header.writers, _decode_writers, room)
    if not all(_possible_last(last, header) for last in writers.values()):
        raise CorruptSnapshot
    state.writers = {
        writer: LastCommit(seq, lsn, tuple([Verdict(*verdict) for verdict in verdicts]), author)
        for writer, (seq, lsn, verdicts, author) in writers.items()
    }
    rules = blocks.StudyRules(
        0 if header.define is None else len(header.define.directions), header.dists, header.trials
    )
    for packed in header.blocks:
        first = len(state.trials)
        checked = blocks.check(room.inflated(packed), rules, first=first)
        state.counts = [sum(both) for both in zip(state.counts, checked.counts, strict=True)]
        if checked.finished and sum(checked.counts) == BLOCK:
            state.trials.extend_closed(blocks.PackedBlock(packed, first))
        else:
            state.trials.extend_open(blocks.unpack(checked.columns, first=first))
        if len(state.trials) % BLOCK and packed is not header.blocks[-1]:
            raise CorruptSnapshot
    if len(state.trials) != header.trials:
        raise CorruptSnapshot
    if not (_lists(state, state.waiting, TrialState.WAITING) and _lists(state, state.running, TrialState.RUNNING)):
        raise CorruptSnapshot
    follow_fidelity(state)
    return state


def _possible(header: _Header) -> bool:
    """Whether `apply` can have made this, but for the trials."""
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
        and possible_ledger(ledger, len(define.directions), header.running, header.trials)
        and all(_possible_replicates(header, *one) for one in header.replicates.items())
    )


def _possible_replicates(header: _Header, number: int, one: Replicates) -> bool:
    known = header.dists.keys() | one.dists.keys()
    return 0 <= number < header.trials and 1 <= one.seed < one.count <= MOST_REPLICATES and known >= one.params.keys()


def _possible_last(last: _Last, header: _Header) -> bool:
    _, lsn, verdicts, _ = last
    return lsn <= header.lsn and all(
        (number is None or number < header.trials) and (refusal is None or refusal in REFUSALS)
        for _, number, refusal in verdicts
    )


def _lists(state: State, index: dict[int, None], what: TrialState) -> bool:
    """Whether `index` holds the trials in this state, each of them and no other."""
    return len(index) == state.counts[what] and all(
        0 <= number < len(state.trials) and state.trials[number].state is what for number in index
    )


def _count(state: State) -> int:
    return -(-len(state.trials) // BLOCK)


def _packed(state: State, index: int) -> memoryview:
    closed = state.trials.closed.get(index)
    return memoryview(blocks.pack(state.trials.open[index])) if closed is None else closed.packed
