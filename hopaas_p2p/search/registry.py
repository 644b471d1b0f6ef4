"""The stored form of samplers and pruners, which is the name of a class with plain arguments.

Anyone who may write to a store may have written this data. Only classes listed in this file are created, with arguments
that they have, of plain types and moderate size. Nothing is evaluated or unpickled. A seed is never stored, because
peers that draw the same numbers try the same configurations.
"""

from __future__ import annotations

import importlib
import inspect
import math
import warnings
from collections.abc import Mapping
from typing import Any, Final, Literal

from hopaas_p2p.errors import InvalidInput

Kind = Literal["sampler", "pruner"]
Method = dict[str, Any]
"""As in {"class": "optuna.samplers.TPESampler", "arguments": {…}}. The arguments are None if they cannot be stored."""

_CLASSES: Final[dict[str, frozenset[str]]] = {
    "sampler": frozenset(
        {
            "hopaas_p2p.samplers.CmaEsSampler",
            "hopaas_p2p.samplers.TPESampler",
            "optuna.samplers.BruteForceSampler",
            "optuna.samplers.GPSampler",
            "optuna.samplers.NSGAIIISampler",
            "optuna.samplers.NSGAIISampler",
            "optuna.samplers.QMCSampler",
            "optuna.samplers.RandomSampler",
            "optuna.samplers.TPESampler",
        }
    ),
    "pruner": frozenset(
        {
            "hopaas_p2p.pruners.MedianPruner",
            "hopaas_p2p.pruners.PercentilePruner",
            "hopaas_p2p.pruners.SuccessiveHalvingPruner",
            "optuna.pruners.HyperbandPruner",
            "optuna.pruners.MedianPruner",
            "optuna.pruners.NopPruner",
            "optuna.pruners.PercentilePruner",
            "optuna.pruners.SuccessiveHalvingPruner",
            "optuna.pruners.ThresholdPruner",
        }
    ),
}
SAMPLERS: Final = {
    "tpe": "hopaas_p2p.samplers.default_sampler",
    "random": "optuna.samplers.RandomSampler",
    "gp": "optuna.samplers.GPSampler",
    "cmaes": "hopaas_p2p.samplers.CmaEsSampler",
    "qmc": "optuna.samplers.QMCSampler",
    "nsgaii": "optuna.samplers.NSGAIISampler",
    "grid": "optuna.samplers.BruteForceSampler",
}
"""The words for samplers on the command line and in sweeps."""
PRUNERS: Final = {
    "median": "hopaas_p2p.pruners.MedianPruner",
    "hyperband": "optuna.pruners.HyperbandPruner",
    "halving": "hopaas_p2p.pruners.SuccessiveHalvingPruner",
    "none": "optuna.pruners.NopPruner",
}
"""The words for pruners, likewise."""
_NEVER_KEPT: Final = frozenset({"seed", "consider_prior", "warn_asynchronous_seeding"})  # the last two have no effect
_REQUIRED: Final = {"PercentilePruner": {"percentile": 50.0}, "ThresholdPruner": {"lower": 0.0}}
_RENAMED: Final = {"deterministic_objective": "_deterministic"}
_INNER: Final = ("_parzen_estimator_parameters", "_child_generation_strategy", "_elite_population_selection_strategy")
_OBJECTS: Final = ("Callable", "Base", "ndarray", "Mapping")
"""Words in the annotation of an argument that takes a function or another object."""
_WORDS: Final = ("str", "Literal")
_LARGEST: Final = 1_000_000  # integer, such as a number of candidates or a population
_LONGEST: Final = 100  # characters
_MISSING: Final = object()


def build(word: str, **arguments: Any) -> Any:
    """The sampler or pruner that a word means, with these arguments.

    Raises:
        InvalidInput: the sampler or pruner does not take these arguments.

    """
    try:
        return _class({**SAMPLERS, **PRUNERS}[word])(**arguments)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{word}: {error}") from None


