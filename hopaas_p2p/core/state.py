"""A study's state after its log up to some lsn: `State`, its trials, and what may happen to a trial. See `apply`."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, MutableMapping, Sequence
from typing import Annotated, Any, Final, Literal, NamedTuple, Protocol, overload

import msgspec

from hopaas_p2p.core.codec import Garbage
from hopaas_p2p.core.fidelity import Fidelity, Population
from hopaas_p2p.core.inherited import if_few
from hopaas_p2p.core.ledger import Ledger
from hopaas_p2p.core.records import (
    LONGEST_PEER,
    Budget,
    Checkpoint,
    Commit,
    Distribution,
    Natural,
    PastLease,
    Policy,
    Stamp,
    Step,
    StudyDefine,
    Time,
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
from hopaas_p2p.core.standings import RungCount, RungStanding
from hopaas_p2p.core.validity import satisfies_constraints
from hopaas_p2p.errors import StoreCorrupt

RUNNING: Final = TrialState.RUNNING
COMPLETE: Final = TrialState.COMPLETE
PRUNED: Final = TrialState.PRUNED
FAIL: Final = TrialState.FAIL
WAITING: Final = TrialState.WAITING
TAKES_A_PLACE: Final = (COMPLETE, PRUNED)
"""States of a finished trial that takes a place in the budget."""


class LateFinish:
    """The effect on a retry of a `trial.finish` from an earlier attempt whose owner had lost its lease."""


class Move(NamedTuple):
    """What a record may do to a trial in some state."""

    needs: Literal["", "lease", "epoch"]
    """What the record needs: nothing, that the current lease's owner wrote it, or that it names the current epoch.
    """
    to: tuple[TrialState, ...]
    """The states that the trial may enter."""


TRANSITIONS: Final[dict[tuple[TrialState, type], Move]] = {
    # from      record           needs          to
    (WAITING, TrialCreate): Move("", (RUNNING,)),
    (WAITING, TrialClaim): Move("", (RUNNING,)),
    (WAITING, TrialSet): Move("", (WAITING,)),
    (WAITING, TrialFinish): Move("", (COMPLETE, PRUNED, FAIL)),
    (WAITING, LateFinish): Move("", (FAIL,)),
    (RUNNING, TrialSet): Move("lease", (RUNNING,)),
    (RUNNING, TrialCheckpoint): Move("lease", (RUNNING,)),
    (RUNNING, TrialFinish): Move("lease", (COMPLETE, PRUNED, FAIL)),
    (RUNNING, TrialRelease): Move("lease", (WAITING, PRUNED, FAIL)),
    (RUNNING, TrialReclaim): Move("epoch", (FAIL, PRUNED)),
    (RUNNING, TrialTakeOver): Move("epoch", (COMPLETE, PRUNED, FAIL)),
    (RUNNING, TrialStop): Move("epoch", (RUNNING,)),
    (RUNNING, LateFinish): Move("", (FAIL,)),
}
"""(state, record) -> what the record needs, and which states the trial may enter. Anything not listed is refused.

`apply` reads this table, and the diagram in docs/concepts.md and the exhaustive test are generated from it. A create is
listed because it may start a waiting trial instead of a new one. A late result withdraws a retry that still waits, or
that runs when the budget has no place for both.
"""

BLOCK: Final = 1024
"""Trials in one block, in memory as in a snapshot; see `blocks`."""
CHECKPOINTS_KEPT: Final = 2
_OPENED: Final = 32
"""Closed blocks whose trials stay in memory after a read, for readers that return to a few trials."""


class Verdict(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What `apply` decided for one record."""

    accepted: bool
    number: Natural | None = None
    """The trial it concerns: for a create, the number allotted; for a late finish, the trial that keeps the result."""
    refusal: str | None = None
    """Why the record was refused: a key of `REFUSALS`; in the catalog, also "exists" or "no such study"."""


REFUSALS: Final = {
    "malformed": "the record cannot be read, or contains an invalid value",
    "duplicate": "this commit is already in the log",
    "undefined": "the study has no definition yet, or already has one",
    "role": "the author's grant does not allow it",
    "author": "the commit was written in the name of another user's peer",
    "no such trial": "no trial has this number",
    "finished": "the trial is finished and stays as it is",
    "fenced": "the writer does not hold the trial's lease, or the epoch is outdated",
    "not waiting": "another peer started the trial first",
    "not running": "only a running trial can be stopped, released or reclaimed",
    "alive": "the owner has written since the observer found it silent",
    "late": "the lease was lost, but the result is kept as a separate trial",
    "budget": "the budget is used up",
    "paused": "the study is paused",
    "stopped": "the study is stopped",
    "failing": "too many failures in a row",
    "draining": "this peer or its site was asked to take no more trials",
    "queue": "too many trials are waiting already",
}


