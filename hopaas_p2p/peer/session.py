"""One log as a process uses it: what is known about it, and the client that performs the I/O.

A `LogSession` holds all knowledge about the log. It performs no I/O, starts no thread, takes no lock and reads no
clock, in the manner of etcd's `raft.RawNode` and of h11. `ready(now)` says when an exchange is due, and `next_commit`
what to send with it; its `LogClient` makes the exchange and reports the outcome with `advance` or `failed`. A session
belongs to one writer for its whole life. After a fork or an unpickling, or when another process turns out to use the
same name, `for_child` constructs a new session from it; nothing is reset by hand.

The client has two locks. The lock guards the session and is held for moments; the turn is held for the length of an
exchange, and nothing is read from or written to a store under the lock. Records that queue up during a slow exchange
are sent with the next one.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, Self, TypeVar

from msgspec import structs

from hopaas_p2p.core import catalog, codec, snapshot
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.catalog import Catalog
from hopaas_p2p.core.codec import BASE, PRIME, shown
from hopaas_p2p.core.leases import BEATS_PER_TTL, OwnerMonitor
from hopaas_p2p.core.records import (
    Commit,
    PeerJoin,
    Record,
    Stamp,
    StudyRegistered,
    StudyRemoved,
    StudySet,
    TrialClaim,
    TrialCreate,
    TrialFinish,
    TrialRelease,
    TrialSet,
    TrialState,
)
from hopaas_p2p.core.snapshot import CorruptSnapshot
from hopaas_p2p.core.state import TRANSITIONS, LastCommit, LogState, State, Verdict, is_anothers
from hopaas_p2p.errors import BehindRetention, BrokenChain, Denied, InvalidInput, StoreUnreachable, StudyDeleted
from hopaas_p2p.peer.jobs import Job
from hopaas_p2p.peer.outbox import MAX_RECORDS, MAX_TEXT, Draft, InFlight, PendingCommit, weight_of
from hopaas_p2p.peer.vouching import judge_doubtful
from hopaas_p2p.stores.base import SNAPSHOT_EVERY, Beat, ExchangeResult, Log, Outgoing, Placed, snapshot_due

FLUSH_INTERVAL: Final = 1.0  # reports are collected for at least this many seconds before they are sent
IDLE: Final = 60.0  # seconds after which an idle session is checked again
_NEVER: Final = -1e9
"""A time that is long past on any monotonic clock."""
_BUSY: Final = 10  # flush intervals without a draft after which the log's job sleeps until it is woken
_INTEREST: Final = 30  # times `Store.freshness`: how long after a read the replica is kept fresh
_KEPT: Final = 1000
"""How many of its acknowledged commits a session can still spool if the log turns out to have two histories."""
_KEPT_BYTES: Final = 8 << 20  # the most bytes that these commits may have
_UNKNOWN: Final = Verdict(True)
_NO_GRANT: Final = Verdict(False, None, "role")
_MALFORMED: Final = Verdict(False, None, "malformed")
_TEXT_BEARING: Final = (TrialCreate, TrialSet, StudySet)
_ABOUT_STUDIES: Final = (StudyRegistered, StudyRemoved)
_ADVICE: Final = (
    "Perhaps an older backup was restored under running peers, or the store accepted two commits under one number. "
    "This process writes nothing more to the study. Run: hopaas-p2p doctor URL"
)


S = TypeVar("S", bound=LogState)
"""The result of replaying a log: `State`, or `Catalog` for the catalog log."""


class ReplicatedMachine(NamedTuple, Generic[S]):
    """How a log is replayed, and how its state is stored in a snapshot."""

    empty: Callable[[], S]
    apply: Callable[[S, int, Commit | codec.Garbage, Stamp], tuple[Verdict, ...]]
    dump: Callable[[S], bytes]
    load: Callable[[bytes], S]
    short: bool = False
    """Whether a joiner reads the log from its first commit, without a snapshot, if one exchange returns all of it."""


STUDY: Final = ReplicatedMachine(State, apply, snapshot.dump, snapshot.load)
CATALOG: Final = ReplicatedMachine(Catalog, Catalog.apply, catalog.dump, catalog.load, short=True)


class LogSession(Generic[S]):
    """What a process knows about one log; see the module. Times are seconds on the client's monotonic clock.

    Ctrl-C may arrive at any call, so fields that must change together change in lines without calls.

    Args:
        machine: how the log is replayed.
        writer: the name under which this session writes; no other session has used it, or will use it.
        now_us: the clock for commits' times, in microseconds.
        linger: seconds for which reports are collected; None: one second, or as long as the store and the log suggest.
        freshness: `Store.freshness`.

    """

    def __init__(
        self,
        machine: ReplicatedMachine[S],
        writer: str,
        *,
        now_us: Callable[[], int],
        linger: float | None = None,
        freshness: float = 0.0,
    ) -> None:
        self.machine, self.writer, self._now_us = machine, writer, now_us
        self.linger, self.freshness = linger, freshness
        self.state = machine.empty()
        self.joined = False
        """Whether the log has been read to its end, so that the state was true at some moment."""
        self.introduced = False
        """Whether this peer has introduced itself; a reader does not, and neither sends beats nor reclaims trials."""
        self.duplicated = False
        """Whether the log holds a commit of this writer that another process sent under the same name."""
        self.author = ""
        """The user as which this process writes, according to the store; empty while that is not known."""
        self.deleted = self.snapshot_due = False
        self.broken: BrokenChain | None = None
        """How the log contradicts what this session has read of it, if it does; nothing more is then exchanged."""
        self.unkept: dict[int, list[str]] = {}
        """Trial -> its parameters that the log refused: another writer first gave them distributions of other kinds."""
        self.acknowledged: deque[Placed] = deque()
        """The last acknowledged commits of this session, and of the session of the same process that it replaced."""
        self.exchanged_at = _NEVER
        """When the last successful exchange began."""
        self.read_at = _NEVER
        """When a caller last wanted to read."""
        self.drafted_at: float | None = None
        """Since when drafts or queued records have waited to be sent; after a failed exchange, since that began."""
        self.urgent_at = math.inf
        """The latest time at which to send drafts, because another peer's next choice depends on them."""
        self.noted_at = _NEVER
        """When something was last drafted."""
        self.suspended_until = _NEVER
        """Until this time, the job does not exchange with the log, because the last attempt raised an error."""
        self.suggested_interval = 0.0
        """The flush interval that a busy log suggests."""
        self.spooled: dict[Path, list[int]] = {}
        """Spool files whose commits this session is itself still trying to send -> the trials that they end."""
        self.kept: list[PendingCommit] = []
        """The records in the newest spool file, which end trials. No caller waits for their verdicts."""
        self.owners = OwnerMonitor()
        """What has been observed of the peers that run trials."""
        self.queued: list[PendingCommit] = []
        """The records to be sent next, in order."""
        self.drafts: dict[int, Draft] = {}
        """Keyed by trial number."""
        self.in_flight: list[InFlight] = []
        """In the order in which they must be sent; more than one only after packing for the spool."""
        self.sequence = 0
        """The sequence number of the newest commit."""
        self._seen: tuple[int, int | None] = 0, 0
        """The lsn and the sum up to which the log had been read before it was joined again."""
        self._remembered = 0
        self._cursors: list[weakref.ref[set[int]]] = []

    @classmethod
    def for_child(cls, old: LogSession[S], writer: str, *, resend: bool = False) -> Self:
        """The session of a process that continues from a copy of `old`'s memory, under an identity of its own.

        The new session knows what `old` knew about the log, and has nothing in flight, drafted, queued or spooled,
        because `old` sends all of that. With `resend`, for the same process under another name, it sends undecided
        records again, and stays responsible for acknowledged ones.
        """
        new = cls(old.machine, writer, now_us=old._now_us, linger=old.linger, freshness=old.freshness)
        new.state, new.joined, new.deleted, new.broken = old.state, old.joined, old.deleted, old.broken
        new.author = old.author
        new.exchanged_at, new.suggested_interval = old.exchanged_at, old.suggested_interval
        new._cursors = old._cursors
        if resend:
            new.read_at, new.drafted_at, new.noted_at = old.read_at, old.drafted_at, old.noted_at
            new.urgent_at = old.urgent_at
            new.acknowledged, new._remembered = old.acknowledged, old._remembered
            new.drafts = {number: structs.replace(draft) for number, draft in old.drafts.items()}
            for pending in old.undecided():
                starts = any(isinstance(record, TrialCreate | TrialClaim) for record in pending.records)
                moves = [TRANSITIONS.get((TrialState.RUNNING, type(record))) for record in pending.records]
                leased = any(move is not None and move.needs == "lease" for move in moves)
                if starts or (pending.owner == old.writer and not leased):
                    pending.owner = writer  # the old name may belong to another process now, and no lease needs it
                new.queued.append(pending)
        else:
            for pending in old.undecided():
                pending.decide(_UNKNOWN)  # no caller here waits for it
        return new

    # --- what is to be sent ---

    def put(self, owner: str, *records: Record) -> PendingCommit:
        """Queue records in the name of `owner`; they are sent together, with the next exchange."""
        pending = PendingCommit(owner, records)
        self.queued.append(pending)
        return pending

    def introduce(self, owner: str, introduction: PeerJoin) -> None:
        """Queue the introduction first of all, because the log needs the site and devices of a peer that starts a
        trial.
        """
        self.queued.insert(0, PendingCommit(owner, (introduction,)))
        self.introduced = True

    def abandon(self, pending: PendingCommit) -> None:
        """Withdraw unsent records; a trial that starts nevertheless is released as soon as its start is known."""
        pending.abandoned = True
        self.queued = [other for other in self.queued if other is not pending]
        if pending.verdicts is not None:
            self._release(pending)

    def _release(self, pending: PendingCommit) -> None:
        state = self.state
        if not isinstance(state, State):
            return
        for record, verdict in zip(pending.records, pending.verdicts or (), strict=False):
            if isinstance(record, TrialCreate | TrialClaim) and verdict.accepted and verdict.number in state.running:
                trial = state.trials[verdict.number]
                self.put(trial.owner or self.writer, TrialRelease(trial.number, trial.epoch, reason="never begun"))

    def note_draft(self, now: float) -> float:
        """Record that a first report or attribute was drafted; return the seconds within which drafts are sent."""
        self.drafted_at = self.noted_at = now
        return self.flush_interval

    def draft(self, number: int, epoch: int, owner: str) -> Draft:
        """The draft of this lease."""
        draft = self.drafts.get(number)
        if draft is None or draft.epoch != epoch:
            draft = self.drafts[number] = Draft(number, epoch, owner=owner)
        return draft

    def in_doubt(self, number: int) -> bool:
        """Whether a `trial.set` that was sent or queued for this trial has no verdict yet."""
        return number in self._numbers(TrialSet)

    def has_unsent(self, number: int) -> bool:
        """Whether something that was set on this trial is not in the log, as far as this session knows."""
        return number in self.drafts or self.in_doubt(number)

    @property
    def has_pending(self) -> bool:
        """Whether there are records to be sent, or commits whose fate is unknown."""
        return bool(self.queued or self.drafts or self.in_flight)

    # --- what is to be done ---

    def next_commit(self) -> Outgoing | None:
        """The commit to append with the exchange that begins now: one whose fate is unknown, or else queued records and
        drafts. None if there is nothing to send.
        """
        self.drafted_at, self.urgent_at = None, math.inf
        while not self.in_flight:
            if len(self.queued) == 1 and not self.drafts:  # almost always: an ask, or a tell with all changes before it
                self._launch(self.queued, (), {})
            elif self.queued or self.drafts:
                self._load()
            else:
                return None
        return structs.replace(self.in_flight[0].outgoing, chain=self.state.sum)

    def _load(self) -> None:
        """Put the records queued for one owner into a commit, which is in flight from now on."""
        if self.drafts:
            begun = {one.number for pending in self.queued for one in pending.records if isinstance(one, TrialSet)}
            for draft in [one for one in self.drafts.values() if one.number in begun or weight_of(one) > MAX_TEXT]:
                parts = [PendingCommit(draft.owner, records) for records in draft.commits()]
                self.queued = self.queued + parts  # after earlier records about the trial
                del self.drafts[draft.number]
        owner = self.queued[0].owner if self.queued else next(iter(self.drafts.values())).owner
        taken: list[PendingCommit] = []
        drafts: list[PendingCommit] = []
        left: dict[int, Draft] = {}
        room, count = MAX_TEXT, 0
        for pending in self.queued:
            weight = sum([weight_of(record) for record in pending.records if isinstance(record, _TEXT_BEARING)])
            count += len(pending.records)
            if pending.owner != owner or (taken and (count > MAX_RECORDS or weight > room)):
                break
            taken.append(pending)
            room -= weight
        for number, draft in self.drafts.items():
            if draft.owner == owner and room >= 0:
                room -= weight_of(draft)
            if draft.owner == owner and room >= 0:
                drafts.append(PendingCommit(owner, draft.records()))
            else:
                left[number] = draft
        self._launch(drafts + taken, self.queued[len(taken) :], left)

    def _launch(self, taken: list[PendingCommit], kept: Sequence[PendingCommit], left: dict[int, Draft]) -> None:
        """Make a commit of `taken`; `kept` stays in the queue, and `left` are the remaining drafts."""
        first, writer, seq = taken[0], self.writer, self.sequence + 1
        records = first.records if len(taken) == 1 else tuple([one for pending in taken for one in pending.records])
        commit = Commit(writer, seq, first.owner, self._now_us(), records)
        try:
            about = records[0].uuid if type(records[0]) in _ABOUT_STUDIES else ""  # type: ignore[union-attr]
            outgoing = Outgoing(f"{writer}:{seq}", codec.encode(commit), about)
        except InvalidInput as error:
            if len(taken) > 1:  # so that records queued by others, or about other trials, are not refused with it
                self._launch(taken[:1], [*taken[1:], *kept], left)
                return
            first.error = error
            first.decide(_MALFORMED)
            self.queued, self.drafts = [*kept], left
            return
        sent = InFlight(commit, outgoing, tuple(taken))
        self.queued, self.drafts, self.sequence = [*kept], left, seq
        self.in_flight = [*self.in_flight, sent]

    def ready(self, now: float) -> tuple[bool, bool, float]:
        """The work that is due now even if no caller waits for it. No commit is created.

        Returns whether an exchange is due, whether one is due if there is anything new, and when to call again.
        """
        since_exchange = now - self.exchanged_at
        due, if_changed, again = False, False, now + IDLE
        interval, freshness = self.flush_interval, self.freshness
        if self.has_pending:
            if self.drafted_at is None:  # queued just now by a caller that is about to send them
                self.drafted_at = now
            due_at = min(self.drafted_at + interval, self.urgent_at)
            due = now >= due_at
            again = min(again, due_at)
        if now - self.noted_at < _BUSY * interval:
            again = min(again, now + interval)  # more drafts will come, and none needs to wake the job
        if freshness and now - self.read_at < _INTEREST * freshness:  # so that reads do not wait
            due = due or since_exchange >= freshness
            again = min(again, now + freshness)
        if self.introduced:
            ttl = self.state.policy.ttl if isinstance(self.state, State) else math.inf
            if_changed = since_exchange >= ttl / BEATS_PER_TTL  # to notice dead peers, even if busy
            again = min(again, now + ttl / 8)
        return due, if_changed, again

    @property
    def flush_interval(self) -> float:
        """Seconds for which reports are collected before they are sent."""
        if self.linger is not None:
            return self.linger
        interval = max(FLUSH_INTERVAL, self.freshness, self.suggested_interval)
        timeout = self.state.policy.progress_timeout if isinstance(self.state, State) else None
        return interval if timeout is None else min(interval, timeout / 4)  # the progress timeout waits for reports

    # --- the outcome ---

    def start_from(self, state: S) -> None:
        """Begin to join: continue from this state to the end of the log."""
        self.joined, before = False, self.state
        if before.lsn > self._seen[0]:
            self._seen = before.lsn, before.sum
        self.state = state

    def complete_join(self) -> None:
        """Record that the log has been read to its end, and settle the commits in flight that are in it."""
        writers = self.state.writers
        last = None if is_anothers(self.writer, self.author, writers) else writers.get(self.writer)
        if self._is_cut_off(last):
            return
        if last is not None:
            # a snapshot holds verdicts, but no bytes: another process with the same name usually got other verdicts
            sent = next((one.commit.records for one in self.in_flight if one.commit.seq == last.seq), None)
            fits = sent is None or (len(sent) == len(last.verdicts) and all(map(self._fits, sent, last.verdicts)))
            if last.seq > self.sequence or not fits:
                self.duplicated = True
                return
        while last is not None and self.in_flight and self.in_flight[0].commit.seq <= last.seq:
            # for a commit that was decided while this process was not reading, only that fact is known
            latest = self.in_flight[0].commit.seq == last.seq
            self.settle(last.verdicts if latest else ())
        self.joined = True

    def _fits(self, record: object, verdict: Verdict) -> bool:
        """Whether the log can have given this verdict on this record."""
        state = self.state
        if not verdict.accepted or not isinstance(state, State):
            return True
        if isinstance(record, TrialCreate):
            return verdict.number is not None
        if isinstance(record, TrialFinish) and verdict.number == record.number:
            return state.trials[record.number].state is record.state
        return verdict.number == getattr(record, "number", None)

    def advance(self, receipt: ExchangeResult, began: float) -> bool:
        """Apply the result of an exchange that began at `began`, and hand out verdicts on commits in flight.

        Returns whether there is more to read. If anything except content goes wrong halfway, the state is discarded and
        the log is joined again.

        Raises:
            BrokenChain: the log has two histories.

        """
        joined, self.joined = self.joined, False
        state, apply_, in_flight = self.state, self.machine.apply, self.in_flight
        head, chain = state.lsn, state.sum
        for entry in receipt.entries:
            lsn, payload, before = entry.lsn, entry.payload, entry.before
            if lsn <= head:
                continue
            if lsn > head + 1 or (before != chain and before is not None and chain is not None):
                # it does not follow what was read: the state stays as it was before it, and nothing more is sent
                seen = f"commit {lsn} comes after commit {head}, but the commits between are missing"
                if lsn == head + 1:
                    seen = f"up to commit {head} this process read the sum {shown(chain)}, but commit {lsn} follows "
                    seen += shown(before)
                self.broken = BrokenChain(f"This log has two histories: {seen}. {_ADVICE}")
                break
            if in_flight and payload == in_flight[0].outgoing.payload:
                sent, self.author = in_flight[0], entry.stamp.author
                verdicts = apply_(state, lsn, sent.commit, entry.stamp)
                if self.author and is_anothers(self.writer, self.author, state.writers):
                    self.duplicated = True  # another process wrote under this name first: the name is lost
                    return False
                self.settle(verdicts, Placed(lsn, before, sent.outgoing))
            else:
                commit = codec.decode(payload)
                if isinstance(commit, Commit) and commit.writer == self.writer:
                    # if this session cannot have sent this, another process uses the same name; `apply` refuses commits
                    # of other users
                    undecided = in_flight[0].commit.seq if in_flight else math.inf
                    foreign = commit.seq > self.sequence or commit.seq >= undecided
                    if foreign and not is_anothers(self.writer, entry.stamp.author, state.writers):
                        self.duplicated = True
                        return False
                apply_(state, lsn, commit, entry.stamp)
            head, known = lsn, before if chain is None else chain
            # as `core.codec.following`, without a call
            chain = None if known is None else (known * BASE + int.from_bytes(payload[:4], "little")) % PRIME
        state.sum = chain
        self.joined = joined
        if isinstance(state, State) and state.changed:
            for ref in self._cursors:
                if (cursor := ref()) is not None:
                    cursor |= state.changed
            state.changed.clear()
        self.exchanged_at = began
        if self.broken is not None:
            raise BrokenChain(str(self.broken))
        return receipt.more

    def _is_cut_off(self, last: LastCommit | None) -> bool:
        """Whether the log, read again, has lost commits that this session has seen."""
        head, (seen, chain) = self.state.lsn, self._seen
        lost = f"it ends at commit {head}, and this process has read up to commit {seen}, with the sum {shown(chain)}"
        if head >= seen:
            own = f"{self.writer}:"
            placed = next((one for one in reversed(self.acknowledged) if one.commit.nonce.startswith(own)), None)
            if placed is None or (last is not None and last.seq >= int(placed.commit.nonce.removeprefix(own))):
                return False
            lost = f"commit {placed.commit.nonce}, acknowledged as commit {placed.lsn}, is not in it any more"
        self.broken = BrokenChain(f"This log has two histories: {lost}. {_ADVICE}")
        return True

    def settle(self, verdicts: tuple[Verdict, ...], placed: Placed | None = None) -> None:
        """Settle the first commit in flight, which is in the log: hand out its verdicts, and release abandoned starts.

        Args:
            verdicts: the verdicts on its records, as far as they are known.
            placed: the commit and its place, to be kept for a while; None if only the verdicts are known.

        """
        sent = self.in_flight[0]
        if placed is not None:
            self.acknowledged.append(placed)
            self._remembered += len(placed.commit.payload)
            while self._remembered > _KEPT_BYTES or len(self.acknowledged) > _KEPT:
                self._remembered -= len(self.acknowledged.popleft().commit.payload)
            if not placed.lsn % SNAPSHOT_EVERY and snapshot_due(placed.lsn):
                self.snapshot_due = True
            for record, verdict in zip(sent.commit.records, verdicts, strict=False):
                if verdict.refusal == "malformed" and isinstance(record, TrialSet) and record.dists:
                    self.unkept.setdefault(record.number, []).extend(record.dists)
        for pending in sent.pending:
            count = len(pending.records)
            given, verdicts = verdicts[:count], verdicts[count:]
            pending.verdicts = given + (_UNKNOWN,) * (count - len(given))
            if pending.abandoned:
                self._release(pending)
        del self.in_flight[0]  # last, since after a Ctrl-C here the log is joined again, and all of this is repeated

    def history(self) -> list[Placed]:
        """This session's last acknowledged commits, and their places in the history that it has read; then its commits
        in flight. Empty if none was acknowledged.
        """
        kept = list(self.acknowledged)
        return kept + [Placed(0, None, sent.outgoing) for sent in self.in_flight] if kept else []

    def failed(self, error: Exception, now: float) -> None:
        """Record that an exchange that began at `now` failed. All records stay queued or in flight, except those of a
        commit that the store denies and that holds no results.
        """
        if isinstance(error, BehindRetention):
            self.joined = False  # the next exchange begins with a snapshot; commits in flight stay in flight
        if isinstance(error, StoreUnreachable | OSError):
            self.drafted_at, self.urgent_at = now, math.inf
        elif isinstance(error, Denied) and self.in_flight:
            records = self.in_flight[0].commit.records
            # a result must still be kept, since the owner of a trial that ran here may have been made a viewer
            if not any(isinstance(one, TrialSet | TrialFinish) and one.epoch > 0 for one in records):
                for pending in self.in_flight.pop(0).pending:
                    pending.decide(_NO_GRANT)

    # --- readers ---

    def cursor(self) -> set[int]:
        """The set of the numbers of trials that change from now on, for one reader, which empties it.

        The set is updated for as long as the reader holds it. When the state is a new object, any trial may have
        changed.
        """
        cursor = set[int]()
        self._cursors = [ref for ref in self._cursors if ref() is not None] + [weakref.ref(cursor)]
        return cursor

    # --- snapshots and the spool ---

    def dump(self) -> tuple[int, bytes] | None:
        """The lsn and the bytes of the snapshot that is due; None if the state is not that of the log."""
        self.snapshot_due = False
        return (self.state.lsn, self.machine.dump(self.state)) if self.joined and self.broken is None else None

    def pack_for_spool(self) -> list[Outgoing]:
        """All unsent records as commits, in the order in which to send them; from now on they are in flight."""
        while self.queued or self.drafts:
            self._load()
        return [sent.outgoing for sent in self.in_flight]

    def undecided(self) -> list[PendingCommit]:
        """The records that have no verdict yet, in order, without drafts."""
        return [pending for sent in self.in_flight for pending in sent.pending] + self.queued

    def ends(self) -> list[int]:
        """The trials whose end is not acknowledged."""
        return self._numbers(TrialFinish)

    def _numbers(self, kind: type[TrialSet | TrialFinish]) -> list[int]:
        """The trials named by undecided records of this kind."""
        return [record.number for pending in self.undecided() for record in pending.records if isinstance(record, kind)]


