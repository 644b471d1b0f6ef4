"""Reads: from memory, without a round trip, and without a copy unless one is asked for."""

from __future__ import annotations

import copy
from collections.abc import Container

from optuna.trial import FrozenTrial, TrialState

from hopaas_p2p.storage.part import NUMBER_BITS, Parts
from hopaas_p2p.translate import directions_of


class Reading(Parts):
    """The side of the storage that reads trials."""

    def get_trial(self, trial_id: int) -> FrozenTrial:
        part, number = self._locate(trial_id)
        with part.lock:
            if number in part.view.live:
                return part.view.trial(number)
        self._refresh(part)
        with part.lock:
            part.view.catch_up(part.replica.state)
            return part.view.trial(number)

    def get_trial_number_from_id(self, trial_id: int) -> int:
        return self._locate(trial_id)[1]

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        part = self._read(study_id)
        if not 0 <= trial_number < len(part.replica.state.trials):
            raise KeyError(f"No trial with number {trial_number} in the study with study_id {study_id}.")
        return (study_id << NUMBER_BITS) + trial_number

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        part = self._read(study_id)
        with part.lock:
            part.view.catch_up(part.replica.state)
            found = part.view.trials(states)
        return copy.deepcopy(found) if deepcopy else found

    def get_n_trials(self, study_id: int, state: tuple[TrialState, ...] | TrialState | None = None) -> int:
        if isinstance(state, TrialState):
            state = (state,)
        part = self._read(study_id)
        with part.lock:
            if state is None:
                return len(part.replica.state.trials)
            if part.deferred:  # told here, not in the log yet
                part.view.catch_up(part.replica.state)
                return len(part.view.trials(state))
            return sum(part.replica.state.counts[one.value] for one in set(state))

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        part = self._read(study_id)
        with part.lock:
            if len(directions_of(part.replica.state)) > 1:
                raise RuntimeError("Best trial can be obtained only for single-objective optimization.")
            part.view.catch_up(part.replica.state)
            best = part.view.best()
        if best is None:
            raise ValueError("No trials are completed yet.")
        return best
