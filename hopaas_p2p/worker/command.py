"""The command of a trial: which parameters go into its words, and which reach it by its environment only.

A program may hand its words to a shell, an interpreter, or another host, and no list of those that do is complete. So a
number always goes into a word, and a text only if there is nothing in it that any of them takes for more than a text.
Every parameter is in HOPAAS_PARAMS (JSON) and in HOPAAS_PARAM_name, whatever is in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from hopaas_p2p.arguments import shown
from hopaas_p2p.errors import InvalidInput

_FIELD: Final = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
_NAME: Final = re.compile(r"[A-Za-z_]\w*")
_NOT_IN_ENVIRONMENT: Final = re.compile("[\0\ud800-\udfff]")
_PLAIN: Final = re.compile(r"(?!-)(?!.*\.\.)[A-Za-z0-9._+,:=@%/-]+")


def text_of(value: object) -> str:
    """A parameter as a command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def fill_in(command: Sequence[str], params: Mapping[str, Any], number: int) -> list[str]:
    """The command with `{name}` replaced by parameters, and `{trial}` by the number; `{{` and `}}` are braces.

    `params` are those of the study's search space: a trial that was queued by somebody else may bring others.

    Raises:
        InvalidInput: a `{name}` that is no parameter, or a text that does not go into a command line.

    """

    def replace(found: re.Match[str]) -> str:
        name = found[1]
        if name is None:
            return found[0][0]
        if name == "trial":
            return str(number)
        if name in params:
            return _checked(name, params[name])
        if _NAME.fullmatch(name):
            raise InvalidInput(
                f"the command has {{{name}}}, but the study has no parameter {name!r}; it has {', '.join(params)}. "
                f"For the text itself write {{{{{name}}}}}."
            )
        return found[0]

    return [_FIELD.sub(replace, word) for word in command]


def check(command: Sequence[str], space: Mapping[str, Any]) -> None:
    """Refuse, before the first trial, a command that some parameters of this search space do not go into.

    Raises:
        InvalidInput: as `fill_in`, for any choice of the space.

    """
    params = dict.fromkeys(space, 0)
    fill_in(command, params, 0)
    for name in {found[1] for word in command for found in _FIELD.finditer(word)} & space.keys() - {"trial"}:
        for choice in getattr(space[name], "choices", ()):
            _checked(name, choice)


def variables(params: Mapping[str, Any]) -> dict[str, str]:
    """The parameters as variables of an environment, but for texts that none can hold."""
    texts = {variable(name): text_of(value) for name, value in params.items()}
    return {name: text for name, text in texts.items() if _NOT_IN_ENVIRONMENT.search(text) is None}


def variable(name: str) -> str:
    """The variable of an environment that holds this parameter."""
    return "HOPAAS_PARAM_" + re.sub(r"\W", "_", name, flags=re.ASCII)


def _checked(name: str, value: object) -> str:
    """A parameter as a word of a command may contain it."""
    if isinstance(value, str) and _PLAIN.fullmatch(value) is None:
        raise InvalidInput(
            f"{name} may be {shown(value)}, and a text goes into a command only if it has nothing but ASCII letters, "
            f"digits and ._+,:=@%/- in it, no - at its beginning and no double dot. Leave {{{name}}} out of the "
            f"command: the program finds the value in the variable {variable(name)}, and in HOPAAS_PARAMS as JSON"
        )
    return text_of(value)
