"""What a study is after its log up to some lsn: `State`, its trials, and what may happen to a trial. See `apply`."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from hopaas_p2p.core.records import (
    Checkpoint,
    Distribution,
    Policy,
    StudyDefine,
    TrialCheckpoint,
    TrialClaim,
    TrialFinish,
    TrialReclaim,
    TrialRelease,
    TrialSet,
    TrialState,
    TrialStop,
)

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

    def closed_to(self, peer: str) -> str | None:
        """Why no trial may start in this peer now, in a word of `REFUSALS`; None when one may."""
        return self.closed_because() or ("draining" if self.is_draining(peer) else None)

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
