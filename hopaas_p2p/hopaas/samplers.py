"""The samplers of the original. The set-up of a study contains its sampler's name and arguments."""

from __future__ import annotations

from typing import Final

from hopaas_p2p.hopaas.setup import NamedArguments

testables: Final = ["TPESampler"]
"""The names of all samplers, under the name of the list that the original's tests use."""


def TPESampler(
    n_startup_trials: int = 10, n_ei_candidates: int = 24, consider_magic_clip: bool = True
) -> NamedArguments:
    """Optuna's default sampler. `consider_magic_clip` no longer has an effect, but set-ups with different values
    differ.
    """
    return NamedArguments("TPESampler", locals())
