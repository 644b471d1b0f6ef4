"""JSON lines: the study's line first, then a line a trial. Strict JSON, and nothing is lost.

Numbers that JSON has no word for are the texts "NaN", "Infinity" and "-Infinity". Attributes stand as what they are;
one that would not come back letter by letter stands as {"$json": its text}.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from hopaas_p2p.core.records import Categorical, Distribution, Float, Int, Policy, TrialCreate, TrialState
from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.export.portable import Portable, PortableTrial
from hopaas_p2p.translate import external, to_optuna

FORMAT: Final = 1
_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_KINDS: Final = {Float: "float", Int: "int"}


def dump(portable: Portable) -> Iterator[str]:
    """The lines, without their ends."""
    yield _text(header(portable))
    for trial in portable.trials:
        yield _text(trial_line(trial))


def load(lines: Iterable[str]) -> Portable:
    """The study in these lines.

    Raises:
        InvalidInput: a line is not what it should be; the message says which.

    """
    head: dict[str, Any] = {}
    trials = []
    for at, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
            if at == 1 and "hopaas_p2p" in content:
                head = content
                _check_format(head)
            else:
                trials.append(read_trial(content))
        except InvalidInput:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, msgspec.MsgspecError) as error:
            raise InvalidInput(f"line {at} is no trial of an export: {type(error).__name__} {error}") from None
    return read_header(head, trials)


def _check_format(head: dict[str, Any]) -> None:
    if head["hopaas_p2p"] > FORMAT:
        raise InvalidInput("this export was written by a newer version; upgrade with: pip install -U hopaas-p2p")


def header(portable: Portable) -> dict[str, Any]:
    """What the first line says: the study."""
    return {
        "hopaas_p2p": FORMAT,
        "name": portable.name,
        "directions": portable.directions,
        "status": portable.status,
        "budget": portable.budget,
        "policy": msgspec.to_builtins(portable.policy),
        "space": {name: _distribution(one) for name, one in portable.space.items()},
        "info": portable.info,
        "user_attrs": _attributes(portable.user),
        "system_attrs": _attributes(portable.system),
        "peers": portable.peers,
    }


def read_header(head: dict[str, Any], trials: list[PortableTrial]) -> Portable:
    """The study of a first line, with its trials."""
    try:
        directions = head.get("directions")
        return Portable(
            name=head.get("name"),
            directions=tuple(directions) if directions else None,
            trials=trials,
            policy=msgspec.convert(head.get("policy", {}), Policy),
            space={name: _read_distribution(one) for name, one in head.get("space", {}).items()},
            info=head.get("info", {}),
            status=head.get("status", "running"),
            budget=head.get("budget"),
            user=_read_attributes(head.get("user_attrs", {})),
            system=_read_attributes(head.get("system_attrs", {})),
            peers=head.get("peers", {}),
        )
    except (ValueError, KeyError, TypeError, AttributeError, msgspec.MsgspecError) as error:
        raise InvalidInput(f"the study's line cannot be read: {type(error).__name__} {error}") from None


def trial_line(trial: PortableTrial) -> dict[str, Any]:
    """What a trial's line says."""
    record = trial.record
    params, internal = {}, {}
    for name, value in record.params.items():
        distribution = to_optuna(record.dists[name])
        params[name] = _number(external(distribution, value))
        if not _comes_back(distribution, params[name], value):
            internal[name] = _number(value)
    line = {
        "number": trial.number,
        "state": record.state.name,
        "values": None if record.values is None else [_number(value) for value in record.values],
        "params": params,
        "distributions": {name: _distribution(one) for name, one in record.dists.items()},
        "reports": [[step, _number(value)] for step, value in record.reports.items()],
        "user_attrs": _attributes(record.user),
        "system_attrs": _attributes(record.system),
        "start": _time(record.start),
        "end": _time(record.end),
        "reason": record.reason,
    }
    extra = {"internal": internal, "origin": trial.origin}
    return line | {name: value for name, value in extra.items() if value}


