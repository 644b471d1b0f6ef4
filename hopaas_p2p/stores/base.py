"""The contract of a store: what every back end promises, and what callers must not expect.

A store holds logs, snapshots, beats and artifacts. A store orders and keeps commits, and knows nothing of their
content. Each log is used by one thread at a time.

DO    acknowledge a commit only when it would survive kill -9 and a power cut.
DO    give lsns 1, 2, 3, … without gaps, in the one order that every reader sees.
DO    return a commit's own entry among the entries once it is appended, even if an earlier attempt appended it.
DO    store with each commit the sum of the log before it (see `core.codec`), if it is known from `Outgoing.chain`
      or from what was read.
DO    raise `StoreUnreachable` when the outcome is not known. The caller tries again with the same bytes.
DON'T append a commit that is already in (since, head], because it was sent again.
DON'T append to a log whose sum differs from `Outgoing.chain`; raise `BrokenChain`, or return conflicting entries.
DON'T retry for longer than the few seconds that a caller can wait.
DON'T raise on content; return bytes in a commit's place unchanged, even if they are not a commit.
"""

from __future__ import annotations

import contextlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Final, NamedTuple

from msgspec import Meta, Struct

from hopaas_p2p.core import snapshot
from hopaas_p2p.core.codec import following
from hopaas_p2p.core.records import UNSTAMPED, Stamp
from hopaas_p2p.errors import BehindRetention, BrokenChain, ConfigurationError, StoreCorrupt

SNAPSHOT_EVERY: Final = 256
"""The smallest number of commits between two snapshots; every larger interval is a multiple of it."""
_SHORT: Final = 4096
_GROWTH: Final = 64
SNAPSHOTS_KEPT: Final = 3
BLOCKS_AT_ONCE: Final = 128  # about 15 MB, which a slow link carries within a call's time
EXCHANGE_TIMEOUT: Final = 5.0  # seconds for one exchange, after which the caller makes another


