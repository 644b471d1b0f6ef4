"""The command `hopaas-p2p submit`, and `join --submit`. They write the batch jobs of a study, show them, and submit
them.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from hopaas_p2p.cli import output
from hopaas_p2p.cli.options import CliSession, CommandAfterDashes, command, together
from hopaas_p2p.cli.worker import many_options, worker_options
from hopaas_p2p.errors import ConfigurationError, Denied, InvalidInput, StoreUnreachable, explained
from hopaas_p2p.joining import membership, ways
from hopaas_p2p.open import redacted, servers_of
from hopaas_p2p.ports import batch
from hopaas_p2p.ports import command as commands
from hopaas_p2p.ports.limits import parse_duration
from hopaas_p2p.runtime import credentials
from hopaas_p2p.runtime.arguments import expanded
from hopaas_p2p.runtime.atomic import replace_atomically, state_folder
from hopaas_p2p.runtime.ownership import own_folder, who_could_move
from hopaas_p2p.runtime.settings import SETTINGS, joined_folder, variable

if TYPE_CHECKING:
    from hopaas_p2p.joining.membership import Membership

PROGRAM: Final = (sys.executable, "-P", "-m", "hopaas_p2p.cli.main")
"""The command for this program in this environment. -P keeps modules in the job's directory from shadowing ours."""
_TOLD: Final = ("store", "study", "site", "token_file", "token_host", "ca_file", "proxy_file", "artifacts", "patience")
_DEFAULTS: Final = {"logs": Path("hopaas-logs"), "parallel": 1}
JOB_OPTIONS: Final = ("jobs", "gpus", "cpus", "memory", "time", "queue", "account", "more", "image", "dry_run")
"""The options in `job_options` for the jobs themselves. All others are for the jobs' workers."""


job_options = together(
    click.option("--jobs", type=click.IntRange(1, 100_000), default=1, help="Number of jobs."),
    click.option("--gpus", type=click.IntRange(0), default=0, help="GPUs per job."),
    click.option("--cpus", type=click.IntRange(1), default=1, help="CPU cores per job."),
    click.option("--memory", metavar="16G", help="Memory per job."),
    click.option("--time", default="4h", metavar="4h", help="The time limit of each job."),
    click.option("--queue", metavar="NAME", help="The partition or queue."),
    click.option("--account", metavar="NAME", help="The account to charge."),
    click.option("--option", "more", multiple=True, metavar="LINE", help="An option in the batch system's syntax."),
    click.option("--image", metavar="IMAGE", help="The image for Kubernetes, with your code and hopaas-p2p."),
    click.option("--dry-run", is_flag=True, help="Write and show the script; submit nothing."),
    many_options,
)
"""The options of all commands that submit jobs."""


@command(cls=CommandAfterDashes)
@click.argument("system", type=click.Choice(batch.SYSTEMS))
@job_options
@worker_options
def submit(session: CliSession, system: str, command: tuple[str, ...], **given: Any) -> None:
    """Write the batch jobs of a study, show them, and submit them.

    \b
    hopaas-p2p submit slurm --study digits --jobs 20 --gpus 1 --time 4h -- python train.py --lr {lr}

    Each job runs one worker. The job requeues itself if its time is up and the study is not done. The script goes to
    hopaas-jobs, or to ~/.local/state/hopaas-p2p/jobs if others may write to this directory. The script contains no
    secret; a token must be in a file (HOPAAS_TOKEN_FILE).
    """  # noqa: D301  # click's mark for lines that stay as they are
    origin = Path(session.settings.find("store", session.given["store"]).origin)
    if origin.parent == joined_folder():
        submit_joined(session, system, membership.load(origin.stem), command, given)
    else:
        study = session.study()
        told = _told(session, store=study.storage.url, study=study.name)
        _submit(session, system, batch.BatchJob(study.name, command, (*PROGRAM, "worker"), environment=told), given, {})


