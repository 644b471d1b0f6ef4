"""What a study is after its log up to some lsn: `State`, and `apply`, the only function that changes it.

`apply` gives the same State on every peer, Python, time zone and hash seed. It never asks "am I the writer?" and never
raises on content: a record is accepted, or refused with a reason that the writer reads off its verdict. What a record
may do to a trial stands in `TRANSITIONS`; who may do it is the lease: owner and epoch must be those of the log.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec

from hopaas_p2p.core.codec import Garbage
from hopaas_p2p.core.records import (
    UNSTAMPED,
    Checkpoint,
    Commit,
    Distribution,
    Opaque,
    PeerDrain,
    PeerJoin,
    Policy,
    Stamp,
    StudyControl,
    StudyDefine,
    StudySet,
    TrialCheckpoint,
    TrialClaim,
    TrialCreate,
    TrialFinish,
    TrialReclaim,
    TrialRelease,
    TrialSet,
    TrialState,
    TrialStop,
)
from hopaas_p2p.core.sanity import possible_definition, possible_distributions, possible_time

RUNNING: Final = TrialState.RUNNING
COMPLETE: Final = TrialState.COMPLETE
PRUNED: Final = TrialState.PRUNED
FAIL: Final = TrialState.FAIL
WAITING: Final = TrialState.WAITING

TRANSITIONS: Final = {
    # from      record          needs the lease   to
    (WAITING, TrialClaim): (False, (RUNNING,)),
    (WAITING, TrialSet): (False, (WAITING,)),
    (WAITING, TrialFinish): (False, (COMPLETE, PRUNED, FAIL)),
    (RUNNING, TrialSet): (True, (RUNNING,)),
    (RUNNING, TrialCheckpoint): (True, (RUNNING,)),
    (RUNNING, TrialFinish): (True, (COMPLETE, PRUNED, FAIL)),
    (RUNNING, TrialRelease): (True, (WAITING, FAIL)),
    (RUNNING, TrialReclaim): (False, (FAIL, PRUNED)),
    (RUNNING, TrialStop): (False, (RUNNING,)),
}
"""(state, record) -> does it need the lease, and where the trial may go. What is not here is refused.

A reclaim and a stop name the epoch they mean, so they cannot hit a later lease. The table in docs/concepts.md and the
exhaustive test are generated from this one.
"""

BLOCK: Final = 1024
"""Trials in one block of a snapshot, see `snapshot`."""

OWNERS_ONLY: Final = frozenset({StudyControl, PeerDrain, TrialStop})
"""Records that a commit stamped *worker* may not bring; but for a stop, where the policy has a progress time-out."""

CHECKPOINTS_KEPT: Final = 2


class Verdict(NamedTuple):
    """What `apply` decided for one record."""

    accepted: bool
    number: int | None = None
    """The trial it concerns: for a create, the number allotted; for a late finish, the trial that keeps the result."""
    refusal: str | None = None
    """Why not: one of the words in `REFUSALS`."""


REFUSALS: Final = {
    "malformed": "it cannot be read, or a value in it is impossible",
    "duplicate": "this commit stands in the log already",
    "undefined": "the study has no definition yet, or this one comes second",
    "role": "the author's grant does not allow it",
    "no such trial": "the number was never allotted",
    "finished": "the trial is finished and stays as it is",
    "fenced": "the lease is another's: wrong owner, or an epoch that has passed",
    "not waiting": "somebody else started the trial first",
    "not running": "only a running trial can be stopped, released or reclaimed",
    "late": "the lease was lost, but the result is kept as a trial of its own",
    "budget": "the budget is used up",
    "paused": "the study is paused",
    "stopped": "the study is stopped",
    "failing": "too many failures in a row",
    "draining": "this peer or its site was asked to take no more trials",
}

_ACCEPTED: Final = Verdict(True)


class Tenure(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A lease that ended before its trial did."""

    owner: str
    epoch: int
    start: int | None
    end: int
    why: str
    kept_as: int | None = None
    """The trial that keeps this owner's late result."""


