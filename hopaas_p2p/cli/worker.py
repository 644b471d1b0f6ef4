"""The commands `hopaas-p2p worker` and `run`, which run a command for each trial, with signals, a time limit, and exit
codes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Final

import click

from hopaas_p2p.cli import output
from hopaas_p2p.cli.options import FOLDER, CliSession, CommandAfterDashes, command, together
from hopaas_p2p.errors import ConfigurationError, StoreUnreachable, waits_for
from hopaas_p2p.ports.limits import parse_duration, time_left
from hopaas_p2p.runtime.extras import check_sampler
from hopaas_p2p.runtime.interrupts import PREEMPTIONS, handled

_AGAIN: Final = os.EX_TEMPFAIL


worker_options = together(
    click.option("--time-limit", metavar="4h|auto", help="How long this job may run; auto asks Slurm or HTCondor."),
    click.option("--grace", default="300", metavar="S", help="Seconds to save work after a signal."),
    click.option("--site", help="The name of this site. [default: HOPAAS_SITE, cluster or domain]"),
    click.option("--logs", type=FOLDER, default=Path("hopaas-logs"), help="A directory of your own for output."),
    click.option("--keep-output/--no-keep-output", default=True, help="Store the end of a failed command's output."),
    click.option("--pass", "passed", multiple=True, metavar="NAME", help="A credential to pass on. Repeat for more."),
    click.option("--no-wait", is_flag=True, help="Exit with code 75 when no trial can start now."),
)
"""The options of all commands that run trials."""

many_options = together(
    click.option("--max-trials", type=click.IntRange(min=1), metavar="N", help="Stop after N trials."),
    click.option("--parallel", type=click.IntRange(min=1), default=1, metavar="N", help="Run N trials at a time."),
    click.option("--stay", is_flag=True, help="Stay until the study is finished, to take over dead workers' trials."),
)
"""The options of all commands that run trial after trial."""


@command(cls=CommandAfterDashes)
@many_options
@worker_options
def worker(session: CliSession, command: tuple[str, ...], **others: Any) -> int:
    """Run a command for each trial, until the study needs no more.

    \b
    hopaas-p2p worker --study S --time-limit auto -- python train.py --lr {lr} --depth {depth}

    The parameters are also in HOPAAS_PARAMS (JSON) and in HOPAAS_PARAM_name, the trial's number in HOPAAS_TRIAL, the
    seed of a replicate in HOPAAS_SEED, and a checkpoint of an earlier attempt in HOPAAS_CHECKPOINT. A numeric
    placeholder can stand anywhere in the command. A string can do so only if it consists of ASCII letters, digits and
    ._+,:=@%/-; otherwise the command must read it from those variables. In an argument with spaces, such as
    that of sh -c, put the string between quotes.

    The command prints {"value": 0.12}, or {"value": [0.12, 3]} for two objectives,
    as its last line, or calls hopaas-p2p trial report, should-prune and tell, which find the trial by HOPAAS_TICKET;
    in Python, hopaas_p2p.ports.client. The command gets your environment, but only the credentials that --pass names,
    such as WANDB_API_KEY. Its output goes to LOGS/STUDY/NUMBER.log, and if it fails, the end of the output goes into
    the store.

    SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 are passed on to the command, and its trial is returned, so that another
    worker continues it. While the study is paused, or trials of others may have to be run again, the worker waits and
    shows the reason; with --no-wait it exits. It stops after 10 failures in a row without any success, or after the
    study's --max-failures.

    Exit codes: 0 the study needs no more work from here; 75 run this job again; 1 too many failures, or no trial
    succeeded.
    """  # noqa: D301  # click needs the backspace
    return work(session, command, **others)[0]


@command(cls=CommandAfterDashes)
@worker_options
def run(session: CliSession, command: tuple[str, ...], **others: Any) -> int:
    """Run a command for exactly one trial.

    It waits as `worker` does. Exit codes: 0 complete or pruned; 1 failed; 3 the study needs no more trials; 11 taken
    over by another peer; 75 run this job again.
    """
    code, ran = work(session, command, max_trials=1, **others)
    if not ran:
        return code or 3
    return {"FAIL": 1, "LOST": 11, "WAITING": code or _AGAIN, "RUNNING": code or _AGAIN}.get(ran[0][1], 0)


def work(session: CliSession, command: tuple[str, ...], **given: Any) -> tuple[int, list[tuple[int, str]]]:
    """Run a worker; returns its exit code and the trials that it ran, which --json prints at the end."""
    ran: list[tuple[int, str]] = []
    site, limit = given.pop("site"), given.pop("time_limit")
    if site is not None:
        os.environ["HOPAAS_SITE"] = site
    given["grace"] = parse_duration(given["grace"])
    try:
        with waits_for("this node"), handled(PREEMPTIONS, lambda *_: sys.exit(_AGAIN)):
            from hopaas_p2p.ports.worker import Worker

            study = session.study()
            check_sampler(study.sampler)
            made = Worker(study, command, time_limit=_seconds(limit), say=output.say, **given)
            code, ran, reason = made.work(), made.ran, made.reason
    except StoreUnreachable as error:
        reason = f"{str(error).rstrip('.')}. Run this job again later."
        output.say(reason)
        code = _AGAIN
    if output.quiet and code and reason:  # --quiet hides progress, but not the reason of a failure
        output.say(reason, always=True)
    session.show({"trials": [{"number": number, "state": state} for number, state in ran]}, lambda: None)
    return code, ran


def _seconds(time_limit: str | None) -> float | None:
    if time_limit != "auto":
        return None if time_limit is None else parse_duration(time_limit)
    found = time_left()
    if found is None:
        output.say("--time-limit auto: no batch system sets a limit here, so the worker has none.")
        return None
    seconds, who = found
    if seconds <= 0:
        raise ConfigurationError(f"{who}: no time is left. If that is wrong, use --time-limit 4h.")
    output.say(f"{who}: {output.duration(seconds)} left")
    return seconds
