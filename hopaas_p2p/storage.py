"""Optuna's storage on a replica: a drop-in for `optuna.create_study(storage=…)`.

Reads come from memory. `create_new_trial` and the end of a trial wait for one exchange with the store; everything a
running trial is told in between waits in the outbox and leaves with the next one. Only the process that runs a trial
may change it (or one that the storage or trial travelled to, by fork or pickle).

The only file that imports `optuna.storages`, but for export, which reads and writes those of others.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import os
import secrets
import threading
import weakref
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple, NoReturn

from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

from hopaas_p2p.core import records
from hopaas_p2p.core.catalog import Listing, checked_name
from hopaas_p2p.core.leases import Lease
from hopaas_p2p.core.records import (
    Policy,
    StudyClose,
    StudyDefine,
    StudyOpen,
    StudySet,
    TrialCheckpoint,
    TrialClaim,
    TrialCreate,
    TrialFinish,
    TrialRelease,
    TrialSet,
)
from hopaas_p2p.core.state import REFUSALS, State, Verdict
from hopaas_p2p.errors import (
    ConfigurationError,
    Denied,
    InvalidInput,
    LeaseLost,
    NotYourTrial,
    NoWork,
    StoreUnreachable,
    StudyDeleted,
)
from hopaas_p2p.frozen import (
    Live,
    View,
    attributes,
    checked_parameter,
    checked_step,
    copy_of,
    directions_of,
    external,
    to_json,
    to_microseconds,
    to_record,
)
from hopaas_p2p.peer.courier import Courier, Membership
from hopaas_p2p.peer.replica import Draft, Ticket
from hopaas_p2p.stores.url import open_store

_log: Final = logging.getLogger("hopaas_p2p")
_NO_NAME: Final = "no-name-"  # Optuna's prefix for studies without a name
_NUMBER_BITS: Final = 32
_NO_WORK: Final = {
    "budget": "the study's budget is used up",
    "paused": "the study is paused; go on with: hopaas-p2p study resume",
    "stopped": "the study is stopped",
    "draining": "this peer or its site was asked to take no more trials",
    "failing": "too many trials failed in a row; look at them with: hopaas-p2p trial list --state fail",
}


def open_storage(
    url: str,
    *,
    lease_ttl: float = 120.0,
    attempts: int = 3,
    linger: float | None = None,
    patience: float = 60.0,
    allow_pickles: bool = False,
    create: bool = True,
    acts_for: Iterable[str] = (),
    peer_ttl: float | None = None,
) -> Storage:
    """A storage for `optuna.create_study(storage=…)`, shared by every process that opens the same URL.

    Args:
        url: a directory, or a URL; see `hopaas_p2p.stores.url.open_store`.
        lease_ttl: seconds of silence after which a peer's trials are taken over, in studies created through this
            storage. A killed peer's trial is back within twice that.
        attempts: how often one set of parameters may be started, in studies created through this storage.
        linger: seconds for which reports wait for company before they are sent by themselves.
        patience: seconds for which a call tries an unreachable store before it raises `StoreUnreachable`.
        allow_pickles: let Optuna's CMA-ES sampler pass its pickles between peers. Only among people you trust: who
            may write to the study can then run code in every peer that uses that sampler.
        create: whether a directory that is no store yet becomes one.
        acts_for: uuids of peers whose running trials this process may go on with, as a ticket of the shell does.
        peer_ttl: a longer silence than the study's that others shall grant this peer, in seconds.

    Raises:
        ConfigurationError: the URL or the store cannot be used; the message says what to change.
    """
    if not lease_ttl > 0:
        raise InvalidInput(f"lease_ttl must be positive, got {lease_ttl}")
    options = _Options(
        url=open_store(url, create=create).url,
        policy=Policy(ttl=float(lease_ttl), attempts=attempts),
        linger=linger,
        patience=patience,
        allow_pickles=allow_pickles,
        peer_ttl=peer_ttl,
    )
    return Storage(options, _open_courier(options, frozenset(acts_for)))


class _Options(NamedTuple):
    """How a storage was opened: what travels in a pickle."""

    url: str
    policy: Policy
    linger: float | None
    patience: float
    allow_pickles: bool
    peer_ttl: float | None


def _open_courier(options: _Options, acts_for: frozenset[str] = frozenset()) -> Courier:
    store = open_store(options.url)
    linger = max(1.0, store.freshness) if options.linger is None else options.linger
    return Courier(store, linger=linger, patience=options.patience, acts_for=acts_for, peer_ttl=options.peer_ttl)


_revived: Final[weakref.WeakValueDictionary[tuple[int, str], Courier]] = weakref.WeakValueDictionary()
"""(process, courier a storage was pickled with) -> the one it has here: unpickled again and again, it is one peer."""


class _Mode(threading.local):
    """How trials end in a block of code, on one thread: see `Storage.telling` and `Storage.because`."""

    defer = False
    strict = False
    reason: str | None = None


class _Part:
    """One study in this storage."""

    def __init__(self, membership: Membership[State], view: View) -> None:
        self.membership = membership
        self.view = view
        self.replica = membership.replica
        self.deferred: list[tuple[int, Ticket]] = []

    @property
    def lock(self) -> threading.RLock:
        return self.replica.lock


class Storage(BaseStorage):
    """See `open_storage`. Thread-safe; a fork or an unpickled copy is a new peer that may act for this one's trials."""

    def __init__(self, options: _Options, courier: Courier) -> None:
        self._options = options
        self._parts: dict[int, _Part] = {}
        self._mode = _Mode()
        self.courier = courier

    @property
    def url(self) -> str:
        """The store, as it may be shown."""
        return self.courier.store.url

    def __repr__(self) -> str:
        return f"hopaas_p2p.open_storage({self.url!r})"

    def __getstate__(self) -> dict[str, Any]:
        with contextlib.suppress(StoreUnreachable):  # the copy sends what it touches anew
            self.courier.flush()
        mine = self.courier.acts_for | {self.courier.uuid}
        return {"options": self._options, "acts_for": mine, "origin": self.courier.uuid, "pid": os.getpid()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        options = state["options"]
        if options.url.startswith("memory:") and state["pid"] != os.getpid():
            raise ConfigurationError(f"{options.url} lives in one process; give the others a directory or a URL")
        key = (os.getpid(), state["origin"])
        courier = _revived.get(key) or _open_courier(options, state["acts_for"])
        _revived[key] = courier
        self.__init__(options, courier)  # type: ignore[misc]  # a revived storage is a new one

    def close(self) -> None:
        """Send what is queued and let go of the store. Blocks for 5 s at most."""
        self.courier.close()

    def flush(self) -> None:
        """Send what is queued. Blocks until the store has it, or raises `StoreUnreachable`."""
        self.courier.flush()

    def remove_session(self) -> None:
        """Optuna calls this at the end of `optimize`: see that reports and attributes are in the store."""
        with contextlib.suppress(StoreUnreachable):  # stays queued
            self.flush()

    # --- studies ---

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        names = tuple([direction.name.lower() for direction in directions])
        return self.define_study(
            StudyDefine(
                _NO_NAME + secrets.token_hex(16) if study_name is None else study_name, names, self._options.policy
            )
        )

    def define_study(self, define: StudyDefine) -> int:
        """Create a study with policy and search space; returns its id.

        Raises:
            DuplicatedStudyError: the name is taken.
            InvalidInput: no name that a study may carry.
        """
        checked_name(define.name)
        self._refresh_catalog()
        if define.name in self.courier.catalog.replica.state.by_name:
            raise DuplicatedStudyError(f"A study named {define.name!r} exists already in {self.url}.")
        uuid = secrets.token_hex(16)
        membership = self.courier.membership(-1, uuid)
        self.courier.settle(membership, membership.replica.put(self.courier.uuid, define))
        verdict = self.courier.commit_to_catalog(StudyOpen(uuid, define.name))
        if not verdict.accepted or verdict.number is None:
            self._forget(uuid)
            raise DuplicatedStudyError(f"A study named {define.name!r} exists already in {self.url}.")
        membership.study_id = verdict.number
        self._parts[verdict.number] = _Part(membership, self._new_view(verdict.number))
        return verdict.number

    def _new_view(self, study_id: int) -> View:
        return View(study_id, allow_pickles=self._options.allow_pickles)

    def _forget(self, uuid: str) -> None:
        membership = self.courier.memberships.pop(uuid, None)
        if membership is not None:
            membership.deleted = True
            membership.replica.log.destroy()

    def delete_study(self, study_id: int) -> None:
        listing = self._listing(study_id)
        verdict = self.courier.commit_to_catalog(StudyClose(listing.uuid))
        self._parts.pop(study_id, None)
        if not verdict.accepted:
            raise KeyError(f"No study with study_id {study_id} exists.")
        self.courier.membership(study_id, listing.uuid)
        self._forget(listing.uuid)

    def _refresh_catalog(self) -> None:
        self.courier.refresh_for_reading(self.courier.catalog)

    def _listing(self, study_id: int) -> Listing:
        self._refresh_catalog()
        listing = self.courier.catalog.replica.state.by_id.get(study_id)
        if listing is None:
            self._parts.pop(study_id, None)
            raise KeyError(f"No study with study_id {study_id} exists.")
        return listing

    def part(self, study_id: int) -> _Part:
        """This process's part in a study. Raises KeyError if there is none of that id."""
        part = self._parts.get(study_id)
        if part is None:
            listing = self._listing(study_id)
            membership = self.courier.membership(study_id, listing.uuid)
            part = self._parts[study_id] = _Part(membership, self._new_view(study_id))
        return part

    def _read(self, study_id: int) -> _Part:
        """The part, as fresh as a read may expect. Costs no round trip in steady state."""
        part = self.part(study_id)
        try:
            self.courier.refresh_for_reading(part.membership)
        except StudyDeleted:
            self._parts.pop(study_id, None)
            raise KeyError(f"No study with study_id {study_id} exists any more.") from None
        return part

    def get_study_id_from_name(self, study_name: str) -> int:
        self._refresh_catalog()
        listing = self.courier.catalog.replica.state.by_name.get(study_name)
        if listing is None:
            raise KeyError(f"No study named {study_name!r} in {self.url}.")
        return listing.study_id

    def get_study_name_from_id(self, study_id: int) -> str:
        return self._listing(study_id).name

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        part = self._parts.get(study_id) or self._read(study_id)
        if part.replica.state.define is None:
            part = self._read(study_id)
        return directions_of(part.replica.state)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return attributes(self._read(study_id).replica.state.user)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return attributes(self._read(study_id).replica.state.system)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self.courier.commit(self.part(study_id).membership, StudySet(user={str(key): to_json(key, value)}))

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self.courier.commit(self.part(study_id).membership, StudySet(system={str(key): to_json(key, value)}))

    def get_all_studies(self) -> list[FrozenStudy]:
        self._refresh_catalog()
        listings = list(self.courier.catalog.replica.state.by_id.values())
        return [frozen for listing in listings if (frozen := self._frozen_study(listing)) is not None]

    def _frozen_study(self, listing: Listing) -> FrozenStudy | None:
        try:
            state = self._read(listing.study_id).replica.state
        except Denied:  # somebody else's study
            return None
        if state.define is None:
            return None
        return FrozenStudy(
            study_name=listing.name,
            direction=None,
            directions=directions_of(state),
            user_attrs=attributes(state.user),
            system_attrs=attributes(state.system),
            study_id=listing.study_id,
        )

    # --- starting trials ---

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        if template_trial is None:
            return self.take(study_id, prefer_waiting=False)
        part = self.part(study_id)
        self._bring_up_to_date(part)
        record = self._import_record(part, template_trial)
        if record.state is not records.TrialState.RUNNING:
            (verdict,) = self.courier.commit(part.membership, record)
            if not verdict.accepted:
                refusal = verdict.refusal or "refused"
                if refusal in _NO_WORK:
                    raise NoWork(_NO_WORK[refusal], refusal=refusal)
                raise InvalidInput(
                    f"a {template_trial.state.name} trial with values {template_trial.values}: {refusal}"
                )
            return self._trial_id(study_id, verdict)
        return self._started(part, self.courier.start(part.membership, record))

    def take(self, study_id: int, *, prefer_waiting: bool = True) -> int:
        """Start the next trial, a WAITING one before a new one: one exchange, without a race. Returns its id.

        Raises:
            NoWork: the study gives out no trial: budget, paused, stopped, failing.
        """
        part = self.part(study_id)
        skip = self.courier.resting(part.membership) if prefer_waiting else ()
        record = TrialCreate(prefer_waiting=prefer_waiting, skip=skip)
        return self._started(part, self.courier.start(part.membership, record))

    def _started(self, part: _Part, verdicts: tuple[Verdict, ...]) -> int:
        (verdict,) = verdicts
        if not verdict.accepted:
            refusal = verdict.refusal or "refused"
            raise NoWork(_NO_WORK.get(refusal, refusal), refusal=refusal)
        assert verdict.number is not None
        self._make_live(part, verdict.number)
        return self._trial_id(part.view.study_id, verdict)

    def _make_live(self, part: _Part, number: int) -> Live:
        """Take this process's own running trial into the view, to be written to."""
        with part.lock:
            state = part.replica.state
            trial = state.trials[number]
            assert trial.owner is not None
            live = Live(part.view.build(trial, state), Lease(trial.owner, trial.epoch), self.courier.uuid)
            if trial.end is None:
                part.view.live[number] = live
            part.view.catch_up(state)
            if trial.owner != self.courier.uuid:
                self.courier.adopted.add(trial.owner)
            return live

    @staticmethod
    def _trial_id(study_id: int, verdict: Verdict) -> int:
        assert verdict.number is not None
        return (study_id << _NUMBER_BITS) + verdict.number

    def _bring_up_to_date(self, part: _Part) -> None:
        if part.replica.state.define is None:
            self.courier.catch_up(part.membership)

    def _import_record(self, part: _Part, template: FrozenTrial) -> TrialCreate:
        known = part.replica.state.dists
        dists = {name: to_record(distribution) for name, distribution in template.distributions.items()}
        values = template.values
        return TrialCreate(
            state=records.TrialState(template.state.value),
            params={checked_parameter(name): _internal(template, name) for name in template.params},
            dists={name: one for name, one in dists.items() if known.get(name) != one},
            reports={checked_step(step): float(value) for step, value in template.intermediate_values.items()},
            user={key: to_json(key, value) for key, value in template.user_attrs.items()},
            system={key: self._system_json(key, value) for key, value in template.system_attrs.items()},
            values=None if values is None else tuple([float(value) for value in values]),
            start=to_microseconds(template.datetime_start),
            end=to_microseconds(template.datetime_complete),
        )

    # --- a running trial ---

    def _locate(self, trial_id: int) -> tuple[_Part, int]:
        study_id, number = trial_id >> _NUMBER_BITS, trial_id & ((1 << _NUMBER_BITS) - 1)
        try:
            part = self.part(study_id)
        except KeyError:
            raise KeyError(f"No trial with trial_id {trial_id} exists.") from None
        if number >= len(part.replica.state.trials):
            self.courier.catch_up(part.membership)
            if number >= len(part.replica.state.trials):
                raise KeyError(f"No trial with trial_id {trial_id} exists.")
        return part, number

    def _writable(self, part: _Part, number: int) -> Live | None:
        """The live trial, ready to be changed; None for a WAITING one, which changes by commits. Under the lock.

        Raises:
            UpdateFinishedTrialError: it is finished.
            NotYourTrial: another peer runs it.
        """
        live = part.view.live.get(number)
        if live is None:
            trial = part.replica.state.trials[number]
            if trial.end is not None:
                raise UpdateFinishedTrialError(f"Trial#{number} has already finished and can not be updated.")
            if trial.state is records.TrialState.WAITING:
                return None
            if not self.courier.is_mine(trial.owner):
                raise NotYourTrial(f"trial {number} is run by another peer, and only that one may change it")
            live = self._make_live(part, number)
        if live.frozen.state.is_finished():
            raise UpdateFinishedTrialError(f"Trial#{number} has already finished and can not be updated.")
        if live.writer != self.courier.uuid:
            self._retell(part, number, live)
        live.shown = None
        return live

    def _retell(self, part: _Part, number: int, live: Live) -> None:
        """Queue all that this trial was ever told: what of it has left is not known here, and twice does no harm."""
        live.writer = self.courier.uuid
        if live.lease.owner != self.courier.uuid:
            self.courier.adopted.add(live.lease.owner)
        frozen = live.frozen
        draft = part.replica.draft(number, live.lease.epoch, live.lease.owner)
        for name, distribution in frozen.distributions.items():
            draft.params[name] = _internal(frozen, name)
            self._draft_distribution(part, draft, name, to_record(distribution))
        draft.reports.update(frozen.intermediate_values)
        draft.user.update({key: to_json(key, value) for key, value in frozen.user_attrs.items()})
        draft.system.update({key: to_json(key, value) for key, value in frozen.system_attrs.items()})

    @staticmethod
    def _draft_distribution(part: _Part, draft: Draft, name: str, record: records.Distribution) -> None:
        if part.replica.state.dists.get(name) != record:
            draft.dists[name] = record

    def _draft(self, part: _Part, number: int, live: Live) -> Draft:
        self.courier.note_draft(part.membership)
        return part.replica.draft(number, live.lease.epoch, live.lease.owner)

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        part, number = self._locate(trial_id)
        record, param_name = to_record(distribution), checked_parameter(param_name)
        value = float(param_value_internal)
        with part.lock:
            live = self._writable(part, number)
            known = part.replica.state.dists.get(param_name)
            if known != record:
                self._check_compatible(part, param_name, distribution)
            if live is not None:
                live.frozen._params[param_name] = external(distribution, value)
                live.frozen._distributions[param_name] = distribution
                draft = self._draft(part, number, live)
                draft.params[str(param_name)] = value
                if known != record:
                    draft.dists[str(param_name)] = record
                return
        self._set_waiting(
            part, number, params={str(param_name): value}, dists={} if known == record else {str(param_name): record}
        )

    @staticmethod
    def _check_compatible(part: _Part, name: str, distribution: BaseDistribution) -> None:
        part.view.catch_up(part.replica.state)
        first = part.view.dists.setdefault(name, distribution)
        if first is not distribution:
            check_distribution_compatibility(first, distribution)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        part, number = self._locate(trial_id)
        value, step = float(intermediate_value), checked_step(step)
        with part.lock:
            live = self._writable(part, number)
            if live is not None:
                live.frozen.intermediate_values[step] = value
                self._draft(part, number, live).reports[step] = value
                return
        self._set_waiting(part, number, reports={step: value})

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        part, number = self._locate(trial_id)
        text = to_json(key, value)
        with part.lock:
            live = self._writable(part, number)
            if live is not None:
                live.frozen._user_attrs[key] = copy.deepcopy(value)
                self._draft(part, number, live).user[str(key)] = text
                return
        self._set_waiting(part, number, user={str(key): text})

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        part, number = self._locate(trial_id)
        text = self._system_json(key, value)
        with part.lock:
            live = self._writable(part, number)
            if live is not None:
                live.frozen._system_attrs[key] = copy.deepcopy(value)
                self._draft(part, number, live).system[str(key)] = text
                return
        self._set_waiting(part, number, system={str(key): text})

    def _system_json(self, key: str, value: object) -> str:
        if key.startswith("cma:") and not self._options.allow_pickles:
            raise ConfigurationError(
                "Optuna's CMA-ES sampler passes pickles between peers, which can run code. Among people you trust, "
                "allow it with open_storage(…, allow_pickles=True); else use TPESampler or GPSampler."
            )
        return to_json(key, value)

    def _set_waiting(self, part: _Part, number: int, **content: Any) -> None:
        epoch = part.replica.state.trials[number].epoch
        (verdict,) = self.courier.commit(part.membership, TrialSet(number, epoch, **content))
        if not verdict.accepted:
            self._refused(number, verdict)

    # --- ending trials ---

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        part, number = self._locate(trial_id)
        told = None if values is None else tuple([float(value) for value in values])
        if state == TrialState.RUNNING:
            return self._claim(part, number)
        if state == TrialState.WAITING:
            return self.release(trial_id)
        if state == TrialState.COMPLETE and (told is None or any(map(math.isnan, told))):
            raise InvalidInput(f"a COMPLETE trial needs values that are numbers, got {values}")
        self.finish(trial_id, state, told, self._mode.reason)
        return True

    def _claim(self, part: _Part, number: int) -> bool:
        with part.lock:
            trial = part.replica.state.trials[number]
            if trial.end is not None:
                raise UpdateFinishedTrialError(f"Trial#{number} has already finished and can not be updated.")
            if trial.state is records.TrialState.RUNNING:
                return False
        (verdict,) = verdicts = self.courier.start(part.membership, TrialClaim(number))
        if verdict.refusal == "finished":
            raise UpdateFinishedTrialError(f"Trial#{number} has already finished and can not be updated.")
        if verdict.refusal == "not waiting":
            return False
        self._started(part, verdicts)
        return True

    def finish(
        self, trial_id: int, state: TrialState, values: tuple[float, ...] | None, reason: str | None = None
    ) -> None:
        """End a trial of this process, or a WAITING one: durable when this returns, unless `telling(defer=True)`.

        Raises:
            LeaseLost: somebody took the trial over; a complete result was kept as a trial of its own. (Only a
                warning in the log when Optuna itself tells, so that its `optimize` goes on.)
        """
        part, number = self._locate(trial_id)
        to = records.TrialState(state.value)
        with part.lock:
            live = self._writable(part, number)
            if live is None:
                epoch = part.replica.state.trials[number].epoch
                ticket = self.courier.put(part.membership, TrialFinish(number, epoch, to, values, reason))
            else:
                ticket = self._put_finish(part, number, live, to, values, reason)
                live.frozen.state = state
                live.frozen._values = live.frozen._values if values is None else list(values)
        if self._mode.defer:
            part.deferred.append((number, ticket))
            return
        try:
            self.courier.settle(part.membership, ticket)
        except StoreUnreachable as error:
            self._spool(part, number, error)
            return
        self._check_finish(part, number, ticket)

    def _spool(self, part: _Part, number: int, error: StoreUnreachable) -> None:
        """Keep the end of a trial on disk when the store is out of reach; raise if it cannot even go there."""
        path = self.courier.keep_on_disk(part.membership)
        if path is None:
            raise error
        _log.warning(
            "trial %d: %s It is kept in %s and sent at the next contact, or with: hopaas-p2p spool send",
            number,
            error,
            path,
        )

    def _put_finish(
        self,
        part: _Part,
        number: int,
        live: Live,
        to: records.TrialState,
        values: tuple[float, ...] | None,
        reason: str | None,
    ) -> Ticket:
        """Queue the end of a trial, with all that still has to be said about it, in one commit."""
        owner, epoch = live.lease
        trial = part.replica.state.trials[number]
        if (trial.owner, trial.epoch) != live.lease:
            self._retell(part, number, live)  # what was sent since the lease was lost was refused
        return self._put_last(part, TrialFinish(number, epoch, to, values, reason), owner=owner)

    def _put_last(self, part: _Part, record: TrialFinish | TrialRelease | TrialCheckpoint, *, owner: str) -> Ticket:
        """Queue this behind all that still has to be said about its trial: in the same commit, if that is not a lot."""
        draft = part.replica.drafts.pop(record.number, None)
        words = draft.records() if draft is not None else []
        for much in words[:-1]:
            self.courier.put(part.membership, much, owner=owner)
        return self.courier.put(part.membership, *words[-1:], record, owner=owner)

    def _check_finish(self, part: _Part, number: int, ticket: Ticket) -> None:
        assert ticket.verdicts is not None
        verdict = ticket.verdicts[-1]
        with part.lock:
            part.view.live.pop(number, None)
            part.replica.state.changed.add(number)
        if not verdict.accepted:
            try:
                self._refused(number, verdict)
            except LeaseLost as lost:
                if self._mode.strict:
                    raise
                _log.warning("%s", lost)

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

    def release(self, trial_id: int, *, reason: str | None = None) -> bool:
        """Give a running trial of this process back: WAITING again, with the same parameters."""
        part, number = self._locate(trial_id)
        with part.lock:
            live = self._writable(part, number)
            if live is None:
                return False
            release = TrialRelease(number, live.lease.epoch, reason=reason)
            ticket = self._put_last(part, release, owner=live.lease.owner)
            part.view.live.pop(number, None)
            part.replica.state.changed.add(number)
        return self.courier.settle(part.membership, ticket)[-1].accepted

    @contextlib.contextmanager
    def telling(self, *, defer: bool = False, strict: bool = False) -> Iterator[None]:
        """How trials end in this block, on this thread.

        Args:
            defer: queue the end; it leaves with the next exchange, and `settle_deferred` tells its fate.
            strict: raise when the lease is lost, where Optuna's own `optimize` only gets a warning in the log.
        """
        self._mode.defer, self._mode.strict = defer, strict
        try:
            yield
        finally:
            self._mode.__dict__.clear()

    @contextlib.contextmanager
    def because(self, reason: str | None) -> Iterator[None]:
        """Trials that end in this block, on this thread, carry this reason."""
        self._mode.reason = reason
        try:
            yield
        finally:
            self._mode.reason = None

    def settle_deferred(self, study_id: int) -> list[tuple[int, Verdict]]:
        """Wait until every deferred end is durable; the trials and verdicts of those that were refused."""
        part = self.part(study_id)
        refused = []
        with part.lock:
            deferred, part.deferred = part.deferred, []
        for number, ticket in deferred:
            try:
                verdict = self.courier.settle(part.membership, ticket)[-1]
            except StoreUnreachable as error:
                self._spool(part, number, error)
                continue
            with part.lock:
                part.view.live.pop(number, None)
                part.replica.state.changed.add(number)
            if not verdict.accepted:
                refused.append((number, verdict))
        return refused

    def lease_held(self, trial_id: int) -> bool:
        """Whether the log, as far as it was read, says that this process runs the trial."""
        part, number = self._locate(trial_id)
        with part.lock:
            trial = part.replica.state.trials[number]
            live = part.view.live.get(number)
            if live is None:
                return trial.end is None and self.courier.is_mine(trial.owner)
            return (trial.owner, trial.epoch) == live.lease

    def lease_valid(self, trial_id: int) -> bool:
        """Whether this process may still trust that nobody takes the trial over."""
        part, number = self._locate(trial_id)
        owner = part.replica.state.trials[number].owner
        return owner is not None and self.lease_held(trial_id) and self.courier.lease_valid(part.membership, owner)

    def acknowledge_stop(self, trial_id: int) -> None:
        """Let the others see that the request to stop has arrived; leaves with the next exchange."""
        part, number = self._locate(trial_id)
        with part.lock:
            live = part.view.live.get(number)
            if live is not None and not part.replica.state.trials[number].stopping:
                self._draft(part, number, live).stopping = True

    def checkpoint_key(self, trial_id: int, step: int, token: str) -> str:
        """Where the artifact of a new checkpoint goes."""
        part, number = self._locate(trial_id)
        return f"{part.membership.uuid}/checkpoint/{number}-{step}-{token}"

    def checkpoints(self, trial_id: int) -> tuple[records.Checkpoint, ...]:
        """Where the trial may be resumed, the newest last."""
        part, number = self._locate(trial_id)
        return part.replica.state.trials[number].checkpoints

    def tell_checkpoint(self, trial_id: int, checkpoint: records.Checkpoint) -> tuple[records.Checkpoint, ...]:
        """Say that a checkpoint is stored; returns those that it replaces. Raises LeaseLost."""
        part, number = self._locate(trial_id)
        with part.lock:
            live = self._writable(part, number)
            if live is None:
                raise NotYourTrial(f"trial {number} is not running")
            before = part.replica.state.trials[number].checkpoints
            owner, epoch = live.lease
            ticket = self._put_last(part, TrialCheckpoint(number, epoch, checkpoint), owner=owner)
        verdict = self.courier.settle(part.membership, ticket)[-1]
        if not verdict.accepted:
            self._refused(number, verdict)
        kept = {one.key for one in part.replica.state.trials[number].checkpoints}
        return tuple([one for one in before if one.key not in kept])

    def attempt(self, trial_id: int) -> int:
        """Which try of its parameters this trial is, from 1."""
        part, number = self._locate(trial_id)
        return part.replica.state.trials[number].attempt

    def check_writable(self, trial_id: int) -> None:
        """Raises NotYourTrial or UpdateFinishedTrialError if this process may not end the trial."""
        part, number = self._locate(trial_id)
        with part.lock:
            self._writable(part, number)

    def someone_may_be_dead(self, study_id: int) -> bool:
        """Whether the owner of some running trial was not seen beating lately."""
        return self.courier.someone_may_be_dead(self.part(study_id).membership)

    def say(self, study_id: int, record: records.StudyRecord) -> Verdict:
        """Write one record and wait for its verdict.

        Raises:
            Denied: the store's grants do not allow it.
            InvalidInput: it was refused, for example a stop of a trial that ended meanwhile.
        """
        (verdict,) = self.courier.commit(self.part(study_id).membership, record)
        if verdict.refusal == "role":
            raise Denied
        if not verdict.accepted:
            raise InvalidInput(REFUSALS.get(verdict.refusal or "", verdict.refusal))
        return verdict

    def state(self, study_id: int) -> State:
        """The replica's State, as fresh as a read may expect."""
        return self._read(study_id).replica.state

    def stop_requested(self, trial_id: int) -> str | None:
        """Why somebody asked this trial to end, if somebody did. Reads the replica."""
        part, number = self._locate(trial_id)
        self._read(part.view.study_id)
        return part.replica.state.trials[number].stop

    # --- reading trials ---

    def get_trial(self, trial_id: int) -> FrozenTrial:
        part, number = self._locate(trial_id)
        with part.lock:
            if number in part.view.live:
                return part.view.trial(number)
        self._read(part.view.study_id)
        with part.lock:
            part.view.catch_up(part.replica.state)
            return part.view.trial(number)

    def get_trial_number_from_id(self, trial_id: int) -> int:
        return self._locate(trial_id)[1]

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        part = self._read(study_id)
        if not 0 <= trial_number < len(part.replica.state.trials):
            raise KeyError(f"No trial with number {trial_number} in the study with study_id {study_id}.")
        return (study_id << _NUMBER_BITS) + trial_number

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        part = self._read(study_id)
        with part.lock:
            part.view.catch_up(part.replica.state)
            found = part.view.trials(states)
        return copy.deepcopy(found) if deepcopy else found

    def get_n_trials(self, study_id: int, state: tuple[TrialState, ...] | TrialState | None = None) -> int:
        if isinstance(state, TrialState):
            state = (state,)
        part = self._read(study_id)
        with part.lock:
            if state is None:
                return len(part.replica.state.trials)
            if part.deferred:  # told here, not in the log yet
                part.view.catch_up(part.replica.state)
                return len(part.view.trials(state))
            return sum(part.replica.state.counts[one.value] for one in set(state))

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        part = self._read(study_id)
        with part.lock:
            if len(directions_of(part.replica.state)) > 1:
                raise RuntimeError("Best trial can be obtained only for single-objective optimization.")
            part.view.catch_up(part.replica.state)
            best = part.view.best()
        if best is None:
            raise ValueError("No trials are completed yet.")
        return best


def _internal(frozen: FrozenTrial, name: str) -> float:
    return float(frozen.distributions[name].to_internal_repr(frozen.params[name]))


__all__ = ["Storage", "copy_of", "open_storage"]
