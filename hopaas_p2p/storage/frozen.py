"""A study's State as Optuna's frozen trials: built once, shared with every reader, replaced and never changed.

A process that never asks for trials that are over, as one that samples at random, has none built: see
`FrozenTrialCache.catch_up`.

Lists that are handed out are the caller's own. What a trial of this process was told but the log has not seen yet is
laid over the State, so a writer always reads its own writes.
"""

from __future__ import annotations

import bisect
import datetime
from collections.abc import Callable, Container, Iterable, Mapping
from operator import attrgetter
from typing import Any, Final

import msgspec
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from hopaas_p2p.core.inherited import flat
from hopaas_p2p.core.leases import Lease
from hopaas_p2p.core.names import first_id
from hopaas_p2p.core.state import COMPLETE, RUNNING, State, Trial
from hopaas_p2p.peer.outbox import Draft
from hopaas_p2p.peer.session import Cursor
from hopaas_p2p.storage.optuna_internals import copy_of, new_frozen, pickle_prefixes
from hopaas_p2p.translate import external, read_json, to_optuna

_NUMBER: Final = attrgetter("number")
_STATES: Final = tuple(TrialState)
_COMPLETE: Final = (TrialState.COMPLETE,)
_EXACT: Final = (1 << 32) * 1_000_000  # microseconds, to the year 2106: seconds as a float are exact to one of them

_NOT_BEGUN: Final = Draft(-1, 0, "")


