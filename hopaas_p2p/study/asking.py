"""Trials of this process: asked for, run, told."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study._tell import _tell_with_warning  # what optimize calls: Study.tell copies the trial, all of it
from optuna.trial import TrialState

from hopaas_p2p.errors import HopaasError, InvalidInput, NoSuchTrial
from hopaas_p2p.interrupts import INTERRUPTIONS, describe, raise_again, sigterm_raises
from hopaas_p2p.study.handle import Handle
from hopaas_p2p.trial import Trial, as_values

_log: Final = logging.getLogger("hopaas_p2p")

Objective = Callable[[Trial], float | Sequence[float]]


class Asking(Handle):
    """The side of a study that runs trials."""

    _pid: int

    def ask(self) -> Trial:
        """Start the next trial: a WAITING one first, else a new one. Blocks for one exchange.

        Raises:
            NoWork: the budget is used up, or the study is paused, stopped or failing.
            StoreUnreachable: the store did not answer within `patience`.
        """
        if os.getpid() != self._pid:
            self._pid = os.getpid()
            self.optuna.sampler.reseed_rng()  # a forked child would repeat its parent's draws
        raise_again()
        self.optuna._thread_local.cached_all_trials = None
        trial_id = self.storage.take(self.study_id)
        try:
            trial = Trial(self.optuna, trial_id)
            for name, distribution in self.space.items():
                trial._suggest(name, distribution)
        except INTERRUPTIONS as error:  # a sampler may think for seconds
            self._give_back(trial_id, error)
            raise
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
        with self.storage.telling(strict=True, reason=reason):
            self._tell(trial, told, to)

    def _tell(self, trial: Trial | int, values: tuple[float, ...] | None, state: TrialState) -> None:
        _tell_with_warning(self.optuna, trial, None if values is None else list(values), state=state)

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
        with sigterm_raises():
            trial = self.ask()
            try:
                try:
                    yield trial
                except optuna.TrialPruned:
                    self.tell(trial, state=TrialState.PRUNED)
                except INTERRUPTIONS:
                    raise
                except BaseException as error:
                    self.tell(trial, state=TrialState.FAIL, reason=describe(error))
                    raise
                else:
                    self._tell_result(trial, self._result(trial))
            except INTERRUPTIONS as error:
                self._give_back(trial._trial_id, error)
                raise

    def _give_back(self, trial_id: int, error: BaseException) -> None:
        """Release a trial that this process was interrupted in, if its end has not been told yet.

        Waits a few seconds for the store; without it, the lease ends by itself.
        """
        try:
            with self.storage.courier.in_a_hurry():
                self.storage.release(trial_id, reason=f"interrupted: {type(error).__name__}")
        except UpdateFinishedTrialError:
            pass
        except HopaasError as trouble:
            _log.warning("the interrupted trial could not be given back now: %s", trouble)

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


def _state_named(word: str) -> TrialState:
    if word.lower() not in ("complete", "pruned", "fail"):
        raise InvalidInput(f"a trial ends as 'complete', 'pruned' or 'fail', not {word!r}")
    return TrialState[word.upper()]