class Replicates(msgspec.Struct, array_like=True):
    """The trials that a configuration still gets; each begins when a peer asks for work."""

    params: dict[str, float]
    dists: dict[str, Distribution]
    user: dict[str, str]
    system: dict[str, str]
    count: int
    """How many trials it gets, including the first."""
    seed: int = 1
    """The seed of the next trial."""


class Rare(msgspec.Struct, array_like=True, omit_defaults=True, kw_only=True):
    """Fields that few trials have."""

    dists: MutableMapping[str, Distribution] = {}
    user: Mapping[str, str] = {}
    system: MutableMapping[str, str] = {}
    reason: str | None = None
    stop: str | None = None
    """Why the owner was asked to end the trial; cleared with the lease."""
    stopping: bool = False
    """Whether the owner has seen the request."""
    attempt: Annotated[int, msgspec.Meta(ge=1, lt=1 << 53)] = 1
    retry_of: Natural | None = None
    retried_by: Natural | None = None
    late_of: Natural | None = None
    checkpoints: Annotated[tuple[Checkpoint, ...], msgspec.Meta(max_length=CHECKPOINTS_KEPT)] = ()
    """The checkpoints from which the trial may be resumed, the newest last."""
    history: Sequence[PastLease] = ()
    """Leases that were returned, or that another peer ended, oldest first, so their epochs rise."""
    paused: bool = False
    """Whether the trial stopped at a rung, and may be continued."""
    continues: Natural | None = None
    """The paused trial that it continues."""
    resumed: Step | None = None
    """The step from which the current owner reported that it resumed. A repeated report drops nothing that came
    between."""

    @property
    def begun_before(self) -> bool:
        """Whether the trial may begin its lease with data from an earlier attempt, or from a trial that it
        continues.
        """
        return self.attempt > 1 or bool(self.history) or self.continues is not None

    @property
    def feasible(self) -> bool:
        """Whether the trial satisfies its constraints. With more than `inherited.FEW` attributes, only Optuna's list of
        constraints counts, so that a trial with many attributes takes no longer.
        """
        if not self.system:
            return True
        few = if_few(self.system)
        return satisfies_constraints({"constraints": self.system.get("constraints", "null")} if few is None else few)


class Trial(Rare, gc=False):
    """One trial. Mappings of a finished trial are never changed again, so readers and later trials may share them.

    Large ones are not dictionaries; see `inherited`.
    """

    number: int
    state: TrialState
    epoch: int = 0
    owner: str | None = None
    params: MutableMapping[str, float] = {}
    reports: Mapping[int, float] = {}
    values: tuple[float, ...] | None = None
    start: int | None = None
    end: int | None = None
    metrics: dict[str, Mapping[int, float]] = {}
    """Name -> step -> value, besides the reports."""

    def distribution(self, name: str, state: State) -> Distribution:
        """The distribution that `params[name]` was drawn from."""
        return self.dists.get(name) or state.dists[name]


Peer = Annotated[str, msgspec.Meta(min_length=1, max_length=LONGEST_PEER)]


class BlockColumns(msgspec.Struct, array_like=True):
    """The trials of one block as columns, without an object per trial, for snapshots and bulk readers.

    When packed, its reals are bytes, and a column of whole numbers that are all the same has one entry; see `blocks`.
    """

    first: Natural
    """The number of the first trial."""
    states: bytes
    epochs: Sequence[Natural]
    owners: list[Peer | None]
    owner: Sequence[Natural]
    """For each trial, the index of its owner."""
    starts: Sequence[Time | None]
    ends: Sequence[Time | None]
    param_sets: list[tuple[str, ...]]
    """The different sets of parameters, in the order in which their values are listed."""
    param_set: Sequence[Natural]
    """For each trial, the index of its set of parameters."""
    params: Any  # the reals: bytes, or an array
    """The values of all trials, one after another."""
    step_sets: list[tuple[Step, ...]]
    step_set: Sequence[Natural]
    reports: Any
    widths: Sequence[Annotated[int, msgspec.Meta(ge=-1)]]
    """How many values each trial has; -1 if its values are None."""
    values: Any
    rare: dict[int, Rare]
    """Place in the block -> the trial's rare fields, if it has any."""
    metrics: bytes


