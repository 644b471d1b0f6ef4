"""`apply` changes a State by the next commit of its log, and returns verdicts on the commit's records.

`apply` gives the same State on every peer, whatever its Python version, time zone and hash seed. It never asks whether
this process is the writer, and never raises on content. A record is accepted, or refused with a reason that its writer
finds in the verdict. `TRANSITIONS` defines a record's effects on a trial. Owner and epoch of the lease determine which
peer may write it. If the store names authors, no author may write for another author's peer: all records of a commit
whose writer or owner belongs to another author are refused. Such a commit changes nothing in the study except the
count of refusals; like every commit, it takes an lsn.

The file has `apply`, then one function per kind of record, then their common steps. `validity` holds the
rules for content that no record may have, whoever wrote it.
"""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Callable, Collection
from typing import Any, Final

import msgspec

from hopaas_p2p.core.admission import NEW, Continue, New, NextStart, Start, next_start, refused
from hopaas_p2p.core.attributes import (
    AGAIN,
    CMAES,
    CONTINUES,
    COPIES,
    EXPORTER,
    FIDELITY,
    LATE_VALUES,
    MOST_REPLICATES,
    OWNERS_ATTRIBUTES,
    REPLICATE,
    RESUMED,
)
from hopaas_p2p.core.codec import Garbage
from hopaas_p2p.core.configurations import Configurations
from hopaas_p2p.core.fidelity import Population, Rungs, decode_fidelity
from hopaas_p2p.core.inherited import LAST_STEP, branch, cut, grown, if_few, inherited, last_step, linked, merged
from hopaas_p2p.core.ledger import BOOKED, UNLIMITED, Ledger, OpenLease, announced, epochs, possible_limits
from hopaas_p2p.core.lineage import resumed_step
from hopaas_p2p.core.perturbation import fraction, perturbed
from hopaas_p2p.core.populations import Members
from hopaas_p2p.core.records import (
    FROM_START,
    UNSTAMPED,
    Categorical,
    Commit,
    Distribution,
    LeaseRecord,
    Opaque,
    PastLease,
    PeerDrain,
    PeerJoin,
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
    TrialTakeOver,
)
from hopaas_p2p.core.rungs import Ladder
from hopaas_p2p.core.state import (
    BLOCK,
    CHECKPOINTS_KEPT,
    COMPLETE,
    FAIL,
    NEVER_PAUSING,
    PRUNED,
    RUNNING,
    TAKES_A_PLACE,
    TRANSITIONS,
    WAITING,
    LastCommit,
    LateFinish,
    Replicates,
    State,
    Trial,
    Verdict,
)
from hopaas_p2p.core.validity import (
    MAX_BUDGET,
    MAX_WAITING,
    MOST_ATTEMPTS,
    MOST_METRICS,
    STATUSES,
    constraints_of,
    possible_attributes,
    possible_definition,
    possible_distributions,
    possible_metric,
    possible_system,
    possible_time,
    widened_distributions,
)

OWNERS_ONLY: Final = frozenset({StudyControl, PeerDrain, TrialStop, TrialTakeOver})
"""Kinds of records that a commit stamped *worker* may not contain, except a stop where the policy has a progress
timeout."""

_ACCEPTED: Final = Verdict(True)
_UNKNOWN: Final[dict[str, str]] = {}  # a peer that has not introduced itself
_ENDS: Final = TRANSITIONS[RUNNING, TrialFinish].to
_LATE_LEASES: Final = 4
"""How many of a trial's first leases may have a late result, besides its last lease. Each late result inherits all of
the trial's data."""
_MOST_COPIED: Final = 16 << 20
"""The most bytes that parameters and attributes of all replicates of a configuration may take in a snapshot."""
_OF_AN_ATTEMPT: Final = frozenset({"failed_trial", "retry_history", COPIES, RESUMED})
"""System attributes of a trial that a continuation does not inherit from its predecessor."""
_OF_PARAMETERS: Final = frozenset({"constraints", "fixed_params", "grid_id", AGAIN, CMAES})
"""System attributes that a continuation with other parameters does not inherit either, nor any constraints."""


