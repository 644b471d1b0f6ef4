"""How people write a study's rungs: `rungs(min=1, max=27, eta=3)`, in options and in files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from hopaas_p2p.core.rungs import Rungs
from hopaas_p2p.errors import InvalidInput

HELP: Final = "Where trials pause, and the best go on: rungs(min=1,max=27,eta=3,brackets=1), or none."
_CALL: Final = re.compile(r"\s*(\w+)\s*(?:\((.*)\))?\s*", re.DOTALL)
_FIELDS: Final = Rungs.__struct_fields__


def checked(rungs: object) -> Rungs:
    """These rungs, if a study may have them.

    Raises:
        InvalidInput: they are none, or impossible; the message says why.

    """
    if not isinstance(rungs, Rungs):
        raise InvalidInput(f"fidelity is hopaas_p2p.Rungs(min=1, max=27, eta=3), got {rungs!r}")
    for name in _FIELDS:
        value = getattr(rungs, name)
        if type(value) is not int:
            raise InvalidInput(f"{name} of the rungs is a whole number, got {value!r}")
    wrong = rungs.impossible()
    if wrong is not None:
        raise InvalidInput(f"fidelity: {wrong}")
    return rungs


def parse(said: str | Mapping[str, Any]) -> Rungs | None:
    """What an option or a file says; None: no rungs.

    Raises:
        InvalidInput: it cannot be read; the message shows how to write it.

    """
    given = _read(said) if isinstance(said, str) else dict(said)
    if given is None:
        return None
    kind = str(given.pop("type", "rungs"))
    if kind != "rungs" or not given.keys() <= set(_FIELDS):
        raise InvalidInput(f"fidelity = {said!r}; write rungs(min=1,max=27,eta=3,brackets=1)")
    return checked(Rungs(**given))


def _read(text: str) -> dict[str, Any] | None:
    found = _CALL.fullmatch(text)
    if found is None:
        raise InvalidInput(f"fidelity = {text!r}; write rungs(min=1,max=27,eta=3,brackets=1)")
    kind, inside = found[1].lower(), found[2]
    if kind == "none" and not inside:
        return None
    given: dict[str, Any] = {"type": kind}
    parts = [part for part in (inside or "").split(",") if part.strip()]
    for name, part in zip(_FIELDS, parts, strict=False):
        key, equals, value = part.rpartition("=")
        try:
            given[key.strip() if equals else name] = int(value)
        except ValueError:
            raise InvalidInput(f"fidelity = {text!r}: {value.strip()!r} is not a whole number") from None
    return given


def in_words(rungs: Rungs | None) -> str:
    """The rungs for people: `rungs(min=1, max=27, eta=3)`, as `parse` reads it."""
    if rungs is None:
        return "none"
    default = Rungs()
    always = ("min", "max", "eta")
    shown = [name for name in _FIELDS if name in always or getattr(rungs, name) != getattr(default, name)]
    return f"rungs({', '.join(f'{name}={getattr(rungs, name)}' for name in shown)})"
