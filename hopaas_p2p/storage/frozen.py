"""A study's State as Optuna's frozen trials: built when first requested, shared by all readers, never changed.

Returned lists belong to the caller. Changes to a trial of this process that are not in the log yet are laid over the
State, so a writer always reads its own writes.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any, Final

import msgspec
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from hopaas_p2p.core.inherited import flat
from hopaas_p2p.core.leases import Lease
from hopaas_p2p.core.names import first_id
from hopaas_p2p.core.state import COMPLETE, State, Trial
from hopaas_p2p.peer.outbox import Draft
from hopaas_p2p.storage.optuna_internals import copy_of, new_frozen, pickle_prefixes
from hopaas_p2p.translate import external, read_json, to_optuna

_STATES: Final = tuple(TrialState)

NOT_BEGUN: Final = Draft(-1, 0)


class OwnedTrial(msgspec.Struct, eq=False):
    """A running trial of this process, as its owner sees it: ahead of the log by what is still to be sent."""

    frozen: FrozenTrial
    lease: Lease
    writer: str
    """The peer that sent what `frozen` holds. Another peer must send all of it again, because it cannot know what has
    arrived."""
    copies_made: int
    """`Peer.copies_made` when this view was created. If it has risen since, another process may also run the trial."""
    inherited: dict[int, float]
    """Reports of an earlier attempt, which count only up to the step from which this one actually resumed."""
    inherits: bool
    """Whether an earlier attempt left reports, or metrics, which count like them."""
    lent: bool
    """Whether the trial came from another process, which will end it."""
    params: dict[str, Any]
    distributions: dict[str, BaseDistribution]
    """The dictionaries of `frozen`. Reading them through its properties would cost as much as a write."""
    draft: Draft
    """What was last set on it; unsent as long as the session has it."""
    resumed_from: int | None = None
    """The step that this attempt has reported resuming from, if any; see `TrialSet.resumed_from`."""
    asked: object = None
    """The `handle.AskedTrial` that detects when the trial's object is collected, if there is one."""
    shared: bool = False
    """Whether another process, to which the trial was passed, was seen to write to it too."""
    metrics: dict[str, dict[int, float]] = {}
    """Name -> step -> value, as set in this process, because Optuna's trials have no field for metrics."""

    def lacks(self, trial: Trial) -> bool:
        """Whether the log has something under this lease that was not set in this process."""
        mine = self.frozen
        empty = not (trial.params or trial.reports or trial.user or trial.system)  # true of most trials when they start
        if empty or self.lease != (trial.owner, trial.epoch):
            return False
        reports = trial.reports.keys() - mine.intermediate_values.keys()
        return bool(reports and any(self.inherited.get(step) != trial.reports[step] for step in reports)) or not (
            trial.params.keys() <= mine.params.keys()
            and trial.user.keys() <= mine.user_attrs.keys()
            and trial.system.keys() <= mine.system_attrs.keys()
        )

    def take_in(self, logged: FrozenTrial) -> None:
        """Merge what the log has; where both have a value, this process's is newer."""
        self.shared = True
        mine = self.frozen
        new = {step: one for step, one in logged.intermediate_values.items() if self.inherited.get(step) != one}
        mine.intermediate_values = new | mine.intermediate_values
        for name, value in logged.params.items():
            self.params.setdefault(name, value)
            self.distributions.setdefault(name, logged.distributions[name])
        for attrs, theirs in ((mine.user_attrs, logged.user_attrs), (mine.system_attrs, logged.system_attrs)):
            attrs.update({key: one for key, one in theirs.items() if key not in attrs})


