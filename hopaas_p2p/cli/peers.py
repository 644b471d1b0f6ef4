"""`hopaas-p2p peers list|drain`: the peers of a study, and asking them to take no more trials."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import click

from hopaas_p2p.analysis.facts import last_ended
from hopaas_p2p.cli import output
from hopaas_p2p.cli.lazy import Subgroup
from hopaas_p2p.cli.options import CliSession, Columns, options
from hopaas_p2p.core.state import differences
from hopaas_p2p.errors import InvalidInput, NoSuchPeer
from hopaas_p2p.peer.liveness import signs_of_idle_peers, signs_of_life

if TYPE_CHECKING:
    from hopaas_p2p.core.state import State
    from hopaas_p2p.peer.liveness import SignOfLife

_LOOKED_AT: Final = 500
"""Peers that run nothing and whose heartbeats are read, the last ones to join: in a bucket each costs a request."""


@click.group(cls=Subgroup)
def peers() -> None:
    """List the peers of a study. Ask one of them, or a whole site, to take no more trials."""


@peers.command("list")
@options(study="argument")
@click.option("--all", "show_all", is_flag=True, help="Also list peers that run no trial now.")
def list_(session: CliSession, show_all: bool) -> None:
    """List the peers that run a trial, and those that were asked to take no more.

    A peer is alive if its last heartbeat is more recent than the length of a lease, and silent otherwise. A silent
    peer is listed until another peer takes over its trial. Of the peers that run no trial, an idle one is alive, one
    that has left has ended, and one that is gone fell silent without an end.
    """
    study = session.study()
    peer, state = study.storage.peer, study.state
    signs = signs_of_life(peer, state)
    others = [one for one in state.peers if one not in signs and (show_all or state.is_draining(one))]
    rows = _rows(state, signs, signs_of_idle_peers(peer, state, others[-_LOOKED_AT:]))
    columns: Columns = {
        "PEER": "peer",
        "WHERE": output.where,
        "USER": "user",
        "JOB": lambda row: row["job"] or (f"pid {row['pid']}" if row["pid"] else "-"),
        "RUNS": lambda row: ", ".join(f"#{number}" for number in row["running"]) or "-",
        "ENDED": "ended",
        "STATE": "state",
        "LAST SEEN": lambda row: output.ago(row["last_seen"]),
        "NOTE": lambda row: "; ".join([*(["takes no more trials"] if row["draining"] else []), *row["differs"]]),
    }
    empty = "No peer runs a trial now. To list all that took part: hopaas-p2p peers list --all"
    shown = [row for row in rows if show_all or row["running"] or row["draining"]]
    session.show_table(shown, columns, right=("ENDED",), empty=empty)


def _rows(state: State, signs: dict[str, SignOfLife], idle: dict[str, SignOfLife]) -> list[dict[str, Any]]:
    ends, now = last_ended(state), time.time()
    running: dict[str, list[int]] = {}
    for number in list(state.running):
        running.setdefault(state.trials[number].owner or "", []).append(number)
    ended = Counter(trial.owner for trial in state.trials if trial.end is not None)
    rows = []
    for peer, info in state.peers.items():
        job = f"{info['batch']} {info['job']}" if "batch" in info and "job" in info else None
        sign = signs.get(peer)
        seen = sign or idle.get(peer)
        ended_ago = None if peer not in ends else max(0.0, now - ends[peer])
        rows.append(
            {
                "peer": peer,
                **{what: info.get(what) for what in ("site", "host", "user", "pid")},
                "job": job,
                "running": running.get(peer, []),
                "ended": ended[peer],
                "state": _state(sign, idle.get(peer)),
                "last_seen": ended_ago if seen is None else seen.ago,
                "draining": state.is_draining(peer),
                "differs": differences(info),
            }
        )
    return rows


def _state(running: SignOfLife | None, idle: SignOfLife | None) -> str:
    """One word for a peer, by its sign of life while it runs a trial or none; at its end it removes its heartbeat."""
    if running is not None:
        return {True: "alive", False: "silent", None: "unknown"}[running.alive]
    return "left" if idle is None else {True: "idle", False: "gone", None: "unknown"}[idle.alive]


@peers.command(context_settings={"ignore_unknown_options": True})  # a peer's name may begin with a dash
@options()
@click.argument("names", nargs=-1, metavar="[PEER]...")
@click.option(
    "--site", "sites", multiple=True, metavar="SITE", help="All peers of a site, including those that join later."
)
@click.option("--off", is_flag=True, help="Let them take trials again.")
def drain(session: CliSession, names: tuple[str, ...], sites: tuple[str, ...], off: bool) -> None:
    """Ask peers, or whole sites, to finish the trials that they run and to take no more.

    Name a peer as `peers list` shows it; the first letters are enough.
    """
    if not names and not sites:
        raise click.UsageError("No peer is named. Name one that `hopaas-p2p peers list` shows, or a site with --site.")
    study = session.study()
    known = list(study.state.peers)
    found = [_one_of(known, name) for name in names]
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


def _one_of(known: list[str], name: str) -> str:
    matches = [peer for peer in known if peer.startswith(name)]
    if name in matches:
        return name
    if len(matches) != 1:
        if not matches:
            raise NoSuchPeer(f"there is no peer {name!r}; see: hopaas-p2p peers list --all")
        raise InvalidInput(f"{len(matches)} peers begin with {name!r}; see: hopaas-p2p peers list --all")
    return matches[0]
