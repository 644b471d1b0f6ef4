"""What this process costs: the devices that its job gives it, and the energy that they use, where that can be read.

Devices and stated watts are told once per study, in `peer.join`. The batch system knows them best; `HOPAAS_GPUS`,
`HOPAAS_CORES` and `HOPAAS_WATTS` say otherwise. Energy is read from NVML (GPUs) and from RAPL (processors), of which a
process has the part of its cores. A process that runs several trials at a time divides both among them.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from hopaas_p2p.runtime.process import renew_in_child

_VISIBLE: Final = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "_CONDOR_AssignedGPUs")
_COUNTED: Final = ("SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_TASK")
_CORES: Final = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE", "NCPUS", "LSB_DJOB_NUMPROC", "NSLOTS")
"""Slurm, PBS, LSF, SGE."""
_NVIDIA: Final = Path("/proc/driver/nvidia/gpus")
_RAPL: Final = Path("/sys/class/powercap")
_ENERGY: Final = "energy_uj"
_RANGE: Final = "max_energy_range_uj"
_CGROUP: Final = Path("/sys/fs/cgroup/cpu.max")
_AGAIN: Final = 0.5
"""Seconds for which a reading counts: NVML takes a millisecond per GPU."""
_GAUGED_EVERY: Final = 10.0
"""Seconds: a trial with quick steps does not get a value for each."""
_MOST_TRIALS: Final = 1000
_DRIFT: Final = 1.0
"""Seconds, and percent, by which a clock that others set may be off before the owner says so."""


# --- devices ---


def devices(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """GPUs and cores of this process, and the watts that its user states, for `peer.join`."""
    found = {"cores": _number(env.get("HOPAAS_CORES")) or _cores(env)}
    gpus = _number(env.get("HOPAAS_GPUS")) or _gpus(env)
    if gpus != "0":
        found["gpus"] = gpus
    watts = _number(env.get("HOPAAS_WATTS"))
    if watts:
        found["watts"] = watts
    return found


def _number(text: str | None) -> str | None:
    """The text, if it is a number that can be counted with."""
    return text if text is not None and re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text) else None


def visible(env: Mapping[str, str] = os.environ) -> list[str] | None:
    """The GPUs that this process was given, by index or uuid; None if nothing says."""
    for name in _VISIBLE:
        if name in env:
            names = [one.strip() for one in env[name].split(",")]
            return [one for one in names if one and one not in ("-1", "none", "void", "NoDevFiles")]
    return None


def _gpus(env: Mapping[str, str]) -> str:
    given = visible(env)
    if given is not None:
        return str(len(given))
    for name in _COUNTED:
        count = re.fullmatch(r"(?:\w+:)?(\d+)", env.get(name, ""))
        if count is not None:
            return count[1]
    try:
        return str(len(list(_NVIDIA.iterdir())))
    except OSError:
        return "0"


def _cores(env: Mapping[str, str]) -> str:
    for name in _CORES:
        if re.fullmatch(r"\d+", env.get(name, "")):
            return env[name]
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = _CGROUP.read_text().split()
        return f"{min(float(usable), int(quota) / int(period)):g}"
    return str(usable)


class Share(NamedTuple):
    """The part of this process's devices that one of several programs gets which it runs at a time."""

    environment: dict[str, str]
    cores: frozenset[int]
    """Those that it runs on; empty: all."""


def shares(parallel: int, env: Mapping[str, str] = os.environ) -> list[Share]:
    """The devices of this process, divided among so many programs.

    GPUs are dealt out one by one; where there are fewer than programs, several get the same. Each gets its own cores
    unless there are fewer of these, and as many threads (OMP_NUM_THREADS), unless this environment says how many.
    """
    if parallel == 1:
        return [Share({}, frozenset())]
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
        found.append(Share(given, frozenset(mine if len(cores) >= parallel else ())))
    return found


# --- energy ---


class EnergyCounter:
    """Joules that this process's devices have used, from whatever can be read here. Any thread may call.

    Args:
        nvml: a module like `pynvml`; None: there are no GPUs that can be asked.
        gpus: those of this process; None: all.
        rapl: the directory of the processors' counters.
        share: the part of the processors that belongs to this process.

    """

    def __init__(self, *, nvml: Any = None, gpus: list[str] | None = None, rapl: Path = _RAPL, share: float) -> None:
        self._nvml, self._share = nvml, share
        self._handles = [] if nvml is None else _handles(nvml, gpus)
        self._packages = [path for path in sorted(rapl.glob("*-rapl:?*")) if path.name.count(":") == 1]
        self._packages = [path for path in self._packages if _counted(path / _ENERGY) is not None]
        self._last = {path: _counted(path / _ENERGY) or 0 for path in self._packages}
        self._processors = 0.0
        self._first = self._millijoules()
        self.sources = [name for name, some in (("nvml", self._handles), ("rapl", self._packages)) if some]

    def __call__(self) -> float:
        """Joules since this counter was made."""
        for path in self._packages:
            now = _counted(path / _ENERGY)
            if now is not None:
                step = now - self._last[path]
                step += 0 if step >= 0 else _counted(path / _RANGE) or 1 << 32
                self._processors += step / 1e6 * self._share
                self._last[path] = now
        return (self._millijoules() - self._first) / 1e3 + self._processors

    def _millijoules(self) -> int:
        return sum(self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in self._handles)


