"""What a peer has yet to say to one log: queued records, drafts, and the commit whose fate is unknown.

Records queue up until an exchange takes them along; what the owner sets on a running trial is gathered in a draft, so
that ten reports are one record. A commit whose fate is unknown stays in flight and is sent again, byte for byte, before
anything else. Nothing here is guarded: the replica's lock is held by whoever calls. Ctrl-C may come at any call, so
what has to change together does so in lines without one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from hopaas_p2p.core import codec
from hopaas_p2p.core.records import (
    Commit,
    Distribution,
    PeerJoin,
    Record,
    StudySet,
    TrialClaim,
    TrialCreate,
    TrialFinish,
    TrialSet,
    TrialState,
)
from hopaas_p2p.core.state import LastCommit, Verdict
from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.stores.base import Outgoing

_UNKNOWN: Final = Verdict(True)
_MALFORMED: Final = Verdict(False, None, "malformed")
_MAX_RECORDS: Final = 1000  # of one commit; the rest goes with the next, so that nobody waits behind a long import
_MAX_TEXT: Final = 1 << 19  # characters in one commit: an eighth of what the codec allows in bytes, of which one has 4
_REPORT: Final = 20  # characters that a report counts for


class Ticket:
    """The fate of some records: their verdicts, once the log has decided."""

    __slots__ = ("abandoned", "error", "owner", "records", "verdicts")

    def __init__(self, owner: str, records: tuple[Record, ...]) -> None:
        self.owner = owner
        self.records = records
        self.verdicts: tuple[Verdict, ...] | None = None
        self.abandoned = False
        self.error: InvalidInput | None = None
        """Why these records could not be written down at all; their verdicts then say "malformed"."""

    @property
    def decided(self) -> bool:
        return self.verdicts is not None

    def decide(self, verdict: Verdict) -> None:
        """The same verdict for each of its records."""
        self.verdicts = (verdict,) * len(self.records)

    def weight(self) -> int:
        """Characters, roughly, by which it can make a commit large."""
        return sum([_weight(record) for record in self.records])


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


class InFlight(NamedTuple):
    """A commit that was sent, or is about to be."""

    commit: Commit
    outgoing: Outgoing
    tickets: tuple[Ticket, ...]


class Outbox:
    """See the module."""

    def __init__(self, writer: str, now_us: Callable[[], int]) -> None:
        self.drafts: dict[int, Draft] = {}
        """By trial."""
        self.in_flight: list[InFlight] = []
        """In the order in which they must be sent; more than one only after a spell on disk."""
        self._writer = writer
        self._now_us = now_us
        self._queue: list[Ticket] = []
        self._seq = 0

    def __bool__(self) -> bool:
        """Whether something is still to be sent, or its fate to be learnt."""
        return bool(self._queue or self.drafts or self.in_flight)

    def put(self, owner: str, records: tuple[Record, ...]) -> Ticket:
        """Queue records that `owner` says; they leave together."""
        ticket = Ticket(owner, records)
        self.queue(ticket)
        return ticket

    def queue(self, ticket: Ticket) -> None:
        """As `put`, for who has to know the ticket before it may leave."""
        self._queue.append(ticket)

    def take_back(self, ticket: Ticket) -> None:
        """Forget a ticket that has not left; one that has is only marked."""
        ticket.abandoned = True
        self._queue = [one for one in self._queue if one is not ticket]

    def draft(self, number: int, epoch: int, owner: str) -> Draft:
        """The draft of this lease."""
        draft = self.drafts.get(number)
        if draft is None or draft.epoch != epoch:
            draft = self.drafts[number] = Draft(number, epoch, owner)
        return draft

    def next(self) -> InFlight | None:
        """The commit to send now: the one whose fate is unknown, else what is queued; None if nothing is."""
        if not self.in_flight:
            self._load()
        return self.in_flight[0] if self.in_flight else None

    def everything(self) -> list[Outgoing]:
        """All of it, as commits in the order they must be sent; they are in flight from now on."""
        while self._queue or self.drafts:
            self._load()
        return [one.outgoing for one in self.in_flight]

    def mere_start(self) -> Outgoing | None:
        """The commit whose fate is unknown, if it does nothing but start trials."""
        if not self.in_flight or not all(map(_starts, self.in_flight[0].commit.records)):
            return None
        return self.in_flight[0].outgoing

    def ends(self) -> list[int]:
        """The trials whose end is among it."""
        tickets = [ticket for one in self.in_flight for ticket in one.tickets] + self._queue
        return [record.number for one in tickets for record in one.records if isinstance(record, TrialFinish)]

    def settled(self, last: LastCommit | None) -> list[Ticket]:
        """The tickets that are decided now that this writer's last commit in the log is `last`."""
        found: list[Ticket] = []
        while last is not None and self.in_flight and self.in_flight[0].commit.seq <= last.seq:
            one = self.in_flight[0]
            forgotten = one.commit.seq < last.seq  # decided while this process was not looking: nothing is known
            given: tuple[Verdict, ...] = () if forgotten else last.verdicts
            for ticket in one.tickets:
                count = len(ticket.records)
                ticket.verdicts, given = given[:count], given[count:]
                if len(ticket.verdicts) < count:
                    ticket.verdicts += (_UNKNOWN,) * (count - len(ticket.verdicts))
            found += one.tickets
            del self.in_flight[0]
        return found

    def give_up(self, verdict: Verdict) -> None:
        """Drop what is in flight: the store does not take it.

        What was said of a trial that was run here stays. Its owner may have been made a viewer under it, and the result
        is still to be kept.
        """
        if self.in_flight and not any(map(_of_a_lease, self.in_flight[0].commit.records)):
            for ticket in self.in_flight[0].tickets:
                ticket.decide(verdict)
            del self.in_flight[0]

    def _load(self) -> None:
        """Put what is queued for one owner into a commit; it is in flight from now on."""
        if not self.drafts:
            if not self._queue:
                return
            if len(self._queue) == 1:  # as nearly always: one ask, or one tell with all that was said before it
                self._launch(self._queue[0].owner, self._queue, kept=[])
                return
        self._queue_heavy_drafts()
        owner = self._queue[0].owner if self._queue else next(iter(self.drafts.values())).owner
        tickets: list[Ticket] = []
        weight = count = 0
        kept: list[Ticket] = []
        for ticket in self._queue:
            heavier = weight + ticket.weight()
            fits = count + len(ticket.records) <= _MAX_RECORDS and heavier <= _MAX_TEXT
            if ticket.owner != owner or kept or (tickets and not fits):
                kept.append(ticket)
                continue
            tickets.append(ticket)
            weight = heavier
            count += len(ticket.records)
        drafts = self._drafts_that_fit(owner, _MAX_TEXT - weight)
        drafted = Ticket(owner, tuple([draft.record() for draft in drafts]))
        self._launch(owner, [drafted, *tickets], kept=kept, drafts=drafts)

    def _launch(self, owner: str, tickets: list[Ticket], *, kept: list[Ticket], drafts: Sequence[Draft] = ()) -> None:
        """Let these tickets leave, and these drafts, which are among them; what is kept stays in the queue."""
        records = tuple([record for ticket in tickets for record in ticket.records])
        commit = Commit(self._writer, self._seq + 1, owner, self._now_us(), records)
        left = self.drafts
        if drafts:
            gone = {draft.number for draft in drafts}
            left = {number: draft for number, draft in left.items() if number not in gone}
        try:
            one = InFlight(commit, Outgoing(f"{self._writer}:{commit.seq}", codec.encode(commit)), tuple(tickets))
        except InvalidInput as error:
            for ticket in tickets:
                ticket.error = error
                ticket.decide(_MALFORMED)
            self._queue, self.drafts = kept, left
            return
        self._queue, self.drafts, self._seq = kept, left, commit.seq
        self.in_flight = [*self.in_flight, one]

    def _queue_heavy_drafts(self) -> None:
        """Put drafts that need several commits before what is queued."""
        for draft in [draft for draft in self.drafts.values() if draft.weight() > _MAX_TEXT]:
            heavy = [Ticket(draft.owner, (record,)) for record in draft.records()]
            self._queue = heavy + self._queue
            del self.drafts[draft.number]

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


def _starts(record: object) -> bool:
    """Whether it starts a trial, or introduces the peer that does."""
    if isinstance(record, TrialCreate):
        return record.state is TrialState.RUNNING
    return isinstance(record, TrialClaim | PeerJoin)


def _of_a_lease(record: object) -> bool:
    """Whether it is what a trial learnt from its owner, or how it ended; an epoch of 0 is nobody's."""
    return isinstance(record, TrialSet | TrialFinish) and record.epoch > 0


def _weight(record: Record) -> int:
    """Characters, roughly, by which this record can make a commit large."""
    if isinstance(record, TrialCreate | TrialSet):
        return _REPORT * len(record.reports) + _text(record.user) + _text(record.system)
    if isinstance(record, StudySet):
        return _text(record.user) + _text(record.system)
    return 0


def _text(attributes: dict[str, str]) -> int:
    return sum(map(len, attributes)) + sum(map(len, attributes.values())) if attributes else 0
