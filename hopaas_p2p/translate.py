"""Conversions between Optuna and the log: distributions, parameters, attributes, times."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from typing import Any, Final

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from hopaas_p2p.core import records
from hopaas_p2p.core.state import State, definition_of
from hopaas_p2p.core.validity import (
    LONGEST_CHOICES,
    LONGEST_NAME,
    MOST_CHOICES,
    length_of,
    possible_attributes,
    possible_name,
    widened_distributions,
)
from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.runtime.arguments import shown

_LIMIT: Final = 1 << 63
_MAX_ATTRIBUTE: Final = 1 << 20
"""Bytes. This is a quarter of a commit's limit, so that an attribute fits into a commit with other records."""


def to_record(distribution: BaseDistribution) -> records.Distribution:
    """Convert an Optuna distribution to its form in the log.

    Raises:
        InvalidInput: a categorical choice is not None, bool, int, float or str, or a number or text cannot be stored.
    """
    if isinstance(distribution, FloatDistribution):
        return records.Float(distribution.low, distribution.high, bool(distribution.log), distribution.step)
    if isinstance(distribution, IntDistribution):
        _check_whole(distribution.low, distribution.high, distribution.step)
        return records.Int(distribution.low, distribution.high, bool(distribution.log), distribution.step)
    if isinstance(distribution, CategoricalDistribution):
        for choice in distribution.choices:
            if choice is not None and not isinstance(choice, bool | int | float | str):
                raise InvalidInput(
                    f"the choice {choice!r} cannot be stored; use None, bool, int, float or str, "
                    "for example names that your code looks up in a dict"
                )
            if isinstance(choice, str) and not _encodable(choice):
                raise InvalidInput(
                    f"the choice {choice!r} cannot be stored: it contains an unpaired surrogate, not valid Unicode"
                )
            if isinstance(choice, int):
                _check_whole(choice)
        return checked_choices(tuple([_plain(choice) for choice in distribution.choices]))
    raise InvalidInput(f"unknown kind of distribution: {distribution!r}")


def checked_choices(choices: tuple[Any, ...]) -> records.Categorical:
    """The distribution of a categorical parameter with these choices.

    Raises:
        InvalidInput: there are too many choices, or they are too long.
    """
    if len(choices) > MOST_CHOICES or length_of(choices) > LONGEST_CHOICES:
        raise InvalidInput(
            f"{len(choices):,} choices with {length_of(choices):,} characters are too many for a parameter: at most "
            f"{MOST_CHOICES:,} with {LONGEST_CHOICES:,}. Use short names, or an int, that your code looks up"
        )
    return records.Categorical(choices)


def _plain(choice: Any) -> bool | int | float | str | None:
    """A choice as its plain type (numpy's float64 is a float); None for None."""
    return next((kind(choice) for kind in (bool, int, float, str) if isinstance(choice, kind)), None)


def _check_whole(*numbers: int) -> None:
    for number in numbers:
        if not -_LIMIT <= number < _LIMIT:
            raise InvalidInput(
                f"the whole number {shown(number)} cannot be stored: it needs more than 64 bits; use a float, or a str"
            )


def to_optuna(distribution: records.Distribution) -> BaseDistribution:
    """The Optuna distribution of one in the log."""
    if isinstance(distribution, records.Float):
        return FloatDistribution(distribution.low, distribution.high, log=distribution.log, step=distribution.step)
    if isinstance(distribution, records.Int):
        return IntDistribution(distribution.low, distribution.high, log=distribution.log, step=distribution.step)
    return CategoricalDistribution(distribution.choices)


def fits(value: object, distribution: records.Distribution) -> bool:
    """Whether a parameter of this distribution can have this value, which may be of any type.

    As in Optuna, the value may lie outside the range, but not by more than about a million times its width.
    """
    try:
        inner = to_optuna(distribution).to_internal_repr(value)
    except (ValueError, TypeError, OverflowError):
        return False
    return widened_distributions({"": inner}, {}, {"": distribution}) is not None


