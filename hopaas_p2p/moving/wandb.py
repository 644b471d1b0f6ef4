"""Sweeps of Weights & Biases, as their YAML files describe them: https://docs.wandb.ai/models/sweeps/sweep-config-keys."""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Iterator, Mapping
from typing import Any, Final

from hopaas_p2p.core.records import Categorical, Distribution, Float, Int
from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.moving.descriptions import StudyDescription
from hopaas_p2p.runtime.settings import is_one_line
from hopaas_p2p.spec.space import check_keys, choices, mapping, number

_KEYS: Final = {
    *("method", "metric", "parameters", "early_terminate", "run_cap"),
    *("name", "description", "program", "command"),
}
_IGNORED_KEYS: Final = {"project", "entity", "controller", "parameter_type", "job", "image_uri", "imageuri"}
_METHODS: Final = {"bayes": "TPESampler", "random": "RandomSampler", "grid": "RandomSampler"}
_ENTRY: Final = {
    *("value", "values", "distribution", "probabilities", "parameters"),
    *("min", "max", "mu", "sigma", "q", "a", "b"),
}
_UNBOUNDED: Final = {"normal", "q_normal", "log_normal", "q_log_normal", "beta", "q_beta"}
_MOST_POINTS: Final = 10_000
_FINEST_GRID: Final = 1 << 53


def describe(content: Mapping[str, Any]) -> StudyDescription:
    """The study that this sweep describes.

    Raises:
        InvalidInput: part of it has no counterpart in Optuna; the message says what to write instead.

    """
    check_keys(content, _KEYS | _IGNORED_KEYS, "the sweep")
    method = content.get("method")
    if method not in _METHODS:
        raise InvalidInput(f"method = {method!r}; choose from {', '.join(_METHODS)}")
    notes: list[str] = []
    space, constants = _parameters(mapping(content.get("parameters"), "parameters"), notes)
    if not space:
        raise InvalidInput("parameters: none of them varies; at least one needs values, or min and max")
    metric, direction = _metric(content.get("metric"), method)
    budget = None if content.get("run_cap") is None else int(number(content["run_cap"], "run_cap"))
    policy: dict[str, Any] = {} if budget is None else {"budget": budget}
    grid = None
    if method == "grid":
        grid = list(itertools.islice(_points(space), budget))
        policy = {"budget": len(grid), "repeats": "reuse"}  # so that no other point is run again for one that failed
    config = {"sampler": {"name": _METHODS[method]}}
    if content.get("early_terminate") is not None:
        config["pruner"] = _pruner(mapping(content["early_terminate"], "early_terminate"))
    return StudyDescription(
        name=None if content.get("name") is None else str(content["name"]),
        directions=(direction,),
        metric_names=None if metric is None else (metric,),
        space=space,
        policy=policy,
        sampler_config=config,
        grid=grid,
        user_attrs=constants | ({"description": content["description"]} if content.get("description") else {}),
        notes=tuple(notes),
        command=_command(content, space, constants),
    )


def _metric(given: Any, method: str) -> tuple[str | None, str]:
    if given is None:
        if method == "bayes":
            raise InvalidInput("metric: the method bayes needs one, with name and goal")
        return None, "minimize"
    metric = mapping(given, "metric")
    check_keys(metric, {"name", "goal", "target"}, "metric")
    goal = metric.get("goal", "minimize")
    if goal not in ("minimize", "maximize"):
        raise InvalidInput(f"metric, goal = {goal!r}: minimize or maximize")
    name = metric.get("name")
    return None if name is None else str(name), goal


