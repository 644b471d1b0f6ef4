"""What a file may say of a study, and the keys that say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from hopaas_p2p import sampler_config
from hopaas_p2p.core.fidelity import Fidelity
from hopaas_p2p.core.records import Budget, Distribution
from hopaas_p2p.spec import fidelity
from hopaas_p2p.spec.budget import budget_of
from hopaas_p2p.spec.space import check_keys, distribution_of, mapping, number

_POLICY: Final = ("budget", "attempts", "max_failures", "lease_ttl", "replicates", "repeats", "fidelity")
_KEYS: Final = (
    *("name", "direction", "directions", "metric_names", "space", "sampler", "pruner", "user_attrs"),
    *_POLICY,
)


class StudyDescription(NamedTuple):
    """A study as a file describes it. None: the file does not say."""

    name: str | None = None
    directions: tuple[str, ...] | None = None
    metric_names: tuple[str, ...] | None = None
    space: dict[str, Distribution] = {}
    policy: dict[str, Any] = {}
    """budget, attempts, max_failures, lease_ttl, replicates, repeats, fidelity, as `open_study` takes them."""
    sampler_config: dict[str, dict[str, Any]] = {}
    """As `hopaas_p2p.sampler_config.checked` gives it."""
    grid: list[dict[str, Any]] | None = None
    """Every point of a grid search."""
    user_attrs: dict[str, Any] = {}
    notes: tuple[str, ...] = ()
    """What the user should know: what was left out."""
    command: str = ""
    """The command of a trial, for `hopaas-p2p worker`."""


def describe(given: Mapping[str, Any]) -> StudyDescription:
    """The study that these keys describe.

    Raises:
        InvalidInput: a key or a value that is not allowed.

    """
    check_keys(given, _KEYS, "the file")
    directions = given.get("directions", given.get("direction"))
    listed = [directions] if isinstance(directions, str) else directions
    space = mapping(given.get("space", {}), "space")
    names = given.get("metric_names")
    return StudyDescription(
        name=None if given.get("name") is None else str(given["name"]),
        directions=None if listed is None else tuple(str(one) for one in listed),
        metric_names=None if names is None else tuple(str(one) for one in names),
        space={str(name): distribution_of(str(name), one) for name, one in space.items()},
        policy={key: _policy_value(key, given[key]) for key in _POLICY if key in given},
        sampler_config={
            kind: sampler_config.checked(kind, {"name": value} if isinstance(value, str) else mapping(value, kind))
            for kind in ("sampler", "pruner")
            if (value := given.get(kind)) is not None
        },
        user_attrs=dict(mapping(given.get("user_attrs", {}), "user_attrs")),
    )


def _policy_value(key: str, value: Any) -> float | int | str | Budget | Fidelity | None:
    if key == "fidelity":
        return fidelity.parse(value if isinstance(value, str) else mapping(value, key))
    if key == "repeats":
        return str(value)
    if key == "budget" and isinstance(value, str | Mapping):
        return budget_of(value)
    given = number(value, key)
    return float(given) if key == "lease_ttl" else int(given)
