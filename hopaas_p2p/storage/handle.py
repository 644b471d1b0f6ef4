"""One study as this process takes part in it: its log, its trials as Optuna sees them, and those that run here."""

from __future__ import annotations

import contextlib
import copy
import math
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Final, Literal

import msgspec
from optuna.distributions import BaseDistribution, FloatDistribution, check_distribution_compatibility
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from hopaas_p2p.analysis.facts import count
from hopaas_p2p.core import records
from hopaas_p2p.core.admission import Done, NextStart, Wait, next_start
from hopaas_p2p.core.apply import may_be_a_workers
from hopaas_p2p.core.leases import Lease
from hopaas_p2p.core.names import first_id
from hopaas_p2p.core.records import (
    Record,
    TrialCheckpoint,
    TrialClaim,
    TrialCreate,
    TrialFinish,
    TrialRelease,
    TrialSet,
    TrialTakeOver,
)
from hopaas_p2p.core.spending import past_leases
from hopaas_p2p.core.state import NEVER_PAUSING, RUNNING, State, Verdict
from hopaas_p2p.core.state import Trial as LoggedTrial
from hopaas_p2p.core.validity import (
    MOST_PARAMETERS,
    possible_distributions,
    readable,
    reason_text,
    widened_distributions,
)
from hopaas_p2p.errors import (
    UNDECIDED,
    BrokenChain,
    Denied,
    HopaasError,
    InvalidInput,
    LeaseLost,
    NoSuchTrial,
    NotYourTrial,
    NoWork,
    StoreUnreachable,
    StudyDeleted,
)
from hopaas_p2p.peer.outbox import PendingCommit
from hopaas_p2p.peer.peer import Peer, introduction
from hopaas_p2p.peer.session import LogClient
from hopaas_p2p.runtime.arguments import trial_number
from hopaas_p2p.runtime.logs import LOG
from hopaas_p2p.storage.frozen import NOT_BEGUN, FrozenTrialCache, OwnedTrial
from hopaas_p2p.storage.options import StorageOptions
from hopaas_p2p.storage.optuna_internals import copy_of, end_frozen, running
from hopaas_p2p.storage.refusals import NO_WORK, AlreadyFinished, no_work, owner_only, why_refused
from hopaas_p2p.translate import checked_parameter, external, to_json, to_record

_RUNNING: Final = TrialState.RUNNING
_STATES: Final = tuple(records.TrialState)  # with Optuna's numbers
_SOON: Final = 0.05
"""Seconds for which a trial's parameters wait for more, where another peer's sampler could use them."""
_RECENT: Final = 1.0
"""Seconds. With 64 peers on S3, 10 s made a search need a seventh more trials; tests/benchmarks/search_stores.py."""


def is_new(trial: LoggedTrial, record: Record) -> bool:
    """Whether this trial, which has just started, is the record's own new one, and not a waiting trial in its place."""
    if not isinstance(record, TrialCreate) or trial.epoch != 1 or trial.attempt != 1 or trial.continues is not None:
        return False
    return trial.params == record.params and trial.user == record.user and trial.system == record.system


class AskedTrial(weakref.ref[Any]):
    """Detects that a trial was forgotten: its object was collected, or its process ends, and it has no result.

    Collection may happen at any line, under any lock, so the callback is only a method of a deque, and a job does the
    rest.
    """

    __slots__ = ("__weakref__", "release")

    release: Callable[[], None]
    """Releases the trial, if this process still runs it."""


