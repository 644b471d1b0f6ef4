"""Samplers with Optuna's interface, for studies with many trials and many peers."""

from __future__ import annotations

import importlib.util
import math
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hopaas_p2p.analysis.table import COMPLETE, PRUNED, RUNNING, Floats, Ints
from hopaas_p2p.core.attributes import CMAES
from hopaas_p2p.core.priors import BELIEF, PriorRecord
from hopaas_p2p.errors import ConfigurationError, InvalidInput
from hopaas_p2p.runtime import extras
from hopaas_p2p.runtime.process import renew_in_child
from hopaas_p2p.search.cmaes import Evolution, UnitCube
from hopaas_p2p.search.known import KnownTrials, TrialReader, best_rows, ranked_rows
from hopaas_p2p.search.optuna_internals import (
    Estimator,
    OptunaTPE,
    announce,
    is_part_of_a_study,
    listed,
    mixture_of,
    reader_of,
    study_key,
)
from hopaas_p2p.search.priors import Taught
from hopaas_p2p.search.surrogate import Cube, Lengths, Surrogate, Trust, chosen, joined, scores
from hopaas_p2p.search.tpe import FEWEST, Comparison, KernelDensity, Kernels

_DENSITIES: Final = 32
"""The number of search spaces whose densities are cached. A study with a fixed space needs one, or one per
parameter."""
_DRAWS: Final = 4  # times that candidates are drawn before a new configuration is drawn at random
_ANYWHERE: Final = 100
_LOOKED_UP: Final = 3  # candidates that are compared with all trials one by one
_PROCESS_UP_TO: Final = 500  # trials; with more, the densities are good enough, and cheaper
_PROCESS_AXES: Final = 100  # parameters; the time of a fit grows with their square
_RUNNING_SEEN: Final = 128  # running trials that the process takes into account
_NEARBY: Final = 48
_FAR: Final = 24
_CENTRES: Final = 2  # trials around which candidates are drawn
_TAUGHT: Final = 15  # the priors' best configurations, as candidates
_CLIMBS: Final = 3  # searches around the best candidates, with priors and while there are few trials
_CLIMBED: Final = 8
_CLIMBS_UP_TO: Final = 32  # trials, including running ones


class _Model(NamedTuple):
    """What is known before an ask, in one search space."""

    columns: KnownTrials
    space: dict[str, BaseDistribution]
    below: Estimator
    """Optuna's density of the better trials."""
    above: Ints
    """The rows of the other trials."""
    ranked: Ints
    """The rows of all known trials, the best first; empty if no process is to be used."""
    running: Ints


class _Lessons:
    """The priors' predictions in one search space, each computed once."""

    def __init__(self, key: object, taught: Taught, columns: KnownTrials) -> None:
        self.key, self.taught, self.columns = key, taught, columns
        self._points = np.empty((0, 0))
        self._means = np.empty((0, 0))
        self._trust: tuple[int, Trust] | None = None

    def means_of(self, rows: Ints, points: Floats) -> Floats:
        """The priors' expected scores of these rows at their current points, one column per prior."""
        if len(self._means) < self.columns.room:
            self._points = np.full((self.columns.room, points.shape[1]), np.nan)
            self._means = np.zeros((self.columns.room, len(self.taught.priors)))
        changed = (self._points[rows] != points).any(axis=1)
        if changed.any():
            self._points[rows[changed]] = points[changed]
            self._means[rows[changed]] = self.taught.means(points[changed])
        return self._means[rows]

    def trust(self, means: Floats) -> Trust:
        """How strongly the known trials support the priors."""
        if self._trust is None or self._trust[0] != self.columns.learned:
            self._trust = self.columns.learned, self.taught.hypotheses.trust(means)
        return self._trust[1]