# --- the client ---


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Within this block, any error of the operating system is raised as StoreUnreachable.

    A store may encounter too many open files, a full quota or a stale NFS handle in any call. All of these are
    temporary or can be fixed. Unsent records stay queued.
    """
    try:
        yield
    except OSError as error:
        why = f"The store cannot be used now: {error}. Waiting records are sent at the next contact."
        raise StoreUnreachable(why) from error


class LogClient(Generic[S]):
    """One log as a peer uses it: the session, the log itself, and the two locks.

    Attributes:
        session: replaced as a whole, by the peer, when this process becomes another writer.
        about: the part of this peer's introduction that is for this study only.
        lock: held around calls of the session, and to read more than one field of its state. Never around I/O.
        turn: held for the length of an exchange.
        exchanging_since: when the exchange that the store has not answered yet began; infinite if there is none.
        waiting: the `peer.caller.Caller`s that wait for the next exchanges. Changed under the lock.
        look_again_at: the time before which there is nothing to do unless a caller waits, or the job is woken for
            something else.
        job: makes exchanges, for callers and when one is due; see `peer.jobs`. Set by the peer.

    """

    job: Job[Any]

    def __init__(self, log: Log, session: LogSession[S], clock: Callable[[], float] = time.monotonic) -> None:
        self.log = log
        self.session = session
        self.lock = threading.RLock()
        self.turn = threading.Lock()
        self.waiting: list[Any] = []
        self.look_again_at = -math.inf
        self.exchanging_since = math.inf
        self.about: dict[str, str] = {}
        self.rate_limited = log if log.rate_limited else None
        """The log, if its commits are costly."""
        self.clock = clock

    @property
    def state(self) -> S:
        """The state, as far as the log has been read."""
        return self.session.state

    def put(self, owner: str, *records: Record) -> PendingCommit:
        """Queue records on behalf of `owner`; they are sent together, with the next exchange."""
        with self.lock:
            return self.session.put(owner, *records)

    def exchange(self, beat: Beat | None = None) -> None:
        """Send queued records and apply new commits, in one round trip.

        Blocks until another thread's exchange is over, and then for that long.

        Raises:
            StoreUnreachable: the outcome is not known; queued records stay queued.
            Denied: this user may not write here, or not even read.
            BrokenChain: the log has two histories.
            StudyDeleted: the log has ended.

        """
        with self.turn:
            self.exchange_in_turn(self.clock(), beat)

    def exchange_in_turn(self, began: float, beat: Beat | None = None) -> None:
        """Like `exchange`, for a caller that holds the turn and passes the current time as `began`."""
        session, lock, limited = self.session, self.lock, self.rate_limited
        if session.deleted:
            raise StudyDeleted
        try:
            if not session.joined or session.duplicated or session.broken is not None or limited is not None:
                just_read = not session.joined and beat is None
                _check_chain(session)
                if not session.joined:
                    self.join(began)
                if limited is not None and session.has_pending and not session.duplicated:
                    more = True
                    while more:  # before the commit is made, to include what others queue meanwhile
                        receipt = limited.wait_turn(session.state.lsn)
                        with lock:
                            more = session.advance(receipt, began)
                    session.suggested_interval = limited.flush_interval
                if session.duplicated or (just_read and not session.has_pending):
                    return
            with lock:
                commit = session.next_commit()
            try:
                receipt = self.log.exchange(commit, session.state.lsn, beat)
            except Denied as error:
                self.pull(began)  # a viewer continues reading; raises if this user may not even read
                with lock:
                    session.failed(error, began)
                raise
            with lock:
                more = session.advance(receipt, began)
            if more:
                self.pull(began)
        except (StoreUnreachable, OSError) as error:
            with lock:
                session.failed(error, began)
            with translated():
                raise
        except BrokenChain as error:  # from the store
            session.broken = error
            raise
        except StudyDeleted:
            session.deleted = True
            raise

    def pull(self, began: float) -> None:
        """Read on to the end of the log. The caller holds the turn."""
        more = True
        while more:
            receipt = self.log.exchange(None, self.session.state.lsn)
            with self.lock:
                more = self.session.advance(receipt, began)

    def join(self, began: float) -> None:
        """Start from the newest readable snapshot, or else from nothing, and read on to the end. The caller holds the
        turn.
        """
        session, short = self.session, self.session.machine.short
        first = self.log.exchange(None, 0) if short else ExchangeResult([], more=True)
        state = None if short and not (first.more and self.rate_limited is not None) else self._newest_readable()
        with self.lock:
            session.start_from(session.machine.empty() if state is None else state)
            more = session.advance(first, began)
        if more:
            self.pull(began)  # before anything is written, since the log may have a newer format
        if not session.duplicated:
            with self.lock:
                session.complete_join()
            _check_chain(session)

    def _newest_readable(self) -> S | None:
        """The state of the newest readable snapshot. Older ones matter if `gc` removed the commits that they
        replace.
        """
        lsn: int | None = None
        while (found := self.log.newest_snapshot(before=lsn)) is not None:
            lsn, data = found
            with contextlib.suppress(CorruptSnapshot):
                state = self.session.machine.load(data)
                if state.lsn == lsn:
                    return state
        return None

    def changed(self) -> bool | None:
        """Whether the log has new commits, if that can be determined without a round trip; else None."""
        with translated():
            return self.log.changed(self.session.state.lsn)

    def write_snapshot(self) -> None:
        """Store a snapshot of the current state for joiners, and check other authors' snapshots against it."""
        with self.lock:
            found = self.session.dump()
        if found is not None:
            with translated():
                if isinstance(self.state, State):
                    judge_doubtful(self.log, *found)
                self.log.put_snapshot(*found)

    def confirm(self) -> None:
        """Check that the log still has the commits that it acknowledged to this process. Raises like `Log.confirm`."""
        with self.turn, translated():
            self.log.confirm()

    def destroy(self) -> None:
        """End the log for everybody. Even if this fails, this process exchanges nothing more with the log.

        Raises:
            StoreUnreachable: the log may not have ended for others.
            Denied: this user may not end the log.

        """
        self.session.deleted = True
        with self.turn, translated():
            self.log.destroy()

    def withdraw(self) -> None:
        """Withdraw an unconfirmed start of a trial: this process ends, and no other would run the trial."""
        with self.lock:
            in_flight = self.session.in_flight[:1]
        for sent in in_flight:
            records = sent.commit.records
            brought = [one for one in records if isinstance(one, TrialCreate) and one.state is not TrialState.RUNNING]
            if not brought and all(isinstance(one, TrialCreate | TrialClaim | PeerJoin) for one in records):
                with contextlib.suppress(StoreUnreachable), translated():
                    self.log.withdraw(sent.outgoing)


def _check_chain(session: LogSession[Any]) -> None:
    if session.broken is not None:
        raise BrokenChain(str(session.broken))


def study_client(log: Log, *, writer: str, now_us: Callable[[], int]) -> LogClient[State]:
    """A client of a study's log, independent of any peer's."""
    return LogClient(log, LogSession(STUDY, writer, now_us=now_us))
