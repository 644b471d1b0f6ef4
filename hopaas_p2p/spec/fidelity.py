"""Reads and writes rungs and populations as text, such as `rungs(min=1, max=27, eta=3)`, and checks them."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from hopaas_p2p.core.fidelity import Fidelity, Population, Rungs
from hopaas_p2p.errors import InvalidInput

_EXAMPLES: Final = "rungs(min=1,max=27,eta=3,brackets=1) or population(size=16,every=5,max=100)"
HELP: Final = (
    "Where trials pause, and which continue: rungs(min=1,max=27,eta=3,brackets=1), "
    "population(size=16,every=5,max=100), or none."
)
_CALL: Final = re.compile(r"\s*(\w+)\s*(?:\((.*)\))?\s*", re.DOTALL)
_KINDS: Final[dict[str, type[Rungs] | type[Population]]] = {"rungs": Rungs, "population": Population}
_ALWAYS: Final = ("min", "max", "eta", "size", "every")
"""Fields that are shown even if they have the default."""
_MUST: Final = {int: "be a whole number", float: "be a number"}


def checked(policy: object) -> Fidelity:
    """The given rungs or population, after a check that they are valid for a study.

    Raises:
        InvalidInput: the policy is of another type, or invalid; the message says why.

    """
    if not isinstance(policy, Rungs | Population):
        raise InvalidInput(
            "fidelity must be hopaas_p2p.Rungs(min=1, max=27, eta=3) or Population(size=16, every=5, max=100), "
            f"got {policy!r}"
        )
    values = {}
    for one in msgspec.structs.fields(policy):
        value = getattr(policy, one.name)
        try:
            values[one.name] = msgspec.convert(value.item() if hasattr(value, "item") else value, one.type)
        except msgspec.ValidationError:
            must = _MUST.get(one.type, "name parameters")
            raise InvalidInput(f"{one.name} of the {policy.__struct_config__.tag} must {must}, got {value!r}") from None
    policy = type(policy)(**values)
    wrong = policy.impossible()
    if wrong is not None:
        raise InvalidInput(f"fidelity: {wrong}")
    return policy


def parse(said: str) -> Fidelity | None:
    """The policy that an option's text describes; None if trials do not pause.

    Raises:
        InvalidInput: the option cannot be read, or its values are invalid; the message shows how to write it, or says
            what is wrong.

    """
    found = _CALL.fullmatch(said)
    if found is None:
        raise InvalidInput(f"fidelity = {said!r}; write {_EXAMPLES}")
    given: dict[str, Any] = {"type": found[1].lower()}
    parts = [part for part in (found[2] or "").split(",") if part.strip()]
    if given["type"] == "none" and not parts:
        return None
    for part in parts:
        key, _, value = (one.strip() for one in part.partition("="))
        if key in given:
            raise InvalidInput(f"fidelity = {said!r} gives {key} twice")
        given[key] = value
    kind = _KINDS.get(given["type"])
    if kind is None or not given.keys() <= {"type", *kind.__struct_fields__}:
        raise InvalidInput(f"fidelity = {said!r}; write {_EXAMPLES}")
    if "fixed" in given:
        given["fixed"] = [name.strip() for name in given["fixed"].split("+") if name.strip()]
    try:
        return checked(msgspec.convert(given, kind, strict=False))
    except msgspec.ValidationError as error:
        raise InvalidInput(f"fidelity = {said!r}: {error}; write {_EXAMPLES}") from None


def in_words(policy: Fidelity | None) -> str:
    """The policy as a string that `parse` can read, such as `rungs(min=1, max=27, eta=3)`."""
    if policy is None:
        return "none"
    default = type(policy)()
    shown = [
        f"{name}={'+'.join(value) if isinstance(value, tuple) else value}"
        for name in policy.__struct_fields__
        for value in [getattr(policy, name)]
        if name in _ALWAYS or value != getattr(default, name)
    ]
    return f"{policy.__struct_config__.tag}({', '.join(shown)})"
