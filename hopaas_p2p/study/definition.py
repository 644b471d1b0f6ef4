"""A study's definition: what was given, checked, and compared with what is stored."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import NamedTuple

from optuna.distributions import BaseDistribution

from hopaas_p2p.core import records
from hopaas_p2p.core.records import Policy, StudyDefine
from hopaas_p2p.errors import DefinitionMismatch, InvalidInput
from hopaas_p2p.storage import Storage
from hopaas_p2p.translate import to_optuna, to_record

Space = Mapping[str, BaseDistribution | records.Distribution]


class Given(NamedTuple):
    """What a caller of `open_study` said of the study. None: nothing, so what is stored holds, else the default."""

    directions: tuple[str, ...] | None
    space: Space | None
    budget: int | None
    attempts: int | None
    lease_ttl: float | None
    max_failures: int | None
    progress_timeout: float | None
    interrupted: str | None

    def said(self) -> set[str]:
        """The names of what was said."""
        return {name for name, value in self._asdict().items() if value is not None}

    def definition(self, name: str, info: dict[str, str]) -> StudyDefine:
        """The study as it is created, if it is not there.

        Raises:
            InvalidInput: no study can be like that; the message says what it can be.
        """
        default = Policy()
        policy = Policy(
            budget=_whole("budget", self.budget),
            attempts=_whole("attempts", self.attempts) or default.attempts,
            ttl=_seconds("lease_ttl", self.lease_ttl) or default.ttl,
            max_failures=_whole("max_failures", self.max_failures),
            progress_timeout=_seconds("progress_timeout", self.progress_timeout),
            interrupted=default.interrupted if self.interrupted is None else self.interrupted,
        )
        if policy.interrupted not in ("fail", "prune"):
            raise InvalidInput(f"interrupted is 'fail' or 'prune', got {policy.interrupted!r}")
        space = {key: _checked(key, value) for key, value in (self.space or {}).items()}
        return StudyDefine(name, _directions(self.directions), policy, space, info)


def _directions(given: tuple[str, ...] | None) -> tuple[str, ...]:
    directions = ("minimize",) if given is None else given
    wrong = [one for one in directions if one not in ("minimize", "maximize")]
    if wrong or not directions:
        raise InvalidInput(f"a direction is 'minimize' or 'maximize', got {wrong or 'none'}")
    return directions


def _whole(what: str, value: int | None) -> int | None:
    if value is None:
        return None
    try:
        number = operator.index(value)
    except TypeError:
        raise InvalidInput(f"{what} must be a whole number, got {value!r}") from None
    if number < 1:
        raise InvalidInput(f"{what} must be at least 1, got {number}")
    return number


def _seconds(what: str, value: float | None) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = 0.0
    if not seconds > 0:
        raise InvalidInput(f"{what} must be positive seconds, got {value!r}")
    return seconds


def _checked(name: str, given: BaseDistribution | records.Distribution) -> records.Distribution:
    """The distribution as the log writes it, if Optuna would have it."""
    try:
        distribution = as_record(given)
        to_record(to_optuna(distribution))
    except ValueError as error:
        raise InvalidInput(f"the parameter {name!r}: {error}") from None
    return distribution


def as_record(distribution: BaseDistribution | records.Distribution) -> records.Distribution:
    """As the log gives it back to others: bounds of a Float are 0.0 and 1.0, choices are a tuple, here too."""
    if isinstance(distribution, BaseDistribution):
        return to_record(distribution)
    if isinstance(distribution, records.Float):
        step = None if distribution.step is None else float(distribution.step)
        return records.Float(float(distribution.low), float(distribution.high), distribution.log, step)
    if isinstance(distribution, records.Categorical):
        return records.Categorical(tuple(distribution.choices))
    if isinstance(distribution, records.Int):
        return distribution
    raise InvalidInput(f"give a Float, Int or Categorical, got {distribution!r}")


def made_with(sampler: object, pruner: object) -> dict[str, str]:
    """The names of sampler and pruner, for people to read: they are not stored."""
    said = {"sampler": sampler, "pruner": pruner}
    return {key: type(value).__name__ for key, value in said.items() if value is not None}


def compare(storage: Storage, study_id: int, wanted: StudyDefine, said: set[str]) -> None:
    """Raise if what was said differs from what is stored; what was left out is as stored."""
    state = storage.state(study_id)
    stored = state.define
    assert stored is not None
    pairs = {
        "directions": (stored.directions, wanted.directions),
        "space": (stored.space, wanted.space),
        "budget": (stored.policy.budget, wanted.policy.budget),
        "attempts": (stored.policy.attempts, wanted.policy.attempts),
        "lease_ttl": (stored.policy.ttl, wanted.policy.ttl),
        "max_failures": (stored.policy.max_failures, wanted.policy.max_failures),
        "progress_timeout": (stored.policy.progress_timeout, wanted.policy.progress_timeout),
        "interrupted": (stored.policy.interrupted, wanted.policy.interrupted),
    }
    lines = []
    for what, (there, given) in pairs.items():
        moved = what == "budget" and given == state.budget
        if what in said and there != given and not moved:
            lines += _difference(what, there, given)
    if lines:
        raise DefinitionMismatch(
            f"the study {wanted.name!r} exists with another definition:\n"
            + "\n".join(f"  {line}" for line in lines)
            + "\nUse the stored one (leave the argument out), or choose another name."
        )


def _difference(what: str, there: object, given: object) -> list[str]:
    if not isinstance(there, dict) or not isinstance(given, dict):
        return [f"{what}: stored {there}, given {given}"]
    keys = sorted(set(there) | set(given))
    return [
        f"{what}, {key}: stored {there.get(key, 'nothing')}, given {given.get(key, 'nothing')}"
        for key in keys
        if there.get(key) != given.get(key)
    ]
