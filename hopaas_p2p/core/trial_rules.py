"""What each record does to a trial: one function a kind of record. Which may come when, see `TRANSITIONS`."""

from __future__ import annotations

import msgspec

from hopaas_p2p.core.changes import (
    append,
    can_be_merged,
    can_end,
    close,
    count,
    describes_a_trial,
    end_tenure,
    has_lease,
    has_place_for,
    merge,
    move,
    refuse,
)
from hopaas_p2p.core.records import (
    Commit,
    TrialCheckpoint,
    TrialClaim,
    TrialCreate,
    TrialFinish,
    TrialReclaim,
    TrialRelease,
    TrialSet,
    TrialStop,
)
from hopaas_p2p.core.state import (
    BLOCK,
    CHECKPOINTS_KEPT,
    COMPLETE,
    FAIL,
    PRUNED,
    RUNNING,
    TRANSITIONS,
    WAITING,
    State,
    Trial,
    Verdict,
)


def create(state: State, record: TrialCreate, commit: Commit) -> Verdict:
    """A trial starts, is queued, or is imported; `prefer_waiting` starts the oldest that waits instead."""
    if not describes_a_trial(state, record):
        return refuse(state, "malformed")
    if record.state is RUNNING:
        closed = state.closed_to(commit.owner)
        if closed is not None:
            return refuse(state, closed)
        waiting = next((number for number in state.waiting if number not in record.skip), None)
        if record.prefer_waiting and waiting is not None:
            return _start(state, state.trials[waiting], commit)
    elif not has_place_for(state, record.state):
        return refuse(state, "budget")
    trial = append(state, record.state)
    merge(state, trial, record)
    if record.state is RUNNING:
        trial.owner, trial.epoch = commit.owner, 1
        trial.start = commit.at if record.start is None else record.start
        return Verdict(True, trial.number)
    trial.start = record.start
    if record.state is not WAITING:
        trial.values, trial.reason = record.values, record.reason
        trial.end = commit.at if record.end is None else record.end
    return Verdict(True, trial.number)


def _start(state: State, trial: Trial, commit: Commit) -> Verdict:
    move(state, trial, RUNNING)
    trial.owner = commit.owner
    trial.epoch += 1
    trial.start = commit.at
    return Verdict(True, trial.number)


def claim(state: State, trial: Trial, _record: TrialClaim, commit: Commit) -> Verdict:
    """A WAITING trial is started by name."""
    if (trial.state, TrialClaim) not in TRANSITIONS:
        return refuse(state, "finished" if trial.state is not RUNNING else "not waiting", trial.number)
    closed = state.closed_to(commit.owner)
    if closed is not None:
        return refuse(state, closed, trial.number)
    return _start(state, trial, commit)


def set_trial(state: State, trial: Trial, record: TrialSet, commit: Commit) -> Verdict:
    """Parameters, reports, attributes."""
    if not can_be_merged(state, record):
        return refuse(state, "malformed", trial.number)
    rule = TRANSITIONS.get((trial.state, TrialSet))
    if rule is None:
        fenced = trial.owner is not None and not has_lease(trial, record.epoch, commit)
        return refuse(state, "fenced" if fenced else "finished", trial.number)
    needs_lease, _ = rule
    if needs_lease and not has_lease(trial, record.epoch, commit):
        return refuse(state, "fenced", trial.number)
    merge(state, trial, record)
    trial.stopping = trial.stopping or (record.stopping and trial.stop is not None)
    state.changed.add(trial.number)
    return Verdict(True, trial.number)


def checkpoint(state: State, trial: Trial, record: TrialCheckpoint, commit: Commit) -> Verdict:
    """A place to resume from; the newest two are kept."""
    if (trial.state, TrialCheckpoint) not in TRANSITIONS or not has_lease(trial, record.epoch, commit):
        return refuse(state, "fenced", trial.number)
    trial.checkpoints = (*trial.checkpoints, record.checkpoint)[-CHECKPOINTS_KEPT:]
    return Verdict(True, trial.number)


