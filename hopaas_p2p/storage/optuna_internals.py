"""The only place that uses private names of Optuna.

Each of them is used because there is no public way, or because the public way would double the cost of a trial. A test
lists them all, and fails with a clear message when a new version of Optuna renames one.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import functools
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final, TypeVar

import optuna
from optuna.distributions import BaseDistribution, _convert_old_distribution_to_new_distribution
from optuna.progress_bar import _ProgressBar
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy as FrozenStudy  # noqa: PLC0414  # other modules name it by this one
from optuna.trial import FrozenTrial, TrialState

from hopaas_p2p.errors import HopaasError, waits_for
from hopaas_p2p.runtime.logs import LOG

_EXACT: Final = (1 << 32) * 1_000_000  # microseconds, in 2106: until then, float seconds are exact to a microsecond
T = TypeVar("T", bound=optuna.trial.Trial)


class StoredTrial(FrozenTrial):
    """A FrozenTrial that can be copied at a fifth of the cost.

    Optuna copies trials at every `tell` and callback, and in `Study.trials`. This one is pickled, and shown, like
    Optuna's own.
    """

    def __copy__(self) -> StoredTrial:
        new = StoredTrial.__new__(StoredTrial)  # field by field, at an eighth of the cost of copying its `__dict__`
        new._number = self._number
        new.state = self.state
        new._values = self._values
        new._datetime_start = self._datetime_start
        new.datetime_complete = self.datetime_complete
        new._params = self._params
        new._user_attrs = self._user_attrs
        new._system_attrs = self._system_attrs
        new.intermediate_values = self.intermediate_values
        new._distributions = self._distributions
        new._trial_id = self._trial_id
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> StoredTrial:
        new = copy_of(self)  # parameters and reports are numbers and texts
        new._values = None if new._values is None else list(new._values)
        for name, distribution in new._distributions.items():
            new._distributions[name] = twin = object.__new__(distribution.__class__)
            twin.__dict__.update(distribution.__dict__)
        for attributes in (new._user_attrs, new._system_attrs):
            for key, value in attributes.items():
                attributes[key] = copy.deepcopy(value, memo)
        return new

    def __reduce__(self) -> tuple[Any, ...]:
        return object.__new__, (FrozenTrial,), self.__dict__

    def __repr__(self) -> str:
        return super().__repr__().replace(StoredTrial.__name__, FrozenTrial.__name__, 1)


def new_frozen(
    trial_id: int,
    number: int,
    state: TrialState,
    values: list[float] | None,
    start: int | None,
    end: int | None,
    params: dict[str, Any],
    distributions: dict[str, BaseDistribution],
    user_attrs: dict[str, Any],
    system_attrs: dict[str, Any],
    reports: dict[int, float],
) -> StoredTrial:
    """A FrozenTrial of these very objects, without the checks of `__init__`, which cost as much as the rest.

    Times are those of the log.
    """
    frozen = StoredTrial.__new__(StoredTrial)
    frozen._number = number
    frozen.state = state
    frozen._values = values
    frozen._datetime_start = to_datetime(start)
    frozen.datetime_complete = None if end is None else to_datetime(end)
    frozen._params = params
    frozen._user_attrs = user_attrs
    frozen._system_attrs = system_attrs
    frozen.intermediate_values = reports
    frozen._distributions = distributions
    frozen._trial_id = trial_id
    return frozen


def running(trial_id: int, number: int, start: int | None, drawn: FrozenTrial | None = None) -> StoredTrial:
    """A running trial that has only the parameters of `drawn`, if given, and shares their dictionaries."""
    params, distributions = ({}, {}) if drawn is None else (drawn._params, drawn._distributions)
    return new_frozen(trial_id, number, TrialState.RUNNING, None, start, None, params, distributions, {}, {}, {})


def to_datetime(microseconds: int | None) -> datetime.datetime | None:
    """A time of the log in this machine's time zone, naive like Optuna's; 1970 if this machine cannot represent it."""
    if microseconds is None:
        return None
    if 0 < microseconds < _EXACT:
        return datetime.datetime.fromtimestamp(microseconds / 1e6)  # noqa: DTZ006
    seconds, rest = divmod(microseconds, 1_000_000)
    try:
        return datetime.datetime.fromtimestamp(seconds).replace(microsecond=rest)  # noqa: DTZ006
    except (OverflowError, ValueError, OSError):  # nonsense from a hostile or broken peer
        return datetime.datetime.fromtimestamp(0)  # noqa: DTZ006


def copy_of(frozen: FrozenTrial) -> StoredTrial:
    """A copy with dictionaries of its own, at a quarter of the cost of copy.copy."""
    new = StoredTrial.__new__(StoredTrial)
    new._number = frozen._number
    new.state = frozen.state
    new._values = frozen._values
    new._datetime_start = frozen._datetime_start
    new.datetime_complete = frozen.datetime_complete
    new._params = frozen._params.copy()
    new._user_attrs = frozen._user_attrs.copy()
    new._system_attrs = frozen._system_attrs.copy()
    new.intermediate_values = frozen.intermediate_values.copy()
    new._distributions = frozen._distributions.copy()
    new._trial_id = frozen._trial_id
    return new


def end_frozen(frozen: FrozenTrial, state: TrialState, values: Sequence[float] | None, end: int | None = None) -> None:
    """End the trial like this; Optuna's setter for values requires them to match the state at every moment."""
    frozen.state = state
    frozen.datetime_complete = None if end is None else to_datetime(end)
    if values is not None:
        frozen._values = list(values)