class OwnedTrial(msgspec.Struct, eq=False):
    """A running trial of this process, as its owner sees it: ahead of the log by what waits in the outbox."""

    frozen: FrozenTrial
    lease: Lease
    writer: str
    """The peer that sent what `frozen` holds. Another one must send it all again: it cannot know what has left."""
    handovers: int
    """`Peer.handovers` when it started: if that has risen since, another process may be at it too."""
    inherited: dict[int, float]
    """Reports of an earlier attempt, which count only up to the step that this one really resumed from."""
    resumed_from: int | None = None
    """The step from which this attempt told the log that it resumed, if it has; see `TrialSet.resumed_from`."""
    draft: Draft = msgspec.field(default_factory=lambda: _NOT_BEGUN)
    """What was last set on it; still to be sent as long as the outbox has it."""
    shown: FrozenTrial | None = None
    """A copy for readers, until the next write."""
    shared: bool = False
    """Whether another process, which the trial travelled to, was heard to write to it too."""
    lent: bool = False
    """Whether it runs for another process, which it travelled from and which will tell it."""
    metrics: dict[str, dict[int, float]] = {}
    """Name -> step -> value, as set in this process: Optuna's trials have no place for them."""
    inherits_metrics: bool = False
    """Whether an earlier attempt left some, which count as its reports do."""
    params: dict[str, Any] = {}
    distributions: dict[str, BaseDistribution] = {}
    """Those of `frozen`, which gives them by properties that cost as much as a write."""

    def __post_init__(self) -> None:
        self.lent = self.lease.owner != self.writer
        self.params, self.distributions = self.frozen.params, self.frozen.distributions

    def lacks(self, trial: Trial) -> bool:
        """Whether the log has something for this lease that was not set in this process."""
        mine = self.frozen
        empty = not (trial.params or trial.reports or trial.user or trial.system)  # as most are when they start
        if empty or self.lease != (trial.owner, trial.epoch):
            return False
        reports = trial.reports.keys() - mine.intermediate_values.keys()
        return bool(reports and any(self.inherited.get(step) != trial.reports[step] for step in reports)) or not (
            trial.params.keys() <= mine.params.keys()
            and trial.user.keys() <= mine.user_attrs.keys()
            and trial.system.keys() <= mine.system_attrs.keys()
        )

    def take_in(self, logged: FrozenTrial) -> None:
        """Merge what the log has; where both have a value, that of this process is newer."""
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
    """Frozen trials of one study. Guarded by the lock of its log."""

    def __init__(
        self,
        study_id: int,
        cursor: Cursor,
        *,
        allow_pickles: bool,
        over: Callable[[int, Lease], object] = lambda _number, _lease: None,
    ) -> None:
        self.study_id = study_id
        self.owned: dict[int, OwnedTrial] = {}
        self.dists: dict[str, BaseDistribution] = {}
        """The first distribution of each parameter; that of this process before the log has it."""
        self.changed = cursor.changed
        """Numbers of the trials that are to be rebuilt."""
        self._cursor = cursor
        self._allow_pickles = allow_pickles
        self._over = over
        """Told of each trial of this process that the log says is over: another process may have ended it."""
        self._first_id = first_id(study_id)
        self._state: State | None = None
        self._all: list[FrozenTrial] = []
        self._by_state: dict[TrialState, list[FrozenTrial]] = {}
        self._shapes: dict[tuple[str, ...], tuple[dict[str, BaseDistribution], list[str]]] = {}
        self._best: tuple[float, int] | None = None
        """The best value, negated where that is the largest, and the first trial that has it."""
        self._seeks_best = False
        """Whether anybody has asked for it."""
        self._builds = False
        """Whether anybody has asked for trials that are over."""
        self._unfinished: dict[int, FrozenTrial] = {}
        """Until then: waiting trials that were asked for."""

    def catch_up(self, state: State) -> None:
        """Take in what changed in the State since the last time.

        Frozen trials of others are built once a reader has asked for some (`trials`, `best`); from then on, at once.
        """
        if state is not self._state:
            self._start_over(state)
        if len(self.dists) < len(state.dists):
            for name in state.dists.keys() - self.dists.keys():
                self.dists[name] = to_optuna(state.dists[name])
        changed = self.changed
        if not changed:
            return
        self._state = None  # until all is done: a reader that is interrupted starts over
        numbers = list(changed)
        changed.clear()
        if self._builds:
            numbers.sort()
            self._take_in(numbers, state)
        else:
            self._note(numbers, state)
        self._state = state

    def _note(self, numbers: list[int], state: State) -> None:
        """What a view without readers has to know of trials that changed."""
        for number in numbers:
            if self._unfinished:
                self._unfinished.pop(number, None)
            if self._seeks_best or number in self.owned:
                trial = state.trials[number]
                if number in self.owned:
                    if trial.end is None:
                        self._own(trial, state)
                    else:
                        self._let_go(trial)
                if self._seeks_best and trial.state is COMPLETE and trial.values:
                    self._compare_with_best(number, trial.values[0], state)

    def _take_in(self, numbers: Iterable[int], state: State) -> None:
        """Build these."""
        for number in numbers:
            trial = state.trials[number]
            own = trial.end is None and number in self.owned
            frozen = self._own(trial, state) if own else self.build(trial, state)
            if number < len(self._all):
                self._all[number] = frozen
            else:
                self._all.append(frozen)
            if trial.end is not None:
                self._let_go(trial)
                self._file(frozen, state)

    def _build_all(self) -> State:
        """From now on there are readers of all trials."""
        state = self._state
        assert state is not None
        if not self._builds:
            self._builds, self._state = True, None
            self._unfinished.clear()
            self._best = None
            self._take_in(range(len(state.trials)), state)
            self._state = state
        return state

    def own(self, number: int, owned: OwnedTrial) -> None:
        """Take in a running trial that this process may act for, as it was just built."""
        before = self.owned.get(number)
        if before is not None and before.lease != owned.lease:  # another process gave it back
            self._over(number, before.lease)
        self.owned[number] = owned
        if not self._builds:
            self._unfinished.pop(number, None)
            self.changed.discard(number)

    def _own(self, trial: Trial, state: State) -> FrozenTrial:
        """What holds the place of a running trial of this process; readers get a copy."""
        owned = self.owned[trial.number]
        if owned.lacks(trial):
            owned.take_in(self.build(trial, state))
        owned.shown = None
        return owned.frozen

    def _let_go(self, trial: Trial) -> None:
        """Stop owning a trial that ended, unless its lease was lost: then its holder works on until it tells."""
        owned = self.owned.get(trial.number)
        if owned is not None and owned.lease == (trial.owner, trial.epoch):
            del self.owned[trial.number]
            self._over(trial.number, owned.lease)

    def _start_over(self, state: State) -> None:
        """Rebuild everything: the log was joined again, and anything may differ."""
        self._state = state
        self._all, self._by_state, self._best, self._unfinished = [], {}, None, {}
        self._seeks_best = False
        self.changed.update(range(len(state.trials)) if self._builds else self.owned)

    def _file(self, frozen: FrozenTrial, state: State) -> None:
        filed = self._by_state.setdefault(frozen.state, [])
        if not filed or filed[-1].number < frozen.number:  # as nearly always
            filed.append(frozen)
        else:
            place = bisect.bisect_left(filed, frozen.number, key=_NUMBER)
            if place < len(filed) and filed[place].number == frozen.number:
                filed[place] = frozen
            else:
                filed.insert(place, frozen)
        if frozen.state is TrialState.COMPLETE:
            self._compare_with_best(frozen.number, frozen.values[0], state)

    def _compare_with_best(self, number: int, value: float, state: State) -> None:
        if state.define is None or len(state.define.directions) != 1:
            return
        if state.define.directions[0] == "maximize":
            value = -value
        if self._best is None or (value, number) < self._best:
            self._best = value, number

    # --- reading ---

    def trial(self, number: int) -> FrozenTrial:
        """One trial. For a running trial of this process, a copy its holder may change (Optuna's Trial does)."""
        owned = self.owned.get(number)
        if owned is not None:
            return copy_of(owned.frozen)
        if self._builds:
            return self._all[number]
        assert self._state is not None
        return self.build(self._state.trials[number], self._state)

    def trials(self, states: Container[TrialState] | None) -> list[FrozenTrial]:
        """The trials in these states, by number, in a new list."""
        assert self._state is not None
        if states == _COMPLETE and self._builds:  # as samplers and pruners ask, again and again
            return self._by_state.get(TrialState.COMPLETE, []).copy()
        key = _STATES if states is None else tuple([trial_state for trial_state in _STATES if trial_state in states])
        if key == (TrialState.WAITING,):
            return [self._waiting(number, self._state) for number in sorted(self._state.waiting)]
        state = self._build_all()
        if len(key) == 1 and key[0].is_finished():
            return self._by_state.get(key[0], []).copy()
        self._show_owned(state)
        if len(key) == len(_STATES):
            return self._all.copy()
        return [trial for trial in self._all if trial.state in key]

    def _waiting(self, number: int, state: State) -> FrozenTrial:
        if self._builds:
            return self._all[number]
        found = self._unfinished.get(number)
        if found is None:
            found = self._unfinished[number] = self.build(state.trials[number], state)
        return found

    def _show_owned(self, state: State) -> None:
        """Put copies of this process's own running trials, as of now, where readers find them."""
        for number, owned in self.owned.items():
            if owned.shown is None and state.trials[number].end is None:
                self._all[number] = owned.shown = copy_of(owned.frozen)

    def best(self) -> FrozenTrial | None:
        """The best COMPLETE trial of a study with one direction."""
        state = self._state
        assert state is not None
        if not self._builds and not self._seeks_best:
            for number, value in state.trials.results():
                self._compare_with_best(number, value, state)
            self._seeks_best = True
        if self._best is None:
            return None
        number = self._best[1]
        return self._all[number] if self._builds else self.build(state.trials[number], state)

    # --- building ---

    def build(self, trial: Trial, state: State) -> FrozenTrial:
        """Optuna's view of a trial. Shares the dictionaries of a finished one, which never change again."""
        if trial.state is RUNNING and not (
            trial.params or trial.reports or trial.user or trial.system
        ):  # as most begin
            start = to_datetime(trial.start)
            number = trial.number
            return new_frozen(
                self._first_id + number, number, TrialState.RUNNING, None, start, None, {}, {}, {}, {}, {}
            )
        said, reports = trial.params, trial.reports  # plain dictionaries, but for very large ones
        params: dict[str, Any] = said if isinstance(said, dict) else flat(said)  # a float is what Optuna shows of it
        distributions, special = self._shape(trial, params, state)
        if special:
            params = dict(params)
            for name in special:
                params[name] = external(distributions[name], params[name])
        elif trial.end is None:
            params = dict(params)
        running = trial.end is None
        return new_frozen(
            self._first_id + trial.number,
            trial.number,
            _STATES[trial.state],
            None if trial.values is None else list(trial.values),
            to_datetime(trial.start),
            to_datetime(trial.end),
            params,
            dict(distributions) if running else distributions,
            self._attributes(trial.user),
            self._attributes(trial.system),
            dict(reports) if running else reports if isinstance(reports, dict) else flat(reports),
        )

    def _shape(
        self, trial: Trial, params: dict[str, Any], state: State
    ) -> tuple[dict[str, BaseDistribution], list[str]]:
        """The distributions of a trial, shared among all with the same ones; and whose values need translation."""
        names = tuple(params)
        if trial.dists:
            own = {name: to_optuna(trial.dists[name]) for name in names if name in trial.dists}
            shared = {name: self.dists.get(name) or to_optuna(state.dists[name]) for name in names if name not in own}
            distributions = {name: own.get(name) or shared[name] for name in names}
            return distributions, _special(distributions)
        found = self._shapes.get(names)
        if found is None:
            distributions = {name: to_optuna(state.dists[name]) for name in names}
            found = self._shapes[names] = distributions, _special(distributions)
        return found

    def _attributes(self, texts: Mapping[str, str]) -> dict[str, Any]:
        if not texts:
            return {}
        if not self._allow_pickles and any(":" in key for key in texts):  # a prefix ends with one
            texts = {key: text for key, text in texts.items() if not key.startswith(pickle_prefixes())}
        if "grid_id" in texts and "search_space" not in texts:  # GridSampler reads both, or raises
            texts = {key: text for key, text in texts.items() if key != "grid_id"}
        return {key: read_json(text) for key, text in texts.items()}


def _special(distributions: dict[str, BaseDistribution]) -> list[str]:
    return [name for name, one in distributions.items() if not isinstance(one, FloatDistribution)]


def to_datetime(microseconds: int | None) -> datetime.datetime | None:
    """A time of the log in this machine's time zone, naive as Optuna's are."""
    if microseconds is None:
        return None
    if 0 < microseconds < _EXACT:
        return datetime.datetime.fromtimestamp(microseconds / 1e6)  # noqa: DTZ006
    seconds, rest = divmod(microseconds, 1_000_000)
    try:
        return datetime.datetime.fromtimestamp(seconds).replace(microsecond=rest)  # noqa: DTZ006
    except (OverflowError, ValueError, OSError):  # nonsense from a hostile or broken peer
        return datetime.datetime.fromtimestamp(0)  # noqa: DTZ006
