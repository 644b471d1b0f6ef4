"""`hopaas-p2p config show`: the settings, and where each comes from."""

from __future__ import annotations

import click

from hopaas_p2p.cli import output
from hopaas_p2p.cli.options import Session, options
from hopaas_p2p.settings import SETTINGS, variable
from hopaas_p2p.stores.url import redacted


@click.group()
def config() -> None:
    """Show the settings, and where each comes from.

    An option wins over a HOPAAS_* variable, that over ./hopaas.toml, that over the user's own file
    (~/.config/hopaas-p2p/config.toml), that over the default.
    """


@config.command()
@options()
@click.option("--origin", is_flag=True, help="Say for each where it comes from.")
def show(session: Session, origin: bool) -> None:
    """Show what holds here and now."""
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
