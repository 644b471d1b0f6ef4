"""Which samplers can be asked for a configuration before there is a trial for it.

Most look at other trials only. Some also read the number of their own trial, find it in the list of all trials, or
write to the study, and for those the trial comes first.
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
"""Of Optuna's. Not among them: GridSampler (the number says which point), BruteForceSampler (looks itself up among all
trials), QMCSampler (counts its points in the study), CmaEsSampler (seeds by the number)."""


def draws_early(sampler: BaseSampler, pruner: optuna.pruners.BasePruner) -> bool:
    """Whether this sampler, beside this pruner, knows all that it needs before its trial has a number.

    A sampler of somebody else's says so with an attribute `needs_number = False`.
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
    """Whether it goes through points of its own, so that no neighbour will do."""
    return isinstance(sampler, optuna.samplers.GridSampler | optuna.samplers.BruteForceSampler)


def too_many_values(sampler: BaseSampler, space: Mapping[str, BaseDistribution]) -> str | None:
    """The parameter of which the sampler would make a list of so many values that no process has room for it."""
    if not isinstance(sampler, optuna.samplers.BruteForceSampler):
        return None
    return next((name for name, one in space.items() if (count_of(one) or 0) > _MOST_VALUES), None)


def tell_dropped(sampler: BaseSampler, trial: optuna.trial.FrozenTrial) -> None:
    """Tell the sampler, if it has a method `proposal_dropped`, that what it drew for this trial is not run."""
    hear = getattr(sampler, "proposal_dropped", None)
    if hear is not None:
        hear(trial)
