"""The sampler and pruner of commands: from the user's options, else from the study."""

from __future__ import annotations

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
        chosen = build(kind, given)
    extras.check_sampler(chosen)
    return chosen


def build(kind: str, name: str, **arguments: Any) -> Any:
    """The sampler or pruner of this name in SAMPLERS or PRUNERS, with these arguments.

    Raises:
        InvalidInput: it does not take these arguments.

    """
    import optuna

    from hopaas_p2p import pruners

    found = _KNOWN[kind][name]
    try:
        return getattr(pruners if found in pruners.__all__ else getattr(optuna, f"{kind}s"), found)(**arguments)
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidInput(f"{kind} {name}: {str(error).removeprefix(f'{found}.__init__() ')}") from None
