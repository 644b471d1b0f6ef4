"""Parameters that the sampler chooses, as objects or in the text form that the original sent to its server."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from hopaas_p2p.core import records
from hopaas_p2p.errors import InvalidInput

PREFIX: Final = "optuna#"
_TEXT: Final = re.compile(r"optuna#(\w+)\((.*)\)", re.DOTALL)


def Int(min: int, max: int, step: int = 1, log: bool = False) -> records.Int:
    """A whole number in [min, max], on a grid of `step`, or log-uniform."""
    return records.Int(int(min), int(max), bool(log), int(step))


def Float(min: float, max: float, step: float | None = None, log: bool = False) -> records.Float:
    """A real number in [min, max]. The original had neither `step` nor `log`."""
    return records.Float(float(min), float(max), bool(log), None if step is None else float(step))


def Uniform(min: float, max: float) -> records.Float:
    """A real number in [min, max]."""
    return Float(min, max)


def LogUniform(low: float, high: float) -> records.Float:
    """A positive number in [low, high], uniform in its logarithm."""
    return Float(low, high, log=True)


def DiscreteUniform(low: float, high: float, q: float = 1.0) -> records.Float:
    """One of the numbers low, low + q, … up to high. The original ignored `q`."""
    return Float(low, high, q)


def Categorical(choices: Sequence[Any]) -> records.Categorical:
    """One of these choices, which are strings, numbers, booleans or None. In the text form, all choices are strings."""
    return records.Categorical(tuple(choices))


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def _step(text: str) -> float | None:
    return None if text in ("", "None", "null") else float(text)


_KINDS: Final[dict[str, tuple[Callable[..., records.Distribution], tuple[Callable[[str], Any], ...]]]] = {
    "float": (Float, (float, float, _step, _truth)),
    "int": (Int, (int, int, int, _truth)),
    "uniform": (Uniform, (float, float)),
    "loguniform": (LogUniform, (float, float)),
    "discrete_uniform": (DiscreteUniform, (float, float, float)),
}
"""For each kind, its distribution, and the functions that read the parts of its text form. The first two parts are
required."""


def parse(text: str) -> records.Distribution:
    """The suggestion in a string such as `optuna#float(0,1)`.

    Raises:
        InvalidInput: the string is not a suggestion.

    """
    match = _TEXT.fullmatch(text.strip())
    kind, parts = (match[1], [part.strip() for part in match[2].split(",")]) if match else ("", [])
    if kind == "categorical":
        return Categorical(parts)
    if kind not in _KINDS:
        known = ", ".join([*_KINDS, "categorical"])
        raise InvalidInput(f"{text!r} is not a suggestion; write optuna#KIND(…) with one of {known}")
    make, readers = _KINDS[kind]
    if not 2 <= len(parts) <= len(readers):
        raise InvalidInput(f"{text!r}: {kind} has 2 to {len(readers)} parts, not {len(parts)}")
    try:
        return make(*(reader(part) for reader, part in zip(readers, parts, strict=False)))
    except ValueError as error:
        raise InvalidInput(f"{text!r}: {error}") from None
