"""A study described in YAML, for `study create --from-yaml`: a W&B sweep, or keys in Optuna's words.

What the file says beyond our own options (who proposes, who prunes) is kept with the study, and commands take it where
the user says nothing else.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from hopaas_p2p.cli import made_with
from hopaas_p2p.cli.space import parse_space
from hopaas_p2p.core.records import Categorical, Distribution, Float, Int
from hopaas_p2p.errors import InvalidInput

_SWEEP: Final = {"method", "program", "metric", "early_terminate", "run_cap"}
"""A file with one of these is a sweep of W&B's."""
_KEYS: Final = {
    "name": ("study_name",),
    "direction": (),
    "directions": (),
    "metric_names": (),
    "space": ("search_space", "parameters", "params"),
    "budget": ("n_trials",),
    "sampler": (),
    "pruner": (),
    "attempts": (),
    "max_failures": (),
    "lease_ttl": (),
    "user_attrs": (),
}
"""Our key -> what else it may be called."""


class Described(NamedTuple):
    """A study as a file describes it. None: the file does not say."""

    name: str | None = None
    directions: tuple[str, ...] | None = None
    metric_names: tuple[str, ...] | None = None
    space: dict[str, Distribution] = {}
    policy: dict[str, Any] = {}
    """budget, attempts, max_failures, lease_ttl, as `open_study` takes them."""
    made_with: dict[str, dict[str, Any]] = {}
    """ "sampler" and "pruner": {"name": …, and its arguments}."""
    grid: list[dict[str, Any]] | None = None
    """Every point of a grid search."""
    user_attrs: dict[str, Any] = {}
    notes: tuple[str, ...] = ()
    """What the user should know: what was left out."""
    job: str = ""
    """The command of a trial, for `hopaas-p2p worker`."""


def read(path: Path) -> Described:
    """The study that this file describes.

    Raises:
        InvalidInput: it cannot be read, or says what cannot be; one line that says where.

    """
    content = _yaml(path)
    if not isinstance(content, dict) or not content:
        raise InvalidInput(f"{path}: not a mapping of keys such as name, direction and space")
    try:
        if _SWEEP & content.keys():
            from hopaas_p2p.cli import sweeps

            return sweeps.described(content)
        return _optunas(content)
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from None


def _yaml(path: Path) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Reads 1e-5 as a number, as YAML 1.2 and everybody who writes it does."""

    number = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader)  # noqa: S506  # a SafeLoader
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidInput(f"{path} is no text in UTF-8") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InvalidInput(f"{path}{line}: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{path}: {' '.join(str(error).split())[:200]}") from None


def _optunas(content: Mapping[str, Any]) -> Described:
    said = _by_our_names(content)
    directions = said.get("directions", said.get("direction"))
    listed = [directions] if isinstance(directions, str) else directions
    space = mapping(said.get("space", {}), "space")
    names = said.get("metric_names")
    return Described(
        name=None if said.get("name") is None else str(said["name"]),
        directions=None if listed is None else tuple(str(one) for one in listed),
        metric_names=None if names is None else tuple(str(one) for one in names),
        space={str(name): _parameter(str(name), one) for name, one in space.items()},
        policy={
            key: _positive(key, said[key]) for key in ("budget", "attempts", "max_failures", "lease_ttl") if key in said
        },
        made_with={kind: _made_with(kind, said[kind]) for kind in ("sampler", "pruner") if said.get(kind) is not None},
        user_attrs=dict(mapping(said.get("user_attrs", {}), "user_attrs")),
    )


def _by_our_names(content: Mapping[str, Any]) -> dict[str, Any]:
    ours = {other: key for key, others in _KEYS.items() for other in (key, *others)}
    said: dict[str, Any] = {}
    for key, value in content.items():
        if key not in ours:
            near = difflib.get_close_matches(str(key), ours, n=1)
            raise InvalidInput(
                f"{key!r} is no key; " + (f"did you mean {near[0]!r}?" if near else f"there are {', '.join(_KEYS)}")
            )
        if ours[key] in said:
            raise InvalidInput(f"{ours[key]!r} is said twice")
        said[ours[key]] = value
    return said


def mapping(value: Any, what: str) -> Mapping[str, Any]:
    """The value, if it is a mapping."""
    if not isinstance(value, dict):
        raise InvalidInput(f"{what} = {value!r}: give a mapping")
    return value


def number(value: Any, what: str) -> float | int:
    """The value, if it is a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidInput(f"{what} = {value!r}: give a number")
    return value


def only(entry: Mapping[str, Any], allowed: set[str], what: str) -> None:
    """Raise if the entry has another key: a typo would be a silent loss."""
    for key in entry:
        if key not in allowed:
            near = difflib.get_close_matches(str(key), allowed, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(allowed))}"
            raise InvalidInput(f"{what}: {key!r} is no key; {hint}")


def choices(value: Any, what: str) -> Categorical:
    """A choice of these."""
    if not isinstance(value, list) or not value:
        raise InvalidInput(f"{what}: give a list of at least one value")
    for one in value:
        if one is not None and not isinstance(one, bool | int | float | str):
            raise InvalidInput(
                f"{what}: {one!r} is no text, number, truth value or null; name it, and look it up in your code"
            )
    return Categorical(tuple(value))


def _parameter(name: str, entry: Any) -> Distribution:
    what = f"the parameter {name!r}"
    if isinstance(entry, str):
        return parse_space([f"{name}={entry}"])[name]
    if isinstance(entry, list):
        return choices(entry, what)
    said = dict(mapping(entry, what))
    if "attributes" in said:  # as optuna.distributions.distribution_to_json writes it
        said = {"type": said.get("name"), **mapping(said["attributes"], what)}
    only(said, {"type", "low", "high", "log", "step", "choices"}, what)
    kind = str(said.get("type", "categorical" if "choices" in said else "")).removesuffix("Distribution").lower()
    if kind in ("cat", "categorical"):
        return choices(said.get("choices"), f"{what}, choices")
    if kind not in ("float", "int"):
        raise InvalidInput(f"{what}: type is float, int or categorical, not {said.get('type')!r}")
    low, high = (number(said.get(bound), f"{what}, {bound}") for bound in ("low", "high"))
    step = None if said.get("step") is None else number(said["step"], f"{what}, step")
    if kind == "float":
        return Float(float(low), float(high), bool(said.get("log")), None if step is None else float(step))
    if any(one is not None and one != int(one) for one in (low, high, step)):
        raise InvalidInput(f"{what}: an int has whole numbers, not {low}, {high}, {step}")
    return Int(int(low), int(high), bool(said.get("log")), 1 if step is None else int(step))


def _positive(key: str, value: Any) -> float | int:
    found = number(value, key)
    return float(found) if key == "lease_ttl" else int(found)


def _made_with(kind: str, value: Any) -> dict[str, Any]:
    return made_with.described(kind, {"name": value} if isinstance(value, str) else mapping(value, kind))
