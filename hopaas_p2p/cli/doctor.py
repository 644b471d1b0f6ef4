"""The command `hopaas-p2p doctor`, which checks a store, and explains how to fix problems."""

from __future__ import annotations

import contextlib
import itertools
import shlex
from typing import TYPE_CHECKING, Final

import click

from hopaas_p2p import spool
from hopaas_p2p.cli import output
from hopaas_p2p.cli.options import CliSession, command, store_named
from hopaas_p2p.errors import ConfigurationError, Denied, HopaasError
from hopaas_p2p.moving import rescue
from hopaas_p2p.net.findings import AGAIN, Finding
from hopaas_p2p.open import no_such_study, open_beside, open_store
from hopaas_p2p.stores.checks import examine
from hopaas_p2p.stores.meet import TIMEOUT, Meeting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hopaas_p2p.stores.base import Store

_MOST_LISTED: Final = 100_000  # lsns in JSON
_NO_LIST: Final = "The study list is damaged. To copy a study: hopaas-p2p doctor STORE --rescue --study NAME --to NEW"


@command(study="option")
@click.argument("url", required=False)  # not `store_named`: messages say "run doctor URL" for any URL
@click.option("--meet", metavar="WORD", help="Test the store together with another node that runs this command now.")
@click.option("--rescue", is_flag=True, help="Copy the readable part of each damaged study into a new one.")
@click.option("--from-live", is_flag=True, help="With --rescue: first ask the study's live peers for their replicas.")
@click.option(
    "--to", metavar="STORE", callback=store_named, help="With --rescue: the new studies' store. [default: the same]"
)
@click.option("--as", "new_name", metavar="NAME", help="With --rescue: the new study's name. [default: OLD-rescued]")
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

    The command checks the connection (name, proxy, and certificate with the days until expiry), and then the store:
    version, token, file system, clock, races, a write and a read, and every study's log and snapshot. It writes a
    scratch log, which it removes, and exits with 1 if a check failed.

    To test a directory that several nodes share, run the command with --meet and the same WORD on two of them. Both
    write to one log for ten seconds and compare what they read.

    With --rescue, the command instead looks for damaged studies (or takes the one that --study names). It copies
    everything before and after the damage into a new study, in which work can continue. The damaged study is not
    changed.
    """
    session.settings.publish()
    place = url or session.store_url
    if rescue:
        return _rescue(session, place, from_live=from_live, to=to, new_name=new_name)
    if from_live or to is not None or new_name is not None:
        raise click.UsageError("--from-live, --to and --as need --rescue.")
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
            meeting = None if meet is None else Meeting(store, meet).findings()
            if meeting is not None:
                output.say(f"Waiting up to {output.duration(TIMEOUT)} for another node that runs the same command …")
            for finding in meeting or itertools.chain(examine(store), _spooled(store)):
                note(finding)
    failed = sum(not finding.passed for finding in findings)
    said = f"{failed} of {len(findings)} checks failed." if failed else f"All {len(findings)} checks passed."
    session.show([finding._asdict() for finding in findings], lambda: output.say(said))
    return 1 if failed else 0


def _spooled(store: Store) -> Iterator[Finding]:
    """One finding for each study whose log lacks commits that are in this machine's spool."""
    with contextlib.suppress(HopaasError):  # unreadable logs are reported by an earlier check
        for uuid, name in rescue.names_of(store)[0].items() if any(spool.histories()) else ():
            kept = rescue.damage(store, uuid) if any(spool.histories(uuid)) else None
            if kept is not None:
                where = f"{shlex.quote(store.url)} --rescue --study {shlex.quote(name)}"
                cure = f"copy the log and these commits into a new study: hopaas-p2p doctor {where}"
                yield Finding(f"study {name}, spool", kept, passed=False, cure=cure)


def _rescue(session: CliSession, place: str, *, from_live: bool, to: str | None, new_name: str | None) -> int:
    from hopaas_p2p.storage import open_storage

    results = []
    with contextlib.ExitStack() as opened:
        store = opened.enter_context(contextlib.closing(open_beside(place, create=False)))
        names, whole = rescue.names_of(store)
        chosen = session.given["study"]
        if chosen is not None and chosen not in names.values():
            raise no_such_study(chosen, store.url, names.values())
        names = {uuid: name for uuid, name in names.items() if chosen in (None, name)}
        reasons = {uuid: rescue.damage(store, uuid) for uuid in names}
        damaged = {uuid: name for uuid, name in names.items() if chosen or reasons[uuid]}
        if not damaged:
            output.say("No study is damaged." if whole else _NO_LIST)
            session.show([], lambda: None)
            return 0
        if new_name is not None and len(damaged) > 1:
            raise click.UsageError(f"--as names one study, and {len(damaged)} are damaged. Choose one: --study NAME")
        if not whole and to is None:
            raise ConfigurationError("the list of studies is damaged; to copy into another store, add --to STORE")
        target = opened.enter_context(contextlib.closing(open_storage(to or place, named=False)))
        within = max(rescue.HANDOVER_TIMEOUT, session.settings.seconds("patience"))
        for uuid, name in damaged.items():
            output.say(f"{name}: {reasons[uuid] or 'no damage was found'}")
            try:
                handed_over = rescue.ask_live_peers(store, uuid, within=within) if from_live else set[str]()
            except Denied as error:
                handed_over = set()
                output.say(f"{name}: its peers were not asked for replicas: {error}")
            found, new = rescue.rescue(store, uuid, handed_over), new_name or f"{name}-rescued"
            imported = rescue.into_new_study(found, store, uuid, new, target)
            rescue.forget_handed_over(store, uuid)
            for line in _rescued_lines(found, handed_over):
                output.say(f"{name}: {line}")
            for warning in imported.warnings:
                output.say(f"Note: {warning}")
            output.say(f"{name}: copied {output.count(imported.trials, 'trial')} into the new study {new!r}")
            told: dict[str, object] = {"histories": found.histories, "from_spool": found.from_spool}
            for what, runs in (("damaged", found.damaged), ("lost", found.lost)):
                told[what] = list(itertools.islice(itertools.chain(*runs), _MOST_LISTED))
            told |= {"uncertain": sorted(found.uncertain), "without_parameters": found.unknown}
            told |= {"study": name, "new": new, "trials": imported.trials, "warnings": imported.warnings}
            results.append(told)
    session.show(results, lambda: None)
    return 0


def _rescued_lines(found: rescue.Rescued, handed_over: set[str]) -> Iterator[str]:
    """Lines for people that say what was rescued and what was lost."""
    if handed_over:
        yield f"{output.count(len(handed_over), 'replica')} received from live peers"
    yield f"damaged commits: {rescue.in_words(found.damaged) or 'none known'}"
    if found.covered:
        yield f"nothing in {rescue.in_words(found.covered)} is lost, because a snapshot or a live peer covers it"
    if found.lost:
        yield (
            f"lost commits: {rescue.in_words(found.lost)}. The attribute {rescue.MARK!r} marks "
            f"{output.count(len(found.uncertain), 'later trial')}, {len(found.unknown)} of them without parameters"
        )
    if found.histories > 1:
        yield f"merged from {found.histories} histories of the log"
    if found.from_spool:
        yield f"{output.count(found.from_spool, 'commit')} came from this machine's spool"