def to_json(key: object, value: object) -> str:
    """An attribute's value in the log's form, for the key `str(key)`. Unpaired surrogates in it become question marks.

    Raises:
        InvalidInput: the value is not JSON serializable, is nested too deeply, or is too large; or the key is too long,
            or contains an unpaired surrogate or a null character.
    """
    key = str(key)
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=as_python)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"the attribute {key!r} cannot be stored as JSON: {error}") from None
    _check_name("an attribute", key)
    if not _encodable(text):  # such as a file name in Latin-1
        text = text.encode(errors="replace").decode()
    if not possible_attributes({key: text}):
        raise InvalidInput(f"the attribute {key!r} is nested too deeply for some readers")
    if len(text) > _MAX_ATTRIBUTE // 4 and len(text.encode()) > _MAX_ATTRIBUTE:
        raise InvalidInput(
            f"the attribute {key!r} has {len(text.encode()):,} bytes; at most {_MAX_ATTRIBUTE:,}. "
            "Every peer would read it; keep it as a file instead: trial.upload(path) or study.artifacts().put(path)."
        )
    return text


def as_python(value: object) -> object:
    """A scalar or array of numpy, PyTorch or pandas as a number or a list; raises TypeError for other objects."""
    to_list = getattr(value, "tolist", None)
    if not callable(to_list):
        raise TypeError(f"{type(value).__name__} is not JSON serializable")
    return to_list()


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def checked_step(step: int) -> int:
    """The step of a report, if the log can hold it.

    Raises:
        InvalidInput: the step needs more than 64 bits.
    """
    if not -_LIMIT <= step < _LIMIT:
        raise InvalidInput(f"a report at step {shown(step)}: steps are whole numbers of up to 64 bits")
    return int(step)


def checked_parameter(name: str) -> str:
    """The name of a parameter, if the log can hold it.

    Raises:
        InvalidInput: the name is not text, is too long, or contains an unpaired surrogate or a null character.
    """
    if not isinstance(name, str):
        raise InvalidInput(f"a parameter's name must be a string, got {name!r}")
    _check_name("a parameter", name)
    return str(name)


def _check_name(what: str, name: str) -> None:
    if len(name) > LONGEST_NAME:
        raise InvalidInput(f"{what}'s name has at most {LONGEST_NAME:,} characters, got {len(name):,}")
    if not possible_name(name) or not _encodable(name):
        raise InvalidInput(f"{what} cannot be called {name!r}: it contains an unpaired surrogate or a null character")


def to_microseconds(when: datetime.datetime | None) -> int | None:
    """A naive local time (or an aware one) in the log's form; None for None."""
    if when is None:
        return None
    return round(when.replace(microsecond=0).timestamp()) * 1_000_000 + when.microsecond


def created(trial: FrozenTrial, system: dict[str, str]) -> records.TrialCreate:
    """The record that creates a copy of this Optuna trial, with these system attributes.

    Raises:
        InvalidInput: the log cannot hold the trial.
    """
    return records.TrialCreate(
        state=records.TrialState(trial.state.value),
        params={
            checked_parameter(name): float(trial.distributions[name].to_internal_repr(value))
            for name, value in trial.params.items()
        },
        dists={name: to_record(one) for name, one in trial.distributions.items()},
        reports={checked_step(step): float(value) for step, value in trial.intermediate_values.items()},
        user={str(key): to_json(key, value) for key, value in trial.user_attrs.items()},
        system=system,
        values=None if trial.values is None else tuple([float(value) for value in trial.values]),
        start=to_microseconds(trial.datetime_start),
        end=to_microseconds(trial.datetime_complete),
    )


def directions_of(state: State, name: str) -> list[StudyDirection]:
    """The study's directions as Optuna's; raises like `definition_of`."""
    return [StudyDirection[direction.upper()] for direction in definition_of(state, name).directions]


def told(distribution: records.Distribution, value: float) -> Any:
    """Like `external`, for a distribution of the log."""
    if isinstance(distribution, records.Float):
        return value
    try:
        return distribution.choices[int(value)] if isinstance(distribution, records.Categorical) else int(value)
    except (ValueError, IndexError, OverflowError):
        return None


def external(distribution: BaseDistribution, value: float) -> Any:
    """The value of a parameter as the objective sees it; None for an invalid index (from a hostile log)."""
    try:
        return distribution.to_external_repr(value)
    except (IndexError, ValueError, OverflowError):
        return None


def read_json(text: str) -> Any:
    """An attribute as it was set; text that is not JSON (from a hostile log) is returned verbatim."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def attributes(texts: Mapping[str, str]) -> dict[str, Any]:
    """The decoded values of these attributes."""
    return {key: read_json(text) for key, text in texts.items()}
