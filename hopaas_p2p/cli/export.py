"""`hopaas-p2p export mlflow|wandb`: a study in the tracker that a group already looks at."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Final

import click

from hopaas_p2p.cli import output
from hopaas_p2p.cli.lazy import Subgroup
from hopaas_p2p.cli.options import CliSession, options
from hopaas_p2p.core.admission import finished
from hopaas_p2p.errors import HopaasError

if TYPE_CHECKING:
    from hopaas_p2p.study import Study
    from hopaas_p2p.trackers import Export, Tracker

_follow = click.option(
    "--follow", is_flag=True, help="Continue until the study is done, and wait out outages of the tracker."
)
_interval = click.option("--interval", type=float, default=10, metavar="S", help="Seconds between updates.")
_FEW_RETRIES: Final = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
"""MLflow would retry for minutes by default; this command retries itself."""


@click.group(cls=Subgroup)
def export() -> None:
    """Copy a study to a tracker: a run for the study, a nested run for each trial.

    Run it as often as you like: what is already there is not sent again. To write a file or an Optuna storage,
    use `study export`.
    """


@export.command()
@options(study="argument")
@click.option("--to", metavar="URI", help="The tracking server. [default: MLFLOW_TRACKING_URI]")
@click.option("--experiment", metavar="NAME", help="[default: MLFLOW_EXPERIMENT_NAME, else the study's name]")
@_follow
@_interval
def mlflow(session: CliSession, to: str | None, experiment: str | None, follow: bool, interval: float) -> None:
    """Copy a study to MLflow.

    It sends parameters, values, states, files, metrics, and reports as the metric `report`. Tags `hopaas.*` say where
    and with what a trial ran, and which command shows it. PRUNED trials are KILLED there. To log in, set MLflow's
    own variables: MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_TOKEN.
    """
    from hopaas_p2p.trackers import MLflow

    for name, value in _FEW_RETRIES.items():
        os.environ.setdefault(name, value)
    _export(session, MLflow(to, experiment=experiment), follow=follow, interval=interval)


@export.command()
@options(study="argument")
@click.option("--project", metavar="NAME", help="[default: WANDB_PROJECT, else hopaas]")
@click.option("--entity", metavar="NAME", help="The team or user. [default: W&B's own]")
@click.option("--offline", is_flag=True, help="Write files for `wandb sync`. [default: as WANDB_MODE says]")
@click.option("--directory", metavar="PATH", help="Directory for W&B's files. [default: WANDB_DIR, else this one]")
@_follow
@_interval
def wandb(
    session: CliSession,
    project: str | None,
    entity: str | None,
    offline: bool,
    directory: str | None,
    follow: bool,
    interval: float,
) -> None:
    """Copy a study to Weights & Biases.

    Creates a group named after the study, with a run for the study and a run for each trial. Export from one directory,
    or always give the same --directory: a file there records what was sent. To log in, use `wandb login` or
    WANDB_API_KEY.
    """
    from hopaas_p2p.trackers import WandB

    tracker = WandB(project, entity=entity, offline=offline or None, directory=directory)
    _export(session, tracker, follow=follow, interval=interval)


def _export(session: CliSession, tracker: Tracker, *, follow: bool, interval: float) -> None:
    from hopaas_p2p.trackers import Export, leave_link

    if not interval > 0:
        raise click.UsageError(f"--interval must be a positive number of seconds, not {interval}.")
    study = session.study()
    export_ = Export(study, tracker)
    with contextlib.closing(tracker):
        sent = _until_done(export_, study, interval) if follow else export_.sync()
        leave_link(study, tracker)
    message = f"Exported {output.count(sent, 'trial')} to {tracker.name}: {tracker.link()}"
    session.done({"trials": sent, "tracker": tracker.name, "link": tracker.link()}, message)


def _until_done(export_: Export, study: Study, interval: float) -> int:
    """Export until the study is done and all of it is there; returns how many trials were sent."""
    sent, away = 0, False
    while True:
        try:
            # asked before the export, which must have its last trials
            done = finished(study.state) and not study.state.running
            sent += export_.sync()
        except HopaasError as error:
            if not error.retry:
                raise
            if not away:
                output.say(f"{error}. Trying again every {interval:g} s.")
            away = True
        else:
            if away:
                output.say("The tracker answers again; what was missing has been sent.")
            away = False
            if done:
                return sent
        time.sleep(interval)
