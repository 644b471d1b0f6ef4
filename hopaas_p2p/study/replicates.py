"""Several trials of one configuration: their mean, and how well it is known."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from optuna.trial import FrozenTrial, TrialState

from hopaas_p2p.core.attributes import REUSED
from hopaas_p2p.core.replicates import Mean, means


class ReplicateGroup(NamedTuple):
    """The COMPLETE trials of one configuration; the first value of each, if there are several objectives.

    A trial that was told the known values of another one, with `repeats="reuse"`, measures nothing and does not count.
    """

    params: dict[str, Any]
    numbers: tuple[int, ...]
    """Of the trials."""
    mean: float
    """Infinite where one of the values is; NaN where both infinities are among them."""
    standard_error: float
    """Of the mean; NaN for a single trial, and where a value is infinite."""

    def __str__(self) -> str:
        return str(Mean(self.numbers, self.mean, self.standard_error))


def replicate_groups(trials: Iterable[FrozenTrial], *, maximize: bool) -> list[ReplicateGroup]:
    """The configurations of the COMPLETE trials, the best mean first."""
    complete = {
        one.number: one for one in trials if one.state is TrialState.COMPLETE and REUSED not in one.system_attrs
    }
    measured = [
        (number, tuple(sorted((name, repr(value)) for name, value in one.params.items())), one.values[0])
        for number, one in complete.items()
    ]
    return [ReplicateGroup(complete[one.numbers[0]].params, *one) for one in means(measured, maximize=maximize)]
