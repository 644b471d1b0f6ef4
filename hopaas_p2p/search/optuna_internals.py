"""The only place in `search` that uses private names of Optuna, mostly the steps of its TPE sampler.

A test lists these names, and fails with a clear message when a new version of Optuna renames one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import numpy.random  # noqa: F401  # if a thread imported it at its first draw, a child forked meanwhile would hang
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers._lazy_random_state import LazyRandomState
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator
from optuna.samplers._tpe.probability_distributions import _BatchedCategoricalDistributions
from optuna.search_space.group_decomposed import _SearchSpaceGroup
from optuna.trial import FrozenTrial, TrialState

from hopaas_p2p.search.known import TrialReader
from hopaas_p2p.search.tpe import Mixture

Estimator = _ParzenEstimator
GRID: Final = ("grid_id", "search_space")
"""The system attributes in which GridSampler records a trial's point and the grid."""


def study_key(study: optuna.Study) -> tuple[object, int]:
    """What identifies a study: its storage, and its id there."""
    return study._storage, study._study_id


def is_part_of_a_study(study: optuna.Study) -> bool:
    """Whether this study object has only some of the study's trials, like Hyperband's view of a bracket."""
    return type(study).get_trials is not optuna.Study.get_trials


def announce(study: optuna.Study, trial: FrozenTrial, key: str, value: Any) -> None:
    """Write a system attribute of a running trial."""
    study._storage.set_trial_system_attr(trial._trial_id, key, value)


def listed(study: optuna.Study, *, cached: bool) -> list[FrozenTrial]:
    """All trials by number, not copied; if `cached`, as they were when this thread asked for its trial."""
    return study._get_trials(deepcopy=False, use_cache=cached)


def reader_of(study: optuna.Study) -> TrialReader | None:
    """The reader of changed trials; None if the storage can only list all of them."""
    reader = getattr(study._storage, "reader", None)
    return None if reader is None else reader(study._study_id)


def mixture_of(estimator: Estimator) -> Mixture:
    """The components of an estimator."""
    mixture, parts = estimator._mixture_distribution, estimator._mixture_distribution.distributions
    choices = [one.weights for one in parts if isinstance(one, _BatchedCategoricalDistributions)]
    numbers = [(one.mu, one.sigma) for one in parts if not isinstance(one, _BatchedCategoricalDistributions)]
    return Mixture(mixture.weights, numbers, choices)


def grid_points(
    sampler: optuna.samplers.BaseSampler, space: Mapping[str, BaseDistribution]
) -> list[dict[str, float]] | None:
    """The points of a GridSampler in the form of the log; None for another sampler, or if the grid does not fit the
    space.

    If the grid does not fit, the sampler itself reports the error.
    """
    if not isinstance(sampler, optuna.samplers.GridSampler) or set(sampler._param_names) != set(space):
        return None
    names = [(name, space[name]) for name in sampler._param_names]
    with contextlib.suppress(TypeError, ValueError):
        return [
            {name: float(one.to_internal_repr(value)) for (name, one), value in zip(names, point, strict=True)}
            for point in sampler._all_grids
        ]
    return None


def fixed_names(sampler: optuna.samplers.BaseSampler) -> frozenset[str]:
    """The parameters that a PartialFixedSampler fixes; empty for any other sampler."""
    return frozenset(sampler._fixed_params if isinstance(sampler, optuna.samplers.PartialFixedSampler) else ())


def reseed_in_child(sampler: optuna.samplers.BaseSampler) -> None:
    """Make a sampler draw different numbers from those of its parent process.

    numpy holds a lock while it draws. If another thread of the parent held the lock during the fork, the
    lock is never released in the child, and `reseed_rng` alone would wait forever, so new random states are created.
    """
    samplers, seen = [sampler], {id(sampler)}
    while samplers:
        for part in vars(samplers.pop()).values():
            if isinstance(part, LazyRandomState):
                part._rng = None
            elif isinstance(part, optuna.samplers.BaseSampler) and id(part) not in seen:
                seen.add(id(part))
                samplers.append(part)
    sampler.reseed_rng()


class OptunaTPE(optuna.samplers.TPESampler):
    """Optuna's sampler with names for the steps that another model replaces."""

    def propose(
        self, study: optuna.Study, trial: FrozenTrial, space: dict[str, BaseDistribution], *, joint: bool
    ) -> dict[str, Any]:
        """Values for a trial after the start-up phase, for several parameters that are drawn together or for a single
        one.
        """
        return super()._sample(study, trial, space)

    def is_started(self, study: optuna.Study) -> bool:
        """Whether there are enough trials to learn from; then the start-up phase is over."""
        trials = listed(study, cached=True)
        return sum(one.state in (TrialState.COMPLETE, TrialState.PRUNED) for one in trials) >= self.startup_trials

    def startup_value(self, study: optuna.Study, trial: FrozenTrial, name: str, distribution: BaseDistribution) -> Any:
        """The value of a parameter of a trial in the start-up phase."""
        return self._random_sampler.sample_independent(study, trial, name, distribution)

    def _sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if not search_space or not self.is_started(study):
            return {}
        return self.propose(study, trial, search_space, joint=True)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        if not self.is_started(study):
            return self.startup_value(study, trial, param_name, param_distribution)
        if self._warn_independent_sampling:
            return super().sample_independent(study, trial, param_name, param_distribution)
        return self.propose(study, trial, {param_name: param_distribution}, joint=False)[param_name]

    @property
    def startup_trials(self) -> int:
        return self._n_startup_trials

    @property
    def random_state(self) -> np.random.RandomState:
        return self._rng.rng

    @property
    def liar(self) -> bool:
        """Whether running trials count as bad ones."""
        return self._constant_liar

    @property
    def candidate_count(self) -> int:
        return self._n_ei_candidates

    @property
    def grouped(self) -> bool:
        return self._group

    @property
    def gamma(self) -> Callable[[int], int] | None:
        return self._gamma

    @property
    def is_plain(self) -> bool:
        """Whether the bandwidths and the prior have the settings that the faster computation supports."""
        given, kind = self._parzen_estimator_parameters, self._parzen_estimator_cls
        return given.consider_magic_clip and given.prior_weight > 0 and kind is _ParzenEstimator

    @property
    def prior_weight(self) -> float:
        return self._parzen_estimator_parameters.prior_weight

    @property
    def endpoints(self) -> bool:
        return self._parzen_estimator_parameters.consider_endpoints

    def weights_of(self, count: int) -> NDArray[np.float64]:
        """The weight of each of `count` trials, the oldest first."""
        return _ParzenEstimator._call_weights_func(self._parzen_estimator_parameters.weights, count)

    def is_joint(self, study: optuna.Study) -> bool:
        """Whether all parameters are drawn together."""
        return self._is_multivariate(study)

    def announced(self, study: optuna.Study, trial: FrozenTrial) -> Mapping[str, Any]:
        """The parameters of a running trial, including those that were drawn but not yet suggested."""
        return self._get_params(trial, study)

    def estimator(self, observations: dict[str, NDArray[np.float64]], space: dict[str, BaseDistribution]) -> Estimator:
        """Optuna's density of these trials, given in Optuna's internal representation."""
        return _ParzenEstimator(observations, space, self._parzen_estimator_parameters)

    def use_groups(self, groups: list[dict[str, BaseDistribution]]) -> None:
        """Draw the parameters of each group together."""
        self._search_space_group = _SearchSpaceGroup()
        self._search_space_group._search_spaces = groups
