"""`hopaas-p2p study report`: a study as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from hopaas_p2p.cli.options import Session, options

_DEFAULT: Final = "report.html"


@click.command("report")
@options(study="argument")
@click.option(
    "--out",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path(_DEFAULT),
    show_default=True,
    help="Where the file goes.",
)
def report_html(session: Session, out: Path) -> None:
    """Write the study's report: one HTML file that needs no network and no server.

    \b
    hopaas-p2p study report mnist -s ./campaign -o mnist.html
    """  # noqa: D301  # click wants the backspace
    from hopaas_p2p.report import write_report

    path = write_report(session.study(), out)
    session.done({"report": str(path)}, f"wrote {path}")
