"""Parameters that the sampler chooses: as objects, or as the texts that the original sent to its server."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from hopaas_p2p.core import records
from hopaas_p2p.errors import InvalidInput

PREFIX: Final = "optuna#"
_TEXT: Final = re.compile(r"optuna#(\w+)\((.*)\)", re.DOTALL)


class Suggestion:
    """A parameter to be chosen. Its text form, `str(suggestion)`, may stand in its place."""

    def distribution(self) -> records.Distribution:
        """What it is chosen from."""
        raise NotImplementedError


@dataclass(frozen=True)
class Int(Suggestion):
    """A whole number in [min, max], on a grid of `step`, or log-uniform."""

    min: int
    max: int
    step: int = 1
    log: bool = False

    def __str__(self) -> str:
        return f"optuna#int({self.min},{self.max},{self.step},{str(self.log).lower()})"

    def distribution(self) -> records.Int:
        return records.Int(int(self.min), int(self.max), bool(self.log), int(self.step))


@dataclass(frozen=True)
class Float(Suggestion):
    """A real number in [min, max]. `step` and `log` are ours: the original had neither."""

    min: float
    max: float
    step: float | None = None
    log: bool = False

    def __str__(self) -> str:
        more = "" if self.step is None and not self.log else f",{self.step},{str(self.log).lower()}"
        return f"optuna#float({self.min},{self.max}{more})"

    def distribution(self) -> records.Float:
        step = None if self.step is None else float(self.step)
        return records.Float(float(self.min), float(self.max), bool(self.log), step)


@dataclass(frozen=True)
class Uniform(Suggestion):
    """A real number in [min, max]."""

    min: float
    max: float

    def __str__(self) -> str:
        return f"optuna#uniform({self.min},{self.max})"

    def distribution(self) -> records.Float:
        return records.Float(float(self.min), float(self.max))


@dataclass(frozen=True)
class LogUniform(Suggestion):
    """A positive number in [low, high], uniform in its logarithm."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"optuna#loguniform({self.low},{self.high})"

    def distribution(self) -> records.Float:
        return records.Float(float(self.low), float(self.high), log=True)


@dataclass(frozen=True)
class DiscreteUniform(Suggestion):
    """A number of low, low + q, … up to high. The original left `q` out; it is 1 if not said."""

    low: float
    high: float
    q: float = 1.0

    def __str__(self) -> str:
        return f"optuna#discrete_uniform({self.low},{self.high},{self.q})"

    def distribution(self) -> records.Float:
        return records.Float(float(self.low), float(self.high), step=float(self.q))


@dataclass(frozen=True)
class Categorical(Suggestion):
    """One of these: texts, numbers, truth values or None. In the text form they are all texts."""

    choices: Sequence[Any]

    def __str__(self) -> str:
        return f"optuna#categorical({','.join(map(str, self.choices))})"

    def distribution(self) -> records.Categorical:
        return records.Categorical(tuple(self.choices))


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def _step(text: str) -> float | None:
    return None if text in ("", "None", "null") else float(text)


_KINDS: Final[dict[str, tuple[type[Suggestion], tuple[Callable[[str], Any], ...]]]] = {
    "float": (Float, (float, float, _step, _truth)),
    "int": (Int, (int, int, int, _truth)),
    "uniform": (Uniform, (float, float)),
    "loguniform": (LogUniform, (float, float)),
    "discrete_uniform": (DiscreteUniform, (float, float, float)),
}
"""The word of the text form -> what it makes, and how each of its parts is read; the first two must be there."""


def parse(text: str) -> Suggestion:
    """The suggestion of a text such as `optuna#float(0,1)`.

    Raises:
        InvalidInput: it is none.

    """
    match = _TEXT.fullmatch(text.strip())
    kind, body = (match[1], match[2]) if match else ("", "")
    if kind == "categorical":
        return Categorical([choice.strip() for choice in body.split(",")])
    if kind not in _KINDS:
        known = ", ".join([*_KINDS, "categorical"])
        raise InvalidInput(f"{text!r} is no suggestion; write optuna#KIND(…) with one of {known}")
    make, readers = _KINDS[kind]
    parts = [part.strip() for part in body.split(",")]
    if not 2 <= len(parts) <= len(readers):
        raise InvalidInput(f"{text!r}: {kind} has 2 to {len(readers)} parts, not {len(parts)}")
    try:
        return make(*(read(part) for read, part in zip(readers, parts, strict=False)))
    except ValueError as error:
        raise InvalidInput(f"{text!r}: {error}") from None
