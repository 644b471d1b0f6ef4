"""Batch jobs that take part in a study: the script or manifest for each batch system, without a secret in it.

A template in `templates/` is a complete file, with `@word@` in place of each value; a line with `@?word@` is dropped if
that word has no value. The values come from one `BatchJob`. All credentials that a job needs are in files that the
script names; the script itself, the job's description and every argument may be read by all users of a cluster.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from importlib import resources
from pathlib import Path
from typing import Final, NamedTuple

from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.runtime.settings import is_one_line, variable

_FILES: Final = {
    "slurm": {"slurm.sh": ".slurm.sh"},
    "condor": {"condor.sh": ".sh", "condor.sub": ".sub"},
    "kubernetes": {"kubernetes.yaml": ".yaml"},
}
"""The templates of each batch system, and the names of the resulting files; the file to submit comes last."""
SYSTEMS: Final = tuple(_FILES)
SUBMISSION: Final = {
    "slurm": ("sbatch", "--parsable"),
    "condor": ("condor_submit", "-terse"),
    "kubernetes": ("kubectl", "apply", "-f", "-"),
}
"""The command that submits a job; it reads the script or description from standard input."""
IN_POD: Final = "/etc/hopaas"
"""The path of the Secret's files in a pod."""
_UNWRITABLE: Final = {"slurm": re.compile(r"\\"), "condor": re.compile(r"(?i)\\|\$\$|\$\(DOLLAR\)|\s$")}
"""Characters in a name that a batch system interprets, however they are written."""
_ESCAPED: Final = {"slurm": ('"', r"\""), "condor": ("$", "$(DOLLAR)"), "kubernetes": ("$", "$$")}
"""Per batch system, a character that it would interpret, and what to write instead. Slurm's is for text between double
quotes. HTCondor would expand $ENV(NAME), perhaps to a secret, in a job's description; Kubernetes expands $(NAME)."""
_WORD: Final = re.compile(r"@(\??)([a-z]+)@")
_STORE_TIME: Final = 30  # seconds beyond the grace, for the store
_MEMORY: Final = re.compile(r"\d+(\.\d+)?\s*[KMGT]i?B?", re.IGNORECASE)


class BatchJob(NamedTuple):
    """Several identical jobs, each of which runs one worker."""

    study: str
    command: tuple[str, ...]
    """The command of a trial."""
    worker: tuple[str, ...]
    """The program and subcommand that run the command (`hopaas-p2p join` or `worker`), without options."""
    options: tuple[str, ...] = ()
    """Options for the worker."""
    environment: dict[str, str] = {}
    """The settings that the worker needs, none of them secret."""
    folder: Path = Path("hopaas-jobs")
    """The folder for the script and the jobs' output."""
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
    """Options for the batch system, in its own syntax."""
    image: str = ""

    @property
    def name(self) -> str:
        """A name that is valid in every batch system. Two studies or stores never share one, nor a Secret."""
        told = [self.study, *(self.environment.get(variable(key), "") for key in ("store", "study", "joined"))]
        digest = hashlib.blake2s(json.dumps(told).encode(), digest_size=8).hexdigest()
        return re.sub(r"[^a-z0-9]+", "-", f"hopaas {self.study.lower()[:30]} {digest}")


def files(system: str, job: BatchJob) -> dict[Path, str]:
    """The files to write; the one to submit comes last.

    Raises:
        InvalidInput: this batch system does not allow such a job.

    """
    if not job.command:
        raise InvalidInput("give the command that each trial runs, after --")
    if job.memory and not _MEMORY.fullmatch(job.memory):
        raise InvalidInput(f"--memory {job.memory!r}: write a size such as 16G or 500M")
    told = (*job.options, *job.environment, *job.environment.values(), str(job.folder), str(Path.cwd()))
    for word in (*job.more, job.queue, job.account, job.image, *told):
        if not is_one_line(word):
            raise InvalidInput(f"{word!r} is not one line, so a script cannot contain it")
    for word in (str(job.folder), str(Path.cwd()), job.queue, job.account) if system in _UNWRITABLE else ():
        if found := _UNWRITABLE[system].search(word):
            raise InvalidInput(f"{word}: a job for {system} cannot have {found[0]!r} in a folder's or account's name")
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
    """The values of the templates' words."""
    limit = str(job.seconds) if system == "kubernetes" else "auto"
    options = ["--time-limit", limit, "--grace", str(job.grace), *job.options]
    memory = {"memory": job.memory or "1Gi"}

    def escaped(text: str) -> str:
        return text.replace(*_ESCAPED[system])

    env: list[dict[str, object]] = [{"name": key, "value": escaped(value)} for key, value in job.environment.items()]
    env.append({"name": "HOPAAS_POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}})
    proxy = {"secretKeyRef": {"name": job.name, "key": "proxy", "optional": True}}
    env.append({"name": "HTTPS_PROXY", "valueFrom": proxy})
    return {name: str(value or "") for name, value in job._asdict().items()} | {
        "name": job.name,
        "last": str(job.jobs - 1),
        "time": f"{job.seconds // 3600}:{job.seconds % 3600 // 60:02d}:{job.seconds % 60:02d}",
        "warning": str(job.grace + _STORE_TIME),
        "cores": str(job.cpus) if job.cpus > 1 else "",
        "queue": escaped(job.queue),
        "account": escaped(job.account),
        "more": "\n".join(f"#SBATCH {line}" if system == "slurm" else line for line in job.more),
        "folder": escaped(str(job.folder)).replace("%", "%%" if system == "slurm" else "%"),
        "script": escaped(str(job.folder / f"{job.name}.sh")),
        "here": escaped(str(Path.cwd())),
        "exports": "\n".join(f"export {key}={shlex.quote(value)}" for key, value in job.environment.items()),
        "worker": shlex.join([*job.worker, *options, "--", *job.command]),
        "image": _yaml(job.image),
        "command": _yaml([escaped(word) for word in ("hopaas-p2p", "worker", *options, "--", *job.command)]),
        "env": "\n".join(f"            - {_yaml(one)}" for one in env),
        "requests": _yaml({"cpu": str(job.cpus), **memory}),
        "limits": _yaml(memory | ({"nvidia.com/gpu": str(job.gpus)} if job.gpus else {})),
    }


def _yaml(value: object) -> str:
    """The value in YAML: JSON, but with an emoji written as one escape instead of two surrogates."""
    return json.dumps(value, ensure_ascii=False).encode("ascii", "backslashreplace").decode()
