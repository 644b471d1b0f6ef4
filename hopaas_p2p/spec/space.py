"""Reads and writes search spaces and parameter values as text, such as `lr=float(1e-5,1e-1,log)`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from hopaas_p2p.core.attributes import SPACE
from hopaas_p2p.core.records import Categorical, Distribution, Float, Int, TrialState
from hopaas_p2p.core.validity import possible_distributions
from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.runtime.arguments import near

if TYPE_CHECKING:
    from hopaas_p2p.core.state import State

_decode: Final = msgspec.json.Decoder(dict[str, Distribution]).decode
HELP: Final = (
    "A parameter: NAME=float(LOW,HIGH[,log][,step=S]), short log(LOW,HIGH), NAME=int(LOW,HIGH[,log][,step=S]) or "
    "NAME=cat(A,B,…). In each, prior=VALUE[,confidence=low|medium|high] is what you believe to be best."
)
_SPEC: Final = re.compile(r"\s*([^=\s]+)\s*=\s*(float|int|cat|log)\s*\((.*)\)\s*", re.DOTALL)
_PART: Final = re.compile(r'\s*("(?:[^"\\]|\\.)*"|[^,"]*)\s*(?:,|$)')
_BELIEF: Final = ("prior", "confidence")
_SHORT: Final = re.compile(r"-?([0-9]+\.|\.[0-9]+)([eE][+-]?[0-9]+)?")
"""A number that JSON does not allow, such as .5 or 5."""
SHAPES: Final = "log(1e-5,1e-1), float(0,1), int(1,8) or cat(a,b,c)"


def parse_space(specs: Iterable[str]) -> dict[str, Distribution]:
    """The search space of these specs.

    Raises:
        InvalidInput: a spec cannot be read, or a parameter is given twice.

    """
    space: dict[str, Distribution] = {}
    for spec in specs:
        match = _SPEC.fullmatch(spec)
        if match is None:
            raise InvalidInput(f"{spec!r} is not a parameter; write NAME={SHAPES}")
        name, kind, body = match.groups()
        if name in space:
            raise InvalidInput(f"the parameter {name!r} appears twice")
        parts: list[Any] = []  # the texts between the parentheses; unquoted ones become numbers where possible
        position = 0
        while position < len(body):
            part = _PART.match(body, position)
            if part is None:
                raise InvalidInput(f"{spec!r}: cannot read {body[position:]!r}")
            parts.append(parse_value(part[1].strip()))
            position = part.end()
        space[name] = _distribution(name, kind, parts)
    return space


def _distribution(name: str, kind: str, parts: list[Any]) -> Distribution:
    """The distribution that the parts between the parentheses of a spec describe."""
    what, said, rest = f"the parameter {name!r}", dict[str, Any](), []
    for part in parts:
        key, equals, text = str(part).partition("=")
        if not equals or key not in (_BELIEF if kind == "cat" else (*_BELIEF, "step")):
            if equals and kind != "cat":
                hint = near(key, (*_BELIEF, "step"), "only step, prior and confidence take a value")
                hint = "write log alone" if key == "log" else hint
                raise InvalidInput(f"{what}: there is no {key}=…; {hint}")
            rest.append(part)
        elif key in said:
            raise InvalidInput(f"{what}: {key}=… appears twice")
        else:
            said[key] = text if key == "confidence" else parse_value(text)
    if kind == "cat":
        return msgspec.structs.replace(choices(rest, f"{what}, choices"), **said)
    if len(rest) < 2 or rest[2:] not in ([], ["log"] * (kind != "log")):
        why = f"needs two bounds, then only 'log' or options such as step=…; write {name}={SHAPES}"
        raise InvalidInput(f"{what}: {why}")
    log, given = kind == "log" or len(rest) > 2, said.pop("step", None)
    low, high = number(rest[0], f"{what}, low"), number(rest[1], f"{what}, high")
    step = None if given is None else number(given, f"{what}, step")
    if kind != "int":
        return Float(float(low), float(high), log, None if step is None else float(step), **said)
    broken = [str(one) for one in (low, high, step or 1) if not float(one).is_integer()]
    if broken:
        raise InvalidInput(f"{what}: an int needs whole numbers, not {', '.join(broken)}")
    return Int(int(low), int(high), log, 1 if step is None else int(step), **said)


def mapping(value: Any, what: str) -> Mapping[str, Any]:
    """The value, if it is a mapping. Raises InvalidInput for any other."""
    if not isinstance(value, dict):
        raise InvalidInput(f"{what} = {value!r}: give a mapping")
    return value


def number(value: Any, what: str) -> float | int:
    """The value, if it is a finite number that fits in 64 bits. Raises InvalidInput for any other."""
    whole = isinstance(value, int) and -(1 << 63) <= value < 1 << 63
    fits = math.isfinite(value) if isinstance(value, float) else whole
    if isinstance(value, bool) or not fits:
        raise InvalidInput(f"{what} = {repr(value)[:80]}: give a number")
    return value  # type: ignore[no-any-return]  # checked above


def choices(value: Any, what: str) -> Categorical:
    """A categorical distribution with these choices. Raises InvalidInput if they are not a list of plain values."""
    if not isinstance(value, list) or not value:
        raise InvalidInput(f"{what}: give a list of at least one value")
    for one in value:
        if one is not None and not isinstance(one, bool | int | float | str):
            raise InvalidInput(
                f"{what}: {one!r} is not a string, number, boolean or null; name it, and look it up in your code"
            )
    return Categorical(tuple(value))


def check_keys(entry: Iterable[str], allowed: Collection[str], what: str) -> None:
    """Raise InvalidInput if the entry has a key that is not allowed, so that a typo is not ignored silently."""
    for key in entry:
        if key not in allowed:
            hint = near(str(key), allowed, f"the keys are {', '.join(sorted(allowed))}")
            raise InvalidInput(f"{what}: {key!r} is not a key; {hint}")


# --- spaces of studies whose definition has none ---


def said_later(state: State) -> dict[str, Distribution]:
    """The space given to a study after its creation; empty if none was.

    A space that conflicts with the parameters of existing trials is ignored, because any peer that may write can give
    one.
    """
    found = _decode(state.system.get(SPACE, "{}"))
    return found if possible_distributions(found, state.dists) else {}


def as_attribute(space: Mapping[str, Distribution]) -> str:
    """The space in the form of the attribute `SPACE`."""
    return msgspec.json.encode(space).decode()


def inferred(state: State) -> tuple[dict[str, Distribution], str]:
    """The space from which the trials were drawn, and an empty reason; or an empty space, and the reason why it is
    unknown.

    The space is known if all trials that have not failed have the same parameters, each of the same kind. The bounds
    are the widest of these trials.
    """
    space: dict[str, Distribution] = {}
    names: set[str] | None = None
    for trial in state.trials:
        if trial.state is TrialState.FAIL or not trial.params:
            continue
        names = names or set(trial.params)
        if set(trial.params) != names:
            some = ", ".join(sorted(names ^ set(trial.params))[:3])
            return {}, f"not every trial has the same parameters ({some})"
        for name in trial.params:
            one = trial.distribution(name, state)
            both = _united(space.get(name, one), one)
            if both is None:
                return {}, f"the parameter {name!r} has different distributions"
            space[name] = both
    return space, "" if space else "no trial has parameters yet"


def _united(one: Distribution, other: Distribution) -> Distribution | None:
    if isinstance(one, Categorical) or isinstance(other, Categorical):
        return one if one == other else None
    if type(one) is not type(other) or (one.log, one.step) != (other.log, other.step):
        return None
    return msgspec.structs.replace(one, low=min(one.low, other.low), high=max(one.high, other.high))


def parse_value(text: str) -> Any:
    """The value that a string such as `1`, `.5`, `true`, `null` or `"1"` has in JSON, or else the string itself, such
    as `adam`.
    """
    if _SHORT.fullmatch(text):
        return float(text)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return text if isinstance(value, dict | list) else value


def spec(distribution: Any) -> str:
    """A distribution, ours or Optuna's, as the text that a spec has after `NAME=`; without a prior."""
    choices = getattr(distribution, "choices", None)
    if choices is not None:
        return f"cat({','.join(_choice(one) for one in choices)})"
    kind = "int" if isinstance(distribution.low, int) else "float"
    parts = [str(bound).removesuffix(".0") for bound in (distribution.low, distribution.high)]
    parts += ["log"] if distribution.log else []
    parts += [f"step={distribution.step}"] if distribution.step != (1 if kind == "int" else None) else []
    return f"{kind}({','.join(parts)})"


def _choice(value: Any) -> str:
    """A choice in a spec, quoted if it would otherwise be read as something else."""
    if not isinstance(value, str):
        return json.dumps(value)
    plain = value == value.strip() and parse_value(value) == value and not set(value) & set(',"()')
    return value if plain and value else json.dumps(value, ensure_ascii=False)


def parse_params(pairs: Iterable[str], space: dict[str, Any]) -> dict[str, Any]:
    """Parameters from `name=value` pairs; a categorical choice is found by its value or by its text.

    Raises:
        InvalidInput: a string is not a pair, or a name is given twice. Values are not checked against the space here.

    """
    params: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise InvalidInput(f"{pair!r} is not a parameter; write NAME=VALUE")
        if name in params:
            raise InvalidInput(f"the parameter {name!r} appears twice")
        value, choices = parse_value(text), getattr(space.get(name), "choices", ())
        same = [choice for choice in choices if type(choice) is type(value) and choice == value]
        alike = [choice for choice in choices if str(choice) == text]
        params[name] = (*same, *alike, value)[0]
    return params
