"""The samplers of the original. The set-up of a study names its sampler and the arguments."""

from __future__ import annotations

from typing import Final

from hopaas_p2p.hopaas.setup import NamedArguments

testables: Final = ["TPESampler"]
"""The names of all samplers, in the original's list for its tests."""


def TPESampler(
    n_startup_trials: int = 10, n_ei_candidates: int = 24, consider_magic_clip: bool = True
) -> NamedArguments:
    """Optuna's default. `consider_magic_clip` has no effect any more; its value only distinguishes set-ups."""
    return NamedArguments("TPESampler", locals())