class FrozenTrialCache:
    """Frozen trials of one study, each built when first requested. Guarded by the lock of its log."""

    def __init__(
        self,
        study_id: int,
        changed: set[int],
        *,
        allow_pickles: bool,
        over: Callable[[int, Lease], object] = lambda _number, _lease: None,
    ) -> None:
        self.owned: dict[int, OwnedTrial] = {}
        self.dists: dict[str, BaseDistribution] = {}
        """The first distribution of each parameter in the log; until there is one, that of this process."""
        self.changed = changed
        """Numbers of the trials that changed since the last `catch_up`; see `LogSession.cursor`."""
        self._refused = () if allow_pickles else pickle_prefixes()
        self._over = over
        """Called when the log shows that a trial of this process ended under its lease, perhaps by another process."""
        self._first_id = first_id(study_id)
        self._state: State | None = None
        self._all: list[FrozenTrial | None] = []
        """By number, as in the log; None if not built since the trial changed."""
        self._unbuilt: set[int] | None = None
        """Trials that changed since all finished ones were built; None if they have not been requested yet."""
        self._shapes: dict[tuple[str, ...], tuple[dict[str, BaseDistribution], list[str]]] = {}
        self._best: tuple[float, int] | None = None
        """The best value, negated when maximizing, and the first trial that has it; None if not requested yet."""

    def catch_up(self, state: State) -> None:
        """Record what changed in the State since the last call. Builds nothing."""
        if state is not self._state:  # the log was joined again, and anything may differ
            self._state, self._all, self._best, self._unbuilt = state, [], None, None
            self.changed.update(self.owned)
        for name in state.dists.keys() - self.dists.keys() if len(self.dists) < len(state.dists) else ():
            self.dists[name] = to_optuna(state.dists[name])
        built = self._all
        if len(built) < state.trials.size:
            built += [None] * (state.trials.size - len(built))
        if not self.changed:
            return
        self._state = None  # set again at the end, so that after an interruption the next call starts over
        numbers = {one for one in self.changed if one < len(built)}  # while the log is joined again, it may be shorter
        self.changed.clear()
        for number in numbers:
            built[number] = None
            if number in self.owned:
                self._look_at_owned(state.trials[number], state)
        if self._best is not None:
            known = map(state.trials.__getitem__, numbers)
            self._seek_best(
                [(one.number, one.values[0]) for one in known if one.state is COMPLETE and one.values and one.feasible],
                state,
            )
        if self._unbuilt is not None:
            self._unbuilt |= numbers
        self._state = state

    def _look_at_owned(self, trial: Trial, state: State) -> None:
        """Check what the log has on a trial of this process that another one may write to, or has ended."""
        owned = self.owned[trial.number]
        if trial.end is None:
            if owned.lacks(trial):
                owned.take_in(self.build(trial, state))
        elif owned.lease == (trial.owner, trial.epoch):  # an owner that has lost its lease continues until `tell`
            del self.owned[trial.number]
            self._over(trial.number, owned.lease)

    def _seek_best(self, results: Iterable[tuple[int, float]], state: State) -> None:
        if state.define is not None and len(state.define.directions) == 1:
            sign = -1.0 if state.define.directions[0] == "maximize" else 1.0
            found = [(sign * value, number) for number, value in results]
            self._best = min([*found, self._best] if self._best else found, default=None)

    # --- reading ---

    def trial(self, number: int) -> FrozenTrial:
        """One trial. For a running trial of this process, a copy that the caller may change, like Optuna's Trial."""
        owned = self.owned.get(number)
        return self._logged(number) if owned is None else copy_of(owned.frozen)

    def _logged(self, number: int) -> FrozenTrial:
        found, state = self._all[number], self._state
        if found is None:
            assert state is not None
            found = self._all[number] = self.build(state.trials[number], state)
        return found

    def trials(self, states: Container[TrialState] | None) -> list[FrozenTrial]:
        """The trials in these states, by number, in a new list."""
        state = self._state
        assert state is not None
        if states == (TrialState.WAITING,):
            return [self.trial(number) for number in sorted(state.waiting)]
        for number in range(len(state.trials)) if self._unbuilt is None else self._unbuilt:
            if number not in state.running and number not in state.waiting:
                self._logged(number)
        self._unbuilt = set()
        found: list[Any] = self._all.copy()  # all finished ones are built
        for number in (*state.running, *state.waiting):
            found[number] = self.trial(number)
        return found if states is None else [trial for trial in found if trial.state in states]

    def best(self) -> FrozenTrial | None:
        """With one direction, the best COMPLETE trial that satisfies its constraints. Builds no other."""
        state = self._state
        assert state is not None
        if self._best is None:
            self._seek_best(state.trials.results(), state)
        return None if self._best is None else self.trial(self._best[1])

    # --- building ---

    def build(self, trial: Trial, state: State) -> FrozenTrial:
        """Optuna's view of a trial. Shares the dictionaries of a finished one, which never change again."""
        params: dict[str, Any] = flat(trial.params)  # for floats, the log and Optuna have the same form
        reports, running = flat(trial.reports), trial.end is None
        distributions, special = self._shape(trial, params, state) if params else ({}, [])
        if special:
            params = dict(params)
            for name in special:
                params[name] = external(distributions[name], params[name])
        elif running:
            params = dict(params)
        if running:
            distributions, reports = dict(distributions), dict(reports)
        user = self._attributes(trial.user) if trial.user else {}
        system = self._attributes(trial.system) if trial.system else {}
        number, values = trial.number, None if trial.values is None else list(trial.values)
        rest = params, distributions, user, system, reports
        return new_frozen(self._first_id + number, number, _STATES[trial.state], values, trial.start, trial.end, *rest)

    def _shape(
        self, trial: Trial, params: dict[str, Any], state: State
    ) -> tuple[dict[str, BaseDistribution], list[str]]:
        """The distributions of a trial, shared among trials with the same ones; and the parameters to translate."""
        names = tuple(params)
        found = None if trial.dists else self._shapes.get(names)
        if found is None:
            distributions = {name: to_optuna(trial.distribution(name, state)) for name in names}
            special = [name for name, one in distributions.items() if not isinstance(one, FloatDistribution)]
            found = distributions, special
            if not trial.dists:
                self._shapes[names] = found
        return found

    def _attributes(self, texts: Mapping[str, str]) -> dict[str, Any]:
        if any(":" in key for key in texts):  # prefixes end with a colon
            texts = {key: text for key, text in texts.items() if not key.startswith(self._refused)}
        if "grid_id" in texts and "search_space" not in texts:  # GridSampler needs both, or raises
            texts = {key: text for key, text in texts.items() if key != "grid_id"}
        return {key: read_json(text) for key, text in texts.items()}
