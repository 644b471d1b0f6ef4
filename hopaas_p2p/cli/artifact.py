"""The commands `hopaas-p2p trial artifact …`, for the files of studies and trials."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from hopaas_p2p.cli import output
from hopaas_p2p.cli.lazy import Group
from hopaas_p2p.cli.options import EXISTING, CliSession, Columns, check_new, force_option
from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.files.artifacts import short_id
from hopaas_p2p.runtime.ownership import named_folder

_trial = click.option("--trial", type=click.IntRange(min=0), metavar="N", help="The trial that the files belong to.")


@click.group(cls=Group)
def artifact() -> None:
    """Put, get, list and remove files of a study and its trials. --study or HOPAAS_STUDY names the study."""


@artifact.command()
@click.argument("files", nargs=-1, required=True, type=EXISTING)
@_trial
@click.option("--as", "filename", metavar="NAME", help="Store the file under this name. [default: its own]")
def put(session: CliSession, files: tuple[Path, ...], trial: int | None, filename: str | None) -> None:
    """Store files and print their ids."""
    if filename is not None and len(files) > 1:
        raise InvalidInput("--as can name only one file.")
    artifacts = session.study().artifacts()
    stored = [artifacts.put(path, trial=trial, filename=filename) for path in files]
    session.show([one._asdict() for one in stored], lambda: output.print_lines(one.id for one in stored))


@artifact.command()
@click.argument("what", metavar="ID_OR_NAME")
@click.argument("target", required=False, type=click.Path(path_type=Path))
@force_option
def get(session: CliSession, what: str, target: Path | None, force: bool) -> None:
    """Fetch a file into TARGET, a file or a directory; by default into the current directory, under its own name."""
    artifacts = session.study().artifacts()
    one = artifacts.find(what)
    path = to = target or Path()
    with contextlib.ExitStack() as stack:
        if path.is_dir():
            path, to = path / one.filename, stack.enter_context(named_folder(path)) / one.filename
        check_new(path, force=force)
        artifacts.get(one, to)
    session.done({**one._asdict(), "path": str(path)}, f"Wrote {path} ({output.size(one.size)}).")


@artifact.command()
@_trial
def ls(session: CliSession, trial: int | None) -> None:
    """List the files of a study and its trials. Other commands accept these short ids; --json prints whole ids."""
    found = session.study().artifacts().list(trial)
    short_ids = {one.id: short_id(one) for one in found}
    columns: Columns = {
        "TRIAL": "trial",
        "NAME": "filename",
        "SIZE": output.size_in("size"),
        "TYPE": "mimetype",
        "ID": lambda row: short_ids[row["id"]],
    }
    session.show_table([one._asdict() for one in found], columns, right=("TRIAL", "SIZE"), empty="No files yet.")


@artifact.command()
@click.argument("what", metavar="ID_OR_NAME", nargs=-1, required=True)
def rm(session: CliSession, what: tuple[str, ...]) -> None:
    """Remove files."""
    artifacts = session.study().artifacts()
    removed = [artifacts.delete(one) for one in dict.fromkeys(map(artifacts.find, what))]
    session.done([one._asdict() for one in removed], f"Removed {', '.join(one.filename for one in removed)}.")
