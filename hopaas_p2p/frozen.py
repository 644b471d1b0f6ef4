"""A study's State as Optuna's frozen trials: built once, shared with every reader, replaced and never changed.

Lists handed out stay as they are; a change makes new ones. What a trial of this process has been told but the log has
not seen yet is laid over the State, so a writer always reads its own writes.
"""

from __future__ import annotations

import bisect
from collections.abc import Container
from operator import attrgetter
from typing import Any, Final

from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from hopaas_p2p.core.leases import Lease
from hopaas_p2p.core.state import State, Trial
from hopaas_p2p.translate import external, read_json, to_datetime, to_optuna

_NUMBER: Final = attrgetter("_number")
_STATES: Final = tuple(TrialState)
_PICKLES: Final = "cma:"
"""Prefix of the trial attributes in which Optuna's CMA-ES sampler passes pickles from peer to peer."""


class Live:
    """A running trial of this process, as its owner sees it: ahead of the log by what waits in the outbox."""

    __slots__ = ("frozen", "lease", "lent", "shown", "writer")

    def __init__(self, frozen: FrozenTrial, lease: Lease, writer: str) -> None:
        self.frozen = frozen
        self.lease = lease
        self.writer = writer
        """Who sent what `frozen` holds; another process must send it all again, for it cannot know what has left."""
        self.shown: FrozenTrial | None = None
        """A copy for readers, until the next write."""
        self.lent = False
        """Whether another process, which the trial travelled to, was heard to write to it too."""

    def lacks(self, trial: Trial) -> bool:
        """Whether the log knows of this lease what was not said here."""
        mine = self.frozen
        return self.lease == (trial.owner, trial.epoch) and not (
            trial.reports.keys() <= mine.intermediate_values.keys()
            and trial.params.keys() <= mine._params.keys()
            and trial.user.keys() <= mine._user_attrs.keys()
            and trial.system.keys() <= mine._system_attrs.keys()
        )

    def hear(self, logged: FrozenTrial) -> None:
        """Take in what the log has; of what was said here too, our own word is the newer."""
        self.lent = True
        for field in ("intermediate_values", "_params", "_distributions", "_user_attrs", "_system_attrs"):
            setattr(self.frozen, field, {**getattr(logged, field), **getattr(self.frozen, field)})


