"""`apply`, the only function that changes a State: from the log's next commit to the verdicts on its records.

`apply` gives the same State on every peer, Python, time zone and hash seed. It never asks "am I the writer?" and never
raises on content: a record is accepted, or refused with a reason that the writer reads off its verdict. What a record
may do to a trial stands in `TRANSITIONS`; who may do it is the lease: owner and epoch must be those of the log.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from hopaas_p2p.core import trial_rules
from hopaas_p2p.core.changes import count, find, refuse
from hopaas_p2p.core.codec import Garbage
from hopaas_p2p.core.records import (
    UNSTAMPED,
    Commit,
    Opaque,
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
    TrialStop,
)
from hopaas_p2p.core.sanity import possible_definition
from hopaas_p2p.core.state import LastCommit, State, Trial, Verdict

OWNERS_ONLY: Final = frozenset({StudyControl, PeerDrain, TrialStop})
"""Records that a commit stamped *worker* may not bring; but for a stop, where the policy has a progress time-out."""

_ACCEPTED: Final = Verdict(True)


def apply(state: State, lsn: int, commit: Commit | Garbage, stamp: Stamp = UNSTAMPED) -> tuple[Verdict, ...]:
    """Take the commit at `lsn` into `state` and say what became of each of its records.

    Commits come in order without gaps: lsn is `state.lsn + 1`.
    """
    state.lsn = lsn
    if isinstance(commit, Garbage):
        count(state, "malformed")
        return ()
    last = state.writers.get(commit.writer)
    if last is not None and commit.seq <= last.seq:
        count(state, "duplicate")
        return last.verdicts if commit.seq == last.seq else ()
    verdicts = tuple([_apply_record(state, record, commit, stamp) for record in commit.records])
    state.writers[commit.writer] = LastCommit(commit.seq, lsn, verdicts)
    return verdicts


def _apply_record(state: State, record: object, commit: Commit, stamp: Stamp) -> Verdict:
    kind = type(record)
    rule = _RULES.get(kind)
    if rule is None:
        return refuse(state, "malformed")
    if (state.define is None) != (kind is StudyDefine):
        return refuse(state, "undefined")
    if stamp.role != "owner" and not _worker_may(state, kind, stamp):
        return refuse(state, "role")
    return rule(state, record, commit)


def _worker_may(state: State, kind: type, stamp: Stamp) -> bool:
    if stamp.role != "worker":
        return False
    return kind not in OWNERS_ONLY or (kind is TrialStop and state.policy.progress_timeout is not None)


def _define(state: State, record: StudyDefine, _commit: Commit) -> Verdict:
    if not possible_definition(record):
        return refuse(state, "malformed")
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
        return refuse(state, "malformed")
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


def _of_a_trial(rule: Callable[[State, Trial, Any, Commit], Verdict]) -> Callable[[State, Any, Commit], Verdict]:
    """The rule for a record that names a trial, which is looked up for it."""

    def looked_up(state: State, record: Any, commit: Commit) -> Verdict:
        trial = find(state, record.number)
        return refuse(state, "no such trial") if trial is None else rule(state, trial, record, commit)

    return looked_up


_RULES: Final[dict[type, Callable[[State, Any, Commit], Verdict]]] = {
    StudyDefine: _define,
    StudySet: _set_study,
    StudyControl: _control,
    PeerJoin: _join,
    PeerDrain: _drain,
    TrialCreate: trial_rules.create,
    TrialClaim: _of_a_trial(trial_rules.claim),
    TrialSet: _of_a_trial(trial_rules.set_trial),
    TrialCheckpoint: _of_a_trial(trial_rules.checkpoint),
    TrialFinish: _of_a_trial(trial_rules.finish),
    TrialRelease: _of_a_trial(trial_rules.release),
    TrialReclaim: _of_a_trial(trial_rules.reclaim),
    TrialStop: _of_a_trial(trial_rules.stop),
    Opaque: lambda state, _record, _commit: refuse(state, "malformed"),
}
