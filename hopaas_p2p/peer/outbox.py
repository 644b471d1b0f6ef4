"""The data that a session still has to send to its log: queued records, drafts, and commits whose fate is unknown.

Records are queued until the next exchange. Changes by the owner of a running trial are collected in a draft, so that
ten reports become one record. A commit whose fate is unknown stays in flight and is sent again, byte for byte, before
anything else. `LogSession` keeps all of these; this module defines their types, and how much of them a commit holds.
"""

from __future__ import annotations

import operator
from typing import Any, Final

import msgspec

from hopaas_p2p.core.records import Categorical, Commit, Distribution, Record, StudySet, TrialCreate, TrialSet
from hopaas_p2p.core.state import Verdict
from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.stores.base import Outgoing

_FIELDS: Final = operator.attrgetter(*TrialSet.__struct_fields__)
MAX_RECORDS: Final = 1000  # in one commit; more go with the next one, so that no caller waits behind a long import
MAX_TEXT: Final = 1 << 19  # characters in one commit: an eighth of the codec's limit in bytes; each may take 4 bytes
_REPORT: Final = 20  # characters for which a report or a choice counts
_MOST_REPORTS: Final = MAX_TEXT // _REPORT


class PendingCommit(msgspec.Struct, eq=False):
    """Records on their way to the log, and their verdicts once these are known."""

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
    """The owner's changes to one running trial since the last exchange."""

    owner: str = ""

    def records(self) -> tuple[TrialSet, ...]:
        """The draft as records of one commit. A parameter with a new distribution gets a separate record.

        If another peer was first to give the parameter a distribution of another kind, only that record is refused.
        """
        whole = TrialSet(*_FIELDS(self))
        if not self.dists:  # true of most drafts
            return (whole,)
        rest = {name: value for name, value in self.params.items() if name not in self.dists}
        return msgspec.structs.replace(whole, params=rest, dists={}), *[
            TrialSet(self.number, self.epoch, params={name: self.params[name]}, dists={name: distribution})
            for name, distribution in self.dists.items()
        ]

    def commits(self) -> list[tuple[TrialSet, ...]]:
        """The draft as the records of one commit, or of several if there is a lot of text.

        Reports and parameters come last, because only records in the same commit as a late result are kept with it.
        """
        if not (self.user or self.system or self.metrics or self.dists or len(self.reports) > _MOST_REPORTS):
            return [(TrialSet(*_FIELDS(self)),)]  # most drafts
        if weight_of(self) <= MAX_TEXT:
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


def _chunks(values: dict[int, float]) -> list[dict[int, float]]:
    """The values by step, in one or more parts that each fit a commit."""
    items = list(values.items())
    return [dict(items[at : at + _MOST_REPORTS]) for at in range(0, max(len(items), 1), _MOST_REPORTS)]


def weight_of(said: TrialCreate | TrialSet | StudySet) -> int:
    """The approximate number of characters that this record adds to a commit."""
    weight = sum([len(key) + len(text) for some in (said.user, said.system) for key, text in some.items()])
    if not isinstance(said, StudySet):
        weight += _REPORT * len(said.reports)
        weight += sum([len(name) + _size(one) for name, one in said.dists.items()])
        weight += sum([len(name) + _REPORT * len(values) for name, values in said.metrics.items()])
    return weight


def _size(distribution: Distribution) -> int:
    """The approximate number of characters that a distribution adds to a commit."""
    if not isinstance(distribution, Categorical):
        return 2 * _REPORT
    return sum([_REPORT + (len(one) if isinstance(one, str) else 0) for one in distribution.choices])
