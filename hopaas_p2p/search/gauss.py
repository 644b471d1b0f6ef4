"""Masses of the standard normal distribution, with numpy alone."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from hopaas_p2p.analysis.table import Floats

_RULES: Final = ((0.05, np.polynomial.legendre.leggauss(3)), (1.0, np.polynomial.legendre.leggauss(8)))
"""(largest cell width in standard deviations, Gauss-Legendre quadrature that is exact to 1e-15 up to it)."""
_NARROW: Final = _RULES[-1][0]
_LOG_CONSTANT: Final = math.log(math.sqrt(2 * math.pi))
_ERFC: Final = np.frompyfunc(math.erfc, 1, 1)
_FAR: Final = 24.0  # standard deviations: the mass beyond is below 1e-126, and is neglected
_ALL: Final = 9.0  # standard deviations: the mass beyond is below 1e-18
_SERIES: Final = 35.0  # from here on the series is exact to 1e-12, and erfc soon underflows


def log_normal(z: Floats) -> Floats:
    """The logarithm of the standard normal density."""
    return -(z**2) / 2 - _LOG_CONSTANT


def range_mass(left: Any, right: Any) -> Floats:
    """The mass between any two points, `left` below `right`."""
    left, right = np.broadcast_arrays(np.asarray(left, np.float64), np.asarray(right, np.float64))
    # Fold to the left tail, where the subtracted masses are small.
    flipped = left > 0
    low, high = np.where(flipped, -right, left), np.where(flipped, -left, right)
    central = high > 0
    mass = np.empty(left.shape)
    mass[central] = 1 - _half_erfc(-low[central]) - _half_erfc(high[central])
    mass[~central] = _half_erfc(-high[~central]) - _half_erfc(-low[~central])
    return mass


def _half_erfc(z: Floats) -> Floats:
    """The mass above z."""
    return np.asarray(_ERFC(z / math.sqrt(2)), np.float64) / 2


def _tail(z: Floats) -> Floats:
    """The mass above z, or 0 where the mass below z rounds to 1."""
    mass = np.zeros(z.shape)
    near = z < _ALL
    mass[near] = _half_erfc(z[near])
    return mass


def log_range_mass(left: Any, right: Any) -> Floats:
    """The logarithm of `range_mass`, exact even where `range_mass` would underflow."""
    left, right = np.broadcast_arrays(np.asarray(left, np.float64), np.asarray(right, np.float64))
    partial = ~((left <= -_ALL) & (right >= _ALL))
    found = np.zeros(left.shape)
    found[partial] = _log_part(left[partial], right[partial])
    return found


def _log_part(left: Floats, right: Floats) -> Floats:
    flipped = left > 0
    low, high = np.where(flipped, -right, left), np.where(flipped, -left, right)
    central = high > 0
    found = np.empty(left.shape)
    found[central] = np.log1p(-_tail(-low[central]) - _tail(high[central]))
    larger, smaller = _log_upper(-high[~central]), _log_upper(-low[~central])
    found[~central] = larger + np.log1p(-np.exp(smaller - larger))
    return found


def _log_upper(z: Floats) -> Floats:
    """The logarithm of the mass above z >= 0; far out by the asymptotic series of erfc."""
    near = z < _SERIES
    found = np.empty(z.shape)
    found[near] = np.log(_half_erfc(z[near]))
    far = z[~near]
    inverse = far**-2.0
    series = -inverse * (1 - inverse * (3 - inverse * (15 - inverse * 105)))
    found[~near] = log_normal(far) - np.log(far) + np.log1p(series)
    return found


def cell_mass(left: Floats, right: Floats) -> Floats:
    """The mass of cells; fast if most of them are narrow or far away."""
    width = right - left
    near = (left < _FAR) & (right > -_FAR)
    narrow = near & (width < _NARROW)
    mass = np.zeros(width.shape)
    mass[narrow] = _quadrature(left[narrow], width[narrow])
    mass[near & ~narrow] = range_mass(left[near & ~narrow], right[near & ~narrow])
    return mass


def _quadrature(left: Floats, width: Floats) -> Floats:
    widest = width.max(initial=0)
    nodes, weights = next(rule for limit, rule in _RULES if widest <= limit)
    half = width / 2
    middle = left + half
    total = np.zeros(len(half))
    for node, weight in zip(nodes, weights, strict=True):
        total += weight * np.exp(-((middle + node * half) ** 2) / 2)
    return np.asarray(total * half / math.sqrt(2 * math.pi))
