"""Chooses the parameters of a process's next trial, before the ask if the sampler can, and avoids repeats.

A suggestion that equals a configuration in the log is drawn again. The sampler's next draw is its next best; if that
was tried, too, a neighbour is taken. All samplers are treated alike, except those that enumerate a space themselves.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Mapping
from typing import Any, Final

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from hopaas_p2p.core.admission import NEW, Done
from hopaas_p2p.core.attributes import REPLICATE, REUSED
from hopaas_p2p.core.records import TrialCreate
from hopaas_p2p.core.state import COMPLETE, PRUNED, WAITING, State
from hopaas_p2p.core.state import Trial as LoggedTrial
from hopaas_p2p.core.validity import constraints_of
from hopaas_p2p.errors import NoWork
from hopaas_p2p.runtime.logs import LOG
from hopaas_p2p.search.optuna_internals import GRID, fixed_names, grid_points
from hopaas_p2p.search.repeats import Tried
from hopaas_p2p.storage import Storage
from hopaas_p2p.storage.handle import StudyHandle, is_new
from hopaas_p2p.storage.optuna_internals import become, begin, cached_trial, fixed_params, running, sample
from hopaas_p2p.study.method import Searcher
from hopaas_p2p.study.trial import Trial
from hopaas_p2p.translate import external, to_record

_ids: Final = itertools.count(-1, -1)
_DRAWS: Final = 8  # further draws to find a new configuration
_SAME_DRAWS: Final = 2  # after this many repeats of its own last draws, a sampler has nothing else to offer
_MOST_REUSED: Final = 32  # known values recorded in a row before something new is tried
_EARLY: Final = frozenset({"RandomSampler", "TPESampler", "GPSampler", "NSGAIISampler", "NSGAIIISampler"})
"""Optuna's samplers that look only at other trials, so they can draw before the trial exists. Excluded: GridSampler
(the number selects the point), BruteForceSampler (looks itself up among all trials), QMCSampler (counts its points in
the study), CmaEsSampler (seeds by the number)."""
_ENUMERATING: Final = (optuna.samplers.GridSampler, optuna.samplers.BruteForceSampler)
"""Samplers that enumerate fixed points, so that a neighbour is no substitute."""


class Proposer:
    """Chooses the parameters of this process's next trial. Methods may be called from any thread.

    Args:
        storage, handle: those of the study.
        study: Optuna's own object, whose sampler is asked.
        searcher: how repeats are handled.
        space: the search space.

    """

    def __init__(
        self,
        storage: Storage,
        handle: StudyHandle,
        study: optuna.Study,
        searcher: Searcher,
        space: Mapping[str, BaseDistribution],
    ) -> None:
        self._storage, self._handle, self._study = storage, handle, study
        self._searcher = searcher
        self._space = space
        define = handle.state.define
        defined = define is not None and bool(define.space)
        self._dists = {} if defined else {name: to_record(one) for name, one in space.items()}
        """Distributions that a trial may have to name, because the study's definition does not."""
        self._translated = [name for name, one in space.items() if not isinstance(one, FloatDistribution)]
        """Parameters whose values have a different form in the log."""
        self._tried = Tried(space)
        self._read_from: State | None = None
        self._changed = handle.log.session.cursor()
        self._lock = threading.Lock()
        self._said_used_up = False
        self._reused = 0
        """Known values that were recorded after the ask since the last new configuration."""
        self._grid: tuple[optuna.samplers.BaseSampler | None, list[dict[str, float]] | None] = None, None
        """The points that this sampler may still have; None if its points are not known."""

    # --- before the ask ---

    def propose(self, within: float) -> Trial | None:
        """Draw a configuration from the replica, with the record that asks for it; None if that is not possible.

        It is not possible if the sampler needs the trial first, or if something else may start meanwhile.

        Raises:
            NoWork: no trial can start; or known values are reused, and there is no new configuration; or the sampler
                enumerates points, and all have been started.

        """
        study, handle = self._study, self._handle
        try:
            self.check_points_left()
            if not draws_early(study.sampler, study.pruner):
                return None
            handle.look_before_sampling()
            for reused in itertools.count():
                trial = self._draw()
                same = self._take(trial.record.params)
                if same is None:
                    break
                if reused == _MOST_REUSED or not self._reuse(trial, same):
                    trial = self._drawn_again(trial)
                    break
                if handle.next_or_raise(within=within) is not NEW:  # recording it may have changed what may start
                    return None
            params, values = cached_trial(trial).params, trial.record.params
            params.update(values)  # the sampler may have drawn other values, or numpy's numbers
            for name in self._translated:
                params[name] = self._space[name].to_external_repr(values[name])
            return trial
        except NoWork as none:
            if none.refusal != "space":
                raise
            handle.next_or_raise("space", none.reason, within=within)
            return None

    def check_points_left(self) -> None:
        """Raise NoWork if the sampler enumerates points, and all of them have been started.

        Also raise it if known values are reused and nothing in the space is new.
        """
        sampler, handle = self._study.sampler, self._handle
        if self._searcher.repeats != "reuse" and not isinstance(sampler, _ENUMERATING):
            return
        with handle.lock, self._lock:
            self._catch_up(handle.state)
            if self._grid[0] is not sampler:
                self._grid = sampler, grid_points(sampler, self._space)
            points = self._grid[1]
            while points and self._tried.number_of(points[-1]) is not None:
                points.pop()
            left = bool(points) if points is not None else not self._tried.used_up
        if not isinstance(sampler, _ENUMERATING):
            self._is_used_up()
        elif not left:
            raise self._nothing_new("the sampler has tried all of its points")

    def drop(self, trial: Trial) -> None:
        """Drop a suggestion, because another trial was started instead, or none."""
        with self._lock:
            self._tried.release(trial.record.params)
        tell_dropped(self._study.sampler, cached_trial(trial))

    def _draw(self) -> Trial:
        """Let the sampler choose parameters as for a running trial."""
        state, suggestions, trial_id = self._handle.log.session.state, self._storage.suggestions, next(_ids)
        now = self._handle.peer.now_us()
        dists = self._dists and {name: one for name, one in self._dists.items() if state.dists.get(name) != one}
        record = TrialCreate(prefer_waiting=True, params={}, dists=dists, replicates=self._searcher.replicates)
        frozen = running(trial_id, state.trials.size, now)
        suggestions[trial_id] = frozen, record
        try:
            trial = begin(Trial, self._study, frozen)
            trial.record = record
            sample(trial, self._space)
        finally:
            del suggestions[trial_id]
        return trial

    def _drawn_again(self, first: Trial) -> Trial:
        """A trial whose configuration is new and now reserved: a later draw, or the first one moved to a neighbour.

        The first one is returned unchanged if nothing new is found.
        """
        params = first.record.params
        if self._is_used_up():
            return first
        drawn, same_draws = [params.copy()], 0
        for _ in range(_DRAWS):
            other = self._draw()
            if self._take(other.record.params) is None:
                tell_dropped(self._study.sampler, cached_trial(first))
                return other
            tell_dropped(self._study.sampler, cached_trial(other))
            same_draws += other.record.params in drawn
            if same_draws == _SAME_DRAWS:
                break
            drawn.append(other.record.params)
        params.update(self._neighbour(params) or {})
        self._take(params)
        return first

    # --- after the ask ---

    def begin(self, suggested: Trial, frozen: FrozenTrial) -> bool:
        """Make a suggestion the new trial that its record started; drop it, and return False, if another was started.

        If another peer started the same configuration shortly before, its suggestion came with the exchange that
        started this trial. Of the two trials, the one with the higher number is changed; its new parameters are sent in
        the background.
        """
        handle, changed, drawn, number = self._handle, self._changed, suggested.record.params, frozen.number
        if not is_new(handle.log.session.state.trials[number], suggested.record):
            self.drop(suggested)
            return False
        become(suggested, frozen)
        if changed != {number} and self._searcher.repeats != "allow" and self._searcher.replicates <= 1:
            with handle.lock:
                arrived = [handle.state.trials[one] for one in changed if one < number]
            if any(other.params == drawn for other in arrived) and not self._tried.used_up:
                self._change(suggested, self._drawn_again(suggested).record.params)
                handle.send_soon()
        suggested.record = None
        return True

    def sample(self, trial: Trial) -> LoggedTrial | None:
        """Let the sampler choose the parameters that a started trial lacks.

        Returns the trial whose known values can be recorded for it at once, if there is one.
        """
        space, frozen, number = self._space, cached_trial(trial), trial.number
        if space.keys() <= frozen.params.keys():  # of a retry
            return None
        was_queued = bool(fixed_params(trial) or frozen.params)
        sample(trial, space)
        params = {name: float(one.to_internal_repr(frozen.params[name])) for name, one in space.items()}
        same = self._take(params, number)
        if was_queued:
            return None
        if same is not None and not isinstance(self._study.sampler, _ENUMERATING):
            if self._searcher.repeats == "reuse" and _has_result(same) and self._reused < _MOST_REUSED:
                self._reused += 1
                return same
            near = None if self._is_used_up() else self._neighbour(params)
            self._change(trial, near or {})
            params = near or params
            self._take(params, number)
        self._reused = 0
        logged, count = self._handle.state.trials[number], self._searcher.replicates
        if count > 1 and not logged.begun_before:
            self._queue_replicates(trial, params, count)
        return None

    def _change(self, trial: Trial, params: Mapping[str, float]) -> None:
        """Give a started trial parameters other than those drawn for it."""
        frozen, space = cached_trial(trial), self._space
        for name, value in params.items():
            if external(space[name], value) != frozen.params[name]:
                self._handle.set_param(trial.number, name, value, space[name])
                frozen.params[name] = external(space[name], value)

    def _queue_replicates(self, trial: Trial, params: dict[str, float], count: int) -> None:
        """Queue the other trials of a configuration that gets several; they are sent in the background."""
        handle, attributes = self._handle, self._handle.trial(trial.number).system_attrs
        grid = {key: json.dumps(attributes[key]) for key in GRID if key in attributes}
        with handle.lock:
            for seed in range(1, count):
                system = grid | {REPLICATE: json.dumps({"of": trial.number, "seed": seed})}
                handle.peer.put(handle.log, TrialCreate(state=WAITING, params=params, system=system))
            handle.peer.hurry(handle.log, within=0.0)

    # --- how ---

    def _take(self, params: Mapping[str, float], number: int = -1) -> LoggedTrial | None:
        """Reserve this configuration for the trial with this number; -1 for one that is about to start.

        If repeats are not allowed and another trial has it already, returns the newest such trial instead, or
        `_ELSEWHERE`.
        """
        if self._searcher.repeats == "allow":
            return None
        handle = self._handle
        log = handle.log
        with log.lock, self._lock:
            if self._changed or log.session.state is not self._read_from:
                self._catch_up(log.session.state)
            before = self._tried.reserve(params, number)
        if before is None or before == number != -1:
            return None
        if self._searcher.repeats == "reuse" and any(before == ended for ended, *_ in handle.deferred):
            handle.peer.pull(log)  # its values were set in this process, and wait for the next exchange
        return handle.state.trials[before] if before >= 0 else _ELSEWHERE

    def _catch_up(self, state: State) -> None:
        if state is not self._read_from:
            self._tried, self._read_from = Tried(self._space), None  # None until the end, as Ctrl-C may come in between
            self._tried.note_all(state.trials)
            self._read_from = state
        elif self._changed:
            self._tried.note(map(state.trials.__getitem__, sorted(self._changed)))
        self._changed.clear()

    def _neighbour(self, params: Mapping[str, float]) -> dict[str, float] | None:
        if isinstance(self._study.sampler, _ENUMERATING):
            return None
        with self._lock:
            return self._tried.neighbour(params, fixed=fixed_names(self._study.sampler))

    def _is_used_up(self) -> bool:
        """Whether every configuration of the space has been tried, which is logged the first time.

        Raises:
            NoWork: known values are reused, so nothing is left to train.

        """
        if not self._tried.used_up:
            return False
        if self._searcher.repeats == "reuse":
            raise self._nothing_new("every configuration of the search space has been tried")
        if not self._said_used_up:
            self._said_used_up = True
            LOG.warning(
                "all %s configurations of the search space of %r have been tried; from now on they are repeated",
                self._tried.size,
                self._study.study_name,
            )
        return True

    def _nothing_new(self, why: str) -> NoWork:
        """The error if nothing new is left.

        If configurations wait at rungs, it suggests a budget with which the best of them continue.
        """
        state = self._handle.state
        if state.configurations.waiting():
            why += f"; to continue the best of those that wait at rungs, set the budget to {state.used()}"
        return NoWork(why, Done("space"))

    def _reuse(self, trial: Trial, same: LoggedTrial) -> bool:
        """If the study reuses results and this configuration has one, record it as a separate trial."""
        if self._searcher.repeats != "reuse" or not _has_result(same) or self._is_used_up():
            return False
        record = TrialCreate(
            state=same.state,
            params=trial.record.params,
            reports=dict(same.reports),
            system={**trial.record.system, **constraints_of(same.system), REUSED: str(same.number)},
            values=same.values,
            metrics={name: dict(values) for name, values in same.metrics.items()},
        )
        self._handle.bring(record)
        return True


