"""A study's State as Optuna's frozen trials: built once, shared with every reader, replaced and never changed.

Lists handed out stay as they are; a change makes new ones. What a trial of this process has been told but the log has
not seen yet is laid over the State, so a writer always reads its own writes.
"""

from __future__ import annotations

import bisect
import datetime
import json
from collections.abc import Container
from operator import attrgetter
from typing import Any, Final

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hopaas_p2p.core import records
from hopaas_p2p.core.leases import Lease
from hopaas_p2p.core.state import State, Trial
from hopaas_p2p.errors import InvalidInput

_NUMBER: Final = attrgetter("_number")
_STATES: Final = tuple(TrialState)
_LIMIT: Final = 1 << 63
_EXACT: Final = (1 << 32) * 1_000_000  # microseconds, to the year 2106: seconds as a float are exact to one of them
_MAX_ATTRIBUTE: Final = 1 << 20
"""Bytes. A quarter of what a commit may have, so that each fits into one with all that goes along."""
_PICKLES: Final = "cma:"
"""Prefix of the trial attributes in which Optuna's CMA-ES sampler passes pickles from peer to peer."""


# --- words of Optuna, words of the log ---------------------------------------------------------------------------


def to_record(distribution: BaseDistribution) -> records.Distribution:
    """Optuna's distribution as the log writes it.

    Raises:
        InvalidInput: a categorical choice that is not None, bool, int, float or str.
    """
    if isinstance(distribution, FloatDistribution):
        return records.Float(distribution.low, distribution.high, distribution.log, distribution.step)
    if isinstance(distribution, IntDistribution):
        _check_whole(distribution.low, distribution.high, distribution.step)
        return records.Int(distribution.low, distribution.high, distribution.log, distribution.step)
    if isinstance(distribution, CategoricalDistribution):
        for choice in distribution.choices:
            if choice is not None and not isinstance(choice, bool | int | float | str):
                raise InvalidInput(
                    f"the choice {choice!r} cannot be stored; use None, bool, int, float or str, "
                    "for example names that your code looks up in a dict"
                )
            _check_choice(choice)
        return records.Categorical(tuple([_plain(choice) for choice in distribution.choices]))
    raise InvalidInput(f"unknown kind of distribution: {distribution!r}")


def _plain(choice: Any) -> bool | int | float | str | None:
    """A choice without the subclass that it may come in (numpy's float64 is a float)."""
    for kind in (bool, int, float, str):
        if isinstance(choice, kind):
            return kind(choice)
    return None


def _check_choice(choice: object) -> None:
    if isinstance(choice, str) and not _encodable(choice):
        raise InvalidInput(f"the choice {choice!r} cannot be stored: half of a surrogate pair is no character")
    if isinstance(choice, int):
        _check_whole(choice)


def _check_whole(*numbers: int) -> None:
    for number in numbers:
        if not -_LIMIT <= number < _LIMIT:
            raise InvalidInput(f"the whole number {number} cannot be stored: at most 64 bits; use a float, or a str")


def to_optuna(distribution: records.Distribution) -> BaseDistribution:
    """A distribution of the log as Optuna's."""
    if isinstance(distribution, records.Float):
        return FloatDistribution(distribution.low, distribution.high, log=distribution.log, step=distribution.step)
    if isinstance(distribution, records.Int):
        return IntDistribution(distribution.low, distribution.high, log=distribution.log, step=distribution.step)
    return CategoricalDistribution(distribution.choices)