def apply(state: State, lsn: int, commit: Commit | Garbage, stamp: Stamp = UNSTAMPED) -> tuple[Verdict, ...]:
    """Apply the commit at `lsn` to `state` and return the verdict on each of its records.

    Commits come in order without gaps: lsn is `state.lsn + 1`. There are no verdicts on garbage. A duplicate of the
    writer's latest commit gets the verdicts of that commit, and an older duplicate gets none. `state.sum` is None
    afterwards; the caller sets it.
    """
    state.lsn, state.sum, state.stored = lsn, None, stamp.at
    state.unsent.clear()
    state.touched.clear()
    known = state.decided(commit, stamp)
    if known is not None:
        return known
    assert isinstance(commit, Commit)
    limited, verdicts = state.ledger.limits is not UNLIMITED, []
    if limited:
        state.ledger.look(commit.writer, stamp.at or commit.at)
        _judge(state)
    for record in commit.records:
        verdicts.append(_apply_record(state, record, commit, stamp))
        if state.configurations is not NEVER_PAUSING:
            state.configurations.refresh(state.trials, state.touched)
        if limited:  # a limit that a record reaches applies from the next record on
            _judge(state)
    decided = tuple(verdicts)
    state.writers[commit.writer] = LastCommit(commit.seq, lsn, decided, stamp.author)
    if commit.owner != commit.writer:
        last = state.writers.get(commit.owner, LastCommit(0, lsn, (), stamp.author))
        state.writers[commit.owner] = msgspec.structs.replace(last, lsn=lsn)
    return decided


def _judge(state: State) -> None:
    """End the study if a limit is reached, so that no more trials start, and running ones are asked to end."""
    ledger = state.ledger
    if ledger.reached is None:
        ledger.reached = ledger.judge()
        for number in state.running if ledger.reached is not None else ():
            trial = state.trials[number]
            trial.stop = trial.stop or ledger.reached
            state.changed.add(number)


