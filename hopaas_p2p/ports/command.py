"""The command of a trial: which parameters go into its words, and which reach it only through its environment.

A program may pass its words to a shell, an interpreter, or another host, and no list of such programs is complete. So a
number always goes into a word, but a string only if no shell or interpreter could take any part of it for code (Perl,
for example, runs `eval+v49.50`). A word with spaces or brackets is more than a name or an option and may run as code,
so a string that is not a name is allowed in it only between quotes, which nothing in the string can end. Every
parameter is in HOPAAS_PARAMS (JSON) and in HOPAAS_PARAM_name, whatever its value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.runtime.arguments import shown

_FIELD: Final = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
_NAME: Final = re.compile(r"[A-Za-z_]\w*")
_NOT_IN_ENVIRONMENT: Final = re.compile("[\0\ud800-\udfff]")
_PLAIN: Final = re.compile(r"(?!-)(?!.*\.\.)[A-Za-z0-9._+,:=@%/-]+")
_PROGRAM: Final = re.compile(r"[^A-Za-z0-9._+,:=@%/-]")
"""The sign that a word may run as code: characters other than those of names, options and their punctuation."""
_OPENED: Final = re.compile(
    r"""(?!.*\\["'])(?:[^"']|"[^"]*"|'[^']*')*(?:["']|"(?:[^"']|'[^"']*')*'|'(?:[^"']|"[^"']*")*")""", re.DOTALL
)
"""The part of a word up to a quote that opens a string, including one level inside other quotes. Languages differ
in how they treat a quote after a backslash."""
_IDENTIFIER: Final = re.compile(r"\w+", re.ASCII)


class DoesNotFit(InvalidInput):
    """The parameters of this trial do not fit into its command."""


def text_of(value: object) -> str:
    """A parameter as text for a command line."""
    return value if isinstance(value, str) else json.dumps(value)


def fill_in(command: Sequence[str], params: Mapping[str, Any], number: int) -> list[str]:
    """The command with `{name}` replaced with parameters, and `{trial}` with the number; `{{` and `}}` are braces.

    `params` are those of the study's search space, because a trial queued by somebody else may have others.

    Raises:
        DoesNotFit: a `{name}` that is not a parameter, or a string that is not allowed in a command line.

    """

    def replace(found: re.Match[str]) -> str:
        name = found[1]
        if name is None:
            return found[0][0]
        if name == "trial":
            return str(number)
        if name in params:
            return _checked(name, params, found)
        if _NAME.fullmatch(name):
            raise DoesNotFit(
                f"the command has {{{name}}}, but the study has no parameter {name!r}; it has "
                f"{', '.join(params) or 'none'}. For the text itself write {{{{{name}}}}}."
            )
        return found[0]

    words = [_FIELD.sub(replace, word) for word in command]
    for word, filled in zip(command, words, strict=True):
        # a string that is joined to its neighbours becomes neither an option nor a path upwards
        texts = [found[1] for found in _FIELD.finditer(word) if isinstance(params.get(found[1] or ""), str)]
        if texts and (filled.count("..") > word.count("..") or filled.startswith("-") > word.startswith("-")):
            raise DoesNotFit(f"{shown(word)} becomes {shown(filled)}, which is unsafe. {_instead(texts[0])}")
    return words


def check(command: Sequence[str], space: Mapping[str, Any]) -> None:
    """Refuse, before the first trial, a command into which some parameters of this search space do not fit.

    Raises:
        DoesNotFit: like `fill_in`, for any choice of the space.

    """
    params = dict.fromkeys(space, 0)
    fill_in(command, params, 0)
    for name in {found[1] for word in command for found in _FIELD.finditer(word)} & space.keys() - {"trial"}:
        for choice in getattr(space[name], "choices", ()):
            fill_in(command, {**params, name: choice}, 0)


def variables(params: Mapping[str, Any]) -> dict[str, str]:
    """The parameters as environment variables, except strings that these cannot hold."""
    texts = {variable(name): text_of(value) for name, value in params.items()}
    return {name: text for name, text in texts.items() if _NOT_IN_ENVIRONMENT.search(text) is None}


def variable(name: str) -> str:
    """The environment variable for this parameter."""
    return "HOPAAS_PARAM_" + re.sub(r"\W", "_", name, flags=re.ASCII)


def _checked(name: str, params: Mapping[str, Any], field: re.Match[str]) -> str:
    """A parameter in a form that a word of a command may contain in place of this field."""
    value = params[name]
    if not isinstance(value, str):
        return text_of(value)
    before, after = field.string[: field.start()], field.string[field.end() :]
    if _PLAIN.fullmatch(value) is None:
        raise DoesNotFit(
            f"{name} may be {shown(value)}, and a string may be part of a command only if it has only ASCII letters, "
            f"digits and ._+,:=@%/-, does not begin with -, and has no double dot. {_instead(name)}"
        )
    quoted = _OPENED.fullmatch(before) is not None and before[-1] == after[:1]
    may_be_program = _PROGRAM.search(_FIELD.sub(lambda found: "" if found[1] in params else found[0], field.string))
    if may_be_program and not quoted and _IDENTIFIER.fullmatch(value) is None:
        raise DoesNotFit(
            f"{name} may be {shown(value)}, and {shown(field.string)} may run as code: a string in it must have only "
            f"letters, digits and _, or be quoted: '{{{name}}}'. {_instead(name)}"
        )
    return value


def _instead(name: str) -> str:
    found = f"the program finds the value in the variable {variable(name)}, and in HOPAAS_PARAMS as JSON"
    return f"Leave {{{name}}} out of the command: {found}"
