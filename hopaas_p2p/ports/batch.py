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

_FILES: Final = {
    "slurm": {"slurm.sh": ".slurm.sh"},
    "condor": {"condor.sh": ".sh", "condor.sub": ".sub"},
    "kubernetes": {"kubernetes.yaml": ".yaml"},
}
"""The templates of each batch system, and how what is made of them is called; what is submitted comes last."""
SYSTEMS: Final = tuple(_FILES)
SUBMISSION: Final = {
    "slurm": ("sbatch", "--parsable"),
    "condor": ("condor_submit", "-terse"),
    "kubernetes": ("kubectl", "apply", "-f", "-"),
}
"""The command that submits a job, whose script or description it reads from its standard input."""
IN_POD: Final = "/etc/hopaas"
"""Where a pod finds the files of the Secret."""
_WORD: Final = re.compile(r"@(\??)([a-z]+)@")
_STORE_TIME: Final = 30  # seconds beyond the grace, for the store
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
    if system not in _FILES:
        raise InvalidInput(f"no batch system {system!r}; choose from: {', '.join(SYSTEMS)}")
    if not job.command:
        raise InvalidInput("give the command that each trial runs, after --")
    if job.memory and not _MEMORY.fullmatch(job.memory):
        raise InvalidInput(f"--memory {job.memory!r}: write 16G or 500M")
    told = (*job.options, *job.environment, *job.environment.values(), str(job.folder), str(Path.cwd()))
    for word in (*job.more, job.queue, job.account, job.image, *told):
        if not is_one_line(word):
            raise InvalidInput(f"{word!r} is not one line, so it goes into no script")
    if system == "kubernetes" and not job.image:
        raise InvalidInput("--image: name the container image that holds your code and hopaas-p2p")
    if system == "kubernetes" and (job.more or job.queue or job.account):
        raise InvalidInput("--option, --queue and --account do not apply to Kubernetes; edit the manifest (--dry-run)")
    values, made = _values(system, job), {}
    for template, suffix in _FILES[system].items():
        lines = []
        for line in resources.files("hopaas_p2p.ports").joinpath("templates", template).read_text().splitlines():
            words = _WORD.findall(line)
            if not any((optional or line == f"@{word}@") and not values[word] for optional, word in words):
                lines.append(_WORD.sub(lambda found: values[found[2]], line))
        made[job.folder / f"{job.name}{suffix}"] = "\n".join(lines) + "\n"
    return made


def _values(system: str, job: BatchJob) -> dict[str, str]:
    """What the templates' words stand for."""
    limit = str(job.seconds) if system == "kubernetes" else "auto"
    signals = "USR1,TERM" if system == "slurm" else "TERM"
    options = ["--time-limit", limit, "--grace", str(job.grace), "--signal", signals, *job.options]
    memory = {"memory": job.memory or "1Gi"}
    env: list[dict[str, object]] = [{"name": key, "value": _plain(value)} for key, value in job.environment.items()]
    env.append({"name": "HOPAAS_POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}})
    proxy = {"secretKeyRef": {"name": job.name, "key": "proxy", "optional": True}}
    env.append({"name": "HTTPS_PROXY", "valueFrom": proxy})
    return {
        "name": job.name,
        "jobs": str(job.jobs),
        "last": str(job.jobs - 1),
        "seconds": str(job.seconds),
        "time": f"{job.seconds // 3600}:{job.seconds % 3600 // 60:02d}:{job.seconds % 60:02d}",
        "warning": str(job.grace + _STORE_TIME),
        "cpus": str(job.cpus),
        "cores": str(job.cpus) if job.cpus > 1 else "",
        "gpus": str(job.gpus or ""),
        "memory": job.memory,
        "queue": job.queue,
        "account": job.account,
        "more": "\n".join(f"#SBATCH {line}" if system == "slurm" else line for line in job.more),
        "folder": str(job.folder),
        "script": str(job.folder / f"{job.name}.sh"),
        "here": str(Path.cwd()),
        "exports": "\n".join(f"export {key}={shlex.quote(value)}" for key, value in job.environment.items()),
        "worker": shlex.join([*job.worker, *options, "--", *job.command]),
        # JSON is YAML, so what comes from people is written as JSON
        "image": json.dumps(job.image),
        "command": json.dumps([_plain(word) for word in ("hopaas-p2p", "worker", *options, "--", *job.command)]),
        "env": "\n".join(f"            - {json.dumps(one)}" for one in env),
        "requests": json.dumps({"cpu": str(job.cpus), **memory}),
        "limits": json.dumps(memory | ({"nvidia.com/gpu": str(job.gpus)} if job.gpus else {})),
    }


def _plain(text: str) -> str:
    """As Kubernetes takes it for this text: it puts a variable's value in place of $(NAME), and $ in place of $$."""
    return text.replace("$", "$$")
