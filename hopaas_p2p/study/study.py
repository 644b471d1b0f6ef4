"""A study as users see it.

A Study is Optuna's study on our storage, plus what a campaign of many processes needs. It has a budget that is exact
over all processes, can be paused and stopped, and always ends its trials, however the code that runs them ends.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import logging
import math
import os
import platform
import shlex
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from hopaas_p2p.analysis.replicates import ReplicateGroup, replicates
from hopaas_p2p.analysis.table import TrialTable
from hopaas_p2p.core import records
from hopaas_p2p.core.admission import NEW, Done, finished, next_start
from hopaas_p2p.core.attributes import AGAIN, COPIED, FIDELITY, LEARNED, LOWERED, REUSED, SPACE
from hopaas_p2p.core.fidelity import Fidelity, encode_fidelity
from hopaas_p2p.core.records import (
    Distribution,
    PeerDrain,
    StudyControl,
    StudySet,
    TrialCreate,
    TrialReclaim,
    TrialStop,
)
from hopaas_p2p.core.state import State, definition_of
from hopaas_p2p.core.state import Trial as LoggedTrial
from hopaas_p2p.core.validity import constraints_of, possible_distributions, reason_text
from hopaas_p2p.errors import (
    UNDECIDED,
    DefinitionMismatch,
    HopaasError,
    InvalidInput,
    LeaseLost,
    NothingSucceeded,
    NoWork,
    StoreUnreachable,
    StudyFinished,
)
from hopaas_p2p.files import checkpoints
from hopaas_p2p.files.artifacts import StudyArtifacts
from hopaas_p2p.open import store_option
from hopaas_p2p.runtime import extras, interrupts, metering
from hopaas_p2p.runtime.arguments import (
    exceptions,
    functions,
    mapping,
    names_arguments,
    near,
    seconds,
    shown,
    trial_number,
    whole,
)
from hopaas_p2p.runtime.interrupts import describe, interruptions, termination_raises
from hopaas_p2p.runtime.logs import LOG
from hopaas_p2p.runtime.process import once
from hopaas_p2p.samplers import TPESampler
from hopaas_p2p.search.optuna_internals import reseed_in_child
from hopaas_p2p.search.priors import Learned, learned_of, stored_priors
from hopaas_p2p.spec.budget import budget_now, changed, check_limits, check_spendable, limits_of
from hopaas_p2p.spec.budget import words as budget_words
from hopaas_p2p.spec.space import as_attribute, inferred, said_later, spec
from hopaas_p2p.storage import Storage, open_storage
from hopaas_p2p.storage.handle import StudyHandle
from hopaas_p2p.storage.optuna_internals import (
    after_trial,
    begin,
    cached_trial,
    contains,
    copy_of,
    end_frozen,
    has_trial_with,
    progress_bar,
    suggest_fixed,
)
from hopaas_p2p.study.definition import (
    NO_POLICY,
    BudgetGiven,
    Space,
    StudyPolicy,
    as_given,
    check_fidelity,
    check_points,
    checked_space,
    compare,
    compare_fidelity,
    definition,
    larger_budget,
    lowers,
    was_lowered,
)
from hopaas_p2p.study.learning import LearnFrom, check_learning, find_priors, kept, warn_of_other_belief
from hopaas_p2p.study.method import NOTHING_SAID, Searcher, SearchMethod, in_words
from hopaas_p2p.study.progress import ProgressLog, last_line
from hopaas_p2p.study.proposer import Proposer
from hopaas_p2p.study.ranks import Ranks, follow, leading, ranks, together
from hopaas_p2p.study.schedule import Schedule, schedule_of
from hopaas_p2p.study.trial import Objective, Trial
from hopaas_p2p.study_like import looking_at
from hopaas_p2p.translate import fits, to_optuna, to_record

if TYPE_CHECKING:
    import pandas as pd

    from hopaas_p2p.notebook.plot import Plot
    from hopaas_p2p.notebook.watch import Watching
    from hopaas_p2p.trackers import Tracker
    from hopaas_p2p.trackers.follow import BackgroundExports


_LONGEST_PAUSE: Final = 10.0  # seconds between two checks of a study that cannot start a trial now
_LOOK: Final = 1.0  # seconds; a signal that another thread receives does not end a wait without a limit
_THROUGH: Final = "the sampler has tried all of its points"


@names_arguments(**dict.fromkeys(StudyPolicy._fields, "policy=StudyPolicy"))
def open_study(
    store: str | os.PathLike[str] | Storage,
    name: str,
    *,
    space: Space | None = None,
    directions: str | Sequence[str] | None = None,
    sampler: optuna.samplers.BaseSampler | None = None,
    pruner: optuna.pruners.BasePruner | None = None,
    budget: BudgetGiven | None = None,
    fidelity: Fidelity | None = None,
    learn_from: LearnFrom | None = None,
    create: bool = True,
    trackers: Sequence[Tracker] = (),
    policy: StudyPolicy = NO_POLICY,
) -> Study:
    """Create the study, or join it if it exists. Every process makes the same call.

    Args:
        store: a directory or URL that all processes can reach, or a storage from `open_storage`, which takes more
            options and can be shared by several studies of this process: one peer, one connection.
        name: the study's name in that store.
        space: parameter -> distribution (ours or Optuna's). With it, `trial.params` is complete after `ask`; without
            it, the objective suggests parameters as it runs. A joiner may omit it.
        directions: "minimize", the default, or "maximize"; a list for several objectives.
        sampler: Optuna's or ours. The study stores its class and arguments, but no seed: a process that joins without
            giving one uses the same. A process that gives a different one uses that, and logs the difference.
        pruner: stored and used like the sampler. By default `hopaas_p2p.pruners.MedianPruner`.
        budget: the exact number of COMPLETE + PRUNED trials over all processes; or a `hopaas_p2p.Budget`, whose first
            limit that is reached ends the study. None means no limit. If the study exists, a larger budget raises its
            current one, unless somebody has lowered that.
        fidelity: `hopaas_p2p.Rungs(min=1, max=27)`: trials pause at rungs with a checkpoint, and the next free peer
            continues the best of them. `hopaas_p2p.Population(size=16, every=5)`: population-based training, in which
            the worst members copy the best. Either replaces the pruner, and the budget then counts configurations.
        learn_from: prior knowledge with which the study is created, as names of earlier studies of this store,
            `hopaas_p2p.Prior`s, or "auto" for the newest eight that share parameters and are finished or large; in a
            store with users, only those that this user has written to. Their priors are stored in the new study, so
            they may be deleted. See `Study.learn_from`.
        create: whether to create a missing study, or only join an existing one.
        trackers: trackers of `hopaas_p2p.trackers`, which also show the study. All peers may give the same trackers;
            one of them exports for all, in a thread of its own. Call `close` at the end.
        policy: a `hopaas_p2p.StudyPolicy`, which says what happens to trials whose peers die, fail or report nothing,
            and to repeated configurations.

    Raises:
        InvalidInput: an argument is not allowed; the message says what is.
        DefinitionMismatch: the study exists and differs from the arguments, or has a larger budget; the message
            shows where.
        NoSuchStudy: the study does not exist, and `create` is False; or `learn_from` names a study that does not exist.
        ConfigurationError: the store cannot be used.
        StoreUnreachable: the store does not answer.
    """
    wanted, given = definition(name, space, directions, budget, policy)
    said = SearchMethod.given(sampler, pruner, policy.repeats, policy.replicates, fidelity)
    used = {"sampler": sampler, "pruner": pruner}
    wanted.info.update({kind: type(one).__name__ for kind, one in used.items() if one is not None})
    check_fidelity(said.fidelity, len(wanted.directions), wanted.space)
    check_points(sampler, wanted.space)
    if not isinstance(trackers, list | tuple) or not all(callable(getattr(one, "begin", None)) for one in trackers):
        raise InvalidInput(f"trackers must be a list such as [hopaas_p2p.trackers.MLflow()], got {shown(trackers)}")
    storage = store if isinstance(store, Storage) else open_storage(store, create=create)
    study_id = storage.find_study(name) if create else storage.get_study_id_from_name(name)
    if study_id is None:
        if name == "":  # Optuna may have created such a study, which can be opened
            raise InvalidInput("a study needs a name")
        attributes, priors = said.attributes(), find_priors(storage, learn_from or (), as_given(space or {}), name)
        if priors:
            check_learning(wanted.directions)
            attributes |= kept(priors)
        try:
            study_id = storage.define_study(wanted, StudySet(system=attributes) if attributes else None)
        except DuplicatedStudyError:  # another process created it first: join its study
            study_id = storage.get_study_id_from_name(name)
    state = storage.state(study_id)
    compare(state, wanted, given, storage.url)
    compare_fidelity(state, name, said.fidelity)
    study = Study(storage, study_id, name, sampler=sampler, pruner=pruner, said=said)
    study._keep_to_method(aloud=True)
    warn_of_other_belief(name, study.state.system, as_given(space or {}))
    larger = None if budget is None else larger_budget(study.state, name, budget, storage.url)
    if larger is not None:
        before, after = budget_words(budget_now(study.state)), budget_words(larger)
        if was_lowered(study.state, larger):
            what = f"--budget {shlex.quote(after or 'none')}{store_option(storage.url)}"
            cure = f"hopaas-p2p study set {shlex.quote(name)} {what}"
            LOG.warning("the budget of %r was lowered to %s, and stays there. To raise it: %s", name, before, cure)
        else:
            study.set_budget(larger)
            LOG.warning("the budget of %r is raised from %s to %s", name, before, after or "no limit")
    if trackers:
        from hopaas_p2p.trackers.follow import BackgroundExports

        study._exports = BackgroundExports(study, trackers)
    return study


def infer_space(study: Study) -> str:
    """Let this process search in the space from which the study's trials were drawn; if it is unknown, return why."""
    found, why = inferred(study.state)
    study._inferred_space = {name: to_optuna(one) for name, one in found.items()}
    study.__dict__.pop("_proposer", None)
    return why


class Loop:
    """One call of `optimize`. Each of its threads runs one trial after another until there are no more."""

    def __init__(
        self,
        study: Study,
        objective: Objective,
        n_trials: int | None,
        timeout: float | None,
        caught: tuple[type[Exception], ...],
        callbacks: Sequence[Callable[[FrozenTrial], object]],
        progress: ProgressLog,
    ) -> None:
        self.threads: set[int] = set()
        """The threads in which it runs."""
        self.why_stopped = ""
        """Why this call starts no more trials, if something has ended it."""
        self._left = ""
        """Why the first thread that found nothing more to do ended."""
        self.sampler_is_through = False
        self._study, self._objective, self._n_trials = study, objective, n_trials
        self._deadline = math.inf if timeout is None else time.monotonic() + timeout
        self._caught, self._callbacks, self._progress = caught, callbacks, progress
        self._begun = self._failed = 0
        self._succeeded = False
        self._lock = threading.Lock()

    def run(self, jobs: int) -> None:
        """Run trials until the call ends, in this thread or in `jobs` threads.

        The first error in a thread ends all of them.
        """
        study, errors = self._study, list[BaseException]()

        def work() -> None:
            try:
                self._run_trials()
            except BaseException as error:  # noqa: BLE001  # it is raised where `optimize` was called
                errors.append(error)
                self.why_stopped = self.why_stopped or f"another thread of this call has failed: {describe(error)}"

        study._loops.append(self)
        try:
            if jobs == 1:
                self._run_trials()
                return
            study.sampler.reseed_rng()  # as Optuna does for several threads
            threads = [threading.Thread(target=work, name="hopaas-optimize", daemon=True) for _ in range(jobs)]
            before = set(study.handle.running_here())
            try:
                for thread in threads:
                    thread.start()
                for thread in threads:
                    while thread.is_alive():
                        thread.join(_LOOK)
            except interruptions() as error:
                self.why_stopped = describe(error)
                with study.storage.peer.in_a_hurry():
                    for number in set(study.handle.running_here()) - before:
                        study._give_back(number, error)
                raise
            if errors:
                raise errors[0]
        finally:
            study._loops.remove(self)
            if self._left:
                self._progress.stopped(self._left)

    def _run_trials(self) -> None:
        """Run trials in this thread until the call ends."""
        study, pid = self._study, os.getpid()
        trial: Trial | None = None
        self.threads.add(threading.get_ident())
        try:
            while True:
                ended = self._why_it_ends()
                if ended is not None:
                    self._settle()
                    self._left = self._left or ended
                    break
                may_be_hopeless = self._n_trials is None and not self._succeeded
                if may_be_hopeless and self._failed >= study.state.policy.hopeless_after:
                    self._give_up(trial)
                trial = self._next_trial()
                if trial is None:
                    break
                self._settle()
                if self._run(trial) is TrialState.FAIL:
                    with self._lock:
                        self._failed += 1
                else:
                    self._succeeded = True
                if self._callbacks:
                    self._settle()
                    for callback in self._callbacks:
                        callback(study.handle.trial(trial.number, now=True))
        except interruptions() as error:
            with study.storage.peer.in_a_hurry():
                if trial is not None and os.getpid() == pid:
                    study._give_back(trial.number, error)
                self._settle()
            raise
        finally:
            self._settle()

    def _give_up(self, last: Trial | None) -> NoReturn:
        self._settle()
        failed = self._failed
        why = "the only trial of this call failed" if failed == 1 else f"all {failed} trials of this call failed"
        self._left = self._left or why
        reason = None if last is None else self._study.state.trials[last.number].reason
        raise NothingSucceeded(f"{why}; the last one: {last_line(reason)}" if reason and reason.strip() else why)

    def _why_it_ends(self) -> str | None:
        """Why this call starts no more trials, whatever work the study has; None if it may start a trial."""
        if time.monotonic() >= self._deadline:
            return "the time is up"
        if self.why_stopped:
            return self.why_stopped
        if self._n_trials is not None:
            with self._lock:
                self._begun += 1
                if self._begun > self._n_trials:
                    return f"ran {max(self._n_trials, 0)} trial{'s' * (self._n_trials != 1)}, as asked"
        return None

    def _next_trial(self) -> Trial | None:
        """The next trial; None when there is nothing more to do here."""
        study, progress, deadline, pause = self._study, self._progress, self._deadline, math.inf
        while True:
            left = max(0.0, deadline - time.monotonic())
            try:
                return study._ask(within=left, through=self.sampler_is_through)
            except StoreUnreachable as error:
                if time.monotonic() < deadline:
                    raise
                LOG.warning("no more trials are started because the time is up: %s", error)
                return None
            except NoWork as error:  # not kept, because its traceback holds this frame, and so the objective
                found, why = error.found, error.reason
            self._settle()
            left = deadline - time.monotonic()
            if isinstance(found, Done) or left <= 0.0:
                self._left = self._left or why
                return None
            progress.waiting(why)
            pause = min(pause, 1.0, study.handle.state.policy.ttl / 8) if pause == math.inf else pause
            time.sleep(min(pause, left))  # not in the `except` block, where Ctrl-C would show both errors
            if not found.for_whom:
                pause = min(pause * 1.5, _LONGEST_PAUSE)

    def _settle(self) -> None:
        """Wait until the ends of this thread's trials, which are sent with the next exchange, are durable."""
        for number, verdict in self._study.handle.settle_deferred():
            LOG.warning("%s", self._study.handle.refusal(number, verdict))

    def _run(self, trial: Trial) -> TrialState:
        """Run one trial to its end, which is queued; returns how it ended."""
        state, values, reason, pid = TrialState.COMPLETE, None, None, os.getpid()
        try:
            values, reason = values_or_reason(self._objective(trial), expected=len(self._study.directions))
            if values is None:
                state = TrialState.FAIL
        except optuna.TrialPruned:
            state = TrialState.PRUNED
        except interruptions():
            raise
        except BaseException as error:
            if os.getpid() != pid:  # in a child that the objective forked; the trial belongs to the parent
                raise
            state, reason = TrialState.FAIL, describe(error)
            self._end_later(trial, state, values, reason)
            if not isinstance(error, (*self._caught, LeaseLost)):
                raise
            return state
        self._end_later(trial, state, values, reason)
        return state

    def _end_later(self, trial: Trial, state: TrialState, values: tuple[float, ...] | None, reason: str | None) -> None:
        word = "PAUSED" if state is TrialState.PRUNED and trial.at_rung else state.name
        try:
            self._study._end(trial.number, values, state, reason=reason, defer=True)
        except LeaseLost as lost:  # another process gave it back
            LOG.warning("%s", lost)
        else:
            self._progress.ended(trial.number, word, values, reason)


class Study(optuna.Study):
    """A study, as this process sees and uses it. Get one from `open_study`. Methods may be called from any thread.

    It is an `optuna.Study` and can be used wherever one is expected, such as in `optuna.visualization`, importance
    evaluators, terminators and the callbacks of `optuna_integration`. Only what differs from Optuna's class is
    described here. A sampler or pruner assigned to it applies to this process, from its next trial on, whatever the
    study's are; `search_with` changes them for all peers.
    """

    def __init__(
        self,
        storage: Storage,
        study_id: int,
        name: str,
        *,
        sampler: optuna.samplers.BaseSampler | None = None,
        pruner: optuna.pruners.BasePruner | None = None,
        said: SearchMethod = NOTHING_SAID,
    ) -> None:
        self.storage = storage
        self.name = name
        self.study_id = study_id
        self._searcher = Searcher(sampler, pruner, said)
        super().__init__(name, storage, self._searcher.sampler, self._searcher.pruner)
        self._loops: list[Loop] = []
        """The calls of all threads, the newest last."""
        self._telling: set[int] = set()
        """Threads that are notifying the sampler of the end of a trial."""
        self._pid = os.getpid()
        self._inferred_space: dict[str, BaseDistribution] = {}
        self._teaches: tuple[optuna.samplers.BaseSampler | None, str | None] = None, None
        """The sampler that was last given the study's priors, and those priors as stored."""
        self._checked_sampler: optuna.samplers.BaseSampler | None = None
        self._spendable: records.Budget | None = None
        """The limits that this process can spend, as the last check has shown."""
        self._exports: BackgroundExports | None = None
        self._about: dict[str, str] = {}
        self._quiet = False
        """Whether `optimize` logs nothing because another process shows the progress."""

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__() | {"_loops": [], "_telling": set(), "_exports": None}
        for made in ("_proposer", "handle"):  # a copy creates its own
            state.pop(made, None)
        return state

    def __repr__(self) -> str:
        return f"hopaas_p2p.open_study({self.storage.url!r}, {self.name!r})"

    @property
    def state(self) -> State:
        """The replica, brought up to date. Shared with other threads: read it, do not keep it."""
        return self.handle.refresh()

    @once
    def handle(self) -> StudyHandle:
        """This process's part in the study."""
        return self.storage.handle(self.study_id)

    @property
    def space(self) -> dict[str, BaseDistribution]:
        """The search space, from the definition or `set_space`; empty if the objective suggests parameters."""
        return dict(self._space)

    def set_space(self, space: Mapping[str, Distribution]) -> None:
        """Give a search space to a study that has none, such as an imported one; `worker` and `ask` use it.

        Raises:
            InvalidInput: the space is not allowed, or does not fit the trials that the study has.
            DefinitionMismatch: the study's definition has a space, which cannot change.
            Denied: this user may not write to the study.

        """
        if self._defined_space:
            raise DefinitionMismatch(f"the search space of {self.name!r} is fixed; create another study")
        given = checked_space(space)
        with looking_at(self) as state:
            if not possible_distributions(given, state.dists):
                raise InvalidInput(f"the trials of {self.name!r} have parameters of another kind, or too many others")
        self.handle.say(StudySet(system={SPACE: as_attribute(given)}))
        self.__dict__.pop("_proposer", None)  # it belongs to the previous space

    @property
    def _space(self) -> dict[str, BaseDistribution]:
        if self._defined_space:
            return self._defined_space
        later = said_later(self.handle.log.state)
        return {name: to_optuna(one) for name, one in later.items()} or self._inferred_space

    @once
    def _defined_space(self) -> dict[str, BaseDistribution]:
        """The search space in the definition, which never changes."""
        define = definition_of(self.state, self.name)
        return {name: to_optuna(one) for name, one in define.space.items()}

    @once
    def _proposer(self) -> Proposer | None:
        """The proposer; None without a search space, because the objective then suggests parameters as it runs."""
        space = self._space
        return Proposer(self.storage, self.handle, self, self._searcher, space) if space else None

    def _keep_to_method(self, *, aloud: bool = False) -> None:
        """Search as the study's log specifies, except where this process was given other settings."""
        searcher, system, space = self._searcher, self.handle.state.system, self._space
        with self.handle.lock:  # another asking thread must not mistake what changes here for an assignment
            aloud = searcher.use(self.sampler, self.pruner) or aloud
            if system is not searcher.system:
                searcher.follow(system, space)
            self.sampler, self.pruner = searcher.sampler, searcher.pruner
        sampler, learned = self.sampler, system.get(LEARNED)
        if (sampler, learned) != self._teaches and isinstance(sampler, TPESampler):
            if learned is not None:  # what the study learned from other studies
                sampler.learn_from(stored_priors(system), space)
            self._teaches = sampler, learned
        if aloud:
            others = searcher.differing()
            self.handle.introduce_as({**self._about, **others})
            for what, mine in others.items():
                theirs = in_words(getattr(searcher.stored, what))
                level = logging.INFO if theirs == "default" else logging.WARNING  # nobody chose a default
                LOG.log(level, "study %r has the %s %s; this process uses %s", self.name, what, theirs, mine)

    @property
    def learned(self) -> list[Learned]:
        """For each study from which this one learned: how far this study's trials agree with it, and its weight."""
        with looking_at(self) as state:
            return learned_of(state, TrialTable.of(state), self._space)

    def learn_from(self, given: LearnFrom) -> list[Learned]:
        """Replace the earlier studies from which this one learns, from the next trial on; () for none. Owners only.

        Args:
            given: names of studies of this store, `hopaas_p2p.Prior`s, or "auto".

        Raises:
            NoSuchStudy: no study has one of the names.
            InvalidInput: nothing can be learned from one of them, or this study has several objectives.

        """
        if given:
            check_learning(self.directions)
        space = {name: to_record(one) for name, one in self._space.items()}
        self.handle.say(StudySet(system=kept(find_priors(self.storage, given, space, self.name))))
        self._keep_to_method()
        return self.learned

    def _be_worker(self, about: dict[str, str], *, quiet: bool = True) -> None:
        """Add this to the process's introduction in the study; if `quiet`, `optimize` logs nothing."""
        self._about, self._quiet = about, quiet
        self.handle.introduce_as({**about, **self._searcher.differing()})

    # --- trials of this process ---

    def ask(self, fixed_distributions: dict[str, BaseDistribution] | None = None) -> Trial:
        """Start the next trial: a WAITING one if there is one, else a new one. Blocks for one exchange.

        Keep a reference to the trial until you call `tell`: it is released once nothing refers to it, or the study is
        closed. The parameters of `fixed_distributions` are suggested at once.

        Raises:
            NoWork: no trial can start now, because the budget is used up, the study is paused, stopped or failing, this
                peer was asked to take no more trials, or the sampler has nothing left to try.
            ConfigurationError: the budget is in GPU hours and there is no GPU, or the sampler unpickles data of other
                peers; see `allow_pickles` of `open_storage`.
            StoreUnreachable: the store did not answer within `store_wait`, if that was given.

        """
        trial = self._ask(within=math.inf)
        if fixed_distributions:
            suggest_fixed(trial, fixed_distributions)
        return trial

    def _ask(self, *, within: float, through: bool = False) -> Trial:
        """Like `ask`, but wait for an unreachable store no longer than `within`.

        With `through`, the sampler has no more points, so only existing trials can start.
        """
        self._prepare_to_ask()
        handle, proposer = self.handle, self._proposer
        while True:
            begun: FrozenTrial | None = None
            proposed: Trial | None = None
            try:
                found = handle.next_or_raise("space" if through else "", _THROUGH if through else "", within=within)
                if found is NEW and proposer is not None:
                    proposed = proposer.propose(within)
                record = None if proposed is None else proposed.record
                drawn = None if proposed is None else cached_trial(proposed)
                begun = handle.begin(record or TrialCreate(prefer_waiting=True), drawn=drawn, within=within)
                assert begun is not None
                frozen = copy_of(begun)
                if proposer is not None and proposed is not None and proposer.begin(proposed, frozen):
                    trial: Trial | None = proposed
                else:
                    trial = self._started(frozen)
                if trial is not None:
                    handle.release_when_forgotten(trial, frozen.number)
                    return trial
            except BaseException as error:  # a sampler may fail, or compute for seconds until somebody interrupts it
                if begun is not None:
                    self._give_back(begun.number, error)
                elif proposer is not None and proposed is not None:
                    proposer.drop(proposed)
                raise

    def _prepare_to_ask(self) -> None:
        """Make this process search as the log specifies, with a sampler and a budget that it can use."""
        handle = self.handle
        if os.getpid() != self._pid:
            self.__dict__.pop("_proposer", None)  # another thread may have been using it during the fork
            reseed_in_child(self.sampler)  # a forked child would repeat its parent's draws
            handle.introduce_as({**self._about, **self._searcher.differing()})
            self._pid = os.getpid()  # not earlier, because another thread of the child may ask, too
        state = handle.log.session.state
        searcher = self._searcher
        if state.system is not searcher.system or (self.sampler, self.pruner) != (searcher.sampler, searcher.pruner):
            self._keep_to_method()
        complaints, searcher.complaints = searcher.complaints, []
        for complaint in complaints:
            LOG.warning("%s", complaint)
        if self._checked_sampler is not self.sampler:
            extras.check_sampler(self.sampler)
            check_points(self.sampler, self.space)
            self.storage.check_sampler(self.sampler)
            self._checked_sampler = self.sampler
        if interrupts.terminated:
            interrupts.raise_again()
        ledger = state.ledger
        if ledger.limits is not self._spendable and state.places() is None:
            peer = self.storage.peer
            check_spendable(self.name, ledger.limits, ledger.spent, peer.describe(), metered=peer.energy is not None)
            self._spendable = ledger.limits

    def _started(self, frozen: FrozenTrial) -> Trial | None:
        """The trial that was just started, with its parameters; None if it was ended here.

        A queued trial fails if its parameters do not fit, and a trial whose values are known gets them at once.
        """
        handle, proposer, number = self.handle, self._proposer, frozen.number
        trial = begin(Trial, self, frozen)
        fixed: dict[str, Any] = frozen.system_attrs.get("fixed_params") or {}
        unfit: list[str] = []
        if fixed:
            dists = self.state.dists
            unfit = [name for name, value in fixed.items() if name in dists and not fits(value, dists[name])]
        known = None
        if proposer is not None and not unfit:
            known = proposer.sample(trial)
            handle.send_soon()
        if not unfit and known is None:
            return trial
        with contextlib.suppress(LeaseLost):  # another peer has taken it over, and will end it
            if unfit:
                why = f"{unfit[0]} = {str(fixed[unfit[0]])[:200]!r} is not in {spec(dists[unfit[0]])[:200]}"
                LOG.warning("the queued trial %d failed: %s", number, why)
                handle.finish(number, TrialState.FAIL, None, why)
            elif known is not None:
                for key, text in (constraints_of(known.system) | {REUSED: str(known.number)}).items():
                    handle.set_attr(number, "system", key, json.loads(text), text)
                handle.finish(number, TrialState(known.state.value), known.values)
        return None

    def tell(
        self,
        trial: optuna.trial.Trial | int,
        values: float | Sequence[float] | None = None,
        state: TrialState | str | None = None,
        skip_if_finished: bool = False,
        *,
        reason: str | None = None,
    ) -> FrozenTrial:
        """End a trial of this process, and return it as it ended. On return, the end is in the store or on disk.

        With a storage opened as `operator`, this also ends a trial that another peer runs. The log records the
        operator, and the owner learns at its next report or tell that it has lost the trial. A complete result from the
        owner is then kept as a late one.

        Args:
            trial: the trial that `ask` returned, or its number.
            values: the objective's value or values, for a COMPLETE trial.
            state: "complete", "pruned" or "fail". By default, COMPLETE with `values`, and FAIL without.
            skip_if_finished: whether to do nothing but return the trial if it is already over.
            reason: why it ended like this, for example the error of a FAIL trial.

        Raises:
            LeaseLost: another peer took it over; `kept_as` is the trial that keeps a complete result.
            NotYourTrial: another peer runs it, and this process is not an operator.
            NoSuchTrial: the study has no trial of this number.
            UpdateFinishedTrialError: it is already over; see `skip_if_finished`.
            Denied: an operator who is not an owner of the study; or the store no longer admits this user, and the end
                is kept on disk.
            InvalidInput: values that are not numbers, NaN, or too many or few; or a trial of another study. The trial
                continues.
            StoreUnreachable: the store did not answer, and the end could not be kept on disk. It stays queued.
        """
        to = TrialState.COMPLETE if state is None else _ended_as(state)
        if values is None and state is None:
            to = TrialState.FAIL
            reason = "tell got neither a value nor a state" if reason is None else reason
        told: tuple[float, ...] | None = None
        if to is TrialState.COMPLETE:
            if values is None:
                raise InvalidInput("a COMPLETE trial needs values")
            told = as_values(values, expected=len(self.directions))
        elif values is not None:
            raise InvalidInput(f"a {to.name} trial takes no values")
        if isinstance(trial, Trial) and trial.study is not self:  # for instance when it comes back from a child
            self._check_mine(trial)
        handle, number = self.handle, trial.number if isinstance(trial, Trial) else trial_number(trial)
        if skip_if_finished and number < len(handle.refresh().trials):
            known = handle.trial(number, now=True)
            if known.state.is_finished():
                return known
        if number not in handle.view.owned:
            handle.existing(number)
        if handle.options.operator and handle.is_operators(number):
            handle.take_over(number, to, told, reason)
            return handle.trial(number)
        logged = handle.log.session.state.trials[number]
        if logged.state is records.TrialState.WAITING:
            if not logged.history or not self.storage.peer.is_mine(logged.history[-1].owner):
                raise InvalidInput(f"trial {number} is still waiting to be run; `ask` starts it")
            handle.claim(number)  # it was released when its object was collected
        return self._end(number, told, to, reason=reason)

    def _check_mine(self, trial: Trial) -> None:
        """Raise InvalidInput unless this is a trial of this study."""
        mine = trial.study.study_id == self.study_id
        if mine and trial.storage.url != self.storage.url:
            with contextlib.suppress(*UNDECIDED):  # an unreachable store must not keep a result from being told
                mine = trial.handle.uuid == self.handle.uuid
        if not mine:
            name = trial.study.study_name
            raise InvalidInput(f"trial {trial.number} belongs to the study {name!r}, not to {self.name!r}")

    def _end(
        self,
        number: int,
        values: tuple[float, ...] | None,
        state: TrialState,
        *,
        reason: str | None,
        defer: bool = False,
    ) -> FrozenTrial:
        """End a trial like Optuna's `tell`, which notifies the sampler first; a pruned trial gets its last report."""
        handle, me = self.handle, threading.get_ident()
        with handle.log.lock:
            handle.writable(number)  # raises before the sampler is notified
        frozen = handle.trial(number, now=True)
        reports = frozen.intermediate_values
        if state is TrialState.PRUNED and reports and len(self.directions) == 1:
            last = float(reports[max(reports)])
            values = None if math.isnan(last) else (last,)
        elif handle.log.session.state.configurations.policy and handle.is_at_rung(number, reports):
            how = state.name
            LOG.warning("trial %d is %s and does not pause at its rung; to pause, call trial.prune()", number, how)
        self._telling.add(me)
        try:
            after_trial(self, frozen, state, values)
        finally:
            self._telling.discard(me)
            handle.finish(number, state, values, reason, defer=defer)
        if not defer:
            end_frozen(frozen, state, values, handle.log.session.state.trials[number].end)
        return frozen

    @contextlib.contextmanager
    def trial(self) -> Iterator[Trial]:
        """Start a trial in `with study.trial() as trial:`, and end it however the block ends.

        At the end of the block, the value is the one given to `trial.tell(value)`, or else the last report.
        `trial.prune()` prunes. An exception fails the trial, is kept as the reason, and is raised again. SIGTERM,
        Ctrl-C and the cancellation of an asyncio task release the trial: it will be run again. An exception in a child
        that was forked in the block does neither, because the trial belongs to the parent.
        """
        with termination_raises():
            pid = os.getpid()
            trial = self.ask()
            trial.in_block = True  # no call before the block, during which Ctrl-C might arrive
            try:
                try:
                    yield trial
                    reports = cached_trial(trial).intermediate_values
                    result = trial.told if trial.told is not None or not reports else (reports[max(reports)],)
                    nothing = None, "it ended without a value"
                    expected = len(self.directions)
                    values, reason = nothing if result is None else values_or_reason(result, expected=expected)
                except optuna.TrialPruned:
                    self.tell(trial, state=TrialState.PRUNED)
                except interruptions():
                    raise
                except BaseException as error:
                    if os.getpid() == pid:
                        self.tell(trial, state=TrialState.FAIL, reason=describe(error))
                    raise
                else:
                    self.tell(trial, values, reason=reason)
            except interruptions() as error:
                if os.getpid() == pid:
                    self._give_back(trial.number, error)
                raise

    def _give_back(self, number: int, error: BaseException) -> None:
        """Release a trial during which this process was interrupted, unless it has already been ended.

        Waits a few seconds for the store; if it does not answer, the lease expires by itself.
        """
        try:
            with self.storage.peer.in_a_hurry():
                self.handle.release(number, reason=f"interrupted: {type(error).__name__}")
            if number in self.state.waiting:
                LOG.info("trial %d: returned; the next process that asks for a trial runs it again", number)
        except UpdateFinishedTrialError:
            pass
        except HopaasError as trouble:
            LOG.warning("the interrupted trial could not be returned now: %s", trouble)

    def optimize(
        self,
        func: Objective,
        n_trials: int | None = None,
        timeout: float | None = None,
        n_jobs: int = 1,
        catch: Iterable[type[Exception]] | type[Exception] = (),
        callbacks: Iterable[Callable[[Any, FrozenTrial], None]] | None = None,
        gc_after_trial: bool = False,
        show_progress_bar: bool = False,
        *,
        on: Any = None,
        workers: int | None = None,
    ) -> None:
        """Run trials until the study has no more, or this call's `n_trials` or `timeout` (seconds) is reached.

        Without `n_trials`, the call gives up after 10 failures (or the study's `max_failures`) if no trial of this call
        has succeeded.

        Each trial costs one exchange: its end is sent with the start of the next trial. While the study is paused, the
        call waits. It returns once there is no work and each owner of a running trial has since shown a sign of life,
        within two thirds of the lease's ttl; while an owner is silent, it stays until that trial has been reclaimed and
        retried, for at most twice the ttl. While trials wait at rungs, it also waits for the running ones. Progress,
        and the trials for which it waits, are logged to `hopaas_p2p` at level INFO; losing a lease is a warning.

        On several ranks, for example under torchrun, every rank calls this, and all run each trial together. Each
        objective gets a `RankedTrial`. A rank whose objective raises fails the trial, with that reason, and its program
        ends; `catch` applies to errors that the trial itself raises on every rank.

        Args:
            func: the objective: takes a `Trial`, returns its value or values, and may raise `optuna.TrialPruned`.
            n_jobs: how many trials to run at once, in threads of this process; -1 means one per core.
            catch: exceptions that fail the trial and let `optimize` continue, as `LeaseLost` always does; others fail
                the trial and are raised.
            callbacks: called after each trial with this study and the finished trial. `study.stop()` in a callback or
                in the objective ends this call, as in Optuna, or with `on` the worker that ran the trial;
                `study.stop_all()` ends the study for all peers.
            gc_after_trial: whether to collect garbage after each trial.
            show_progress_bar: whether to show Optuna's progress bar for this call instead of log lines. Without
                `n_trials` and `timeout`, it counts to the end of the budget; if there is no budget in trials either,
                the log lines remain.
            on: an executor that runs the trials instead of this process (anything with `submit`, as in
                concurrent.futures, submitit and dask.distributed), or a function that creates one. Each of its workers
                is a separate peer; see `hopaas_p2p.study.workers`.
            workers: how many workers to start on the executor. By default, as many as the executor reports.

        Raises:
            InvalidInput: an argument is wrong, such as an objective that cannot be called, or cannot be sent to the
                executor. No trial is started.
            NothingSucceeded: the call gave up; raised so that a batch job does not seem to succeed.
            StoreUnreachable: the store did not answer within `store_wait`, if that was given.
            WorkersLost: with `on`, the executor takes no more workers, or one worker after another was lost without
                finishing a trial.
        """
        if not callable(func):
            raise InvalidInput(f"optimize needs a function that takes a trial and returns its value, got {func!r}")
        caught = exceptions("catch", catch)
        called: list[Callable[[FrozenTrial], object]] = []
        called += [functools.partial(one, self) for one in functions("callbacks", callbacks or ())]
        n_trials = None if n_trials is None else whole("n_trials", n_trials, least=None)
        timeout = None if timeout is None else seconds("timeout", timeout, least=-math.inf)
        jobs = os.cpu_count() or 1 if n_jobs == -1 else whole("n_jobs", n_jobs)
        among = ranks()
        if among.size > 1 and not among.meet():
            among = Ranks()
        if among.size > 1 and (on is not None or jobs > 1):
            raise InvalidInput(
                f"this program runs one trial at a time on {among.size} ranks; leave out on= and n_jobs="
            )
        here = platform.node(), metering.devices(), metering.visible()
        devices = among.gather("study.optimize", here) if among.size > 1 else []
        if among.rank > 0:
            follow(func, among, self._fail_for)
            return
        if on is not None:
            from hopaas_p2p.study.workers import WatchedWorkers, WorkOrder

            self._keep_to_method()  # a sampler may have been assigned
            handle, own = self.handle, self._searcher.own
            order = WorkOrder(open_study, self.storage.options, self.name, handle.uuid, func, own, caught)
            watched = WatchedWorkers(self, order, on, workers, n_trials, timeout)
            with termination_raises():
                watched.run(called, quiet=self._quiet or show_progress_bar)
            return
        if among.size > 1:
            self._be_worker({"ranks": str(among.size), **together(devices)}, quiet=self._quiet)
        counted, state = n_trials, self.state
        if n_trials is None and timeout is None and state.budget is not None and state.configurations.unit == "trials":
            counted = max(0, state.budget - state.used())
        barred = show_progress_bar and (counted, timeout) != (None, None)
        if gc_after_trial:
            called.append(lambda _: gc.collect())
        with (
            termination_raises(),
            leading(func, among, self._lose) if among.size > 1 else contextlib.nullcontext(func) as objective,
            progress_bar(self, counted, timeout, shown=barred) as moved,
            ProgressLog(self.name, self.handle, quiet=self._quiet or barred) as progress,
        ):
            Loop(self, objective, n_trials, timeout, caught, [*called, *moved], progress).run(jobs)
        with contextlib.suppress(HopaasError):  # leftovers there do no harm
            checkpoints.collect(self.handle)

    def stop(self) -> None:
        """End the call of `optimize` that runs in this thread once its trial is over, like Optuna's.

        From a thread without such a call, such as one that an objective started, it ends all calls of this process. A
        sampler that has no more points calls this, too; waiting trials are then still run.

        Raises:
            RuntimeError: no such call is running. `stop_all` ends the study for all peers.

        """
        loops, me = list(self._loops), threading.get_ident()
        if me in self._telling:  # all threads share the sampler
            for loop in loops:
                loop.sampler_is_through = True
            return
        if not loops:
            raise RuntimeError(
                "study.stop() ends a call of optimize, from its objective or a callback. To end the study for all "
                "peers: study.stop_all()"
            )
        for loop in [one for one in loops if me in one.threads][-1:] or loops:
            loop.why_stopped = "study.stop() was called"

    def _fail_for(self, owner: str, number: int, reason: str) -> None:
        """Fail a trial that the first rank of this program runs, unless it has ended."""
        with contextlib.suppress(HopaasError, UpdateFinishedTrialError):
            self.storage.peer.act_for(frozenset({owner}))
            if self.handle.existing(number).owner == owner:  # it was not released meanwhile
                self.tell(number, state="fail", reason=reason)

    def _lose(self, number: int, reason: str) -> None:
        """Reclaim a trial of this process as if its lease had expired, because another rank was killed."""
        with contextlib.suppress(HopaasError), self.storage.peer.in_a_hurry():
            self.handle.say(TrialReclaim(number, self.handle.existing(number).epoch, reason))

    # --- decisions for all peers ---

    def enqueue_trial(  # type: ignore[override]  # Optuna's returns nothing
        self, params: Mapping[str, Any], user_attrs: Mapping[str, Any] | None = None, skip_if_exists: bool = False
    ) -> int | None:
        """Queue a trial with these parameters. Returns its number, or None if `skip_if_exists` and the study has one.

        Raises:
            InvalidInput: a parameter or a value is not in the search space; nothing was queued.
            StudyFinished: the trial would never run; see `resume` and `set_budget`.
        """
        self._check_not_finished()
        space = self.space
        for name, value in mapping("the parameters of a trial", params).items():
            if space and name not in space:
                raise InvalidInput(f"the study has no parameter {name!r}; it has {', '.join(space)}")
            if name in space and not contains(space[name], value):
                raise InvalidInput(f"{name} = {value!r} is not in {spec(space[name])}")
            if (known := self.state.dists) and name not in known:  # the objective may still suggest it
                hint = near(name, known, f"they have {', '.join(map(repr, known))}")  # `repr` escapes terminal codes
                LOG.warning("no trial of %r so far has a parameter %r; %s", self.name, name, hint)
        if skip_if_exists and has_trial_with(self, params):
            return None
        return self._queue({"fixed_params": dict(params)}, dict(mapping("user_attrs", user_attrs or {})))

    def _queue(self, system: dict[str, Any], user: dict[str, Any]) -> int:
        waiting = optuna.trial.create_trial(state=TrialState.WAITING, system_attrs=system, user_attrs=user)
        return self.storage.create_new_trial(self.study_id, waiting) - self.handle.first_id

    def is_over(self) -> bool:
        """Whether no trial runs, and none will start: the study is finished, or its sampler has no points left."""
        if os.getpid() != self._pid:
            self.__dict__.pop("_proposer", None)  # another thread may have been using it during the fork
        state, proposer = self.state, self._proposer
        if state.system is not self._searcher.system:  # a watcher asks for no trial
            self._keep_to_method()
        try:
            if proposer is not None and next_start(state) is NEW:
                proposer.check_points_left()
        except NoWork as none:
            return isinstance(next_start(state, no_new=none.refusal), Done)
        return finished(state) and not state.running

    def _check_not_finished(self) -> None:
        state = self.state
        found, name = next_start(state), shlex.quote(self.name)
        used = state.ledger.reached or f"{state.used()} of {state.places()} {state.configurations.unit} used"
        why, cure = f"is {found.why}", f"study resume {name}"
        if found.why == "budget":
            why, cure = f"has used its budget ({used})", f"study set {name} --budget LIMITS"
        if isinstance(found, Done):
            never = f"The study {self.name!r} {why}, so a trial queued now would never run"
            raise StudyFinished(f"{never}. First run: hopaas-p2p {cure}{store_option(self.storage.url)}")
        if not state.has_room():
            LOG.warning("%s, so a trial of %r that is queued now starts only if a running one fails", used, self.name)

    def pause(self) -> None:
        """Start no trials until `resume`; running ones continue."""
        self.handle.say(StudyControl(status="paused"))

    def resume(self) -> None:
        """Start trials again; also resets the count of failures in a row."""
        self.handle.say(StudyControl(status="running"))

    def stop_all(self) -> None:
        """End the study for all peers: no more trials start, and peers finish the running ones."""
        self.handle.say(StudyControl(status="stopped"))

    def set_budget(self, budget: BudgetGiven | None) -> None:
        """Change limits, given as a number of trials, or a string such as "gpu_hours=5,trials=none". Owners only.

        The other limits stay. A `Budget` replaces the whole budget, and None removes it. Once a limit has been
        lowered, a larger `budget` of `open_study` no longer raises it.

        Raises:
            InvalidInput: a limit that is not allowed.

        """
        now = budget_now(self.state)
        wanted = changed(now, budget)
        limits = limits_of(wanted)
        check_limits(limits, len(self.directions))
        if lowers(now, wanted):
            self.handle.say(StudySet(system={LOWERED: json.dumps(budget_words(wanted))}))
        trials = -1 if wanted.trials is None else wanted.trials
        same = limits == limits_of(now)
        self.handle.say(StudyControl(budget=trials, limits=None if same else limits))

    def search_with(
        self,
        *,
        sampler: optuna.samplers.BaseSampler | None = None,
        pruner: optuna.pruners.BasePruner | None = None,
        repeats: str | None = None,
        replicates: int | None = None,
        fidelity: Fidelity | Literal["none"] | None = None,
    ) -> None:
        """Change how peers search, from their next trial on; peers with their own settings keep them. Owners only.

        With `fidelity="none"`, no more trials pause at rungs or in a population; paused ones stay paused.

        Raises:
            InvalidInput: a value that is not allowed, or a sampler or pruner whose class or arguments cannot be stored.

        """
        pauses = None if fidelity == "none" else fidelity
        said = SearchMethod.given(sampler, pruner, repeats, replicates, pauses)
        check_fidelity(said.fidelity, len(self.directions), self.space)
        check_points(sampler, self.space)
        for what, method in (("sampler", said.sampler), ("pruner", said.pruner)):
            if method is not None and method["arguments"] is None:
                raise InvalidInput(
                    f"the {what} {in_words(method)} cannot be stored, because of its class or of an argument; give it "
                    "to open_study in each process instead"
                )
        attributes = said.attributes() | ({FIDELITY: encode_fidelity(None)} if fidelity == "none" else {})
        if attributes:
            self.handle.say(StudySet(system=attributes))

    def drain(self, *, peer: str | None = None, site: str | None = None, off: bool = False) -> None:
        """Ask a peer (by uuid), or a whole site, to finish its trials and take no more; `off` revokes this."""
        if bool(peer) == bool(site) or not isinstance(peer or site, str):
            raise InvalidInput("drain takes either a peer's uuid or a site's name")
        self.handle.say(PeerDrain(peer=peer, site=site, off=off))

    def stop_trial(self, number: int, *, reason: str | None = None, epoch: int | None = None) -> None:
        """Ask the current owner of a running trial to end it: its next `should_prune()` is True.

        With `epoch`, only the owner of that lease: raises InvalidInput if the trial has another owner by now.
        """
        trial = self._running(number)
        self.handle.say(TrialStop(trial.number, trial.epoch if epoch is None else epoch, reason_text(reason)))

    def requeue(self, number: int, *, epoch: int | None = None) -> int | None:
        """Run a trial's parameters again, taking a running trial away from its owner; return the retry's number.

        None when the policy's attempts are used up. If the trial is waiting, or does not run under the lease `epoch`,
        InvalidInput is raised, and nothing is queued. Raises `StudyFinished` like `enqueue_trial`.
        """
        trial = self.handle.existing(number) if epoch is None else self._running(number)
        if trial.state is records.TrialState.WAITING:
            raise InvalidInput(f"trial {trial.number} is already waiting")
        if trial.state is not records.TrialState.RUNNING:
            self._check_not_finished()
            frozen = self.handle.trial(trial.number, now=True)
            params = frozen.params or frozen.system_attrs.get("fixed_params", {})
            system = {key: value for key, value in frozen.system_attrs.items() if key != COPIED}
            return self._queue({**system, "fixed_params": params, AGAIN: trial.number}, frozen.user_attrs)
        self.handle.say(TrialReclaim(trial.number, trial.epoch if epoch is None else epoch, "requeued by hand"))
        return self.state.trials[trial.number].retried_by

    def _running(self, number: int) -> LoggedTrial:
        trial = self.handle.existing(number)
        if trial.state is not records.TrialState.RUNNING:
            raise InvalidInput(f"trial {number} is {trial.state.name}, not RUNNING")
        return trial

    # --- reading ---

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials of all peers, by number. Shared: do not change them."""
        return self.storage.get_all_trials(self.study_id, deepcopy=False)

    def replicates(self) -> list[ReplicateGroup]:
        """The configurations tried, the best mean first, with mean and standard error over their trials."""
        return replicates(self.state)

    def schedule(self, trial: int | None = None) -> Schedule:
        """The parameters by step that led to a trial; in a population, including the steps of trials that it copied.

        Args:
            trial: its number. By default, the best one or, before any is complete, the best of those that ran longest.

        Raises:
            NoSuchTrial: there is no such trial, or none has reported anything.
            InvalidInput: there are several objectives, and no number is given.

        """
        return schedule_of(self, trial)

    def trials_dataframe(self, *attrs: Any, **options: Any) -> pd.DataFrame:
        """Optuna's table of all trials, plus `attempt`, `owner`, `site` and `host`. Needs pandas."""
        try:
            frame = super().trials_dataframe(*attrs, **options)
        except ImportError:
            raise ImportError("trials_dataframe needs pandas: pip install pandas") from None
        state = self.state
        rows = state.trials[: len(frame)]
        frame["attempt"] = [trial.attempt for trial in rows]
        frame["owner"] = [trial.owner for trial in rows]
        for what in ("site", "host"):
            frame[what] = [state.peers.get(trial.owner or "", {}).get(what) for trial in rows]
        return frame

    def provenance(self, number: int) -> dict[str, str]:
        """Where and with what a trial ran: host, site, user, pid, batch job, GPU, git commit, package versions.

        This is its owner's introduction in the log; empty if it has no owner. Raises NoSuchTrial.
        """
        return self.state.peers.get(self.handle.existing(number).owner or "", {})

    def artifacts(self) -> StudyArtifacts:
        """The files of this study and its trials; also an artifact store for Optuna and optuna-dashboard."""
        return StudyArtifacts(self.storage, self.study_id)

    def _repr_html_(self) -> str:
        from hopaas_p2p.notebook.summary import study_html

        return study_html(self)

    @property
    def plot(self) -> Plot:
        """Charts for a notebook: `study.plot.history()`, importances, slice, timeline, intermediate."""
        from hopaas_p2p.notebook.plot import Plot

        return Plot(self)

    def watch(self, *, interval: float = 2.0) -> Watching:
        """Show this study in a notebook, kept up to date while other cells run. Returns at once.

        Args:
            interval: seconds between updates.

        Raises:
            InvalidInput: this is not a notebook; in a terminal use `hopaas-p2p watch`.

        """
        from hopaas_p2p.notebook.watch import Watching

        return Watching(self, interval=interval)

    def close(self) -> None:
        """Bring trackers up to date, for at most 30 s, then send queued records, and close the store."""
        if self._exports is not None:
            self._exports.close()
        self.storage.close()


def _ended_as(state: TrialState | str) -> TrialState:
    """The state given for the end of a trial."""
    word = state.name if isinstance(state, TrialState) else state
    if not isinstance(word, str) or word.lower() not in ("complete", "pruned", "fail"):
        raise InvalidInput(f"a trial ends as 'complete', 'pruned' or 'fail', not {shown(word)}")
    return TrialState[word.upper()]


def as_values(result: float | Sequence[float], *, expected: int) -> tuple[float, ...]:
    """The return value of an objective, as values of a COMPLETE trial.

    Raises:
        InvalidInput: they are not numbers, NaN, or not one per direction. The message becomes the trial's reason.
    """
    parts: Sequence[float] = result if isinstance(result, list | tuple) else (result,)
    if len(parts) != expected:
        raise InvalidInput(f"{expected} value{'s' * (expected > 1)} expected, got {len(parts)}")
    values = []
    for part in parts:
        try:
            value = float(part)
        except (TypeError, ValueError):
            raise InvalidInput(f"a value must be a number, got {shown(part)}") from None
        except OverflowError:
            raise InvalidInput("a value is a whole number that is too large for a float") from None
        if math.isnan(value):
            raise InvalidInput("a value must be a number, got NaN")
        values.append(value)
    return tuple(values)


def values_or_reason(result: float | Sequence[float], *, expected: int) -> tuple[tuple[float, ...] | None, str | None]:
    """The return value of an objective, as values of a COMPLETE trial; or why the trial fails."""
    try:
        return as_values(result, expected=expected), None
    except InvalidInput as error:
        return None, str(error)
