"""`hopaas-p2p doctor`: checks a store, and says how to fix what fails."""

from __future__ import annotations

import contextlib
import shlex
from typing import TYPE_CHECKING, Any

import click

from hopaas_p2p import spool
from hopaas_p2p.cli import output
from hopaas_p2p.cli.options import CliSession, options
from hopaas_p2p.errors import ConfigurationError, HopaasError, NoSuchStudy
from hopaas_p2p.moving import rescue
from hopaas_p2p.net.findings import AGAIN, Finding
from hopaas_p2p.open import open_store
from hopaas_p2p.remote.client import RemoteStore
from hopaas_p2p.stores.checks import examine
from hopaas_p2p.stores.meet import Meeting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hopaas_p2p.storage import Storage
    from hopaas_p2p.stores.base import Store


@click.command()
@click.argument("url", required=False)
@click.option(
    "--meet", metavar="WORD", help="Test the store together with another node that runs the same command now."
)
@click.option("--rescue", is_flag=True, help="Copy what can be read of each damaged study into a new one.")
@click.option("--from-live", is_flag=True, help="With --rescue: first ask the study's live peers for what they know.")
@click.option("--to", metavar="STORE", help="With --rescue: the store for the new studies. [default: the same]")
@click.option("--as", "new_name", metavar="NAME", help="With --rescue: the new study's name. [default: OLD-rescued]")
@options(study="option")
def doctor(
    session: CliSession,
    url: str | None,
    meet: str | None,
    rescue: bool,
    from_live: bool,
    to: str | None,
    new_name: str | None,
) -> int:
    """Check a store from this node, and say how to fix what fails.

    First it checks the connection: name, proxy and certificate, with the days until it expires. Then the store:
    version, token, file system, clock, race, a write and a read, and every study's log and snapshot. It writes a
    scratch log and removes it, and exits with 1 when something failed.

    To test a directory that several nodes share, start the same command with --meet and the same WORD on two of
    them: both write into one log for ten seconds, and compare what they read.

    With --rescue it looks for damaged studies instead (or takes the one of --study), reads everything before and after
    the damage, and copies it into a new study, in which work can continue. The damaged one stays as it is.
    """
    if rescue:
        return _rescue(session, url or session.store_url, from_live=from_live, to=to, new_name=new_name)
    if from_live or to is not None or new_name is not None:
        raise click.UsageError("--from-live, --to and --as need --rescue.")
    session.settings.publish()
    place = url or session.store_url
    findings: list[Finding] = []

    def note(finding: Finding) -> None:
        findings.append(finding if not finding.passed else finding._replace(cure=""))
        if not session.as_json:
            click.echo(output.finding_text(finding, colour=True))

    try:
        store = open_store(place, create=False)
    except HopaasError as error:
        note(Finding("open", str(error), passed=False, cure=AGAIN))
    else:
        with contextlib.closing(store):
            for finding in examine(store) if meet is None else Meeting(store, meet).findings():
                note(finding)
            for finding in _spooled(store) if meet is None else ():
                note(finding)
    failed = sum(not finding.passed for finding in findings)
    said = f"{failed} of {len(findings)} checks failed." if failed else f"All {len(findings)} checks passed."
    session.show([finding._asdict() for finding in findings], lambda: output.say(said))
    return 1 if failed else 0


def _spooled(store: Store) -> Iterator[Finding]:
    """What this machine's spool has of a study's log, and the log has not."""
    with contextlib.suppress(HopaasError):  # what cannot be read was found before
        for uuid, name in rescue.names_of(store)[0].items() if any(spool.histories()) else ():
            kept = rescue.damage(store, uuid) if any(spool.histories(uuid)) else None
            if kept is not None:
                cure = f"copy both into a new study: hopaas-p2p doctor STORE --rescue --study {shlex.quote(name)}"
                yield Finding(f"study {name}, spool", kept, passed=False, cure=cure)