class Trial(msgspec.Struct, gc=False):
    """One trial. Dictionaries of a finished trial are never changed again, so readers may share them."""

    number: int
    state: TrialState
    epoch: int = 0
    owner: str | None = None
    params: dict[str, float] = {}
    dists: dict[str, Distribution] = {}
    reports: dict[int, float] = {}
    user: dict[str, str] = {}
    system: dict[str, str] = {}
    values: tuple[float, ...] | None = None
    reason: str | None = None
    start: int | None = None
    end: int | None = None
    stop: str | None = None
    """Why its owner was asked to end it; cleared with the lease."""
    stopping: bool = False
    """Whether the owner has seen that."""
    attempt: int = 1
    retry_of: int | None = None
    retried_by: int | None = None
    late_of: int | None = None
    checkpoints: tuple[Checkpoint, ...] = ()
    """Where it may be resumed, the newest last."""
    history: tuple[Tenure, ...] = ()
    """Earlier owners, oldest first."""

    def distribution(self, name: str, state: State) -> Distribution:
        """The distribution that `params[name]` was drawn from."""
        return self.dists.get(name) or state.dists[name]


class LastCommit(NamedTuple):
    """The fate of a writer's latest commit, for one that lost the reply and then its memory of the log."""

    seq: int
    lsn: int
    verdicts: tuple[Verdict, ...]


class State:
    """A study after commits 1..lsn. Change it through `apply` only.

    Invariants: `trials[n].number == n`; `waiting` and `running` hold exactly the numbers in those states, in the order
    they entered; with a budget, used() <= budget unless the budget was lowered.
    """

    __slots__ = (
        "blocks",
        "budget",
        "changed",
        "counts",
        "define",
        "dists",
        "draining",
        "failures_in_a_row",
        "lsn",
        "peers",
        "refusals",
        "running",
        "status",
        "system",
        "trials",
        "user",
        "waiting",
        "writers",
    )

    def __init__(self) -> None:
        self.lsn = 0
        self.define: StudyDefine | None = None
        self.status = "running"
        self.budget: int | None = None
        self.user: dict[str, str] = {}
        self.system: dict[str, str] = {}
        self.trials: list[Trial] = []
        self.waiting: dict[int, None] = {}
        self.running: dict[int, None] = {}
        self.counts = [0, 0, 0, 0, 0]  # by TrialState
        self.failures_in_a_row = 0
        self.dists: dict[str, Distribution] = {}
        """The first distribution the log gave each parameter: what a trial has unless it says otherwise."""
        self.peers: dict[str, dict[str, str]] = {}
        self.draining: dict[str, None] = {}
        """Peers, and sites as `site:name`, that shall take no more trials."""
        self.writers: dict[str, LastCommit] = {}
        self.refusals: dict[str, int] = {}
        self.changed: set[int] = set()
        """Numbers of trials touched since a reader last emptied it. Not part of the study: no digest, no snapshot."""
        self.blocks: dict[int, bytes] = {}
        """Encoded snapshot blocks of trials that are finished for good, see `snapshot`."""

    @property
    def policy(self) -> Policy:
        return self.define.policy if self.define else Policy()

    def used(self) -> int:
        """Places of the budget that are taken: COMPLETE + PRUNED + RUNNING."""
        counts = self.counts
        return counts[COMPLETE] + counts[PRUNED] + counts[RUNNING]

    def closed_because(self) -> str | None:
        """Why no trial may start now, in a word of `REFUSALS`; None when one may."""
        if self.status != "running":
            return self.status
        limit = self.policy.max_failures
        if limit is not None and self.failures_in_a_row >= limit:
            return "failing"
        if self.budget is not None and self.used() >= self.budget:
            return "budget"
        return None

    def is_draining(self, peer: str) -> bool:
        """Whether this peer was asked to take no more trials, by name or with its site."""
        if not self.draining:
            return False
        return peer in self.draining or f"site:{self.peers.get(peer, {}).get('site')}" in self.draining

    def finished(self) -> bool:
        """Whether the campaign is over for good: stopped, failing, or its budget spent with nothing running."""
        closed = self.closed_because()
        if closed == "budget":
            return self.counts[RUNNING] == 0
        return closed in ("stopped", "failing")


def apply(state: State, lsn: int, commit: Commit | Garbage, stamp: Stamp = UNSTAMPED) -> tuple[Verdict, ...]:
    """Take the commit at `lsn` into `state` and say what became of each of its records.

    Commits come in order without gaps: lsn is `state.lsn + 1`.
    """
    state.lsn = lsn
    if isinstance(commit, Garbage):
        _count(state, "malformed")
        return ()
    last = state.writers.get(commit.writer)
    if last is not None and commit.seq <= last.seq:
        _count(state, "duplicate")
        return last.verdicts if commit.seq == last.seq else ()
    verdicts = tuple([_apply_record(state, record, commit, stamp) for record in commit.records])
    state.writers[commit.writer] = LastCommit(commit.seq, lsn, verdicts)
    return verdicts


