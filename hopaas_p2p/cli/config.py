"""`hopaas-p2p config show` and `completion`: the settings, and the script that teaches a shell our commands."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from hopaas_p2p.cli import output
from hopaas_p2p.cli.lazy import Subgroup
from hopaas_p2p.cli.options import CliSession, options
from hopaas_p2p.settings import SETTINGS, variable
from hopaas_p2p.stores.url import redacted


@click.group(cls=Subgroup)
def config() -> None:
    """Show the settings, and where each comes from.

    A setting is taken from the first place that has it: an option, a HOPAAS_* variable, ./hopaas.toml, your own file
    (~/.config/hopaas-p2p/config.toml), the default.
    """


@config.command()
@options()
@click.option("--origin", is_flag=True, help="Also show where each comes from.")
def show(session: CliSession, origin: bool) -> None:
    """Show the settings that are in effect here."""
    rows = {}
    for name, setting in SETTINGS.items():
        found = session.settings.find(name, session.given.get(name))
        value = found.value
        if value is not None:
            value = "***" if setting.secret else redacted(value)
        rows[name] = {"value": value, "origin": found.origin, "variable": variable(name), "help": setting.help}

    def text() -> None:
        headers = ["SETTING", "VALUE", "ORIGIN"] if origin else ["SETTING", "VALUE"]
        cells = [[name, row["value"] or "-", row["origin"] or ""][: len(headers)] for name, row in rows.items()]
        output.print_table(headers, cells)

    session.show(rows if origin else {name: row["value"] for name, row in rows.items()}, text)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash:  eval "$(hopaas-p2p completion bash)"      in ~/.bashrc
    zsh:   eval "$(hopaas-p2p completion zsh)"       in ~/.zshrc
    fish:  hopaas-p2p completion fish > ~/.config/fish/completions/hopaas-p2p.fish
    """  # noqa: D301  # click needs the backspace
    from hopaas_p2p.cli.main import PROGRAM, cli

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, PROGRAM, "_HOPAAS_P2P_COMPLETE").source())
