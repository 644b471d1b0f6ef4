"""The command line's reference in Markdown, from the commands themselves: `python -m tests.support.cli_reference`."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator
from typing import Final

import click

from hopaas_p2p.cli.main import PROGRAM, cli
from hopaas_p2p.runtime.settings import SETTINGS, variable

_EVERYWHERE: Final = ("--help", "--json", "--debug")
_OFTEN: Final = 2  # an option that so many commands have is explained once
_HEAD: Final = f"""# The command line

Generated from the code: `python -m tests.support.cli_reference > docs/cli.md`.

Data goes to stdout, messages go to stderr. Every command takes `--json`, and shows a traceback only with `--debug`.
`NO_COLOR` is respected. `{PROGRAM} completion bash|zsh|fish` prints the completion script of a shell.

## Exit codes

| code | meaning |
|---|---|
| 0 | done |
| 1 | failure |
| 2 | wrong usage, or a value that is not allowed |
| 3 | no work: the study is finished, paused or stopped, or its budget is used up |
| 10 | `should-prune`: give the trial up |
| 11 | the lease was lost: another peer took the trial over |
| 69 | the store cannot be reached; trying again may help |
| 75 | run this job again: the trial was returned (`worker`, `run`), or the file system of the store is not mounted |
| 77 | denied: the store does not let this user do that |
| 78 | configuration: a setting, URL or store cannot be used as it is |
| 130 | interrupted |

## Settings

A setting is taken from the first place that has it: an option, a `HOPAAS_*` variable, `./hopaas.toml`,
`~/.config/hopaas-p2p/config.toml` (or `$XDG_CONFIG_HOME/hopaas-p2p/config.toml`), the default.
`{PROGRAM} config show` shows where each value comes from.
A file holds lines such as `store = "./campaign"`; settings without a name in brackets are variables only.

"""


def reference() -> str:
    """The whole text."""
    rows = []
    for name, one in SETTINGS.items():
        in_files = f" (`{name}`)" if one.in_files else ""
        default = f"; default {one.default}" if one.default else ""
        rows.append(f"* `{variable(name)}`{in_files}: {one.help}{default}")
    context = click.Context(cli, info_name=PROGRAM, show_default=True)
    commands = list(_commands(cli, context))
    counted = Counter(option for _, inner in commands for option in _options(inner))
    by_name = {_long(option[0]): option for option, _ in reversed(counted.most_common())}  # one meaning of each name
    often = {option for option in by_name.values() if counted[option] >= _OFTEN}
    head = _HEAD + "\n".join(rows) + "\n\n## Options of several commands\n\n"
    shared = "".join(f"* `{names}`: {_escaped(text)}\n" for names, text in counted if (names, text) in often)
    return head + shared + "\n## Commands\n" + "".join(_command(*one, often) for one in commands)


def _commands(group: click.Group, context: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        inner = click.Context(command, info_name=name, parent=context)
        yield command, inner
        if isinstance(command, click.Group):
            yield from _commands(command, inner)


def _options(context: click.Context) -> list[tuple[str, str]]:
    """The names and the help of a command's options, but for those of every command."""
    if isinstance(context.command, click.Group):
        return []
    records = [record for param in context.command.get_params(context) if (record := param.get_help_record(context))]
    return [(names, text) for names, text in records if text and not names.endswith(_EVERYWHERE)]


def _command(command: click.Command, context: click.Context, often: set[tuple[str, str]]) -> str:
    if isinstance(command, click.Group):
        return f"\n### `{context.command_path}`\n\n{_prose(command)}\n"
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    said = f"\n### `{context.command_path}`\n\n    {usage}\n\n{_prose(command)}\n"
    options = _options(context)
    lines = [f"* `{names}`: {_escaped(text)}\n" for names, text in options if (names, text) not in often]
    names = [f"`{_long(one[0])}`" for one in options if one in often]
    lines += [f"* Also {', '.join(names)}.\n"] if names else []
    return said + ("\n" + "".join(lines) if lines else "")


def _long(names: str) -> str:
    """An option's long name: of `-s, --store URL`, `--store`."""
    return next(word.strip(",") for word in names.split() if word.startswith("--"))


def _prose(command: click.Command) -> str:
    """The help, with what click keeps as it stands (after a backspace) as a code block."""
    parts = []
    for part in inspect.cleandoc(command.help or command.short_help or "").split("\n\n"):
        if part.startswith("\b"):
            parts.append("\n".join(f"    {line}" for line in part.split("\n")[1:]))
        else:
            parts.append(_escaped(part))
    return "\n\n".join(parts)


def _escaped(text: str) -> str:
    return text.replace("<", "\\<").replace("*", "\\*").replace("][", "]\\[")  # or it were a link


if __name__ == "__main__":
    click.echo(reference(), nl=False)
