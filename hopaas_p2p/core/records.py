"""The content of a log: one struct per kind of record, and the Commit that carries records.

A record is a fact or a request, published by one peer to all. The function `apply.apply` determines the effect of a
record, identically on every peer. Records stay in a log forever, so a field is never renamed, reordered or reused; new
fields go to the end with a default.
"""

from __future__ import annotations

import enum
from typing import Annotated, Final

import msgspec

FORMAT: Final = 1
"""The log format that this code writes. A commit in any other format is read as garbage; see `codec.decode`."""

Step = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
"""The step of a report or checkpoint. A record with a step outside this range cannot be decoded, just like a record
with a field of the wrong type."""
Natural = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]
"""A number that counts something, such as a trial's number or an epoch."""
LAST_TIME: Final = 1 << 53
"""Microseconds: some 285 years before or after 1970, which the nanosecond times of numpy and pandas can hold."""
Time = Annotated[int, msgspec.Meta(gt=-LAST_TIME, lt=LAST_TIME)]
LONGEST_PEER: Final = 64
"""Characters of a peer's name."""
Skip = Annotated[tuple[int, ...], msgspec.Meta(max_length=1 << 16)]


FROM_START: Final = -(1 << 63)
"""A step before all steps, for a retry that resumed from no checkpoint."""


class TrialState(enum.IntEnum):
    """Optuna's trial states, with Optuna's numbers."""

    RUNNING = 0
    COMPLETE = 1
    PRUNED = 2
    FAIL = 3
    WAITING = 4


class Domain(msgspec.Struct, array_like=True, frozen=True):
    """The common base of all distributions of parameters."""


class Float(Domain, array_like=True, frozen=True, tag="f"):
    """A real parameter in [low, high]: uniform, log-uniform, or on a grid of `step`."""

    low: float
    high: float
    log: bool = False
    step: float | None = None
    prior: float | None = None
    """The value that you expect to be good. A log stores it among the study's priors, not in this field."""
    confidence: str | None = None
    """How sure you are of `prior`: "low", "medium" or "high"."""


class Int(Domain, array_like=True, frozen=True, tag="i"):
    """A whole-number parameter in [low, high]."""

    low: int
    high: int
    log: bool = False
    step: int = 1
    prior: int | None = None
    confidence: str | None = None


class Categorical(Domain, array_like=True, frozen=True, tag="c"):
    """One of `choices`; the value in a record is the index of the choice."""

    choices: tuple[bool | int | float | str | None, ...]
    prior: bool | int | float | str | None = None
    confidence: str | None = None


Distribution = Float | Int | Categorical


class Price(msgspec.Struct, frozen=True, omit_defaults=True):
    """A site's prices, in euros."""

    gpu_hour: float = 0.0
    core_hour: float = 0.0
    kwh: float = 0.0


class Until(msgspec.Struct, frozen=True, omit_defaults=True):
    """Conditions that end a study before its budget is spent; the first condition that holds ends the study.

    All except the date require a single objective.
    """

    target: float | None = None
    """A value that is good enough: at most this value when minimizing, at least this when maximizing."""
    date: int | str | None = None
    """A date or time such as 2026-12-31, in UTC unless it has an offset. In a log: microseconds since 1970."""
    trials_without_gain: int | None = None
    """COMPLETE and PRUNED trials since the best one."""
    hours_without_gain: float | None = None
    """Hours since the best trial ended."""


class Budget(msgspec.Struct, frozen=True, omit_defaults=True):
    """The limits of a study's spending; the first limit that is reached ends the study. None: no limit.

    Running trials are then asked to end, except when `trials` is reached, because trials are counted when they start.
    """

    trials: int | None = None
    """COMPLETE + PRUNED trials, exactly. In a log this is `Policy.budget`."""
    epochs: int | None = None
    """Steps trained; a step counts each time it is trained."""
    gpu_hours: float | None = None
    core_hours: float | None = None
    kwh: float | None = None
    euro: float | None = None
    """By `prices`."""
    prices: dict[str, Price] = {}
    """Site -> its prices; "*" is every other site."""
    until: Until | None = None