def trial_id_of(trial: optuna.trial.Trial | FrozenTrial) -> int:
    """The id by which storages identify a trial."""
    return trial._trial_id


def new_study(
    name: str, directions: list[StudyDirection], user: dict[str, Any], system: dict[str, Any], study_id: int
) -> FrozenStudy:
    """What `BaseStorage.get_all_studies` returns."""
    return FrozenStudy(name, None, user, system, study_id, directions=directions)


def has_trial_with(study: optuna.Study, params: Mapping[str, Any]) -> bool:
    """Whether a trial with these parameters already exists."""
    return study._should_skip_enqueue(dict(params))


@contextlib.contextmanager
def progress_bar(
    study: optuna.Study, n_trials: int | None, timeout: float | None, *, shown: bool
) -> Iterator[list[Callable[[FrozenTrial], None]]]:
    """Optuna's progress bar, in this block: yields the callbacks that advance it after each trial, if it is shown."""
    if not shown:
        yield []
        return
    bar, began = _ProgressBar(True, n_trials, timeout), time.monotonic()
    try:
        yield [lambda _: bar.update(time.monotonic() - began, study)]
    finally:
        bar.close()


def suggest_fixed(trial: optuna.trial.Trial, distributions: Mapping[str, BaseDistribution]) -> None:
    """Suggest the `fixed_distributions` of an ask, including those that Optuna has replaced by others."""
    for name, distribution in distributions.items():
        trial._suggest(name, _convert_old_distribution_to_new_distribution(distribution))


def fixed_params(trial: optuna.trial.Trial) -> dict[str, Any]:
    """The parameters with which the trial was queued; empty if it was not queued."""
    fixed: dict[str, Any] = trial._fixed_params
    return fixed


def sample(trial: optuna.trial.Trial, space: Mapping[str, BaseDistribution]) -> None:
    """Let the sampler choose the parameters of this space that it draws jointly, and then the others.

    Some of Optuna's samplers raise on what any peer may have written, such as GPSampler on trials with differing
    constraints; the parameters are then chosen one by one. Errors of third-party samplers are raised.
    """
    sampler, frozen = trial.study.sampler, trial._cached_frozen_trial
    try:
        study = optuna.pruners._filter_study(trial.study, frozen)
        trial.relative_search_space = dict(sampler.infer_relative_search_space(study, frozen))
        for name in trial.relative_search_space.keys() - space.keys():  # parameters of other peers' trials
            del trial.relative_search_space[name]
        trial._relative_params = sampler.sample_relative(study, frozen, trial.relative_search_space)
        for name, distribution in space.items():
            optuna.trial.Trial._suggest(trial, name, distribution)
    except Exception as error:
        trial.relative_search_space, trial._relative_params = {}, {}
        if not _may_be_samplers(error, trial):
            raise
        LOG.warning("the sampler failed on trial %d, so parameters are drawn one by one: %s", trial.number, error)
        for name, distribution in space.items():
            suggest(trial, name, distribution)


def suggest(trial: optuna.trial.Trial, name: str, distribution: BaseDistribution) -> Any:
    """Like `Trial.suggest_*`, but at random where one of Optuna's samplers raises; see `sample`."""
    try:
        return optuna.trial.Trial._suggest(trial, name, distribution)
    except Exception as error:
        if not _may_be_samplers(error, trial):
            raise
        study, drawn = trial.study, optuna.samplers.RandomSampler()
        value = drawn.sample_independent(study, trial._cached_frozen_trial, name, distribution)
        trial.relative_search_space, trial._relative_params = {name: distribution}, {name: value}
        found = optuna.trial.Trial._suggest(trial, name, distribution)  # raises again if no sampler caused the error
        LOG.warning("the sampler failed on trial %d, so %r is drawn at random: %s", trial.number, name, error)
        return found


