"""What a record may not say, whoever says it: values on which Optuna, or arithmetic, would raise in every peer's face.

A record is refused for them by `apply`, so that a bad one never stops a peer that only reads.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from hopaas_p2p.core.records import Categorical, Distribution, Float, Int, Policy, StudyDefine

_DIRECTIONS: Final = ("minimize", "maximize")
_LONGEST_TTL: Final = 366 * 86_400.0
_LAST_TIME: Final = 1 << 60
"""Microseconds: some 36,000 years from 1970. Differences of such times fit the columns of a snapshot."""


def possible_time(microseconds: int | None) -> bool:
    """Whether a clock may show this, even one that is wrong by millennia."""
    return microseconds is None or -_LAST_TIME < microseconds < _LAST_TIME


def possible_distributions(distributions: Iterable[Distribution]) -> bool:
    """Whether Optuna can be given all of these."""
    return all(_possible(distribution) for distribution in distributions)


def _possible(distribution: Distribution) -> bool:
    if isinstance(distribution, Categorical):
        return bool(distribution.choices)
    low, high, step = distribution.low, distribution.high, distribution.step
    if not low <= high:
        return False
    if isinstance(distribution, Int):
        return step is not None and step >= 1 and (not distribution.log or (low >= 1 and step == 1))
    return _possible_float(distribution)


def _possible_float(distribution: Float) -> bool:
    low, high, step = distribution.low, distribution.high, distribution.step
    if not (math.isfinite(low) and math.isfinite(high)):
        return False
    if step is not None and not (0 < step < math.inf and not distribution.log):
        return False
    return not distribution.log or low > 0


def possible_definition(define: StudyDefine) -> bool:
    """Whether a study can be run like that."""
    return (
        bool(define.directions)
        and all(direction in _DIRECTIONS for direction in define.directions)
        and possible_distributions(define.space.values())
        and _possible_policy(define.policy)
    )


def _possible_policy(policy: Policy) -> bool:
    timeout = policy.progress_timeout
    return (
        0 < policy.ttl <= _LONGEST_TTL
        and (policy.budget is None or policy.budget >= 0)
        and (timeout is None or timeout > 0)
        and policy.interrupted in ("fail", "prune")
    )
