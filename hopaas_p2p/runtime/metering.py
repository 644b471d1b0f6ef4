"""The resources of this process: the devices allocated to its job, and the energy that they use, if it can be read.

Devices and stated watts are announced once per study, in `peer.join`. The devices are those that the batch system
reports, unless `HOPAAS_GPUS` or `HOPAAS_CORES` is set. The energy of GPUs is read from NVML, or computed from
`HOPAAS_WATTS`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from hopaas_p2p.errors import ConfigurationError
from hopaas_p2p.runtime.arguments import shown
from hopaas_p2p.runtime.condor import job_ad

_VISIBLE: Final = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "_CONDOR_AssignedGPUs")
_NO_GPU: Final = ("-1", "none", "void", "NoDevFiles", "10000")
"""Values that stand for no GPU; the last is HTCondor's."""
_COUNTED: Final = ("SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_TASK")
_CORES: Final = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE", "NCPUS", "LSB_DJOB_NUMPROC", "NSLOTS")
"""The variables with a job's cores, of Slurm, PBS, LSF and SGE."""
_NVIDIA: Final = Path("/proc/driver/nvidia/gpus")
_CGROUP: Final = Path("/sys/fs/cgroup/cpu.max")


# --- devices ---


def devices(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """This process's GPUs and cores, and the watts that its user states, for `peer.join`.

    Raises:
        ConfigurationError: HOPAAS_GPUS, HOPAAS_CORES or HOPAAS_WATTS is not a number.

    """
    gpus, watts = _stated(env, "HOPAAS_GPUS") or _gpus(env), _stated(env, "HOPAAS_WATTS")
    found = {"cores": _stated(env, "HOPAAS_CORES") or _cores(env)}
    return found | ({"gpus": gpus} if gpus != "0" else {}) | ({"watts": watts} if watts else {})


def _stated(env: Mapping[str, str], variable: str) -> str | None:
    """The number in this HOPAAS variable; None if it is not set."""
    text = env.get(variable) or None
    if text is not None and not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text):
        raise ConfigurationError(f"{variable} = {shown(text)}: give a number, such as 2 or 0.5")
    return text


def visible(env: Mapping[str, str] = os.environ) -> list[str] | None:
    """The GPUs allocated to this process, by index or uuid; None if unknown."""
    for name in _VISIBLE:
        if name in env:
            return [one for one in map(str.strip, env[name].split(",")) if one and one not in _NO_GPU]
    return None


def _gpus(env: Mapping[str, str]) -> str:
    given = visible(env)
    if given is not None:
        return str(len(given))
    provisioned = _provisioned(env, "gpus")
    if provisioned is not None:
        return str(provisioned)
    for name in _COUNTED:
        count = re.fullmatch(r"(?:\w+:)?(\d+)", env.get(name, ""))
        if count is not None:
            return count[1]
    with contextlib.suppress(OSError):
        return str(len(list(_NVIDIA.iterdir())))
    return "0"


def _cores(env: Mapping[str, str]) -> str:
    provisioned = _provisioned(env, "cpus")  # first, since a pool's node may be a job of another batch system
    if provisioned:
        return str(provisioned)
    for name in _CORES:
        if re.fullmatch(r"\d+", env.get(name, "")):
            return env[name]
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = _CGROUP.read_text().split()
        return f"{min(float(usable), int(quota) / int(period)):g}"
    return str(usable)


def _provisioned(env: Mapping[str, str], what: str) -> int | None:
    """The number that an HTCondor job was allocated, or else requested; None outside of HTCondor."""
    ad, _ = job_ad(env)
    return ad.get(f"{what}provisioned", ad.get(f"request{what}", 0 if ad else None))


Share = tuple[dict[str, str], frozenset[int]]
"""The share of one of several concurrent programs: variables, and the cores to run on; no cores means all."""


def shares(parallel: int, env: Mapping[str, str] = os.environ) -> list[Share]:
    """The devices of this process, divided among this many programs.

    GPUs are dealt out one by one; if there are fewer than programs, several share one. Each program gets its own cores
    unless there are too few, and as many threads (OMP_NUM_THREADS), unless this environment sets the number.
    """
    if parallel == 1:
        return [({}, frozenset())]
    gpus = visible(env)
    if gpus is None:
        gpus = [str(number) for number in range(int(_gpus(env)))]
    name = next((one for one in _VISIBLE[1:3] if one in env and _VISIBLE[0] not in env), _VISIBLE[0])
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    threads = max(1, int(float(devices(env)["cores"]) / parallel))
    found = []
    for number in range(parallel):
        given = {} if "OMP_NUM_THREADS" in env else {"OMP_NUM_THREADS": str(threads)}
        if gpus:
            own = gpus[number::parallel] or [gpus[number % len(gpus)]]
            given[name] = ",".join(one.removeprefix("CUDA") for one in own)
        mine = cores[number * len(cores) // parallel : (number + 1) * len(cores) // parallel]
        found.append((given, frozenset(mine if len(cores) >= parallel else ())))
    return found


# --- energy ---


def gpu_energy(nvml: Any, gpus: list[str] | None = None) -> Callable[[], float] | None:
    """A counter of the joules that these GPUs use from now on, for any thread; None if the GPUs cannot be queried.

    Args:
        nvml: a module like `pynvml`.
        gpus: this process's GPUs; None for all. NVIDIA's GPUs older than Volta do not measure their energy.

    """
    handles = []
    try:
        nvml.nvmlInit()
        if gpus is None:
            gpus = [str(index) for index in range(nvml.nvmlDeviceGetCount())]
        for name in gpus:
            index = re.fullmatch(r"(?:CUDA)?(\d+)", name)
            get = nvml.nvmlDeviceGetHandleByUUID if index is None else nvml.nvmlDeviceGetHandleByIndex
            handles.append(get(name if index is None else int(index[1])))

        def millijoules() -> int:
            return sum(nvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in handles)

        first = millijoules()
    except nvml.NVMLError:
        return None
    return (lambda: (millijoules() - first) / 1e3) if handles else None


@functools.cache
def energy_counter() -> Callable[[], float] | None:
    """The counter for this process's GPUs; None if nothing can be read."""
    with contextlib.suppress(ImportError):
        return gpu_energy(importlib.import_module("pynvml"), visible())
    return None