def _apply_record(state: State, record: Any, commit: Commit, stamp: Stamp) -> Verdict:
    kind = type(record)
    found = _RULES.get(kind)
    if found is None:
        return state.refuse("malformed")
    if (state.define is None) != (kind is StudyDefine):
        return state.refuse("undefined")
    if stamp.role != "owner":
        stops = kind is TrialStop and state.policy.progress_timeout is not None
        if stamp.role != "worker" or not (stops or may_be_a_workers(record)):
            return state.refuse("role")
    if stamp.author and kind is PeerJoin:  # the user as the store identified it
        info = {**record.info, "user": stamp.author}
        if stamp.role != "owner":  # only a service with an owner's role may act for others by name
            info.pop("on_behalf_of", None)
        record = PeerJoin(info)
    rule, absent = found
    number: int | None = None
    if absent is None:
        said = rule(state, record, commit)
    else:
        number, trials = record.number, state.trials
        if not 0 <= number < trials.size:
            return state.refuse("no such trial")
        block = trials.open.get(number // BLOCK)  # almost always
        trial = trials.named(number) if block is None else block[number % BLOCK]
        said = _refusal(trial, record, commit, absent=absent) if absent else None
        if said is None:
            said = rule(state, trial, record, commit)
    if said is None:
        return _ACCEPTED if number is None else Verdict(True, number)
    return state.refuse(said, number) if isinstance(said, str) else said


def may_be_a_workers(record: object) -> bool:
    """Whether a worker may write this record in every study; otherwise only an owner may."""
    if isinstance(record, StudySet):
        return OWNERS_ATTRIBUTES.isdisjoint(record.system)
    return type(record) not in OWNERS_ONLY


def _define(state: State, record: StudyDefine, _commit: Commit) -> str | None:
    if not possible_definition(record):
        return "malformed"
    state.define, state.policy = record, record.policy
    state.budget = record.policy.budget
    state.dists.update(record.space)
    state.ledger = Ledger(record.policy.limits, record.directions[0] == "maximize")
    return None


def _set_study(state: State, record: StudySet, commit: Commit) -> str | None:
    if not _can_be_read(state, record):
        return "malformed"
    if record.user:
        state.user = merged(state.user, record.user)
    if record.system:
        counts = {key: text for key, text in record.system.items() if not _elects_another(state, key, text, commit)}
        if not (counts or record.user):
            return "author"
        state.system = merged(state.system, counts)
        if FIDELITY in record.system:
            follow_fidelity(state)
    return None


def _elects_another(state: State, key: str, text: str, commit: Commit) -> bool:
    """Whether this attribute would make a peer other than the commit's owner the exporter; it might never export."""
    if not key.startswith(EXPORTER):
        return False
    named, before = (json.loads(one).get("peer") for one in (text, state.system.get(key, "{}")))
    return named not in (None, commit.owner, before)


def follow_fidelity(state: State) -> None:
    """Sort the trials by the rungs or the population that the study's attributes define now."""
    text = state.system.get(FIDELITY)
    if text is None or state.define is None:
        return
    policy = decode_fidelity(text) if len(state.define.directions) == 1 else None
    if state.configurations is not NEVER_PAUSING and state.configurations.policy == policy:
        return
    kinds: dict[type, type[Configurations]] = {Rungs: Ladder, Population: Members}
    kind = kinds.get(type(policy), Configurations)
    state.configurations = kind(policy, maximize=state.define.directions[0] == "maximize")
    state.configurations.refresh(state.trials, state.touched)


def _control(state: State, record: StudyControl, _commit: Commit) -> str | None:
    if record.status not in (None, *STATUSES) or (record.budget or 0) > MAX_BUDGET:
        return "malformed"
    if record.limits is not None:
        if state.define is None or not possible_limits(record.limits, len(state.define.directions)):
            return "malformed"
        before = state.ledger.reached
        state.ledger.limit(record.limits)
        for number in state.running if before is not None else ():
            trial = state.trials[number]  # an owner that has not seen the request to end continues
            if trial.stop == before and not trial.stopping:
                trial.stop = None
                state.changed.add(number)
    if record.status is not None:
        state.status = record.status
        if record.status == "running":
            state.failures_in_a_row = 0
    if record.budget is not None:
        state.budget = None if record.budget < 0 else record.budget
    return None


def _join(state: State, record: PeerJoin, commit: Commit) -> None:
    state.peers[commit.writer] = record.info


def _drain(state: State, record: PeerDrain, _commit: Commit) -> None:
    targets = ([record.peer] if record.peer else []) + ([f"site:{record.site}"] if record.site else [])
    for target in targets:
        if record.off:
            state.draining.pop(target, None)
        else:
            state.draining[target] = None


# --- trials ---


def _create(state: State, record: TrialCreate, commit: Commit) -> Verdict | str:
    """Start, queue or import a trial; with `prefer_waiting`, start or continue an existing one instead, if possible."""
    to, wider = record.state, _own_distributions(state, record)
    if wider is None or not (
        ((record.values is None and to is RUNNING) or _can_end(state, to, record.values))
        and (record.replicates == 1 or can_be_repeated(state, record, record.replicates))
        and (record.start is None or possible_time(record.start))
        and (record.end is None or possible_time(record.end))
    ):
        return "malformed"
    trial, why = Trial(state.trials.size, to), None
    if to is RUNNING and record.prefer_waiting:
        found = next_start(state, commit.owner, skip=frozenset(record.skip) if record.skip else ())
        if found is not NEW:
            return _instead(state, trial, found, commit)
    elif to is RUNNING:
        why = refused(state, commit.owner)
    elif to in TAKES_A_PLACE and not state.has_room():
        why = "budget"
    elif to is WAITING and len(state.waiting) >= MAX_WAITING:
        why = "queue"
    if why is not None:
        return why
    _merge(state, trial, record, wider)
    if to is RUNNING:
        if record.replicates > 1:
            own = {name: trial.dists[name] for name in record.params if name in trial.dists}
            said = Replicates(record.params, own, record.user, record.system, record.replicates)
            state.replicates[trial.number] = said
        return _start(state, trial, commit, commit.at if record.start is None else record.start)
    trial.start = record.start
    if to is not WAITING:
        trial.values, trial.reason = record.values, record.reason
        trial.end = commit.at if record.end is None else record.end
        _note_result(state, trial)
    _enter(state, trial, to)
    return Verdict(True, trial.number)


def _instead(state: State, trial: Trial, found: NextStart, commit: Commit) -> Verdict | str:
    """Start what precedes a new configuration, in `trial` if a new trial is needed, or return why nothing may start."""
    if isinstance(found, Start):
        return _start(state, state.trials[found.number], commit, commit.at, TrialCreate)
    if isinstance(found, Continue):
        return _continue(state, trial, state.trials[found.number], commit)
    if isinstance(found, New):
        return _replicate(state, trial, found.replicate_of or 0, commit)
    return found.why


def _start(state: State, trial: Trial, commit: Commit, at: int, by: type | None = None) -> Verdict:
    """Begin a trial's next lease; what it has already reported is not charged again."""
    _enter(state, trial, RUNNING, by)
    trial.owner, trial.start, trial.resumed = commit.owner, at, None
    trial.epoch += 1
    said = state.peers.get(commit.owner, _UNKNOWN).get
    peer = announced(said("site"), said("on_behalf_of") or said("user"), said("gpus"), said("cores"), said("watts"))
    done, from_zero = epochs(trial.reports) if trial.reports else (0, False)
    state.ledger.open[trial.number] = OpenLease(*peer, commit.at, commit.at, done, done, from_zero, state.stored)
    return Verdict(True, trial.number)


def _replicate(state: State, trial: Trial, first: int, commit: Commit) -> Verdict:
    """Create the next replicate of a configuration, with the same parameters and another seed."""
    said = state.replicates[first]
    trial.params, trial.dists = branch(said.params), branch(said.dists)
    trial.user, trial.system = branch(said.user), branch(said.system)
    trial.system[REPLICATE] = f'{{"of":{first},"seed":{said.seed}}}'
    said.seed += 1
    if said.seed == said.count:
        del state.replicates[first]
    return _start(state, trial, commit, commit.at)


def _continue(state: State, trial: Trial, paused: Trial, commit: Commit) -> Verdict:
    """Create a trial that continues where a paused one stopped.

    It has the paused trial's parameters and checkpoints, and its reports up to the newest checkpoint. In a population
    it may continue where another member stopped; that member's parameters are then perturbed.
    """
    source, without = paused, _OF_AN_ATTEMPT
    policy, sources = state.configurations.population, state.configurations.sources(paused.number)
    if sources:
        without = without | _OF_PARAMETERS | constraints_of(if_few(paused.system) or {}).keys()
    _inherit(trial, paused, without=without)
    trial.continues = paused.number
    trial.system[CONTINUES] = str(paused.number)
    if policy is not None and sources:
        assert state.define is not None
        seed = f"{state.define.name}\0{trial.number}"
        source = state.trials[sources[int(fraction(seed, "", "source") * len(sources))]]
        distributions = {name: source.distribution(name, state) for name in source.params}
        trial.params = perturbed(source.params, distributions, resample=policy.resample, fixed=policy.fixed, seed=seed)
        trial.dists = branch(source.dists)
        trial.system[COPIES] = str(source.number)
    trial.checkpoints = source.checkpoints
    _inherit_reports(trial, source, *_before_checkpoint(state, source))
    return _start(state, trial, commit, commit.at)


def _claim(state: State, trial: Trial, _record: TrialClaim, commit: Commit) -> Verdict | str:
    """Start the WAITING trial that the record names."""
    if (trial.state, TrialClaim) not in TRANSITIONS:
        return "finished" if trial.state is not RUNNING else "not waiting"
    why = refused(state, commit.owner, trial.number)
    return _start(state, trial, commit, commit.at, TrialClaim) if why is None else why


def _set_trial(state: State, trial: Trial, record: TrialSet, commit: Commit) -> str | None:
    """Set parameters, reports and attributes of a trial."""
    wider = _own_distributions(state, record)
    if wider is None:
        return "malformed"
    number, step = trial.number, record.resumed_from
    word = _refusal(trial, record, commit, absent="finished")
    if word is not None:
        word = "finished" if trial.owner is None else word
        state.unsent.setdefault((number, record.epoch), []).append(record)
        return word
    if step is not None and step != trial.resumed:  # each process that acts for the owner reports this step
        trial.resumed = step
        _resume(trial, step)
        if state.configurations.population is not None:  # of several attempts, the lowest is kept
            before = resumed_step(trial)
            trial.system = merged(trial.system, {RESUMED: str(step if before is None else min(step, before))})
        state.ledger.resumed(number, trial.reports)
    state.ledger.heard(number, commit.at, record.used, record.reports)
    _merge(state, trial, record, wider)
    if record.stopping:
        trial.stopping = trial.stopping or trial.stop is not None
    state.changed.add(number)
    if record.reports or step is not None:
        state.touched.add(number)
    return None


def _checkpoint(state: State, trial: Trial, record: TrialCheckpoint, commit: Commit) -> None:
    """Add a checkpoint to resume from; the last two are kept."""
    state.ledger.heard(trial.number, commit.at, None, {})
    trial.checkpoints = (*trial.checkpoints, record.checkpoint)[-CHECKPOINTS_KEPT:]


def _finish(state: State, trial: Trial, record: TrialFinish, commit: Commit) -> Verdict | str | None:
    """End a trial as COMPLETE, PRUNED or FAIL. `_keep_late` keeps a late result."""
    if record.state not in _ENDS or not _can_end(state, record.state, record.values):
        return "malformed"
    word = _refusal(trial, record, commit, absent="finished")
    if word is None and trial.state is WAITING and record.state in TAKES_A_PLACE and not state.has_room(trial.number):
        word = "budget"
    if word is None:
        if record.paused and record.state is PRUNED:
            trial.paused = state.configurations.is_at_rung(trial.number, trial.reports, ever=True)
        outcome = "paused" if trial.paused else BOOKED[record.state]
        state.ledger.ended(trial.number, outcome, commit.at, record.used)
        trial.values = record.values
        _close(state, trial, record.state, TrialFinish, commit.at, record.reason)
        return None
    if word != "fenced":
        return word
    history = trial.history
    place = bisect.bisect_left(history, record.epoch, key=lambda one: one.epoch)
    lease = history[place] if place < len(history) else None
    was_last = place == len(history) - 1 and trial.state is not RUNNING and trial.state is not WAITING
    if (
        lease is None
        or (lease.owner, lease.epoch) != (commit.owner, record.epoch)
        or record.state is not COMPLETE
        or not (was_last or place < _LATE_LEASES)
    ):
        return "fenced"
    if lease.kept_as is not None:
        return state.refuse("finished", lease.kept_as)
    return _keep_late(state, trial, place, record, commit)


def _keep_late(state: State, lost: Trial, place: int, record: TrialFinish, commit: Commit) -> Verdict:
    """Keep a fenced peer's COMPLETE result as a separate trial, and withdraw its retry if that is still waiting.

    Records that the peer could not send while it held the lease arrive in the same commit, and are kept too.
    If the budget has no free place, a running retry is withdrawn. If there is no such retry, the result is kept as a
    FAIL trial whose attribute `hopaas:late_values` holds the values.
    """
    state.refuse("late")
    retry, lost = None, state.trials.opened(lost.number)
    for _ in range(MOST_ATTEMPTS):  # until the newest attempt at its parameters
        if (retry or lost).retried_by is None:
            break
        retry = state.trials.named((retry or lost).retried_by or 0)
    withdrawn = f"withdrawn: #{lost.number} came back"
    ledger = state.ledger
    if retry is not None and retry.state is WAITING:
        ledger.settle(retry.number, "lost")
        _close(state, retry, FAIL, LateFinish, commit.at, withdrawn)
    state.configurations.refresh(state.trials, state.touched)
    full = not state.has_room(lost.number)
    if full and retry is not None and retry.state is RUNNING:
        _end_lease(retry, commit.at, withdrawn)
        ledger.was_lost(retry.number, None, state.stored)
        _close(state, retry, FAIL, LateFinish, commit.at, withdrawn)
        retry.epoch += 1
        full = False
    late = Trial(state.trials.size, FAIL if full else COMPLETE)
    late.late_of = lost.number
    late.attempt = lost.attempt
    late.owner, late.epoch = commit.owner, record.epoch
    for trial in (late, lost):  # both link to the same data, which neither changes
        _inherit(trial, lost)
        _inherit_reports(trial, lost, FROM_START, LAST_STEP)
    late.system["late_of"] = str(lost.number)
    # These records were refused because they arrived after the reclaim, but they are part of the result.
    for said in state.unsent.get((lost.number, record.epoch), ()):
        wider = _own_distributions(state, said)
        if wider is not None:
            if said.resumed_from not in (None, late.resumed):
                late.resumed = said.resumed_from
                _resume(late, said.resumed_from)
            _merge(state, late, said, wider)
    late.resumed = None
    late.start, late.end = lost.start, commit.at
    if full:
        late.reason = f"late result of #{lost.number}; the budget was used up"
        late.system[LATE_VALUES] = msgspec.json.encode(record.values).decode()
    else:
        late.values = record.values
    if place == len(lost.history) - 1:  # an earlier lease was given back, and has been counted
        ledger.came_late(lost.number, commit.at, record.used, late.reports)
    _note_result(state, late)
    _enter(state, late, late.state)
    lost.history = list(lost.history)
    lost.history[place] = msgspec.structs.replace(lost.history[place], kept_as=late.number)
    state.changed.add(lost.number)
    return Verdict(False, late.number, "late")


def _release(state: State, trial: Trial, record: TrialRelease, commit: Commit) -> None:
    """Return the trial on behalf of its owner: to WAITING, or to FAIL for good. A trial that was asked to stop is
    PRUNED, unless a limit of the study asked.
    """
    asked = trial.stop if trial.stop != state.ledger.reached else None
    if record.fail or asked is not None:
        to, reason = (FAIL, record.reason) if record.fail else (PRUNED, asked)
        state.ledger.ended(trial.number, BOOKED[to], commit.at, record.used)
        trial.values = None if record.fail else _newest_value(state, trial)
        _close(state, trial, to, TrialRelease, commit.at, reason)
        return
    state.ledger.ended(trial.number, "given back", commit.at, record.used)
    _end_lease(trial, commit.at, record.reason or "released")
    _enter(state, trial, WAITING, TrialRelease)
    trial.owner = None
    trial.stop, trial.stopping = None, False
    trial.start = None
    first, last = _before_checkpoint(state, trial)
    _resume(trial, last, first)


def _reclaim(state: State, trial: Trial, record: TrialReclaim, commit: Commit) -> str | None:
    """End a trial whose owner an observer found silent or stuck; queue its parameters again while attempts remain."""
    if record.seen is not None and state.has_written(trial.owner, since=record.seen):
        return "alive"
    _end_lease(trial, commit.at, record.reason)
    state.ledger.was_lost(trial.number, record.lived, state.stored)
    trial.epoch += 1
    last_try = trial.attempt >= state.policy.attempts
    prunes = last_try and state.policy.interrupted == "prune" and trial.reports
    trial.values = _newest_value(state, trial) if prunes else None
    _close(state, trial, PRUNED if prunes else FAIL, TrialReclaim, commit.at, record.reason)
    if last_try:
        return None
    # the same parameters again, with the attributes that Optuna's own retry callback writes
    retry = Trial(state.trials.size, WAITING)
    _inherit(retry, trial, without=(RESUMED,))
    retry.checkpoints = trial.checkpoints
    _inherit_reports(retry, trial, *_before_checkpoint(state, trial))
    retry.attempt = trial.attempt + 1
    retry.retry_of, trial.retried_by = trial.number, retry.number
    history, earlier = [trial.number], trial
    while earlier.retry_of is not None and len(history) < MOST_ATTEMPTS:
        earlier = state.trials.named(earlier.retry_of)
        history.insert(0, earlier.number)
    retry.system["failed_trial"] = str(history[0])
    retry.system["retry_history"] = msgspec.json.encode(history).decode()
    _enter(state, retry, WAITING)
    return None


def _take_over(state: State, trial: Trial, record: TrialTakeOver, commit: Commit) -> str | None:
    """An operator ends the trial. A result that the owner sends after that is kept as a late one."""
    if record.state not in TRANSITIONS[RUNNING, TrialTakeOver].to or not _can_end(state, record.state, record.values):
        return "malformed"
    _end_lease(trial, commit.at, f"taken over by {record.by}" if record.by else "taken over")
    state.ledger.ended(trial.number, BOOKED[record.state])
    trial.epoch += 1
    trial.values = record.values
    _close(state, trial, record.state, TrialTakeOver, commit.at, record.reason)
    return None


def _before_checkpoint(state: State, trial: Trial) -> tuple[int, int]:
    """The range of steps up to the newest checkpoint, whose reports the next owner need not send again.

    The range is empty if there is no checkpoint. In a population, it is the last interval, because each of a member's
    many continuations would otherwise repeat all reports.
    """
    if not trial.checkpoints:
        return 0, -1
    last = trial.checkpoints[-1].step
    population = state.configurations.population
    return FROM_START if population is None else last - population.every + 1, last


def _inherit(trial: Trial, before: Trial, *, without: Collection[str] = ()) -> None:
    """Give a new trial the parameters and attributes of a finished one."""
    trial.params, trial.dists = branch(before.params), branch(before.dists)
    trial.user, trial.system = branch(before.user), branch(before.system, without)


def _inherit_reports(trial: Trial, before: Trial, first: int, last: int) -> None:
    """Give a new trial the reports of a finished one at these steps."""
    before.reports = linked(before.reports)
    before.metrics = {name: linked(values) for name, values in before.metrics.items()}
    trial.reports = inherited(before.reports, first, last)
    metrics = {name: inherited(values, first, last) for name, values in before.metrics.items()}
    trial.metrics = {name: values for name, values in metrics.items() if values}


def _stop(state: State, trial: Trial, record: TrialStop, _commit: Commit) -> None:
    """Ask the owner of this epoch to end its trial."""
    trial.stop = record.reason or "somebody asked"
    state.changed.add(trial.number)


# --- common steps, which keep the counts and indexes of a State consistent ---


def _own_distributions(state: State, record: TrialSet | TrialCreate | Replicates) -> dict[str, Distribution] | None:
    """Distributions for the parameters outside their ranges; None if the record cannot be merged into a trial."""
    if record.dists and not possible_distributions(record.dists, state.dists):
        return None
    if (record.user or record.system) and not _can_be_read(state, record):
        return None
    given, known = record.dists, state.dists
    for name, value in record.params.items():
        own = (given and given.get(name)) or known.get(name)
        if own is None or own.__class__ is Categorical or not own.low <= value <= own.high:  # type: ignore[union-attr]
            return widened_distributions(record.params, given, known)
    return {}  # almost always


def can_be_repeated(state: State, record: TrialCreate | Replicates, count: int) -> bool:
    """Whether a configuration may get this many trials, each of which adds parameters and attributes to snapshots."""
    texts = [len(name) + len(text) for some in (record.user, record.system) for name, text in some.items()]
    weight = sum(texts) + sum([len(name) + 8 for name in record.params])  # roughly their bytes
    fits = 1 <= count <= MOST_REPLICATES and count * weight <= _MOST_COPIED
    return fits and _own_distributions(state, record) is not None


def _can_be_read(state: State, record: StudySet | TrialSet | TrialCreate | Replicates) -> bool:
    """Whether every reader can handle the attributes in this record."""
    directions = 0 if state.define is None else len(state.define.directions)
    return possible_attributes(record.user, record.system) and possible_system(record.system, directions)


def _can_end(state: State, to: TrialState, values: tuple[float, ...] | None) -> bool:
    """Whether a trial in this state may have these values: one number per direction, or none unless it is COMPLETE.

    An infinity is a number, but NaN is not.
    """
    if values is None:
        return to is not COMPLETE
    define = state.define
    return define is not None and len(values) == len(define.directions) and not any(map(math.isnan, values))


def _refusal(trial: Trial, record: LeaseRecord, commit: Commit, *, absent: str) -> str | None:
    """The key of `REFUSALS` if `TRANSITIONS` forbids this record now; None if the record is allowed.

    `absent` is the key for a move that is not listed there. Instead of "finished", the key is "fenced" unless the
    commit's owner and the record's epoch are those of the trial's last lease.
    """
    allowed = TRANSITIONS.get((trial.state, type(record)))
    fenced = trial.epoch != record.epoch or trial.owner != commit.owner
    if allowed is None:
        return "fenced" if absent == "finished" and fenced else absent
    if allowed.needs == "lease":
        return "fenced" if fenced else None
    return "fenced" if allowed.needs == "epoch" and trial.epoch != record.epoch else None


def _enter(state: State, trial: Trial, to: TrialState, by: type | None = None) -> None:
    """Move the trial to another state by a record of type `by`; without `by`, append a new trial in that state."""
    number = trial.number
    if by is None:
        state.trials.append(trial)
    else:
        assert to in TRANSITIONS[trial.state, by].to
        state.counts[trial.state] -= 1
        if trial.state is RUNNING:
            del state.running[number]
        elif trial.state is WAITING:
            del state.waiting[number]
    trial.state = to
    state.counts[to] += 1
    if to is RUNNING:
        state.running[number] = None
    elif to is WAITING:
        state.waiting[number] = None
    state.changed.add(number)
    state.touched.add(number)


def _resume(trial: Trial, last: int, first: int = FROM_START) -> None:
    """Drop an earlier attempt's reports and metrics outside the steps from `first` to `last`."""
    trial.reports = cut(trial.reports, first, last)
    metrics = {name: cut(values, first, last) for name, values in trial.metrics.items()}
    trial.metrics = {name: values for name, values in metrics.items() if values}


def _merge(state: State, trial: Trial, record: TrialSet | TrialCreate, wider: dict[str, Distribution]) -> None:
    """Merge a record into its trial. Parameters outside their distributions get those in `wider`."""
    if record.params:
        for name in record.params if record.dists or trial.dists else ():
            first, given = state.dists.get(name), record.dists.get(name)
            if first is None and given is not None:
                state.dists[name] = given
            elif given is not None and given != first:
                trial.dists[name] = given
            elif name in trial.dists:  # set again, now from the parameter's first distribution
                del trial.dists[name]
        trial.params.update(record.params)
        if wider:
            trial.dists.update(wider)
    if record.reports:
        trial.reports = grown(trial.reports, record.reports)
    for name, values in record.metrics.items() if record.metrics else ():
        if name in trial.metrics or (possible_metric(name) and len(trial.metrics) < MOST_METRICS):
            trial.metrics[name] = grown(trial.metrics.get(name, {}), values)
        else:  # the rest of its record is kept
            state.refuse("malformed")
    if record.user:
        trial.user = merged(trial.user, record.user)
    if record.system:
        trial.system = merged(trial.system, record.system)


def _newest_value(state: State, trial: Trial) -> tuple[float, ...] | None:
    """The newest report as the values of a pruned trial, if it can be that."""
    newest = last_step(trial.reports)
    last = () if newest is None else (trial.reports[newest],)
    return last if _can_end(state, COMPLETE, last) else None


def _close(state: State, trial: Trial, to: TrialState, by: type, at: int, reason: str | None) -> None:
    """End a trial. Failures that a `trial.finish` or an operator recorded count as failures in a row; others do not."""
    _enter(state, trial, to, by)
    trial.end, trial.resumed = at, None
    trial.stop, trial.stopping = None, False
    if reason is not None:
        trial.reason = reason
    if to is not FAIL:
        state.failures_in_a_row = 0
        _note_result(state, trial)
    elif by in (TrialFinish, TrialTakeOver):
        state.failures_in_a_row += 1


def _note_result(state: State, trial: Trial) -> None:
    """Record in the ledger that a trial ended COMPLETE or PRUNED, with its value if it is feasible and the only one."""
    if trial.state is not FAIL:
        value, define = None, state.define
        if trial.state is COMPLETE and trial.values and define is not None and len(define.directions) == 1:
            value = trial.values[0] if not trial.system or trial.feasible else None
        state.ledger.result(trial.end or 0, value)


def _end_lease(trial: Trial, at: int, why: str) -> None:
    """Append the current lease to the trial's history."""
    if trial.owner is not None:
        if not isinstance(trial.history, list):
            trial.history = list(trial.history)
        trial.history.append(PastLease(trial.owner, trial.epoch, trial.start, at, why))


_RULES: Final[dict[type, tuple[Callable[..., Verdict | str | None], str | None]]] = {
    StudyDefine: (_define, None),
    StudySet: (_set_study, None),
    StudyControl: (_control, None),
    PeerJoin: (_join, None),
    PeerDrain: (_drain, None),
    TrialCreate: (_create, None),
    TrialClaim: (_claim, ""),
    TrialSet: (_set_trial, ""),
    TrialCheckpoint: (_checkpoint, "fenced"),
    TrialFinish: (_finish, ""),
    TrialRelease: (_release, "not running"),
    TrialReclaim: (_reclaim, "not running"),
    TrialTakeOver: (_take_over, "not running"),
    TrialStop: (_stop, "not running"),
    Opaque: (lambda _state, _record, _commit: "malformed", None),
}
"""The rule for each kind of record. A rule returns None to accept the record, a key of `REFUSALS`, or the verdict.
The second entry is None for records that name no trial. For other records, the trial is looked up and passed to the
rule. If the entry is a nonempty string, it is the `absent` of `_refusal`, which must allow the record first."""
