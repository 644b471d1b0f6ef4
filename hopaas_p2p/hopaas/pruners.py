"""Who says when a trial is to be given up. The set-up of a study tells its pruner by name and arguments."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Pruner:
    """A pruner's name and arguments; it is made in every process that runs trials."""

    def asdict(self) -> dict[str, Any]:
        return {"name": type(self).__name__, "args": dataclasses.asdict(self)}

    def make(self) -> optuna.pruners.BasePruner:
        """Optuna's pruner of this name; ValueError or TypeError if it does not take these arguments."""
        import optuna

        kind: Any = getattr(optuna.pruners, type(self).__name__)
        made: optuna.pruners.BasePruner = kind(**self._arguments())
        return made

    def _arguments(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class NopPruner(Pruner):
    """Never."""


@dataclass(frozen=True)
class MedianPruner(Pruner):
    """When the loss is worse than the median of the earlier trials at the same step."""

    n_startup_trials: int = 5
    n_warmup_steps: int = 0
    interval_steps: int = 1
    n_min_trials: int = 1


@dataclass(frozen=True)
class ThresholdPruner(Pruner):
    """When the loss is below `lower` or above `upper`."""

    lower: float | None = None
    upper: float | None = None
    n_warmup_steps: int = 0
    interval_steps: int = 1


@dataclass(frozen=True)
class HyperbandPruner(Pruner):
    """When the trial is not among the best of its bracket at its rung. Resources are counted in steps."""

    min_resources: int = 1
    max_resources: str | int = "auto"
    bootstrap_count: int = 0

    def _arguments(self) -> dict[str, Any]:
        return {
            "min_resource": self.min_resources,
            "max_resource": self.max_resources,
            "bootstrap_count": self.bootstrap_count,
        }