def _handles(nvml: Any, gpus: list[str] | None) -> list[Any]:
    """The GPUs of this process that count their energy: those since Volta."""
    found = []
    try:
        nvml.nvmlInit()
        if gpus is None:
            gpus = [str(index) for index in range(nvml.nvmlDeviceGetCount())]
        for name in gpus:
            index = re.fullmatch(r"(?:CUDA)?(\d+)", name)
            get = nvml.nvmlDeviceGetHandleByUUID if index is None else nvml.nvmlDeviceGetHandleByIndex
            handle = get(name if index is None else int(index[1]))
            nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
            found.append(handle)
    except nvml.NVMLError:
        return []
    return found


def _counted(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


@functools.cache
def energy_counter() -> EnergyCounter | None:
    """The counter of this process; None where nothing can be read."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        nvml = None
    share = min(1.0, float(devices()["cores"]) / (os.cpu_count() or 1))
    counter = EnergyCounter(nvml=nvml, gpus=visible(), share=share)
    return counter if counter.sources else None


# --- how busy the GPUs are ---


class GpuGauge:
    """How busy this process's GPUs are and what is in their memory, for the metrics of a trial. Any thread may call.

    Args:
        nvml: a module like `pynvml`.
        gpus: those of this process; None: all.
        clock: monotonic seconds.

    """

    def __init__(self, *, nvml: Any, gpus: list[str] | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._nvml, self._clock = nvml, clock
        self.handles = _handles(nvml, gpus)
        self.renew()

    def renew(self) -> None:
        """Begin anew, as in a child of a fork."""
        renew_in_child(self)
        self._lock = threading.Lock()
        self._next: dict[object, float] = {}

    def __call__(self, trial: object) -> dict[str, float]:
        """`gpu_percent`, on average, and `gpu_memory_gb`, together; empty if this trial got them a moment ago."""
        now = self._clock()
        with self._lock:
            if now < self._next.get(trial, now):
                return {}
            if len(self._next) >= _MOST_TRIALS:
                self._next.clear()
            self._next[trial] = now + _GAUGED_EVERY
        try:
            busy = [self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu for handle in self.handles]
            used = [self._nvml.nvmlDeviceGetMemoryInfo(handle).used for handle in self.handles]
        except self._nvml.NVMLError:
            return {}
        return {"gpu_percent": round(sum(busy) / len(busy), 1), "gpu_memory_gb": round(sum(used) / 1e9, 2)}


@functools.cache
def gpu_gauge() -> GpuGauge | None:
    """The gauge of this process; None where NVML cannot be read."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    gauge = GpuGauge(nvml=nvml, gpus=visible())
    return gauge if gauge.handles else None


# --- the trials of this process ---


class Measured(NamedTuple):
    """What a trial used since it started here."""

    microseconds: int
    millijoules: int | None


class _Running(msgspec.Struct, eq=False):
    began: float
    ahead: float
    """Seconds by which the clock that commits are stamped with was ahead of the other one."""
    seconds: float = 0.0
    joules: float = 0.0
    shared: bool = False


class Meter:
    """Divides the time and energy of this process among the trials that it runs. Any thread may call.

    Args:
        clock: monotonic seconds.
        now_us: the clock that commits are stamped with.
        energy: joules of this process's devices; None if they cannot be read.

    """

    def __init__(
        self, *, clock: Callable[[], float], now_us: Callable[[], int], energy: Callable[[], float] | None
    ) -> None:
        self._clock, self._now_us, self._energy = clock, now_us, energy
        self._lock = threading.Lock()
        self._running: dict[object, _Running] = {}
        self._at = clock()
        self._joules = 0.0 if energy is None else energy()
        self._read_at = self._at

    def begin(self, lease: object) -> None:
        """This lease began."""
        with self._lock:
            running = self._running
            if running or self._energy is not None:
                self._divide(fresh=True)
            else:
                self._at = self._clock()
            running[lease] = _Running(self._at, self._now_us() / 1e6 - self._at)
            if len(running) > 1:
                for one in running.values():
                    one.shared = True

    def used(self, lease: object, *, at_end: bool = False) -> Measured | None:
        """What the lease has used; None if a reader of the log finds that by itself: one trial at a time, no energy.

        `at_end` ends it, and reads the devices even if they have been read a moment ago.
        """
        with self._lock:
            one = self._running.get(lease)
            if one is None:
                return None
            if one.shared or self._energy is not None:
                self._divide(fresh=at_end)
                if at_end:
                    del self._running[lease]
                return Measured(round(one.seconds * 1e6), None if self._energy is None else round(one.joules * 1e3))
            if at_end:  # it has had the process to itself
                del self._running[lease]
            now = self._clock()
            drift = abs(self._now_us() / 1e6 - now - one.ahead)
            if drift <= _DRIFT or drift <= _DRIFT + _DRIFT / 100 * (now - one.began):
                return None
            return Measured(round((now - one.began) * 1e6), None)

    def _divide(self, *, fresh: bool) -> None:
        """Share what was used since the last time equally among the leases."""
        now = self._clock()
        share = 1.0 / max(1, len(self._running))
        seconds, self._at = now - self._at, now
        joules = 0.0
        if self._energy is not None and (fresh or now - self._read_at >= _AGAIN):
            before, self._joules, self._read_at = self._joules, self._energy(), now
            joules = max(0.0, self._joules - before)
        for one in self._running.values():
            one.seconds += seconds * share
            one.joules += joules * share
