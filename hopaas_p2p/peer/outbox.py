"""What a session has yet to send to its log: queued records, drafts, and the commit whose fate is unknown.

Records are queued until the next exchange takes them along. What the owner sets on a running trial is collected in a
draft, so that ten reports become one record. A commit whose fate is unknown stays in flight and is sent again, byte
for byte, before anything else. The outbox belongs to a `LogSession` and is as little thread-safe. Ctrl-C may arrive at
any call, so fields that must change together change in lines without one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import msgspec

from hopaas_p2p.core import codec
from hopaas_p2p.core.records import (
    Categorical,
    Commit,
    Distribution,
    PeerJoin,
    Record,
    StudyRegistered,
    StudyRemoved,
    StudySet,
    TrialClaim,
    TrialCreate,
    TrialFinish,
    TrialSet,
    TrialState,
    Used,
)
from hopaas_p2p.core.state import Verdict
from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.stores.base import Outgoing

_OF_CATALOG: Final = frozenset({StudyRegistered, StudyRemoved})
_UNKNOWN: Final = Verdict(True)
_MALFORMED: Final = Verdict(False, None, "malformed")
_FIELDS: Final = operator.attrgetter(*TrialSet.__struct_fields__)
_MAX_RECORDS: Final = 1000  # of one commit; the rest goes with the next, so that nobody waits behind a long import
_MAX_TEXT: Final = 1 << 19  # characters in one commit: an eighth of what the codec allows in bytes, of which one has 4
_TEXT_BEARING: Final = (TrialCreate, TrialSet, StudySet)
_TEXTS: Final = ("user", "system")
_REPORT: Final = 20  # characters that a report counts for, or a choice


class PendingCommit(msgspec.Struct, eq=False):
    """Records on their way to the log, and their verdicts once the log has decided."""

    owner: str
    records: tuple[Record, ...]
    verdicts: tuple[Verdict, ...] | None = None
    abandoned: bool = False
    error: InvalidInput | None = None
    """Why these records could not be written down at all; their verdicts then say "malformed"."""

    @property
    def decided(self) -> bool:
        return self.verdicts is not None

    def decide(self, verdict: Verdict) -> None:
        """Give each of its records the same verdict."""
        self.verdicts = (verdict,) * len(self.records)

    def weight(self) -> int:
        """Roughly how many characters it adds to a commit."""
        return sum([_weight(record) for record in self.records if isinstance(record, _TEXT_BEARING)])


class Draft(msgspec.Struct, eq=False):
    """What the owner has set on one running trial since the last exchange: the fields of `TrialSet`."""

    number: int
    epoch: int
    owner: str
    params: dict[str, float] = {}
    dists: dict[str, Distribution] = {}
    reports: dict[int, float] = {}
    user: dict[str, str] = {}
    system: dict[str, str] = {}
    stopping: bool = False
    resumed_from: int | None = None
    used: Used | None = None
    metrics: dict[str, dict[int, float]] = {}

    def record(self) -> TrialSet:
        """All of it as one record."""
        return TrialSet(*_FIELDS(self))

    def records(self) -> tuple[TrialSet, ...]:
        """All of it as records of one commit: a parameter that brings its distribution has one of its own.

        If another peer was first to give it a distribution of another kind, only that record is refused.
        """
        if not self.dists:  # as most
            return (TrialSet(*_FIELDS(self)),)
        rest = {name: value for name, value in self.params.items() if name not in self.dists}
        first = msgspec.structs.replace(self.record(), params=rest, dists={})
        params, dists = self.params, self.dists
        return first, *[
            TrialSet(self.number, self.epoch, params={name: params[name]}, dists={name: dists[name]}) for name in dists
        ]

    def commits(self) -> list[tuple[TrialSet, ...]]:
        """All of it as the records of one commit, or of several where there is a lot of text.

        Reports and parameters come last: only the records that travel with a late result are kept with it.
        """
        if not (self.user or self.system or self.metrics or self.dists or len(self.reports) > _MAX_TEXT // _REPORT):
            return [(TrialSet(*_FIELDS(self)),)]  # as most
        if _weight(self) <= _MAX_TEXT:
            return [self.records()]
        part, weight = Draft(self.number, self.epoch, self.owner, resumed_from=self.resumed_from), 0
        parts = []
        for field, key, value in self._items():
            size = _size(value) if field == "dists" else len(key) + len(value) if field in _TEXTS else _REPORT
            if weight and weight + size > _MAX_TEXT:
                parts.append((part.record(),))
                part, weight = Draft(self.number, self.epoch, self.owner), 0
            if field == "metrics":
                part.metrics.setdefault(key[0], {})[key[1]] = value
            else:
                getattr(part, field)[key] = value
            if field == "dists":
                part.params[key] = self.params[key]
            weight += size
        part.params, part.stopping = self.params, self.stopping
        return [*parts, (part.record(),)]

    def _items(self) -> Iterator[tuple[str, Any, Any]]:
        for field in ("user", "system"):
            for key, value in getattr(self, field).items():
                yield field, key, value
        for name, values in self.metrics.items():
            for step, value in values.items():
                yield "metrics", (name, step), value
        for step, value in self.reports.items():
            yield "reports", step, value
        for name, distribution in self.dists.items():
            yield "dists", name, distribution


class InFlight(msgspec.Struct, frozen=True, gc=False):
    """A commit that was sent, or is about to be."""

    commit: Commit
    outgoing: Outgoing
    pending: tuple[PendingCommit, ...]


class Outbox:
    """See the module."""

    def __init__(self, writer: str, now_us: Callable[[], int]) -> None:
        self.drafts: dict[int, Draft] = {}
        """By trial number."""
        self.in_flight: list[InFlight] = []
        """In the order in which they must be sent; more than one only after they were packed for the spool."""
        self.sequence = 0
        """The sequence number of the newest commit."""
        self._writer = writer
        self._now_us = now_us
        self.queued: list[PendingCommit] = []
        """What leaves next, in order."""

    def __bool__(self) -> bool:
        """Whether something is still to be sent, or its fate to be learnt."""
        return bool(self.queued or self.drafts or self.in_flight)

    def queue(self, pending: PendingCommit) -> None:
        """Add records, which leave together."""
        self.queued.append(pending)

    def take_back(self, pending: PendingCommit) -> None:
        """Forget records that have not left; those that have are only marked."""
        pending.abandoned = True
        self.queued = [other for other in self.queued if other is not pending]

    def draft(self, number: int, epoch: int, owner: str) -> Draft:
        """The draft of this lease."""
        draft = self.drafts.get(number)
        if draft is None or draft.epoch != epoch:
            draft = self.drafts[number] = Draft(number, epoch, owner)
        return draft

    def next(self, chain: int | None = None) -> Outgoing | None:
        """The commit to send now: the one whose fate is unknown, else what is queued; None if nothing is.

        `chain` is the sum of the log as far as it was read.
        """
        while not self.in_flight:
            if len(self.queued) == 1 and not self.drafts:  # as nearly always: an ask, or a tell with all before it
                self._launch(self.queued, chain=chain)
            elif self.queued or self.drafts:
                self._load(chain)
            else:
                return None
        outgoing = self.in_flight[0].outgoing
        return outgoing if outgoing.chain == chain else msgspec.structs.replace(outgoing, chain=chain)

    def everything(self) -> list[Outgoing]:
        """All of it as commits, in the order in which they must be sent; they are in flight from now on."""
        while self.queued or self.drafts:
            self._load()
        return [sent.outgoing for sent in self.in_flight]

    def undecided(self) -> list[PendingCommit]:
        """What was put here and not decided yet, in order; without drafts."""
        return [pending for sent in self.in_flight for pending in sent.pending] + self.queued

    def mere_start(self) -> Outgoing | None:
        """The commit whose fate is unknown, if it does nothing but start trials."""
        if not self.in_flight or not all(map(_starts, self.in_flight[0].commit.records)):
            return None
        return self.in_flight[0].outgoing

    def settle(self, verdicts: tuple[Verdict, ...]) -> list[PendingCommit]:
        """Hand out the verdicts on the first commit in flight, as far as they are known; what was abandoned of it."""
        abandoned = []
        for pending in self.in_flight[0].pending:
            count = len(pending.records)
            if count == len(verdicts):  # as nearly always
                pending.verdicts, verdicts = verdicts, ()
            else:
                given, verdicts = verdicts[:count], verdicts[count:]
                pending.verdicts = given + (_UNKNOWN,) * (count - len(given))
            if pending.abandoned:
                abandoned.append(pending)
        del self.in_flight[0]
        return abandoned

    def give_up(self, verdict: Verdict) -> None:
        """Drop the commit in flight: the store does not take it.

        What was reported about a trial that ran here stays: its owner may have been made a viewer meanwhile, and the
        result is still to be kept.
        """
        if self.in_flight and not any(map(_of_a_lease, self.in_flight[0].commit.records)):
            for pending in self.in_flight.pop(0).pending:
                pending.decide(verdict)

    def _load(self, chain: int | None = None) -> None:
        """Put what is queued for one owner into a commit; it is in flight from now on."""
        self._queue_heavy_drafts()
        if not (self.queued or self.drafts):
            return
        owner = self.queued[0].owner if self.queued else next(iter(self.drafts.values())).owner
        taken: list[PendingCommit] = []
        weight = count = 0
        kept: list[PendingCommit] = []
        for pending in self.queued:
            heavier = weight + pending.weight()
            fits = count + len(pending.records) <= _MAX_RECORDS and heavier <= _MAX_TEXT
            if pending.owner != owner or kept or (taken and not fits):
                kept.append(pending)
                continue
            taken.append(pending)
            weight = heavier
            count += len(pending.records)
        drafts = self._drafts_that_fit(owner, _MAX_TEXT - weight)
        if drafts:
            taken.insert(0, PendingCommit(owner, tuple([one for draft in drafts for one in draft.records()])))
        self._launch(taken, kept, drafts, chain=chain)

    def _launch(
        self,
        taken: list[PendingCommit],
        kept: Sequence[PendingCommit] = (),
        drafts: Sequence[Draft] = (),
        *,
        chain: int | None,
    ) -> None:
        """Make a commit of these, and of these drafts, which are among them; what is kept stays in the queue."""
        first, left, writer, seq = taken[0], self.drafts, self._writer, self.sequence + 1
        records = first.records if len(taken) == 1 else tuple([one for pending in taken for one in pending.records])
        commit = Commit(writer, seq, first.owner, self._now_us(), records)
        if drafts:
            gone = {draft.number for draft in drafts}
            left = {number: draft for number, draft in left.items() if number not in gone}
        try:
            about = _study_in(records) if records[0].__class__ in _OF_CATALOG else ""
            outgoing = Outgoing(f"{writer}:{seq}", codec.encode(commit), about, chain)
        except InvalidInput as error:
            if len(drafts) > 1:  # nor what was set on other trials
                alone = PendingCommit(drafts[0].owner, drafts[0].records())
                self._launch([alone], [*taken[1:], *kept], drafts[:1], chain=chain)
                return
            if len(taken) > 1:  # what others have queued is not refused with it
                self._launch(taken[:1], [*taken[1:], *kept], drafts, chain=chain)
                return
            first.error = error
            first.decide(_MALFORMED)
            self.queued, self.drafts = [*kept], left
            return
        sent = InFlight(commit, outgoing, tuple(taken))
        self.queued, self.drafts, self.sequence = [*kept], left, seq
        self.in_flight = [*self.in_flight, sent]

    def _queue_heavy_drafts(self) -> None:
        """Put drafts that need several commits before what is queued."""
        for draft in [draft for draft in self.drafts.values() if _weight(draft) > _MAX_TEXT]:
            heavy = [PendingCommit(draft.owner, records) for records in draft.commits()]
            self.queued = heavy + self.queued
            del self.drafts[draft.number]

    def _drafts_that_fit(self, owner: str, room: int) -> list[Draft]:
        drafts = []
        for draft in self.drafts.values():
            if draft.owner != owner:
                continue
            room -= _weight(draft)
            if room < 0:
                break
            drafts.append(draft)
        return drafts


def _starts(record: object) -> bool:
    """Whether it starts a trial, or introduces the peer that does."""
    if isinstance(record, TrialCreate):
        return record.state is TrialState.RUNNING
    return isinstance(record, TrialClaim | PeerJoin)


def _study_in(records: tuple[Record, ...]) -> str:
    """The uuid of the study that a commit to the catalog opens or closes."""
    return next(record.uuid for record in records if isinstance(record, StudyRegistered | StudyRemoved))


def _of_a_lease(record: object) -> bool:
    """Whether it is about a trial that ran here; epoch 0 is no lease."""
    return isinstance(record, TrialSet | TrialFinish) and record.epoch > 0


def _weight(said: Draft | TrialCreate | TrialSet | StudySet) -> int:
    """Roughly how many characters this adds to a commit."""
    weight = 0
    if not isinstance(said, StudySet):
        weight = _REPORT * len(said.reports)
        if said.dists:
            weight += sum(map(len, said.dists)) + sum(map(_size, said.dists.values()))
        if said.metrics:
            for name, values in said.metrics.items():
                weight += len(name) + _REPORT * len(values)
    if said.user or said.system:
        for attributes in (said.user, said.system):
            weight += sum(map(len, attributes)) + sum(map(len, attributes.values()))
    return weight


def _size(distribution: Distribution) -> int:
    """Roughly how many characters it adds to a commit."""
    if not isinstance(distribution, Categorical):
        return 2 * _REPORT
    return sum([_REPORT + (len(one) if isinstance(one, str) else 0) for one in distribution.choices])
