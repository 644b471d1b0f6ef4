"""Search spaces and parameter values as people write them: `lr=float(1e-5,1e-1,log)`."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from hopaas_p2p.core.records import Categorical, Distribution, Float, Int
from hopaas_p2p.errors import InvalidInput

HELP: Final = "A parameter: NAME=float(LOW,HIGH[,log][,step=S]), NAME=int(LOW,HIGH[,log][,step=S]) or NAME=cat(A,B,…)."
_SPEC: Final = re.compile(r"\s*([^=\s]+)\s*=\s*(float|int|cat)\s*\((.*)\)\s*", re.DOTALL)
_PART: Final = re.compile(r'\s*("(?:[^"\\]|\\.)*"|[^,"]*)\s*(?:,|$)')
SHAPES: Final = "float(1e-5,1e-1,log), int(1,8) or cat(a,b,c)"


def parse_space(specs: Iterable[str]) -> dict[str, Distribution]:
    """The search space that these specs give.

    Raises:
        InvalidInput: one cannot be read, or names a parameter twice.

    """
    space: dict[str, Distribution] = {}
    for spec in specs:
        match = _SPEC.fullmatch(spec)
        if match is None:
            raise InvalidInput(f"{spec!r} is no parameter; write NAME={SHAPES}")
        name, kind, body = match.groups()
        if name in space:
            raise InvalidInput(f"the parameter {name!r} is given twice")
        space[name] = _distribution(name, kind, _split(spec, body))
    return space


def read_space(path: Path) -> dict[str, Distribution]:
    """The search space in a TOML or JSON file: `lr = "float(1e-5, 1e-1, log)"`, or a table with `type`, `low`, ….

    Raises:
        InvalidInput: it cannot be read as that.

    """
    try:
        text = path.read_text()
        content = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, OSError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise InvalidInput(f"{path}: a space is a table of parameters")
    content = content.get("space", content)
    return {name: _from_file(path, name, value) for name, value in content.items()}


def _from_file(path: Path, name: str, value: Any) -> Distribution:
    if isinstance(value, str):
        return parse_space([f"{name}={value}"])[name]
    if not isinstance(value, dict):
        raise InvalidInput(f"{path}: {name} = {value!r}; write {SHAPES}, or a table")
    kind = value.get("type", "cat" if "choices" in value else None)
    if kind == "cat":
        return Categorical(tuple(value.get("choices", ())))
    parts = [value.get("low"), value.get("high")]
    parts += ["log"] if value.get("log") else []
    parts += [f"step={value['step']}"] if value.get("step") is not None else []
    return _distribution(name, str(kind), parts)


def _split(spec: str, body: str) -> list[Any]:
    """The parts between the brackets; quoted ones stay texts, the others become numbers where they are some."""
    parts: list[Any] = []
    position = 0
    while position < len(body):
        match = _PART.match(body, position)
        if match is None:
            raise InvalidInput(f"{spec!r}: cannot read {body[position:]!r}")
        parts.append(parse_value(match[1].strip()))
        position = match.end()
    return parts


def parse_value(text: str) -> Any:
    """A value as JSON reads it, else the text itself: `1`, `0.5`, `true`, `null`, `"1"`, `adam`."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return text if isinstance(value, dict | list) else value


def _distribution(name: str, kind: str, parts: list[Any]) -> Distribution:
    if kind == "cat":
        if not parts:
            raise InvalidInput(f"the parameter {name!r} has no choices; write {name}=cat(a,b,c)")
        return Categorical(tuple(parts))
    if kind not in ("float", "int"):
        raise InvalidInput(f"the parameter {name!r} is of the type {kind!r}; there are float, int and cat")
    convert = float if kind == "float" else _whole
    bounds, words = parts[:2], parts[2:]
    try:
        low, high = (convert(bound) for bound in bounds)
        log = "log" in words
        steps = [convert(word.partition("=")[2]) for word in words if word != "log" and _is_step(word)]
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"the parameter {name!r}: {error or 'needs two bounds'}; write {name}={SHAPES}") from None
    if len(steps) + log != len(words) or len(steps) > 1:
        raise InvalidInput(f"the parameter {name!r}: after the bounds, only 'log' or 'step=…'")
    if kind == "float":
        return Float(low, high, log, steps[0] if steps else None)
    return Int(int(low), int(high), log, int(steps[0]) if steps else 1)


def _is_step(word: object) -> bool:
    return isinstance(word, str) and word.startswith("step=")


def _whole(value: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError(f"{value} is no whole number")
    return int(value)


def spec(distribution: Any) -> str:
    """A distribution, ours or Optuna's, as it is written in a spec."""
    choices = getattr(distribution, "choices", None)
    if choices is not None:
        return f"cat({','.join(_choice(one) for one in choices)})"
    kind = "int" if isinstance(distribution.low, int) else "float"
    parts = [f"{distribution.low:g}" if kind == "float" else str(distribution.low)]
    parts += [f"{distribution.high:g}" if kind == "float" else str(distribution.high)]
    parts += ["log"] if distribution.log else []
    parts += [f"step={distribution.step}"] if distribution.step not in (None, 1) else []
    return f"{kind}({','.join(parts)})"


def _choice(value: Any) -> str:
    """A choice as it is written in a spec: quoted where it would be read as something else."""
    if not isinstance(value, str):
        return json.dumps(value)
    plain = value == value.strip() and parse_value(value) == value and not set(value) & set(',"()')
    return value if plain and value else json.dumps(value, ensure_ascii=False)


def parse_params(pairs: Iterable[str], space: dict[str, Any]) -> dict[str, Any]:
    """`name=value` pairs as parameters; a categorical choice is found by its value or by its text.

    Raises:
        InvalidInput: no pair, or a name twice. Whether a value is inside the space is the study's to say.

    """
    params: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise InvalidInput(f"{pair!r} is no parameter; write NAME=VALUE")
        if name in params:
            raise InvalidInput(f"the parameter {name!r} is given twice")
        params[name] = _among(getattr(space.get(name), "choices", ()), text)
    return params


def _among(choices: Iterable[Any], text: str) -> Any:
    """The choice that this text means: the same value and type, else one that is written like it."""
    value = parse_value(text)
    same = [choice for choice in choices if type(choice) is type(value) and choice == value]
    alike = [choice for choice in choices if str(choice) == text]
    return (*same, *alike, value)[0]
