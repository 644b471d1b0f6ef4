"""Chooses the parameters of a process's next trial: before it asks, where the sampler can, and not what was tried.

A suggestion that equals a configuration of the log is drawn again. What the sampler draws next is its next best; if
that was tried, too, a neighbour is taken. All samplers are treated alike, but for those that enumerate a space
themselves.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import Trial

from hopaas_p2p.core.admission import NEW, Done
from hopaas_p2p.core.attributes import REPLICATE, REUSED
from hopaas_p2p.core.records import TrialCreate
from hopaas_p2p.core.state import COMPLETE, PRUNED, WAITING, State
from hopaas_p2p.core.state import Trial as LoggedTrial
from hopaas_p2p.errors import HopaasError, NoWork
from hopaas_p2p.search.early import draws_early, enumerates, tell_dropped
from hopaas_p2p.search.optuna_internals import GRID, fixed_names, grid_points
from hopaas_p2p.search.repeats import Tried
from hopaas_p2p.storage import Storage
from hopaas_p2p.storage.optuna_internals import (
    cached_trial,
    fixed_params,
    forget_cached_trials,
    sample_relative,
    suggest,
    trial_id_of,
)
from hopaas_p2p.storage.suggestion import TrialSuggestion
from hopaas_p2p.study.method import Searcher
from hopaas_p2p.translate import external

_log: Final = logging.getLogger("hopaas_p2p")
_DRAWS: Final = 8  # of the sampler, after the first, for a configuration that is new
_SAME_DRAWS: Final = 2  # after so many draws of what it has just drawn, a sampler has no other idea
_MOST_REUSED: Final = 32  # known values told in a row, before something new is tried


class Proposer:
    """See the module. Any thread may call.

    Args:
        storage, study_id: of the study.
        study: Optuna's own object, whose sampler is asked.
        searcher: how repeats are handled.
        space: the search space.
        new_trial: returns the Trial of an id.

    """

    def __init__(
        self,
        storage: Storage,
        study_id: int,
        study: optuna.Study,
        searcher: Searcher,
        space: Mapping[str, BaseDistribution],
        new_trial: Callable[[int], Any],
    ) -> None:
        self._new_trial = new_trial
        self._storage, self._study_id, self._study = storage, study_id, study
        self._searcher = searcher
        self._space = space
        self._tried = Tried(space)
        self._read_from: State | None = None
        self._handle = storage.handle(study_id)
        self._cursor = self._handle.log.session.cursor()
        self._lock = threading.Lock()
        self._said_used_up = False
        self._reused = 0
        """Known values that were told after the ask since the last new configuration."""
        self._grid: tuple[optuna.samplers.BaseSampler | None, list[dict[str, float]] | None] = None, None
        """The points of this sampler that may be left; None where it is not known which points it has."""

    # --- before the ask ---

    def propose(self, within: float) -> TrialSuggestion | None:
        """Draw a configuration from the replica, to be sent with the ask; None where that is not possible.

        It is not possible where the sampler needs the trial first, nor if something else may start meanwhile.

        Raises:
            NoWork: no trial can start; or known values are reused, and there is no new configuration; or the sampler
                goes through points of its own, and all have been started.

        """
        study, handle = self._study, self._handle
        try:
            self._check_points_left()
            if not draws_early(study.sampler, study.pruner):
                return None
            handle.look_before_sampling()
            for at in range(_MOST_REUSED):
                if at and handle.next_or_raise(within=within) is not NEW:  # a value that was told may have changed that
                    return None
                suggestion = self._draw()
                same = self._same_as(suggestion.params)
                if same is None or not self._reuse(suggestion, same):
                    break
            if same is not None:
                suggestion = self._drawn_again(suggestion)
        except NoWork as none:
            if none.refusal == "space":
                handle.next_or_raise("space", none.reason, within=within)
                return None
            raise
        suggestion.replicates = self._searcher.replicates
        self._reserve(suggestion.params)
        return suggestion

    def _check_points_left(self) -> None:
        """Raise NoWork if the sampler goes through points of its own, and each has been started.

        Also if known values are reused and nothing in the space is new.
        """
        sampler, handle = self._study.sampler, self._handle
        if not isinstance(sampler, optuna.samplers.GridSampler | optuna.samplers.BruteForceSampler):
            if self._searcher.repeats == "reuse":
                with handle.lock, self._lock:
                    self._catch_up(handle.state)
                self._is_used_up()
            return
        with handle.lock, self._lock:
            self._catch_up(handle.state)
            if self._grid[0] is not sampler:
                self._grid = sampler, grid_points(sampler, self._space)
            points = self._grid[1]
            while points and self._tried.number_of(points[-1]) is not None:
                points.pop()
            left = bool(points) if points is not None else not self._tried.used_up
        if not left:
            raise self._nothing_new("the sampler has been through all of its points")

    def redraw_if_taken(self, suggestion: TrialSuggestion) -> bool:
        """Replace the configuration of a new trial if another peer started the same one shortly before.

        Its suggestion came with the exchange that started this trial. Of the two trials, the one with the higher number
        is changed; its new parameters are sent in the background.
        """
        trial, drawn = suggestion.trial, suggestion.params
        if self._searcher.repeats == "allow" or suggestion.replicates > 1:
            return False
        handle = self._handle
        with handle.lock:
            arrived = [handle.state.trials[number] for number in self._cursor.changed if number < trial.number]
        if self._tried.used_up or not any(other.params == drawn for other in arrived):
            return False
        other = self._drawn_again(suggestion)
        for name, value in other.params.items():
            self._storage.set_trial_param(trial_id_of(trial), name, value, self._space[name])
            cached_trial(trial).params[name] = external(self._space[name], value)
        self._reserve(other.params, trial.number)
        return True

    def drop(self, suggestion: TrialSuggestion | None) -> None:
        """Drop the suggestion: a waiting trial was started instead, or none."""
        if suggestion is not None:
            with self._lock:
                self._tried.release(suggestion.params)
            tell_dropped(self._study.sampler, suggestion.frozen)

    def _draw(self) -> TrialSuggestion:
        """Let the sampler choose parameters as for a trial that runs."""
        forget_cached_trials(self._study)
        suggestion, known = TrialSuggestion.begin(len(self._handle.state.trials)), self._storage.suggestions
        known[suggestion.trial_id] = suggestion
        try:
            suggestion.trial = self._new_trial(suggestion.trial_id)
            self._sample(suggestion.trial)
        finally:
            del known[suggestion.trial_id]
        return suggestion

    def _drawn_again(self, first: TrialSuggestion) -> TrialSuggestion:
        """What is new: a later draw, or a neighbour of the first; the first if there is nothing new."""
        if self._is_used_up():
            return first
        drawn, same_draws = [first.params], 0
        for _ in range(_DRAWS):
            other = self._draw()
            if self._same_as(other.params) is None:
                tell_dropped(self._study.sampler, first.frozen)
                return other
            tell_dropped(self._study.sampler, other.frozen)
            same_draws += other.params in drawn
            if same_draws == _SAME_DRAWS:
                break
            drawn.append(other.params)
        near = self._neighbour(first.params)
        if near is not None:
            first.params.update(near)
        return first

    # --- after the ask ---

    def sample(self, trial: Trial) -> LoggedTrial | None:
        """Let the sampler choose the parameters that a started trial lacks.

        Returns the trial whose known values can be told for it at once, if there is one.
        """
        space, params = self._space, cached_trial(trial).params
        if space.keys() <= params.keys():  # of a retry
            return None
        was_queued = bool(fixed_params(trial) or params)
        self._sample(trial)
        if was_queued:
            self._reserve(self._params(trial), trial.number)
            return None
        known = None if enumerates(self._study.sampler) else self._replaced(trial)
        logged = self._handle.state.trials[trial.number]
        if known is None and logged.attempt == 1 and not logged.history:
            self._queue_replicates(trial)
        return known

    def _replaced(self, trial: Trial) -> LoggedTrial | None:
        """See that a trial that was sampled after the ask is new; returns the one whose values are known for it."""
        space = self._space
        frozen, params = cached_trial(trial), self._params(trial)
        same = self._same_as(params, but=trial.number)
        if same is None:
            self._reused = 0
            self._reserve(params, trial.number)
            return None
        if self._searcher.repeats == "reuse" and _has_result(same) and self._reused < _MOST_REUSED:
            self._reused += 1
            return same
        self._reused = 0
        near = None if self._is_used_up() else self._neighbour(params)
        for name, value in (near or {}).items():
            if value != params[name]:
                self._storage.set_trial_param(trial_id_of(trial), name, value, space[name])
                frozen.params[name] = external(space[name], value)
        self._reserve(near or params, trial.number)
        return None

    def _params(self, trial: Trial) -> dict[str, float]:
        """Its parameters in the form of the log."""
        params = cached_trial(trial).params
        return {name: float(one.to_internal_repr(params[name])) for name, one in self._space.items()}

    def _queue_replicates(self, trial: Trial) -> None:
        """Queue the others of a configuration that gets several trials; they leave in the background."""
        count = self._searcher.replicates
        if count == 1:
            return
        handle, params = self._handle, self._params(trial)
        attributes = self._storage.get_trial_system_attrs(trial_id_of(trial))
        grid = {key: json.dumps(attributes[key]) for key in GRID if key in attributes}
        with handle.lock:
            for seed in range(1, count):
                system = grid | {REPLICATE: json.dumps({"of": trial.number, "seed": seed})}
                self._storage.peer.put(handle.log, TrialCreate(state=WAITING, params=params, system=system))
            self._storage.peer.hurry(handle.log, within=0.0)

    # --- how ---

    def _sample(self, trial: Trial) -> None:
        """Let the sampler choose the parameters that it chooses together, and then the others.

        Some of Optuna's raise on what any peer may have written, as GPSampler on trials with unlike constraints; the
        parameters are chosen one by one then. A sampler of somebody else's knows what it raises for.
        """
        try:
            sample_relative(trial)
        except (HopaasError, ImportError):  # the store is away, or an optional library is not installed
            raise
        except Exception as error:
            if not type(self._study.sampler).__module__.startswith("optuna."):
                raise
            _log.warning(
                "the sampler failed on this study, so trial %d is sampled one parameter at a time: %s",
                trial.number,
                error,
            )
        for name, distribution in self._space.items():
            suggest(trial, name, distribution)

    def _same_as(self, params: Mapping[str, float], *, but: int | None = None) -> LoggedTrial | None:
        """The newest trial with these parameters; None if there is none, or repeats are allowed."""
        if self._searcher.repeats == "allow":
            return None
        handle = self._handle
        with handle.lock, self._lock:
            state = handle.state
            self._catch_up(state)
            number = self._tried.number_of(params)
        if number is None or number == but:
            return None
        if self._searcher.repeats == "reuse" and any(number == ended for ended, *_ in handle.deferred):
            self._storage.peer.pull(handle.log)  # its values were told in this process, and wait for the next exchange
        return handle.state.trials[number] if number >= 0 else _ELSEWHERE

    def _reserve(self, params: Mapping[str, float], number: int = -1) -> None:
        if self._searcher.repeats != "allow":
            handle = self._handle
            with handle.lock, self._lock:
                self._catch_up(handle.state)
                self._tried.reserve(params, number)

    def _catch_up(self, state: State) -> None:
        changed = self._cursor.changed
        if state is not self._read_from:
            self._tried, self._read_from = Tried(self._space), state
            self._tried.note_all(state.trials)
            changed.clear()
        elif changed:
            self._tried.note([state.trials[number] for number in sorted(changed)])
            changed.clear()

    def _neighbour(self, params: Mapping[str, float]) -> dict[str, float] | None:
        if enumerates(self._study.sampler):
            return None
        with self._lock:
            return self._tried.neighbour(params, fixed=fixed_names(self._study.sampler))

    def _is_used_up(self) -> bool:
        """Whether nothing of the space is new, which is said.

        Raises:
            NoWork: where known values are reused, nothing is left to train then.

        """
        if not self._tried.used_up:
            return False
        if self._searcher.repeats == "reuse":
            raise self._nothing_new("every configuration of the search space has been tried")
        if not self._said_used_up:
            self._said_used_up = True
            _log.warning(
                "all %s configurations of the search space of %r have been tried: from now on they will be repeated",
                self._tried.size,
                self._study.study_name,
            )
        return True

    def _nothing_new(self, why: str) -> NoWork:
        """Rungs promote by their quotas only while the log knows of no last configuration, so a budget must say it."""
        state = self._handle.state
        if state.configurations.standings.waiting():
            why += f"; with a budget of {state.used()}, the best of those that wait at rungs continue"
        return NoWork(why, Done("space"))

    def _reuse(self, suggestion: TrialSuggestion, same: LoggedTrial) -> bool:
        """Tell the known values of this configuration as a trial of its own, if that is wanted and there are some."""
        if self._searcher.repeats != "reuse" or not _has_result(same) or self._is_used_up():
            return False
        record = TrialCreate(
            state=same.state,
            params=suggestion.params,
            reports=dict(same.reports),
            system={**suggestion.system, REUSED: str(same.number)},
            values=same.values,
            metrics={name: dict(values) for name, values in same.metrics.items()},
        )
        self._storage.bring(self._study_id, record)
        return True


_ELSEWHERE: Final = LoggedTrial(-1, COMPLETE)
"""What another thread of this process is about to start."""


def _has_result(trial: LoggedTrial) -> bool:
    """Whether its values are final: those of a trial that waits at a rung are not."""
    return trial.values is not None and trial.state in (COMPLETE, PRUNED) and not trial.paused
