"""Which sampler and pruner commands use: what the user says, else what the study was created with, else a default."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from hopaas_p2p import extras
from hopaas_p2p.core.attributes import MADE_WITH, PRUNER, SAMPLER
from hopaas_p2p.errors import ConfigurationError, InvalidInput

if TYPE_CHECKING:
    from hopaas_p2p.settings import Settings
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
OWN: Final = {"sampler": SAMPLER, "pruner": PRUNER}


def configured(
    kind: str, settings: Settings, given: str | None, study: Study | None, *, warn: Callable[[str], None]
) -> Any:
    """The sampler or pruner for a command: "tpe" is ours, the others are Optuna's.

    Args:
        kind: "sampler" or "pruner".
        settings: where to look for it.
        given: the command's option.
        study: where the settings leave the default, what it uses is used.
        warn: called with a message when the study names one that cannot be used.

    Raises:
        ConfigurationError: a setting names none, or it needs a library that is not installed.

    """
    found = settings.find(kind, given)
    chosen = None
    if found.origin == "default" and study is not None:
        kept = OWN[kind] in study.state.system
        chosen = (None if kept else _of_study(study, kind, warn)) or getattr(study.optuna, kind)
    if chosen is None:
        name = _KNOWN[kind].get((found.value or "").lower())
        if name is None:
            raise ConfigurationError(
                f"{kind} = {found.value!r} ({found.origin}); choose from {', '.join(_KNOWN[kind])}"
            )
        if name == "TPESampler":
            from hopaas_p2p.samplers import default_sampler  # here, for `--help` has no use for Optuna

            chosen = default_sampler()
        else:
            chosen = _new(kind, name, {})
    extras.check_sampler(chosen)
    return chosen


def checked(kind: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """A sampler or pruner as a file gives it: the name of its class as "name", and its arguments.

    Raises:
        InvalidInput: there is none of that name, or it does not take these arguments.

    """
    arguments = {key: value for key, value in entry.items() if key not in ("name", "type")}
    name = str(entry.get("name", entry.get("type")))
    classes = {one.lower(): one for one in _KNOWN[kind].values()}
    found = _KNOWN[kind].get(name.lower()) or classes.get(name.lower())
    if found is None:
        raise InvalidInput(f"{kind} = {name!r}; choose from {', '.join(_KNOWN[kind])}")
    try:
        _new(kind, found, arguments)
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidInput(f"{kind} {name}: {str(error).removeprefix(f'{found}.__init__() ')}") from None
    return {"name": found, **arguments}


def built(kind: str, entry: Mapping[str, Any]) -> Any:
    """The sampler or pruner that `checked` has found to be possible."""
    arguments = dict(entry)
    return _new(kind, arguments.pop("name"), arguments)


def _of_study(study: Study, kind: str, warn: Callable[[str], None]) -> Any:
    """What the study was created with; None if nothing, or nothing that this version can use.

    Any user with write access may have written this: only known names and plain values are accepted.
    """
    try:
        config = json.loads(study.state.system.get(MADE_WITH, "{}"))
        if kind not in config:
            return None
        arguments = dict(config[kind])
        name = arguments.pop("name")
        if name not in _KNOWN[kind].values() or any(isinstance(one, dict | list) for one in arguments.values()):
            raise ValueError(str(config[kind])[:80])
        return _new(kind, name, arguments)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        warn(f"note: the {kind} that the study names is ignored: {type(error).__name__}: {error}")
        return None


def _new(kind: str, name: str, arguments: Mapping[str, Any]) -> Any:
    import optuna

    from hopaas_p2p import pruners

    theirs = getattr(optuna, f"{kind}s")
    return getattr(pruners if kind == "pruner" and name in pruners.__all__ else theirs, name)(**arguments)
