"""The sampler and pruner of commands: from the user's options, else from the study."""

from __future__ import annotations

from typing import Any, Final

from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.runtime import extras

SAMPLERS: Final = {
    "tpe": "default_sampler",
    "random": "RandomSampler",
    "gp": "GPSampler",
    "cmaes": "CmaEsSampler",
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


def configured(kind: str, given: str | None, study: Any) -> Any:
    """The "sampler" or "pruner" for a command: the one in its option, else the one of this `Study`.

    Raises:
        ConfigurationError: it needs a library that is not installed.

    """
    chosen = getattr(study, kind) if given is None else build(kind, given)
    extras.check_sampler(chosen)
    return chosen


def build(kind: str, name: str, **arguments: Any) -> Any:
    """The sampler or pruner of this name in SAMPLERS or PRUNERS, with these arguments: ours if there is one.

    Raises:
        InvalidInput: it does not take these arguments.

    """
    import optuna  # here, because `--help` does not need it

    from hopaas_p2p import pruners, samplers

    names, ours = {"sampler": (SAMPLERS, samplers), "pruner": (PRUNERS, pruners)}[kind]
    found = names[name]
    try:
        return getattr(ours if found in ours.__all__ else getattr(optuna, f"{kind}s"), found)(**arguments)
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidInput(f"{kind} {name}: {str(error).removeprefix(f'{found}.__init__() ')}") from None
