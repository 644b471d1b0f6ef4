"""JSON lines: a line for the study, then one line per trial. Strict JSON, without loss.

Numbers that JSON cannot express are the texts "NaN", "Infinity" and "-Infinity". Attributes are written as JSON; one
that would not be read back exactly is written as {"$json": its text}.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from hopaas_p2p.analysis.facts import json_number
from hopaas_p2p.core.records import Categorical, Distribution, Float, Int, Policy, TrialCreate, TrialState
from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.export.portable import Portable, PortableTrial
from hopaas_p2p.space import distribution_of
from hopaas_p2p.times import from_iso, to_iso
from hopaas_p2p.translate import external, to_optuna

FORMAT: Final = 1
_KINDS: Final = {Float: "float", Int: "int"}


def dump(portable: Portable) -> Iterator[str]:
    """The lines, without their ends."""
    yield _text(header(portable))
    for trial in portable.trials:
        yield _text(trial_line(trial))


def load(lines: Iterable[str]) -> Portable:
    """The study in these lines.

    Raises:
        InvalidInput: a line cannot be read; the message says which.

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
            else:
                trials.append(read_trial(content))
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            IndexError,
            RecursionError,
            msgspec.MsgspecError,
        ) as error:
            raise InvalidInput(f"line {at} is not a trial of an export: {type(error).__name__} {error}") from None
    if head.get("hopaas_p2p", FORMAT) > FORMAT:
        raise InvalidInput("this export was written by a newer version of hopaas_p2p; upgrade this installation")
    return read_header(head, trials)


def header(portable: Portable) -> dict[str, Any]:
    """The content of the first line: the study."""
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
            space={name: _read_distribution(name, one) for name, one in head.get("space", {}).items()},
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
    """The content of a trial's line."""
    record = trial.record
    params, internal = {}, {}
    for name, value in record.params.items():
        distribution = to_optuna(record.dists[name])
        params[name] = json_number(external(distribution, value))
        if not _comes_back(distribution, params[name], value):
            internal[name] = json_number(value)
    line = {
        "number": trial.number,
        "state": record.state.name,
        "values": None if record.values is None else [json_number(value) for value in record.values],
        "params": params,
        "distributions": {name: _distribution(one) for name, one in record.dists.items()},
        "reports": [[step, json_number(value)] for step, value in record.reports.items()],
        "user_attrs": _attributes(record.user),
        "system_attrs": _attributes(record.system),
        "start": to_iso(record.start) or record.start,
        "end": to_iso(record.end) or record.end,
        "reason": record.reason,
    }
    metrics = {
        name: [[step, json_number(value)] for step, value in values.items()] for name, values in record.metrics.items()
    }
    extra = {"metrics": metrics, "internal": internal, "origin": trial.origin}
    return line | {name: value for name, value in extra.items() if value}


def read_trial(line: dict[str, Any]) -> PortableTrial:
    """The trial of a line; raises ValueError, KeyError or TypeError if it is not one."""
    dists = {name: _read_distribution(name, one) for name, one in line.get("distributions", {}).items()}
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
        metrics={
            name: {int(step): float(value) for step, value in values}
            for name, values in line.get("metrics", {}).items()
        },
    )
    return PortableTrial(int(line["number"]), record, dict(line.get("origin", {})))


def _comes_back(distribution: Any, value: Any, internal: float) -> bool:
    try:
        return _internal(distribution, value) == internal
    except (ValueError, TypeError):
        return False


def _internal(distribution: Any, value: Any) -> float:
    """A value of a line in the log's representation."""
    choices = getattr(distribution, "choices", None)
    if choices is None:
        return float(value)
    same = [index for index, choice in enumerate(choices) if choice == value and type(choice) is type(value)]
    if len(same) != 1:
        raise ValueError(f"{value!r} is none of {choices}")
    return float(same[0])


def _text(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _distribution(one: Distribution) -> dict[str, Any]:
    if isinstance(one, Categorical):
        odd = [index for index, choice in enumerate(one.choices) if json_number(choice) is not choice]
        shown: dict[str, Any] = {"type": "cat", "choices": [json_number(choice) for choice in one.choices]}
        return shown | ({"floats": odd} if odd else {})
    return {"type": _KINDS[type(one)], "low": one.low, "high": one.high, "log": one.log, "step": one.step}


def _read_distribution(name: str, entry: dict[str, Any]) -> Distribution:
    floats = entry.get("floats", ())
    plain = {key: value for key, value in entry.items() if key != "floats"}
    if floats:
        plain["choices"] = [float(one) if index in floats else one for index, one in enumerate(plain["choices"])]
    return distribution_of(name, plain)


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


def _read_time(said: str | int | None) -> int | None:
    return from_iso(said) if isinstance(said, str) else said
