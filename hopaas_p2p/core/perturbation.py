"""How the parameters of a member change that copies another: by a factor of 0.8 or 1.2, or drawn anew.

As in population-based training (arXiv 1711.09846). Every replica computes the same numbers, whatever its machine: a
draw is a hash of the study's name, the trial's number and the parameter's, and logarithms are taken by `decimal`, which
rounds correctly, where the functions of two C libraries differ in their last digit.
"""

from __future__ import annotations

import decimal
import hashlib
from collections.abc import Mapping, Sequence
from typing import Final

from hopaas_p2p.core.records import Categorical, Distribution, Float, Int

FACTORS: Final = (0.8, 1.2)
SHIFT: Final = 0.1
"""Of the width of its range, for a parameter that may be negative, or is 0."""
_DECIMAL: Final = decimal.Context(prec=40)


class Draws:
    """Numbers in [0, 1) that follow from a seed and a name.

    Args:
        seed: what they depend on.

    """

    def __init__(self, *seed: str | int) -> None:
        self._seed = "\0".join(map(str, seed))

    def fraction(self, *name: str) -> float:
        """The number of this name."""
        text = "\0".join((self._seed, *name))
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return (int.from_bytes(digest, "big") >> 11) / (1 << 53)

    def pick(self, options: Sequence[int], *name: str) -> int:
        """One of these."""
        return options[int(self.fraction(*name) * len(options))]


def perturbed(
    params: Mapping[str, float],
    distributions: Mapping[str, Distribution],
    *,
    resample: float,
    fixed: Sequence[str],
    draws: Draws,
) -> dict[str, float]:
    """The parameters after a perturbation, each within its distribution; those that are `fixed` stay as they are.

    Args:
        params: in the form of the log.
        distributions: of each of them.
        resample: how likely one is drawn anew.
        fixed: the names of those that do not change.
        draws: what decides.

    """
    return {
        name: value if name in fixed else _explored(name, value, distributions[name], resample, draws)
        for name, value in params.items()
    }


def _explored(name: str, value: float, distribution: Distribution, resample: float, draws: Draws) -> float:
    if draws.fraction(name, "resample") < resample:
        return _drawn(distribution, draws.fraction(name, "value"))
    if isinstance(distribution, Categorical):  # choices have no order
        return value
    up = draws.fraction(name, "direction") >= 0.5
    moved = _moved(value, distribution, up=up)
    return _moved(value, distribution, up=not up) if moved == value else moved  # it was at the end of its range


def _moved(value: float, distribution: Float | Int, *, up: bool) -> float:
    """The next value in this direction; the same at the end of the range."""
    low, high = distribution.low, distribution.high
    if low >= 0 and value > 0:
        target = value * FACTORS[up]
    else:
        shift = SHIFT * (float(high) - float(low))
        target = value + shift if up else value - shift
    target = min(max(target, float(low)), float(high))
    step = distribution.step
    if step is None:
        return target
    place, last = round((value - low) / step), _last_place(distribution)
    to = round((target - low) / step)
    to = max(to, place + 1) if up else min(to, place - 1)
    return _at_place(distribution, min(max(to, 0), last))


def _drawn(distribution: Distribution, fraction: float) -> float:
    """A value from the whole range, evenly or in the logarithm."""
    if isinstance(distribution, Categorical):
        return float(int(fraction * len(distribution.choices)))
    low, high, step = distribution.low, distribution.high, distribution.step
    if distribution.log:
        value = _between_logarithms(low, high + 1 if isinstance(distribution, Int) else high, fraction)
        value = float(int(value)) if isinstance(distribution, Int) else value
        return min(max(value, float(low)), float(high))
    if step is None:
        return min(max(float(low) + fraction * (float(high) - float(low)), float(low)), float(high))
    last = _last_place(distribution)
    return _at_place(distribution, min(int(fraction * (last + 1)), last))


def _between_logarithms(low: float, high: float, fraction: float) -> float:
    first, last = (decimal.Decimal(bound).ln(_DECIMAL) for bound in (low, high))
    width = _DECIMAL.subtract(last, first)
    place = _DECIMAL.add(first, _DECIMAL.multiply(decimal.Decimal(fraction), width))
    return float(place.exp(_DECIMAL))


def _last_place(distribution: Float | Int) -> int:
    """The number of steps in the range."""
    if isinstance(distribution, Int):
        return (distribution.high - distribution.low) // distribution.step
    assert distribution.step is not None
    return int((distribution.high - distribution.low) / distribution.step + 1e-9)


def _at_place(distribution: Float | Int, place: int) -> float:
    assert distribution.step is not None
    return min(float(distribution.low + place * distribution.step), float(distribution.high))
