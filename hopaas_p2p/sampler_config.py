"""Which sampler and pruner commands use: what the user says, else what the study was created with, else a default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from hopaas_p2p.errors import ConfigurationError, InvalidInput
from hopaas_p2p.runtime import extras

if TYPE_CHECKING:
    from hopaas_p2p.runtime.settings import Settings

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


def configured(kind: str, settings: Settings, given: str | None, study: Any) -> Any:
    """The sampler or pruner for a command: "tpe" is ours, the others are Optuna's.

    Args:
        kind: "sampler" or "pruner".
        settings: where to look for it.
        given: the command's option.
        study: a `Study`; where the settings leave the default, what it uses is used.

    Raises:
        ConfigurationError: a setting names none, or it needs a library that is not installed.

    """
    found = settings.find(kind, given)
    if found.origin == "default" and study is not None:
        chosen = getattr(study, kind)
    else:
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


def _new(kind: str, name: str, arguments: Mapping[str, Any]) -> Any:
    import optuna

    from hopaas_p2p import pruners

    theirs = getattr(optuna, f"{kind}s")
    return getattr(pruners if kind == "pruner" and name in pruners.__all__ else theirs, name)(**arguments)