class View:
    """Frozen trials of one study. Guarded by the lock of its replica."""

    def __init__(self, study_id: int, *, allow_pickles: bool) -> None:
        self.study_id = study_id
        self.live: dict[int, Live] = {}
        self.dists: dict[str, BaseDistribution] = {}
        """The first distribution of each parameter, that of this process before the log has it."""
        self._allow_pickles = allow_pickles
        self._first_id = study_id << 32
        self._state: State | None = None
        self._all: list[FrozenTrial] = []
        self._by_state: dict[TrialState, list[FrozenTrial]] = {}
        self._selections: dict[tuple[TrialState, ...], list[FrozenTrial]] = {}
        self._lent: set[TrialState | None] = set()
        """Which of the lists above (None: all) somebody holds: these are copied before they change."""
        self._shapes: dict[tuple[str, ...], tuple[dict[str, BaseDistribution], list[str]]] = {}
        self._best: int | None = None

    def catch_up(self, state: State) -> None:
        """Build what changed in the State since the last time."""
        if state is not self._state:
            self._start_over(state)
        if not state.changed:
            return
        self._state = None  # until all is done: who is interrupted starts over
        numbers = sorted(state.changed)
        state.changed.clear()
        if len(self.dists) < len(state.dists):
            for name in state.dists.keys() - self.dists.keys():
                self.dists[name] = to_optuna(state.dists[name])
        self._own_all()
        fresh: dict[TrialState, list[FrozenTrial]] = {}
        for number in numbers:
            trial = state.trials[number]
            frozen = self._own(trial, state) if trial.end is None and number in self.live else self.build(trial, state)
            if number < len(self._all):
                self._all[number] = frozen
            else:
                self._all.append(frozen)
            if trial.end is not None:
                self._let_go(trial)
                fresh.setdefault(frozen.state, []).append(frozen)
        for trial_state, finished in fresh.items():
            self._file(trial_state, finished, state)
        self._state = state

    def _own(self, trial: Trial, state: State) -> FrozenTrial:
        """What holds the place of a running trial of this process; readers of the list get a copy."""
        live = self.live[trial.number]
        if live.lacks(trial):
            live.hear(self.build(trial, state))
        live.shown = None
        return live.frozen

    def _own_all(self) -> None:
        """Make the list of all trials fit to be changed."""
        if None in self._lent:
            self._lent.discard(None)
            self._all = self._all.copy()
        self._selections = {}

    def _let_go(self, trial: Trial) -> None:
        """Forget the live side of a trial that ended, unless its lease was lost: the holder goes on until it tells."""
        live = self.live.get(trial.number)
        if live is not None and live.lease == (trial.owner, trial.epoch):
            del self.live[trial.number]

    def _start_over(self, state: State) -> None:
        """The replica joined anew: everything may differ."""
        self._state = state
        self._all, self._by_state, self._selections, self._lent, self._best = [], {}, {}, set(), None
        state.changed.update(range(len(state.trials)))

    def _file(self, trial_state: TrialState, finished: list[FrozenTrial], state: State) -> None:
        filed = self._by_state.setdefault(trial_state, [])
        if trial_state in self._lent:
            self._lent.discard(trial_state)
            filed = self._by_state[trial_state] = filed.copy()
        for frozen in finished:
            if not filed or filed[-1]._number < frozen._number:  # as nearly always
                filed.append(frozen)
                continue
            place = bisect.bisect_left(filed, frozen._number, key=_NUMBER)
            if place < len(filed) and filed[place]._number == frozen._number:
                filed[place] = frozen
            else:
                filed.insert(place, frozen)
        if trial_state is TrialState.COMPLETE and state.define is not None and len(state.define.directions) == 1:
            for frozen in finished:
                self._compare_with_best(frozen, maximize=state.define.directions[0] == "maximize")

    def _compare_with_best(self, frozen: FrozenTrial, *, maximize: bool) -> None:
        assert frozen._values is not None
        best = None if self._best is None else self._all[self._best]._values
        value = frozen._values[0]
        if best is None or (value > best[0] if maximize else value < best[0]):
            self._best = frozen._number
        elif value == best[0] and self._best is not None:
            self._best = min(self._best, frozen._number)

    def _shown(self, number: int) -> FrozenTrial | None:
        """This process's own running trial, as of now, if it is one."""
        live = self.live.get(number)
        if live is None or (self._state is not None and self._state.trials[number].end is not None):
            return None
        if live.shown is None:
            live.shown = copy_of(live.frozen)
        return live.shown

    # --- reading ---

    def trial(self, number: int) -> FrozenTrial:
        """One trial. For a running trial of this process, a copy its holder may change (Optuna's Trial does)."""
        live = self.live.get(number)
        return copy_of(live.frozen) if live is not None else self._all[number]

    def trials(self, states: Container[TrialState] | None) -> list[FrozenTrial]:
        """The trials in these states, by number. The list is shared: not to be changed."""
        assert self._state is not None
        key = _STATES if states is None else tuple([trial_state for trial_state in _STATES if trial_state in states])
        if len(key) == 1 and key[0].is_finished():
            self._lent.add(key[0])
            return self._by_state.setdefault(key[0], [])
        if key == (TrialState.WAITING,):
            return [self._all[number] for number in sorted(self._state.waiting)]
        self._refresh_live()
        if key == _STATES:
            self._lent.add(None)
            return self._all
        found = self._selections.get(key)
        if found is None:
            found = self._selections[key] = [trial for trial in self._all if trial.state in key]
        return found

    def _refresh_live(self) -> None:
        stale = [number for number, live in self.live.items() if live.shown is None]
        if stale:
            self._own_all()
            for number in stale:
                shown = self._shown(number)
                if shown is not None:
                    self._all[number] = shown

    def best(self) -> FrozenTrial | None:
        """The best COMPLETE trial of a study with one direction."""
        return None if self._best is None else self._all[self._best]

    # --- building ---

    def build(self, trial: Trial, state: State) -> FrozenTrial:
        """Optuna's view of a trial. Shares the dictionaries of a finished one, which never change again."""
        distributions, special = self._shape(trial, state)
        params: dict[str, Any] = trial.params  # a float is its own external representation
        if special:
            params = dict(trial.params)
            for name in special:
                params[name] = external(distributions[name], params[name])
        elif trial.end is None:
            params = dict(params)
        running = trial.end is None
        frozen = FrozenTrial.__new__(FrozenTrial)  # its __init__ costs as much as all that is above
        frozen._number = trial.number
        frozen.state = _STATES[trial.state]
        frozen._values = None if trial.values is None else list(trial.values)
        frozen._datetime_start = to_datetime(trial.start)
        frozen.datetime_complete = to_datetime(trial.end)
        frozen._params = params
        frozen._user_attrs = self._attributes(trial.user)
        frozen._system_attrs = self._attributes(trial.system)
        frozen.intermediate_values = dict(trial.reports) if running else trial.reports
        frozen._distributions = dict(distributions) if running else distributions
        frozen._trial_id = self._first_id + trial.number
        return frozen

    def _shape(self, trial: Trial, state: State) -> tuple[dict[str, BaseDistribution], list[str]]:
        """The distributions of a trial, shared among all with the same ones; and whose values need translation."""
        names = tuple(trial.params)
        if trial.dists:
            distributions = {name: to_optuna(trial.distribution(name, state)) for name in names}
            return distributions, _special(distributions)
        found = self._shapes.get(names)
        if found is None:
            distributions = {name: to_optuna(state.dists[name]) for name in names}
            found = self._shapes[names] = distributions, _special(distributions)
        return found

    def _attributes(self, texts: dict[str, str]) -> dict[str, Any]:
        if not texts:
            return {}
        return {
            key: read_json(text) for key, text in texts.items() if self._allow_pickles or not key.startswith(_PICKLES)
        }


def _special(distributions: dict[str, BaseDistribution]) -> list[str]:
    return [name for name, one in distributions.items() if not isinstance(one, FloatDistribution)]


def copy_of(frozen: FrozenTrial) -> FrozenTrial:
    """A copy with dictionaries of its own."""
    new = FrozenTrial.__new__(FrozenTrial)  # a third of the cost of copy.copy
    new.__dict__.update(frozen.__dict__)
    new._params = dict(frozen._params)
    new._distributions = dict(frozen._distributions)
    new._user_attrs = dict(frozen._user_attrs)
    new._system_attrs = dict(frozen._system_attrs)
    new.intermediate_values = dict(frozen.intermediate_values)
    return new