def to_json(key: str, value: object) -> str:
    """An attribute's value as the log writes it.

    Raises:
        InvalidInput: not JSON serialisable, or too large.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"the attribute {key!r} cannot be stored as JSON: {error}") from None
    if not _encodable(key):
        raise InvalidInput(f"an attribute cannot be called {key!r}: half of a surrogate pair is no character")
    if not _encodable(text):
        text = json.dumps(value, separators=(",", ":"))
    if len(text) > _MAX_ATTRIBUTE // 4 and len(text.encode()) > _MAX_ATTRIBUTE:
        raise InvalidInput(
            f"the attribute {key!r} has {len(text.encode()):,} bytes; at most {_MAX_ATTRIBUTE:,}. "
            "Every peer would read it: store big data as an artifact."
        )
    return text


def _encodable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def checked_step(step: int) -> int:
    """The step of a report, if the log can hold it.

    Raises:
        InvalidInput: it needs more than 64 bits.
    """
    if not -_LIMIT <= step < _LIMIT:
        raise InvalidInput(f"a report at step {step}: steps are whole numbers of up to 64 bits")
    return int(step)


def checked_parameter(name: str) -> str:
    """The name of a parameter, if the log can hold it.

    Raises:
        InvalidInput: it is no text in Unicode.
    """
    if not _encodable(name):
        raise InvalidInput(f"a parameter cannot be called {name!r}: half of a surrogate pair is no character")
    return name


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


def to_microseconds(when: datetime.datetime | None) -> int | None:
    """A naive local time (or an aware one) as the log writes it."""
    if when is None:
        return None
    return round(when.replace(microsecond=0).timestamp()) * 1_000_000 + when.microsecond


def directions_of(state: State) -> list[StudyDirection]:
    """The study's directions in Optuna's words."""
    assert state.define is not None
    return [StudyDirection[direction.upper()] for direction in state.define.directions]


# --- trials ------------------------------------------------------------------------------------------------------


class Live:
    """A running trial of this process, as its owner sees it: ahead of the log by what waits in the outbox."""

    __slots__ = ("frozen", "lease", "shown", "writer")

    def __init__(self, frozen: FrozenTrial, lease: Lease, writer: str) -> None:
        self.frozen = frozen
        self.lease = lease
        self.writer = writer
        """Who sent what `frozen` holds; another process must send it all again, for it cannot know what has left."""
        self.shown: FrozenTrial | None = None
        """A copy for readers, until the next write."""


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
        numbers = sorted(state.changed)
        state.changed.clear()
        if len(self.dists) < len(state.dists):
            for name in state.dists.keys() - self.dists.keys():
                self.dists[name] = to_optuna(state.dists[name])
        self._own_all()
        fresh: dict[TrialState, list[FrozenTrial]] = {}
        for number in numbers:
            trial = state.trials[number]
            live = self.live.get(number)
            if live is not None and trial.end is None:
                live.shown = None
                frozen = live.frozen  # holds the place; readers of the list get a copy
            else:
                frozen = self.build(trial, state)
            if number < len(self._all):
                self._all[number] = frozen
            else:
                self._all.append(frozen)
            if trial.end is not None:
                self._let_go(trial)
                fresh.setdefault(frozen.state, []).append(frozen)
        for trial_state, finished in fresh.items():
            self._file(trial_state, finished, state)

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
        frozen.__dict__.update(
            _number=trial.number,
            state=_STATES[trial.state],
            _values=None if trial.values is None else list(trial.values),
            _datetime_start=to_datetime(trial.start),
            datetime_complete=to_datetime(trial.end),
            _params=params,
            _user_attrs=self._attributes(trial.user),
            _system_attrs=self._attributes(trial.system),
            intermediate_values=dict(trial.reports) if running else trial.reports,
            _distributions=dict(distributions) if running else distributions,
            _trial_id=self._first_id + trial.number,
        )
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
            key: _read_json(text) for key, text in texts.items() if self._allow_pickles or not key.startswith(_PICKLES)
        }


def external(distribution: BaseDistribution, value: float) -> Any:
    """The value of a parameter as the objective sees it; None for an index no choice has (from a hostile log)."""
    try:
        return distribution.to_external_repr(value)
    except (IndexError, ValueError, OverflowError):
        return None


def _special(distributions: dict[str, BaseDistribution]) -> list[str]:
    return [name for name, one in distributions.items() if not isinstance(one, FloatDistribution)]


def _read_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def attributes(texts: dict[str, str]) -> dict[str, Any]:
    """Attributes of a study, read."""
    return {key: _read_json(text) for key, text in texts.items()}


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
