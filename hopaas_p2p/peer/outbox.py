"""What a session still has to send to its log: queued records, drafts, and the commit whose fate is unknown.

Records are queued until the next exchange. What the owner sets on a running trial is collected in a draft, so that ten
reports become one record. A commit whose fate is unknown stays in flight and is sent again, byte for byte, before
anything else. The outbox belongs to a `LogSession` and, like it, is not thread-safe. Ctrl-C may arrive at any call, so
fields that must change together change in lines without calls.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from hopaas_p2p.core import codec
from hopaas_p2p.core.records import (
    Categorical,
    Commit,
    Distribution,
    Record,
    StudyRegistered,
    StudyRemoved,
    StudySet,
    TrialCreate,
    TrialFinish,
    TrialSet,
)
from hopaas_p2p.core.state import Verdict
from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.stores.base import Outgoing

_UNKNOWN: Final = Verdict(True)
_MALFORMED: Final = Verdict(False, None, "malformed")
_FIELDS: Final = operator.attrgetter(*TrialSet.__struct_fields__)
_MAX_RECORDS: Final = 1000  # of one commit; the rest goes with the next, so that nobody waits behind a long import
_MAX_TEXT: Final = 1 << 19  # characters in one commit: an eighth of what the codec allows in bytes, of which one has 4
_TEXT_BEARING: Final = (TrialCreate, TrialSet, StudySet)
_ABOUT_STUDIES: Final = (StudyRegistered, StudyRemoved)
_REPORT: Final = 20  # characters that a report counts for, or a choice
_MOST_REPORTS: Final = _MAX_TEXT // _REPORT


class PendingCommit(msgspec.Struct, eq=False):
    """Records on their way to the log, and their verdicts once the log has decided."""

    owner: str
    records: tuple[Record, ...]
    verdicts: tuple[Verdict, ...] | None = None
    abandoned: bool = False
    error: InvalidInput | None = None
    """Why these records could not be encoded at all; their verdicts are then "malformed"."""

    def decide(self, verdict: Verdict) -> None:
        """Assign the same verdict to each of its records."""
        self.verdicts = (verdict,) * len(self.records)


class Draft(TrialSet, eq=False):
    """What the owner has set on one running trial since the last exchange."""

    owner: str = ""

    def records(self) -> tuple[TrialSet, ...]:
        """The draft as records of one commit: a parameter that brings its distribution gets a separate record.

        If another peer was first to give the parameter a distribution of another kind, only that record is refused.
        """
        whole = TrialSet(*_FIELDS(self))
        if not self.dists:  # as most
            return (whole,)
        rest = {name: value for name, value in self.params.items() if name not in self.dists}
        return msgspec.structs.replace(whole, params=rest, dists={}), *[
            TrialSet(self.number, self.epoch, params={name: self.params[name]}, dists={name: distribution})
            for name, distribution in self.dists.items()
        ]

    def commits(self) -> list[tuple[TrialSet, ...]]:
        """The draft as the records of one commit, or of several if there is a lot of text.

        Reports and parameters come last: only the records that travel with a late result are kept with it.
        """
        if not (self.user or self.system or self.metrics or self.dists or len(self.reports) > _MOST_REPORTS):
            return [(TrialSet(*_FIELDS(self)),)]  # as most
        if _weight(self) <= _MAX_TEXT:
            return [self.records()]
        whole, *of_dists = self.records()
        *earlier, last = _chunks(self.reports)
        parts: list[dict[str, Any]] = [{"resumed_from": self.resumed_from}]
        parts += [{"user": {key: text}} for key, text in self.user.items()]
        parts += [{"system": {key: text}} for key, text in self.system.items()]
        parts += [{"metrics": {name: some}} for name, values in self.metrics.items() for some in _chunks(values)]
        parts += [{"reports": some} for some in earlier]
        said = [TrialSet(self.number, self.epoch, **part) for part in parts] + of_dists
        end = msgspec.structs.replace(whole, reports=last, user={}, system={}, metrics={}, resumed_from=None)
        return [(one,) for one in [*said, end]]


class InFlight(msgspec.Struct, frozen=True, gc=False):
    """A commit that was sent, or is about to be."""

    commit: Commit
    outgoing: Outgoing
    pending: tuple[PendingCommit, ...]


class Outbox:
    """See the module."""

    def __init__(self, writer: str, now_us: Callable[[], int]) -> None:
        self.drafts: dict[int, Draft] = {}
        """Keyed by trial number."""
        self.in_flight: list[InFlight] = []
        """In the order in which they must be sent; more than one only after packing for the spool."""
        self.sequence = 0
        """The sequence number of the newest commit."""
        self._writer = writer
        self._now_us = now_us
        self.queued: list[PendingCommit] = []
        """What is sent next, in order."""

    def __bool__(self) -> bool:
        """Whether something is unsent, or its fate unknown."""
        return bool(self.queued or self.drafts or self.in_flight)

    def draft(self, number: int, epoch: int, owner: str) -> Draft:
        """The draft of this lease."""
        draft = self.drafts.get(number)
        if draft is None or draft.epoch != epoch:
            draft = self.drafts[number] = Draft(number, epoch, owner=owner)
        return draft

    def next(self, chain: int | None = None) -> Outgoing | None:
        """The commit to send now: the one whose fate is unknown, else what is queued; None if neither exists.

        `chain` is the sum of the log as far as it has been read.
        """
        while not self.in_flight:
            if len(self.queued) == 1 and not self.drafts:  # almost always: an ask, or a tell with all before it
                self._launch(self.queued, (), {}, chain)
            elif self.queued or self.drafts:
                self._load(chain)
            else:
                return None
        outgoing = self.in_flight[0].outgoing
        return outgoing if outgoing.chain == chain else msgspec.structs.replace(outgoing, chain=chain)

    def everything(self) -> list[Outgoing]:
        """Everything as commits, in the order in which they must be sent; from now on they are in flight."""
        while self.queued or self.drafts:
            self._load()
        return [sent.outgoing for sent in self.in_flight]

    def undecided(self) -> list[PendingCommit]:
        """The commits that were put here and are not decided yet, in order; without drafts."""
        return [pending for sent in self.in_flight for pending in sent.pending] + self.queued

    def settle(self, verdicts: tuple[Verdict, ...]) -> list[PendingCommit]:
        """Hand out the known verdicts on the first commit in flight; return what was abandoned of it."""
        abandoned = []
        for pending in self.in_flight[0].pending:
            count = len(pending.records)
            if count == len(verdicts):  # almost always
                pending.verdicts, verdicts = verdicts, ()
            else:
                given, verdicts = verdicts[:count], verdicts[count:]
                pending.verdicts = given + (_UNKNOWN,) * (count - len(given))
            if pending.abandoned:
                abandoned.append(pending)
        del self.in_flight[0]
        return abandoned

    def give_up(self, verdict: Verdict) -> None:
        """Drop the commit in flight: the store does not accept it.

        Records about a trial that ran here stay queued: its owner may have been made a viewer meanwhile, and the result
        must still be kept.
        """
        records = self.in_flight[0].commit.records if self.in_flight else ()
        if records and not any(isinstance(one, TrialSet | TrialFinish) and one.epoch > 0 for one in records):
            for pending in self.in_flight.pop(0).pending:
                pending.decide(verdict)

    def _load(self, chain: int | None = None) -> None:
        """Put what is queued for one owner into a commit, which is in flight from now on."""
        if self.drafts:
            begun = {one.number for pending in self.queued for one in pending.records if isinstance(one, TrialSet)}
            for draft in [one for one in self.drafts.values() if one.number in begun or _weight(one) > _MAX_TEXT]:
                parts = [PendingCommit(draft.owner, records) for records in draft.commits()]
                self.queued = self.queued + parts  # not before earlier records about the trial
                del self.drafts[draft.number]
        owner = self.queued[0].owner if self.queued else next(iter(self.drafts.values())).owner
        taken: list[PendingCommit] = []
        kept: list[PendingCommit] = []
        drafts: list[PendingCommit] = []
        left: dict[int, Draft] = {}
        room, count = _MAX_TEXT, 0
        for pending in self.queued:
            weight = 0
            for record in pending.records:
                weight += _weight(record) if type(record) in _TEXT_BEARING else 0  # type: ignore[arg-type]
            fits = count + len(pending.records) <= _MAX_RECORDS and weight <= room
            if pending.owner != owner or kept or (taken and not fits):
                kept.append(pending)
                continue
            taken.append(pending)
            room -= weight
            count += len(pending.records)
        for number, draft in self.drafts.items():
            if draft.owner == owner and room >= 0:
                room -= _weight(draft)
            if draft.owner == owner and room >= 0:
                drafts.append(PendingCommit(owner, draft.records()))
            else:
                left[number] = draft
        self._launch(drafts + taken, kept, left, chain)

    def _launch(
        self,
        taken: list[PendingCommit],
        kept: Sequence[PendingCommit],
        left: dict[int, Draft],
        chain: int | None,
    ) -> None:
        """Make a commit of `taken`; `kept` stays in the queue, and `left` are the remaining drafts."""
        first, writer, seq = taken[0], self._writer, self.sequence + 1
        records = first.records if len(taken) == 1 else tuple([one for pending in taken for one in pending.records])
        commit = Commit(writer, seq, first.owner, self._now_us(), records)
        try:
            about = records[0].uuid if type(records[0]) in _ABOUT_STUDIES else ""  # type: ignore[union-attr]
            outgoing = Outgoing(f"{writer}:{seq}", codec.encode(commit), about, chain)
        except InvalidInput as error:
            if len(taken) > 1:  # so that records queued by others, or about other trials, are not refused with it
                self._launch(taken[:1], [*taken[1:], *kept], left, chain)
                return
            first.error = error
            first.decide(_MALFORMED)
            self.queued, self.drafts = [*kept], left
            return
        sent = InFlight(commit, outgoing, tuple(taken))
        self.queued, self.drafts, self.sequence = [*kept], left, seq
        self.in_flight = [*self.in_flight, sent]


def _chunks(values: dict[int, float]) -> list[dict[int, float]]:
    """The values by step, in one or more parts that each fit a commit."""
    items = list(values.items())
    return [dict(items[at : at + _MOST_REPORTS]) for at in range(0, max(len(items), 1), _MOST_REPORTS)]


def _weight(said: TrialCreate | TrialSet | StudySet) -> int:
    """The approximate number of characters that this adds to a commit."""
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
    """The approximate number of characters that it adds to a commit."""
    if not isinstance(distribution, Categorical):
        return 2 * _REPORT
    return sum([_REPORT + (len(one) if isinstance(one, str) else 0) for one in distribution.choices])
