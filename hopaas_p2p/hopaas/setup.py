"""What samplers and pruners have in common: the set-up of a study names them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar


class NamedArguments:
    """A sampler or pruner by name and arguments; every process that runs trials makes its own."""

    _module: ClassVar[str]
    """Optuna's, which has the class of this name."""
    _theirs: ClassVar[Mapping[str, str]] = {}
    """Arguments that have another name in Optuna; an empty one if it has none."""

    def asdict(self) -> dict[str, Any]:
        return {"name": type(self).__name__, "args": dataclasses.asdict(self)}  # type: ignore[call-overload]

    def make(self) -> Any:
        """Optuna's object of this name; ValueError or TypeError if it does not take these arguments."""
        import optuna

        arguments = {self._theirs.get(name, name): value for name, value in self.asdict()["args"].items()}
        arguments.pop("", None)
        return getattr(getattr(optuna, self._module), type(self).__name__)(**arguments)
