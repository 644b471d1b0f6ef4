"""What every side of the storage stands on: this process's parts in studies, and how to find them."""

from __future__ import annotations

import threading
from typing import Final, NamedTuple, NoReturn

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial

from hopaas_p2p.core.catalog import Listing
from hopaas_p2p.core.records import Policy
from hopaas_p2p.core.state import State, Verdict
from hopaas_p2p.errors import InvalidInput, LeaseLost, StudyDeleted
from hopaas_p2p.frozen import View
from hopaas_p2p.peer.courier import Courier
from hopaas_p2p.peer.membership import Membership
from hopaas_p2p.peer.outbox import Ticket

NUMBER_BITS: Final = 32
_NUMBERS: Final = (1 << NUMBER_BITS) - 1
NO_WORK: Final = {
    "budget": "the study's budget is used up",
    "paused": "the study is paused; go on with: hopaas-p2p study resume",
    "stopped": "the study is stopped",
    "draining": "this peer or its site was asked to take no more trials",
    "failing": "too many trials failed in a row; look at them with: hopaas-p2p trial list --state fail",
}


class Options(NamedTuple):
    """How a storage was opened: what travels in a pickle."""

    url: str
    policy: Policy
    linger: float | None
    patience: float
    allow_pickles: bool
    peer_ttl: float | None
    on_behalf_of: str = ""


class Mode(threading.local):
    """How trials end in a block of code, on one thread: see `Storage.telling`."""

    defer = False
    strict = False
    reason: str | None = None


class Part:
    """One study in this storage."""

    def __init__(self, membership: Membership[State], view: View) -> None:
        self.membership = membership
        self.view = view
        self.replica = membership.replica
        self.deferred: list[tuple[int, Ticket]] = []

    @property
    def lock(self) -> threading.RLock:
        return self.replica.lock


class Parts:
    """The studies of one store that this process takes part in."""

    courier: Courier
    _options: Options
    _mode: Mode
    _parts: dict[int, Part]

    @property
    def url(self) -> str:
        """The store, as it may be shown."""
        return self.courier.store.url

    def part(self, study_id: int) -> Part:
        """This process's part in a study. Raises KeyError if there is none of that id."""
        part = self._parts.get(study_id)
        if part is None:
            listing = self._listing(study_id)
            membership = self.courier.membership(study_id, listing.uuid)
            part = self._parts[study_id] = Part(membership, self._new_view(study_id))
        return part

    def _read(self, study_id: int) -> Part:
        """The part, as fresh as a read may expect. Costs no round trip in steady state."""
        part = self.part(study_id)
        self._refresh(part)
        return part

    def _refresh(self, part: Part) -> None:
        """See that a read finds what it may expect to."""
        try:
            self.courier.refresh_for_reading(part.membership)
        except StudyDeleted:
            self._parts.pop(part.view.study_id, None)
            raise KeyError(f"No study with study_id {part.view.study_id} exists any more.") from None

    def _listing(self, study_id: int) -> Listing:
        self._refresh_catalog()
        listing = self.courier.catalog.replica.state.by_id.get(study_id)
        if listing is None:
            self._parts.pop(study_id, None)
            raise KeyError(f"No study with study_id {study_id} exists.")
        return listing

    def _refresh_catalog(self) -> None:
        self.courier.refresh_for_reading(self.courier.catalog)

    def _new_view(self, study_id: int) -> View:
        return View(study_id, allow_pickles=self._options.allow_pickles)

    def _locate(self, trial_id: int) -> tuple[Part, int]:
        study_id, number = trial_id >> NUMBER_BITS, trial_id & _NUMBERS
        part = self._parts.get(study_id)
        if part is None:
            try:
                part = self.part(study_id)
            except KeyError:
                raise KeyError(f"No trial with trial_id {trial_id} exists.") from None
        if number >= len(part.replica.state.trials):
            self.courier.catch_up(part.membership)
            if number >= len(part.replica.state.trials):
                raise KeyError(f"No trial with trial_id {trial_id} exists.")
        return part, number

    def _refused(self, number: int, verdict: Verdict) -> NoReturn:
        if verdict.refusal == "late":
            raise LeaseLost(
                f"Trial {number} was taken over by another peer; its result is kept as trial {verdict.number}.",
                kept_as=verdict.number,
            )
        if verdict.refusal == "fenced":
            raise LeaseLost(f"Trial {number} was taken over by another peer.")
        if verdict.refusal == "finished":
            raise UpdateFinishedTrialError(f"Trial#{number} has already finished and can not be updated.")
        raise InvalidInput(f"trial {number}: refused, {verdict.refusal}")


def internal(frozen: FrozenTrial, name: str) -> float:
    """The value of a parameter as the log writes it."""
    return float(frozen.distributions[name].to_internal_repr(frozen.params[name]))
