"""A peer's copy of one log, and the records it has yet to send there.

Everything a peer wants said goes into the outbox; `exchange` sends what is there as one commit and applies what came
back, its own commit included, so a peer learns the fate of its records from the same `apply` as everybody else.

A commit whose fate is unknown stays in flight and is sent again, byte for byte, before anything else: the log counts
it once. Any thread may exchange; whoever waits for the turn finds its records sent by the one before it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

from hopaas_p2p.core import codec, snapshot
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.catalog import Catalog
from hopaas_p2p.core.records import (
    UNSTAMPED,
    Commit,
    Distribution,
    Record,
    Stamp,
    StudySet,
    TrialClaim,
    TrialCreate,
    TrialFinish,
    TrialRelease,
    TrialSet,
)
from hopaas_p2p.core.state import LastCommit, State, Verdict
from hopaas_p2p.errors import Denied, InvalidInput, SleptThrough
from hopaas_p2p.peer.turn import Turn
from hopaas_p2p.stores.base import SNAPSHOT_EVERY, Beat, Crowded, Entry, Log, Outgoing, Receipt

_UNKNOWN: Final = Verdict(True)
_MALFORMED: Final = Verdict(False, None, "malformed")
_NO_GRANT: Final = Verdict(False, None, "role")
_MAX_RECORDS: Final = 1000  # of one commit; the rest goes with the next, so that nobody waits behind a long import
_MAX_TEXT: Final = 1 << 19  # characters in one commit: an eighth of what the codec allows in bytes, of which one has 4
_REPORT: Final = 20  # characters that a report counts for


class Replicated(Protocol):
    """What a log is replayed into: `State`, or `Catalog` for the directory log."""

    lsn: int
    writers: dict[str, LastCommit]


S = TypeVar("S", bound=Replicated)


class Ticket:
    """The fate of some records: their verdicts, once the log has decided."""

    __slots__ = ("abandoned", "error", "records", "verdicts")

    def __init__(self, records: tuple[Record, ...]) -> None:
        self.records = records
        self.verdicts: tuple[Verdict, ...] | None = None
        self.abandoned = False
        self.error: InvalidInput | None = None
        """Why these records could not be written down at all; their verdicts then say "malformed"."""

    @property
    def decided(self) -> bool:
        return self.verdicts is not None


class Draft:
    """What the owner wants set on one running trial, until it leaves with the next exchange."""

    __slots__ = ("dists", "epoch", "number", "owner", "params", "reports", "stopping", "system", "user")

    def __init__(self, number: int, epoch: int, owner: str) -> None:
        self.number, self.epoch, self.owner = number, epoch, owner
        self.params: dict[str, float] = {}
        self.dists: dict[str, Distribution] = {}
        self.reports: dict[int, float] = {}
        self.user: dict[str, str] = {}
        self.system: dict[str, str] = {}
        self.stopping = False

    def record(self) -> TrialSet:
        """The record that says all of it."""
        return TrialSet(
            self.number, self.epoch, self.params, self.dists, self.reports, self.user, self.system, self.stopping
        )

    def records(self) -> list[TrialSet]:
        """Records that say all of it, each of which fits into a commit: one, unless there is a lot to say."""
        if self.weight() <= _MAX_TEXT:
            return [self.record()]
        part, weight = Draft(self.number, self.epoch, self.owner), 0
        part.params, part.dists, part.stopping = self.params, self.dists, self.stopping
        parts = []
        for field, key, value in self._items():
            size = _REPORT if field == "reports" else len(key) + len(value)
            if weight and weight + size > _MAX_TEXT:
                parts.append(part.record())
                part, weight = Draft(self.number, self.epoch, self.owner), 0
            getattr(part, field)[key] = value
            weight += size
        return [*parts, part.record()]

    def weight(self) -> int:
        return _REPORT * len(self.reports) + _text(self.user) + _text(self.system)

    def _items(self) -> Iterator[tuple[str, Any, Any]]:
        for field in ("reports", "user", "system"):
            for key, value in getattr(self, field).items():
                yield field, key, value


class _Pending(NamedTuple):
    owner: str
    ticket: Ticket

    def weight(self) -> int:
        return sum([_weight(record) for record in self.ticket.records])


class _InFlight(NamedTuple):
    commit: Commit
    outgoing: Outgoing
    tickets: tuple[Ticket, ...]


class Replica(Generic[S]):
    """State of one log on this peer. `lock` guards it; hold it for as long as you read more than one thing."""

    def __init__(
        self,
        log: Log,
        *,
        writer: str,
        empty: Callable[[], S],
        apply: Callable[[S, int, Commit | codec.Garbage, Stamp], tuple[Verdict, ...]],
        load: Callable[[bytes], S] | None,
        now_us: Callable[[], int],
    ) -> None:
        self.log = log
        self.writer = writer
        self.lock = threading.RLock()
        self.turn = Turn()
        self.drafts: dict[int, Draft] = {}
        self._empty, self._apply, self._load, self._now_us = empty, apply, load, now_us
        self._outbox: list[_Pending] = []
        self._in_flight: list[_InFlight] = []
        self._seq = 0
        self._crowded = log if isinstance(log, Crowded) else None
        self._trusted = False
        self.state = empty()
        self.snapshot_due = False

    # --- saying things ---

    def put(self, owner: str, *records: Record) -> Ticket:
        """Queue records that `owner` says; they leave together, with the next exchange."""
        ticket = Ticket(records)
        with self.lock:
            self._outbox.append(_Pending(owner, ticket))
        return ticket

    def abandon(self, ticket: Ticket) -> None:
        """Take back what has not left; trials that start all the same are released as soon as that is known."""
        with self.lock:
            ticket.abandoned = True
            self._outbox = [pending for pending in self._outbox if pending.ticket is not ticket]
            if ticket.verdicts is not None:
                self._give_back(ticket)

    def _give_back(self, ticket: Ticket) -> None:
        state = self.state
        if not isinstance(state, State):
            return
        for record, verdict in zip(ticket.records, ticket.verdicts or (), strict=False):
            if isinstance(record, TrialCreate | TrialClaim) and verdict.accepted and verdict.number in state.running:
                trial = state.trials[verdict.number]
                self.put(trial.owner or self.writer, TrialRelease(trial.number, trial.epoch, reason="never begun"))

    def draft(self, number: int, epoch: int, owner: str) -> Draft:
        """The draft of this lease, to be filled under `lock`."""
        draft = self.drafts.get(number)
        if draft is None or draft.epoch != epoch:
            draft = self.drafts[number] = Draft(number, epoch, owner)
        return draft

    @property
    def joined(self) -> bool:
        """Whether the log was ever read to its end: the state is true of some moment."""
        return self._trusted

    @property
    def waiting(self) -> bool:
        """Whether something is still to be sent, or its fate to be learnt."""
        return bool(self._outbox or self.drafts or self._in_flight)

    # --- exchanging ---

    def exchange(self, beat: Beat | None = None) -> None:
        """One exchange: what is queued goes, what is new comes.

        Blocks for one round trip, or until the exchange of another thread is over.

        Raises:
            StoreUnreachable: the outcome is not known; what was queued is still there.
            Denied: this user may not write here, or not even read.
        """
        with self.turn:
            self.exchange_in_turn(beat)

    def exchange_in_turn(self, beat: Beat | None = None) -> None:
        """As `exchange`, for a caller that holds `turn`."""
        if not self._trusted:
            self._join()
            if beat is None and not self.waiting:
                return
        if self._crowded is not None and self.waiting:
            self._approach(self._crowded)
        with self.lock:
            if not self._in_flight:
                self._load_commit()
            outgoing = self._in_flight[0].outgoing if self._in_flight else None
            since = self.state.lsn
        try:
            receipt = self._ask(outgoing, since, beat)
        except Denied:
            self._drop_refused()
            raise
        self._take(receipt.entries)
        if receipt.more:
            self._pull()

    def _approach(self, log: Crowded) -> None:
        """Wait for a good moment before the commit is made: what others queue meanwhile goes along."""
        more = True
        while more:
            receipt = self._heard(lambda: log.approach(self.state.lsn))
            self._take(receipt.entries)
            more = receipt.more

    def _ask(self, outgoing: Outgoing | None, since: int, beat: Beat | None = None) -> Receipt:
        return self._heard(lambda: self.log.exchange(outgoing, since, beat))

    def _heard(self, ask: Callable[[], Receipt]) -> Receipt:
        try:
            return ask()
        except SleptThrough:
            self._trusted = False  # the next exchange begins with a snapshot; what is in flight stays so
            raise

    def _drop_refused(self) -> None:
        """Give up what the store refused to append, if it still lets this user read: a viewer goes on reading."""
        self._pull()
        with self.lock:
            for ticket in self._in_flight.pop(0).tickets if self._in_flight else ():
                ticket.verdicts = tuple([_NO_GRANT for _ in ticket.records])

    def _join(self) -> None:
        """Start from the newest snapshot that can be read, else from nothing, and read on to the end of the log."""
        state = self._newest_readable()
        with self.lock:
            self.state = state
        self._pull()  # before anything is written: what is there may be of a newer format
        with self.lock:
            self._trusted = True
            self._settle()

    def _newest_readable(self) -> S:
        """A damaged snapshot is passed over; older ones matter where `gc` has removed what they stand for."""
        found = self.log.newest_snapshot() if self._load else None
        while found is not None and self._load is not None:
            lsn, data = found
            with contextlib.suppress(snapshot.CorruptSnapshot):
                state = self._load(data)
                if state.lsn == lsn:
                    return state
            found = self.log.newest_snapshot(before=lsn)
        return self._empty()

    def _pull(self) -> None:
        more = True
        while more:
            receipt = self._ask(None, self.state.lsn)
            self._take(receipt.entries)
            more = receipt.more

    def _load_commit(self) -> None:
        """Put what is queued for one owner into a commit; it is in flight from now on."""
        if not self.drafts:
            if not self._outbox:
                return
            if len(self._outbox) == 1:  # as nearly always: one ask, or one tell with all that was said before it
                (pending,) = self._outbox
                self._outbox = []
                self._launch(pending.owner, (pending.ticket,), pending.ticket.records)
                return
        self._queue_heavy_drafts()
        owner = self._outbox[0].owner if self._outbox else next(iter(self.drafts.values())).owner
        tickets: list[Ticket] = []
        weight = count = 0
        kept: list[_Pending] = []
        for pending in self._outbox:
            heavier = weight + pending.weight()
            fits = count + len(pending.ticket.records) <= _MAX_RECORDS and heavier <= _MAX_TEXT
            if pending.owner != owner or kept or (tickets and not fits):
                kept.append(pending)
                continue
            tickets.append(pending.ticket)
            weight = heavier
            count += len(pending.ticket.records)
        drafts = self._drafts_that_fit(owner, _MAX_TEXT - weight)
        drafted = Ticket(tuple([draft.record() for draft in drafts]))
        self._outbox = kept
        for draft in drafts:
            del self.drafts[draft.number]
        records = tuple([record for ticket in (drafted, *tickets) for record in ticket.records])
        self._launch(owner, (drafted, *tickets), records)

    def _launch(self, owner: str, tickets: tuple[Ticket, ...], records: tuple[Record, ...]) -> None:
        commit = Commit(self.writer, self._seq + 1, owner, self._now_us(), records)
        try:
            outgoing = Outgoing(f"{self.writer}:{commit.seq}", codec.encode(commit))
        except InvalidInput as error:
            for ticket in tickets:
                ticket.error = error
                ticket.verdicts = tuple([_MALFORMED for _ in ticket.records])
            return
        self._in_flight.append(_InFlight(commit, outgoing, tickets))
        self._seq = commit.seq

    def _queue_heavy_drafts(self) -> None:
        """Put drafts that need several commits before what is queued."""
        for draft in [draft for draft in self.drafts.values() if draft.weight() > _MAX_TEXT]:
            del self.drafts[draft.number]
            heavy = [_Pending(draft.owner, Ticket((record,))) for record in draft.records()]
            self._outbox = heavy + self._outbox

    def _drafts_that_fit(self, owner: str, room: int) -> list[Draft]:
        drafts = []
        for draft in self.drafts.values():
            if draft.owner != owner:
                continue
            room -= draft.weight()
            if room < 0:
                break
            drafts.append(draft)
        return drafts

    def _take(self, entries: Iterable[Entry]) -> None:
        """Apply what came. If anything but content goes wrong half-way, the state is thrown away and joined anew."""
        with self.lock:
            trusted, self._trusted = self._trusted, False
            for lsn, payload, author, role, at in entries:
                if self._in_flight and payload == self._in_flight[0].outgoing.payload:
                    commit: Commit | codec.Garbage = self._in_flight[0].commit
                    self.snapshot_due = self.snapshot_due or lsn % SNAPSHOT_EVERY == 0
                else:
                    commit = codec.decode(payload)
                if lsn == self.state.lsn + 1:
                    self._apply(self.state, lsn, commit, Stamp(author, role, at) if author or at else _stamp(role))
                    self._settle()
            self._trusted = trusted

    def _settle(self) -> None:
        """Hand out the verdicts of what was in flight, as far as the log has decided."""
        last = self.state.writers.get(self.writer)
        while last is not None and self._in_flight and self._in_flight[0].commit.seq <= last.seq:
            in_flight = self._in_flight.pop(0)
            forgotten = in_flight.commit.seq < last.seq  # decided while this process was not looking: nothing is known
            given: tuple[Verdict, ...] = () if forgotten else last.verdicts
            for ticket in in_flight.tickets:
                count = len(ticket.records)
                ticket.verdicts, given = given[:count], given[count:]
                if len(ticket.verdicts) < count:
                    ticket.verdicts += (_UNKNOWN,) * (count - len(ticket.verdicts))
                if ticket.abandoned:
                    self._give_back(ticket)

    def pack_for_spool(self) -> list[tuple[str, bytes]]:
        """All that has not been acknowledged, as commits in the order they must be sent. They stay queued here too."""
        with self.lock:
            while self._outbox or self.drafts:
                self._load_commit()
            return [in_flight.outgoing for in_flight in self._in_flight]

    def ends(self) -> list[int]:
        """The trials whose end is among what has not been acknowledged."""
        with self.lock:
            queued = [pending.ticket for pending in self._outbox]
            in_flight = [ticket for one in self._in_flight for ticket in one.tickets]
            records = [record for ticket in (*in_flight, *queued) for record in ticket.records]
        return [record.number for record in records if isinstance(record, TrialFinish)]

    def send_for_another(self, nonce: str, payload: bytes) -> None:
        """Append a commit that another process of this user could not send; the log counts it once."""
        with self.turn:
            if not self._trusted:
                self._join()
            receipt = self._ask(Outgoing(nonce, payload), self.state.lsn)
            self._take(receipt.entries)
            if receipt.more:
                self._pull()

    def write_snapshot(self) -> None:
        """Put the present state where joiners find it."""
        with self.lock:
            self.snapshot_due = False
            state = self.state
            if not isinstance(state, State) or not self._trusted:
                return
            lsn, data = state.lsn, snapshot.dump(state)
        self.log.put_snapshot(lsn, data)

    def become(self, writer: str) -> None:
        """Go on as a new writer, in a forked child: what the parent had queued is the parent's to send."""
        self.lock = threading.RLock()
        self.turn = Turn()
        self.writer, self._seq = writer, 0
        self._outbox, self._in_flight = [], []
        self.drafts.clear()


def _stamp(role: str) -> Stamp:
    return UNSTAMPED if role == UNSTAMPED.role else Stamp(role=role)


def _weight(record: Record) -> int:
    """Characters, roughly, by which this record can make a commit large."""
    if isinstance(record, TrialCreate | TrialSet):
        return _REPORT * len(record.reports) + _text(record.user) + _text(record.system)
    if isinstance(record, StudySet):
        return _text(record.user) + _text(record.system)
    return 0


def _text(attributes: dict[str, str]) -> int:
    return sum(map(len, attributes)) + sum(map(len, attributes.values())) if attributes else 0


def study_replica(log: Log, *, writer: str, now_us: Callable[[], int]) -> Replica[State]:
    """A replica of a study's log, joined from a snapshot where there is one."""
    return Replica(log, writer=writer, empty=State, apply=apply, load=snapshot.load, now_us=now_us)


def catalog_replica(log: Log, *, writer: str, now_us: Callable[[], int]) -> Replica[Catalog]:
    """A replica of the directory log."""
    return Replica(log, writer=writer, empty=Catalog, apply=Catalog.apply, load=None, now_us=now_us)