class TPESampler(OptunaTPE):
    """A version of `optuna.samplers.TPESampler` that makes the same suggestions by default, and is fast in large
    studies.

    Optuna's own code draws the random numbers and the candidates. In studies of at least `fewest` trials, the scores of
    the candidates are computed in another way (`hopaas_p2p.search.tpe`), which rounds differently, by less than 1e-9.
    If the scores of the two best candidates are that close, Optuna's code is used, so suggestions are the same to the
    last bit.

    Optuna's own code is used throughout for several objectives, under Hyperband, and with `consider_magic_clip=False`
    or `prior_weight=0`. Several threads may use a sampler. A pickle or a copy of it does not include what it knows
    about trials. `repeats`, `model` and `priors` are additions, each of which changes suggestions. `default_sampler`,
    the default of a study, uses all three.

    Args:
        repeats: "avoid" takes the best candidate that no trial has tried, for parameters that are drawn together.
        model: "process" ranks candidates with a Gaussian process (`hopaas_p2p.search.surrogate`) until 500 trials are
            known, with up to 100 parameters; only with `repeats="avoid"`, and for parameters that are drawn together.
        priors: `hopaas_p2p.Prior`s of earlier studies; only with `model="process"`. The first trials come from them.
        fewest: the number of trials from which on the faster computation is used; at least 100.
        **arguments: as for Optuna's sampler.

    """

    needs_number = False
    """Parameters may be drawn before the trial has a number; see `study.proposer`."""

    def __init__(
        self,
        *,
        repeats: Literal["allow", "avoid"] = "allow",
        model: Literal["density", "process"] = "density",
        priors: Sequence[PriorRecord] = (),
        fewest: int = 200,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        if repeats not in ("allow", "avoid"):
            raise InvalidInput(f'repeats = {repeats!r} must be "allow" or "avoid"')
        if model not in ("density", "process") or (model == "process" and repeats != "avoid"):
            raise InvalidInput(f'model = {model!r} must be "density", or "process" together with repeats="avoid"')
        if priors and model != "process":
            raise InvalidInput('priors need model="process": use default_sampler(priors=…)')
        self._repeats = repeats
        self._model = model
        self._priors = tuple(priors)
        self._space: dict[str, BaseDistribution] = {}
        self._fewest = max(fewest, FEWEST)
        self.renew()

    def renew(self) -> None:
        """Forget all trials; also called in a child of a fork."""
        renew_in_child(self)
        self._lock = threading.RLock()
        self._key: object = None
        self._columns: KnownTrials | None = None
        self._reader: TrialReader | None = None
        self._densities: dict[tuple[tuple[str, BaseDistribution], ...], KernelDensity] = {}
        self._lengths: dict[tuple[object, bool], Lengths] = {}
        """The lengths of the process in the last search space for which one was used, without and with priors."""
        self._lessons: _Lessons | None = None

    def __getstate__(self) -> dict[str, Any]:
        own = ("_lock", "_key", "_columns", "_reader", "_densities", "_lengths", "_lessons")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.renew()

    def learn_from(self, priors: Sequence[PriorRecord], space: Mapping[str, BaseDistribution]) -> None:
        """Use these priors from the next trial on, in a study with this search space. Needs `model="process"`."""
        if self._model == "process":
            with self._lock:
                self._priors, self._space, self._lessons = tuple(priors), dict(space), None

    # --- Optuna's steps ---

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        if is_part_of_a_study(study) or not self.is_joint(study):
            return super().infer_relative_search_space(study, trial)
        with self._lock:
            columns = self._read(study, cached=True)
            spaces = columns.groups if self.grouped else [columns.intersection or self._foreseen(study)]
        if self.grouped:
            self.use_groups(spaces)
        return {name: one for space in spaces for name, one in sorted(space.items()) if not one.single()}

    def is_started(self, study: optuna.Study) -> bool:
        if is_part_of_a_study(study):
            return super().is_started(study)
        with self._lock:
            learned = self._read(study, cached=True).learned
            return learned >= self.startup_trials or bool(learned and self._priors) or bool(self._foreseen(study))

    def _foreseen(self, study: optuna.Study) -> dict[str, BaseDistribution]:
        """The search space while no trial is finished, either the given one or that of a running trial. Used only with
        priors.
        """
        if not self._priors or self.grouped or not self.is_joint(study):
            return {}
        earlier = listed(study, cached=True)[:-1]  # the last trial is the one to be drawn
        return self._space or next((one.distributions for one in earlier if one.distributions), {})

    def startup_value(self, study: optuna.Study, trial: FrozenTrial, name: str, distribution: BaseDistribution) -> Any:
        if self._priors and not distribution.single():  # the first trial of a study with an unknown space
            taught = Taught({name: distribution}, self._priors[:1])
            if taught.priors:
                value = taught.best(self.random_state, 1, np.ones(1))[name]
                return distribution.to_external_repr(value[0].item())
        return super().startup_value(study, trial, name, distribution)

    def propose(
        self, study: optuna.Study, trial: FrozenTrial, space: dict[str, BaseDistribution], *, joint: bool
    ) -> dict[str, Any]:
        if is_part_of_a_study(study) or len(study.directions) > 1 or not self.is_plain:
            return super().propose(study, trial, space, joint=joint)
        with self._lock:
            columns = self._read(study, cached=not self.liar)
            if not columns.mixed.isdisjoint(space):
                return super().propose(study, trial, space, joint=joint)
            own = columns.row_of(trial.number)
            model = self._known(columns, space, own, maximize=study.directions[0] == StudyDirection.MAXIMIZE)
            if joint and not self.grouped and self._repeats == "avoid":
                return self._best_new(model, own)
            candidates = model.below.sample(self.random_state, self.candidate_count)
            comparison = self._comparison(model, candidates)
            place = None if comparison is None else comparison.best()
            if place is None:  # two candidates are too close for the faster computation
                place = int(np.argmax(self._scores(model, candidates)))
            return {name: one.to_external_repr(candidates[name][place].item()) for name, one in space.items()}

    # --- the model ---

    def _known(
        self, columns: KnownTrials, space: dict[str, BaseDistribution], own: int | None, *, maximize: bool
    ) -> _Model:
        best = best_rows(columns, (self.gamma or _gamma)(columns.learned), maximize=maximize)
        present = columns.having(space)
        state = columns.role
        running = (state == RUNNING) & present
        if own is not None:
            running[own] = False
        worse = ((state == COMPLETE) | (state == PRUNED)) & present
        worse[best] = False
        if self.liar:
            worse |= running
        ranked = np.empty(0, np.int64)
        if self._has_process(columns, space):
            ranked = ranked_rows(columns, maximize=maximize)
            ranked = ranked[present[ranked]]
        below = self.estimator(columns.observations(space, best[present[best]]), space)
        return _Model(columns, space, below, np.flatnonzero(worse), ranked, np.flatnonzero(running)[-_RUNNING_SEEN:])

    def _has_process(self, columns: KnownTrials, space: Mapping[str, BaseDistribution]) -> bool:
        return self._model == "process" and columns.learned <= _PROCESS_UP_TO and len(space) <= _PROCESS_AXES

    def _order(self, model: _Model, candidates: dict[str, Floats]) -> Iterator[int]:
        """The indices of the candidates by their likelihood ratio of better trials to others, the best first."""
        comparison = self._comparison(model, candidates)
        if comparison is not None:
            return comparison.ranked()
        scores = self._scores(model, candidates)
        first = int(np.argmax(scores))  # works even if a score is NaN
        return chain([first], (place for place in np.argsort(-scores, kind="stable").tolist() if place != first))

    def _comparison(self, model: _Model, candidates: dict[str, Floats]) -> Comparison | None:
        """The candidates' scores by the faster computation; None if Optuna's own has to be used."""
        if model.columns.learned < self._fewest or len(model.above) < FEWEST:
            return None
        density = self._density(model.columns, model.space)
        if density.at_edge(candidates):
            return None
        weights = np.append(self.weights_of(len(model.above)), self.prior_weight)
        below, above = mixture_of(model.below), Kernels(model.above, weights / weights.sum())
        return density.compare(below, above, candidates, prior_weight=self.prior_weight, endpoints=self.endpoints)

    def _scores(self, model: _Model, candidates: dict[str, Floats]) -> Floats:
        """The candidates' scores by Optuna's own computation."""
        above = self.estimator(model.columns.observations(model.space, model.above), model.space)
        return np.asarray(model.below.log_pdf(candidates) - above.log_pdf(candidates))

    def _best_new(self, model: _Model, own: int | None) -> dict[str, Any]:
        """The most promising configuration that is new; if none is found, the most promising one."""
        ranked = self._ranked(model)
        first = next(ranked)
        tried: set[tuple[float, ...]] = set()
        for place, values in enumerate(chain([first], ranked)):
            if place == _LOOKED_UP:  # after so many that were tried, many more probably were
                tried = model.columns.tried(model.space, own)
            if not (tuple(values.values()) in tried if place >= _LOOKED_UP else model.columns.contains(values, own)):
                break
        else:
            values = first
        return {name: one.to_external_repr(values[name]) for name, one in model.space.items()}

    def _ranked(self, model: _Model) -> Iterator[dict[str, float]]:
        """Candidates in the order of the process, if there is one; then several draws, the best first in each; then
        random ones.
        """
        if len(model.ranked) > 1 or (self._priors and self._has_process(model.columns, model.space)):
            candidates, costs = self._judged(model)
            yield from _configurations(candidates, np.argsort(costs, kind="stable").tolist())
        for _ in range(_DRAWS):
            candidates = model.below.sample(self.random_state, self.candidate_count)
            yield from _configurations(candidates, self._order(model, candidates))
        anywhere = self.estimator(model.columns.observations(model.space, np.empty(0, np.int64)), model.space)
        yield from _configurations(anywhere.sample(self.random_state, _ANYWHERE), range(_ANYWHERE))

    def _judged(self, model: _Model) -> tuple[dict[str, Floats], Floats]:
        """Candidates from the density of the better trials, from around the best ones and from anywhere, with costs.

        With priors, there are also the priors' best configurations, their neighbours, and neighbours of the best
        candidates.
        """
        columns, space, count = model.columns, model.space, len(model.ranked)
        cube, ranks, key = Cube(space), chosen(count), tuple(space.items())
        numbers, rows = self.random_state, model.ranked[ranks]
        points, found = cube.points(columns.observations(space, rows)), scores(ranks, count)
        running = cube.points(columns.observations(space, model.running))
        lessons = self._learned(model, key) if self._priors else None
        taught = None if lessons is None else lessons.taught
        mixture, expected, first = None, None, False
        if lessons is not None and taught is not None and taught.priors:
            means = lessons.means_of(np.concatenate([rows, model.running]), np.concatenate([points, running]))
            said = lessons.trust(means[: len(rows)])
            mixture = said.drawn(numbers.uniform())
            # the first trial follows a person's belief, or else the mean of the priors
            if not count and not len(running):
                first = taught.priors[0].name == BELIEF
                mixture = np.eye(len(taught.priors))[0] if first else said.mixtures[1]
        if mixture is not None:
            expected = means @ mixture
        elif columns.learned < self.startup_trials:  # no prior applies, so the start-up phase is as usual
            return cube.anywhere(numbers, _FAR), np.zeros(_FAR)
        beside = key, mixture is not None
        lengths = self._lengths.get(beside, taught.lengths if taught is not None and mixture is not None else None)
        surrogate = Surrogate(cube, points, found, running, count=count, lengths=lengths, expected=expected)
        self._lengths = {one: other for one, other in self._lengths.items() if one[0] == key}
        self._lengths[beside] = surrogate.lengths
        parts = []
        if count:
            parts.append(model.below.sample(numbers, self.candidate_count))
            parts.append(cube.nearby(numbers, columns.observations(space, model.ranked[:_CENTRES]), _NEARBY))
        parts.append(cube.anywhere(numbers, _FAR))
        if mixture is None or taught is None:
            candidates = joined(parts)
            return candidates, surrogate.costs(cube.points(candidates))
        best = taught.best(numbers, _TAUGHT, mixture)
        candidates = joined([*parts, best, cube.nearby(numbers, best, _NEARBY)])
        points = cube.points(candidates)
        costs = surrogate.costs(points, taught.means(points, mixture))
        if first:
            costs[sum(len(next(iter(part.values()))) for part in parts)] = -np.inf  # a person's belief comes first
        for _ in range(_CLIMBS if count + len(running) < _CLIMBS_UP_TO else 0):
            top = np.argsort(costs)[:_CLIMBED]
            more = cube.nearby(numbers, {name: column[top] for name, column in candidates.items()}, _NEARBY)
            points = cube.points(more)
            candidates = joined([candidates, more])
            costs = np.concatenate([costs, surrogate.costs(points, taught.means(points, mixture))])
        return candidates, costs

    def _learned(self, model: _Model, key: object) -> _Lessons:
        lessons = self._lessons
        if lessons is None or lessons.key != key or lessons.columns is not model.columns:
            self._lessons = lessons = _Lessons(key, Taught(model.space, self._priors), model.columns)
        return lessons

    # --- knowledge of the study ---

    def _read(self, study: optuna.Study, *, cached: bool) -> KnownTrials:
        key = study_key(study)
        if self._columns is None or key != self._key:
            self._key, self._columns, self._reader = key, None, reader_of(study)
        try:
            if self._reader is not None:
                changes = self._reader.read()
                if self._columns is None or changes.reset:
                    self._columns = self._new_columns(study)
                self._columns.take(changes)
            else:
                trials = listed(study, cached=cached)
                if self._columns is None or not self._columns.same_study(trials):
                    self._columns = self._new_columns(study)
                self._columns.refresh(trials)
        except BaseException:  # only partly read
            self._columns = self._key = None
            raise
        return self._columns

    def _new_columns(self, study: optuna.Study) -> KnownTrials:
        self._densities = {}
        return KnownTrials(lambda running: self.announced(study, running), len(study.directions))

    def _density(self, columns: KnownTrials, space: dict[str, BaseDistribution]) -> KernelDensity:
        key = tuple(space.items())
        density = self._densities.pop(key, None)
        if density is None or not density.catch_up():
            density = KernelDensity(space, columns)
            density.catch_up()
        self._densities[key] = density
        if len(self._densities) > _DENSITIES:
            del self._densities[next(iter(self._densities))]
        return density


def _configurations(candidates: Mapping[str, Floats], order: Iterable[int]) -> Iterator[dict[str, float]]:
    for place in order:
        yield {name: float(column[place]) for name, column in candidates.items()}


def _gamma(trials: int) -> int:
    """How many of this many trials count as good by Optuna's default."""
    return min(math.ceil(0.1 * trials), 25)


def default_sampler(seed: int | None = None, *, priors: Sequence[PriorRecord] = ()) -> TPESampler:
    """The default sampler of a study, designed for many peers.

    The sampler needs no trial number, so the parameters are sent with the ask, which saves a round trip. `priors` come
    from earlier studies; see `hopaas_p2p.Prior`.
    """
    return TPESampler(seed=seed, repeats="avoid", model="process", priors=priors)


class CmaEsSampler(BaseSampler):
    """A CMA-ES sampler without pickles, for peers that need not trust each other. It needs `pip install cmaes`.

    It draws the numeric parameters that all COMPLETE trials have, and learns from COMPLETE trials only.
    `independent_sampler` draws the other parameters. A generation ends when `population_size` of its trials are
    COMPLETE. With many peers, set the population to their number, so that no trial is wasted. Several threads may use a
    sampler.

    Args:
        x0: the starting point; by default the middle of each range.
        sigma0: the first standard deviation, as a fraction of each range.
        n_startup_trials: the number of random trials at the start.
        population_size: the number of trials per generation, at least 4; by default 4 + 3 ln(parameters).
        seed: the same log and the same seed give the same trials. The default is derived from the study's name.
        independent_sampler: by default a random sampler.

    Raises:
        InvalidInput: an argument is out of its range, or the study has several objectives.
        ConfigurationError: the `cmaes` package is not installed.

    """

    def __init__(
        self,
        x0: Mapping[str, Any] | None = None,
        sigma0: float = 1 / 6,
        *,
        n_startup_trials: int = 1,
        population_size: int | None = None,
        seed: int | None = None,
        independent_sampler: BaseSampler | None = None,
    ) -> None:
        if not sigma0 > 0 or (population_size is not None and population_size < 4):
            raise InvalidInput(f"sigma0 = {sigma0} must be above 0, population_size = {population_size} at least 4")
        if importlib.util.find_spec("cmaes") is None:
            raise ConfigurationError(f"CmaEsSampler needs cmaes: {extras.install('cmaes')}")
        self._x0 = x0
        self._sigma0 = sigma0
        self._n_startup_trials = n_startup_trials
        self._population_size = population_size
        self._seed = seed
        self._independent_sampler = independent_sampler or RandomSampler(seed=seed)
        self.renew()

    def renew(self) -> None:
        """Forget all trials; also called in a child of a fork."""
        renew_in_child(self)
        self._lock = threading.RLock()
        self._common = IntersectionSearchSpace()
        self._searched: object = None
        self._key: object = None
        self._evolution: Evolution | None = None

    def __getstate__(self) -> dict[str, Any]:
        own = ("_lock", "_common", "_searched", "_key", "_evolution")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.renew()

    def reseed_rng(self) -> None:
        """Reseed the independent sampler. CMA-ES itself has no random state, because each trial is seeded by its
        number.
        """
        self._independent_sampler.reseed_rng()

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        with self._lock:
            if study_key(study) != self._searched:
                self._searched, self._common = study_key(study), IntersectionSearchSpace()
            common = self._common.calculate(study)
        return {name: one for name, one in UnitCube(common).space.items() if not one.single()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if len(study.directions) > 1:
            raise InvalidInput("CmaEsSampler is for one objective: use TPESampler or NSGAIISampler for several")
        trials = study.get_trials(deepcopy=False)
        complete = sum(other.state is TrialState.COMPLETE for other in trials)
        if not search_space or complete < self._n_startup_trials:
            return {}
        with self._lock:
            evolution = self._followed(study, trials, search_space)
            params, origin = evolution.draw(trial.number), evolution.origin
        announce(study, trial, CMAES, origin)
        return params

    def _followed(
        self, study: optuna.Study, trials: list[FrozenTrial], space: dict[str, BaseDistribution]
    ) -> Evolution:
        key = (*study_key(study), tuple(space.items()))
        if self._evolution is None or key != self._key or not self._evolution.follow(trials):
            cube, maximize = UnitCube(space), study.directions[0] == StudyDirection.MAXIMIZE
            start = np.full(len(space), 0.5) if self._x0 is None else cube.point(self._x0)
            seed = zlib.crc32(study.study_name.encode()) if self._seed is None else self._seed
            self._key = key
            self._evolution = Evolution(cube, start, self._sigma0, self._population_size, seed=seed, maximize=maximize)
            self._evolution.follow(trials)
        return self._evolution

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._independent_sampler.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._independent_sampler.before_trial(study, trial)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self._independent_sampler.after_trial(study, trial, state, values)
