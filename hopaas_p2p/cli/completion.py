"""`hopaas-p2p completion`: the script that teaches a shell our commands, options, and the names of studies."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash:  eval "$(hopaas-p2p completion bash)"      in ~/.bashrc
    zsh:   eval "$(hopaas-p2p completion zsh)"       in ~/.zshrc
    fish:  hopaas-p2p completion fish > ~/.config/fish/completions/hopaas-p2p.fish
    """  # noqa: D301  # click wants the backspace
    from hopaas_p2p.cli.main import PROGRAM, cli

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, PROGRAM, "_HOPAAS_P2P_COMPLETE").source())