def _rescue(session: CliSession, place: str, *, from_live: bool, to: str | None, new_name: str | None) -> int:
    from hopaas_p2p.storage import open_storage

    session.settings.publish()
    results = []
    with contextlib.closing(open_store(place, create=False)) as store:
        if isinstance(store, RemoteStore):
            raise ConfigurationError(
                f"{store.url} leads to a store that is served. Rescue the study beside the store itself: hopaas-p2p "
                "doctor STORE --rescue"
            )
        names, whole = rescue.names_of(store)
        chosen = session.given["study"]
        if chosen is not None:
            names = {uuid: name for uuid, name in names.items() if name == chosen}
            if not names:
                raise NoSuchStudy(f"there is no study {chosen!r} in {store.url}")
        reasons = {uuid: rescue.damage(store, uuid) for uuid in names}
        damaged = {uuid: name for uuid, name in names.items() if chosen or reasons[uuid]}
        if not damaged:
            output.say("No study is damaged." if whole else "No study is damaged, but the list of studies is.")
        if new_name is not None and len(damaged) > 1:
            raise click.UsageError(
                f"--as names one study, but {len(damaged)} are damaged; choose one with --study NAME"
            )
        if damaged and not whole and to is None:
            raise ConfigurationError("the list of studies is damaged, too: copy into another store, with --to STORE")
        if damaged:
            with contextlib.closing(open_storage(to or place)) as target:
                for uuid, name in damaged.items():
                    output.say(f"{name}: {reasons[uuid] or 'not damaged, as far as can be seen'}")
                    rescued = _rescue_one(session, store, uuid, name, target, from_live=from_live, new_name=new_name)
                    results.append(rescued)
    if session.as_json:
        output.print_json(results)
    return 0


def _rescue_one(
    session: CliSession, store: Store, uuid: str, name: str, target: Storage, *, from_live: bool, new_name: str | None
) -> dict[str, Any]:
    """Rescue one study, and say what became of it."""
    handed_over: set[str] = set()
    if from_live:
        handed_over = rescue.ask_live_peers(
            store, uuid, within=max(rescue.HANDOVER_TIMEOUT, session.settings.seconds("patience"))
        )
        output.say(f"{name}: {output.count(len(handed_over), 'live peer')} handed over what it knows")
    found = rescue.rescue(store, uuid, handed_over)
    damage = _lsns(found.damaged) if found.damaged else "none known"
    output.say(f"{name}: damaged commits: {damage}")
    if found.covered:
        output.say(f"{name}: a snapshot or a live peer covers {_lsns(found.covered)}: nothing in them is lost")
    if found.lost:
        output.say(
            f"{name}: lost: {_lsns(found.lost)}. {output.count(len(found.uncertain), 'trial')} behind them are "
            f"marked with the attribute {rescue.MARK!r}, {len(found.unknown)} of which have no parameters"
        )
    if found.histories > 1:
        output.say(f"{name}: merged from {found.histories} histories of the log")
    if found.from_spool:
        output.say(f"{name}: {output.count(found.from_spool, 'commit')} came from this machine's spool")
    new = new_name or f"{name}-rescued"
    imported = rescue.into_new_study(found, store, uuid, new, target)
    rescue.forget_handed_over(store, uuid)
    for warning in imported.warnings:
        output.say(f"note: {warning}")
    output.say(f"{name}: copied {output.count(imported.trials, 'trial')} into the new study {new!r}")
    told = {what: getattr(found, what) for what in ("damaged", "lost", "histories", "from_spool")}
    told |= {"uncertain": sorted(found.uncertain), "without_parameters": found.unknown, "warnings": imported.warnings}
    return {"study": name, "new": new, "trials": imported.trials, **told}


def _lsns(lsns: list[int]) -> str:
    """Numbers, with runs of them as ranges."""
    runs: list[list[int]] = []
    for lsn in lsns:
        if runs and lsn == runs[-1][-1] + 1:
            runs[-1].append(lsn)
        else:
            runs.append([lsn])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
