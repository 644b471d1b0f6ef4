"""The scrambled Halton sequence, whose points are evenly spread. Every peer can compute any point by itself.

In each dimension, the number of the point is written in a different prime base. Its digits, permuted according to the
seed and reversed, are the digits of the coordinate (Owen, arXiv:1706.02808).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from hopaas_p2p.search.cmaes import value_at

_BASES: Final = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53)
DIMENSIONS: Final = len(_BASES)
_PRECISION: Final = 1e-12


@lru_cache(4096)
def _permutation(base: int, digit: int, seed: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng((seed, base, digit)).permutation(base).tolist())


def coordinate(number: int, dimension: int, seed: int) -> float:
    """The coordinate of the point with this number in a dimension, from 0 to 1."""
    base = _BASES[dimension]
    place, size, digit = 0.0, 1.0, 0
    while size > _PRECISION:
        number, remainder = divmod(number, base)
        size /= base
        place += _permutation(base, digit, seed)[remainder] * size
        digit += 1
    return min(place, 1 - _PRECISION)


def value(number: int, dimension: int, seed: int, distribution: BaseDistribution) -> Any:
    """The value of a parameter at the point with this number, in this dimension."""
    place = coordinate(number, dimension, seed)
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(place * len(distribution.choices))]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return value_at(distribution, place)