def _parameters(
    entries: Mapping[str, Any], notes: list[str], prefix: str = ""
) -> tuple[dict[str, Distribution], dict[str, Any]]:
    """The search space and the constants; nested parameters by their path."""
    space: dict[str, Distribution] = {}
    constants: dict[str, Any] = {}
    for key, value in entries.items():
        name = f"{prefix}{key}"
        if not is_one_line(name):
            raise InvalidInput(f"the parameter {name!r}: a name has no line break or other control character in it")
        entry = mapping(value, f"the parameter {name!r}")
        check_keys(entry, _ENTRY, f"the parameter {name!r}")
        if "parameters" in entry:
            below, fixed = _parameters(mapping(entry["parameters"], f"the parameter {name!r}"), notes, f"{name}.")
            space |= below
            constants |= fixed
        elif "value" in entry:
            constants[name] = entry["value"]
        else:
            space[name] = _distribution(name, entry)
            if str(entry.get("distribution")).startswith("q_log") and entry.get("q", 1) != 1:
                notes.append(f"the grid of {name!r} is left out: Optuna's log ranges have none; let the job round")
            if "probabilities" in entry:
                notes.append(f"the probabilities of {name!r} are left out: the sampler learns which values are good")
    return space, constants


def _distribution(name: str, entry: Mapping[str, Any]) -> Distribution:
    what = f"the parameter {name!r}"
    kind = entry.get("distribution")
    if "values" in entry:
        if kind not in (None, "categorical", "categorical_w_probabilities"):
            raise InvalidInput(f"{what}: values are categorical, not {kind}")
        return choices(entry["values"], f"{what}, values")
    if kind in _UNBOUNDED:
        raise InvalidInput(f"{what}: Optuna draws from bounded ranges, not from {kind}; {_instead(entry)}")
    low, high = (number(entry.get(bound), f"{what}, {bound}") for bound in ("min", "max"))
    if kind is None:
        kind = "int_uniform" if isinstance(low, int) and isinstance(high, int) else "uniform"
    q = number(entry.get("q", 1), f"{what}, q")
    if low > high or not q > 0:
        raise InvalidInput(f"{what}: min = {low} to max = {high} with q = {q} is not a range")
    if kind in ("int_uniform", "uniform"):
        return Int(int(low), int(high)) if kind == "int_uniform" else Float(float(low), float(high))
    return _on_grid(low, high, q) if kind == "q_uniform" else _log_range(what, str(kind), low, high, q)


def _on_grid(low: float, high: float, q: float) -> Distribution:
    """Rounded to multiples of q, as W&B does it."""
    if not (abs(low) + abs(high)) / q <= _FINEST_GRID:
        raise InvalidInput(f"min = {low} to max = {high} has too many multiples of q = {q}; leave q out")
    first, last = round(low / q), round(high / q)
    if float(q).is_integer():
        return Int(first * int(q), last * int(q), step=int(q))
    return Float(_clean(first * q), _clean(last * q), step=float(q))


def _log_range(what: str, kind: str, low: float, high: float, q: float) -> Distribution:
    plain = kind.removesuffix("_values")
    if plain not in ("log_uniform", "inv_log_uniform", "q_log_uniform"):
        raise InvalidInput(f"{what}: W&B has no distribution {kind!r}")
    if plain == kind:  # the bounds are exponents
        exponents = (-high, -low) if kind == "inv_log_uniform" else (low, high)
        try:
            low, high = map(math.exp, exponents)
        except OverflowError:
            raise InvalidInput(
                f"{what}: e^{max(exponents)} is not a number; for plain bounds use log_uniform_values"
            ) from None
    if plain == "q_log_uniform" and float(q).is_integer():
        if low < 0.5:
            raise InvalidInput(f"{what}: a logarithmic range of whole numbers begins at 1 or above")
        return Int(max(1, round(low)), round(high), log=True)
    if low <= 0:
        raise InvalidInput(f"{what}: a logarithm needs min > 0, got {low}")
    return Float(float(low), float(high), log=True)


def _clean(value: float) -> float:
    return float(f"{value:.12g}")  # 3 * 0.1 is meant to be 0.3