def draws_early(sampler: BaseSampler, pruner: optuna.pruners.BasePruner) -> bool:
    """Whether this sampler, with this pruner, needs nothing from its own trial, such as its number.

    Third-party samplers declare it with an attribute `needs_number = False`.
    """
    if isinstance(pruner, optuna.pruners.HyperbandPruner):  # the number determines which trials a sampler sees
        return False
    needs: Any = getattr(sampler, "needs_number", None)
    if needs is not None:
        return not needs
    kind = type(sampler)
    if kind is optuna.samplers.PartialFixedSampler:
        return all(draws_early(one, pruner) for one in vars(sampler).values() if isinstance(one, BaseSampler))
    return kind.__name__ in _EARLY and getattr(optuna.samplers, kind.__name__) is kind


def tell_dropped(sampler: BaseSampler, trial: optuna.trial.FrozenTrial) -> None:
    """Notify the sampler, if it has a method `proposal_dropped`, that its proposal for this trial will not be run."""
    hear = getattr(sampler, "proposal_dropped", None)
    if hear is not None:
        hear(trial)


_ELSEWHERE: Final = LoggedTrial(-1, COMPLETE)
"""A configuration that another thread of this process is about to start."""


def _has_result(trial: LoggedTrial) -> bool:
    """Whether a trial has final values. Those of a trial that waits at a rung are not final."""
    return trial.values is not None and trial.state in (COMPLETE, PRUNED) and not trial.paused
