"""What samplers and pruners have in common: the set-up of a study names them."""

from __future__ import annotations

import dataclasses
from typing import Any


class NamedArguments:
    """A sampler or pruner by name and arguments; every process that runs trials makes its own."""

    def asdict(self) -> dict[str, Any]:
        return {"name": type(self).__name__, "args": dataclasses.asdict(self)}  # type: ignore[call-overload]
