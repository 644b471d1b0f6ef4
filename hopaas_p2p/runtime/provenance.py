"""Describes where this process runs.

Provenance is announced once per study, in `peer.join`, for people to read.
"""

from __future__ import annotations

import contextlib
import encodings.idna  # noqa: F401  # a node's name needs it; imported by a thread during a fork, it hangs the child
import functools
import getpass
import os
import platform
import re
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from hopaas_p2p.runtime import metering
from hopaas_p2p.runtime.atomic import read_regular
from hopaas_p2p.runtime.condor import job_ad, job_name

_BATCH_JOB: Final = (
    # the batch system, the variable with its job id, the one with its array index
    ("slurm", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"),  # as squeue and sacct show it; each task also has a job id
    ("slurm", "SLURM_JOB_ID", None),
    ("pbs", "PBS_JOBID", "PBS_ARRAY_INDEX"),
    ("lsf", "LSB_JOBID", "LSB_JOBINDEX"),
    ("sge", "JOB_ID", "SGE_TASK_ID"),
    ("kubernetes", "HOPAAS_POD_NAME", None),
)
_MODULES: Final = ("hopaas_p2p", "optuna", "numpy", "torch", "lightning", "keras", "xgboost", "lightgbm", "sklearn")
_COMMIT: Final = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
_LARGEST: Final = 16 << 20
"""Bytes of a file of git. A large repository has megabytes of packed references."""
_NVIDIA: Final = Path("/proc/driver/nvidia/gpus")


def site() -> str:
    """This site's name: `HOPAAS_SITE`, else the cluster's name, else the host's domain, else the host."""
    return os.environ.get("HOPAAS_SITE") or os.environ.get("SLURM_CLUSTER_NAME") or _domain()


@functools.cache
def _domain() -> str:
    """The host's domain, else the host. It is looked up once, since a node without a name service may take seconds."""
    full = socket.getfqdn()
    host = socket.gethostname() if full.startswith("localhost") else full
    return host.partition(".")[2] or host


def describe(*, on_behalf_of: str = "") -> dict[str, str]:
    """What `peer.join` announces about this process. Starts no subprocess; unknown facts are left out.

    Raises like `metering.devices`.
    """
    info = {"host": socket.gethostname(), "site": site(), "user": _user(), "pid": str(os.getpid())}
    if on_behalf_of:
        info["on_behalf_of"] = on_behalf_of
    info |= batch_job(os.environ) | _machine() | metering.devices()
    return info | ({"git_commit": commit} if (commit := _git_commit()) else {})


def _user() -> str:
    with contextlib.suppress(KeyError, OSError):  # a container whose uid has no name
        return getpass.getuser()
    return str(os.getuid())


def batch_job(env: Mapping[str, str]) -> dict[str, str]:
    """The batch system that runs this process, and the job as that system names it; empty without a batch system."""
    for system, job, index in _BATCH_JOB:
        if env.get(job):
            array_index = env.get(index, "") if index else ""
            return {"batch": system, "job": env[job] + (f"_{array_index}" if array_index else "")}
    ad, _ = job_ad(env)
    return {"batch": "htcondor", "job": job_name(ad)} if ad else {}


@functools.cache
def _machine() -> dict[str, str]:
    """Facts that do not change while this program runs.

    Only versions of imported packages are included, because the disk is not searched.
    """
    found = {"python": platform.python_version()}
    for module in _MODULES:
        version = getattr(sys.modules.get(module), "__version__", None)
        if isinstance(version, str):
            found[module] = str(version)  # PyTorch's is a subclass of str, which no commit can carry
    return found | ({"gpu": gpus} if (gpus := _gpus()) else {})


def _gpus() -> str:
    """The models of this node's GPUs, from the driver's own files, and which of them this process may use, if known."""
    models = []
    with contextlib.suppress(OSError):
        for path in sorted(_NVIDIA.glob("*/information")):
            lines = path.read_text(errors="replace").splitlines()
            models += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if models and visible:
        return f"{', '.join(models)} (visible: {visible})"
    return ", ".join(models)


def _git_commit() -> str | None:
    """The first 12 digits of the current commit of the working directory's checkout, from git's files; None if unknown.

    Somebody else may have created these files, and the result is public. A link or a name in them may lead to any file,
    so only a valid commit id is returned.
    """
    with contextlib.suppress(OSError, ValueError):  # a directory that was removed, a branch in Latin-1, a NUL
        start = Path.cwd()
        for directory in (start, *start.parents):
            found = directory / ".git"
            if found.is_file():  # in a worktree or a submodule, a file with the path of the folder
                found = directory / _text(found).partition(": ")[2].strip()
            if (found / "HEAD").is_file():
                commit = _head(found) or ""
                return commit[:12] if _COMMIT.fullmatch(commit) else None
    return None


def _text(path: Path) -> str:
    """The text of a file in whose place somebody may have put a pipe, or an endless file."""
    return read_regular(path, limit=_LARGEST, named=True).decode()


def _head(git: Path) -> str | None:
    said = _text(git / "HEAD").strip()
    if not said.startswith("ref: "):
        return said
    elsewhere = git / "commondir"
    common = git / _text(elsewhere).strip() if elsewhere.is_file() else git
    ref = common / said[5:]
    if ref.is_file():
        return _text(ref).strip()
    for line in _text(common / "packed-refs").splitlines():
        if line.endswith(said[4:]):
            return line.partition(" ")[0]
    return None