class ClosedBlock(Protocol):
    """The trials of one block, all of them finished, in as few bytes as possible."""

    @property
    def packed(self) -> memoryview:
        """The bytes that a snapshot holds for this block."""

    def trials(self) -> list[Trial]:
        """The trials, as new objects."""

    def end_of(self, place: int) -> Trial:
        """The trial at this place with its state, owner and epoch only, and its rare fields except attributes and
        distributions, as a new object.
        """

    def columns(self) -> BlockColumns:
        """The trials as columns."""


class Trials(Sequence[Trial]):
    """The trials of a study, by number, in a sequence of blocks; closed blocks take about a hundred bytes per trial.

    A trial of an open block remains the same object while the block is open. Trials of a closed block are created when
    they are read, and kept while few other blocks are read; they are never changed. To change one, open its block
    first.

    Readers may iterate while a writer appends; they see at least the trials that were there at the start.
    """

    __slots__ = ("_read", "closed", "open", "size")

    def __init__(self) -> None:
        self.open: dict[int, list[Trial]] = {}
        self.closed: dict[int, ClosedBlock] = {}
        self.size = 0
        """The number of trials, faster to read than `len`; outside this class, only `snapshot.load` sets it."""
        self._read: dict[int, list[Trial]] = {}

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Trial]:
        index = 0
        while index * BLOCK < self.size:
            yield from self.block(index)
            index += 1

    @overload
    def __getitem__(self, at: int) -> Trial: ...

    @overload
    def __getitem__(self, at: slice) -> list[Trial]: ...

    def __getitem__(self, at: int | slice) -> Trial | list[Trial]:
        if at.__class__ is int:
            found = self.open.get(at // BLOCK)  # the hot path: a trial of an open block; none has a negative number
            if found is not None:
                return found[at % BLOCK]
        if isinstance(at, slice):
            return [self[number] for number in range(*at.indices(self.size))]
        if at < 0:
            at += self.size
            if at < 0:
                raise IndexError(at)
        return self.block(at // BLOCK)[at % BLOCK]

    def block(self, index: int) -> list[Trial]:
        """The trials of this block. The caller must not change the list. Raises IndexError."""
        found = self.open.get(index)
        if found is None:
            found = self._read.get(index)
        if found is None:
            closed = self.closed.get(index)
            if closed is None:
                found = self.open.get(index)  # it was opened a moment ago
                if found is None:
                    raise IndexError(index * BLOCK)
                return found
            found = self._read[index] = closed.trials()
            if len(self._read) > _OPENED:
                self._read.pop(list(self._read)[0], None)  # noqa: RUF015  # in one step: others read, too
        return found

    def named(self, number: int) -> Trial:
        """The trial that a record names; if its block is closed, with some fields only, see `ClosedBlock.end_of`."""
        index = number // BLOCK
        found = self.open.get(index)
        return self.closed[index].end_of(number % BLOCK) if found is None else found[number % BLOCK]

    def results(self) -> Iterator[tuple[int, float]]:
        """Number and first value of each COMPLETE trial that satisfies its constraints. Unpacks no trials of closed
        blocks.
        """
        for index in range(-(-self.size // BLOCK)):
            closed = self.closed.get(index)
            if closed is not None:
                block = closed.columns()
                starts = itertools.accumulate([max(width, 0) for width in block.widths], initial=0)
                rows = zip(itertools.count(block.first), block.states, block.widths, starts, strict=False)
                bad = {block.first + at for at, rare in block.rare.items() if not rare.feasible}
                found = [(n, block.values[at]) for n, state, width, at in rows if state == COMPLETE and width > 0]
                yield from [one for one in found if one[0] not in bad]
            else:
                ended = [trial for trial in self.block(index) if trial.state is COMPLETE and trial.feasible]
                yield from [(trial.number, trial.values[0]) for trial in ended if trial.values]

    def append(self, trial: Trial) -> None:
        """Append a trial; its number must be the length."""
        block = self.open.get(self.size // BLOCK)
        if block is None:
            block = self.open[self.size // BLOCK] = []
        block.append(trial)
        self.size += 1

    def close(self, index: int, block: ClosedBlock) -> None:
        """Replace this block with its packed form."""
        self.closed[index] = block
        self._read.pop(index, None)  # a reader may have kept the list from before it was opened
        del self.open[index]

    def opened(self, number: int) -> Trial:
        """This trial, ready to be changed."""
        index = number // BLOCK
        if index not in self.open:
            self.open[index] = self.block(index)
            self._read.pop(index, None)
            del self.closed[index]
        return self.open[index][number % BLOCK]


class LastCommit(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The outcome of a writer's latest commit, for a writer that lost the reply and then its copy of the log."""

    seq: Natural
    lsn: Natural
    """The lsn of this commit, or of a later one that another process wrote on the writer's behalf."""
    verdicts: tuple[Verdict, ...]
    author: str = ""
    """The user to whom the writer belongs, as verified by the store; empty if the store has no users."""


def is_anothers(name: str, author: str, writers: Mapping[str, LastCommit]) -> bool:
    """Whether this name belongs to a writer that this author may not speak for.

    A name belongs to the author of the first commit that has it as its writer or owner. If that commit has no author,
    the name belongs to no author. A peer that writes directly to a directory or bucket has none; it may write under any
    name, which then belongs to no author.
    """
    last = writers.get(name)
    return author != "" and last is not None and last.author != author


class LogState:
    """What a replica knows about any log after its commits 1..lsn."""

    def __init__(self) -> None:
        self.lsn = 0
        self.sum: int | None = 0
        """The sum of the log up to `lsn` (see `core.codec`), set by a session; None if unknown. Not in digests."""
        self.writers: dict[str, LastCommit] = {}
        self.refusals: dict[str, int] = {}

    def refuse(self, reason: str, number: int | None = None) -> Verdict:
        """Count one more refusal with this reason, and return the verdict."""
        self.refusals[reason] = self.refusals.get(reason, 0) + 1
        return Verdict(False, number, reason)

    def has_written(self, owner: str | None, *, since: int) -> bool:
        """Whether a commit by this peer, or by a process that acts for it, came after this lsn."""
        return owner in self.writers and self.writers[owner].lsn > since

    def decided(self, commit: Commit | Garbage, stamp: Stamp) -> tuple[Verdict, ...] | None:
        """The verdicts on a commit that is garbage, in another author's name, or already known; None for any other."""
        if not isinstance(commit, Commit):  # quicker than a check for Garbage
            self.refuse("malformed")
            return ()
        author, writers = stamp.author, self.writers
        if author and any(is_anothers(name, author, writers) for name in (commit.writer, commit.owner)):
            return tuple([self.refuse("author") for _ in commit.records])
        last = writers.get(commit.writer)
        if last is None or commit.seq > last.seq:
            return None
        self.refuse("duplicate")
        return last.verdicts if commit.seq == last.seq else ()


class Pausing:
    """How a study's trials pause, and what may therefore start. In this base class they never pause, and each counts.

    A configuration is identified by its first trial. A question about a trial is answered for its configuration.
    """

    policy: Fidelity | None = None
    population: Population | None = None
    """The policy, if it is a population."""
    unit = "trials"
    """What the budget counts."""
    resumable: Sequence[int] = ()
    """WAITING trials whose configuration already has a place in the budget, in order: interrupted continuations."""

    def refresh(self, trials: Sequence[Trial], touched: set[int]) -> None:
        """Process the touched trials and the new ones; empties `touched`."""

    def used(self, counts: Sequence[int]) -> int:
        """Places of the budget that are taken, in a study with these counts of trials by state."""
        return counts[TrialState.COMPLETE] + counts[TrialState.PRUNED] + counts[TrialState.RUNNING]

    def root(self, number: int) -> int:
        """The first trial of this trial's configuration."""
        return number

    def is_counted(self, _number: int) -> bool:
        """Whether the configuration of this trial, which is not running, has a place in the budget."""
        return False

    def standing(self, _number: int) -> RungStanding:
        """Where this trial's configuration stands among the rungs."""
        return RungStanding()

    def pauses_at(self, _number: int) -> int | None:
        """The epochs, from the beginning of its configuration, after which this trial pauses; None if it does not."""
        return None

    def may_pause_at(self, number: int) -> int | None:
        """Like `pauses_at`, also for earlier rungs, because the peer that paused may not have known the current
        ones.
        """
        return self.pauses_at(number)

    def is_at_rung(self, _number: int, _reports: Mapping[int, float], *, ever: bool = False) -> bool:  # noqa: ARG002
        """Whether a trial with these reports has reached its pause; with `ever`, a point where it may have paused."""
        return False

    def promoted(self, *, room: bool, running: bool, skip: Collection[int] = ()) -> int | None:  # noqa: ARG002
        """The paused trial to continue next; None if no rung promotes one.

        Args:
            room: whether the budget has a place for a new configuration.
            running: whether a trial runs.
            skip: trials to pass over while there is room.

        """
        return None

    def sources(self, _number: int) -> list[int]:
        """In a population, the paused trials that may be continued in place of this one; empty if it is continued."""
        return []

    def may_be_continued(self, _number: int, *, most: int | None) -> bool:  # noqa: ARG002
        """Whether this paused trial may still be continued, if at most `most` configurations are started."""
        return False

    def waiting(self) -> int:
        """How many configurations wait, whether or not they will be continued."""
        return 0

    def places(self) -> list[RungCount]:
        """Each rung of each bracket, and how many configurations are there."""
        return []


NEVER_PAUSING: Final = Pausing()


class State(LogState):
    """A study after commits 1..lsn. Change it through `apply` only.

    Invariants: `trials[n].number == n`; `waiting` and `running` hold exactly the numbers in those states, in the order
    they entered; with a budget, used() <= budget unless the budget was lowered.
    """

    def __init__(self) -> None:
        super().__init__()
        self.define: StudyDefine | None = None
        self.policy = Policy()
        """The policy of `define`, once there is one."""
        self.status = "running"
        self.budget: int | None = None
        self.user: Mapping[str, str] = {}
        self.system: Mapping[str, str] = {}
        self.trials = Trials()
        self.waiting: dict[int, None] = {}
        self.running: dict[int, None] = {}
        self.replicates: dict[int, Replicates] = {}
        """Keyed by the first trial of the configuration."""
        self.counts = [0, 0, 0, 0, 0]  # by TrialState
        self.failures_in_a_row = 0
        self.ledger = Ledger(Budget())
        """The study's spending."""
        self.dists: dict[str, Distribution] = {}
        """Each parameter's first distribution in the log: a trial's own, unless it states another."""
        self.peers: dict[str, dict[str, str]] = {}
        self.draining: dict[str, None] = {}
        """Peers, and sites as `site:name`, asked to take no more trials."""
        self.changed: set[int] = set()
        """Numbers of trials that changed since a reader last emptied it. Not part of the study."""

        self.stored = 0
        """When the store received the commit being applied; 0 if the store has no clock."""
        self.unsent: dict[tuple[int, int], list[TrialSet]] = {}
        """What the commit being applied sets on trials without holding their lease, by number and epoch."""
        self.touched: set[int] = set()
        """The trials changed since `configurations` last processed changes."""

        self.configurations = NEVER_PAUSING
        """How the study's trials pause. Derived from the trials, so not in digests or snapshots."""

        self.quiet: dict[str, tuple[int, bytes]] = {}
        """Packed parts of `writers` and `peers`, for reuse by `snapshot`. Not part of the study."""

    def used(self) -> int:
        """Places of the budget that are taken: COMPLETE + PRUNED + RUNNING trials; with rungs, configurations."""
        return self.configurations.used(self.counts)

    def places(self) -> int | None:
        """How many places the budget has; a population has no more than its size. None: no limit."""
        population = self.configurations.population
        if population is None:
            return self.budget
        return population.size if self.budget is None else min(population.size, self.budget)

    def has_room(self, trial: int | None = None) -> bool:
        """Whether the budget has a place for one more trial, or this trial's configuration already has a place."""
        most = self.budget if self.configurations is NEVER_PAUSING else self.places()
        if most is None or self.configurations.used(self.counts) < most:
            return True
        return trial is not None and self.configurations.is_counted(trial)

    def is_draining(self, peer: str) -> bool:
        """Whether this peer was asked to take no more trials: by name, by site, or with its `optimize` call."""
        about = self.peers.get(peer, {})
        return not self.draining.keys().isdisjoint((peer, f"site:{about.get('site', '')}", about.get("crew", "")))


def definition_of(state: State, name: str) -> StudyDefine:
    """The definition with which the study was created.

    Raises:
        StoreCorrupt: the study has commits, but the first one, its definition, is missing.

    """
    if state.define is None:
        raise StoreCorrupt(
            f"the first commit of the study {name!r} is not its definition: somebody has overwritten it. Nothing was "
            "changed. Restore that commit from a backup or, in a bucket, from an older version of the object"
        )
    return state.define
