"""The overview of the command line in Markdown, from the commands: `python -m tests.support.cli_reference`.

A line per command; arguments, options and examples are in its `--help`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Final

import click

from hopaas_p2p.cli.main import PROGRAM, cli
from hopaas_p2p.runtime.settings import SETTINGS, variable

_HEAD: Final = f"""# The command line

Add `--help` to a command to see its arguments, options and examples. Data goes to stdout and messages to stderr. Every
command but `demo`, `completion` and `serve https` takes `--json`. Add `--debug` to see a traceback.

## Exit codes

* 0: done
* 1: failure
* 2: wrong usage, or a value that is not allowed
* 3: no work, because the study is finished, paused, stopped or out of budget
* 10: `should-prune` found that the trial should be pruned
* 11: the lease was lost, because another peer took the trial over
* 69: the store cannot be reached; trying again may help
* 75: run this job again, because the trial was returned (`worker`, `run`) or the store's file system is not mounted
* 77: permission denied
* 78: a setting, a URL or the store cannot be used as it is
* 130: interrupted

## Settings

A setting is taken from the first place that has it: an option, a `HOPAAS_*` variable, the [joined study](join.md) in
use, `./hopaas.toml`, `~/.config/hopaas-p2p/config.toml` (or `$XDG_CONFIG_HOME/hopaas-p2p/config.toml`), the default.
`{PROGRAM} config show` shows each value and its origin. A file has lines such as `store = "./campaign"`. Settings
without a name in brackets are variables only.

"""


def reference() -> str:
    """The whole text."""
    rows = []
    for name, one in SETTINGS.items():
        in_files = f" (`{name}`)" if one.in_files else ""
        default = f"; default {one.default}" if one.default else ""
        rows.append(f"* `{variable(name)}`{in_files}: {one.help}{default}")
    context = click.Context(cli, info_name=PROGRAM)
    return (
        _HEAD
        + "\n".join(rows)
        + "\n\n## Commands\n"
        + "".join(_verb(name, context) for name in cli.list_commands(context))
    )


def _verb(name: str, context: click.Context) -> str:
    """A verb with its own heading, to be linked to, and its purpose, or that of each command below it."""
    command = cli.get_command(context, name)
    assert command is not None
    if isinstance(command, click.Group):
        said = "".join(f"* `{words}`: {_purpose(inner)}\n" for words, inner in _below(command, context))
    else:
        said = f"{_purpose(command)}\n"
    return f"\n### `{PROGRAM} {name}`\n\n{said}"


def _below(group: click.Group, context: click.Context, path: str = "") -> Iterator[tuple[str, click.Command]]:
    for name in group.list_commands(context):
        inner = group.get_command(context, name)
        assert inner is not None
        words = f"{path} {name}".strip()
        if isinstance(inner, click.Group):
            yield from _below(inner, context, words)
        else:
            yield words, inner


def _purpose(command: click.Command) -> str:
    """The first sentence of the help, without what follows a colon or a semicolon, or explains by a comma."""
    paragraph = " ".join(inspect.cleandoc(command.help or "").partition("\n\n")[0].split())
    sentence = re.split(r"[.:;] |, (?:which|including|or those) |\.$", paragraph)[0]
    return f"{sentence}.".replace("<", "\\<").replace("*", "\\*")


if __name__ == "__main__":
    click.echo(reference(), nl=False)
