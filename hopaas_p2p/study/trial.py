"""A trial as the objective sees it: Optuna's, with a lease.

It is a subclass of `optuna.trial.Trial`, so every callback written for Optuna accepts it.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import optuna

from hopaas_p2p.core.attributes import REPLICATE
from hopaas_p2p.core.records import FROM_START
from hopaas_p2p.errors import InvalidInput, NoSuchParameter
from hopaas_p2p.files import checkpoints
from hopaas_p2p.files.artifacts import Artifact, StudyArtifacts, artifacts_of
from hopaas_p2p.runtime import interrupts
from hopaas_p2p.runtime.arguments import shown
from hopaas_p2p.runtime.logs import LOG
from hopaas_p2p.spec.metrics import checked, refuse
from hopaas_p2p.storage.optuna_internals import become, cached_trial, suggest
from hopaas_p2p.translate import checked_step

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    from hopaas_p2p.storage import Storage
    from hopaas_p2p.storage.handle import StudyHandle

_NOT_FETCHED: Final = (-1, Path())


class _NoParameters(dict[str, Any]):
    """The parameters of a trial that has none yet."""

    def __missing__(self, name: str) -> NoReturn:
        cure = f"call trial.suggest_float({name!r}, …), or give open_study a space="
        raise NoSuchParameter(f"the trial has no parameter {name!r}, since the study has no search space; {cure}")


class Trial(optuna.trial.Trial):
    """One evaluation of the objective, owned by this process while it runs.

    `suggest_*`, `report` and `set_user_attr` are Optuna's. They never wait for the store: their changes are sent with
    the next exchange, or after the `linger` of `open_storage`.

    A trial may be passed to a child process, by fork or pickle (a process pool, joblib, Dask), where it is the same
    trial, under the same lease. A child's change is in the store when its call returns, at the cost of a round trip per
    call, and the parent reads it before it ends the trial; if the store is unreachable, the change is queued in the
    child. Call `should_prune` in the child, and `tell` in only one of the two processes. A child may also ask for a
    trial and return it to the parent, which then ends it.

    Keep a reference until you call `tell`, because a trial that nothing refers to is released, unless it was passed to
    a child process.
    """

    study: Any
    storage: Storage
    record: Any = None
    """The `TrialCreate` with which it is asked for; None once it has started. See `study.proposer`."""

    @property
    def id(self) -> int:
        """Its id in an Optuna storage, unlike `number`, by which people and the log identify it."""
        return self._trial_id

    @property
    def handle(self) -> StudyHandle:
        """This process's part in the study."""
        return self.storage.locate(self._trial_id)[0]

    @property
    def params(self) -> dict[str, Any]:
        """The parameters so far, by name, in a plain dictionary."""
        return super().params or _NoParameters()

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        return suggest(self, name, distribution)

    def report(self, value: float, step: int) -> None:
        """Report an intermediate value, as in Optuna.

        If SIGTERM arrived and other code suppressed its SystemExit, this raises it again, and the trial is released.

        Raises:
            InvalidInput: the value is a whole number that is too large for a float.

        """
        if interrupts.terminated:
            interrupts.raise_again()
        try:
            super().report(value, step)
        except OverflowError:
            raise InvalidInput(f"the reported value {shown(value)} is too large for a float") from None

    def set_constraint(self, key: str, value: float) -> None:
        """Like Optuna's, but keep the first value of each attempt at the trial, instead of the trial's first.

        A retry, or the continuation of a paused trial, begins with the constraints of the earlier attempt.
        """
        name, first = f"constraints:{key}", key not in self._constrained
        inherited = first and self.handle.state.trials[self.number].begun_before
        if inherited and name in self.storage.get_trial_system_attrs(self.id):
            self.storage.set_trial_system_attr(self.id, name, float(value))
            cached_trial(self).system_attrs[name] = float(value)
        else:
            super().set_constraint(key, value)
        self._constrained = self._constrained | {key}

    def log(self, step: int, /, **metrics: float) -> None:
        """Record metrics of this step besides the report: `trial.log(epoch, loss=0.3, auc=0.9)`.

        They are shown and exported. Pruning uses only values sent by `report`. This never waits for the store; metrics
        are sent with the reports, at the next exchange. NaN and infinities are kept. Names have up to 100 characters,
        and a trial has up to 64 of them. For a name that is not an identifier, write `**{"val/loss": 0.3}`.

        Raises:
            InvalidInput: a value is not a number, or a name is not allowed; the other metrics of the call are kept. Or
                the step is not a whole number; nothing is kept.

        """
        if interrupts.terminated:
            interrupts.raise_again()
        try:
            step = checked_step(step)
        except TypeError:
            raise InvalidInput(f"the step must be a whole number, got {step!r}") from None
        handle, number = self.handle, self.number
        kept, wrong = checked(metrics, handle.metric_names(number))
        if kept:
            handle.set_metrics(number, step, kept)
        for name, value in kept.items():
            if math.isnan(value) and name not in self._nan:
                self._nan = self._nan | {name}
                LOG.warning("trial %d: the metric %s is NaN at step %d", number, name, step)
        refuse(wrong, step=step, kept=kept)

    @property
    def metrics(self) -> dict[str, dict[int, float]]:
        """The logged metrics: name -> step -> value, including an earlier attempt's up to the step of `resume`."""
        self.handle.refresh()
        return self.handle.metrics(self.number)

    def should_prune(self) -> bool:
        """Whether to give up this trial now.

        True when the trial has reached a rung (see `at_rung`), when the pruner decides so, when this trial was asked to
        stop, or when its lease was lost. Reads the replica: costs no round trip.
        """
        handle, number = self.handle, self.number
        handle.refresh()
        asked, held, shared = handle.standing(number)
        if asked is not None:
            handle.acknowledge_stop(number)
            return True
        if shared:
            self._listen()
        at_rung = handle.is_at_rung(number, cached_trial(self).intermediate_values)
        return bool(not held or at_rung or super().should_prune())  # Optuna's pruners may return numpy's bool

    @property
    def at_rung(self) -> bool:
        """Whether the trial has reached a rung of its study's fidelity, where it pauses: save a checkpoint, and prune.

        Reads the replica: costs no round trip.
        """
        return self.handle.is_at_rung(self.number, cached_trial(self).intermediate_values)

    def _listen(self) -> None:
        """Merge the changes that another process, to which this trial was passed, has written to the log."""
        if self.handle.standing(self.number)[2]:
            become(self, self.handle.trial(self.number))

    def prune(self) -> NoReturn:
        """End this trial as PRUNED: raises `optuna.TrialPruned`, which `optimize` and `with study.trial()` handle."""
        raise optuna.TrialPruned

    @property
    def stop_requested(self) -> str | None:
        """Why this trial was asked to end, or None."""
        self.handle.refresh()
        return self.handle.standing(self.number)[0]

    @property
    def lease_held(self) -> bool:
        """Whether this process still holds the trial's lease, according to the log as far as it has read it."""
        return self.handle.standing(self.number)[1]

    @property
    def lease_valid(self) -> bool:
        """Whether this process can be sure that no other peer has taken the trial over.

        False after ttl minus a margin without contact with the store. Work may continue: a later result is kept either
        way.
        """
        return self.handle.lease_valid(self.number)

    @property
    def seed(self) -> int:
        """This trial's index among those with the same parameters, from 0: with `replicates`, a training seed."""
        replicate = cached_trial(self).system_attrs.get(REPLICATE)
        return 0 if replicate is None else int(replicate["seed"])

    @property
    def attempt(self) -> int:
        """1 for a first try, 2 for the retry of an interrupted one, …"""
        return self.handle.state.trials[self.number].attempt

    def checkpoint(self, source: str | Path | bytes, *, step: int, wait: bool = True) -> None:
        """Store a checkpoint (a file, or bytes) taken after `step`; the last two are kept.

        Blocks until the store has it; with `wait=False`, it gives up on a silent store after `patience`. If this peer
        dies or is pre-empted, the next one that runs these parameters finds it in `resume`.

        Raises:
            InvalidInput: there is no such file, or the step is not a whole number from 0 on.
            LeaseLost: another peer runs the trial now; the file was removed again.
            StoreUnreachable: the store did not answer for `store_wait`, or `patience` with `wait=False`.
            ConfigurationError: the store does not accept it (Postgres, one above 64 MiB); the message says what to do.
        """
        checkpoints.save(self.handle, self.number, source, step, within=None if wait else self.storage.peer.patience)

    def upload(self, source: str | Path, *, filename: str | None = None, mimetype: str | None = None) -> Artifact:
        """Keep a file with this trial, such as a model or a plot. Blocks until the store has it.

        optuna-dashboard shows it with the trial; `study.artifacts()` and `hopaas-p2p trial artifact` fetch it.

        Raises:
            InvalidInput: there is no such file.
            LeaseLost: another peer runs the trial now; the file was removed again.
            ConfigurationError: the store does not accept it (Postgres, one above 64 MiB); the message says what to do.
        """
        files = StudyArtifacts(self.storage, self.study.study_id)
        return files.put(source, trial=self.number, filename=filename, mimetype=mimetype)

    @property
    def resume(self) -> tuple[int, Path] | None:
        """(step, local file) of the newest whole checkpoint of an earlier attempt, or None.

        `intermediate_values` then contains the reports up to that step. The first read fetches the file, which is kept
        as long as this object. It blocks meanwhile, and raises StoreUnreachable if the store does not answer for
        `store_wait`.
        """
        if self._resume is _NOT_FETCHED:
            found = self.handle.state.trials[self.number].checkpoints
            if not found:
                self._resume = None
                return None
            artifacts, uuid = artifacts_of(self.storage.peer.store), self.handle.uuid
            directory = Path(tempfile.mkdtemp(prefix="hopaas-resume-"))
            weakref.finalize(self, _remove, directory, os.getpid())  # only in the process that created it
            self._resume = self.storage.peer.call(lambda: checkpoints.load(artifacts, uuid, found, directory))
            step = FROM_START if self._resume is None else self._resume[0]
            become(self, self.handle.resumed_from(self.number, step))
        return self._resume

    @property
    def intermediate_values(self) -> dict[int, float]:
        """The reported values by step, including the earlier attempt's reports up to the step of `resume`.

        For a trial that was passed to a child process, they include the child's reports in the log.
        """
        self.handle.refresh()
        self._listen()
        return dict(cached_trial(self).intermediate_values)

    _resume: tuple[int, Path] | None = _NOT_FETCHED
    _nan: frozenset[str] = frozenset()
    """Metrics for which a NaN has been logged."""
    _constrained: frozenset[str] = frozenset()
    """Constraints that this attempt has set."""

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state.pop("_resume", None)  # a copy in another process fetches its own
        state["_epoch"] = self.handle.state.trials[self.number].epoch
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        epoch = state.pop("_epoch")
        self.__dict__.update(state)
        self.storage.adopt(self._trial_id, epoch)  # the process that asked for it may have ended

    def tell(self, *values: float) -> None:
        """Set the result, inside `with study.trial() as trial:`; it is sent when the block ends.

        Raises:
            InvalidInput: the trial came from `study.ask()`; end it with `study.tell(trial, value)`.

        """
        if not self.in_block:
            raise InvalidInput(
                "trial.tell() works inside `with study.trial() as trial:` only; to end a trial that came from ask(), "
                "call study.tell(trial, value)"
            )
        self.told = values

    told: tuple[float, ...] | None = None
    in_block: bool = False
    """Whether a `with` block of the study will send the result."""


Objective = Callable[[Trial], float | Sequence[float]]


def _remove(directory: Path, pid: int) -> None:
    if os.getpid() == pid:  # a forked child has a copy of the trial, and leaves the files alone
        shutil.rmtree(directory, ignore_errors=True)
