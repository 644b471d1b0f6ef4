"""Who proposes and who prunes, for commands: what the user says, else the study's file, else a default."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from hopaas_p2p.cli import output
from hopaas_p2p.errors import ConfigurationError, InvalidInput

if TYPE_CHECKING:
    from hopaas_p2p.cli.options import Session
    from hopaas_p2p.study import Study

SAMPLERS: Final = {
    "tpe": "TPESampler",
    "random": "RandomSampler",
    "gp": "GPSampler",
    "qmc": "QMCSampler",
    "nsgaii": "NSGAIISampler",
}
PRUNERS: Final = {
    "median": "MedianPruner",
    "hyperband": "HyperbandPruner",
    "halving": "SuccessiveHalvingPruner",
    "none": "NopPruner",
}
_KNOWN: Final = {"sampler": SAMPLERS, "pruner": PRUNERS}
ATTRIBUTE: Final = "hopaas:made_with"
"""System attribute of a study that was created from a file: {"sampler": {"name": …, arguments}, "pruner": …}."""


def made(session: Session, kind: str, given: str | None, study: Study | None) -> Any:
    """Optuna's sampler or pruner that this command is to use.

    Raises:
        ConfigurationError: a setting names none.

    """
    found = session.settings.find(kind, given)
    if found.origin == "default" and study is not None:
        from_file = _of_study(study, kind)
        if from_file is not None:
            return from_file
    name = _KNOWN[kind].get((found.value or "").lower())
    if name is None:
        raise ConfigurationError(f"{kind} = {found.value!r} ({found.origin}); there are {', '.join(_KNOWN[kind])}")
    return _new(kind, name, {})


def described(kind: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says of a sampler or pruner, checked: its name as Optuna's class, and arguments that it takes.

    Raises:
        InvalidInput: there is none of that name, or it does not take these arguments.

    """
    arguments = {key: value for key, value in said.items() if key not in ("name", "type")}
    name = str(said.get("name", said.get("type")))
    classes = {one.lower(): one for one in _KNOWN[kind].values()}
    found = _KNOWN[kind].get(name.lower()) or classes.get(name.lower())
    if found is None:
        raise InvalidInput(f"{kind} = {name!r}; there are {', '.join(_KNOWN[kind])}")
    try:
        _new(kind, found, arguments)
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidInput(f"{kind} {name}: {str(error).removeprefix(f'{found}.__init__() ')}") from None
    return {"name": found, **arguments}


def _of_study(study: Study, kind: str) -> Any:
    """What the study's file said; None if there was none, or nothing that this version can make of it."""
    try:
        said = json.loads(study.state.system.get(ATTRIBUTE, "{}"))
        return _new(kind, **_checked(kind, said[kind])) if kind in said else None
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        output.say(f"note: the {kind} that the study names is passed over: {type(error).__name__}: {error}")
        return None


def _checked(kind: str, said: dict[str, Any]) -> dict[str, Any]:
    """Anybody who may write to the study may have written this: names that are known, and plain values."""
    arguments = dict(said)
    name = arguments.pop("name")
    if name not in _KNOWN[kind].values() or any(isinstance(one, dict | list) for one in arguments.values()):
        raise ValueError(str(said)[:80])
    return {"name": name, "arguments": arguments}


def _new(kind: str, name: str, arguments: Mapping[str, Any]) -> Any:
    import optuna

    return getattr(getattr(optuna, f"{kind}s"), name)(**arguments)
