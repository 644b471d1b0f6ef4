"""The pruners of the original. The set-up of a study contains its pruner's name and arguments."""

from __future__ import annotations

from typing import Final

from hopaas_p2p.hopaas.setup import NamedArguments

testables: Final = ["NopPruner", "HyperbandPruner", "MedianPruner", "ThresholdPruner"]
"""The names of all pruners, under the name of the list that the original's tests use."""


def NopPruner() -> NamedArguments:
    """Prunes nothing."""
    return NamedArguments("NopPruner", {})


def MedianPruner(
    n_startup_trials: int = 5, n_warmup_steps: int = 0, interval_steps: int = 1, n_min_trials: int = 1
) -> NamedArguments:
    """Prunes a trial whose loss is worse than the median of the earlier trials at the same step."""
    return NamedArguments("MedianPruner", locals())


def ThresholdPruner(
    lower: float | None = None, upper: float | None = None, n_warmup_steps: int = 0, interval_steps: int = 1
) -> NamedArguments:
    """Prunes a trial whose loss is below `lower` or above `upper`."""
    return NamedArguments("ThresholdPruner", locals())


def HyperbandPruner(
    min_resources: int = 1, max_resources: str | int = "auto", bootstrap_count: int = 0
) -> NamedArguments:
    """Prunes a trial that is not among the best at a rung of its bracket. Resources are counted in steps."""
    return NamedArguments("HyperbandPruner", locals())
