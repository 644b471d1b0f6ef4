"""The commands `hopaas-p2p study export|import|copy|report`, for files, Optuna's own storages, trackers, and other
stores.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from pathlib import Path
from typing import Final

import click

from hopaas_p2p.cli import output
from hopaas_p2p.cli.options import FILE, FOLDER, CliSession, check_new, command, force_option, space_option
from hopaas_p2p.errors import HopaasError, InvalidInput, NoSuchStudy
from hopaas_p2p.moving import FORMATS, Arrived, copy_study, export_study, format_of, import_study
from hopaas_p2p.report import write_report
from hopaas_p2p.runtime.atomic import replace_atomically
from hopaas_p2p.runtime.redaction import redacted
from hopaas_p2p.spec.space import parse_space

_TRACKERS: Final = ("mlflow", "wandb")
_INTERVAL: Final = 5.0  # seconds between two updates of a tracker
_FEW_RETRIES: Final = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
}
"""Settings that limit MLflow's own retries, which would take minutes by default. `study export` itself retries."""


@command(study="argument")
@click.option("--format", "form", type=click.Choice((*FORMATS, *_TRACKERS)), help="[default: by the extension of PATH]")
@click.option("--prior", is_flag=True, help="Write a prior for new studies, not the study.")
@click.option("--to", metavar="PATH|URL|PROJECT", help="A file, an Optuna storage, or a tracker. [default: stdout]")
@click.option("--files", type=FOLDER, metavar="DIR", help="Also write the files of the study and its trials to DIR.")
@click.option("--follow", is_flag=True, help="Keep a tracker current until the study is done.")
@force_option
def export(
    session: CliSession, form: str | None, prior: bool, to: str | None, files: Path | None, follow: bool, force: bool
) -> None:
    """Write a study to a file, to an Optuna storage, or to a tracker.

    A .study file contains the study's whole log and its files; `study import` reads it. csv, the default on stdout, is
    for spreadsheets, parquet for data frames. URL is an Optuna storage, sqlite:///x.db or postgresql://…; .journal is
    Optuna's journal file. DIR can be given to optuna-dashboard --artifact-dir. --prior writes a prior for
    `study create --learn-from FILE`, which has configurations and their ranks, but no results.

    With --format mlflow, URL is the tracking server (or MLFLOW_TRACKING_URI), and MLFLOW_EXPERIMENT_NAME names the
    experiment. With --format wandb, PROJECT is ENTITY/PROJECT or PROJECT (or WANDB_ENTITY, WANDB_PROJECT);
    WANDB_MODE=offline writes files for `wandb sync` to WANDB_DIR. The study gets one run, and so does each trial, with
    parameters, values, states, files, metrics and reports. You can repeat the command; data that the tracker already
    has is not sent again. Credentials are the tracker's own: MLFLOW_TRACKING_TOKEN, WANDB_API_KEY, `wandb login`.

    \b
    hopaas-p2p study export digits --to digits.csv
    hopaas-p2p study export digits --format mlflow --to http://mlflow.example.org:5000 --follow
    """  # noqa: D301  # click needs the backspace
    if prior and (form is not None or files is not None):
        raise click.UsageError("--prior cannot be used with --format or --files.")
    if form in _TRACKERS:
        if files is not None:
            raise click.UsageError("--files cannot be used with a tracker.")
        _export_to_tracker(session, form, to, follow=follow)
        return
    if follow:
        raise click.UsageError("--follow can be used only with a tracker.")
    if to not in (None, "-") and (prior or (form or format_of(to)) != "optuna"):
        check_new(Path(to), force=force)
    study = session.study()
    if not prior:
        count = export_study(study, to or "-", form=form, files=files)
        if to not in (None, "-"):
            session.done({"trials": count, "to": redacted(to)}, f"Exported {output.count(count, 'trial')} to {to}.")
        return
    from hopaas_p2p.search.priors import Prior

    text = Prior.from_study(study).as_text()
    if to in (None, "-"):
        output.print_lines([text])
        return
    with replace_atomically(Path(to)) as draft:
        draft.write_text(text + "\n")
    session.done({"to": to}, f"Wrote the prior of {study.name!r} to {to}.")


def _export_to_tracker(session: CliSession, kind: str, to: str | None, *, follow: bool) -> None:
    """Send the data that the tracker lacks. With `follow`, repeat this until the study is over."""
    from hopaas_p2p.trackers import Export, MLflow, WandB
    from hopaas_p2p.trackers.follow import leave_link

    for name, value in _FEW_RETRIES.items():
        os.environ.setdefault(name, value)
    tracker = MLflow(to) if kind == "mlflow" else WandB(to)
    study = session.study()
    export_ = Export(study, tracker)
    sent, away = 0, False
    with contextlib.closing(tracker):
        while True:
            try:
                # read first, so that the export includes the last trials
                done = not follow or study.is_over()
                sent += export_.sync()
            except HopaasError as error:
                if not follow or not error.retry:
                    raise
                if not away:
                    output.say(f"{str(error).rstrip('.')}. Trying again every {_INTERVAL:.0f} s.")
                away = True
            else:
                if away:
                    output.say("The tracker answers again, and the missing data has been sent.")
                away = False
                if done:
                    break
            time.sleep(_INTERVAL)
        leave_link(study, tracker)
    what = f"Exported {output.count(sent, 'trial')} to" if sent else "Every trial is already in"
    project = f" (project {tracker.project_path})" if isinstance(tracker, WandB) else ""
    message = f"{what} {tracker.name}{project}: {tracker.link()}"
    session.done({"trials": sent, "tracker": tracker.name, "link": tracker.link()}, message)


