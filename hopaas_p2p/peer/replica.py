"""A peer's copy of one log.

Everything a peer wants said goes into its outbox; `exchange` sends what is there as one commit and applies what came
back, its own commit included, so a peer learns the fate of its records from the same `apply` as everybody else. Any
thread may exchange; whoever waits for the turn finds its records sent by the one before it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable
from typing import Final, Generic, Protocol, TypeVar

from hopaas_p2p.core import catalog_snapshot, codec, snapshot
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.catalog import Catalog
from hopaas_p2p.core.records import (
    UNSTAMPED,
    Commit,
    Record,
    Stamp,
    TrialClaim,
    TrialCreate,
    TrialRelease,
)
from hopaas_p2p.core.state import LastCommit, State, Verdict
from hopaas_p2p.errors import Denied, SleptThrough
from hopaas_p2p.peer.outbox import Draft, Outbox, Ticket
from hopaas_p2p.peer.turn import Turn
from hopaas_p2p.stores.base import SNAPSHOT_EVERY, Beat, Crowded, Entry, Log, Outgoing, Receipt, Revocable

_NO_GRANT: Final = Verdict(False, None, "role")


class Replicated(Protocol):
    """What a log is replayed into: `State`, or `Catalog` for the directory log."""

    lsn: int
    writers: dict[str, LastCommit]


S = TypeVar("S", bound=Replicated)


class Replica(Generic[S]):
    """State of one log on this peer. `lock` guards it; hold it for as long as you read more than one thing."""

    def __init__(
        self,
        log: Log,
        *,
        writer: str,
        empty: Callable[[], S],
        apply: Callable[[S, int, Commit | codec.Garbage, Stamp], tuple[Verdict, ...]],
        dump: Callable[[S], bytes],
        load: Callable[[bytes], S],
        short: bool = False,
        now_us: Callable[[], int],
    ) -> None:
        self.log = log
        self.writer = writer
        self.lock = threading.RLock()
        self.turn = Turn()
        self._empty, self._apply, self._dump, self._load, self._now_us = empty, apply, dump, load, now_us
        self._short = short
        self._outbox = Outbox(writer, now_us)
        self.crowded = log if isinstance(log, Crowded) else None
        """The log, if its commits are dear: asked once, for a protocol's isinstance costs as much as a commit."""
        self._trusted = False
        self.state = empty()
        self.snapshot_due = False

    # --- saying things ---

    def put(self, owner: str, *records: Record) -> Ticket:
        """Queue records that `owner` says; they leave together, with the next exchange."""
        with self.lock:
            return self._outbox.put(owner, records)

    def queue(self, ticket: Ticket) -> None:
        """As `put`, for who has to know the ticket before it may leave."""
        with self.lock:
            self._outbox.queue(ticket)

    def abandon(self, ticket: Ticket) -> None:
        """Take back what has not left; trials that start all the same are released as soon as that is known."""
        with self.lock:
            self._outbox.take_back(ticket)
            if ticket.decided:
                self._give_back(ticket)

    def _give_back(self, ticket: Ticket) -> None:
        state = self.state
        if not isinstance(state, State):
            return
        for record, verdict in zip(ticket.records, ticket.verdicts or (), strict=False):
            if isinstance(record, TrialCreate | TrialClaim) and verdict.accepted and verdict.number in state.running:
                trial = state.trials[verdict.number]
                self.put(trial.owner or self.writer, TrialRelease(trial.number, trial.epoch, reason="never begun"))

    def withdraw(self) -> None:
        """Call back the start of a trial, if it is still on its way: this process ends, and nobody would run it."""
        with self.lock:
            start = self._outbox.mere_start()
        if start is not None and isinstance(self.log, Revocable):
            self.log.withdraw(start)

    def draft(self, number: int, epoch: int, owner: str) -> Draft:
        """The draft of this lease, to be filled under `lock`."""
        return self._outbox.draft(number, epoch, owner)

    @property
    def drafts(self) -> dict[int, Draft]:
        """By trial, to be changed under `lock`."""
        return self._outbox.drafts

    @property
    def joined(self) -> bool:
        """Whether the log was ever read to its end: the state is true of some moment."""
        return self._trusted

    @property
    def waiting(self) -> bool:
        """Whether something is still to be sent, or its fate to be learnt."""
        return bool(self._outbox)

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
        if self.crowded is not None and self.waiting:
            self._approach(self.crowded)
        with self.lock:
            following = self._outbox.next()
            outgoing = following.outgoing if following else None
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
            try:
                receipt = log.approach(self.state.lsn)
            except SleptThrough:
                self._trusted = False
                raise
            self._take(receipt.entries)
            more = receipt.more

    def _ask(self, outgoing: Outgoing | None, since: int, beat: Beat | None = None) -> Receipt:
        try:
            return self.log.exchange(outgoing, since, beat)
        except SleptThrough:
            self._trusted = False  # the next exchange begins with a snapshot; what is in flight stays so
            raise

    def _drop_refused(self) -> None:
        """Give up what the store refused to append, if it still lets this user read: a viewer goes on reading."""
        self._pull()
        with self.lock:
            self._outbox.give_up(_NO_GRANT)

    def _join(self) -> None:
        """Start from the newest snapshot that can be read, else from nothing, and read on to the end of the log.

        A log that is short as a rule is read from its first commit, if one receipt holds all of it.
        """
        first = self._ask(None, 0) if self._short else Receipt([], more=True)
        snapshots = not self._short or (first.more and self.crowded is not None)
        state = self._newest_readable() if snapshots else self._empty()
        with self.lock:
            self.state = state
        self._take(first.entries)
        if first.more:
            self._pull()  # before anything is written: what is there may be of a newer format
        with self.lock:
            self._trusted = True
            self._settle()

    def _newest_readable(self) -> S:
        """A damaged snapshot is passed over; older ones matter where `gc` has removed what they stand for."""
        found = self.log.newest_snapshot()
        while found is not None:
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

    def _take(self, entries: Iterable[Entry]) -> None:
        """Apply what came. If anything but content goes wrong half-way, the state is thrown away and joined anew."""
        with self.lock:
            trusted, self._trusted = self._trusted, False
            in_flight = self._outbox.in_flight
            for lsn, payload, author, role, at in entries:
                if in_flight and payload == in_flight[0].outgoing.payload:
                    commit: Commit | codec.Garbage = in_flight[0].commit
                    self.snapshot_due = self.snapshot_due or lsn % SNAPSHOT_EVERY == 0
                else:
                    commit = codec.decode(payload)
                if lsn == self.state.lsn + 1:
                    self._apply(self.state, lsn, commit, Stamp(author, role, at) if author or at else _stamp(role))
                    self._settle()
            self._trusted = trusted

    def _settle(self) -> None:
        """Hand out the verdicts of what was in flight, as far as the log has decided."""
        for ticket in self._outbox.settled(self.state.writers.get(self.writer)):
            if ticket.abandoned:
                self._give_back(ticket)

    def pack_for_spool(self) -> list[tuple[str, bytes]]:
        """All that has not been acknowledged, as commits in the order they must be sent. They stay queued here too."""
        with self.lock:
            return list(self._outbox.everything())

    def ends(self) -> list[int]:
        """The trials whose end is among what has not been acknowledged."""
        with self.lock:
            return self._outbox.ends()

    def send_for_another(self, nonce: str, payload: bytes) -> None:
        """Append a commit that another process of this user could not send; the log counts it once."""
        with self.turn:
            if not self._trusted:
                self._join()
            appended = False
            while not appended:
                receipt = self._ask(Outgoing(nonce, payload), self.state.lsn)
                self._take(receipt.entries)
                appended = not receipt.more or any(entry.payload == payload for entry in receipt.entries)
            if receipt.more:
                self._pull()

    def write_snapshot(self) -> None:
        """Put the present state where joiners find it."""
        with self.lock:
            self.snapshot_due = False
            if not self._trusted:
                return
            lsn, data = self.state.lsn, self._dump(self.state)
        self.log.put_snapshot(lsn, data)

    def become(self, writer: str) -> None:
        """Go on as a new writer, in a forked child: what the parent had queued is the parent's to send."""
        self.lock = threading.RLock()
        self.turn = Turn()
        self.writer = writer
        self._outbox = Outbox(writer, self._now_us)


def _stamp(role: str) -> Stamp:
    return UNSTAMPED if role == UNSTAMPED.role else Stamp(role=role)


def study_replica(log: Log, *, writer: str, now_us: Callable[[], int]) -> Replica[State]:
    """A replica of a study's log, joined from a snapshot where there is one."""
    return Replica(log, writer=writer, empty=State, apply=apply, dump=snapshot.dump, load=snapshot.load, now_us=now_us)


def catalog_replica(log: Log, *, writer: str, now_us: Callable[[], int]) -> Replica[Catalog]:
    """A replica of the directory log, which is short but for a few; only where it is dear to read has it snapshots."""
    return Replica(
        log,
        writer=writer,
        empty=Catalog,
        apply=Catalog.apply,
        dump=catalog_snapshot.dump,
        load=catalog_snapshot.load,
        short=True,
        now_us=now_us,
    )
