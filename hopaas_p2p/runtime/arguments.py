"""Checks arguments of the Python interface, so that a wrong one is refused at the call, in one line."""

from __future__ import annotations

import difflib
import functools
import math
import operator
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

from hopaas_p2p.errors import ConfigurationError, InvalidInput, InvalidType

_P = ParamSpec("_P")
_R = TypeVar("_R")
_LARGEST: Final = (1 << 53) - 1
_SHOWN: Final = 100  # characters of a value in a message


def whole(what: str, value: Any, *, least: int | None = 1, takes: str = "a whole number") -> int:
    """The value as a whole number of at least `least`; numpy's are accepted, True and False are not.

    Raises:
        InvalidInput: the value is not such a number; the message names the argument and its value.
    """
    number = _index(value)
    if number is None:
        raise InvalidInput(f"{what} must be {takes}, got {shown(value)}")
    if least is not None and number < least:
        raise InvalidInput(f"{what} must be at least {least}, got {shown(number)}")
    if abs(number) > _LARGEST:
        raise InvalidInput(f"{what} must be at most {_LARGEST}, got {shown(number)}")
    return number


def trial_number(value: Any) -> int:
    """The number of a trial, given as a number or as the trial; raises InvalidType."""
    number = _index(getattr(value, "number", value))
    if number is None or abs(number) > _LARGEST:
        raise InvalidType(f"expected a trial or its number, got {shown(value)}")
    return number


def seconds(what: str, value: Any, *, least: float | None = None, most: float = math.inf) -> float:
    """The value as a number of seconds, by default a positive one; with `least`, at least that many.

    Raises:
        InvalidInput: the value is not such a number, or is more than `most`.
    """
    number = None if isinstance(value, bool) else number_of(value)
    if number is None or math.isnan(number) or (number <= 0 if least is None else number < least):
        must = "a positive number of seconds" if least is None else "a number of seconds"
        raise InvalidInput(f"{what} must be {must}{', 0 or more' if least == 0 else ''}, got {shown(value)}")
    if number > most:
        raise InvalidInput(f"{what} must be at most {most:.0f} seconds, got {shown(value)}")
    return number


def exceptions(what: str, value: Any) -> tuple[type[Exception], ...]:
    """An exception class, or several, as `except` takes them; raises InvalidType."""
    given = (value,) if isinstance(value, type) or not isinstance(value, Iterable) else tuple(value)
    if not all(isinstance(one, type) and issubclass(one, Exception) for one in given):
        raise InvalidType(f"{what} takes classes of exceptions, such as ValueError, got {shown(value)}")
    return given


def functions(what: str, value: Any) -> tuple[Callable[..., Any], ...]:
    """The functions in this list; raises InvalidType."""
    given = tuple(value) if isinstance(value, Iterable) else (None,)
    if not all(map(callable, given)):
        raise InvalidType(f"{what} takes a list of functions, got {shown(value)}")
    return given


def mapping(what: str, value: Any) -> Mapping[Any, Any]:
    """The value, if it is a mapping; raises InvalidType."""
    if not isinstance(value, Mapping):
        raise InvalidType(f"{what} must be a dictionary, got {shown(value)}")
    return value


def instance(what: str, value: Any, kind: type, example: str) -> None:
    """Raise InvalidInput if the value is not of this kind; the usual mistake is a class that was not called."""
    if not isinstance(value, kind):
        called = f"; did you mean {value.__name__}()?" if isinstance(value, type) and issubclass(value, kind) else ""
        raise InvalidInput(f"{what} must be an object such as {example}, got {shown(value)}{called}")


def near(word: str, known: Iterable[str], otherwise: str) -> str:
    """A hint for an unknown word: the known word that it resembles, else `otherwise`."""
    found = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {found[0]!r}?" if found else otherwise


def names_arguments(**elsewhere: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Make the error about an unknown keyword suggest the one that was probably meant.

    `elsewhere` maps words that belong to the constructor of an argument to the way in which that argument is given.
    """

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        code = function.__code__
        known = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]

        @functools.wraps(function)
        def checked(*args: _P.args, **given: _P.kwargs) -> _R:
            for name in given:
                if name not in known:
                    hint = near(name, known, f"it takes {', '.join(known)}")
                    hint = f"give it as {elsewhere[name]}({name}=…)" if name in elsewhere else hint
                    raise TypeError(f"{function.__name__}() has no argument {name!r}; {hint}")
            return function(*args, **given)

        return checked

    return decorate


def shown(value: object) -> str:
    """A value as shown in a message, with a bounded length."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  # the class may be anybody's
        return f"an object of class {type(value).__name__}"
    return shortened(text)


def shortened(text: str, most: int = _SHOWN) -> str:
    """The text, cut to at most `most` characters, with a mark where it was cut."""
    return text if len(text) <= most else f"{text[:most]}…"


def _index(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    try:
        return int(operator.index(value))
    except TypeError:
        return None


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with `~` replaced by a home directory; raises ConfigurationError if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigurationError(f"{path}: there is no such user here; for a directory, put ./ first") from None


def number_of(value: Any) -> float | None:
    """The value as a number; None for text, and for anything that is not one number."""
    if isinstance(value, str | bytes | bytearray):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # torch raises the last for several elements
        return None