def snapshot_step(lsn: int) -> int:
    """The number of commits between two snapshots of a log of this length.

    This is 256 up to 4,095 commits, 1,024 up to 65,535 and, from there, between 1/128 and 1/64 of the length. So a
    joiner has little to replay, and each doubling of a long log adds only 64 snapshots.
    """
    if lsn < _SHORT:
        return SNAPSHOT_EVERY
    return max(4 * SNAPSHOT_EVERY, 1 << (lsn // _GROWTH).bit_length() - 1)


def snapshot_due(lsn: int) -> bool:
    """Whether the peer that commits this lsn should write a snapshot."""
    return lsn % SNAPSHOT_EVERY == 0 and lsn % snapshot_step(lsn) == 0


class Outgoing(Struct, array_like=True, frozen=True, gc=False):
    """A commit to append, and what a store may know about it. No store decodes the bytes."""

    nonce: str
    """`writer:sequence number`, which identifies the commit when it is sent again."""
    payload: bytes
    """The bytes of the commit, to which `codec` added a checksum."""
    about: str = ""
    """The uuid of the study that a commit to the catalog opens or closes, which that study's owner may do."""
    chain: int | None = None
    """The sum (see `core.codec`) of the log up to `since`, as the sender has read it; None if unknown."""
    stamp: Stamp = UNSTAMPED
    """The stamp of a server that offers this store to others: stored with the commit where no database does so."""

    @property
    def writer(self) -> str:
        """The peer that wrote the commit. A writer's commits must arrive in the order of their sequence numbers."""
        return self.nonce.rpartition(":")[0]


class Placed(Struct, frozen=True, gc=False):
    """A commit, with its place in the history that its writer has read."""

    lsn: int
    """The commit's place in that history; 0 if the commit was still in flight."""
    before: int | None
    """The sum of the log before it; None if unknown."""
    commit: Outgoing


class Entry(Struct, array_like=True, frozen=True, gc=False):
    """A commit as the log holds it."""

    lsn: int
    payload: bytes
    stamp: Stamp = UNSTAMPED
    before: int | None = None
    """The sum of the log before this commit, as known to the party that assigned its lsn; None if it was stored without
    one.
    """


class ExchangeResult(Struct, array_like=True, frozen=True, gc=False):
    """The result of an exchange: the commits after `since`, in order, and whether more can be fetched."""

    entries: Annotated[list[Entry], Meta(max_length=1 << 20)]
    more: bool = False

    def holds(self, outgoing: Outgoing) -> bool:
        """Whether this commit is among the entries."""
        return any(entry.payload == outgoing.payload for entry in self.entries)


class Beat(NamedTuple):
    """A peer's heartbeat. A change of `value` shows that the peer is alive; the value itself means nothing."""

    peer: str
    value: str


class Doubtful(NamedTuple):
    """A snapshot that a worker wrote and for which no other author has vouched."""

    lsn: int
    author: str
    data: bytes
    sum: str
    """The checksum of the compared bytes; a judgement applies only to these bytes."""


class Log(ABC):
    """The ordered commits of one study, or of the store's catalog. Optional methods have a default."""

    rate_limited: bool = False
    """Whether commits are slow and costly, so that peers call `wait_turn` first and batch for `flush_interval`."""
    begins_anywhere: bool = False
    """Whether the log may begin with a snapshot, so that `restore` takes a base."""

    @abstractmethod
    def exchange(self, outgoing: Outgoing | None, since: int, beat: Beat | None = None) -> ExchangeResult:
        """Append a commit, if one is given, and return the commits after `since`, in one round trip where possible.

        Blocks until the commit is durable. If the result has `more`, the commit was appended only if it is among the
        entries.

        Raises:
            StoreUnreachable: the outcome is not known; try again with the same bytes.
            StoreCorrupt: the log is damaged. Nothing was written.
            BrokenChain: the log does not match `Outgoing.chain` or `since`. Nothing was written.
            StudyDeleted: the log was destroyed. Raised for every caller that has seen any part of it; nothing was
                written.

        """

    def changed(self, since: int) -> bool | None:
        """Whether there are commits after `since`; None if that cannot be determined without a round trip."""
        return None

    def news(self, since: int, within: float) -> bool | None:
        """Wait up to `within` seconds for commits after `since`, and return whether any came.

        Returns None at once if this log cannot wait. `Store.hang_up` ends the wait early. Raises like `exchange`.
        """
        return None

    def newest_snapshot(self, *, before: int | None = None) -> tuple[int, bytes] | None:
        """(lsn, bytes) of the newest complete snapshot, or of the newest one with an lsn below `before`.

        None if there is none. With `before`, also None in a store that never removes commits, because the log can be
        replayed from its first commit. In a store with users, snapshots that this user may not trust are passed over.
        A user may trust a snapshot that the user or an owner wrote, or for which another author vouches.
        """
        while (found := self.snapshot_head(before)) is not None:
            before, head = found
            data = self.whole_snapshot(head)
            if data is not None:
                return before, data
        return None

    def put_snapshot(self, lsn: int, data: bytes) -> None:
        """Store a snapshot, and keep the two before it. Callers may ignore a failure, which only makes joining slower.

        Its settled pieces are written once, and shared by later snapshots (`snapshot.split`).
        If there are several for one lsn, any may be kept, because all peers have the same state at that lsn.
        """
        head, blocks = snapshot.split(data)
        there = self.block_names() if blocks else set()
        for name in blocks.keys() - there:
            self.put_block(name, blocks[name])
        self.put_snapshot_head(lsn, head)

    def whole_snapshot(self, head: bytes) -> bytes | None:
        """The snapshot with this head and its blocks; None if the head is damaged, or a block is missing."""
        with contextlib.suppress(snapshot.CorruptSnapshot):
            names = snapshot.names_in(head)
            found: dict[str, bytes] = {}
            while some := [name for name in names if name not in found][:BLOCKS_AT_ONCE]:
                part = self.blocks(some)
                if part.keys().isdisjoint(some):
                    return None
                found |= part
            return snapshot.whole(head, found)
        return None

    def snapshot_head(self, before: int | None) -> tuple[int, bytes] | None:
        """Like `newest_snapshot`, but only what `snapshot.split` calls the head, even if it cannot be read."""
        return None

    def blocks(self, names: list[str]) -> dict[str, bytes]:
        """Those of these snapshot blocks that exist, by name, or at least the first of them."""
        return {}

    def block_names(self) -> set[str]:
        """The names of the existing blocks."""
        return set()

    def put_block(self, name: str, data: bytes) -> None:
        """Store a block, whose name contains a hash of its bytes."""

    def put_snapshot_head(self, lsn: int, head: bytes) -> None:
        """Store the head of a snapshot whose blocks exist, and keep the two before it."""

    @abstractmethod
    def destroy(self) -> None:
        """Remove the log and its snapshots for good."""

    def erase(self) -> None:
        """Remove a log that no other peer has seen, if possible without a trace."""
        self.destroy()

    # --- for a server, which checks what its callers claim ---

    def is_empty(self) -> bool:
        """Whether nobody has written to the log. Raises like `exchange`."""
        return not self.exchange(None, 0).entries

    def sum_at(self, lsn: int) -> int | None:
        """The sum of the log up to this commit, which a caller claims to have read; None if it is no longer known.

        A commit without a predecessor, or with a false sum, would end the log for everyone. Bytes that are not a commit
        are stored without a sum; the sum after them is computed from the last one that was stored.

        Raises:
            BrokenChain: there is no such commit.
            BehindRetention: this commit and later ones were removed, because a snapshot replaces them.

        """
        back = 1
        while lsn:
            first = max(lsn - back, 0)
            total, last = None if first else 0, first
            try:
                for entry in itertools.takewhile(lambda one: one.lsn <= lsn, read_all(self, first)):
                    before = total if entry.before is None else entry.before
                    total, last = None if before is None else following(before, entry.payload), entry.lsn
            except BehindRetention:  # a snapshot replaces these commits
                if self.removed_up_to() > lsn:
                    raise
                return None
            if last != lsn:
                raise BrokenChain(f"commit {lsn}, which a peer has read, is gone from the log")
            if total is not None:
                return total
            back *= 8
        return 0

    # --- slow and costly commits ---

    @property
    def flush_interval(self) -> float:
        """Seconds for which to batch reports: longer when more peers have recently written to the log."""
        return 0.0

    def wait_turn(self, since: int) -> ExchangeResult:
        """Wait until a commit would probably be accepted at once.

        Returns the commits after `since` that arrived meanwhile, and appends nothing. Records queued during the wait
        are sent with the next commit. Raises like `exchange`.
        """
        return ExchangeResult([])

    # --- commits in flight, and commits that may be lost ---

    def withdraw(self, outgoing: Outgoing) -> None:
        """Prevent this commit from being appended, if that is still possible. The caller does not send it again."""

    def confirm(self) -> None:
        """Check that the store has this process's recent commits, and put missing ones back.

        Raises like `exchange`, with BrokenChain if another commit took the place of one, or one cannot be put back.
        """

    def unconfirmed(self) -> list[int]:
        """The lsns of commits that this process recently appended, and has not read back."""
        return []

    # --- snapshots of others, where the store has users ---

    def doubtful_snapshot(self, after: int, up_to: int) -> Doubtful | None:
        """The newest snapshot in (after, up_to] that this user may judge; None if all users trust a newer one."""
        found = self.doubtful_head(after, up_to)
        return None if found is None else found._replace(data=self.whole_snapshot(found.data) or b"")

    def doubtful_head(self, after: int, up_to: int) -> Doubtful | None:
        """Like `doubtful_snapshot`, with only the head of the snapshot."""
        return None

    def judge_snapshot(self, found: Doubtful, *, same: bool) -> None:
        """Vouch for this snapshot, or deny that it agrees with the log. This user is not asked about it again."""

    def denied_snapshots(self) -> list[tuple[int, str, list[str]]]:
        """For each denied snapshot: its lsn, its author, and the users who deny it."""
        return []

    # --- backups and rescue ---

    def removed_up_to(self) -> int:
        """The lsn up to which commits were removed because a snapshot replaces them; 0 if none were."""
        return 0

    def salvage(self) -> Iterator[Entry]:
        """Every commit of which the log still has bytes, including damaged ones; missing ones are left out.

        If the store accepted two commits for one lsn, the one that readers see comes first.
        """
        with contextlib.suppress(StoreCorrupt):
            yield from read_all(self)

    def restore(self, base: tuple[int, bytes] | None, entries: Iterable[Entry]) -> None:
        """Write these commits under their own lsns, with everything that the backup records about them. May be
        repeated.

        Nobody else may write to the log meanwhile.

        Args:
            base: the snapshot that replaces commits removed before the backup, and its lsn; see `begins_anywhere`.
            entries: the commits after the snapshot, without gaps. Commits that already exist must be the same.

        Raises:
            ConfigurationError: nothing can be restored into this store.
            StoreCorrupt: the log has a different commit under one of these lsns.

        """
        raise ConfigurationError("a backup cannot be restored into this store; use a directory, database or bucket")


def read_all(log: Log, since: int = 0) -> Iterator[Entry]:
    """The commits after `since`, in as many exchanges as that takes. Raises like `Log.exchange`."""
    more = True
    while more:
        receipt = log.exchange(None, since)
        yield from receipt.entries
        since = receipt.entries[-1].lsn if receipt.entries else since
        more = receipt.more


def append(log: Log, outgoing: Outgoing, since: int) -> list[Entry]:
    """Append a commit in as many exchanges as that takes; return the entries after `since`.

    Raises like `Log.exchange`.
    """
    entries: list[Entry] = []
    while True:
        receipt = log.exchange(outgoing, entries[-1].lsn if entries else since)
        entries += receipt.entries
        if not receipt.more or receipt.holds(outgoing):
            return entries


Progress = Callable[[int], None]
"""Called from time to time with the number of bytes transferred since the last call."""


class Artifacts(ABC):
    """Files beside the logs: checkpoints, models, plots.

    Keys consist of letters, digits, `-`, `_` and `/`.
    """

    @abstractmethod
    def put(self, key: str, source: Path) -> None:
        """Store a copy of this file under the key: complete and durable when this returns, or not at all."""

    @abstractmethod
    def get(self, key: str, target: Path, progress: Progress | None = None) -> None:
        """Write the data stored under the key to this file.

        Raises:
            KeyError: there is nothing under this key.

        """

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove the file under this key, if there is one."""

    @abstractmethod
    def keys(self, prefix: str) -> list[str]:
        """The keys that begin with the prefix, which is at least a study's uuid and a slash, sorted."""


class Store(ABC):
    """A shared place for studies. Optional methods have a default."""

    url: str
    """The URL that opens the store again; it contains no secret, so it may be shown and stored."""
    freshness: float
    """Seconds for which a read may rely on the last pull. If 0, `Log.changed` is cheap, and every read calls it."""
    piggybacks_heartbeats: bool = False
    """Whether a beat inside `exchange` costs nothing extra."""
    snapshots: bool = True
    """Whether a snapshot helps a joining peer; it does not if the log itself is just as quick to read."""
    immediate: bool = False
    """Whether the store has no server, so that callers make exchanges in their own threads, unless another thread
    is making one."""

    @abstractmethod
    def catalog(self) -> Log:
        """The log that lists the studies."""

    @abstractmethod
    def log(self, uuid: str) -> Log:
        """The log of the study with this uuid; empty if nothing has been written to it."""

    def shared(self) -> set[str] | None:
        """The uuids of the studies that this user may see; None means all."""
        return None

    def login(self) -> str | None:
        """The user, or the token, by which the store knows this process; None if the store has no users."""
        return None

    @abstractmethod
    def beat(self, beat: Beat) -> None:
        """Overwrite this peer's beat."""

    @abstractmethod
    def beats(self, peers: Iterable[str]) -> dict[str, str]:
        """The beats of these peers, by peer, for those that have one."""

    def remove_beat(self, peer: str) -> None:
        """Remove the beat of a peer that has ended and runs nothing. The default does nothing."""

    def sweep_beats(self) -> None:
        """Remove the beats of peers that have been silent for longer than any lease may last."""

    @abstractmethod
    def artifacts(self) -> Artifacts:
        """Where files are kept.

        Raises:
            ConfigurationError: this store does not keep files; the message says what to do.

        """

    def hang_up(self) -> None:
        """End each `Log.news` that is waiting."""

    def after_fork(self) -> None:
        """In a forked child: give up connections and descriptors, which the parent continues to use."""

    def close(self) -> None:
        """Release open resources; the store may be used again."""
