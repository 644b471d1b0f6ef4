"""A sampler or pruner in the set-up of a study, as a name with arguments."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

_THEIRS: Final = {"min_resources": "min_resource", "max_resources": "max_resource", "consider_magic_clip": ""}
"""The original's arguments that have another name in Optuna, or an empty name if Optuna has no such argument."""


class NamedArguments(NamedTuple):
    """An Optuna sampler or pruner by name and arguments. Every process that runs trials creates its own object."""

    name: str
    args: dict[str, Any]

    def make(self) -> Any:
        """A new Optuna object of this class. Raises ValueError or TypeError if the class does not take these
        arguments.
        """
        import optuna

        arguments = {_THEIRS.get(name, name): value for name, value in self.args.items()}
        arguments.pop("", None)
        return getattr(optuna.pruners if self.name.endswith("Pruner") else optuna.samplers, self.name)(**arguments)
