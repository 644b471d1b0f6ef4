"""`hopaas-p2p spool list|send`: results that could not reach their store and wait on this machine's disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from hopaas_p2p.cli import output
from hopaas_p2p.cli.options import Session, options
from hopaas_p2p.errors import HopaasError

if TYPE_CHECKING:
    from pathlib import Path

    from hopaas_p2p.peer.spool import Spooled


@click.group()
def spool() -> None:
    """List and send results that could not reach their store.

    They lie in ~/.local/state/hopaas-p2p/spool (or under XDG_STATE_HOME). Any process of yours that takes part in a
    study of the same store sends them too; each counts once, however often it is sent.
    """


@spool.command("list")
@options(study="none", store=False)
def list_(session: Session) -> None:
    """List what waits to be sent."""
    from hopaas_p2p.peer import spool as waiting

    rows = [_row(path, spooled) for path, spooled in waiting.waiting()]

    def text() -> None:
        if not rows:
            output.say("nothing waits to be sent")
            return
        output.print_table(
            ["SINCE", "STORE", "STUDY", "TRIALS", "FILE"],
            [
                [
                    output.local_time(row["at_us"]),
                    row["store"],
                    row["study"],
                    ", ".join(f"#{number}" for number in row["trials"]),
                    row["file"],
                ]
                for row in rows
            ],
        )

    session.show([{key: value for key, value in row.items() if key != "at_us"} for row in rows], text)


def _row(path: Path, spooled: Spooled) -> dict[str, Any]:
    return {
        "since": output.iso_time(spooled.at),
        "at_us": spooled.at,
        "store": spooled.store,
        "study": spooled.name,
        "trials": spooled.trials,
        "commits": len(spooled.payloads),
        "file": str(path),
    }


@spool.command()
@options(study="none")
def send(session: Session) -> int:
    """Send what waits: all of it, or what is for the store of --store, with that URL's login.

    When something has to stay, the exit code is that of the trouble, such as 69.
    """
    from hopaas_p2p.peer import spool as waiting
    from hopaas_p2p.stores.url import open_store

    given = session.given["store"]
    only = None if given is None else open_store(given, create=False).url
    sent: list[str] = []
    stay: list[dict[str, str]] = []
    code = 0
    for path, spooled in list(waiting.waiting(only)):
        try:
            _send(path, spooled, given or spooled.store)
        except HopaasError as error:
            code = error.exit_code
            stay.append({"file": str(path), "why": str(error)})
        else:
            sent.append(str(path))

    def text() -> None:
        output.say(f"sent {len(sent)}, {len(stay)} have to stay" if sent or stay else "nothing waits to be sent")
        for one in stay:
            output.say(f"{one['file']}: {one['why']}")

    session.show({"sent": sent, "stay": stay}, text)
    return code


def _send(path: Path, spooled: Spooled, store: str) -> None:
    from hopaas_p2p.storage import open_storage

    storage = open_storage(store, create=False)
    try:
        storage.courier.deliver(path, spooled)
    finally:
        storage.close()