def _apply_record(state: State, record: object, commit: Commit, stamp: Stamp) -> Verdict:
    kind = type(record)
    rule = _RULES.get(kind)
    if rule is None:
        return _refuse(state, "malformed")
    if (state.define is None) != (kind is StudyDefine):
        return _refuse(state, "undefined")
    if stamp.role != "owner" and not _worker_may(state, kind, stamp):
        return _refuse(state, "role")
    return rule(state, record, commit)


def _worker_may(state: State, kind: type, stamp: Stamp) -> bool:
    if stamp.role != "worker":
        return False
    return kind not in OWNERS_ONLY or (kind is TrialStop and state.policy.progress_timeout is not None)


def _count(state: State, reason: str) -> None:
    state.refusals[reason] = state.refusals.get(reason, 0) + 1


def _refuse(state: State, reason: str, number: int | None = None) -> Verdict:
    _count(state, reason)
    return Verdict(False, number, reason)


# --- the study ---------------------------------------------------------------------------------------------------


def _define(state: State, record: StudyDefine, _commit: Commit) -> Verdict:
    if not possible_definition(record):
        return _refuse(state, "malformed")
    state.define = record
    state.budget = record.policy.budget
    state.dists.update(record.space)
    return _ACCEPTED


def _set_study(state: State, record: StudySet, _commit: Commit) -> Verdict:
    if record.user:
        state.user = {**state.user, **record.user}
    if record.system:
        state.system = {**state.system, **record.system}
    return _ACCEPTED


def _control(state: State, record: StudyControl, _commit: Commit) -> Verdict:
    if record.status not in (None, "running", "paused", "stopped"):
        return _refuse(state, "malformed")
    if record.status is not None:
        state.status = record.status
        if record.status == "running":
            state.failures_in_a_row = 0
    if record.budget is not None:
        state.budget = None if record.budget < 0 else record.budget
    return _ACCEPTED


def _join(state: State, record: PeerJoin, commit: Commit) -> Verdict:
    state.peers[commit.writer] = record.info
    return _ACCEPTED


def _drain(state: State, record: PeerDrain, _commit: Commit) -> Verdict:
    targets = ([record.peer] if record.peer else []) + ([f"site:{record.site}"] if record.site else [])
    for target in targets:
        if record.off:
            state.draining.pop(target, None)
        else:
            state.draining[target] = None
    return _ACCEPTED


# --- a trial -----------------------------------------------------------------------------------------------------


def _create(state: State, record: TrialCreate, commit: Commit) -> Verdict:
    if not _describes_a_trial(state, record):
        return _refuse(state, "malformed")
    if record.state is RUNNING:
        closed = state.closed_because() or ("draining" if state.is_draining(commit.owner) else None)
        if closed is not None:
            return _refuse(state, closed)
        waiting = next((number for number in state.waiting if number not in record.skip), None)
        if record.prefer_waiting and waiting is not None:
            return _start(state, state.trials[waiting], commit)
    elif not _has_place_for(state, record.state):
        return _refuse(state, "budget")
    trial = _append(state, record.state)
    _merge(state, trial, record)
    if record.state is RUNNING:
        trial.owner, trial.epoch = commit.owner, 1
        trial.start = commit.at if record.start is None else record.start
        return Verdict(True, trial.number)
    trial.start = record.start
    if record.state is not WAITING:
        trial.values, trial.reason = record.values, record.reason
        trial.end = commit.at if record.end is None else record.end
    return Verdict(True, trial.number)


def _describes_a_trial(state: State, record: TrialCreate) -> bool:
    return (
        (not (record.params or record.dists) or _can_be_merged(state, record))
        and _can_end(state, record.state, record.values)
        and (record.start is None or possible_time(record.start))
        and (record.end is None or possible_time(record.end))
    )


def _can_be_merged(state: State, record: TrialSet | TrialCreate) -> bool:
    """Whether every parameter has a distribution, and each one that is named can be one."""
    if not record.dists:
        return record.params.keys() <= state.dists.keys()
    known = state.dists.keys() | record.dists.keys()
    return record.params.keys() <= known and possible_distributions(record.dists.values())


