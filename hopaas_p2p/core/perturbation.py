"""How the parameters of a member that copies another change.

A parameter is resampled, multiplied by 0.8 or 1.2 or, if it may be negative or is 0, shifted by a tenth of its range.
The rules are those of population-based training (arXiv 1711.09846). Every replica computes the same numbers on any
machine. A draw is a hash of the study's name, the trial's number and the parameter's name. Logarithms are computed by
`decimal`, which rounds correctly, because the results of C libraries may differ in the last digit.
"""

from __future__ import annotations

import decimal
import hashlib
from collections.abc import Mapping, Sequence
from typing import Final

from hopaas_p2p.core.records import Categorical, Distribution, Float, Int

FACTORS: Final = (0.8, 1.2)
SHIFT: Final = 0.1
"""The change of a parameter that may be negative, or is 0, as a share of its range's width."""
_DECIMAL: Final = decimal.Context(prec=40)


def fraction(seed: str, *name: str) -> float:
    """A number in [0, 1) that follows from a seed and a name."""
    text = "\0".join((seed, *name))
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)


def perturbed(
    params: Mapping[str, float],
    distributions: Mapping[str, Distribution],
    *,
    resample: float,
    fixed: Sequence[str],
    seed: str,
) -> dict[str, float]:
    """The parameters after a perturbation, each within its distribution; those that are `fixed` stay as they are.

    Args:
        params: in the form of the log.
        distributions: the distribution of each parameter.
        resample: the probability that a parameter is resampled.
        fixed: the names of the parameters that do not change.
        seed: the string that determines the draws.

    """
    found = dict(params)
    for name, value in params.items():
        distribution = distributions[name]
        if name in fixed:
            continue
        if fraction(seed, name, "resample") < resample:
            found[name] = _drawn(distribution, fraction(seed, name, "value"))
        elif not isinstance(distribution, Categorical):  # choices have no order
            up = fraction(seed, name, "direction") >= 0.5
            moved = _moved(value, distribution, up=up)
            # a value at the end of its range moves the other way
            found[name] = _moved(value, distribution, up=not up) if moved == value else moved
    return found


def _moved(value: float, distribution: Float | Int, *, up: bool) -> float:
    """The next value in this direction; the same value at the end of the range."""
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


def _drawn(distribution: Distribution, share: float) -> float:
    """A value from the whole range, uniform or log-uniform."""
    if isinstance(distribution, Categorical):
        return float(int(share * len(distribution.choices)))
    low, high, step = distribution.low, distribution.high, distribution.step
    if distribution.log:
        top = high + 1 if isinstance(distribution, Int) else high
        first, last = (decimal.Decimal(bound).ln(_DECIMAL) for bound in (low, top))
        place = _DECIMAL.multiply(decimal.Decimal(share), _DECIMAL.subtract(last, first))
        value = float(_DECIMAL.add(first, place).exp(_DECIMAL))
        value = float(int(value)) if isinstance(distribution, Int) else value
        return min(max(value, float(low)), float(high))
    if step is None:
        return min(max(float(low) + share * (float(high) - float(low)), float(low)), float(high))
    last_place = _last_place(distribution)
    return _at_place(distribution, min(int(share * (last_place + 1)), last_place))


def _last_place(distribution: Float | Int) -> int:
    """The number of steps in the range."""
    if isinstance(distribution, Int):
        return (distribution.high - distribution.low) // distribution.step
    assert distribution.step is not None
    return int((distribution.high - distribution.low) / distribution.step + 1e-9)


def _at_place(distribution: Float | Int, place: int) -> float:
    assert distribution.step is not None
    return min(float(distribution.low + place * distribution.step), float(distribution.high))