class StudyHandle:
    """One study, as this process takes part in it. Methods may be called from any thread, and take trials' numbers."""

    def __init__(self, peer: Peer, uuid: str, study_id: int, name: str, options: StorageOptions) -> None:
        self.peer = peer
        self.uuid = uuid
        self.study_id = study_id
        self.name = name
        self.options = options
        self.first_id = first_id(study_id)
        """Optuna's id of trial 0."""
        self.log: LogClient[State] = peer.log(uuid)
        self.view = FrozenTrialCache(
            study_id,
            self.log.session.cursor(),
            allow_pickles=options.allow_pickles,
            over=lambda number, lease: peer.meter.used((uuid, number, lease.epoch), at_end=True),
        )
        self._person: str | None = None
        """The name under which this process writes on behalf of a person; None if it writes as the peer."""
        self._known: dict[str, BaseDistribution] = {}
        """Distributions that are the first of their parameters in the log."""
        self.deferred: list[tuple[int, PendingCommit, int]] = []
        """Queued ends of trials: number, commit, and the thread that awaits the verdict in `settle_deferred`."""
        self._idle_since: float | None = None
        """Since when this process has had nothing to start, by the peer's clock."""
        self.dropped_checkpoints: set[str] = set()
        """Files that trials of this process no longer name, but that a member of a population may still copy."""

    def for_(self, options: StorageOptions, person: str | None) -> StudyHandle:
        """The same handle, with the same trials, for an operator or for a person on whose behalf a service writes."""
        other = copy.copy(self)
        other.options, other._person = options, person
        return other

    @property
    def state(self) -> State:
        """The state, as far as the log has been read."""
        return self.log.session.state

    @property
    def lock(self) -> threading.RLock:
        """Held to read more than one thing of the state or the view. Never around an exchange."""
        return self.log.lock

    def refresh(self) -> State:
        """The state, as fresh as reads promise. Costs no round trip in steady state.

        Raises:
            StudyDeleted: it was deleted, even if another study has its name by now.

        """
        self._check_exists()
        self.peer.refresh_for_reading(self.log)
        return self.log.session.state

    def _check_exists(self) -> None:
        if self.log.session.deleted:
            raise StudyDeleted(f"No study with study_id {self.study_id} exists any more: {self.name!r} was deleted.")

    def existing(self, trial: Any) -> LoggedTrial:
        """The trial with this number, as fresh as reads promise.

        Raises:
            NoSuchTrial: there is none.
            InvalidInput: it is not the number of a trial.

        """
        number, trials = trial_number(trial), self.refresh().trials
        if not 0 <= number < len(trials):
            raise NoSuchTrial(f"the study {self.name!r} has no trial {number}; it has {count(len(trials), 'trial')}")
        return trials[number]

    def introduce_as(self, about: dict[str, str]) -> None:
        """Add this to the peer's introduction in the study."""
        self.peer.introduce_as(self.log, about)

    # --- starting trials ---

    def next_start(self, no_new: str = "") -> NextStart:
        """What this process may start next, as far as the log has been read.

        `no_new` is why it begins no new configuration; see `core.admission.next_start`.
        """
        log, me = self.log, self.peer.uuid
        with log.lock:
            state = log.session.state
            skip = self.peer.resting(log) if state.waiting else ()
            found = next_start(state, me, alive=self._doubted_until, skip=skip, no_new=no_new)
            if found.why is None:
                self._idle_since = None
        return found

    def _doubted_until(self, owner: str) -> float | None:
        """The `Alive` of `next_start`: None if this owner has shown a sign of life since this process found nothing
        to start.
        """
        if self._idle_since is None:
            self._idle_since = self.peer.clock()
            self.log.session.owners.next_look = self.log.look_again_at = -math.inf  # signs count from the first look on
            self.peer.jobs.wake(self.log.job)
        return self.peer.doubted_until(self.log, owner, since=self._idle_since)

    def next_or_raise(self, no_new: str = "", why: str = "", *, within: float = math.inf) -> NextStart:
        """Like `next_start`, but raises NoWork if nothing may start.

        Reads the log again first, without an ask, which would be refused and stay in the log. While others run trials,
        one of them may die, so this peer introduces itself in order to watch them.
        """
        found = self.next_start(no_new)
        if found.why is None:
            return found
        self.peer.release_forgotten()  # one of them may hold the last place in the budget
        if self.state.running:
            self.peer.introduce(self.log)
        self.peer.catch_up(self.log, within=min(within, self.peer.store_wait))
        found = self.next_start(no_new)
        if isinstance(found, Wait | Done):
            raise self._no_work(found, why)
        return found

    def _no_work(self, found: Wait | Done, why: str = "") -> NoWork:
        heard, peer = self.log.session.owners.detector, self.peer
        with self.log.lock:
            return no_work(self.state, found, heard, peer.clock(), why, peer.store.url)

    def send_soon(self) -> None:
        """Send background changes of trials at once, if another peer works on the study."""
        if self.log.session.drafts:
            with self.log.lock:
                self.peer.hurry(self.log, within=0.0)

    def look_before_sampling(self) -> None:
        """Bring the replica up to date for a sampler, if others run trials and its knowledge about them is not recent.

        A read may be older (`Store.freshness`), but peers that do not know each other's trials choose similar
        parameters.
        """
        peer, session = self.peer, self.log.session
        now = peer.clock()
        if peer.store.freshness == 0.0 or now - session.exchanged_at <= _RECENT or now < peer.retry_at:
            return
        with self.log.lock:
            others = any(number not in self.view.owned for number in self.state.running)
        if others:
            with contextlib.suppress(StoreUnreachable, Denied):  # then the sampler uses what is known
                peer.pull(self.log)

    def begin(
        self, record: TrialCreate | TrialClaim, *, drawn: FrozenTrial | None = None, within: float = math.inf
    ) -> FrozenTrial | None:
        """Start the trial that this record asks for, in one exchange without a race; return it as the handle keeps it.

        `drawn` is the trial for which a sampler has chosen the record's parameters; they need not be translated again.

        Returns None if another peer has started the trial that the record claims. If a trial was reclaimed before this
        process learned that it had started, for instance because the store was long unreachable, another one is
        started.

        Raises:
            NoWork: the log refused the record.
            UpdateFinishedTrialError: the trial that the record claims is finished.
            StoreUnreachable: no answer in `within` seconds, or `store_wait` if that is less. The start is withdrawn, or
                the trial released.

        """
        peer, log = self.peer, self.log
        if isinstance(record, TrialCreate) and record.prefer_waiting:
            skip = peer.resting(log) if log.session.state.waiting else ()
            record = msgspec.structs.replace(record, skip=skip) if skip else record
        while True:
            owned: OwnedTrial | None = None
            pending = peer.start(log, record, within=within)
            try:
                (verdict,) = pending.verdicts or ()
                number = verdict.number
                if not verdict.accepted or number is None:
                    break
                with log.lock:
                    trial = log.session.state.trials[number]
                    if trial.end is None:
                        owned = self._own(trial, begun=True, drawn=drawn if drawn and is_new(trial, record) else None)
                        peer.meter.begin((self.uuid, number, trial.epoch))
                        return owned.frozen
            except BaseException:
                with log.lock:
                    log.session.abandon(pending)
                    if owned is not None and self.view.owned.get(owned.frozen.number) is owned:
                        self._let_go(owned.frozen.number)
                raise
        refusal = verdict.refusal or "refused"
        if isinstance(record, TrialClaim):
            if refusal == "not waiting":
                return None
            if refusal == "finished":
                raise AlreadyFinished(record.number)
        found = self.next_start()
        if not isinstance(found, Wait | Done):  # the study has changed, or this user may not write
            found = Wait(refusal) if refusal in NO_WORK else Done(refusal)
        raise self._no_work(found)

    def claim(self, number: int) -> bool:
        """Start this WAITING trial; return whether this process started it. Raises like `begin`."""
        with self.log.lock:
            trial = self.state.trials[number]
            if trial.end is not None:
                raise AlreadyFinished(number)
            if trial.state is RUNNING:
                return False
        return self.begin(TrialClaim(number)) is not None

    def _own(self, trial: LoggedTrial, *, begun: bool, drawn: FrozenTrial | None = None) -> OwnedTrial:
        """Add a running trial of a peer for which this process acts to the view, for writing. Call under the lock.

        If its lease has just begun, what the log has for it may come from an earlier attempt. `drawn` has its
        parameters, if a sampler chose them here.
        """
        peer, view, number = self.peer, self.view, trial.number
        inherits = begun and bool(trial.reports or trial.metrics) and trial.begun_before
        assert trial.owner is not None
        lease = Lease(trial.owner, trial.epoch)
        if trial.reports or trial.user or trial.system or trial.dists or (trial.params and drawn is None):
            frozen = view.build(trial, self.log.session.state)
        else:  # almost always
            frozen = running(self.first_id + number, number, trial.start, drawn)
        inherited: dict[int, float] = {}
        if inherits:
            inherited, frozen.intermediate_values = frozen.intermediate_values, {}
        lent = trial.owner != peer.uuid
        given = lease, peer.uuid, peer.copies_made, inherited, inherits, lent
        owned = OwnedTrial(frozen, *given, frozen.params, frozen.distributions, NOT_BEGUN)
        if trial.end is None:
            before = view.owned.get(number)
            if before is not None and before.lease != lease:  # another process has released it
                peer.meter.used((self.uuid, number, before.lease.epoch), at_end=True)
            view.owned[number] = owned
        if lent:
            peer.adopt(trial.owner, self.uuid, number)
        return owned

    # --- writes to the study, and to trials that other processes run ---

    def _commit(self, record: Record, *, within: float | None = None) -> Verdict:
        """Write one record and wait for its verdict, after introducing the person on whose behalf it is written."""
        self.refresh()  # raises if the study was deleted
        said: tuple[Record, ...] = (record,)
        if self._person is not None:
            about = self.peer.describe() | {"on_behalf_of": self.options.on_behalf_of}
            said = introduction(about), record
        return self.peer.commit(self.log, *said, owner=self._person, within=within)[-1]

    def say(self, record: records.StudyRecord, *, within: float | None = None) -> Verdict:
        """Write one record and wait for its verdict, for `within` seconds, or `patience`.

        Raises:
            Denied: the store's grants do not allow it.
            InvalidInput: it was refused, for example a stop of a trial that has ended meanwhile.
            StoreUnreachable: no verdict in that time; the record stays queued.
            StudyDeleted: the study was deleted.

        """
        try:
            verdict = self._commit(record, within=within)
        except Denied as denied:  # the store judges a commit without looking at its content
            if may_be_a_workers(record):
                raise
            needs = str(denied).replace("at least a worker", "an owner").replace("USER worker", "USER owner")
            raise Denied(needs) from None
        if verdict.refusal == "role":
            raise Denied(owner_only(self.name))
        if not verdict.accepted:
            raise InvalidInput(why_refused(self.refresh(), verdict, getattr(record, "values", None)))
        return verdict

    def bring(self, record: TrialCreate) -> int:
        """Write a waiting or finished trial; return its number.

        Raises:
            NoWork: the budget has no room for it.
            InvalidInput: the record describes an invalid trial.

        """
        verdict = self._commit(record)
        if verdict.accepted and verdict.number is not None:
            return verdict.number
        refusal = verdict.refusal or "refused"
        if refusal in NO_WORK:
            raise self._no_work(Done(refusal))
        why = why_refused(self.refresh(), verdict, record.values)
        raise InvalidInput(f"the {record.state.name} trial was refused: {why}")

    def is_operators(self, number: int) -> bool:
        """Whether this trial runs in another process, and this process may end it as an operator."""
        running = self.options.operator and self.state.trials[number].state is RUNNING
        return running and not self.held(number)

    def take_over(
        self, number: int, state: TrialState, values: Sequence[float] | None, reason: str | None = None
    ) -> None:
        """End a trial of another peer, as an operator. The end is durable when this returns.

        Raises:
            Denied: only an owner of the study may do that.
            InvalidInput: the trial is not running (any more), or cannot end like that.

        """
        told = None if values is None else tuple(map(float, values))
        epoch = self.refresh().trials[number].epoch
        by = readable(self.options.on_behalf_of or "{user}@{host}".format(**self.peer.describe()))
        self.say(TrialTakeOver(number, epoch, _STATES[state], told, reason_text(reason), by))

    # --- writes by the owner ---

    def writable(self, number: int) -> OwnedTrial | None:
        """The trial, ready to be changed; None for a WAITING trial, which is changed by commits. Call under the lock.

        Raises:
            UpdateFinishedTrialError: the trial is finished.
            NotYourTrial: another peer runs the trial.

        """
        owned = self.view.owned.get(number)
        if owned is None:
            trial = self.state.trials[number]
            if trial.end is not None:
                last, passed = trial.history[-1] if trial.history else None, trial.owner in self.peer.acts_for
                if not passed or last is None or (last.epoch + 1, last.kept_as) != (trial.epoch, None):
                    raise AlreadyFinished(number)
                # lost before this process, to which it was passed, wrote to it; a result is late, as after a write
                trial = msgspec.structs.replace(trial, state=RUNNING, epoch=last.epoch, end=None, values=None)
            if trial.state is records.TrialState.WAITING:
                return None
            if not self.peer.is_mine(trial.owner):
                raise NotYourTrial(
                    f"trial {number} is run by another peer, and only that peer may change it. To change it as an "
                    "operator, use open_storage(…, operator=True)"
                )
            owned = self._own(trial, begun=False)
        if owned.frozen.state is not _RUNNING:
            raise AlreadyFinished(number)
        if owned.writer != self.peer.uuid:
            self._resend_all(number, owned)
        return owned

    def _resend_all(self, number: int, owned: OwnedTrial) -> None:
        """Draft everything ever set on this trial, because it is uncertain what the log has. Duplicates do no harm."""
        owned.writer = self.peer.uuid
        owned.lent = owned.lease.owner != owned.writer
        if owned.lent:
            self.peer.adopt(owned.lease.owner, self.uuid, number)
        frozen = owned.frozen
        draft = self.log.session.draft(number, owned.lease.epoch, owned.lease.owner)
        for name, distribution in frozen.distributions.items():
            draft.params[name] = float(distribution.to_internal_repr(frozen.params[name]))
            record = to_record(distribution)
            if self.state.dists.get(name) != record:
                draft.dists[name] = record
        draft.reports.update(frozen.intermediate_values)
        for metric, values in owned.metrics.items():
            draft.metrics.setdefault(metric, {}).update(values)
        draft.resumed_from = owned.resumed_from
        draft.user.update({key: to_json(key, value) for key, value in frozen.user_attrs.items()})
        draft.system.update({key: to_json(key, value) for key, value in frozen.system_attrs.items()})

    def _deliver(self, number: int, owned: OwnedTrial | None, **content: Any) -> None:
        """Send what was just set, unless the draft of the trial is enough.

        What is set on a trial of this process is batched and sent later. If another process will end the trial, it is
        sent at once, because that process cannot know how long to wait. A WAITING trial, or one that an operator
        annotates, is changed by a commit.
        """
        if owned is None:
            trial = self.state.trials[number]
            owner = trial.owner if trial.end is None else None  # an operator writes on the owner's behalf
            (verdict,) = self.peer.commit(self.log, TrialSet(number, trial.epoch, **content), owner=owner)
            if not verdict.accepted:
                raise self.refusal(number, verdict)
        elif owned.lent:
            self.peer.send_if_possible(self.log, number)

    def _drafting(self, number: int) -> OwnedTrial | None:
        """The trial, with its `draft`, which collects what is set on it until the next exchange; None for a WAITING
        trial. Call under the lock. Raises like `writable`, and only when the draft is begun.
        """
        owned, session = self.view.owned.get(number), self.log.session
        if owned is not None and owned.draft is session.drafts.get(number) and session.drafted_at is not None:
            return owned
        self._check_exists()
        owned = self.writable(number)
        if owned is not None:
            if self.log.session.drafted_at is None:
                self.peer.check_process()
                self.peer.note_draft(self.log)
            owner, epoch = owned.lease
            owned.draft = self.log.session.draft(number, epoch, owner)
            used = self.peer.meter.used((self.uuid, number, epoch))
            if used is not None:
                owned.draft.used = used
        return owned

    def set_param(self, number: int, name: str, value: float, distribution: BaseDistribution) -> None:
        """Set a parameter, given in the log's form."""
        known, kind, record = self._known.get(name), distribution.__class__, None
        if known.__class__ is not kind or known.__dict__ != distribution.__dict__ or name.__class__ is not str:
            name = checked_parameter(name)
            record = self._record_if_new(name, distribution)
        plain = kind is FloatDistribution  # nearly always
        outside = plain and not distribution.low <= value <= distribution.high  # type: ignore[attr-defined]
        if outside and widened_distributions({name: value}, {}, {name: to_record(distribution)}) is None:
            raise InvalidInput(f"{name} = {value!r} is too far outside {distribution}")
        with self.log.lock:
            owned = self._drafting(number)
            if record is not None:
                self.view.catch_up(self.state)
                first = self.view.dists.setdefault(name, distribution)
                if first is not distribution:
                    check_distribution_compatibility(first, distribution)
            if owned is not None:
                owned.params[name] = value if plain else external(distribution, value)
                owned.distributions[name] = distribution
                drafted = owned.draft.params
                if not drafted:
                    self.peer.hurry(self.log, within=_SOON)
                drafted[name] = value
                if record is not None:
                    owned.draft.dists[name] = record
                if not owned.lent:
                    return
        self._deliver(number, owned, params={name: value}, dists={} if record is None else {name: record})

    def _record_if_new(self, name: str, distribution: BaseDistribution) -> records.Distribution | None:
        """The distribution in the log's form; None if it is the one that the log has for this parameter."""
        record, known = to_record(distribution), self.view.dists
        if self.state.dists.get(name) != record:
            if len(known) >= MOST_PARAMETERS and name not in known:
                raise InvalidInput(f"a study has at most {MOST_PARAMETERS:,} parameters; {name!r} would be one more")
            if not possible_distributions({name: record}, {}):
                raise InvalidInput(f"the range of {name!r} is too wide for samplers, or its grid too fine: {record}")
            return record
        self._known[name] = distribution  # a log never changes the first distribution of a parameter
        return None

    def set_report(self, number: int, step: int, value: float) -> None:
        """Set an intermediate value."""
        with self.log.lock:
            owned = self._drafting(number)
            if owned is not None:
                self._say_resumed_from_start(number, owned)
                owned.frozen.intermediate_values[step] = owned.draft.reports[step] = value
                if self.log.session.urgent_at < math.inf:  # parameters are waiting, and few more will follow a report
                    self.peer.hurry(self.log, within=0.0)
                if not owned.lent:
                    return
        self._deliver(number, owned, reports={step: value})

    def set_metrics(self, number: int, step: int, metrics: Mapping[str, float]) -> None:
        """Set metrics of one step."""
        with self.log.lock:
            owned = self._drafting(number)
            if owned is not None:
                self._say_resumed_from_start(number, owned)
                for name, value in metrics.items():
                    owned.metrics.setdefault(name, {})[step] = value
                    owned.draft.metrics.setdefault(name, {})[step] = value
        if owned is None or owned.lent:
            self._deliver(number, owned, metrics={name: {step: value} for name, value in metrics.items()})

    def metric_names(self, number: int) -> frozenset[str]:
        """The names of the trial's metrics."""
        with self.log.lock:
            logged, owned = self.state.trials[number].metrics, self.view.owned.get(number)
            return frozenset(logged if owned is None else (*logged, *owned.metrics))

    def metrics(self, number: int) -> dict[str, dict[int, float]]:
        """The trial's metrics as far as the log has been read, and as set in this process."""
        with self.log.lock:
            logged, owned = self.state.trials[number].metrics, self.view.owned.get(number)
            mine = {} if owned is None else owned.metrics
            return {name: {**logged.get(name, {}), **mine.get(name, {})} for name in (logged | mine)}

    def _say_resumed_from_start(self, number: int, owned: OwnedTrial) -> None:
        """Record that a retry starts from the beginning, unless this process has looked for a checkpoint, or another
        one may have done so.
        """
        if owned.inherits and owned.resumed_from is None and not self._travelled(owned):
            self._say_resumed(number, owned, records.FROM_START)

    def _say_resumed(self, number: int, owned: OwnedTrial, step: int) -> None:
        """Draft the step from which this attempt continues, so that later reports of an earlier attempt are dropped."""
        self._drafting(number)
        draft, mine = owned.draft, owned.frozen.intermediate_values
        said_before, owned.resumed_from = owned.resumed_from is not None, step
        draft.resumed_from = step
        draft.reports.update({one: value for one, value in mine.items() if said_before or one > step})
        for name, values in owned.metrics.items():
            draft.metrics.setdefault(name, {}).update(values)

    def resumed_from(self, number: int, step: int) -> FrozenTrial:
        """Count an earlier attempt's reports up to this step, and no later ones, as this attempt's."""
        with self.log.lock:
            owned = self.view.owned.get(number)
            if owned is None and self.held(number):
                owned = self.writable(number)
            again = owned is not None and owned.inherits
            if owned is not None and (again or owned.lent) and not owned.frozen.state.is_finished():
                mine = owned.frozen.intermediate_values  # a trial passed to this process has all from the log
                earlier, own = (owned.inherited, mine) if again else (mine, {})
                owned.frozen.intermediate_values = {one: earlier[one] for one in earlier if one <= step} | own
                self._say_resumed(number, owned, step)
            self.view.catch_up(self.state)
            frozen = self.view.trial(number)
        if owned is not None and owned.lent:
            self.peer.send_if_possible(self.log, number)
        return frozen

    def set_attr(self, number: int, kind: Literal["user", "system"], key: str, value: Any, text: str) -> None:
        """Set an attribute; `text` is its JSON."""
        with self.log.lock:
            owned = None if self.is_operators(number) else self._drafting(number)
            if owned is not None:
                attributes = owned.frozen.user_attrs if kind == "user" else owned.frozen.system_attrs
                attributes[key] = copy.deepcopy(value)
                if kind == "system" and not (owned.draft.system or owned.frozen.intermediate_values):  # a sampler's
                    self.peer.hurry(self.log, within=_SOON)
                (owned.draft.user if kind == "user" else owned.draft.system)[str(key)] = text
        self._deliver(number, owned, **{kind: {str(key): text}})

    def settle(
        self,
        number: int,
        system: Mapping[str, Any] = MappingProxyType({}),
        *,
        checkpoint: records.Checkpoint | None = None,
        within: float | None = None,
    ) -> None:
        """Send everything set on a trial of this process, together with these system attributes, or this checkpoint.

        When this returns, all of it is durable and belongs to this trial.

        Raises:
            LeaseLost: another peer took the trial over, and nothing that was sent was kept.
            NotYourTrial: the trial is WAITING, or another peer runs it.
            UpdateFinishedTrialError: the trial is finished.
            StoreUnreachable: no answer in `within` seconds, or `patience`; everything stays queued.

        """
        with self.log.lock:
            owned = self.writable(number)
            if owned is None:
                raise NotYourTrial(f"trial {number} is not running")
            (owner, epoch), attributes = owned.lease, owned.frozen.system_attrs
            record: TrialSet | TrialCheckpoint
            if checkpoint is None:
                record = TrialSet(number, epoch, system={key: to_json(key, value) for key, value in system.items()})
            else:
                record = TrialCheckpoint(number, epoch, checkpoint)
            pending = self._put_last(record, owner=owner)
            attributes.update(system)
        verdict = self.peer.await_commit(self.log, pending, within=within)[-1]
        if not verdict.accepted:
            for key in system:
                attributes.pop(key, None)
            raise self.refusal(number, verdict)

    def acknowledge_stop(self, number: int) -> None:
        """Show the others that the request to stop has arrived; sent with the next exchange."""
        with self.log.lock:
            if self.state.trials[number].stopping or number not in self.running_here():
                return
            owned = self._drafting(number)
            if owned is not None:
                owned.draft.stopping = True

    def checkpoint(
        self, number: int, checkpoint: records.Checkpoint, *, within: float | None
    ) -> tuple[records.Checkpoint, ...]:
        """Record that a checkpoint is stored; return those that it replaces. Raises like `settle`."""
        before = self.state.trials[number].checkpoints
        self.settle(number, checkpoint=checkpoint, within=self.peer.store_wait if within is None else within)
        kept = {one.key for one in self.state.trials[number].checkpoints}
        return tuple([one for one in before if one.key not in kept])

    # --- ends ---

    def finish(
        self,
        number: int,
        state: TrialState,
        values: tuple[float, ...] | None,
        reason: str | None = None,
        *,
        defer: bool = False,
    ) -> None:
        """End a trial of this process, or a WAITING one. Without `defer`, the end is in the store or on disk on return.

        Args:
            number: the trial's number.
            state: COMPLETE, PRUNED or FAIL.
            values: one per direction, for COMPLETE.
            reason: why it ends like this.
            defer: queue the end for the next exchange; `settle_deferred` then returns its verdict.

        Raises:
            LeaseLost: another peer took the trial over; a complete result was kept as a separate trial.
            NotYourTrial: another peer runs the trial.
            UpdateFinishedTrialError: the trial is already finished.
            InvalidInput: the values are not one number per direction.
            StoreUnreachable: the store did not answer, and the result could not be kept on disk. It stays queued.
            Denied: the store no longer admits this user; the end is kept on disk.

        """
        if self.options.operator and self.is_operators(number):
            self.take_over(number, state, values, reason)
            return
        to, pending, reason = _STATES[state], None, None if reason is None else reason_text(reason)
        with self.log.lock:
            owned, trial = self.writable(number), self.log.session.state.trials[number]
            if owned is None:
                pending = self.peer.put(self.log, TrialFinish(number, trial.epoch, to, values, reason))
            elif trial.state is records.TrialState.WAITING and to is not records.TrialState.COMPLETE:
                self._let_go(number)  # another process has released it, so it is run again
            else:
                owner, epoch = owned.lease
                pauses = reason is None and trial.stop is None and state is TrialState.PRUNED  # if it is at a rung
                if owned.inherited:
                    self._say_resumed_from_start(number, owned)
                session = self.log.session
                undecided = session.in_flight or session.queued
                if owned.lease != (trial.owner, trial.epoch) or (undecided and session.in_doubt(number)):
                    self._resend_all(number, owned)  # only what is in the same commit is kept with a late result
                elif state is not TrialState.COMPLETE:
                    reason = reason or trial.stop  # why the owner was asked to stop, if this is its answer
                used = self.peer.meter.used((self.uuid, number, epoch), at_end=True)
                pending = self._put_last(TrialFinish(number, epoch, to, values, reason, pauses, used), owner=owner)
                end_frozen(owned.frozen, state, values)
        if pending is not None and defer:
            self.deferred.append((number, pending, threading.get_ident()))
            return
        verdict = Verdict(False, number, "fenced") if pending is None else self._settled(number, pending)
        if verdict is not None and not verdict.accepted:
            raise self.refusal(number, verdict, values)

    def settle_deferred(self) -> list[tuple[int, Verdict]]:
        """Wait until each end that this thread deferred is durable; return the trials and verdicts of the refused ones.

        If Ctrl-C interrupts the wait, the next call continues it. Raises like `finish` if an end cannot be kept.
        """
        refused: list[tuple[int, Verdict]] = []
        for deferred in [one for one in self.deferred if one[2] == threading.get_ident()]:
            number, pending, _ = deferred
            try:
                verdict = self._settled(number, pending)
            except Exception:
                self.deferred.remove(deferred)
                raise
            self.deferred.remove(deferred)
            if verdict is not None and not verdict.accepted:
                refused.append((number, verdict))
        return refused

    def _settled(self, number: int, pending: PendingCommit) -> Verdict | None:
        """The verdict on the end of a trial; None if it is kept on disk because the store cannot be reached."""
        try:
            verdict = self.peer.await_commit(self.log, pending)[-1]
        except UNDECIDED as error:
            sent = pending.verdicts is not None and isinstance(error, StoreUnreachable)  # by another thread
            if not sent and self._spool(number, error):
                return None
            verdict = self.peer.await_commit(self.log, pending, within=self.peer.store_wait)[-1]
        except Exception:
            if pending.verdicts is None:  # out of memory or threads, or a bug: the result must survive these, too
                path, _ = self.peer.spool.keep(self.uuid, self.log)
                if path is not None:
                    LOG.warning("the end of trial %d is kept in %s", number, path)
            raise
        self._let_go(number)
        unkept = self.log.session.unkept.pop(number, None)
        if unkept:
            names = ", ".join(sorted(set(map(repr, unkept))))
            LOG.warning("trial %d is stored without %s: another peer defined it as another kind first", number, names)
        return verdict

    def _let_go(self, number: int) -> None:
        """Record that the trial no longer belongs to this process, so that reads show the log's version."""
        with self.log.lock:
            owned = self.view.owned.pop(number, None)
            if owned is not None:
                self.view.changed.add(number)
                if not owned.frozen.state.is_finished():  # otherwise its usage was sent with its end
                    self.peer.meter.used((self.uuid, number, owned.lease.epoch), at_end=True)

    def _spool(self, number: int, error: HopaasError) -> bool:
        """Keep the end of a trial on disk; False if that is not possible, and the caller must wait for the store.

        Raises:
            StoreUnreachable: it cannot be kept on disk, and the wait has been long enough; it stays queued while this
                process lives.
            HopaasError: of the type of `error`, where waiting does not help, because the store no longer admits this
                user, or is damaged.

        """
        path, why = self.peer.spool.keep(self.uuid, self.log)
        if path is None:
            said = str(error).rstrip(".")
            only = f"trial {number}: {said}. Its end is kept in this process only, and sent at the next contact: {why}"
            if not isinstance(error, StoreUnreachable) or self.peer.store_wait <= self.peer.patience:
                raise type(error)(only)
            LOG.warning("%s", only)
            return False
        kept = f"Its end is kept in {path} and sent at the next contact, or with: hopaas-p2p admin spool send"
        if isinstance(error, BrokenChain):
            kept = f"Its end is kept in {path} for a rescue: hopaas-p2p doctor STORE --rescue"
        if not isinstance(error, StoreUnreachable):
            raise type(error)(f"trial {number}: {str(error).rstrip('.')}. {kept}")
        LOG.warning("trial %d: %s. %s", number, str(error).rstrip("."), kept)
        return True

    def _put_last(
        self, record: TrialFinish | TrialRelease | TrialCheckpoint | TrialSet, *, owner: str
    ) -> PendingCommit:
        """Queue this record after all unsent changes of its trial, and if they fit, in the same commit."""
        draft = self.log.session.drafts.pop(record.number, None)
        words = draft.commits() if draft is not None else [()]
        for much in words[:-1]:
            self.peer.put(self.log, *much, owner=owner)
        return self.peer.put(self.log, *words[-1], record, owner=owner)

    def release(self, number: int, *, reason: str | None = None) -> bool:
        """Release a running trial of this process, which is then WAITING again, with the same parameters, or PRUNED if
        it was asked to stop.

        Returns False if it was WAITING already, or the release was refused because the lease was lost.
        """
        with self.log.lock:
            owned = self.writable(number)
            if owned is None:
                return False
            owner, epoch = owned.lease
            used = self.peer.meter.used((self.uuid, number, epoch), at_end=True)
            record = TrialRelease(number, epoch, reason=reason_text(reason), used=used)
            pending = self._put_last(record, owner=owner)
            self._let_go(number)
        return self.peer.await_commit(self.log, pending)[-1].accepted

    def release_when_forgotten(self, trial: Any, number: int) -> None:
        """Release this trial if its object is collected, or this process ends, before it has ended."""
        owned = self.view.owned.get(number)
        if owned is not None:  # otherwise another thread, which was interrupted, has released it
            owned.asked = asked = AskedTrial(trial, self.peer.forgotten.append)
            asked.release = partial(self.release_forgotten, number, owned.lease)
            self.peer.asked.add(asked)

    def release_forgotten(self, number: int, lease: Lease) -> None:
        """Release a trial that can no longer be ended by `tell`, because its object or its process is gone."""
        with self.log.lock:
            owned = self.view.owned.get(number)
            mine = owned is not None and owned.lease == lease and lease.owner == self.peer.uuid
            if owned is None or not mine or self._travelled(owned) or owned.frozen.state.is_finished():
                return
        LOG.warning("trial %d is released, because it has no result and this program can no longer give it one", number)
        try:
            self.release(number, reason="forgotten: its object or its program was gone before `tell`")
        except (UpdateFinishedTrialError, HopaasError) as error:
            if isinstance(error, StoreUnreachable):
                raise

    def running_here(self) -> list[int]:
        """The trials that this process runs, by number."""
        with self.log.lock:
            self.view.catch_up(self.state)
            return sorted(number for number, one in self.view.owned.items() if not one.frozen.state.is_finished())

    def refusal(self, number: int, verdict: Verdict, values: Sequence[float] | None = None) -> Exception:
        """The error for a refusal, as the owner of a trial sees it."""
        if verdict.refusal in ("fenced", "late"):
            kept_as = verdict.number if verdict.refusal == "late" else None
            kept = "" if kept_as is None else f"; its result is kept as trial {kept_as}"
            return LeaseLost(f"Trial {number} was {self.how_lost(number)}{kept}.", kept_as=kept_as)
        if verdict.refusal == "finished":
            return AlreadyFinished(number)
        return InvalidInput(f"trial {number} was refused: {why_refused(self.state, verdict, values)}")

    def how_lost(self, number: int) -> str:
        """How this process lost the trial, in words that follow "the trial was"."""
        past = past_leases(self.state.trials[number])
        how, why = next(((how, one.why) for one, how in reversed(past) if self.peer.is_mine(one.owner)), ("", ""))
        return f"returned ({why})" if how == "returned" else "taken over by another peer"

    # --- reads of trials of this process ---

    def held(self, number: int) -> bool:
        """Whether this process runs the trial, according to the log as far as it has been read."""
        return self.standing(number)[1]

    def standing(self, number: int) -> tuple[str | None, bool, bool]:
        """Why this trial was asked to end, or None; whether this process holds its lease, according to the log; and
        whether another process that acts for this one also writes to it. Reads the replica.
        """
        with self.log.lock:
            state, view = self.log.session.state, self.view
            if number in view.changed:
                view.catch_up(state)
            trial, owned = state.trials[number], view.owned.get(number)
            if owned is None:
                return trial.stop, trial.end is None and self.peer.is_mine(trial.owner), False
            owner, epoch = owned.lease
            return trial.stop, trial.owner == owner and trial.epoch == epoch, owned.shared

    def is_at_rung(self, number: int, reports: Mapping[int, float]) -> bool:
        """Whether a trial of this process with these reports pauses now. Reads the replica."""
        if self.log.session.state.configurations is NEVER_PAUSING:  # nearly always
            return False
        with self.log.lock:
            return self.log.session.state.configurations.is_at_rung(number, reports)

    def lease_valid(self, number: int) -> bool:
        """Whether this process can still be sure that no other peer has taken the trial over."""
        owner = self.state.trials[number].owner
        return owner is not None and self.peer.lease_valid(self.log, owner) and self.standing(number)[1]

    def _travelled(self, owned: OwnedTrial) -> bool:
        """Whether another process may write to this trial, too."""
        return owned.shared or owned.lent or owned.copies_made != self.peer.copies_made

    def trial(self, number: int, *, now: bool = False) -> FrozenTrial:
        """One trial, as fresh as reads promise; for one that this process runs, including what was set here.

        With `now`, first fetch what another process, to which the trial was passed, wrote about it.
        """
        with self.log.lock:
            owned = self.view.owned.get(number)
            if owned is not None and not owned.shared and owned.copies_made == self.peer.copies_made:
                return copy_of(owned.frozen)
        if now and owned is not None:
            self.peer.send_if_possible(self.log, number)
        else:
            self.refresh()
        with self.log.lock:
            self.view.catch_up(self.state)
            return self.view.trial(number)
