"""Optuna's storage on a peer: a drop-in for `optuna.create_study(storage=…)`.

Reads come from memory. `create_new_trial` and the end of a trial wait for one exchange with the store; everything set
on a running trial in between is sent with the next one. Only the process that runs a trial may change it (or one to
which the storage or trial was passed, by fork or pickle).
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import secrets
import weakref
from collections.abc import Container, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Literal

import msgspec
from optuna.distributions import BaseDistribution
from optuna.exceptions import DuplicatedStudyError
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hopaas_p2p.core import records
from hopaas_p2p.core.catalog import Catalog, Listing, checked_name
from hopaas_p2p.core.leases import LONGEST_PEER_TTL
from hopaas_p2p.core.names import first_id, study_and_number
from hopaas_p2p.core.records import Policy, StudyDefine, StudyRegistered, StudyRemoved, StudySet, TrialCreate
from hopaas_p2p.core.state import State
from hopaas_p2p.core.validity import LONGEST_TTL, compatible, possible_definition, possible_system
from hopaas_p2p.errors import (
    ConfigurationError,
    Denied,
    HopaasError,
    InvalidInput,
    LeaseLost,
    NoSuchStudy,
    NoSuchTrial,
    StoreUnreachable,
)
from hopaas_p2p.open import no_such_study
from hopaas_p2p.peer.peer import Peer
from hopaas_p2p.runtime import credentials, process
from hopaas_p2p.runtime.arguments import seconds, whole
from hopaas_p2p.runtime.logs import LOG
from hopaas_p2p.runtime.process import new_uuid
from hopaas_p2p.spec.space import spec
from hopaas_p2p.storage import optuna_internals as internals
from hopaas_p2p.storage.handle import StudyHandle
from hopaas_p2p.storage.options import StorageOptions, found_store, open_peer
from hopaas_p2p.storage.reader import StudyReader
from hopaas_p2p.storage.refusals import owner_only
from hopaas_p2p.translate import attributes, checked_step, created, directions_of, to_json

_SHORTEST_TTL: Final = 4
"""In units of `Store.freshness`. Heartbeats may be seen late by one such unit plus an eighth of a ttl."""
_NO_NAME: Final = "no-name-"  # Optuna's prefix for studies without a name
_COMPLETE: Final = TrialState.COMPLETE
_WAITING: Final = (TrialState.WAITING,)
_AT_ONCE: Final = 8  # studies that are read at once


def open_storage(
    url: str | os.PathLike[str],
    *,
    lease_ttl: float = 120.0,
    attempts: int = 3,
    linger: float | None = None,
    patience: float | None = None,
    store_wait: float | None = None,
    allow_pickles: bool = False,
    create: bool = True,
    acts_for: Iterable[str] = (),
    peer_ttl: float | None = None,
    on_behalf_of: str = "",
    operator: bool = False,
    named: bool = True,
) -> Storage:
    """A storage for `optuna.create_study(storage=…)`, shared by every process that opens the same URL.

    Args:
        url: a directory, or a URL; see `hopaas_p2p.open.open_store`.
        lease_ttl: seconds of silence after which a peer's trials are taken over, in studies created through this
            storage. A killed peer's trial is queued again within twice that.
        attempts: how often one set of parameters may be started, in studies created through this storage.
        linger: seconds for which reports are collected before they are sent. By default 1 s, in a bucket 5 s, and
            longer the more peers write to the study. `flush` sends them at once.
        patience: seconds for which a call tries an unreachable store before it raises `StoreUnreachable`; by default
            60. The end of a trial is then kept on disk, and sent at the next contact.
        store_wait: seconds for which a call that asks for a trial waits for an unreachable store before it raises
            `StoreUnreachable`. By default as long as it takes, with a warning once per minute, or as long as `patience`
            if that is given. Ctrl-C ends the wait, and nothing is lost.
        allow_pickles: let Optuna's CMA-ES sampler pass its pickles between peers. Use this only among people you trust:
            everyone with write access to the study can then run code in every peer that uses that sampler.
        create: whether a directory that is not a store yet becomes one.
        acts_for: uuids of peers whose running trials this process continues, as a shell ticket does. The process then
            writes on their behalf, and does not introduce itself.
        peer_ttl: seconds of silence that others allow this peer, if longer than the study's ttl; at most 30 days.
        on_behalf_of: the person for whom a service acts, recorded in the log beside the service's own login. The
            service claims this; the store does not vouch for it.
        operator: let this process end and annotate trials that other peers run, like a person who ends a trial in a
            dashboard. Each end is in the log with the operator's name, and the owner's own result, if one arrives, is
            kept as a late one. For owners of a study; in a directory, for all who may write there.
        named: whether you chose this URL, so that its host may get your credentials; False if somebody else did.

    Raises:
        ConfigurationError: the URL or the store cannot be used; the message says what to change.
        StoreAway: a directory store that this machine has seen before is still not mounted after `store_wait`.
        InvalidInput: an argument that is not allowed, such as `lease_ttl=0`.

    """
    if named:
        credentials.named(str(url))
    patience, store_wait = _wait("patience", patience), _wait("store_wait", store_wait)
    acts_for = (acts_for,) if isinstance(acts_for, str) else tuple(acts_for)
    options = StorageOptions(
        url=found_store(url, create=create, within=store_wait if store_wait is not None else patience).url,
        policy=Policy(ttl=seconds("lease_ttl", lease_ttl, most=LONGEST_TTL), attempts=whole("attempts", attempts)),
        linger=_wait("linger", linger),
        patience=patience,
        store_wait=store_wait,
        allow_pickles=allow_pickles,
        peer_ttl=None if peer_ttl is None else seconds("peer_ttl", peer_ttl, most=LONGEST_PEER_TTL),
        on_behalf_of=str(on_behalf_of),
        operator=operator,
        named=named,
    )
    peer = open_peer(options, frozenset(acts_for))
    peer.visits = bool(acts_for)
    return Storage(options, peer)


def _wait(what: str, value: float | None) -> float | None:
    return None if value is None else seconds(what, value, least=0.0)


_NO_PICKLES: Final = (
    "Optuna's CMA-ES sampler passes pickles, which can run code, between peers. Among people you trust, allow it with "
    "open_storage(…, allow_pickles=True); otherwise use TPESampler or GPSampler."
)
_unpickled: Final[weakref.WeakValueDictionary[tuple[int, str], Peer]] = weakref.WeakValueDictionary()
"""(process, peer with which a storage was pickled) -> its peer here. All copies unpickled in a process share one."""


def _home(state: dict[str, Any]) -> Peer | None:
    """The peer of this process from which a storage was sent, if a child sends it back pickled; None if there is none.

    There may be several, since Dask's scheduler, for example, has a copy in this process. Any of them may end the
    trials that the child has started.
    """
    peers = [peer for peer in process.running(state["acts_for"]) if isinstance(peer, Peer) and not peer.closed]
    home = [peer for peer in peers if peer.store.url == state["options"].url]
    for peer in home:
        peer.act_for(state["acts_for"])
    return home[0] if home else None


class Storage(BaseStorage):
    """See `open_storage`. Thread-safe; a fork or an unpickled copy is a new peer that may act for this one's trials."""

    def __init__(self, options: StorageOptions, peer: Peer, same_as: Storage | None = None) -> None:
        self.peer = peer
        self.options = options
        """How it was opened: picklable, without secrets."""
        self._same_as = same_as
        """The storage whose handles of studies this one shares, for another person or an operator."""
        self._person: str | None = None if same_as is None else same_as._person
        self._handles: dict[int, StudyHandle] = {}
        self._located: dict[int, tuple[StudyHandle, int]] = {}
        """Trial id -> what `locate` returns for it, for the trial located last."""
        self.suggestions: dict[int, tuple[FrozenTrial, TrialCreate]] = {}
        """Configurations that a sampler draws before there are trials for them; it sees them as running trials.

        Their ids are negative, unlike those of trials in the log. Their number is the one that the trial would get if
        no other peer asked meanwhile. What is set on one is sent in the record that starts the trial.
        """
        peer.users.add(self)

    def __repr__(self) -> str:
        return f"hopaas_p2p.open_storage({self.url!r})"

    def __getstate__(self) -> dict[str, Any]:
        with contextlib.suppress(HopaasError):  # the copy sends what it touches again
            self.peer.flush()
        self.peer.copies_made += 1
        return {"options": self.options, "acts_for": self.peer.mine, "origin": self.peer.uuid, "pid": os.getpid()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        options = state["options"]
        if options.url.startswith("memory:") and state["pid"] != os.getpid():
            raise ConfigurationError(f"{options.url} exists in one process only; give others a directory or a URL")
        key = (os.getpid(), state["origin"])
        peer = _unpickled.get(key) if state["pid"] == os.getpid() else _home(state) or _unpickled.get(key)
        if peer is None or peer.closed:
            # wait for a missing store: an error here would make `multiprocessing.Pool` wait forever for the task
            if options.named:
                credentials.named(options.url)
            peer = _unpickled[key] = open_peer(options, state["acts_for"], was_there=True)
        self.__init__(options, peer)  # type: ignore[misc]  # an unpickled storage is a new one

    @property
    def url(self) -> str:
        """The store's URL, safe to show."""
        return self.peer.store.url

    # --- Optuna's BaseStorage, in its order: studies ---

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """Implements Optuna's method, in two exchanges. Raises InvalidInput for a name that no study may have."""
        names = tuple([direction.name.lower() for direction in directions])
        name = _NO_NAME + secrets.token_hex(16) if study_name is None else study_name
        return self.define_study(StudyDefine(name, names, self.options.policy))

    def delete_study(self, study_id: int) -> None:
        """Implements Optuna's method. Other peers learn of it at their next call; ids are not used again.

        Raises:
            Denied: only an owner of the study may delete it.
            NoSuchStudy: there is no such study, or another peer has just deleted it.
            StoreUnreachable: the store did not answer in time.

        """
        listing = self._listing(study_id)
        verdict = self.peer.commit_to_catalog(StudyRemoved(listing.uuid))
        if verdict.refusal == "role":
            raise Denied(owner_only(listing.name))
        if not verdict.accepted:
            raise NoSuchStudy(f"No study with study_id {study_id} exists any more: it was deleted.")
        self._destroy(listing.uuid)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Implements Optuna's method. Durable when it returns; waits `store_wait` for the store.

        Raises:
            InvalidInput: the value is not JSON, or has more than 1 MiB.
            Denied: the store's grants do not allow it.
            StoreUnreachable: the store did not answer for that long.

        """
        self.handle(study_id).say(StudySet(user={str(key): to_json(key, value)}), within=self.peer.store_wait)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Implements Optuna's method like `set_study_user_attr`."""
        text = self._system_json(str(key), value, directions=len(self.get_study_directions(study_id)))
        self.handle(study_id).say(StudySet(system={str(key): text}), within=self.peer.store_wait)

    def get_study_id_from_name(self, study_name: str) -> int:
        """Implements Optuna's method."""
        found = self.find_study(study_name)
        if found is None:
            raise no_such_study(study_name, self.url, [one.name for one in self.listings()])
        return found

    def find_study(self, name: str) -> int | None:
        """The id of the study of this name; None if there is none."""
        self.peer.doubt_list()  # another study may have the name by now
        listing = self._catalog().by_name.get(name)
        return None if listing is None else listing.study_id

    def get_study_name_from_id(self, study_id: int) -> str:
        """Implements Optuna's method."""
        return self._listing(study_id).name

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Implements Optuna's method."""
        handle = self.handle(study_id)
        return directions_of(handle.state if handle.state.define is not None else self.state(study_id), handle.name)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Implements Optuna's method. Values from other writers that are not JSON are returned unchanged."""
        return attributes(self.state(study_id).user)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Implements Optuna's method like `get_study_user_attrs`."""
        return attributes(self.state(study_id).system)

    def get_all_studies(self) -> list[internals.FrozenStudy]:
        """Implements Optuna's method, without studies that this user may not read."""
        return self.frozen_studies(self.listings())

    def listings(self) -> list[Listing]:
        """The studies that this user may see, the oldest first. Reads only the catalog."""
        found, shared = list(self._catalog().by_id.values()), self.peer.store.shared()
        return found if shared is None else [one for one in found if one.uuid in shared]

    def frozen_studies(self, listings: Sequence[Listing]) -> list[internals.FrozenStudy]:
        """These studies in Optuna's form, except those that cannot be read. Opens each of them."""
        if self.peer.catalog.rate_limited is None or len(listings) < 2:
            found = [self._frozen_study(listing) for listing in listings]
        else:  # a bucket answers many requests at once, but each takes a while
            with ThreadPoolExecutor(_AT_ONCE) as threads:
                found = list(threads.map(self._frozen_study, listings))
        return [frozen for frozen in found if frozen is not None]

    # --- Optuna's BaseStorage: trials ---

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Implements Optuna's method, in one exchange. Waits up to `store_wait` for the store; see `open_storage`.

        Raises:
            NoWork: the study starts no trial, because its budget is used up, or it is paused, stopped or failing.
            StoreUnreachable: the store did not answer for that long.
            InvalidInput: the template is not a possible trial of this study.

        """
        handle = self.handle(study_id)
        if template_trial is None:
            handle.next_or_raise()
            record = TrialCreate()
        else:
            if handle.state.define is None:
                self.peer.catch_up(handle.log)
            record = self._import_record(handle.state, template_trial)
        if record.state is not records.TrialState.RUNNING:
            return handle.first_id + handle.bring(record)
        begun = handle.begin(record)
        assert begun is not None
        return handle.first_id + begun.number

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Implements Optuna's method. Sent with the next exchange; NotYourTrial for another peer's trial."""
        suggestion = self.suggestions.get(trial_id)
        if suggestion is not None:
            suggestion[1].params[param_name] = float(param_value_internal)
            return
        handle, number = self._located.get(trial_id) or self.locate(trial_id)
        handle.set_param(number, param_name, float(param_value_internal), distribution)

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        """Implements Optuna's method."""
        return first_id(study_id) + self.handle(study_id).existing(trial_number).number

    def get_trial_number_from_id(self, trial_id: int) -> int:
        """Implements Optuna's method."""
        return self.locate(trial_id)[1]

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Implements Optuna's method, in one exchange. WAITING releases a trial. A lost lease is logged as a warning.

        Raises:
            NotYourTrial: another peer runs the trial.
            UpdateFinishedTrialError: the trial is already finished.
            InvalidInput: COMPLETE without one number per direction.
            StoreUnreachable: the store did not answer, and the end could not be kept on disk.

        """
        told = None if values is None else tuple(map(float, values))
        if state is _COMPLETE and (told is None or any(map(math.isnan, told))):
            raise InvalidInput(f"a COMPLETE trial needs one number per direction, got {values}")
        handle, number = self._located.get(trial_id) or self.locate(trial_id)
        if state is TrialState.RUNNING:
            return handle.claim(number)
        if state is TrialState.WAITING:
            return handle.release(number)
        try:
            handle.finish(number, state, told)
        except LeaseLost as lost:
            LOG.warning("%s", lost)
        return True

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Implements Optuna's method. Sent with the next exchange; NotYourTrial for another peer's trial."""
        handle, number = self._located.get(trial_id) or self.locate(trial_id)
        handle.set_report(number, checked_step(step), float(intermediate_value))

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Implements Optuna's method. Sent with the next exchange; InvalidInput if not JSON, or more than 1 MiB."""
        self._set_attribute(trial_id, "user", key, value, to_json(key, value))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Implements Optuna's method like `set_trial_user_attr`. ConfigurationError for pickles, unless allowed."""
        self._set_attribute(trial_id, "system", key, value, self._system_json(str(key), value))

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Implements Optuna's method. A finished trial is shared with all readers."""
        suggestion = self.suggestions.get(trial_id)
        if suggestion is not None:
            return suggestion[0]
        handle, number = self.locate(trial_id)
        return handle.trial(number, now=True)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Implements Optuna's method. The list is new; without `deepcopy`, its trials are shared with all readers."""
        handle = self.handle(study_id)
        state, view = handle.refresh(), handle.view
        if states == _WAITING and not state.waiting:  # Optuna's `ask` calls this each time
            return []
        with handle.lock:
            view.catch_up(handle.state)
            found = view.trials(states)
        return copy.deepcopy(found) if deepcopy else found

    def get_n_trials(self, study_id: int, state: tuple[TrialState, ...] | TrialState | None = None) -> int:
        """Implements Optuna's method."""
        states = (state,) if isinstance(state, TrialState) else state
        handle = self.handle(study_id)
        handle.refresh()
        with handle.lock:
            if states is None:
                return len(handle.state.trials)
            return sum(handle.state.counts[one.value] for one in set(states))

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """Implements Optuna's method."""
        handle = self.handle(study_id)
        handle.refresh()
        with handle.lock:
            if len(directions_of(handle.state, handle.name)) > 1:
                raise RuntimeError("Best trial can be obtained only for single-objective optimization.")
            handle.view.catch_up(handle.state)
            best, complete = handle.view.best(), handle.state.counts[records.TrialState.COMPLETE]
        if best is None:  # in Optuna's words
            raise ValueError(f"No {'feasible ' if complete else ''}trials are completed yet.")
        return best

    def remove_session(self) -> None:
        """Send reports and attributes to the store. Optuna calls this at the end of `optimize`."""
        try:
            self.flush()
        except StoreUnreachable:
            pass  # stays queued
        except HopaasError as error:  # perhaps in another study; calls on this one report their own errors
            LOG.warning("%s", error)

    # --- beyond Optuna: the storage ---

    def flush(self) -> None:
        """Send queued records. Blocks until the store has them, or raises `StoreUnreachable`."""
        self.peer.flush()

    def close(self) -> None:
        """Send queued records and close the store. Gives up on a store that is silent for 5 s."""
        self.peer.users.discard(self)
        if self.peer.users:  # unpickled copies in this process share it
            self.remove_session()
        else:
            self.peer.close()

    def on_behalf_of(self, person: str) -> Storage:
        """This storage, with the same replicas, for a service that writes on behalf of a person. The log names both.

        The service vouches for the name; the store does not. Writes go through this process's peer, so they appear at
        once in every replica that the process shows. Close it like any other storage.
        """
        other = Storage(self.options._replace(on_behalf_of=person), self.peer, self)
        other._person = new_uuid()
        return other

    def as_operator(self) -> Storage:
        """This storage, for a person who may end and annotate other peers' trials; see `open_storage`."""
        return Storage(self.options._replace(operator=True), self.peer, self)

    def study_names(self) -> list[str]:
        """The names that are taken, including those of studies that this user may not see. Reads only the catalog."""
        return list(self._catalog().by_name)

    # --- beyond Optuna: studies ---

    def define_study(self, define: StudyDefine, settings: StudySet | None = None) -> int:
        """Create a study with policy and search space, and with these attributes; returns its id.

        Raises:
            DuplicatedStudyError: the name is taken.
            InvalidInput: the name, the definition or an attribute is not valid.
            StoreUnreachable: the store did not answer within `patience`.

        """
        define = msgspec.structs.replace(define, name=checked_name(define.name))
        if not possible_definition(define):
            raise InvalidInput(f"this definition has an invalid value: {define}")
        taken = DuplicatedStudyError(f"A study named {define.name!r} already exists in {self.url}.")
        if define.name in self._catalog().by_name:
            raise taken
        shortest = _SHORTEST_TTL * self.peer.store.freshness
        if define.policy.ttl < shortest:
            LOG.warning(
                "lease_ttl is %g s. Heartbeats in this store may be seen %g s late. For a dead peer's trial to be "
                "queued again within twice lease_ttl, use at least lease_ttl=%g",
                define.policy.ttl,
                self.peer.store.freshness,
                shortest,
            )
        uuid = secrets.token_hex(16)
        log = self.peer.log(uuid)
        said = (define,) if settings is None else (define, settings)
        if not all(verdict.accepted for verdict in self.peer.await_commit(log, log.put(self.peer.uuid, *said))):
            self._destroy(uuid)
            raise InvalidInput(f"this definition has an invalid value: {define}, {settings}")
        verdict = self.peer.commit_to_catalog(StudyRegistered(uuid, define.name))
        if not verdict.accepted or verdict.number is None:
            self._destroy(uuid)
            raise taken
        return verdict.number

    def state(self, study_id: int) -> State:
        """The replica's State, as fresh as reads promise."""
        return self.handle(study_id).refresh()

    def handle(self, study_id: int) -> StudyHandle:
        """This process's handle of a study. Raises NoSuchStudy, a KeyError, if no study has that id."""
        handle = self._handles.get(study_id)
        if handle is not None and not handle.log.session.deleted:
            return handle
        if handle is not None:
            self.peer.doubt_list()
        if self._same_as is not None:
            handle = self._same_as.handle(study_id).for_(self.options, self._person)
        else:
            listing = self._listing(study_id)
            handle = StudyHandle(self.peer, listing.uuid, study_id, listing.name, self.options)
        return self._handles.setdefault(study_id, handle)

    def reader(self, study_id: int) -> StudyReader:
        """A reader that returns the changes in this study at each call; our samplers read trials with it."""
        return StudyReader(self.handle(study_id))

    # --- beyond Optuna: trials ---

    def locate(self, trial_id: int) -> tuple[StudyHandle, int]:
        """The handle of this trial's study, and the trial's number. Raises NoSuchTrial, a KeyError."""
        found = self._located.get(trial_id)
        if found is None or found[0].log.session.deleted:
            study_id, number = study_and_number(trial_id)
            try:
                handle = self.handle(study_id)
            except KeyError:
                raise NoSuchTrial(f"No trial with trial_id {trial_id} exists: its study was deleted.") from None
            # a trial of this process needs no state, which lacks trials while the log is read again
            if number not in handle.view.owned and number >= len(handle.state.trials):
                self.peer.catch_up(handle.log)
                if number >= len(handle.state.trials):
                    raise NoSuchTrial(f"No trial with trial_id {trial_id} exists.")
            found = handle, number
            self._located = {trial_id: found}
        return found

    def adopt(self, trial_id: int, epoch: int) -> None:
        """Send beats for the owner of a trial that was passed to this process, if its log is read here.

        First reads the log until it has the trial's lease of this `epoch`.
        """
        study_id, number = study_and_number(trial_id)
        listing = self.peer.catalog.state.by_id.get(study_id)
        log = None if listing is None else self.peer.logs.get(listing.uuid)
        if listing is None or log is None:
            return
        if number >= len(log.state.trials) or log.state.trials[number].epoch < epoch:
            self.peer.send_if_possible(log, number)  # otherwise this process would report under an earlier lease
            if number >= len(log.state.trials):
                return
        owner = log.state.trials[number].owner
        if owner is not None and owner != self.peer.uuid and self.peer.is_mine(owner):
            self.peer.adopt(owner, listing.uuid, number)

    # --- attributes, listings and imports ---

    def _set_attribute(
        self, trial_id: int, kind: Literal["user", "system"], key: str, value: object, text: str
    ) -> None:
        if trial_id not in self.suggestions:
            handle, number = self.locate(trial_id)
            handle.set_attr(number, kind, key, value, text)
            return
        frozen, record = self.suggestions[trial_id]
        (frozen.user_attrs if kind == "user" else frozen.system_attrs)[str(key)] = value
        if kind == "user" or not internals.announces_parameters(key):  # the record has the parameters
            (record.user if kind == "user" else record.system)[str(key)] = text

    def _catalog(self) -> Catalog:
        self.peer.refresh_for_reading(self.peer.catalog)
        return self.peer.catalog.state

    def _listing(self, study_id: int) -> Listing:
        catalog = self._catalog()
        listing = catalog.by_id.get(study_id)
        if listing is None:
            self._handles.pop(study_id, None)
            deleted = " any more: it was deleted" if 0 <= study_id < catalog.ids else ""
            raise NoSuchStudy(f"No study with study_id {study_id} exists{deleted}.")
        return listing

    def _destroy(self, uuid: str) -> None:
        log = self.peer.log(uuid)
        del self.peer.logs[uuid]
        self.peer.call(log.destroy, within=self.peer.patience)

    def _frozen_study(self, listing: Listing) -> internals.FrozenStudy | None:
        try:
            state = self.state(listing.study_id)
        except (Denied, KeyError):  # another user's study, or one that was just deleted
            return None
        except HopaasError as error:
            if error.retry:
                raise
            LOG.warning("the study %r cannot be opened: %s", listing.name, error)
            return None
        if state.define is None:
            return None
        user, system = attributes(state.user), attributes(state.system)
        return internals.new_study(listing.name, directions_of(state, listing.name), user, system, listing.study_id)

    def _import_record(self, state: State, template: FrozenTrial) -> TrialCreate:
        system = {str(key): self._system_json(str(key), value) for key, value in template.system_attrs.items()}
        record = created(template, system)
        for name, one in record.dists.items():
            first = state.dists.get(name)
            if first is not None and not compatible(first, one):
                raise InvalidInput(f"the parameter {name!r} is {spec(first)} in this study, and cannot be {spec(one)}")
        new = {name: one for name, one in record.dists.items() if state.dists.get(name) != one}
        return msgspec.structs.replace(record, dists=new)

    def _system_json(self, key: str, value: object, *, directions: int | None = None) -> str:
        if ":" in key and not self.options.allow_pickles and key.startswith(internals.pickle_prefixes()):
            raise ConfigurationError(_NO_PICKLES)
        text = to_json(key, value)
        if not possible_system({key: text}, directions):
            raise InvalidInput(f"the attribute {key!r} cannot be {text[:200]}: programs that read it would fail")
        return text

    def check_sampler(self, sampler: BaseSampler) -> None:
        """Reject a sampler that unpickles data of other peers, unless that is allowed.

        Raises:
            ConfigurationError: the sampler does so; the message says what to use instead.

        """
        if not self.options.allow_pickles and internals.unpickles(sampler):
            raise ConfigurationError(_NO_PICKLES)
