"""Parameters that the sampler chooses, as objects or in the text form that the original sent to its server."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from hopaas_p2p.core import records
from hopaas_p2p.errors import InvalidInput

PREFIX: Final = "optuna#"
_TEXT: Final = re.compile(r"optuna#(\w+)\((.*)\)", re.DOTALL)


class Suggestion(NamedTuple):
    """A parameter that the sampler chooses. Its text form, `str(suggestion)`, may stand in its place."""

    kind: str
    parts: tuple[Any, ...]

    def __str__(self) -> str:
        choices = self.kind == "categorical"  # are texts as they stand
        texts = [str(one).lower() if isinstance(one, bool) and not choices else str(one) for one in self.parts]
        return f"{PREFIX}{self.kind}({','.join(texts)})"

    def distribution(self) -> records.Distribution:
        """The distribution it is chosen from; raises TypeError or ValueError if the parts are none of one."""
        return records.Categorical(self.parts) if self.kind == "categorical" else _KINDS[self.kind][0](*self.parts)


def Int(min: int, max: int, step: int = 1, log: bool = False) -> Suggestion:
    """A whole number in [min, max], on a grid of `step`, or log-uniform."""
    return Suggestion("int", (min, max, step, log))


def Float(min: float, max: float, step: float | None = None, log: bool = False) -> Suggestion:
    """A real number in [min, max]. The original had neither `step` nor `log`."""
    return Suggestion("float", (min, max) if step is None and not log else (min, max, step, log))


def Uniform(min: float, max: float) -> Suggestion:
    """A real number in [min, max]."""
    return Suggestion("uniform", (min, max))


def LogUniform(low: float, high: float) -> Suggestion:
    """A positive number in [low, high], uniform in its logarithm."""
    return Suggestion("loguniform", (low, high))


def DiscreteUniform(low: float, high: float, q: float = 1.0) -> Suggestion:
    """A number of low, low + q, … up to high. The original ignored `q`."""
    return Suggestion("discrete_uniform", (low, high, q))


def Categorical(choices: Sequence[Any]) -> Suggestion:
    """One of these: texts, numbers, truth values or None. In the text form they are all texts."""
    return Suggestion("categorical", tuple(choices))


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def _step(text: str) -> float | None:
    return None if text in ("", "None", "null") else float(text)


def _float(low: float, high: float, step: float | None = None, log: bool = False) -> records.Float:
    return records.Float(float(low), float(high), bool(log), None if step is None else float(step))


_KINDS: Final[dict[str, tuple[Callable[..., records.Distribution], tuple[Callable[[str], Any], ...]]]] = {
    "float": (_float, (float, float, _step, _truth)),
    "int": (
        lambda low, high, step=1, log=False: records.Int(int(low), int(high), bool(log), int(step)),
        (int, int, int, _truth),
    ),
    "uniform": (_float, (float, float)),
    "loguniform": (functools.partial(_float, log=True), (float, float)),
    "discrete_uniform": (lambda low, high, q=1.0: _float(low, high, q), (float, float, float)),
}
"""What each kind is chosen from, and how the parts of the text form are read; the first two are required."""


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
    readers = _KINDS[kind][1]
    if not 2 <= len(parts) <= len(readers):
        raise InvalidInput(f"{text!r}: {kind} has 2 to {len(readers)} parts, not {len(parts)}")
    try:
        return Suggestion(kind, tuple(reader(part) for reader, part in zip(readers, parts, strict=False)))
    except ValueError as error:
        raise InvalidInput(f"{text!r}: {error}") from None