def _told(session: CliSession, **given: str) -> dict[str, str]:
    """The settings in effect that jobs need. None of them is secret.

    Raises:
        ConfigurationError: the token, or a password, is in a place that would have to be copied into the job.

    """
    settings = session.settings
    if settings.get("token") and not settings.get("token_file"):
        cure = "Write it into a file of mode 600 that the nodes can read, and set HOPAAS_TOKEN_FILE to its path"
        raise ConfigurationError(f"others can read a job, so it must not contain the token in HOPAAS_TOKEN. {cure}")
    told = _passed_on()
    for name in _TOLD:
        value = given.get(name) or settings.get(name)
        if not value or value == SETTINGS[name].default:
            continue
        if credentials.is_secret(variable(name), value):
            why = f"{name} = {redacted(value)}: a job must not contain a password"
            raise ConfigurationError(f"{why}. Put it into a file, and set HOPAAS_TOKEN_FILE or PGPASSFILE to its path")
        told[variable(name)] = str(expanded(value).absolute()) if name.endswith("_file") else str(value)
    return told


def _passed_on() -> dict[str, str]:
    """Variables that tell the nodes where the credentials are, and for which host."""
    files = ("PGPASSFILE", "AWS_PROFILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE")
    return {name: os.environ[name] for name in (*files, "HOPAAS_TOKEN_HOST", "PYTHONPATH") if os.environ.get(name)}


def _named(system: str, names: tuple[str, ...]) -> dict[str, str]:
    """The variables that the user names with --pass, as far as a script may contain them.

    Raises:
        InvalidInput: the batch system would store a credential where others can read it.

    """
    found = {name: os.environ[name] for name in names if name in os.environ}
    for name in [name for name, value in found.items() if credentials.is_secret(name, value)]:
        if system != "slurm":  # sbatch copies its environment to the jobs, and shows it to no other user
            why = f"--pass {name}: {system} would keep this credential in a file that others can read"
            raise InvalidInput(f"{why}. Put it into a file of mode 600 that your command reads")
        del found[name]
    return found


def submit_joined(
    session: CliSession, system: str, joined: Membership, command: tuple[str, ...], given: dict[str, Any]
) -> None:
    """Submit the jobs of a joined study. Each job finds its own route to the store on its node."""
    ways.enter(joined)
    if joined.store.startswith("s3:"):
        credentials.may_sign(servers_of(joined.store))  # because a pod takes the bucket for one that the user named
    values, verb = joined.values, "worker"
    files = {name: values[f"{name}_file"] for name in ("token", "ca", "proxy") if f"{name}_file" in values}
    if values.get("via") == "folder":
        store = f"folder{joined.file('box').as_uri().removeprefix('file')}"
        environment = {"HOPAAS_STORE": store, "HOPAAS_STUDY": joined.study}
    elif system == "kubernetes":
        environment = {variable(name): values[name] for name in ("store", "study", "site") if name in values}
        environment |= {variable(f"{name}_file"): f"{batch.IN_POD}/{name}" for name in files if name != "proxy"}
    else:
        environment = {"HOPAAS_JOINED": joined.name, "XDG_CONFIG_HOME": str(joined_folder().parent.parent.absolute())}
        verb = "join"
    if system != "kubernetes":
        environment |= _passed_on()
    job = batch.BatchJob(joined.study, command, (*PROGRAM, verb), environment=environment)
    _submit(session, system, job, given, files)


