"""Which samplers can propose a configuration before its trial exists.

Most look only at other trials. Some also read the number of their own trial, look it up in the list of all trials, or
write to the study; for those, the trial must exist first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler

from hopaas_p2p.search.repeats import count_of

_MOST_VALUES: Final = 1_000_000
_EARLY: Final = frozenset({"RandomSampler", "TPESampler", "GPSampler", "NSGAIISampler", "NSGAIIISampler"})
"""Those of Optuna's samplers. Excluded: GridSampler (the number selects the point), BruteForceSampler (looks itself up
among all trials), QMCSampler (counts its points in the study), CmaEsSampler (seeds by the number)."""


def draws_early(sampler: BaseSampler, pruner: optuna.pruners.BasePruner) -> bool:
    """Whether this sampler, with this pruner, needs nothing from its own trial, such as its number.

    Third-party samplers declare it with an attribute `needs_number = False`.
    """
    if isinstance(pruner, optuna.pruners.HyperbandPruner):  # the number says which bracket's trials a sampler sees
        return False
    needs: Any = getattr(sampler, "needs_number", None)
    if needs is not None:
        return not needs
    kind = type(sampler)
    if kind is optuna.samplers.PartialFixedSampler:
        return all(draws_early(one, pruner) for one in vars(sampler).values() if isinstance(one, BaseSampler))
    return kind.__name__ in _EARLY and getattr(optuna.samplers, kind.__name__) is kind


def enumerates(sampler: BaseSampler) -> bool:
    """Whether it enumerates fixed points, so that a neighbour is no substitute."""
    return isinstance(sampler, optuna.samplers.GridSampler | optuna.samplers.BruteForceSampler)


def too_many_values(sampler: BaseSampler, space: Mapping[str, BaseDistribution]) -> str | None:
    """The parameter whose values the sampler would list although they exceed a process's memory, if any."""
    if not isinstance(sampler, optuna.samplers.BruteForceSampler):
        return None
    return next((name for name, one in space.items() if (count_of(one) or 0) > _MOST_VALUES), None)


def tell_dropped(sampler: BaseSampler, trial: optuna.trial.FrozenTrial) -> None:
    """Notify the sampler, if it has a method `proposal_dropped`, that its proposal for this trial is not run."""
    hear = getattr(sampler, "proposal_dropped", None)
    if hear is not None:
        hear(trial)
