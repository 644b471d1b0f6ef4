"""Who proposes parameters. The set-up of a study tells its sampler by name and arguments."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Sampler:
    """A sampler's name and arguments; it is made in every process that runs trials."""

    def asdict(self) -> dict[str, Any]:
        return {"name": type(self).__name__, "args": dataclasses.asdict(self)}

    def make(self) -> optuna.samplers.BaseSampler:
        """Optuna's sampler of this name."""
        raise NotImplementedError


@dataclass(frozen=True)
class TPESampler(Sampler):
    """Optuna's default. `consider_magic_clip` is Optuna's own affair by now; its value only tells set-ups apart."""

    n_startup_trials: int = 10
    n_ei_candidates: int = 24
    consider_magic_clip: bool = True

    def make(self) -> optuna.samplers.BaseSampler:
        import optuna

        return optuna.samplers.TPESampler(n_startup_trials=self.n_startup_trials, n_ei_candidates=self.n_ei_candidates)