@command("import", study="argument")
@click.option("--from", "source", metavar="PATH_OR_URL", help="A file, or an Optuna storage.  [required]")
@click.option("--source-study", metavar="NAME", help="The study in the source. [default: the only one]")
@click.option("--files", type=FOLDER, metavar="DIR", help="Also import the files in DIR, whose names are their ids.")
@space_option
def import_(
    session: CliSession, source: str | None, source_study: str | None, files: Path | None, specs: tuple[str, ...]
) -> None:
    """Add the trials of a file or an Optuna storage to a study, which is created if it does not exist.

    The file comes from `study export` or `admin backup`; CSV can be added only to an existing study. Trials that
    it has, also its own, are not added again, except from CSV. RUNNING trials become WAITING, and are run by the
    next peer that asks. Without a name, the study keeps its own. A `worker` that continues an Optuna study takes the
    search space from its trials; use --space to set another one.
    """
    space = parse_space(specs)
    from hopaas_p2p.study import open_study

    name = session.settings.get("study", session.given["study"])
    if source is None:
        given = session.given["study"]
        read = given if given and ("/" in given or Path(given).suffix) else "PATH_OR_URL"
        raise InvalidInput(f"No source given. Use: {session.again(f'study import --from {shlex.quote(read)}')}")
    storage = session.storage(create=True)
    result = import_study(storage, source, name=name, source_study=source_study, files=files)
    if space:
        open_study(storage, result.study, create=False).set_space(space)
    data = {"study": result.study, "trials": result.trials, "files": result.files, "warnings": result.warnings}
    there = len(storage.state(storage.get_study_id_from_name(result.study)).trials)
    more = f", which now has {there}" if there > result.trials else ""
    session.done(data, f"Imported {_arrived(result)} into {result.study!r}{more}.")


def _arrived(result: Arrived) -> str:
    """Print the warnings; returns what arrived, in words."""
    for warning in result.warnings:
        output.say(f"Note: {warning}")
    also = f" and {output.count(result.files, 'file')}" if result.files else ""
    return f"{output.count(result.trials, 'trial')}{also}"


@command("report", study="argument")
@click.option("--to", type=FILE, default=Path("report.html"), help="The file to write.")
def report_html(session: CliSession, to: Path) -> None:
    """Write the study's report. It is one HTML file, and needs no network and no server.

    \b
    hopaas-p2p study report mnist -s ./campaign --to mnist.html
    """  # noqa: D301  # click needs the backspace
    path = write_report(session.study(), to)
    session.done({"report": str(path)}, f"Wrote {path}.")


@command(study="option", store=False)
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option("--all", "everything", is_flag=True, help="Copy every study of FROM.")
@click.option("--as", "new_name", metavar="NAME", help="The study's name in TO. [default: as in FROM]")
@click.option("--unfinished", is_flag=True, help="Also copy waiting and running trials, to be run again in TO.")
@click.option("--no-files", is_flag=True, help="Do not copy the files of the study and its trials.")
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

    FROM and TO are directories or URLs. Without --study or --all, FROM must hold exactly one study. Repeating the
    command copies only trials that have finished since. A copy can be copied back: the original gets the new trials,
    and keeps its own notes. FROM is not changed, and others may continue to work there. Checkpoints are not copied.

    \b
    hopaas-p2p study copy ./campaign 's3://bucket/group?endpoint=https://s3.example.org' --study mnist
    """  # noqa: D301  # click needs the backspace
    from hopaas_p2p.study import open_study

    if everything and new_name is not None:
        raise click.UsageError("--as names one study and cannot be used with --all.")
    chosen = None if everything else session.settings.get("study", session.given["study"])
    results, said = [], []
    with contextlib.ExitStack() as opened:
        there, here = (opened.enter_context(contextlib.closing(CliSession(store=url))) for url in (source, target))
        names = [chosen] if chosen else [one.study_name for one in there.storage().get_all_studies()]
        if not everything and len(names) != 1:
            cure = f"Use --all, or --study with one of: {', '.join(names[:20])}" if names else "Check its path or URL."
            raise NoSuchStudy(f"FROM has {len(names)} studies. {cure}")
        for study in [open_study(there.storage(), name, create=False) for name in names]:
            to = here.storage(create=True)
            result = copy_study(study, to, name=new_name, unfinished=unfinished, with_files=not no_files)
            results.append(result._asdict())
            before = f"; {result.already_there} were there already" if result.already_there else ""
            said.append(f"Copied {_arrived(result)} of {study.name!r} to {result.study!r}{before}.")
    session.done(results, "\n".join(said))