def _has_place_for(state: State, ended: TrialState) -> bool:
    """Whether the budget allows one more trial that ends like this without having run."""
    takes_one = ended is COMPLETE or ended is PRUNED
    return not takes_one or state.budget is None or state.used() < state.budget


def _append(state: State, trial_state: TrialState) -> Trial:
    number = len(state.trials)
    trial = Trial(number, trial_state)
    state.trials.append(trial)
    state.counts[trial_state] += 1
    state.changed.add(number)
    if trial_state is WAITING:
        state.waiting[number] = None
    elif trial_state is RUNNING:
        state.running[number] = None
    return trial


def _move(state: State, trial: Trial, to: TrialState) -> None:
    """Give the trial another state, and keep the counts and indexes true."""
    number = trial.number
    state.counts[trial.state] -= 1
    state.counts[to] += 1
    if trial.state is RUNNING:
        del state.running[number]
    elif trial.state is WAITING:
        del state.waiting[number]
    if to is RUNNING:
        state.running[number] = None
    elif to is WAITING:
        state.waiting[number] = None
    trial.state = to
    state.changed.add(number)


def _merge(state: State, trial: Trial, record: TrialSet | TrialCreate) -> None:
    if record.params:
        if record.dists or trial.dists:
            _merge_distributions(state, trial, record)
        trial.params.update(record.params)
    if record.reports:
        trial.reports.update(record.reports)
    if record.user:
        trial.user = {**trial.user, **record.user}
    if record.system:
        trial.system = {**trial.system, **record.system}


def _merge_distributions(state: State, trial: Trial, record: TrialSet | TrialCreate) -> None:
    for name in record.params:
        first = state.dists.get(name)
        given = record.dists.get(name)
        if first is None and given is not None:
            state.dists[name] = given
        elif given is not None and given != first:
            trial.dists[name] = given
        elif name in trial.dists:  # told again, from the first distribution this time
            del trial.dists[name]


def _start(state: State, trial: Trial, commit: Commit) -> Verdict:
    _move(state, trial, RUNNING)
    trial.owner = commit.owner
    trial.epoch += 1
    trial.start = commit.at
    return Verdict(True, trial.number)


def _find(state: State, number: int) -> Trial | None:
    return state.trials[number] if 0 <= number < len(state.trials) else None


def _has_lease(trial: Trial, epoch: int, commit: Commit) -> bool:
    return trial.epoch == epoch and trial.owner == commit.owner


def _claim(state: State, record: TrialClaim, commit: Commit) -> Verdict:
    trial = _find(state, record.number)
    if trial is None:
        return _refuse(state, "no such trial")
    if (trial.state, TrialClaim) not in TRANSITIONS:
        return _refuse(state, "finished" if trial.state is not RUNNING else "not waiting", trial.number)
    closed = state.closed_because() or ("draining" if state.is_draining(commit.owner) else None)
    if closed is not None:
        return _refuse(state, closed, trial.number)
    return _start(state, trial, commit)


def _set_trial(state: State, record: TrialSet, commit: Commit) -> Verdict:
    trial = _find(state, record.number)
    if trial is None:
        return _refuse(state, "no such trial")
    if not _can_be_merged(state, record):
        return _refuse(state, "malformed", trial.number)
    rule = TRANSITIONS.get((trial.state, TrialSet))
    if rule is None:
        fenced = trial.owner is not None and not _has_lease(trial, record.epoch, commit)
        return _refuse(state, "fenced" if fenced else "finished", trial.number)
    needs_lease, _ = rule
    if needs_lease and not _has_lease(trial, record.epoch, commit):
        return _refuse(state, "fenced", trial.number)
    _merge(state, trial, record)
    trial.stopping = trial.stopping or (record.stopping and trial.stop is not None)
    state.changed.add(trial.number)
    return Verdict(True, trial.number)


def _checkpoint(state: State, record: TrialCheckpoint, commit: Commit) -> Verdict:
    trial = _find(state, record.number)
    if trial is None:
        return _refuse(state, "no such trial")
    if (trial.state, TrialCheckpoint) not in TRANSITIONS or not _has_lease(trial, record.epoch, commit):
        return _refuse(state, "fenced", trial.number)
    trial.checkpoints = (*trial.checkpoints, record.checkpoint)[-CHECKPOINTS_KEPT:]
    return Verdict(True, trial.number)