def make(kind: Kind, method: Mapping[str, Any]) -> Any:
    """The sampler or pruner that a study names.

    Raises:
        InvalidInput: there is no such class, it does not take these arguments, or they cannot be stored.

    """
    name = str(method.get("class"))
    if name not in _CLASSES[kind]:
        raise InvalidInput(f"{kind} = {name[:80]!r}; choose from {', '.join(sorted(_CLASSES[kind]))}")
    if method.get("arguments") is None:
        raise InvalidInput(f"the arguments of the {kind} {name} cannot be stored with a study; give it as an object")
    arguments = dict(method["arguments"])
    cls = _class(name)
    annotations = _parameters(cls)
    for key, value in arguments.items():
        if key not in annotations or any(one in annotations[key] for one in _OBJECTS):
            raise InvalidInput(f"{kind} {name}: the argument {str(key)[:80]!r} cannot be stored")
        if not _is_plain(value) or (isinstance(value, str) and not any(one in annotations[key] for one in _WORDS)):
            raise InvalidInput(f"{kind} {name}: {key} = {str(value)[:80]!r} is not allowed")
    try:
        return _made(cls, arguments)
    except Exception as error:  # a constructor can raise anything because of its arguments
        raise InvalidInput(f"{kind} {name}: {error}") from error


def describe(kind: Kind, given: object) -> Method:
    """The stored form of a sampler or pruner.

    The arguments are None if they cannot be stored, because the class is not listed here, or an argument is a function
    or another object.
    """
    cls = type(given)
    name = next((one for one in _CLASSES[kind] if one.endswith(f".{cls.__name__}") and _class(one) is cls), None)
    if name is None:
        return {"class": f"{cls.__module__}.{cls.__qualname__}"[:_LONGEST], "arguments": None}
    required = _REQUIRED.get(cls.__name__, {})
    default = _made(cls, required)
    arguments: dict[str, Any] = {}
    for key in sorted(_parameters(cls)):
        value, usual = _argument(given, key), _argument(default, key)
        if _is_plain(value) and _is_plain(usual):
            if value != usual or key in required:
                arguments[key] = value
        elif value is not usual and (type(value) is not type(usual) or inspect.isroutine(value)):
            return {"class": name, "arguments": None}
    return {"class": name, "arguments": arguments}


def in_words(method: Mapping[str, Any] | None) -> str:
    """A sampler or pruner for people to read, as in `TPESampler(multivariate=True)`."""
    if method is None:
        return "default"
    arguments = method.get("arguments")
    inside = "…" if arguments is None else ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    short = str(method.get("class")).rpartition(".")[2]
    own = "hopaas_p2p." if str(method.get("class")).startswith("hopaas_p2p.") else ""
    return f"{own}{short}({inside})"


def _made(cls: type, arguments: Mapping[str, Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the user was warned that it is experimental when choosing it
        return cls(**arguments)


def _class(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def _parameters(cls: type) -> dict[str, str]:
    """The arguments and their annotations, including those that a class passes on to its base."""
    found: dict[str, str] = {}
    for one in cls.__mro__:
        if one is object:
            break
        if "__init__" not in vars(one):
            continue
        parameters = list(inspect.signature(one.__init__).parameters.values())[1:]  # type: ignore[misc]
        for parameter in parameters:
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                found.setdefault(parameter.name, str(parameter.annotation))
        if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
            break
    return {key: annotation for key, annotation in found.items() if key not in _NEVER_KEPT}


def _argument(made: object, key: str) -> object:
    """The value of a constructor argument, from this object's attributes."""
    for holder in (made, *[vars(made).get(inner) for inner in _INNER]):
        for name in (_RENAMED.get(key, f"_{key}"), key):
            if hasattr(holder, name):
                value = getattr(holder, name)
                if isinstance(value, float) and math.isinf(value):  # stands for an absent bound
                    return None
                return "auto" if key == "min_resource" and value is None else value
    return _MISSING


def _is_plain(value: object) -> bool:
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, int):
        return abs(value) <= _LARGEST
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, str) and len(value) <= _LONGEST
