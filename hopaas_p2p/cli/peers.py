"""The commands `hopaas-p2p peers list|drain`, which list the peers of a study, or ask them to take no more trials."""

from __future__ import annotations

import shlex
import time
from typing import Final

import click

from hopaas_p2p.cli import output
from hopaas_p2p.cli.lazy import Group
from hopaas_p2p.cli.options import CliSession, Columns
from hopaas_p2p.errors import HopaasError
from hopaas_p2p.peer.liveness import owners_of, signs_of_life

_LOOKED_AT: Final = 500
"""The most idle peers, the last to join, whose heartbeats are read. In a bucket, each heartbeat costs a request."""


@click.group(cls=Group)
def peers() -> None:
    """List the peers of a study. Ask one of them, or a whole site, to take no more trials."""


@peers.command("list", study="argument")
@click.option("--all", "show_all", is_flag=True, help="Also list peers that are not running a trial.")
def list_(session: CliSession, show_all: bool) -> None:
    """List the peers that are running a trial, and those that were asked to take no more trials.

    A peer is alive while its heartbeats arrive on time, "not heard from" when one is overdue, and silent once a lease
    would have expired. A silent peer is listed until another peer takes over its trial. Among peers without a
    trial, "idle" means alive, "left" means ended, and "gone" means silent without having ended. Commands that ended
    without having run a trial are omitted.
    """
    from hopaas_p2p.analysis.facts import person
    from hopaas_p2p.analysis.peers import peer_rows

    study = session.study()
    peer, state = study.storage.peer, study.state
    owners = owners_of(state)
    others = [one for one in state.peers if one not in owners and (show_all or state.is_draining(one))]
    signs = signs_of_life(peer, state, others[-_LOOKED_AT:])
    rows = [
        {name: value for name, value in row.items() if name not in ("machine", "lost", "returned", "last")}
        for row in peer_rows(state, time.time(), signs)
        if (show_all or row["running"] or row["draining"]) and (row["last"] or row["state"] != "left")
    ]
    columns: Columns = {
        "PEER": "peer",
        "WHERE": output.where,
        "USER": lambda row: person(row["user"] or "-"),
        "JOB": lambda row: row["job"] or (f"pid {row['pid']}" if row["pid"] else "-"),
        "RUNS": lambda row: ", ".join(f"#{number}" for number in row["running"]) or "-",
        "ENDED": "ended",
        "STATE": "state",
        "LAST SEEN": lambda row: output.ago(row["last_seen"]),
        "NOTE": lambda row: "; ".join([*(["takes no more trials"] if row["draining"] else []), *row["differs"]]),
    }
    every = session.again(f"peers list --all {shlex.quote(study.name)}")
    empty = "No peer has taken part yet." if show_all else f"No peer is running a trial. To list all others: {every}"
    session.show_table(rows, columns, right=("ENDED",), empty=empty)


@peers.command(context_settings={"ignore_unknown_options": True})  # a peer's name may begin with a dash
@click.argument("names", nargs=-1, metavar="[PEER]...")
@click.option("--site", "sites", multiple=True, metavar="SITE", help="All peers of a site, and those that join later.")
@click.option("--off", is_flag=True, help="Let these peers take trials again.")
def drain(session: CliSession, names: tuple[str, ...], sites: tuple[str, ...], off: bool) -> None:
    """Ask peers, or whole sites, to finish their running trials and to take no more.

    Name a peer as `peers list` shows it; the first letters are enough.
    """
    if not names and not sites:
        raise click.UsageError("Name a peer that `hopaas-p2p peers list` shows, or a site with --site.")
    study = session.study()
    found = []
    for name in names:
        matches = [peer for peer in study.state.peers if peer.startswith(name)]
        if len(matches) != 1 and name not in matches:
            found_ = "several peers match" if matches else "no peer matches"
            raise HopaasError(f"{found_} {name!r}; see: {session.again(f'peers list --all {shlex.quote(study.name)}')}")
        found.append(name if name in matches else matches[0])
    for peer in found:
        study.drain(peer=peer, off=off)
    for site in sites:
        study.drain(site=site, off=off)
        here = {info.get("site", "?") for info in study.state.peers.values()}
        if site not in here:
            output.say(f"No peer of the site {site!r} has taken part yet. The sites are: {', '.join(sorted(here))}")
    asked = ", ".join([*found, *(f"all of {site}" for site in sites)])
    message = f"Allowed to take trials again: {asked}" if off else f"Asked to take no more trials: {asked}"
    session.done({"peers": found, "sites": list(sites), "draining": not off}, message)
