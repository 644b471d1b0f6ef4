"""The commands `hopaas-p2p admin backup` and `restore`, which write a store to one file and read it back."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path

import click
import msgspec

from hopaas_p2p.cli import output
from hopaas_p2p.cli.options import EXISTING, FILE, CliSession, check_new, command, force_option, store_named
from hopaas_p2p.moving import backup as backups
from hopaas_p2p.open import open_beside
from hopaas_p2p.remote.access import Roles
from hopaas_p2p.runtime.times import to_iso


@command(study="none", store=False)
@click.argument("url", metavar="STORE", callback=store_named)
@click.argument("target", metavar="FILE", type=FILE)
@click.option("--no-files", is_flag=True, help="Omit files and checkpoints.")
@force_option
def backup(session: CliSession, url: str, target: Path, no_files: bool, force: bool) -> None:
    """Write everything in a store to one file, with checksums, while its peers continue to work.

    On Postgres, any user may back up the studies that are shared with them. Files and checkpoints are included. Only
    you can read FILE. A backup of a directory or bucket also contains the users, and their tokens as hashes.

    \b
    hopaas-p2p admin backup ./campaign campaign-$(date +%F).backup
    """  # noqa: D301  # click needs the backspace
    check_new(target, force=force)
    session.settings.publish()
    with contextlib.closing(open_beside(url, create=False)) as store:
        manifest = backups.back_up(store, target, files=not no_files, say=output.say)
    for name, why in manifest.left_out.items():
        output.say(f"Note: {name!r} is not in the backup: {why}")
    if manifest.files_left_out:
        output.say(f"Note: files and checkpoints are not in the backup: {manifest.files_left_out}")
    data = {**msgspec.to_builtins(manifest), "file": str(target)}
    what = f"{_studies(len(manifest.studies))}, {output.count(manifest.files, 'file')}"
    session.done(data, f"Backed up {what} to {target} ({output.size(target.stat().st_size)}).")


@command(study="none", store=False)
@click.argument("source", metavar="FILE", type=EXISTING)
@click.argument("url", metavar="STORE", callback=store_named)
def restore(session: CliSession, source: Path, url: str) -> None:
    """Fill an empty store from a backup, and check that it replays to the state that was backed up.

    A STORE that holds anything else, or in which peers are alive, is refused, so nothing is overwritten. After an
    interruption, run the command again. A database must have been prepared with `hopaas-p2p admin init`, and needs an
    administrator's login; grant access to the studies again afterwards.

    \b
    hopaas-p2p admin restore campaign-2026-11-26.backup ./campaign
    """  # noqa: D301  # click needs the backspace
    session.settings.publish()
    with contextlib.closing(backups.read(source)) as opened, contextlib.closing(open_beside(url)) as store:
        already_there = backups.restore(opened, store)
        manifest, accesses = opened.manifest, list(opened.entries(backups.ACCESS))
    if manifest.files_left_out:
        output.say(f"Note: the backup has no files or checkpoints: {manifest.files_left_out}")
    roles = Roles()
    for one in accesses:
        roles.apply(one.lsn, one.payload, one.stamp.author)
    if roles.tokens and not url.startswith("postgresql"):
        whose = f"To list all tokens: hopaas-p2p admin token list --store {shlex.quote(url)}"
        output.say(f"Note: a server of this store accepts {output.count(len(roles.tokens), 'restored token')}. {whose}")
    counts = {"studies": len(manifest.studies), "trials": sum(one.trials for one in manifest.studies)}
    trials, files = output.count(counts["trials"], "trial"), output.count(manifest.files, "file")
    what = f"{_studies(counts['studies'])} with {trials} and {files}"
    already = "The store already holds this whole backup."
    done = already if already_there else f"Restored {what}, as of {output.utc_time(to_iso(manifest.at))}."
    session.done({**counts, "files": manifest.files, "already_there": already_there}, done)


def _studies(number: int) -> str:
    return "1 study" if number == 1 else f"{number} studies"