def _can_end(state: State, to: TrialState, values: tuple[float, ...] | None) -> bool:
    """Whether a trial in this state may have these values: one a direction, and if COMPLETE, all of them numbers."""
    if values is None:
        return to is not COMPLETE
    if state.define is None or len(values) != len(state.define.directions):
        return False
    return to is not COMPLETE or not any(map(math.isnan, values))


def _finish(state: State, record: TrialFinish, commit: Commit) -> Verdict:
    trial = _find(state, record.number)
    if trial is None:
        return _refuse(state, "no such trial")
    if record.state not in (COMPLETE, PRUNED, FAIL) or not _can_end(state, record.state, record.values):
        return _refuse(state, "malformed", trial.number)
    rule = TRANSITIONS.get((trial.state, TrialFinish))
    if rule is not None and not rule[0]:
        if not _has_place_for(state, record.state):
            return _refuse(state, "budget", trial.number)
        _close(state, trial, record.state, commit.at, values=record.values, reason=record.reason)
        return Verdict(True, trial.number)
    if _has_lease(trial, record.epoch, commit):
        if rule is None:
            return _refuse(state, "finished", trial.number)
        _close(state, trial, record.state, commit.at, values=record.values, reason=record.reason)
        return Verdict(True, trial.number)
    lost = next((t for t in trial.history if (t.owner, t.epoch) == (commit.owner, record.epoch)), None)
    if lost is None or record.state is not COMPLETE:
        return _refuse(state, "fenced", trial.number)
    if lost.kept_as is not None:
        return _refuse(state, "finished", lost.kept_as)
    return _keep_late(state, trial, record, commit)


def _close(
    state: State,
    trial: Trial,
    to: TrialState,
    at: int,
    *,
    values: tuple[float, ...] | None = None,
    reason: str | None = None,
    own_fault: bool = True,
) -> None:
    """End a trial. `own_fault` tells a failure of the objective from an interruption."""
    _move(state, trial, to)
    trial.end = at
    trial.stop, trial.stopping = None, False
    if values is not None:
        trial.values = values
    if reason is not None:
        trial.reason = reason
    if to is not FAIL:
        state.failures_in_a_row = 0
    elif own_fault:
        state.failures_in_a_row += 1