class Used(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The resources that a lease has used so far, as measured by its owner."""

    time: int
    """Microseconds by a clock that is never set. In a process that runs several trials at a time, each trial is charged
    its share."""
    energy: int | None = None
    """Millijoules."""


_HOPELESS: Final = 10


class Policy(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a study treats its trials. Fixed at creation, except that `study.control` may change the study's budget and
    limits.
    """

    budget: int | None = None
    """How many COMPLETE + PRUNED trials are wanted; including RUNNING trials, never more. None: no limit."""
    attempts: int = 3
    """How often one set of parameters may be started before an interrupted trial stays FAIL."""
    ttl: float = 120.0
    """Seconds of silence after which a peer's trials may be taken over."""
    max_failures: int | None = None
    """Failures of the objective in a row that end the study. None: no limit."""
    progress_timeout: float | None = None
    """Seconds that a live trial may go without a report before it is asked to stop, then reclaimed. None: no limit."""
    interrupted: str = "fail"
    """What happens to an interrupted trial whose attempts are used up: "fail", or "prune" at its last report."""
    limits: Budget = Budget()
    """Limits besides `budget`; see `ledger`."""

    @property
    def hopeless_after(self) -> int:
        """Failures without any success after which one process stops, so that a broken objective does not use up
        trials.
        """
        return self.max_failures or _HOPELESS


class StudyDefine(msgspec.Struct, array_like=True, frozen=True, tag="study.define"):
    """The first record of a study: what is optimized, and under which policy."""

    name: str
    directions: tuple[str, ...]
    policy: Policy = Policy()
    space: dict[str, Distribution] = {}
    info: dict[str, str] = {}
    """Provenance in free form: who created it, sampler and pruner by name."""


class StudySet(msgspec.Struct, array_like=True, frozen=True, tag="study.set"):
    """Attributes of the study, each a JSON text, merged into the existing ones."""

    user: dict[str, str] = {}
    system: dict[str, str] = {}


class StudyControl(msgspec.Struct, array_like=True, frozen=True, tag="study.control"):
    """Run, pause or stop the study; set a new budget. None leaves a setting as it is, and -1 removes the budget."""

    status: str | None = None
    budget: int | None = None
    limits: Budget | None = None
    """Replaces all limits except `budget`."""


class PeerJoin(msgspec.Struct, array_like=True, frozen=True, tag="peer.join"):
    """A peer introduces itself: site, host, user, pid, batch job, GPU, code version."""

    info: dict[str, str]
    """Replaces what the peer has announced in this study before."""


class PeerDrain(msgspec.Struct, array_like=True, frozen=True, tag="peer.drain"):
    """A request to one peer, or to all peers of a site: finish the running trials, take no more. `off` revokes it."""

    peer: str | None = None
    """The name of a peer, or the crew of one `optimize(on=…)` call, which all its present and future workers share."""
    site: str | None = None
    off: bool = False


class TrialCreate(msgspec.Struct, array_like=True, frozen=True, tag="trial.create"):
    """The next trial: RUNNING for the commit's owner, WAITING, or finished already (import)."""

    state: TrialState = TrialState.RUNNING
    prefer_waiting: bool = False
    """Start a waiting or paused trial instead, if one is available, so that concurrent asks do not race for it."""
    params: dict[str, float] = {}
    dists: dict[str, Distribution] = {}
    reports: dict[Step, float] = {}
    user: dict[str, str] = {}
    system: dict[str, str] = {}
    values: tuple[float, ...] | None = None
    reason: str | None = None
    start: int | None = None
    end: int | None = None
    skip: Skip = ()
    """Trials that `prefer_waiting` passes over: retries that must rest first, and paused trials that are left to their
    site for a moment."""
    replicates: int = 1
    """How many trials a new configuration gets, including this one; each of the others starts at a later ask."""
    metrics: dict[str, dict[Step, float]] = {}
    """Name -> step -> value, besides the reports; see `TrialSet.metrics`."""


class TrialClaim(msgspec.Struct, array_like=True, frozen=True, tag="trial.claim"):
    """Start a WAITING trial as the commit's owner."""

    number: int


class TrialSet(msgspec.Struct, array_like=True, tag="trial.set"):
    """Parameters (internal representation), reports by step, and attributes as JSON texts: merged into the trial.

    `dists` contains a distribution only where it differs from the parameter's first in this log.
    """

    number: int
    epoch: int
    params: dict[str, float] = {}
    dists: dict[str, Distribution] = {}
    reports: dict[Step, float] = {}
    user: dict[str, str] = {}
    system: dict[str, str] = {}
    stopping: bool = False
    """The owner has seen the request to stop."""
    resumed_from: Step | None = None
    """The step that this attempt actually resumed from, or `FROM_START`. Later reports of an earlier attempt are
    dropped."""
    used: Used | None = None
    """What the lease has used; None: computed from the commits' times and the owner's introduction."""
    metrics: dict[str, dict[Step, float]] = {}
    """Name -> step -> value: metrics shown besides the reports. No pruner, rung or budget reads them."""


class Checkpoint(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Where a trial may be resumed: an artifact of the store, and the step after which it was saved."""

    step: Step
    key: str
    size: int
    sha256: str


class PastLease(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A lease that its owner returned, or that another peer ended."""

    owner: str
    epoch: Natural
    start: Time | None
    end: Time
    why: str
    kept_as: Natural | None = None
    """The trial that keeps this owner's late result."""


class TrialCheckpoint(msgspec.Struct, array_like=True, frozen=True, tag="trial.checkpoint"):
    """The owner has stored a checkpoint; the last two are kept, and a retry begins with them."""

    number: int
    epoch: int
    checkpoint: Checkpoint


class TrialFinish(msgspec.Struct, array_like=True, frozen=True, tag="trial.finish"):
    """The end of a trial: COMPLETE with values, PRUNED, or FAIL with a reason."""

    number: int
    epoch: int
    state: TrialState
    values: tuple[float, ...] | None = None
    reason: str | None = None
    paused: bool = False
    """With PRUNED: it stopped at a rung, and may be continued."""
    used: Used | None = None


class TrialRelease(msgspec.Struct, array_like=True, frozen=True, tag="trial.release"):
    """The owner returns its trial: WAITING with the same parameters (pre-emption), PRUNED after a stop, or FAIL."""

    number: int
    epoch: int
    fail: bool = False
    reason: str | None = None
    used: Used | None = None


class TrialReclaim(msgspec.Struct, array_like=True, frozen=True, tag="trial.reclaim"):
    """An observer reclaims a silent or stuck owner's trial: FAIL or PRUNED, plus a retry while attempts remain."""

    number: int
    epoch: int
    reason: str = "its owner fell silent"
    lived: int | None = None
    """Microseconds for which the observer saw the owner alive in this lease, by the observer's own clock."""
    seen: int | None = None
    """The lsn up to which the observer knew the log when it found the owner silent; a later commit refutes that."""


class TrialTakeOver(msgspec.Struct, array_like=True, frozen=True, tag="trial.take_over"):
    """An operator ends a trial on behalf of the peer that runs it. That peer's result is then late."""

    number: int
    epoch: int
    state: TrialState
    values: tuple[float, ...] | None = None
    reason: str | None = None
    by: str = ""
    """The name of the operator. For display only."""


class TrialStop(msgspec.Struct, array_like=True, frozen=True, tag="trial.stop"):
    """A request to the owner of one lease to end its trial; its next `should_prune()` is True."""

    number: int
    epoch: int
    reason: str | None = None


class StudyRegistered(msgspec.Struct, array_like=True, frozen=True, tag="catalog.open"):
    """Catalog: the study with this uuid has this name."""

    uuid: str
    name: str


class StudyRemoved(msgspec.Struct, array_like=True, frozen=True, tag="catalog.close"):
    """Catalog: the study with this uuid is deleted; its name is free again."""

    uuid: str


class Opaque(msgspec.Struct, frozen=True):
    """A record that this version cannot read, kept unchanged: a newer kind, or garbage. Never applied."""

    raw: bytes


LeaseRecord = TrialSet | TrialCheckpoint | TrialFinish | TrialRelease | TrialReclaim | TrialTakeOver | TrialStop
"""Records that name the epoch of a lease."""
StudyRecord = StudyDefine | StudySet | StudyControl | PeerJoin | PeerDrain | TrialCreate | TrialClaim | LeaseRecord
CatalogRecord = StudyRegistered | StudyRemoved
Record = StudyRecord | CatalogRecord


class Commit(msgspec.Struct, frozen=True):
    """Some records that one writer appends at once: all of them or none.

    `(writer, seq)` is the nonce: a writer's seq only rises, so a commit that appears twice in the log counts once.
    """

    writer: str
    seq: int
    owner: str
    """The peer that the writer acts for: itself, or the peer whose trial moved to the writer's process."""
    at: int
    """When the commit was created, by the writer's clock: microseconds since 1970, UTC. Leases do not depend on it."""
    records: tuple[Record | Opaque, ...]


class Stamp(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The facts about a commit that the store itself has verified."""

    author: str = ""
    role: str = "owner"
    at: int = 0
    """The server's time in microseconds if the store has a clock of its own, else 0."""


UNSTAMPED: Final = Stamp()
