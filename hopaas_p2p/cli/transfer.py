"""`hopaas-p2p study export|import`: to and from files and Optuna's own storages."""

from __future__ import annotations

import click

from hopaas_p2p.cli import output
from hopaas_p2p.cli.options import Session, options

_FORMATS = click.Choice(["jsonl", "csv", "parquet", "optuna"])


@click.command()
@options(study="argument")
@click.option("--format", "-f", "form", type=_FORMATS, help="[default: by the end of PATH, else jsonl]")
@click.option("--to", "-t", default="-", metavar="PATH_OR_URL", help="A file, - for stdout, or an Optuna storage.")
def export(session: Session, form: str | None, to: str) -> None:
    """Write a study to a file or to an Optuna storage.

    jsonl and parquet keep everything, and `study import` reads them; csv is for spreadsheets. With --format optuna,
    PATH_OR_URL is sqlite:///x.db, postgresql://…, or the path of a journal file.
    """
    from hopaas_p2p.export import export_study

    count = export_study(session.study(), to, form=form)
    if to != "-":
        session.done({"trials": count, "to": to}, f"exported {count} trials to {to}")


@click.command("import")
@options(study="argument")
@click.option(
    "--from", "-f", "source", default="-", metavar="PATH_OR_URL", help="A file, - for stdin, or an Optuna storage."
)
@click.option("--format", "form", type=_FORMATS, help="[default: by the end of PATH, else jsonl]")
@click.option("--source-study", metavar="NAME", help="Which study of an Optuna storage. [default: the only one]")
def import_(session: Session, source: str, form: str | None, source_study: str | None) -> None:
    """Add the trials of a file or an Optuna storage to a study, which is created if it is not there.

    Trials that were RUNNING come back as WAITING: whoever asks next runs them. Without a name, the study keeps its
    own.
    """
    from hopaas_p2p.export import import_study

    name = session.settings.get("study", session.given["study"])
    storage = session.storage(create=True)
    result = import_study(storage, source, name=name, form=form, source_study=source_study)
    for warning in result.warnings:
        output.say(f"note: {warning}")
    message = f"imported {result.trials} trials into {result.study!r}"
    session.done({"study": result.study, "trials": result.trials, "warnings": result.warnings}, message)
