"""The named arguments with which the set-up of a study describes a sampler or pruner."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

_THEIRS: Final = {"min_resources": "min_resource", "max_resources": "max_resource", "consider_magic_clip": ""}
"""Arguments that have another name in Optuna; an empty name if Optuna has no such argument."""


class NamedArguments(NamedTuple):
    """An Optuna sampler or pruner by name and arguments; every process that runs trials makes its own."""

    name: str
    args: dict[str, Any]

    def make(self) -> Any:
        """Optuna's object of this name. Raises ValueError or TypeError if it does not take these arguments."""
        import optuna

        arguments = {_THEIRS.get(name, name): value for name, value in self.args.items()}
        arguments.pop("", None)
        return getattr(optuna.pruners if self.name.endswith("Pruner") else optuna.samplers, self.name)(**arguments)
