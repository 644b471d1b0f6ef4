"""A study's policy on when its trials pause: rungs, a population, or none. `rungs` and `populations` apply it."""

from __future__ import annotations

import functools
from typing import Final

import msgspec

MOST_RUNGS: Final = 64
"""The most rungs of a study, and the most pauses that one trial in a population may run past."""
_MOST_WHOLE: Final = 1000
_MOST_MEMBERS: Final = 100_000
_MOST_INTERVALS: Final = 1000
LARGEST: Final = 1 << 53
AT_RUNG: Final = "it has reached a rung: save a checkpoint, and end"
"""The reason given to a program that should leave its trial at a rung."""


class Rungs(msgspec.Struct, frozen=True, omit_defaults=True, tag="rungs"):
    """A study's trials pause at rungs, and the best of the waiting ones continue.

    A rung is at `min`, `min * eta`, `min * eta**2`, … epochs, as long as these are below `max`, a complete training
    run. An "epoch" is any step of your training.
    """

    min: int = 1
    """Epochs before the first rung."""
    max: int = 27
    """The epochs of a complete training run; no rung is at or above this."""
    eta: int = 3
    """One in this many of the configurations that reach a rung is promoted."""
    brackets: int = 1
    """How many different first rungs there are. With 2, some configurations first pause at the second rung, and so on.
    """
    first_step: int = 0
    """The step of the first epoch in `trial.report`: 0 or 1."""
    whole: int = 8
    """With three brackets or more, how many configurations are first trained to the end, to find misleading rungs,
    which are then skipped. 0 for none."""

    def epochs(self, step: int) -> int:
        """How many epochs are done after this step."""
        return step - self.first_step + 1

    @property
    def levels(self) -> tuple[int, ...]:
        """The rungs, in epochs."""
        return _levels(self.min, self.max, self.eta)

    def impossible(self) -> str | None:
        """What is wrong with these numbers, or None."""
        if not 1 <= self.min < self.max <= LARGEST:
            return f"min and max must be epochs with 1 <= min < max, got {self.min} and {self.max}"
        if not 2 <= self.eta <= LARGEST:
            return f"eta must be at least 2, got {self.eta}"
        if not 1 <= self.brackets <= len(self.levels) + 1:
            return f"with {len(self.levels)} rungs, brackets must be 1 to {len(self.levels) + 1}, got {self.brackets}"
        if self.first_step not in (0, 1):
            return f"first_step must be 0 or 1, got {self.first_step}"
        if not 0 <= self.whole <= _MOST_WHOLE:
            return f"whole must be 0 to {_MOST_WHOLE}, got {self.whole}"
        return None


@functools.lru_cache
def _levels(first: int, last: int, eta: int) -> tuple[int, ...]:
    levels: list[int] = []
    while first < last and len(levels) < MOST_RUNGS:
        levels.append(first)
        first *= eta
    return tuple(levels)


class Population(msgspec.Struct, frozen=True, omit_defaults=True, tag="population"):
    """A study's trials are members of a population, which pause at intervals and copy the best.

    The parameters of a member change while it trains, as in population-based training,
    https://arxiv.org/abs/1711.09846. An "epoch" is any step of your training.
    """

    size: int = 16
    """Number of members. A study starts this many configurations, or as many as its budget has places for."""
    every: int = 5
    """Epochs between two pauses."""
    max: int = 100
    """The epochs of a complete training run; no pause is at or above this."""
    quantile: float = 0.2
    """The share of the population that copies, and the share that is copied."""
    resample: float = 0.25
    """The probability that a copying member's parameter is resampled instead of perturbed."""
    fixed: tuple[str, ...] = ()
    """Parameters that a checkpoint depends on, such as a number of layers, which are copied and not perturbed."""
    first_step: int = 0
    """The step of the first epoch in `trial.report`: 0 or 1."""

    def epochs(self, step: int) -> int:
        """How many epochs are done after this step."""
        return step - self.first_step + 1

    @property
    def levels(self) -> range:
        """The numbers of epochs after which members pause."""
        return range(self.every, self.max, self.every)

    def impossible(self) -> str | None:
        """What is wrong with these numbers, or None."""
        if not 2 <= self.size <= _MOST_MEMBERS:
            return f"size must be 2 to {_MOST_MEMBERS} members, got {self.size}"
        if not 1 <= self.every < self.max <= LARGEST:
            return f"every and max must be epochs with 1 <= every < max, got {self.every} and {self.max}"
        if (self.max - 1) // self.every > _MOST_INTERVALS:
            return f"at most {_MOST_INTERVALS} pauses, got {(self.max - 1) // self.every}"
        if not 0.0 < self.quantile <= 0.5:
            return f"quantile must be above 0 and at most 0.5, got {self.quantile}"
        if not 0.0 <= self.resample <= 1.0:
            return f"resample must be 0 to 1, got {self.resample}"
        if self.first_step not in (0, 1):
            return f"first_step must be 0 or 1, got {self.first_step}"
        return None


Fidelity = Rungs | Population
_decode: Final = msgspec.json.Decoder(Rungs | Population | None).decode


def decode_fidelity(text: str) -> Fidelity | None:
    """The policy in a study's attribute; None if the attribute is null or cannot be read."""
    try:
        policy: Fidelity | None = _decode(text)
    except msgspec.MsgspecError:
        return None
    return policy


def encode_fidelity(policy: Fidelity | None) -> str:
    """The attribute of a study with this policy."""
    return msgspec.json.encode(policy).decode()


def possible_fidelity(said: object) -> bool:
    """Whether a study's attribute may have this value: null, or a possible policy."""
    try:
        policy = msgspec.convert(said, Fidelity | None)
    except msgspec.ValidationError:
        return False
    return policy is None or policy.impossible() is None
