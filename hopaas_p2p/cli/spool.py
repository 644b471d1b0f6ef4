"""`hopaas-p2p admin spool list|send|export`: results on this machine's disk that could not reach their store."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hopaas_p2p import spool as waiting
from hopaas_p2p.cli import output
from hopaas_p2p.cli.lazy import Group
from hopaas_p2p.cli.options import EXISTING, FILE, CliSession, Columns, check_new, force_option, options
from hopaas_p2p.errors import HopaasError, NoSuchStudy, NoSuchTrial
from hopaas_p2p.open import servers_of
from hopaas_p2p.runtime import credentials
from hopaas_p2p.runtime.times import to_iso
from hopaas_p2p.spool import is_for

if TYPE_CHECKING:
    from hopaas_p2p.spool import Spooled

    _Batch = tuple[str, Path | None, Spooled]
    """The file that it is in, its place in the spool, and what it is."""


@click.group(cls=Group)
def spool() -> None:
    """List, send and carry results that could not reach their store.

    They are kept in ~/.local/state/hopaas-p2p/spool (or under XDG_STATE_HOME). Any process of yours that takes part in
    a study of the same store sends them too, whatever URL it uses. Each counts once, however often it is sent.
    """


@spool.command("list")
@options(study="none", store=False)
def list_(session: CliSession) -> None:
    """List the results that are waiting to be sent."""
    rows = [
        {
            "since": to_iso(spooled.at),
            "store": spooled.store,
            "study": spooled.name,
            "trials": spooled.trials,
            "commits": len(spooled.payloads),
            "file": str(path),
        }
        for path, spooled in waiting.waiting()
    ]
    columns: Columns = {
        "SINCE": output.time_in("since"),
        "STORE": "store",
        "STUDY": "study",
        "TRIALS": lambda row: ", ".join(f"#{number}" for number in row["trials"]),
        "FILE": "file",
    }
    session.show_table(rows, columns, empty="No results are waiting to be sent.")
    kept = sum(1 for _ in waiting.histories())
    if kept and not session.as_json:
        files = "1 file holds" if kept == 1 else f"{kept} files hold"
        output.say(f"{files} what a log may have lost; to see and add it: hopaas-p2p doctor STORE")


@spool.command()
@options(study="none", store=False)
@click.argument("target", metavar="FILE", type=FILE)
@force_option
def export(session: CliSession, target: Path, force: bool) -> None:
    """Write all waiting results to a file, to be sent from another machine: hopaas-p2p admin spool send FILE.

    They stay in the spool as well; each counts once, whichever copy arrives first. Only you can read the file.
    The file also contains what peers kept of a log with two histories, for `doctor --rescue` on the other machine.
    """
    check_new(target, force=force)
    everything = waiting.export(target)
    trials = sum(len(one.trials) for one in everything)
    data = {"file": str(target), "files": len(everything), "trials": trials}
    session.done(data, f"Wrote the results of {output.count(trials, 'trial')} to {target}.")


@spool.command()
@options(study="none")
@click.argument("source", metavar="[FILE]", required=False, type=EXISTING)
def send(session: CliSession, source: Path | None) -> int:
    """Send the results that wait on this machine, or those in FILE, which `admin spool export` wrote on another.

    Results of studies in the store of --store (or HOPAAS_STORE) are sent to it with that URL's login, whatever URL of
    the store their peer used. Without --store, other results are sent to the URL that their peer used. If some cannot
    be sent, the exit code says why: 69, for example. FILE is not removed; sending it twice does no harm.
    A result of a trial that another process has ended meanwhile is sent and not counted, and this command says so.
    What only an owner may say, such as a stop of the study, is left out of FILE.
    Histories in FILE are kept in this machine's spool, where `hopaas-p2p doctor STORE --rescue` finds them.
    """
    found: list[_Batch] = (
        [(str(path), path, spooled) for path, spooled in waiting.waiting()]
        if source is None
        else [(str(source), None, spooled) for spooled in waiting.exported(source)]
    )
    left = [one for one in found if one[2].why != "history"]
    kept = len(found) - len(left)
    for _, _, spooled in found:
        if spooled.why == "history":
            waiting.take_in(spooled)
    elsewhere = {spooled.store for _, _, spooled in left} if source is not None else set()
    stores: list[str] = []
    configured = session.settings.get("store", session.given["store"])
    if configured:
        stores.append(configured)
    if session.given["store"] is None:
        stores += sorted({spooled.store for _, _, spooled in left} - {configured})
    sent: list[str] = []
    stay: dict[str, tuple[str, int]] = {}
    uncounted: list[tuple[str, str]] = []
    for store in stores:
        if store in elsewhere and store != configured:
            credentials.check_named(store, servers_of(store), by=f"the file {source}")
        left = _send(store, left, sent, stay, uncounted)
    if session.given["store"] is None or source is not None:
        for file, _, spooled in left:
            stay.setdefault(file, (f"No store that can be reached has the study {spooled.name!r}.", 69))

    def text() -> None:
        unsent = f"; could not send {len(stay)}" if stay else ""
        output.say(
            f"Sent {output.count(len(sent), 'file')}{unsent}." if sent or stay else "No results are waiting to be sent."
        )
        if kept:
            output.say(f"Kept {kept} for a rescue: hopaas-p2p doctor STORE --rescue")
        for file, why in [*uncounted, *((file, why) for file, (why, _) in stay.items())]:
            output.say(f"{file}: {why}")

    data = {
        "sent": sent,
        "stay": [{"file": file, "why": why} for file, (why, _) in stay.items()],
        "uncounted": [{"file": file, "why": why} for file, why in uncounted],
    }
    session.show(data, text)
    return max((code for _, code in stay.values()), default=0)


def _send(
    store: str,
    batches: list[_Batch],
    sent: list[str],
    stay: dict[str, tuple[str, int]],
    uncounted: list[tuple[str, str]],
) -> list[_Batch]:
    """Send what is for this store; what is for another."""
    from hopaas_p2p.peer.spool import KeptForRescue
    from hopaas_p2p.storage import open_storage

    left: list[_Batch] = []
    url = store
    with contextlib.ExitStack() as opened:
        try:
            storage = opened.enter_context(contextlib.closing(open_storage(store, create=False)))
            url = storage.peer.store.url
            storage.study_names()
        except HopaasError as error:
            stay.update({file: (str(error), error.exit_code) for file, _, one in batches if is_for(one, url)})
            return batches
        studies = storage.peer.studies()
        for file, path, spooled in batches:
            if not is_for(spooled, url, studies):
                left.append((file, path, spooled))
                continue
            try:
                uncounted += [(file, why) for why in storage.peer.send_spooled(spooled)]
            except KeptForRescue as error:
                stay[file] = (str(error), error.exit_code)
            except HopaasError as error:
                stay[file] = (str(error), error.exit_code)
                left += [(file, path, spooled)] if error.retry or isinstance(error, NoSuchStudy | NoSuchTrial) else []
                continue
            else:
                stay.pop(file, None)
                sent.append(file)
            if path is not None:
                waiting.remove(path)
    return left