def _instead(entry: Mapping[str, Any]) -> str:
    mu, sigma = entry.get("mu", 0), entry.get("sigma", 1)
    try:
        low, high = mu - 2 * sigma, mu + 2 * sigma
    except TypeError:
        low, high = -2, 2
    kind = str(entry.get("distribution"))
    if kind.endswith("beta"):
        return "write distribution: uniform, min: 0, max: 1"
    return f"write for example distribution: {kind.replace('normal', 'uniform')}, min: {low:g}, max: {high:g}"


def _points(space: Mapping[str, Distribution]) -> Iterator[dict[str, Any]]:
    """Every point of the grid, in the order of the file."""
    count = math.prod(_count(name, one) for name, one in space.items())
    if count > _MOST_POINTS:
        many = f"{count:,}" if count < 1 << 63 else "very many"
        raise InvalidInput(f"a grid of {many} points; at most {_MOST_POINTS:,}. Use method: random, with a run_cap")
    axes = [[_value(one, index) for index in range(_count(name, one))] for name, one in space.items()]
    return (dict(zip(space, point, strict=True)) for point in itertools.product(*axes))


def _count(name: str, one: Distribution) -> int:
    """How many values a grid has of it."""
    if isinstance(one, Categorical):
        return len(one.choices)
    if one.log or one.step is None:
        raise InvalidInput(f"the parameter {name!r}: a grid needs values, or whole numbers, or a q")
    if isinstance(one, Int):
        return (one.high - one.low) // one.step + 1
    return int((one.high - one.low) / one.step + 1e-9) + 1


def _value(one: Distribution, index: int) -> Any:
    if isinstance(one, Categorical):
        return one.choices[index]
    value = one.low + index * (one.step or 0)
    return value if isinstance(one, Int) else _clean(value)


def _pruner(given: Mapping[str, Any]) -> dict[str, Any]:
    """W&B's hyperband has a single ladder of rungs, which Optuna calls successive halving."""
    check_keys(given, {"type", "min_iter", "max_iter", "s", "eta", "strict"}, "early_terminate")
    if given.get("type") != "hyperband":
        raise InvalidInput(f"early_terminate, type = {given.get('type')!r}; there is hyperband")
    eta = int(number(given.get("eta", 3), "early_terminate, eta"))
    if "min_iter" in given:
        first = int(number(given["min_iter"], "early_terminate, min_iter"))
    elif "max_iter" in given:
        rungs = int(number(given.get("s", 0), "early_terminate, s"))
        first = max(1, int(number(given["max_iter"], "early_terminate, max_iter")))
        while rungs > 0 and first > 1 < eta:
            first, rungs = max(1, first // eta), rungs - 1
    else:
        raise InvalidInput("early_terminate: hyperband needs min_iter, or max_iter and s")
    if eta < 2 or first < 1:
        raise InvalidInput(f"early_terminate: eta must be at least 2 and min_iter at least 1, got {eta} and {first}")
    return {"name": "SuccessiveHalvingPruner", "min_resource": first, "reduction_factor": eta}


def _command(content: Mapping[str, Any], space: Mapping[str, Distribution], constants: Mapping[str, Any]) -> str:
    """The command for workers: the sweep's, or W&B's default, with our placeholders."""
    program = str(content.get("program", "train.py"))
    arguments = {**{name: str(value) for name, value in constants.items()}, **{name: f"{{{name}}}" for name in space}}
    hyphens = [f"--{name}={value}" for name, value in arguments.items()]
    macros = {
        "${env}": [],  # a worker's command needs no /usr/bin/env in front
        "${interpreter}": ["python"] if program.endswith(".py") else [],
        "${program}": [program],
        "${args}": hyphens,
        "${args_no_boolean_flags}": hyphens,
        "${args_no_hyphens}": [word.removeprefix("--") for word in hyphens],
    }
    template = content.get("command", ["${interpreter}", "${program}", "${args}"])
    if not isinstance(template, list):
        raise InvalidInput(f"command = {template!r}: give a list of words")
    words = [word for part in template for word in macros.get(str(part), [str(part)])]
    return shlex.join(words)