def _may_be_samplers(error: Exception, trial: optuna.trial.Trial) -> bool:
    """Whether a sampler of Optuna's may have raised this."""
    away = isinstance(error, HopaasError | ImportError)  # the store, or an optional library
    return not away and type(trial.study.sampler).__module__.startswith("optuna.")


def become(trial: optuna.trial.Trial, frozen: FrozenTrial) -> None:
    """Make this Trial an object for this trial of the storage: the one that was started for its proposal, or its own
    after another process changed it.
    """
    trial._trial_id = frozen._trial_id
    trial._cached_frozen_trial = frozen


def announces_parameters(key: str) -> bool:
    """Whether this attribute holds values that a sampler has drawn but not suggested yet."""
    return key.startswith("tpe:relative_params")


def cached_trial(trial: optuna.trial.Trial) -> FrozenTrial:
    """A Trial's own view of its data, which the pruner and the trial's properties read instead of the storage."""
    return trial._cached_frozen_trial


def begin(kind: type[T], study: optuna.Study, frozen: FrozenTrial) -> T:
    """A Trial of this kind, as Optuna's constructor creates it, for a trial that the storage need not be asked for.

    A study keeps a list of all trials while a sampler works; a new trial begins with a new list.
    """
    trial = kind.__new__(kind)
    study._thread_local.cached_all_trials = None
    trial.study, trial.storage = study, study._storage
    trial._trial_id, trial._cached_frozen_trial = frozen._trial_id, frozen
    study.sampler.before_trial(optuna.pruners._filter_study(study, frozen), frozen)
    trial.relative_search_space = trial._relative_params = None
    trial._fixed_params = frozen.system_attrs.get("fixed_params", {})
    return trial


def after_trial(study: optuna.Study, frozen: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
    """Notify the sampler of the end of a trial, like `Study.tell`; it may then find that it has no more points.

    Some of Optuna's samplers raise on trials that they did not draw, such as GridSampler on queued ones.
    """
    study._thread_local.cached_all_trials = None  # see `begin`
    try:
        filtered = optuna.pruners._filter_study(study, frozen)
        filtered.sampler.after_trial(filtered, frozen, state, None if values is None else list(values))
    except HopaasError:
        raise
    except Exception as error:
        if not type(study.sampler).__module__.startswith("optuna."):
            raise
        LOG.warning("the sampler failed at the end of trial %d: %r", frozen.number, error)


def contains(distribution: BaseDistribution, value: object) -> bool:
    """Whether a parameter of this distribution may have this value; True and False are not numbers."""
    takes_it = hasattr(distribution, "choices") or not isinstance(value, bool)
    with contextlib.suppress(ValueError, TypeError):
        return takes_it and distribution._contains(distribution.to_internal_repr(value))
    return False


# --- pickles -----------------------------------------------------------------------------------------------------


@functools.cache
def pickle_prefixes() -> tuple[str, ...]:
    """Prefixes of the trial attributes in which samplers of the installed Optuna pass pickles: `cma:` and others.

    Read from Optuna's source: the strings that end with a colon, in the modules of samplers that import pickle.

    Raises:
        StoreUnreachable: one of Optuna's folders or files cannot be read at the moment, so a prefix may be missing.

    """
    found: set[str] = set()

    def fail(error: OSError) -> None:  # `Path.rglob` passes over a folder that it cannot list
        if not isinstance(error, FileNotFoundError | NotADirectoryError):  # no sources, as in a frozen program
            raise error

    folder = Path(optuna.samplers.__file__).parent
    with waits_for(str(folder)):
        for place, _, names in os.walk(folder, onerror=fail):
            for name in [one for one in names if one.endswith(".py")]:
                source = Path(place, name).read_text(encoding="utf-8")
                if "import pickle" in source:
                    found.update(re.findall(r"""["'](\w+:)["']""", source))  # `ast` is not thread-safe
    return tuple(sorted(found))


def unpickles(sampler: BaseSampler) -> bool:
    """Whether this sampler of Optuna's, or one that it wraps, unpickles attributes that peers may have written."""
    modules = {kind.__module__ for kind in type(sampler).__mro__ if kind.__module__.startswith("optuna.")}
    if any(isinstance(getattr(sys.modules[name], "pickle", None), ModuleType) for name in modules):
        return True
    return any(unpickles(inner) for inner in vars(sampler).values() if isinstance(inner, BaseSampler))
