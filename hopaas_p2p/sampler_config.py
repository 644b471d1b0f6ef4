"""The words for samplers and pruners on the command line and in sweeps, and the objects that they stand for."""

from __future__ import annotations

import importlib
from typing import Any, Final

from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.runtime import extras

SAMPLERS: Final = {
    "tpe": "hopaas_p2p.samplers.default_sampler",
    "random": "optuna.samplers.RandomSampler",
    "gp": "optuna.samplers.GPSampler",
    "qmc": "optuna.samplers.QMCSampler",
    "nsgaii": "optuna.samplers.NSGAIISampler",
    "grid": "optuna.samplers.BruteForceSampler",
}
PRUNERS: Final = {
    "median": "hopaas_p2p.pruners.MedianPruner",
    "hyperband": "optuna.pruners.HyperbandPruner",
    "halving": "hopaas_p2p.pruners.SuccessiveHalvingPruner",
    "none": "optuna.pruners.NopPruner",
}


def configured(kind: str, given: str | None, study: Any) -> Any:
    """The "sampler" or "pruner" for a command: the one in its option, else the one of this `Study`.

    Raises:
        ConfigurationError: it needs a library that is not installed.

    """
    chosen = getattr(study, kind) if given is None else build(given)
    extras.check_sampler(chosen)
    return chosen


def build(name: str, **arguments: Any) -> Any:
    """The sampler or pruner of this name in SAMPLERS or PRUNERS, with these arguments.

    Raises:
        InvalidInput: it does not take these arguments.

    """
    module, _, attribute = {**SAMPLERS, **PRUNERS}[name].rpartition(".")
    try:  # here, because `--help` does not need Optuna
        return getattr(importlib.import_module(module), attribute)(**arguments)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{name}: {str(error).removeprefix(f'{attribute}.__init__() ')}") from None
