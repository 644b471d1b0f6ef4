"""How people write where a study's trials pause: `rungs(min=1, max=27, eta=3)` or `population(size=16, every=5)`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from hopaas_p2p.core.fidelity import Fidelity
from hopaas_p2p.core.populations import Population
from hopaas_p2p.core.rungs import Rungs
from hopaas_p2p.errors import InvalidInput

_EXAMPLES: Final = "rungs(min=1,max=27,eta=3,brackets=1) or population(size=16,every=5,max=100)"
HELP: Final = (
    "Where trials pause, and which continue: rungs(min=1,max=27,eta=3,brackets=1), "
    "population(size=16,every=5,max=100), or none."
)
_CALL: Final = re.compile(r"\s*(\w+)\s*(?:\((.*)\))?\s*", re.DOTALL)
_KINDS: Final[dict[str, type[Rungs] | type[Population]]] = {"rungs": Rungs, "population": Population}
_ALWAYS: Final = ("min", "max", "eta", "size", "every")
"""What is said even if it is the default."""
_SHARES: Final = ("quantile", "resample")


def checked(policy: object) -> Fidelity:
    """These rungs or this population, if a study may have them.

    Raises:
        InvalidInput: they are none, or impossible; the message says why.

    """
    if not isinstance(policy, Rungs | Population):
        raise InvalidInput(
            "fidelity is hopaas_p2p.Rungs(min=1, max=27, eta=3) or hopaas_p2p.Population(size=16, every=5, max=100), "
            f"got {policy!r}"
        )
    for name in policy.__struct_fields__:
        _check_type(_name_of(policy), name, getattr(policy, name))
    if isinstance(policy, Population):
        policy = msgspec.structs.replace(
            policy, fixed=tuple(policy.fixed), quantile=float(policy.quantile), resample=float(policy.resample)
        )
    wrong = policy.impossible()
    if wrong is not None:
        raise InvalidInput(f"fidelity: {wrong}")
    return policy


def _check_type(kind: str, name: str, value: object) -> None:
    if name == "fixed":
        if not isinstance(value, tuple | list) or not all(isinstance(one, str) for one in value):
            raise InvalidInput(f"fixed of the {kind} must name parameters, got {value!r}")
    elif name in _SHARES:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidInput(f"{name} of the {kind} must be a number, got {value!r}")
    elif type(value) is not int:
        raise InvalidInput(f"{name} of the {kind} must be a whole number, got {value!r}")


def _name_of(policy: Fidelity) -> str:
    return "rungs" if isinstance(policy, Rungs) else "population"


def parse(said: str | Mapping[str, Any]) -> Fidelity | None:
    """What an option or a file says; None: trials do not pause.

    Raises:
        InvalidInput: it cannot be read; the message shows how to write it.

    """
    given = _read(said) if isinstance(said, str) else dict(said)
    if given is None:
        return None
    kind = _KINDS.get(str(given.pop("type", "rungs")))
    if kind is None or not given.keys() <= set(kind.__struct_fields__):
        raise InvalidInput(f"fidelity = {said!r}; write {_EXAMPLES}")
    if isinstance(given.get("fixed"), str):
        given["fixed"] = _names(given["fixed"])
    return checked(kind(**given))


def _read(text: str) -> dict[str, Any] | None:
    found = _CALL.fullmatch(text)
    if found is None:
        raise InvalidInput(f"fidelity = {text!r}; write {_EXAMPLES}")
    kind, inside = found[1].lower(), found[2]
    if kind == "none" and not inside:
        return None
    given: dict[str, Any] = {"type": kind}
    fields = _KINDS.get(kind, Rungs).__struct_fields__
    parts = [part for part in (inside or "").split(",") if part.strip()]
    if len(parts) > len(fields):
        raise InvalidInput(f"fidelity = {text!r} has {len(parts)} values; {kind} takes {', '.join(fields)}")
    for field, part in zip(fields, parts, strict=False):
        key, equals, value = part.partition("=")
        name = key.strip() if equals else field
        if name in given:
            raise InvalidInput(f"fidelity = {text!r} says {name} twice")
        given[name] = _value(text, name, (value if equals else key).strip())
    return given


def _value(text: str, name: str, value: str) -> int | float | tuple[str, ...]:
    if name == "fixed":
        return _names(value)
    try:
        return float(value) if name in _SHARES else int(value)
    except ValueError:
        what = "number" if name in _SHARES else "whole number"
        raise InvalidInput(f"fidelity = {text!r}: {value!r} is not a {what}") from None


def _names(said: str) -> tuple[str, ...]:
    """The parameters of `layers+width`."""
    return tuple([name.strip() for name in said.split("+") if name.strip()])


def in_words(policy: Fidelity | None) -> str:
    """The policy for people: `rungs(min=1, max=27, eta=3)`, as `parse` reads it."""
    if policy is None:
        return "none"
    default = type(policy)()
    shown = [
        f"{name}={'+'.join(value) if isinstance(value, tuple) else value}"
        for name in policy.__struct_fields__
        for value in [getattr(policy, name)]
        if name in _ALWAYS or value != getattr(default, name)
    ]
    return f"{_name_of(policy)}({', '.join(shown)})"
