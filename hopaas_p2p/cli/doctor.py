"""`hopaas-p2p doctor`: is this store fit for work, and if not, what cures it?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from hopaas_p2p.cli import output
from hopaas_p2p.cli.options import Session, options

if TYPE_CHECKING:
    from hopaas_p2p.stores.findings import Finding


@click.command()
@click.argument("url", required=False)
@options(study="none")
def doctor(session: Session, url: str | None) -> int:
    """Check a store from this node, line by line, and say what cures what fails.

    First the way: name, proxy and certificate, with the days it has left. Then the store: version, token, clock, lock
    or race, a write and a read, and every study's log and snapshot. Writes a scratch log and removes it. Exits with 1
    when something failed.
    """
    from hopaas_p2p.errors import HopaasError
    from hopaas_p2p.stores.checks import examine
    from hopaas_p2p.stores.findings import AGAIN, Finding
    from hopaas_p2p.stores.url import open_store

    session.settings.publish()
    place = url or session.store_url
    findings: list[Finding] = []

    def note(finding: Finding) -> None:
        findings.append(finding)
        if not session.as_json:
            _print(finding)

    try:
        store = open_store(place, create=False)
    except HopaasError as error:
        note(Finding("open", passed=False, detail=str(error), cure=AGAIN))
    else:
        try:
            for finding in examine(store):
                note(finding)
        finally:
            store.close()
    failed = sum(not finding.passed for finding in findings)
    if session.as_json:
        output.print_json([finding._asdict() for finding in findings])
    else:
        output.say(f"{failed} of {len(findings)} checks failed" if failed else f"all {len(findings)} checks passed")
    return 1 if failed else 0


def _print(finding: Finding) -> None:
    word = "passed" if finding.passed else "failed"
    colour = "green" if finding.passed else "red"
    shown = click.style(word, fg=colour) if output.in_colour() else word
    click.echo(f"{shown}  {output.printable(finding.check)}: {output.printable(finding.detail)}")
    if finding.cure:
        click.echo(f"        -> {output.printable(finding.cure)}")