def read_trial(line: dict[str, Any]) -> PortableTrial:
    """The trial of a line; raises ValueError, KeyError or TypeError if it is none."""
    dists = {name: _read_distribution(one) for name, one in line.get("distributions", {}).items()}
    internal = {name: float(value) for name, value in line.get("internal", {}).items()}
    params = {
        name: internal[name] if name in internal else _internal(to_optuna(dists[name]), value)
        for name, value in line.get("params", {}).items()
    }
    values = line.get("values")
    record = TrialCreate(
        state=TrialState[line["state"]],
        params=params,
        dists=dists,
        reports={int(step): float(value) for step, value in line.get("reports", [])},
        user=_read_attributes(line.get("user_attrs", {})),
        system=_read_attributes(line.get("system_attrs", {})),
        values=None if values is None else tuple([float(value) for value in values]),
        reason=line.get("reason"),
        start=_read_time(line.get("start")),
        end=_read_time(line.get("end")),
    )
    return PortableTrial(int(line["number"]), record, dict(line.get("origin", {})))


def _comes_back(distribution: Any, value: Any, internal: float) -> bool:
    try:
        return _internal(distribution, value) == internal
    except (ValueError, TypeError):
        return False


def _internal(distribution: Any, value: Any) -> float:
    """A value of a line as the log writes it."""
    choices = getattr(distribution, "choices", None)
    if choices is None:
        return float(value)
    same = [index for index, choice in enumerate(choices) if choice == value and type(choice) is type(value)]
    if len(same) != 1:
        raise ValueError(f"{value!r} is none of {choices}")
    return float(same[0])


def _text(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _number(value: Any) -> Any:
    """A value for strict JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[repr(value)]
    return value


def _distribution(one: Distribution) -> dict[str, Any]:
    if isinstance(one, Categorical):
        odd = [index for index, choice in enumerate(one.choices) if _number(choice) is not choice]
        shown: dict[str, Any] = {"type": "cat", "choices": [_number(choice) for choice in one.choices]}
        return shown | ({"floats": odd} if odd else {})
    return {"type": _KINDS[type(one)], "low": one.low, "high": one.high, "log": one.log, "step": one.step}


def _read_distribution(said: dict[str, Any]) -> Distribution:
    if said["type"] == "cat":
        odd = said.get("floats", ())
        return Categorical(
            tuple([float(choice) if index in odd else choice for index, choice in enumerate(said["choices"])])
        )
    step = said.get("step")
    if said["type"] == "int":
        return Int(int(said["low"]), int(said["high"]), bool(said.get("log")), 1 if step is None else int(step))
    if said["type"] != "float":
        raise ValueError(f"unknown type of parameter {said['type']!r}")
    low, high = float(said["low"]), float(said["high"])
    return Float(low, high, bool(said.get("log")), None if step is None else float(step))


def _attributes(texts: dict[str, str]) -> dict[str, Any]:
    return {key: _attribute(text) for key, text in texts.items()}


def _attribute(text: str) -> Any:
    try:
        value = json.loads(text)
        plain = _text(value) == text and not (isinstance(value, dict) and "$json" in value)
    except (ValueError, RecursionError):
        plain = False
    return value if plain else {"$json": text}


def _read_attributes(values: dict[str, Any]) -> dict[str, str]:
    return {key: value["$json"] if _is_escaped(value) else _text(value) for key, value in values.items()}


def _is_escaped(value: Any) -> bool:
    return isinstance(value, dict) and list(value) == ["$json"] and isinstance(value["$json"], str)


def _time(microseconds: int | None) -> str | int | None:
    if microseconds is None:
        return None
    try:
        return (_EPOCH + datetime.timedelta(microseconds=microseconds)).isoformat().replace("+00:00", "Z")
    except OverflowError:
        return microseconds


def _read_time(said: str | int | None) -> int | None:
    if said is None or isinstance(said, int):
        return said
    when = datetime.datetime.fromisoformat(said)
    return (when.astimezone(datetime.UTC) - _EPOCH) // datetime.timedelta(microseconds=1)
