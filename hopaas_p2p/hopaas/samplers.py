"""The samplers of the original. The set-up of a study names its sampler and the arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hopaas_p2p.hopaas.setup import NamedArguments

if TYPE_CHECKING:
    import optuna

testables: Final = ["TPESampler"]
"""The names of all samplers, as the original lists them for its tests."""


class Sampler(NamedArguments):
    """A sampler's name and arguments; every process that runs trials makes its own."""

    def make(self) -> optuna.samplers.BaseSampler:
        """Optuna's sampler of this name."""
        raise NotImplementedError


@dataclass(frozen=True)
class TPESampler(Sampler):
    """Optuna's default. `consider_magic_clip` has no effect any more; its value only distinguishes set-ups."""

    n_startup_trials: int = 10
    n_ei_candidates: int = 24
    consider_magic_clip: bool = True

    def make(self) -> optuna.samplers.BaseSampler:
        import optuna

        return optuna.samplers.TPESampler(n_startup_trials=self.n_startup_trials, n_ei_candidates=self.n_ei_candidates)
