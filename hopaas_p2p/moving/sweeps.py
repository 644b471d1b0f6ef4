"""Reads sweeps of Weights & Biases, for `study create --from-yaml`.

See https://docs.wandb.ai/models/sweeps/sweep-config-keys.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from hopaas_p2p.core.records import Budget, Distribution, Float, Int
from hopaas_p2p.errors import InvalidInput, explained
from hopaas_p2p.runtime.atomic import read_regular
from hopaas_p2p.runtime.settings import is_one_line
from hopaas_p2p.search.registry import build
from hopaas_p2p.spec.budget import budget_of
from hopaas_p2p.spec.space import check_keys, choices, mapping, number

_SWEEP: Final = {
    *("method", "program", "metric", "early_terminate", "run_cap", "parameters", "name", "description", "command")
}
_IGNORED: Final = {"project", "entity", "controller", "parameter_type", "job", "image_uri", "imageuri"}
_METHODS: Final = {"bayes": "tpe", "random": "random", "grid": "grid"}
_FINEST_GRID: Final = 1 << 53
_LARGEST: Final = 1 << 20
"""The largest file, in bytes; a megabyte takes seconds to read."""
_MOST_VALUES: Final = 100_000
_LONGEST_PLAIN: Final = 1000
"""The longest value without quotes, or with a tag, in characters, because YAML may parse it as a number."""


class StudyDescription(NamedTuple):
    """A study as a sweep describes it. A field that the file lacks is None, empty or W&B's default."""

    name: str | None = None
    directions: tuple[str, ...] | None = None
    metric: str | None = None
    """The objective's name."""
    space: dict[str, Distribution] = {}
    budget: Budget | None = None
    search: dict[str, Any] = {}
    """The sampler and the pruner."""
    user_attrs: dict[str, Any] = {}
    command: str = ""
    """The command to run once per trial, for `hopaas-p2p worker`."""


def read(path: Path) -> StudyDescription:
    """The study that this file describes.

    Raises:
        InvalidInput: the file cannot be read, or asks for something unsupported; the message is one line that shows
            where.

    """
    content = _yaml(path)
    if not isinstance(content, dict) or not content:
        raise InvalidInput(f"{path}: not a mapping of keys such as method, metric and parameters")
    try:
        return _sweep(content)
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from None


def _yaml(path: Path) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Reads 1e-5 as a number, as YAML 1.2 does. Limits the number of values that anchors stand for, and the length
        of what may be a number.
        """

        def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            number = event.tag or (event.implicit[0] and " " not in event.value)
            if len(event.value) > _LONGEST_PLAIN and number:
                problem = f"a value of {len(event.value):,} characters must be text in quotes"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
            return super().compose_scalar_node(anchor)

        def get_single_node(self) -> yaml.Node | None:
            root = super().get_single_node()
            if root is not None and _size(root, {}) > _MOST_VALUES:
                raise ValueError(f"its anchors and aliases expand to more than {_MOST_VALUES:,} values")
            return root

    def _size(node: yaml.Node, known: dict[int, int]) -> int:
        """The number of values from this node on; more than `_MOST_VALUES` for a node that contains itself."""
        found = known.get(id(node))
        if found is None:
            known[id(node)] = _MOST_VALUES + 1  # while it is being counted
            parts = node.value if isinstance(node, yaml.CollectionNode) else ()
            below = itertools.chain.from_iterable(part if isinstance(part, tuple) else (part,) for part in parts)
            found = known[id(node)] = 1 + sum(_size(one, known) for one in below)
        return found

    floats = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", floats, list("-+.0123456789"))
    with explained(f"{path} cannot be read", kind=InvalidInput):
        text = read_regular(path, limit=_LARGEST, named=True).decode()
    try:
        return yaml.load(text, Loader)  # noqa: S506  # a SafeLoader
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line, problem = (f", line {mark.line + 1}", error.problem) if mark else ("", error)  # type: ignore[union-attr]
        raise InvalidInput(f"{path}{line}: {' '.join(str(problem).split())[:200]}") from None


def _sweep(content: Mapping[str, Any]) -> StudyDescription:
    """The study that a sweep describes; keys without a counterpart in Optuna are refused."""
    check_keys(content, _SWEEP | _IGNORED, "the sweep")
    method, metric = content.get("method"), mapping(content.get("metric") or {}, "metric")
    if not isinstance(method, str) or method not in _METHODS:
        raise InvalidInput(f"method = {method!r}; choose from {', '.join(_METHODS)}")
    check_keys(metric, {"name", "goal", "target"}, "metric")
    goal = metric.get("goal", "minimize")
    if goal not in ("minimize", "maximize"):
        raise InvalidInput(f"metric, goal = {goal!r}; choose from minimize, maximize")
    entries = dict(_parameters(mapping(content.get("parameters"), "parameters")))
    constants = {name: entry["value"] for name, entry in entries.items() if "value" in entry}
    space = {name: _distribution(f"the parameter {name!r}", entries[name]) for name in entries if name not in constants}
    if not space:
        raise InvalidInput("parameters: none of them varies; at least one needs values, or min and max")
    endless = [name for name, one in space.items() if isinstance(one, Float) and one.step is None]
    if method == "grid" and endless:
        raise InvalidInput(f"the parameter {endless[0]!r}: a grid needs values, or whole numbers, or a q")
    search = {"sampler": build(_METHODS[method])}
    if content.get("early_terminate") is not None:
        search["pruner"] = build("halving", **_halving(mapping(content["early_terminate"], "early_terminate")))
    return StudyDescription(
        name=None if content.get("name") is None else str(content["name"]),
        directions=(goal,),
        metric=None if metric.get("name") is None else str(metric["name"]),
        space=space,
        budget=None if content.get("run_cap") is None else budget_of(content["run_cap"]),
        search=search,
        user_attrs=constants | ({"description": content["description"]} if content.get("description") else {}),
        command=_command(content, space, constants),
    )


def _parameters(entries: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The name and the entry of each parameter. A nested parameter is named by its path, such as `optimizer.lr`."""
    for key, value in entries.items():
        name = f"{prefix}{key}"
        what = f"the parameter {name!r}"
        if not is_one_line(name):
            raise InvalidInput(f"{what}: a name must not contain a line break or another control character")
        entry = mapping(value, what)
        if "parameters" in entry and "value" not in entry:
            yield from _parameters(mapping(entry["parameters"], what), f"{name}.")
        else:
            yield name, entry


