"""A trial as the original's scripts see it. Parameters are attributes, and setting `loss` reports a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hopaas_p2p.hopaas.exceptions import HopaasConsistencyError, translated

if TYPE_CHECKING:
    import hopaas_p2p


@dataclass(frozen=True)
class FrozenTrial:
    """A trial as it was at one moment."""

    study_id: str
    trial_id: int
    loss: float | None
    """The result. For a running or pruned trial, it is the last loss that was set; for a failed trial, None."""
    properties: dict[str, Any]
    state: str = "COMPLETE"


class FailedTrial(Exception):
    """Fails a trial whose script called `sys.exit` inside its block, or set no loss."""


class Trial:
    """One trial of this process. Get it from `with study.trial() as trial:`."""

    def __init__(self, inner: hopaas_p2p.Trial, properties: dict[str, Any], special: dict[str, Any]) -> None:
        self._inner = inner
        for name, value in special.items():
            inner.set_user_attr(name, value)
        self._properties = properties
        self._loss: float | None = None
        self._step = -1
        self._pruned = False
        self._ended = False

    def __getattr__(self, name: str) -> Any:
        properties = self.__dict__.get("_properties", {})
        if name not in properties:
            raise AttributeError(f"the trial has no parameter {name!r}; it has {', '.join(properties)}")
        return properties[name]

    def __repr__(self) -> str:
        return f"<trial {self.id}: {self._properties}>"

    @property
    def id(self) -> int:
        """The trial's number in the study, from 0."""
        return self._inner.number

    @property
    def properties(self) -> dict[str, Any]:
        """Parameters and constants by name."""
        return dict(self._properties)

    @property
    def loss(self) -> float | None:
        """The last loss, or None. Setting a loss reports it as the next step, and the last one is the trial's result.

        The trial fails if the last loss is None.
        """
        return self._loss

    @loss.setter
    def loss(self, value: float | None) -> None:
        if self._ended:
            raise HopaasConsistencyError(f"trial {self.id} has ended; set its loss inside `with study.trial()`")
        self._pruned = False
        if value is None:
            self._loss = None
            return
        with translated():
            self._inner.report(float(value), self._step + 1)
        self._loss = float(value)
        self._step += 1

    @property
    def step(self) -> int:
        """The step of the last loss, which is -1 before the first loss, then 0, 1, …"""
        return self._step

    @property
    def should_prune(self) -> bool:
        """Whether to give this trial up now. The call makes no round trip.

        After True, the trial ends as PRUNED if the script sets no further loss; otherwise that loss is the result.
        """
        if not self._ended:
            with translated():
                self._pruned = self._inner.should_prune()
        return self._pruned

    def _conclude(self) -> None:
        """Prune or tell the trial at the end of the block.

        Raises:
            FailedTrial: there is no loss.

        """
        if self._pruned:
            self._inner.prune()
        if self._loss is None:
            raise FailedTrial(
                "the script set the loss to None" if self._step >= 0 else "no loss was set: assign trial.loss"
            )
        self._inner.tell(self._loss)
