"""`hopaas-p2p study export|import|copy|report`: to and from files, Optuna's own storages, and other stores."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hopaas_p2p.cli import output
from hopaas_p2p.cli.options import CliSession, options
from hopaas_p2p.errors import NoSuchStudy
from hopaas_p2p.space import parse_space

if TYPE_CHECKING:
    from hopaas_p2p.export import Copied
    from hopaas_p2p.storage import Storage

_DIRECTORY = click.Path(file_okay=False, path_type=Path)
_FORMATS = click.Choice(["jsonl", "csv", "parquet", "optuna"])


@click.command()
@options(study="argument")
@click.option("--format", "-f", "form", type=_FORMATS, help="[default: by the end of PATH, else jsonl]")
@click.option("--to", "-t", default="-", metavar="PATH_OR_URL", help="A file, - for stdout, or an Optuna storage.")
@click.option("--files", type=_DIRECTORY, metavar="DIR", help="Put the files of the study and its trials there, too.")
def export(session: CliSession, form: str | None, to: str, files: Path | None) -> None:
    """Write a study to a file or to an Optuna storage.

    jsonl and parquet keep everything, and `study import` reads them; csv is for spreadsheets. With --format optuna,
    PATH_OR_URL is sqlite:///x.db, postgresql://…, or the path of a journal file. DIR can be given to
    optuna-dashboard --artifact-dir.
    """
    from hopaas_p2p.export import export_study

    count = export_study(session.study(), to, form=form, files=files)
    if to != "-":
        session.done({"trials": count, "to": to}, f"exported {output.count(count, 'trial')} to {to}")


@click.command("import")
@options(study="argument")
@click.option(
    "--from", "-f", "source", default="-", metavar="PATH_OR_URL", help="A file, - for stdin, or an Optuna storage."
)
@click.option("--format", "form", type=_FORMATS, help="[default: by the end of PATH, else jsonl]")
@click.option("--source-study", metavar="NAME", help="Which study of an Optuna storage. [default: the only one]")
@click.option("--files", type=_DIRECTORY, metavar="DIR", help="Bring the files, which lie there under their ids.")
@click.option("--space", "specs", multiple=True, metavar="SPEC", help="A parameter to search, as in `study create`.")
def import_(
    session: CliSession,
    source: str,
    form: str | None,
    source_study: str | None,
    files: Path | None,
    specs: tuple[str, ...],
) -> None:
    """Add the trials of a file or an Optuna storage to a study, which is created if it is not there.

    Trials that were RUNNING become WAITING, and are run by the next peer that asks. Without a name, the study keeps
    its own. A `worker` that goes on with a study of Optuna's takes the search space from its trials; say --space where
    that is not what you want.
    """
    space = parse_space(specs)
    from hopaas_p2p.export import import_study
    from hopaas_p2p.study import open_study

    name = session.settings.get("study", session.given["study"])
    storage = session.storage(create=True)
    result = import_study(storage, source, name=name, form=form, source_study=source_study, files=files)
    if space:
        open_study(storage, result.study, create=False).set_space(space)
    for warning in result.warnings:
        output.say(f"note: {warning}")
    also = f" and {output.count(result.files, 'file')}" if result.files else ""
    data = {"study": result.study, "trials": result.trials, "files": result.files, "warnings": result.warnings}
    there = len(storage.state(storage.get_study_id_from_name(result.study)).trials)
    more = f", which has {there} now" if there > result.trials else ""
    session.done(data, f"imported {output.count(result.trials, 'trial')}{also} into {result.study!r}{more}")


@click.command("report")
@options(study="argument")
@click.option(
    "--out",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="Where the file goes.",
)
def report_html(session: CliSession, out: Path) -> None:
    """Write the study's report: one HTML file that needs no network and no server.

    \b
    hopaas-p2p study report mnist -s ./campaign -o mnist.html
    """  # noqa: D301  # click needs the backspace
    from hopaas_p2p.report import write_report

    path = write_report(session.study(), out)
    session.done({"report": str(path)}, f"wrote {path}")


@click.command()
@options(study="option", store=False)
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option("--all", "everything", is_flag=True, help="Every study of FROM.")
@click.option("--as", "new_name", metavar="NAME", help="What the study is called in TO. [default: as in FROM]")
@click.option("--unfinished", is_flag=True, help="Bring waiting and running trials too, to be run anew there.")
@click.option("--no-files", is_flag=True, help="Leave the files of the study and its trials where they are.")
def copy(
    session: CliSession,
    source: str,
    target: str,
    everything: bool,
    new_name: str | None,
    unfinished: bool,
    no_files: bool,
) -> None:
    """Copy a study from one store to another: finished trials, notes, tags and files.

    FROM and TO are directories or URLs. Without --study, FROM must hold one study. Copied again, only what has been
    finished since comes along. Nothing in FROM changes; others may go on working there. Checkpoints are not copied.

    \b
    hopaas-p2p study copy ./campaign 's3://bucket/group?endpoint=https://s3.example.org' --study mnist
    """  # noqa: D301  # click needs the backspace
    from hopaas_p2p.export import copy_study
    from hopaas_p2p.study import open_study

    if everything and new_name is not None:
        raise click.UsageError("--as names one study; it does not go with --all")
    results = []
    with opened(session, source, create=False) as there:
        names = _chosen(session, [one.study_name for one in there.get_all_studies()], everything=everything)
        studies = [open_study(there, name, create=False) for name in names]
        with opened(session, target, create=True) as here:
            for study in studies:
                result = copy_study(study, here, name=new_name, unfinished=unfinished, with_files=not no_files)
                results.append(result._asdict())
                _tell(session, study.name, result)
    if session.as_json:
        output.print_json(results)


def _tell(session: CliSession, name: str, result: Copied) -> None:
    for warning in result.warnings:
        output.say(f"note: {warning}")
    if not session.as_json:
        before = f"; {result.already_there} were there" if result.already_there else ""
        also = f" and {output.count(result.files, 'file')}" if result.files else ""
        output.say(f"copied {output.count(result.trials, 'trial')}{also} of {name!r} into {result.study!r}{before}")


@contextlib.contextmanager
def opened(session: CliSession, url: str, *, create: bool) -> Iterator[Storage]:
    """Open a store that an argument names."""
    one = CliSession(store=url, as_json=session.as_json)
    try:
        yield one.storage(create=create)
    finally:
        one.close()


def _chosen(session: CliSession, names: list[str], *, everything: bool) -> list[str]:
    if everything:
        return names
    name = session.settings.get("study", session.given["study"])
    if name is not None:
        return [name]
    if len(names) != 1:
        raise NoSuchStudy(f"FROM holds {len(names)} studies; say --study NAME or --all: {', '.join(names[:20]) or '-'}")
    return names