def finish(state: State, trial: Trial, record: TrialFinish, commit: Commit) -> Verdict:
    """COMPLETE, PRUNED or FAIL. A result that comes after the lease is kept, see `_keep_late`."""
    if record.state not in (COMPLETE, PRUNED, FAIL) or not can_end(state, record.state, record.values):
        return refuse(state, "malformed", trial.number)
    rule = TRANSITIONS.get((trial.state, TrialFinish))
    if rule is not None and not rule[0]:
        if not has_place_for(state, record.state):
            return refuse(state, "budget", trial.number)
        close(state, trial, record.state, commit.at, values=record.values, reason=record.reason)
        return Verdict(True, trial.number)
    if has_lease(trial, record.epoch, commit):
        if rule is None:
            return refuse(state, "finished", trial.number)
        close(state, trial, record.state, commit.at, values=record.values, reason=record.reason)
        return Verdict(True, trial.number)
    lost = next((t for t in trial.history if (t.owner, t.epoch) == (commit.owner, record.epoch)), None)
    if lost is None or record.state is not COMPLETE:
        return refuse(state, "fenced", trial.number)
    if lost.kept_as is not None:
        return refuse(state, "finished", lost.kept_as)
    return _keep_late(state, trial, record, commit)


def _keep_late(state: State, lost: Trial, record: TrialFinish, commit: Commit) -> Verdict:
    """A fenced peer's complete result becomes a trial of its own; a retry that it makes needless makes room for it.

    What its owner could not send while it had the lease comes with the result, in the same commit, and is kept too.
    The budget stays exact. Without a free place, a retry that runs is withdrawn; without one, the result is kept as
    a FAIL trial whose attribute `hopaas:late_values` holds it.
    """
    count(state, "late")
    retry = _last_retry(state, lost)
    if retry is not None and retry.state is WAITING:
        close(state, retry, FAIL, commit.at, reason=f"withdrawn: #{lost.number} came back", own_fault=False)
    full = state.budget is not None and state.used() >= state.budget
    if full and retry is not None and retry.state is RUNNING:
        end_tenure(retry, commit.at, f"withdrawn: #{lost.number} came back")
        close(state, retry, FAIL, commit.at, reason=f"withdrawn: #{lost.number} came back", own_fault=False)
        retry.epoch += 1
        full = False
    late = append(state, FAIL if full else COMPLETE)
    late.late_of = lost.number
    late.attempt = lost.attempt
    late.owner, late.epoch = commit.owner, record.epoch
    late.params, late.dists, late.reports = dict(lost.params), dict(lost.dists), dict(lost.reports)
    late.user, late.system = lost.user, {**lost.system, "late_of": str(lost.number)}
    lease = (lost.number, record.epoch)
    unsent = [r for r in commit.records if isinstance(r, TrialSet) and (r.number, r.epoch) == lease]
    for said in unsent:  # refused, for it came behind the reclaim, but a part of the result
        if can_be_merged(state, said):
            merge(state, late, said)
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


def release(state: State, trial: Trial, record: TrialRelease, commit: Commit) -> Verdict:
    """The owner gives the trial back: WAITING again, or failed for good."""
    if (trial.state, TrialRelease) not in TRANSITIONS:
        return refuse(state, "not running", trial.number)
    if not has_lease(trial, record.epoch, commit):
        return refuse(state, "fenced", trial.number)
    if record.fail:
        close(state, trial, FAIL, commit.at, reason=record.reason, own_fault=False)
        return Verdict(True, trial.number)
    end_tenure(trial, commit.at, record.reason or "released")
    move(state, trial, WAITING)
    trial.owner = None
    trial.stop, trial.stopping = None, False
    trial.start = None
    trial.reports = _reports_to_resume(trial)
    return Verdict(True, trial.number)


def reclaim(state: State, trial: Trial, record: TrialReclaim, commit: Commit) -> Verdict:
    """Somebody saw the owner's silence: the trial fails, and its parameters are queued again."""
    if (trial.state, TrialReclaim) not in TRANSITIONS:
        return refuse(state, "not running", trial.number)
    if trial.epoch != record.epoch:
        return refuse(state, "fenced", trial.number)
    end_tenure(trial, commit.at, record.reason)
    trial.epoch += 1
    last_try = trial.attempt >= state.policy.attempts
    if last_try and state.policy.interrupted == "prune" and trial.reports:
        last = (trial.reports[max(trial.reports)],)
        told = last if can_end(state, COMPLETE, last) else None
        close(state, trial, PRUNED, commit.at, values=told, reason=record.reason)
        return Verdict(True, trial.number)
    close(state, trial, FAIL, commit.at, reason=record.reason, own_fault=False)
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
    retry = append(state, WAITING)
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


def stop(state: State, trial: Trial, record: TrialStop, _commit: Commit) -> Verdict:
    """A request to the owner of this epoch."""
    if (trial.state, TrialStop) not in TRANSITIONS:
        return refuse(state, "not running", trial.number)
    if trial.epoch != record.epoch:
        return refuse(state, "fenced", trial.number)
    trial.stop = record.reason or "somebody asked"
    state.changed.add(trial.number)
    return Verdict(True, trial.number)