def _keep_late(state: State, lost: Trial, record: TrialFinish, commit: Commit) -> Verdict:
    """A fenced peer's complete result becomes a trial of its own; a retry that it makes needless makes room for it.

    What its owner could not send while it had the lease comes with the result, in the same commit, and is kept too.
    The budget stays exact. Without a free place, a retry that runs is withdrawn; without one, the result is kept as
    a FAIL trial whose attribute `hopaas:late_values` holds it.
    """
    _count(state, "late")
    retry = _last_retry(state, lost)
    if retry is not None and retry.state is WAITING:
        _close(state, retry, FAIL, commit.at, reason=f"withdrawn: #{lost.number} came back", own_fault=False)
    full = state.budget is not None and state.used() >= state.budget
    if full and retry is not None and retry.state is RUNNING:
        _end_tenure(retry, commit.at, f"withdrawn: #{lost.number} came back")
        _close(state, retry, FAIL, commit.at, reason=f"withdrawn: #{lost.number} came back", own_fault=False)
        retry.epoch += 1
        full = False
    late = _append(state, FAIL if full else COMPLETE)
    late.late_of = lost.number
    late.attempt = lost.attempt
    late.owner, late.epoch = commit.owner, record.epoch
    late.params, late.dists, late.reports = dict(lost.params), dict(lost.dists), dict(lost.reports)
    late.user, late.system = lost.user, {**lost.system, "late_of": str(lost.number)}
    lease = (lost.number, record.epoch)
    unsent = [r for r in commit.records if isinstance(r, TrialSet) and (r.number, r.epoch) == lease]
    for said in unsent:  # refused, for it came behind the reclaim, but a part of the result
        if _can_be_merged(state, said):
            _merge(state, late, said)
    late.start, late.end = lost.start, commit.at
    if full:
        late.reason = f"late result of #{lost.number}; the budget was used up"
        late.system["hopaas:late_values"] = msgspec.json.encode(record.values).decode()
    else:
        late.values = record.values
    lost.history = tuple(
        msgspec.structs.replace(t, kept_as=late.number) if t.epoch == record.epoch else t for t in lost.history
    )
    state.changed.add(lost.number)
    state.blocks.pop(lost.number // BLOCK, None)
    return Verdict(False, late.number, "late")


def _last_retry(state: State, trial: Trial) -> Trial | None:
    """The newest attempt at this trial's parameters after it, if there was another."""
    retry = None
    while trial.retried_by is not None:
        retry = trial = state.trials[trial.retried_by]
    return retry


def _end_tenure(trial: Trial, at: int, why: str) -> None:
    if trial.owner is not None:
        trial.history = (*trial.history, Tenure(trial.owner, trial.epoch, trial.start, at, why))


def _release(state: State, record: TrialRelease, commit: Commit) -> Verdict:
    trial = _find(state, record.number)
    if trial is None:
        return _refuse(state, "no such trial")
    if (trial.state, TrialRelease) not in TRANSITIONS:
        return _refuse(state, "not running", trial.number)
    if not _has_lease(trial, record.epoch, commit):
        return _refuse(state, "fenced", trial.number)
    if record.fail:
        _close(state, trial, FAIL, commit.at, reason=record.reason, own_fault=False)
        return Verdict(True, trial.number)
    _end_tenure(trial, commit.at, record.reason or "released")
    _move(state, trial, WAITING)
    trial.owner = None
    trial.stop, trial.stopping = None, False
    trial.start = None
    trial.reports = _reports_to_resume(trial)
    return Verdict(True, trial.number)


def _reclaim(state: State, record: TrialReclaim, commit: Commit) -> Verdict:
    trial = _find(state, record.number)
    if trial is None:
        return _refuse(state, "no such trial")
    if (trial.state, TrialReclaim) not in TRANSITIONS:
        return _refuse(state, "not running", trial.number)
    if trial.epoch != record.epoch:
        return _refuse(state, "fenced", trial.number)
    _end_tenure(trial, commit.at, record.reason)
    trial.epoch += 1
    last_try = trial.attempt >= state.policy.attempts
    if last_try and state.policy.interrupted == "prune" and trial.reports:
        last = (trial.reports[max(trial.reports)],)
        told = last if _can_end(state, COMPLETE, last) else None
        _close(state, trial, PRUNED, commit.at, values=told, reason=record.reason)
        return Verdict(True, trial.number)
    _close(state, trial, FAIL, commit.at, reason=record.reason, own_fault=False)
    if not last_try:
        _queue_retry(state, trial)
    return Verdict(True, trial.number)


def _reports_to_resume(trial: Trial) -> dict[int, float]:
    """What the next owner need not report again: the steps up to the newest checkpoint."""
    if not trial.checkpoints:
        return {}
    last = trial.checkpoints[-1].step
    return {step: value for step, value in trial.reports.items() if step <= last}


def _queue_retry(state: State, trial: Trial) -> None:
    """The same parameters once more, with the attributes that Optuna's own retry callback writes."""
    retry = _append(state, WAITING)
    retry.params, retry.dists, retry.user = dict(trial.params), dict(trial.dists), trial.user
    retry.reports, retry.checkpoints = _reports_to_resume(trial), trial.checkpoints
    retry.attempt = trial.attempt + 1
    retry.retry_of = trial.number
    trial.retried_by = retry.number
    history = [trial.number]
    earlier = trial
    while earlier.retry_of is not None:
        earlier = state.trials[earlier.retry_of]
        history.insert(0, earlier.number)
    retry.system = {
        **trial.system,
        "failed_trial": str(history[0]),
        "retry_history": msgspec.json.encode(history).decode(),
    }


def _stop(state: State, record: TrialStop, _commit: Commit) -> Verdict:
    trial = _find(state, record.number)
    if trial is None:
        return _refuse(state, "no such trial")
    if (trial.state, TrialStop) not in TRANSITIONS:
        return _refuse(state, "not running", trial.number)
    if trial.epoch != record.epoch:
        return _refuse(state, "fenced", trial.number)
    trial.stop = record.reason or "somebody asked"
    state.changed.add(trial.number)
    return Verdict(True, trial.number)


_RULES: Final[dict[type, Callable[[State, Any, Commit], Verdict]]] = {
    StudyDefine: _define,
    StudySet: _set_study,
    StudyControl: _control,
    PeerJoin: _join,
    PeerDrain: _drain,
    TrialCreate: _create,
    TrialClaim: _claim,
    TrialSet: _set_trial,
    TrialCheckpoint: _checkpoint,
    TrialFinish: _finish,
    TrialRelease: _release,
    TrialReclaim: _reclaim,
    TrialStop: _stop,
    Opaque: lambda state, _record, _commit: _refuse(state, "malformed"),
}
