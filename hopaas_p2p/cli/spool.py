"""The commands `hopaas-p2p admin spool list|send|export`, for results on this machine's disk that could not reach their
store.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hopaas_p2p import spool as waiting
from hopaas_p2p.cli import output
from hopaas_p2p.cli.lazy import Group
from hopaas_p2p.cli.options import EXISTING, FILE, CliSession, Columns, check_new, force_option
from hopaas_p2p.errors import HopaasError, NoSuchStudy, NoSuchTrial, StoreUnreachable
from hopaas_p2p.open import servers_of
from hopaas_p2p.runtime import credentials
from hopaas_p2p.runtime.times import to_iso

if TYPE_CHECKING:
    from hopaas_p2p.spool import Spooled
    from hopaas_p2p.storage import Storage


@click.group(cls=Group)
def spool() -> None:
    """List, send and carry results that could not reach their store.

    The results are kept in ~/.local/state/hopaas-p2p/spool (or under XDG_STATE_HOME). Any process of yours that takes
    part in a study of the same store sends them, too, whatever URL it uses. Each result counts once, however often it
    is sent. A result sent to another URL of its store is also kept for 30 days, to be sent to its peer's URL.
    """


@spool.command("list", study="none", store=False)
def list_(session: CliSession) -> None:
    """List the results that are waiting to be sent."""
    rows = [
        {"since": to_iso(one.at), "store": one.store, "study": one.name, "trials": one.trials, "file": str(path)}
        for path, one in waiting.waiting()
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
        files = "1 file has" if kept == 1 else f"{kept} files have"
        output.say(f"{files} commits that a log may have lost. To check and recover them: hopaas-p2p doctor STORE")


@spool.command(study="none", store=False)
@click.argument("target", metavar="FILE", type=FILE)
@force_option
def export(session: CliSession, target: Path, force: bool) -> None:
    """Write all waiting results to a file, to be sent from another machine: hopaas-p2p admin spool send FILE.

    The results also stay in the spool. Each result counts once, whichever copy arrives first. Only you can read the
    file. It also contains the commits that peers kept of a log with two histories, for `doctor --rescue` on the other
    machine.
    """
    check_new(target, force=force)
    everything = waiting.export(target)
    trials = sum(len(one.trials) for one in everything)
    data = {"file": str(target), "files": len(everything), "trials": trials}
    session.done(data, f"Wrote the results of {output.count(trials, 'trial')} to {target}.")


@spool.command(study="none")
@click.argument("source", metavar="[FILE]", required=False, type=EXISTING)
def send(session: CliSession, source: Path | None) -> int:
    """Send the results that wait on this machine, or those in FILE, which `admin spool export` wrote elsewhere.

    Results of studies in the store of --store (or HOPAAS_STORE) are sent to it with that URL's login, whatever URL of
    the store their peer used. If the peer wrote to a directory or bucket itself, they cannot be sent through a server.
    Without --store, other results are sent to their peer's URL. If some cannot be sent, the exit code shows why (such
    as 69). FILE is not removed; sending it twice does no harm. The result of a trial that another process has
    ended meanwhile is sent but not counted, and this command reports it. Records that only an owner may write, such as
    a stop of the study, are left out of FILE. Histories in FILE are kept in this machine's spool, where `hopaas-p2p
    doctor STORE --rescue` finds them.
    """
    from hopaas_p2p.peer.spool import KeptForRescue

    batches: list[tuple[Path | None, Spooled]] = []
    kept, code = 0, 0
    for path, spooled in waiting.waiting() if source is None else ((None, one) for one in waiting.exported(source)):
        if spooled.why == "history":
            waiting.take_in(spooled)
            kept += 1
        else:
            batches.append((path, spooled))
    session.settings.publish()
    anywhere, configured = session.given["store"] is None, session.settings.get("store", session.given["store"])
    others = sorted({spooled.store for _, spooled in batches} - {configured}) if anywhere else []
    for url in others if source is not None else ():
        credentials.check_named(url, servers_of(url), by=f"the file {source}")
    sent: list[str] = []
    stay: list[dict[str, str]] = []
    uncounted: list[dict[str, str]] = []
    with contextlib.ExitStack() as opened:
        stores = [(url, _opened(url, opened)) for url in filter(None, [configured, *others])]
        for path, spooled in batches:
            file, told = str(path or source), _told(path, spooled, stores)
            if told is None and (anywhere or source is not None):
                told = StoreUnreachable(f"No store that can be reached has the study {spooled.name!r}.")
            if isinstance(told, HopaasError):
                stay.append({"file": file, "why": str(told)})
                code = max(code, told.exit_code)
            elif told is not None:
                sent.append(file)
                uncounted += [{"file": file, "why": one} for one in told]
            if path is not None and isinstance(told, KeptForRescue):
                waiting.remove(path)

    def text() -> None:
        did = f"Sent {output.count(len(sent), 'file')}" + (f"; could not send {len(stay)}" if stay else "")
        output.say(f"{did}." if sent or stay else "No results are waiting to be sent.")
        if kept:
            output.say(f"Kept commits of {output.count(kept, 'peer')}. To use them: hopaas-p2p doctor STORE --rescue")
        for one in (*uncounted, *stay):
            output.say(f"{one['file']}: {one['why']}")

    session.show({"sent": sent, "stay": stay, "uncounted": uncounted}, text)
    return code


def _opened(url: str, opened: contextlib.ExitStack) -> Storage | HopaasError:
    """The store, after its list of studies has been read; or the error that makes the store unusable."""
    from hopaas_p2p.storage import open_storage

    try:
        storage = open_storage(url, create=False, named=False)
        opened.callback(storage.close)
        storage.study_names()
    except HopaasError as error:
        return error
    return storage


def _told(
    path: Path | None, spooled: Spooled, stores: list[tuple[str, Storage | HopaasError]]
) -> list[str] | HopaasError | None:
    """Send a batch of results, which may be from a file `path` of the spool, to its store.

    Returns the results that were not counted, or the error because of which the batch stays; None if it belongs to no
    store of these.
    """
    why: HopaasError | None = None
    for url, store in stores:
        if isinstance(store, HopaasError):
            why = store if waiting.is_for(spooled, url) else why
        elif waiting.is_for(spooled, store.peer.store.url, store.peer.studies()):
            try:
                uncounted = store.peer.spool.send(spooled, store.peer.logs, writer=store.peer.uuid)
                if path is not None:
                    waiting.sent(path, spooled, store.peer.store.url)
                return uncounted
            except HopaasError as error:
                why = error
                if not (error.retry or isinstance(error, NoSuchStudy | NoSuchTrial)):
                    break
    return why