def _submit(
    session: CliSession, system: str, job: batch.BatchJob, given: dict[str, Any], secret: dict[str, str]
) -> None:
    """Write the files, show them, and submit them. `given` holds the options of the jobs and of their workers."""
    if given["time_limit"] is not None:
        raise click.UsageError("the worker takes the job's time limit from --time; omit --time-limit")
    with contextlib.suppress(Denied, StoreUnreachable):  # the worker checks again, and may reach more than this machine
        commands.check(job.command, session.study().space)
    job = job._replace(
        options=_as_words(given),
        environment=job.environment | _named(system, given["passed"]),
        folder=_folder(),
        seconds=round(parse_duration(given["time"])),
        grace=round(parse_duration(given["grace"])),
        **{name: given[name] for name in JOB_OPTIONS if given[name] and name in batch.BatchJob._fields},
    )
    if job.grace + 60 >= job.seconds:
        raise InvalidInput(f"--time {given['time']} is too short for --grace {given['grace']}; raise --time")
    files = batch.files(system, job)
    why, cure = f"the jobs' files cannot be written to {job.folder}", ". Run this in a directory of your own"
    with explained(why, cure, kind=InvalidInput), own_folder(job.folder, mode=0o755) as own:
        for path, text in files.items():
            with replace_atomically(own / path.name) as draft:
                draft.write_text(text)
                draft.chmod(0o755 if path.suffix == ".sh" else 0o644)  # some batch systems run the script in place
    last = list(files)[-1]
    by_hand = f"{shlex.join(batch.SUBMISSION[system])} < {shlex.quote(str(last))}"
    if not session.as_json:
        output.say(f"--- {last}\n{files[last].rstrip()}\n---")
    submitted = None
    if given["dry_run"]:
        output.say(f"to submit the script: {by_hand}")
    else:
        if system == "kubernetes" and secret:  # creates or renews the secret, whose content passes through pipes only
            keys = [f"--from-file={key}={path}" for key, path in secret.items()]
            made = _run(["kubectl", "create", "secret", "generic", job.name, *keys, "--dry-run=client", "-o", "yaml"])
            _run(["kubectl", "apply", "-f", "-"], text=made)
        submitted = _run(batch.SUBMISSION[system], *given["passed"], text=files[last], by_hand=by_hand).strip()
        output.say(f"submitted: {submitted}. To watch the study: {session.again(f'watch {shlex.quote(job.study)}')}")
    data = {"files": [str(path) for path in files], "submit": by_hand, "submitted": submitted}
    session.show(data, lambda: None)


def _folder() -> Path:
    """The folder for scripts and job output. Batch systems open both by path, so no other user may be able to redirect
    it.

    Raises:
        InvalidInput: there is no place that others cannot redirect.

    """
    here = who_could_move(Path.cwd())
    if here is None:
        return Path.cwd() / "hopaas-jobs"
    try:
        state_folder().mkdir(parents=True, exist_ok=True)
        elsewhere = state_folder().resolve() / "jobs"
        there = who_could_move(elsewhere.parent)
    except (RuntimeError, OSError) as error:
        there = str(error)
    if there is not None:
        why = f"{here}, and {there}, so somebody could redirect what jobs write"
        raise InvalidInput(f"{why}. Run this in a directory of your own")
    output.say(f"{here}, so the files of the jobs are in {elsewhere}")
    return elsewhere


def _as_words(worker: dict[str, Any]) -> tuple[str, ...]:
    """The given options of a worker, except those that every job gets."""
    given = {"--site": "site", "--max-trials": "max_trials"}
    words = [word for option, name in given.items() if worker[name] is not None for word in (option, str(worker[name]))]
    for name, default in _DEFAULTS.items():
        words += [f"--{name}", str(worker[name])] if worker[name] != default else []
    words += [word for name in worker["passed"] for word in ("--pass", name)]
    flags = {"--stay": worker["stay"], "--no-wait": worker["no_wait"], "--no-keep-output": not worker["keep_output"]}
    return (*words, *(flag for flag, given in flags.items() if given))


def _run(words: Sequence[str], *passed: str, text: str = "", by_hand: str = "") -> str:
    """Run a batch-system command, which reads this text and may copy its environment to jobs. Returns its output."""
    by_hand = f"; or submit the script by hand: {by_hand}" if by_hand else ""
    if shutil.which(words[0]) is None:
        why = f"there is no {words[0]} on this machine. Run this where jobs are submitted, such as a login node"
        raise ConfigurationError(f"{why}{by_hand}")
    env = credentials.environment(*passed)
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=False, env=env)
    if done.returncode != 0:
        why = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise ConfigurationError(f"{words[0]} failed: {why}. Fix this and run the command again{by_hand}")
    return done.stdout
