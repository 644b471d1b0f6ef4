"""The commands `hopaas-p2p config …`, for the settings, and `completion`, for the completion scripts of shells."""

from __future__ import annotations

from pathlib import Path

import click
from click.shell_completion import get_completion_class

from hopaas_p2p.cli import output
from hopaas_p2p.cli.lazy import Group
from hopaas_p2p.cli.options import FILE, CliSession
from hopaas_p2p.open import redacted
from hopaas_p2p.runtime.settings import HERE, SETTINGS, trust, variable


@click.group(cls=Group)
def config() -> None:
    """Show the settings, and where each comes from.

    A setting is taken from the first place that has it: an option, a HOPAAS_* variable, ./hopaas.toml, your own file
    (~/.config/hopaas-p2p/config.toml), the default. A ./hopaas.toml applies in full once you have trusted it.
    """


@config.command()
def show(session: CliSession) -> None:
    """Show the settings that are in effect here, and where each comes from."""
    rows = {}
    for name, setting in SETTINGS.items():
        found = session.settings.look(name, session.given.get(name))
        value = None if found.value is None else redacted(found.value)
        origin_ = found.origin if found.counts else f"{found.origin}, not trusted"
        rows[name] = {"value": value, "origin": origin_, "variable": variable(name), "help": setting.help}
    cells = [[name, row["value"] or "-", row["origin"] or ""] for name, row in rows.items()]
    session.show(rows, lambda: output.print_table(["SETTING", "VALUE", "ORIGIN"], cells))


@config.command("trust", study="none", store=False)
@click.argument("file", required=False, default=HERE, type=FILE)
def trust_file(session: CliSession, file: Path) -> None:
    """Trust FILE (by default ./hopaas.toml) with its present content.

    An untrusted hopaas.toml, which may have come with somebody else's repository, can set the study, names and numbers,
    and a store in its own folder, but no other store or host, no file and no place for artifacts. Trust the file again
    after you change it. Trust is recorded next to your own settings, in ~/.config/hopaas-p2p or XDG_CONFIG_HOME.
    """
    values = {name: redacted(value) for name, value in trust(file).items()}
    said = ", ".join(f"{name} = {one if one.isprintable() else repr(one)}" for name, one in values.items())
    session.done({"file": str(file), "settings": values}, f"{file} is now trusted. It sets: {said}")


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
