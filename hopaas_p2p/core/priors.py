"""Stored priors: configurations of earlier studies and their rank scores, so that all peers start from the same priors.

No results are kept. A person's beliefs about the parameters have the same form.
"""

from __future__ import annotations

import math
from typing import Annotated, Final

import msgspec

from hopaas_p2p.core.records import Categorical, Distribution, Natural

MOST_PRIORS: Final = 8
"""Priors per study; each one adds to the cost of an ask."""
MOST_CONFIGURATIONS: Final = 200
LARGEST_PRIOR: Final = 64_000
"""The most characters of JSON per prior, and the most values of parameters."""
BELIEF: Final = "your belief"
"""The name of the prior that the parameters' definitions contain."""
_Score = Annotated[float, msgspec.Meta(ge=-10, le=10)]
_Length = Annotated[float, msgspec.Meta(ge=1e-3, le=1e3)]


class PriorRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The prior from one earlier study."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    space: dict[str, Distribution]
    params: dict[str, list[float]]
    """For each parameter, the values as in a log, the best configuration first."""
    scores: Annotated[list[_Score], msgspec.Meta(max_length=MOST_CONFIGURATIONS)]
    """The ranks of these configurations as normal scores; the best is the lowest."""
    lengths: list[_Length]
    """The length scale on which the scores change with each parameter, as a fraction of its range."""
    noise: Annotated[float, msgspec.Meta(ge=1e-4, le=10)]
    uuid: Annotated[str, msgspec.Meta(max_length=64)] = ""
    """The uuid of the earlier study; empty if it is not in a store."""
    place: Natural = 0
    """How many commits the earlier study's log had."""

    def flaw(self) -> str | None:
        """Why this prior cannot be used; None if it can. `validity` checks its distributions."""
        if not self.space or not self.scores:
            return "it has no configurations"
        if self.params.keys() != self.space.keys() or len(self.lengths) != len(self.space):
            return "its parameters are not those of its space"
        if len(self.params) * len(self.scores) > LARGEST_PRIOR:
            return "it has too many configurations of too many parameters"
        if not all(map(math.isfinite, (*self.scores, *self.lengths, self.noise))):
            return "its scores are not numbers"
        for name, values in self.params.items():
            one = self.space[name]
            if len(values) != len(self.scores) or not all(map(math.isfinite, values)):
                return f"{name!r} lacks values"
            if isinstance(one, Categorical) and not all(0 <= value < len(one.choices) for value in values):
                return f"{name!r} has values that are not among its choices"
        return None
