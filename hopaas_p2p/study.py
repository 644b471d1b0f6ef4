"""What people import: `open_study`, and the Study it gives.

A Study is Optuna's study on our storage, plus what a campaign of many processes needs: a budget that is exact over
all of them, pause and stop, and trials that are released, failed or completed whatever ends the code that runs them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import DuplicatedStudyError
from optuna.trial import FrozenTrial, TrialState

from hopaas_p2p.artifacts import StudyArtifacts
from hopaas_p2p.core import records
from hopaas_p2p.core.records import PeerDrain, Policy, StudyControl, StudyDefine, TrialReclaim, TrialStop
from hopaas_p2p.core.state import State
from hopaas_p2p.errors import DefinitionMismatch, InvalidInput, LeaseLost, NoSuchStudy, NoSuchTrial, NoWork
from hopaas_p2p.frozen import to_optuna, to_record
from hopaas_p2p.storage import Storage, open_storage
from hopaas_p2p.trial import Trial, as_values

if TYPE_CHECKING:
    import pandas as pd

_log: Final = logging.getLogger("hopaas_p2p")
_REASON_LINES: Final = 12
_REASON_CHARACTERS: Final = 2000

Space = Mapping[str, BaseDistribution | records.Distribution]
Objective = Callable[[Trial], float | Sequence[float]]


def open_study(
    store: str | Storage,
    name: str,
    *,
    space: Space | None = None,
    direction: str = "minimize",
    directions: Sequence[str] | None = None,
    sampler: optuna.samplers.BaseSampler | None = None,
    pruner: optuna.pruners.BasePruner | None = None,
    budget: int | None = None,
    attempts: int | None = None,
    max_failures: int | None = None,
    lease_ttl: float | None = None,
    progress_timeout: float | None = None,
    interrupted: str | None = None,
    create: bool = True,
    **storage_options: Any,
) -> Study:
    """Create the study, or join it if it is there: every process makes the same call.

    Args:
        store: a directory or URL that all processes reach, or a storage from `open_storage`.
        name: the study's name in that store.
        space: parameter -> distribution (ours or Optuna's). With it, `trial.params` are all there at `ask`; without,
            the objective suggests as it goes. A joiner may leave it out.
        direction: "minimize" or "maximize"; `directions` for several objectives.
        sampler, pruner: Optuna's, of this process alone; they are not stored.
        budget: COMPLETE + PRUNED trials wanted over all processes, exactly. None: no end.
        attempts: how often one set of parameters may be started when its peers die or are pre-empted; 3 if not said.
        max_failures: failures in a row, over all processes, that end the campaign. None: never.
        lease_ttl: seconds of silence after which a peer's trial is taken over; 120 if not said.
        progress_timeout: seconds without a report after which a live trial is asked to stop, and after as many more
            reclaimed. None: never.
        interrupted: what becomes of a trial whose attempts are used up: "fail" (its place is given back), or "prune"
            at its last report.
        create: False joins only.
        storage_options: passed on to `open_storage`.

    Raises:
        DefinitionMismatch: the study exists and differs from what was given; the message shows where.
        NoSuchStudy: it does not exist, and `create` is False.
        ConfigurationError: the store cannot be used.
    """
    storage = store if isinstance(store, Storage) else open_storage(store, create=create, **storage_options)
    defaults = Policy()
    wanted = StudyDefine(
        name=name,
        directions=tuple(directions) if directions is not None else (direction,),
        policy=Policy(
            budget=budget,
            attempts=defaults.attempts if attempts is None else attempts,
            ttl=defaults.ttl if lease_ttl is None else float(lease_ttl),
            max_failures=max_failures,
            progress_timeout=None if progress_timeout is None else float(progress_timeout),
            interrupted=defaults.interrupted if interrupted is None else interrupted,
        ),
        space={key: _as_record(value) for key, value in (space or {}).items()},
        info=_made_with(sampler, pruner),
    )
    _check_definition(wanted)
    study_id = _join_or_create(storage, wanted, create=create)
    said = {
        "directions": directions is not None or direction != "minimize",
        "space": space is not None,
        "budget": budget is not None,
        "attempts": attempts is not None,
        "lease_ttl": lease_ttl is not None,
        "max_failures": max_failures is not None,
        "progress_timeout": progress_timeout is not None,
        "interrupted": interrupted is not None,
    }
    _compare(storage, study_id, wanted, {what for what, given in said.items() if given})
    return Study(storage, study_id, name, sampler=sampler, pruner=pruner)


def _as_record(distribution: BaseDistribution | records.Distribution) -> records.Distribution:
    """As the log gives it back to others: Float(0, 1) has bounds 0.0 and 1.0, here too."""
    if isinstance(distribution, BaseDistribution):
        return to_record(distribution)
    if isinstance(distribution, records.Float):
        step = None if distribution.step is None else float(distribution.step)
        return records.Float(float(distribution.low), float(distribution.high), distribution.log, step)
    return distribution


def _made_with(sampler: object, pruner: object) -> dict[str, str]:
    said = {"sampler": sampler, "pruner": pruner}
    return {key: type(value).__name__ for key, value in said.items() if value is not None}


def _check_definition(wanted: StudyDefine) -> None:
    wrong = [one for one in wanted.directions if one not in ("minimize", "maximize")]
    if wrong or not wanted.directions:
        raise InvalidInput(f"a direction is 'minimize' or 'maximize', got {wrong or 'none'}")
    policy = wanted.policy
    if policy.budget is not None and policy.budget < 1:
        raise InvalidInput(f"budget must be at least 1, got {policy.budget}")
    if policy.attempts < 1:
        raise InvalidInput(f"attempts must be at least 1, got {policy.attempts}")
    if not policy.ttl > 0:
        raise InvalidInput(f"lease_ttl must be positive seconds, got {policy.ttl}")
    if policy.interrupted not in ("fail", "prune"):
        raise InvalidInput(f"interrupted is 'fail' or 'prune', got {policy.interrupted!r}")
    for name, one in wanted.space.items():
        try:
            to_record(to_optuna(one))
        except ValueError as error:
            raise InvalidInput(f"the parameter {name!r}: {error}") from None


def _join_or_create(storage: Storage, wanted: StudyDefine, *, create: bool) -> int:
    with contextlib.suppress(KeyError):
        return storage.get_study_id_from_name(wanted.name)
    if not create:
        raise NoSuchStudy(f"there is no study {wanted.name!r} in {storage.url}; see: hopaas-p2p study list")
    with contextlib.suppress(DuplicatedStudyError):  # somebody was quicker: join theirs
        return storage.define_study(wanted)
    return storage.get_study_id_from_name(wanted.name)


def _compare(storage: Storage, study_id: int, wanted: StudyDefine, said: set[str]) -> None:
    """Raise if what was said differs from what is stored; what was left out is as stored."""
    state = storage.state(study_id)
    stored = state.define
    assert stored is not None
    pairs = {
        "directions": (stored.directions, wanted.directions),
        "space": (stored.space, wanted.space),
        "budget": (stored.policy.budget, wanted.policy.budget),
        "attempts": (stored.policy.attempts, wanted.policy.attempts),
        "lease_ttl": (stored.policy.ttl, wanted.policy.ttl),
        "max_failures": (stored.policy.max_failures, wanted.policy.max_failures),
        "progress_timeout": (stored.policy.progress_timeout, wanted.policy.progress_timeout),
        "interrupted": (stored.policy.interrupted, wanted.policy.interrupted),
    }
    lines = []
    for what, (there, given) in pairs.items():
        moved = what == "budget" and given == state.budget
        if what in said and there != given and not moved:
            lines += _difference(what, there, given)
    if lines:
        raise DefinitionMismatch(
            f"the study {wanted.name!r} exists with another definition:\n"
            + "\n".join(f"  {line}" for line in lines)
            + "\nUse the stored one (leave the argument out), or choose another name."
        )


def _difference(what: str, there: object, given: object) -> list[str]:
    if not isinstance(there, dict) or not isinstance(given, dict):
        return [f"{what}: stored {there}, given {given}"]
    keys = sorted(set(there) | set(given))
    return [
        f"{what}, {key}: stored {there.get(key, 'nothing')}, given {given.get(key, 'nothing')}"
        for key in keys
        if there.get(key) != given.get(key)
    ]


class Study:
    """A study as this process takes part in it. Get one from `open_study`. Methods may be called from any thread."""

    def __init__(
        self,
        storage: Storage,
        study_id: int,
        name: str,
        *,
        sampler: optuna.samplers.BaseSampler | None = None,
        pruner: optuna.pruners.BasePruner | None = None,
    ) -> None:
        self.storage = storage
        self.name = name
        self.study_id = study_id
        self.optuna = optuna.load_study(study_name=name, storage=storage, sampler=sampler, pruner=pruner)
        """The same study as Optuna's own object."""
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"hopaas_p2p.open_study({self.storage.url!r}, {self.name!r})"

    @property
    def state(self) -> State:
        """The replica, brought up to date. Shared with the courier's thread: read it, do not keep it."""
        return self.storage.state(self.study_id)

    @property
    def space(self) -> dict[str, BaseDistribution]:
        """The search space of the study's definition; empty when the objective suggests as it goes."""
        define = self.state.define
        return {name: to_optuna(one) for name, one in define.space.items()} if define else {}

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials of all peers, by number. Shared: not to be changed."""
        return self.storage.get_all_trials(self.study_id, deepcopy=False)

    @property
    def best_trial(self) -> FrozenTrial:
        """The best COMPLETE trial; ValueError when there is none yet."""
        return self.optuna.best_trial

    def trials_dataframe(self, **options: Any) -> pd.DataFrame:
        """Optuna's table of all trials, with `attempt`, `owner`, `site` and `host` beside it. Needs pandas."""
        try:
            frame = self.optuna.trials_dataframe(**options)
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
        """Where and with what a trial ran: host, site, user, pid, batch job, GPU, git commit, package versions."""
        state = self.state
        if not 0 <= number < len(state.trials):
            raise NoSuchTrial(f"the study {self.name!r} has no trial {number}")
        return state.peers.get(state.trials[number].owner or "", {})

    # --- ask and tell ---

    def ask(self) -> Trial:
        """Start the next trial: a WAITING one first, else a new one. Blocks for one exchange.

        Raises:
            NoWork: the budget is used up, or the study is paused, stopped or failing.
            StoreUnreachable: the store did not answer within `patience`.
        """
        if os.getpid() != self._pid:
            self._pid = os.getpid()
            self.optuna.sampler.reseed_rng()  # a forked child would repeat its parent's draws
        self.optuna._thread_local.cached_all_trials = None
        trial = Trial(self.optuna, self.storage.take(self.study_id))
        for name, distribution in self.space.items():
            trial._suggest(name, distribution)
        return trial

    def tell(
        self,
        trial: Trial | int,
        values: float | Sequence[float] | None = None,
        *,
        state: TrialState | str | None = None,
        reason: str | None = None,
    ) -> None:
        """End a trial of this process: durable when this returns.

        Args:
            trial: what `ask` gave, or its number.
            values: the objective's value or values, for a COMPLETE trial.
            state: "complete", "pruned" or "fail", if it does not follow from `values`.
            reason: why it failed.

        Raises:
            LeaseLost: another peer took it over; `kept_as` is the trial that keeps a complete result.
            NotYourTrial: this process never ran it.
            InvalidInput: values that are not numbers, NaN, or too many or few. The trial goes on.
        """
        with self.storage.telling(strict=True):
            self._tell(trial, values, state, reason)

    def _tell(
        self,
        trial: Trial | int,
        values: float | Sequence[float] | None,
        state: TrialState | str | None,
        reason: str | None,
    ) -> None:
        to = _state_named(state) if isinstance(state, str) else state
        if to is None:
            to = TrialState.COMPLETE if values is not None else TrialState.FAIL
        told: tuple[float, ...] | None = None
        if to is TrialState.COMPLETE:
            if values is None:
                raise InvalidInput("a COMPLETE trial needs values")
            told = as_values(values, expected=len(self.optuna.directions))
        number = trial if isinstance(trial, int) else trial.number
        self._refuse_unless_ours(number)
        with self.storage.because(reason):
            self.optuna.tell(number, None if told is None else list(told), state=to)

    def _refuse_unless_ours(self, number: int) -> None:
        """Say so in our words before Optuna says it in its own."""
        try:
            trial_id = self.storage.get_trial_id_from_study_id_trial_number(self.study_id, number)
        except KeyError:
            raise NoSuchTrial(f"the study {self.name!r} has no trial {number}") from None
        self.storage.check_writable(trial_id)

    @contextlib.contextmanager
    def trial(self) -> Iterator[Trial]:
        """`with study.trial() as trial:` starts a trial and ends it, however the block ends.

        The end of the block tells what `trial.tell(value)` said, else the last report. `trial.prune()` prunes. An
        exception fails the trial, with its reason, and goes on. SIGTERM and Ctrl-C release it: it will be run again.
        """
        trial = self.ask()
        with _sigterm_raises():
            try:
                yield trial
            except optuna.TrialPruned:
                self.tell(trial, state=TrialState.PRUNED)
            except (KeyboardInterrupt, SystemExit, GeneratorExit) as error:
                self.storage.release(trial._trial_id, reason=f"interrupted: {type(error).__name__}")
                raise
            except BaseException as error:
                self.tell(trial, state=TrialState.FAIL, reason=describe(error))
                raise
            else:
                self._tell_result(trial, self._result(trial))

    @staticmethod
    def _result(trial: Trial) -> tuple[float, ...] | None:
        if trial.told is not None:
            return trial.told
        reports = trial._cached_frozen_trial.intermediate_values
        return (reports[max(reports)],) if reports else None

    def _tell_result(self, trial: Trial, result: float | Sequence[float] | None) -> None:
        if result is None:
            self.tell(trial, state=TrialState.FAIL, reason="no value was told")
            return
        try:
            values = as_values(result, expected=len(self.optuna.directions))
        except InvalidInput as error:
            self.tell(trial, state=TrialState.FAIL, reason=str(error))
            return
        self.tell(trial, values)

    # --- optimize ---

    def optimize(
        self,
        objective: Objective,
        n_trials: int | None = None,
        timeout: float | None = None,
        *,
        catch: Iterable[type[Exception]] | type[Exception] = (),
        callbacks: Iterable[Callable[[Study, FrozenTrial], None]] = (),
    ) -> None:
        """Run trials until the study gives out no more, or `n_trials` or `timeout` (seconds) of this call are reached.

        One exchange a trial: the end of one leaves with the start of the next. Losing a lease is a warning in the
        log. Leaves at once when there is no work and every running trial has a live owner; while an owner is silent
        it stays until that trial is reclaimed and retried, for at most twice the lease's ttl.

        Args:
            objective: gets a `Trial`, returns its value or values; may raise `optuna.TrialPruned`.
            catch: exceptions that fail the trial and let this go on; others fail it and are raised.
            callbacks: called after each trial with this study and the finished trial.
        """
        caught = (catch,) if isinstance(catch, type) else tuple(catch)
        deadline = None if timeout is None else time.monotonic() + timeout
        done = 0
        with _sigterm_raises():
            try:
                while (n_trials is None or done < n_trials) and (deadline is None or time.monotonic() < deadline):
                    trial = self._next_trial(deadline)
                    if trial is None:
                        break
                    self._run(trial, objective, caught)
                    done += 1
                    if callbacks:
                        self._settle()
                        for callback in callbacks:
                            callback(self, self.storage.get_trial(trial._trial_id))
            finally:
                self._settle()

    def _next_trial(self, deadline: float | None) -> Trial | None:
        """The next trial; None when there is nothing to do here, now and later."""
        while True:
            try:
                trial = self.ask()
            except NoWork as none:
                self._settle()
                if not self._may_come_back(none) or (deadline is not None and time.monotonic() >= deadline):
                    _log.info("%s", none)
                    return None
                time.sleep(min(1.0, self.state.policy.ttl / 8))
                continue
            self._settle()
            return trial

    def _may_come_back(self, none: NoWork) -> bool:
        """Whether work may yet turn up because the owner of a running trial is dead."""
        if none.refusal != "budget":
            return False
        return self.state.closed_because() is None or self.storage.someone_may_be_dead(self.study_id)

    def _settle(self) -> None:
        for number, verdict in self.storage.settle_deferred(self.study_id):
            kept = f"; its result is kept as trial {verdict.number}" if verdict.refusal == "late" else ""
            _log.warning("trial %d was taken over by another peer%s", number, kept)

    def _run(self, trial: Trial, objective: Objective, caught: tuple[type[Exception], ...]) -> None:
        """Run one trial to its end, which is queued."""
        try:
            result = objective(trial)
            values = as_values(result, expected=len(self.optuna.directions))
        except optuna.TrialPruned:
            self._end(trial, state=TrialState.PRUNED)
        except InvalidInput as error:
            self._end(trial, state=TrialState.FAIL, reason=str(error))
        except (KeyboardInterrupt, SystemExit) as error:
            self.storage.release(trial._trial_id, reason=f"interrupted: {type(error).__name__}")
            raise
        except BaseException as error:
            self._end(trial, state=TrialState.FAIL, reason=describe(error))
            if not isinstance(error, caught):
                raise
        else:
            self._end(trial, values, state=TrialState.COMPLETE)

    def _end(
        self, trial: Trial, values: tuple[float, ...] | None = None, *, state: TrialState, reason: str | None = None
    ) -> None:
        try:
            with self.storage.telling(defer=True):
                self._tell(trial, values, state, reason)
        except LeaseLost as lost:
            _log.warning("%s", lost)

    # --- control ---

    def enqueue(self, params: Mapping[str, Any], *, user_attrs: Mapping[str, Any] | None = None) -> int:
        """Queue a trial with these parameters; returns its number.

        Raises:
            InvalidInput: an unknown parameter, or a value outside the space; nothing was queued.
        """
        space = self.space
        for name, value in params.items():
            if space and name not in space:
                raise InvalidInput(f"the study has no parameter {name!r}; it has {', '.join(space)}")
            if name in space and not _contains(space[name], value):
                raise InvalidInput(f"{name} = {value!r} is outside {space[name]}")
        before = optuna.trial.create_trial(
            state=TrialState.WAITING,
            system_attrs={"fixed_params": dict(params)},
            user_attrs=dict(user_attrs or {}),
        )
        trial_id = self.storage.create_new_trial(self.study_id, before)
        return self.storage.get_trial_number_from_id(trial_id)

    def pause(self) -> None:
        """Give out no trials until `resume`; running ones go on."""
        self._control(StudyControl(status="paused"))

    def resume(self) -> None:
        """Give out trials again; also forgets failures in a row."""
        self._control(StudyControl(status="running"))

    def stop(self) -> None:
        """End the campaign: no more trials; running ones are finished by their owners."""
        self._control(StudyControl(status="stopped"))

    def set_budget(self, budget: int | None) -> None:
        """Move the budget; None lifts it."""
        if budget is not None and budget < 1:
            raise InvalidInput(f"budget must be at least 1, got {budget}")
        self._control(StudyControl(budget=-1 if budget is None else budget))

    def _control(self, record: StudyControl | PeerDrain | TrialStop | TrialReclaim) -> None:
        self.storage.say(self.study_id, record)

    def drain(self, *, peer: str | None = None, site: str | None = None, off: bool = False) -> None:
        """Ask a peer (by uuid), or all of a site, to finish what they run and take no more; `off` takes it back."""
        if (peer is None) == (site is None):
            raise InvalidInput("drain either a peer or a site")
        self._control(PeerDrain(peer=peer, site=site, off=off))

    def stop_trial(self, number: int, *, reason: str | None = None) -> None:
        """Ask the present owner of a running trial to end it: its next `should_prune()` is True."""
        trial = self._running(number)
        self._control(TrialStop(number, trial.epoch, reason))

    def requeue(self, number: int) -> int | None:
        """Run a trial's parameters again: takes a running one away from its owner; returns the retry's number.

        None when the policy's attempts are used up.
        """
        state = self.state
        if not 0 <= number < len(state.trials):
            raise NoSuchTrial(f"the study {self.name!r} has no trial {number}")
        trial = state.trials[number]
        if trial.state is not records.TrialState.RUNNING:
            frozen = self.storage.get_trial((self.study_id << 32) + number)
            attrs = {
                **frozen.system_attrs,
                "fixed_params": frozen.params or frozen.system_attrs.get("fixed_params", {}),
            }
            again = optuna.trial.create_trial(
                state=TrialState.WAITING, system_attrs=attrs, user_attrs=frozen.user_attrs
            )
            return self.storage.get_trial_number_from_id(self.storage.create_new_trial(self.study_id, again))
        self._control(TrialReclaim(number, trial.epoch, "requeued by hand"))
        return self.state.trials[number].retried_by

    def _running(self, number: int) -> Any:
        state = self.state
        if not 0 <= number < len(state.trials):
            raise NoSuchTrial(f"the study {self.name!r} has no trial {number}")
        trial = state.trials[number]
        if trial.state is not records.TrialState.RUNNING:
            raise InvalidInput(f"trial {number} is {trial.state.name}, not RUNNING")
        return trial

    def artifacts(self) -> StudyArtifacts:
        """The files of this study and its trials; also an artifact store for Optuna and optuna-dashboard."""
        return StudyArtifacts(self.storage, self.study_id)

    def close(self) -> None:
        """Send what is queued and let go of the store."""
        self.storage.close()


def _state_named(word: str) -> TrialState:
    if word.lower() not in ("complete", "pruned", "fail"):
        raise InvalidInput(f"a trial ends as 'complete', 'pruned' or 'fail', not {word!r}")
    return TrialState[word.upper()]


def _contains(distribution: BaseDistribution, value: object) -> bool:
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except (ValueError, TypeError):
        return False


def describe(error: BaseException) -> str:
    """Why a trial failed: type, message, and the last lines of the traceback; bounded."""
    lines = traceback.format_exception(error)
    text = "".join(lines).strip().splitlines()
    tail = "\n".join(text[-_REASON_LINES:])
    head = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return f"{head}\n{tail}"[:_REASON_CHARACTERS]


class _Terminated(SystemExit):
    """SIGTERM came."""


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """In this block SIGTERM raises SystemExit(143), unless the program has a handler of its own.

    Only the main thread may do that; on others nothing changes.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def raise_it(_signal: int, _frame: FrameType | None) -> None:
        raise _Terminated(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, raise_it)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