def _distribution(what: str, entry: Mapping[str, Any]) -> Distribution:
    kind = entry.get("distribution")
    if "values" in entry:
        check_keys(entry, ("values", "distribution"), what)
        return choices(entry["values"], f"{what}, values")
    if kind not in (None, "int_uniform", "uniform", "q_uniform", "log_uniform_values", "q_log_uniform_values"):
        raise InvalidInput(
            f"{what}: the distribution {kind} is not supported, because Optuna draws from ranges; use uniform, "
            "q_uniform or log_uniform_values, with min and max"
        )
    check_keys(entry, ("distribution", "min", "max", "q"), what)
    low, high = (number(entry.get(bound), f"{what}, {bound}") for bound in ("min", "max"))
    q = number(entry.get("q", 1), f"{what}, q")
    if low > high or not q > 0:
        raise InvalidInput(f"{what}: min = {low} to max = {high} with q = {q} is not a range")
    if kind == "q_uniform":  # rounded to multiples of q, as in W&B
        if not (abs(low) + abs(high)) / q <= _FINEST_GRID:
            raise InvalidInput(f"{what}: min = {low} to max = {high} has too many multiples of q = {q}; leave q out")
        first, last = round(low / q), round(high / q)
        if float(q).is_integer():
            return Int(first * int(q), last * int(q), step=int(q))
        return Float(_clean(first * q), _clean(last * q), step=float(q))
    if q != 1:
        raise InvalidInput(f"{what}: Optuna has no grid for {kind}; leave q out, and let the job round")
    log = str(kind).endswith("log_uniform_values")
    if log and low <= 0:
        raise InvalidInput(f"{what}: a logarithm needs min > 0, got {low}")
    if kind == "q_log_uniform_values":
        return Int(max(1, round(low)), max(1, round(high)), log=True)
    if kind == "int_uniform" or (kind is None and isinstance(low, int) and isinstance(high, int)):
        return Int(int(low), int(high))
    return Float(float(low), float(high), log=log)


def _clean(value: float) -> float:
    return float(f"{value:.12g}")  # 3 * 0.1 is meant to be 0.3


def _halving(given: Mapping[str, Any]) -> dict[str, int]:
    """The arguments of Optuna's successive halving, which is W&B's hyperband, with a single ladder of rungs."""
    check_keys(given, {"type", "min_iter", "max_iter", "s", "eta", "strict"}, "early_terminate")
    if given.get("type") != "hyperband":
        raise InvalidInput(f"early_terminate, type = {given.get('type')!r}; only hyperband is supported")
    if given.get("min_iter") is None and given.get("max_iter") is None:
        raise InvalidInput("early_terminate: hyperband needs min_iter, or max_iter and s")
    said = {"eta": 3, "s": 0, "min_iter": None, **given}
    eta, rungs = (int(number(said[name], f"early_terminate, {name}")) for name in ("eta", "s"))
    if said["min_iter"] is None:
        first = int(number(given["max_iter"], "early_terminate, max_iter")) // max(1, eta) ** max(0, min(rungs, 64))
    else:
        first = int(number(said["min_iter"], "early_terminate, min_iter"))
    return {"min_resource": max(1, first), "reduction_factor": eta}


def _command(content: Mapping[str, Any], space: Mapping[str, Distribution], constants: Mapping[str, Any]) -> str:
    """The command for workers with our placeholders, from the sweep or W&B's default."""
    program = str(content.get("program", "train.py"))
    template = content.get("command", ["${interpreter}", "${program}", "${args}"])
    if not isinstance(template, list):
        raise InvalidInput(f"command = {template!r}: give a list of words")
    plain = [f"{name}={value}" for name, value in {**constants, **{name: f"{{{name}}}" for name in space}}.items()]
    hyphens = [f"--{word}" for word in plain]
    macros = {
        "${env}": [],  # a worker's command needs no /usr/bin/env in front
        "${interpreter}": ["python"] if program.endswith(".py") else [],
        "${program}": [program],
        "${args}": hyphens,
        "${args_no_boolean_flags}": hyphens,
        "${args_no_hyphens}": plain,
    }
    return shlex.join(word for part in template for word in macros.get(str(part), [str(part)]))
