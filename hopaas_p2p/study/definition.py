"""A study's definition: what was given, checked, and compared with what is stored."""

from __future__ import annotations

from collections.abc import Mapping

from optuna.distributions import BaseDistribution

from hopaas_p2p.core import records
from hopaas_p2p.core.records import StudyDefine
from hopaas_p2p.errors import DefinitionMismatch, InvalidInput
from hopaas_p2p.storage import Storage
from hopaas_p2p.translate import to_optuna, to_record

Space = Mapping[str, BaseDistribution | records.Distribution]


def as_record(distribution: BaseDistribution | records.Distribution) -> records.Distribution:
    """As the log gives it back to others: bounds of a Float are 0.0 and 1.0, choices are a tuple, here too."""
    if isinstance(distribution, BaseDistribution):
        return to_record(distribution)
    if isinstance(distribution, records.Float):
        step = None if distribution.step is None else float(distribution.step)
        return records.Float(float(distribution.low), float(distribution.high), distribution.log, step)
    if isinstance(distribution, records.Categorical):
        return records.Categorical(tuple(distribution.choices))
    return distribution


def made_with(sampler: object, pruner: object) -> dict[str, str]:
    """The names of sampler and pruner, for people to read: they are not stored."""
    said = {"sampler": sampler, "pruner": pruner}
    return {key: type(value).__name__ for key, value in said.items() if value is not None}


def check_definition(wanted: StudyDefine) -> None:
    """Raises InvalidInput for what no study can be like, and says what it can."""
    wrong = [one for one in wanted.directions if one not in ("minimize", "maximize")]
    if wrong or not wanted.directions:
        raise InvalidInput(f"a direction is 'minimize' or 'maximize', got {wrong or 'none'}")
    policy = wanted.policy
    if policy.budget is not None and policy.budget < 1:
        raise InvalidInput(f"budget must be at least 1, got {policy.budget}")
    if policy.attempts < 1:
        raise InvalidInput(f"attempts must be at least 1, got {policy.attempts}")
    if not policy.ttl > 0:
        raise InvalidInput(f"lease_ttl must be positive seconds, got {policy.ttl}")
    if policy.interrupted not in ("fail", "prune"):
        raise InvalidInput(f"interrupted is 'fail' or 'prune', got {policy.interrupted!r}")
    for name, one in wanted.space.items():
        try:
            to_record(to_optuna(one))
        except ValueError as error:
            raise InvalidInput(f"the parameter {name!r}: {error}") from None


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
