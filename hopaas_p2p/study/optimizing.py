"""`Study.optimize`: the loop of a peer, from the first ask to the last settled end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, cast

import optuna
from optuna.trial import FrozenTrial, TrialState

from hopaas_p2p.errors import InvalidInput, NoWork
from hopaas_p2p.interrupts import INTERRUPTIONS, describe, sigterm_raises
from hopaas_p2p.study.asking import Asking, Objective
from hopaas_p2p.trial import Trial, as_values

if TYPE_CHECKING:
    from hopaas_p2p.study import Study

_log: Final = logging.getLogger("hopaas_p2p")


class Optimizing(Asking):
    """The side of a study that runs trials until there is no more work."""

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

        Raises:
            InvalidInput: the objective cannot be called. No trial is started.
        """
        if not callable(objective):
            raise InvalidInput(f"optimize wants a function that gets a trial and returns its value, got {objective!r}")
        caught = (catch,) if isinstance(catch, type) else tuple(catch)
        deadline = None if timeout is None else time.monotonic() + timeout
        done = 0
        trial = None
        with sigterm_raises():
            try:
                while (n_trials is None or done < n_trials) and (deadline is None or time.monotonic() < deadline):
                    trial = self._next_trial(deadline)
                    if trial is None:
                        break
                    self._settle()
                    self._run(trial, objective, caught)
                    done += 1
                    if callbacks:
                        self._settle()
                        for callback in callbacks:
                            callback(cast("Study", self), self.storage.get_trial(trial._trial_id))
            except INTERRUPTIONS as error:
                if trial is not None:
                    self._give_back(trial._trial_id, error)
                raise
            finally:
                self._settle()

    def _next_trial(self, deadline: float | None) -> Trial | None:
        """The next trial; None when there is nothing to do here, now and later."""
        while True:
            try:
                return self.ask()
            except NoWork as none:
                self._settle()
                if not self._may_come_back(none) or (deadline is not None and time.monotonic() >= deadline):
                    _log.info("%s", none)
                    return None
                time.sleep(min(1.0, self.state.policy.ttl / 8))

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
        except optuna.TrialPruned:
            self._end(trial, state=TrialState.PRUNED)
            return
        except INTERRUPTIONS:
            raise
        except BaseException as error:
            self._end(trial, state=TrialState.FAIL, reason=describe(error))
            if not isinstance(error, caught):
                raise
            return
        try:
            values = as_values(result, expected=len(self.optuna.directions))
        except InvalidInput as error:
            self._end(trial, state=TrialState.FAIL, reason=str(error))
        else:
            self._end(trial, values, state=TrialState.COMPLETE)

    def _end(
        self, trial: Trial, values: tuple[float, ...] | None = None, *, state: TrialState, reason: str | None = None
    ) -> None:
        self.storage.check_writable(trial._trial_id)
        with self.storage.telling(defer=True, reason=reason):
            self._tell(trial, values, state)
