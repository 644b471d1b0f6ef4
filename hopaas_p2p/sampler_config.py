"""The sampler and pruner of commands: from the user's options, else from the study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.runtime import extras

SAMPLERS: Final = {
    "tpe": "TPESampler",
    "random": "RandomSampler",
    "gp": "GPSampler",
    "qmc": "QMCSampler",
    "nsgaii": "NSGAIISampler",
    "grid": "BruteForceSampler",
}
PRUNERS: Final = {
    "median": "MedianPruner",
    "hyperband": "HyperbandPruner",
    "halving": "SuccessiveHalvingPruner",
    "none": "NopPruner",
}
_KNOWN: Final = {"sampler": SAMPLERS, "pruner": PRUNERS}


def configured(kind: str, given: str | None, study: Any) -> Any:
    """The "sampler" or "pruner" for a command: the one in its option, else the one of this `Study`.

    "tpe" is ours, the others are Optuna's.

    Raises:
        ConfigurationError: it needs a library that is not installed.

    """
    if given is None:
        chosen = getattr(study, kind)
    elif given == "tpe":
        from hopaas_p2p.samplers import default_sampler  # here, because `--help` does not need Optuna

        chosen = default_sampler()
    else:
        chosen = build(kind, {"name": given})
    extras.check_sampler(chosen)
    return chosen


def build(kind: str, entry: Mapping[str, Any]) -> Any:
    """The sampler or pruner of an entry in a file: the name of its class as "name", and its arguments.

    Raises:
        InvalidInput: there is no such class, or it does not take these arguments.

    """
    arguments = {key: value for key, value in entry.items() if key not in ("name", "type")}
    name = str(entry.get("name", entry.get("type")))
    classes = {one.lower(): one for one in _KNOWN[kind].values()}
    found = _KNOWN[kind].get(name.lower()) or classes.get(name.lower())
    if found is None:
        raise InvalidInput(f"{kind} = {name!r}; choose from {', '.join(_KNOWN[kind])}")
    import optuna

    from hopaas_p2p import pruners

    theirs = getattr(optuna, f"{kind}s")
    try:
        return getattr(pruners if found in pruners.__all__ else theirs, found)(**arguments)
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidInput(f"{kind} {name}: {str(error).removeprefix(f'{found}.__init__() ')}") from None
