"""Parameters that the sampler chooses, as objects or in the text form that the original sent to its server."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from hopaas_p2p.core import records
from hopaas_p2p.errors import InvalidInput

PREFIX: Final = "optuna#"
_TEXT: Final = re.compile(r"optuna#(\w+)\((.*)\)", re.DOTALL)


class Suggestion:
    """A parameter that the sampler chooses. Its text form, `str(suggestion)`, may stand in its place."""

    _kind: ClassVar[str]

    def __str__(self) -> str:
        return f"{PREFIX}{self._kind}({','.join(self._parts())})"

    def _parts(self) -> list[str]:
        return [str(one).lower() if isinstance(one, bool) else str(one) for one in vars(self).values()]

    def distribution(self) -> records.Distribution:
        """The distribution it is chosen from."""
        raise NotImplementedError


@dataclass(frozen=True)
class Int(Suggestion):
    """A whole number in [min, max], on a grid of `step`, or log-uniform."""

    min: int
    max: int
    step: int = 1
    log: bool = False
    _kind = "int"

    def distribution(self) -> records.Int:
        return records.Int(int(self.min), int(self.max), bool(self.log), int(self.step))


@dataclass(frozen=True)
class Float(Suggestion):
    """A real number in [min, max]. The original had neither `step` nor `log`."""

    min: float
    max: float
    step: float | None = None
    log: bool = False
    _kind = "float"

    def _parts(self) -> list[str]:
        return super()._parts()[: 2 if self.step is None and not self.log else 4]

    def distribution(self) -> records.Float:
        step = None if self.step is None else float(self.step)
        return records.Float(float(self.min), float(self.max), bool(self.log), step)


@dataclass(frozen=True)
class Uniform(Suggestion):
    """A real number in [min, max]."""

    min: float
    max: float
    _kind = "uniform"

    def distribution(self) -> records.Float:
        return records.Float(float(self.min), float(self.max))


@dataclass(frozen=True)
class LogUniform(Suggestion):
    """A positive number in [low, high], uniform in its logarithm."""

    low: float
    high: float
    _kind = "loguniform"

    def distribution(self) -> records.Float:
        return records.Float(float(self.low), float(self.high), log=True)


@dataclass(frozen=True)
class DiscreteUniform(Suggestion):
    """A number of low, low + q, … up to high. The original ignored `q`."""

    low: float
    high: float
    q: float = 1.0
    _kind = "discrete_uniform"

    def distribution(self) -> records.Float:
        return records.Float(float(self.low), float(self.high), step=float(self.q))


@dataclass(frozen=True)
class Categorical(Suggestion):
    """One of these: texts, numbers, truth values or None. In the text form they are all texts."""

    choices: Sequence[Any]
    _kind = "categorical"

    def _parts(self) -> list[str]:
        return [str(choice) for choice in self.choices]

    def distribution(self) -> records.Categorical:
        return records.Categorical(tuple(self.choices))


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def _step(text: str) -> float | None:
    return None if text in ("", "None", "null") else float(text)


_READERS: Final[dict[str, Callable[[str], Any]]] = {
    "int": int,
    "float": float,
    "float | None": _step,
    "bool": _truth,
}
"""How a part of the text form is read, by the type of its field; the first two are required."""
_KINDS: Final = {one._kind: one for one in (Float, Int, Uniform, LogUniform, DiscreteUniform)}


def parse(text: str) -> Suggestion:
    """The suggestion of a text such as `optuna#float(0,1)`.

    Raises:
        InvalidInput: the text is not a suggestion.

    """
    match = _TEXT.fullmatch(text.strip())
    kind, parts = (match[1], [part.strip() for part in match[2].split(",")]) if match else ("", [])
    if kind == "categorical":
        return Categorical(parts)
    if kind not in _KINDS:
        known = ", ".join([*_KINDS, "categorical"])
        raise InvalidInput(f"{text!r} is not a suggestion; write optuna#KIND(…) with one of {known}")
    fields = dataclasses.fields(_KINDS[kind])
    if not 2 <= len(parts) <= len(fields):
        raise InvalidInput(f"{text!r}: {kind} has 2 to {len(fields)} parts, not {len(parts)}")
    try:
        return _KINDS[kind](*(_READERS[str(one.type)](part) for one, part in zip(fields, parts, strict=False)))
    except ValueError as error:
        raise InvalidInput(f"{text!r}: {error}") from None
