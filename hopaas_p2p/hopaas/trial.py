"""A trial as scripts of the original see it: parameters are attributes, and setting `loss` reports a step."""

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
    """The result; while it runs, and if it was pruned, the last loss that was set. None if it failed."""
    properties: dict[str, Any]
    state: str = "COMPLETE"


class Trial:
    """One trial of this process. Get it from `with study.trial() as trial:`."""

    def __init__(self, inner: hopaas_p2p.Trial, properties: dict[str, Any]) -> None:
        self._inner = inner
        self._properties = properties
        self._loss: float | None = None
        self._step = -1
        self._was_told_to_end = False
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
        """Its number in the study, from 0."""
        return self._inner.number

    @property
    def properties(self) -> dict[str, Any]:
        """Parameters and constants by name."""
        return dict(self._properties)

    @property
    def loss(self) -> float | None:
        """The last loss, or None. Setting it counts a step and reports it; the last one is the trial's result."""
        return self._loss

    @loss.setter
    def loss(self, value: float) -> None:
        if self._ended:
            raise HopaasConsistencyError(f"trial {self.id} has ended; set its loss inside `with study.trial()`")
        loss = float(value)
        with translated():
            self._inner.report(loss, self._step + 1)
        self._loss = loss
        self._step += 1
        self._was_told_to_end = False

    @property
    def step(self) -> int:
        """How often `loss` was set, less one: -1, 0, 1, …"""
        return self._step

    @property
    def should_prune(self) -> bool:
        """Whether to give this trial up now. Costs no round trip.

        A script that was told so and sets no further loss leaves the trial PRUNED; one that goes on and sets a loss
        has it told.
        """
        if not self._ended:
            with translated():
                self._was_told_to_end = self._inner.should_prune()
        return self._was_told_to_end

    def _conclude(self) -> None:
        """At the end of the block: say how the trial ends, in the words of `hopaas_p2p.Study.trial`."""
        self._ended = True
        if self._was_told_to_end:
            self._inner.prune()
        if self._loss is not None:
            self._inner.tell(self._loss)
