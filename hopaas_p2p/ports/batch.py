"""Batch jobs that take part in a study: the script or manifest for each batch system, without a secret in it.

A template in `templates/` is a file that could be submitted as it stands, with `@word@` where a value goes; a line
goes with its `@?word@` if that has none. The values come from one `BatchJob`. Everything that a job needs to be let in
is in files that the script names; the script itself, the job's description and every argument may be read by all users
of a cluster.
"""

from __future__ import annotations

import json
import re
import shlex
from importlib import resources
from pathlib import Path
from typing import Final, NamedTuple

from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.runtime.settings import is_one_line

SYSTEMS: Final = ("slurm", "condor", "kubernetes", "pbs", "lsf", "sge")
_WORD: Final = re.compile(r"@(\??)([a-z]+)@")
_MARKS: Final = {"slurm": "#SBATCH ", "pbs": "#PBS ", "lsf": "#BSUB ", "sge": "#$ ", "condor": ""}
_STORE_TIME: Final = 30  # seconds beyond the grace, for the store
_IN_POD: Final = "/etc/hopaas"
_MEMORY: Final = re.compile(r"\d+(\.\d+)?\s*[KMGT]i?B?", re.IGNORECASE)


class BatchJob(NamedTuple):
    """Some equal jobs, each of which runs one worker."""

    study: str
    command: tuple[str, ...]
    """What a trial runs."""
    worker: tuple[str, ...]
    """The program and subcommand that run it: `hopaas-p2p join` or `worker`, without options."""
    options: tuple[str, ...] = ()
    """Options for it."""
    environment: dict[str, str] = {}
    """What it needs to be told, none of it a secret."""
    folder: Path = Path("hopaas-jobs")
    """Where the script goes, and what the jobs print."""
    jobs: int = 1
    seconds: int = 4 * 3600
    grace: int = 300
    cpus: int = 1
    gpus: int = 0
    memory: str = ""
    queue: str = ""
    """A partition or queue."""
    account: str = ""
    more: tuple[str, ...] = ()
    """Lines for the batch system, as it writes them."""
    image: str = ""

    @property
    def name(self) -> str:
        """Fit for every batch system."""
        return "hopaas-" + re.sub(r"[^a-z0-9]+", "-", self.study.lower()).strip("-")[:40].strip("-")


def files(system: str, job: BatchJob) -> dict[Path, str]:
    """The files to be written, the one to be submitted last.

    Raises:
        InvalidInput: the job cannot be like that in this batch system.

    """
    if not job.command:
        raise InvalidInput("give the command that each trial runs, after --")
    if job.memory and not _MEMORY.fullmatch(job.memory):
        raise InvalidInput(f"--memory {job.memory!r}: write 16G or 500M")
    told = (*job.options, *job.environment, *job.environment.values(), str(job.folder), str(Path.cwd()))
    words = (*job.more, job.queue, job.account, job.image, *told)
    for word in words:
        if not is_one_line(word):
            raise InvalidInput(f"{word!r} is not one line, so it goes into no script")
    base = job.folder / job.name
    match system:
        case "condor":
            script = base.with_suffix(".sh")
            described = _filled("condor.sub", job, script=str(script), here=str(Path.cwd()))
            return {script: _filled("condor.sh", job), base.with_suffix(".sub"): described}
        case "kubernetes":
            return {base.with_suffix(".yaml"): _kubernetes(job)}
        case "slurm" | "pbs" | "lsf" | "sge":
            return {base.with_suffix(f".{system}.sh"): _filled(f"{system}.sh", job)}
    raise InvalidInput(f"no batch system {system!r}; choose from: {', '.join(SYSTEMS)}")


def submission(system: str) -> list[str]:
    """The command that submits a job, whose script or description it reads from its standard input."""
    words = {"slurm": "sbatch --parsable", "condor": "condor_submit -terse", "kubernetes": "kubectl apply -f -"}
    return words.get(system, {"lsf": "bsub"}.get(system, "qsub")).split()


def _filled(template: str, job: BatchJob, **more: str) -> str:
    """A template with the values of a job."""
    system = template.partition(".")[0]
    limit = "auto" if system in ("slurm", "condor") else str(job.seconds)
    signals = "USR1,TERM" if system in ("slurm", "lsf") else "TERM"
    options = ["--time-limit", limit, "--grace", str(job.grace), "--signal", signals, *job.options]
    warning, minutes = job.grace + _STORE_TIME, f"{job.seconds // 3600}:{job.seconds % 3600 // 60:02d}"
    values = {
        "name": job.name,
        "jobs": str(job.jobs),
        "last": str(job.jobs - 1),
        "seconds": str(job.seconds),
        "minutes": minutes,
        "time": f"{minutes}:{job.seconds % 60:02d}",
        "warning": str(warning),
        "warningminutes": str(-(-warning // 60)),
        "cpus": str(job.cpus),
        "cores": str(job.cpus) if job.cpus > 1 else "",
        "gpus": str(job.gpus or ""),
        "gpuwords": f":ngpus={job.gpus}" if job.gpus else "",
        "memory": job.memory,
        "memorywords": f":mem={job.memory}" if job.memory else "",
        "queue": job.queue,
        "account": job.account,
        "more": "\n".join(_MARKS.get(system, "") + line for line in job.more),
        "folder": str(job.folder),
        "exports": "\n".join(f"export {key}={shlex.quote(value)}" for key, value in job.environment.items()),
        "worker": shlex.join([*job.worker, *options, "--", *job.command]),
        **more,
    }
    text = resources.files("hopaas_p2p.ports").joinpath("templates", template).read_text()
    lines = []
    for line in text.splitlines():
        words = _WORD.findall(line)
        if not any((optional or line == f"@{word}@") and not values[word] for optional, word in words):
            lines.append(_WORD.sub(lambda found: values[found[2]], line))
    return "\n".join(lines) + "\n"


def _kubernetes(job: BatchJob) -> str:
    """A manifest; JSON is YAML, so what comes from people is written as JSON."""
    if not job.image:
        raise InvalidInput("--image: name the container image that holds your code and hopaas-p2p")
    if job.more or job.queue or job.account:
        raise InvalidInput("--option, --queue and --account do not apply to Kubernetes; edit the manifest (--dry-run)")
    options = ["--time-limit", str(job.seconds), "--grace", str(job.grace), "--signal", "TERM", *job.options]
    env: list[dict[str, object]] = [{"name": key, "value": _plain(value)} for key, value in job.environment.items()]
    env.append({"name": "HOPAAS_POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}})
    proxy = {"secretKeyRef": {"name": job.name, "key": "proxy", "optional": True}}
    env.append({"name": "HTTPS_PROXY", "valueFrom": proxy})
    requests = {"cpu": str(job.cpus), "memory": job.memory or "1Gi"}
    limits = {"memory": job.memory or "1Gi"} | ({"nvidia.com/gpu": str(job.gpus)} if job.gpus else {})
    return _filled(
        "kubernetes.yaml",
        job,
        image=json.dumps(job.image),
        command=json.dumps([_plain(word) for word in ("hopaas-p2p", "worker", *options, "--", *job.command)]),
        env="\n".join(f"            - {json.dumps(one)}" for one in env),
        requests=json.dumps(requests),
        limits=json.dumps(limits),
    )


def _plain(text: str) -> str:
    """As Kubernetes takes it for this text: it puts a variable's value in place of $(NAME), and $ in place of $$."""
    return text.replace("$", "$$")


def in_pod(file: str) -> str:
    """Where a pod finds a file of the Secret."""
    return f"{_IN_POD}/{file}"
