"""What a process costs: its devices by the batch system, its energy by counters, shared among the trials it runs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

import hopaas_p2p
from hopaas_p2p.runtime.metering import EnergyCounter, GpuGauge, Measured, Meter, devices, shares
from tests.support.accounting import FakeNvml


@pytest.mark.parametrize(
    ("env", "found"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0,3", "SLURM_CPUS_PER_TASK": "16"}, {"gpus": "2", "cores": "16"}),
        ({"CUDA_VISIBLE_DEVICES": "GPU-5fd4,GPU-77aa", "NCPUS": "8"}, {"gpus": "2", "cores": "8"}),
        ({"CUDA_VISIBLE_DEVICES": "", "SLURM_CPUS_ON_NODE": "4"}, {"cores": "4"}),
        ({"CUDA_VISIBLE_DEVICES": "-1", "NSLOTS": "4"}, {"cores": "4"}),
        ({"_CONDOR_AssignedGPUs": "CUDA0", "LSB_DJOB_NUMPROC": "2"}, {"gpus": "1", "cores": "2"}),
        ({"SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_ON_NODE": "64"}, {"gpus": "4", "cores": "64"}),
        ({"SLURM_GPUS_PER_TASK": "a100:2", "NSLOTS": "1"}, {"gpus": "2", "cores": "1"}),
        (
            {"CUDA_VISIBLE_DEVICES": "0", "HOPAAS_GPUS": "0.5", "HOPAAS_CORES": "2", "HOPAAS_WATTS": "350"},
            {"gpus": "0.5", "cores": "2", "watts": "350"},
        ),
        ({"HOPAAS_WATTS": "much", "HOPAAS_CORES": "-3", "CUDA_VISIBLE_DEVICES": "", "NSLOTS": "3"}, {"cores": "3"}),
    ],
)
def test_devices_are_what_the_job_was_given_or_the_user_says(env: dict[str, str], found: dict[str, str]) -> None:
    assert devices(env) == found


@pytest.mark.parametrize(
    ("env", "given"),
    [
        (
            {"CUDA_VISIBLE_DEVICES": "3,GPU-5fd4,5"},
            [{"CUDA_VISIBLE_DEVICES": "3,5"}, {"CUDA_VISIBLE_DEVICES": "GPU-5fd4"}],
        ),
        ({"_CONDOR_AssignedGPUs": "CUDA1"}, [{"CUDA_VISIBLE_DEVICES": "1"}] * 2),
        ({"ROCR_VISIBLE_DEVICES": "0,1"}, [{"ROCR_VISIBLE_DEVICES": "0"}, {"ROCR_VISIBLE_DEVICES": "1"}]),
        ({"SLURM_GPUS_ON_NODE": "2"}, [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]),
        ({"CUDA_VISIBLE_DEVICES": ""}, [{}, {}]),
    ],
)
def test_programs_that_run_at_a_time_get_their_own_part_of_the_devices(
    env: dict[str, str], given: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {1, 2, 3, 6, 7})
    found = shares(2, env | {"NSLOTS": "5"})
    assert [one.environment for one in found] == [one | {"OMP_NUM_THREADS": "2"} for one in given]
    assert [set(one.cores) for one in found] == [{1, 2}, {3, 6, 7}]
    assert [one.environment for one in shares(2, env | {"OMP_NUM_THREADS": "9"})] == given
    assert {one.cores for one in shares(6, env)} == {frozenset()}, "there are too few to have one each"


def test_without_a_batch_system_the_cores_that_may_be_used_count() -> None:
    assert float(devices({"CUDA_VISIBLE_DEVICES": ""})["cores"]) > 0


def package(folder: Path, name: str, microjoules: int, most: int = 1_000_000) -> Path:
    path = folder / name
    path.mkdir()
    (path / "energy_uj").write_text(f"{microjoules}\n")
    (path / "max_energy_range_uj").write_text(f"{most}\n")
    return path


def test_energy_is_that_of_the_own_gpus_and_of_the_own_part_of_the_processors(tmp_path: Path) -> None:
    nvml = FakeNvml(3)
    socket = package(tmp_path, "intel-rapl:0", 100)
    package(tmp_path, "intel-rapl:0:0", 100)  # a part of the first, which counts it
    counter = EnergyCounter(nvml=nvml, gpus=["0", "2"], rapl=tmp_path, share=0.25)
    assert counter.sources == ["nvml", "rapl"]
    for index, millijoules in enumerate((1000, 50_000, 2000)):
        nvml.millijoules[index] += millijoules
    (socket / "energy_uj").write_text("400100\n")
    assert counter() == pytest.approx(1.0 + 2.0 + 0.1)


def test_a_counter_of_a_processor_that_begins_anew_goes_on(tmp_path: Path) -> None:
    socket = package(tmp_path, "intel-rapl:0", 900_000)
    counter = EnergyCounter(rapl=tmp_path, share=1.0)
    (socket / "energy_uj").write_text("100000\n")
    assert counter() == pytest.approx(0.2)


def test_what_cannot_be_read_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "intel-rapl:0").mkdir()
    assert EnergyCounter(nvml=FakeNvml(1), gpus=["7"], rapl=tmp_path, share=1.0).sources == []


class Clocks:
    """Monotonic seconds, the clock on the wall, and joules, as a test sets them."""

    def __init__(self) -> None:
        self.now, self.wall, self.joules = 100.0, 5_000_000, 0.0

    def pass_(self, seconds: float, watts: float = 0.0) -> None:
        self.now += seconds
        self.wall += round(seconds * 1e6)
        self.joules += seconds * watts

    def meter(self, *, energy: bool) -> Meter:
        return Meter(clock=lambda: self.now, now_us=lambda: self.wall, energy=(lambda: self.joules) if energy else None)


def test_one_trial_at_a_time_without_a_counter_needs_no_word() -> None:
    clocks = Clocks()
    meter = clocks.meter(energy=False)
    meter.begin("a")
    clocks.pass_(1000)
    assert meter.used("a", at_end=True) is None
    assert meter.used("a") is None


def test_trials_at_a_time_share_the_process() -> None:
    clocks = Clocks()
    meter = clocks.meter(energy=True)
    meter.begin("a")
    clocks.pass_(10, watts=100)
    meter.begin("b")
    clocks.pass_(20, watts=100)
    assert meter.used("b", at_end=True) == Measured(10_000_000, 1_000_000)
    clocks.pass_(5, watts=100)
    assert meter.used("a", at_end=True) == Measured(25_000_000, 2_500_000)


def test_nothing_is_charged_for_the_time_between_trials() -> None:
    clocks = Clocks()
    meter = clocks.meter(energy=True)
    clocks.pass_(50, watts=100)
    meter.begin("a")
    clocks.pass_(1, watts=100)
    assert meter.used("a", at_end=True) == Measured(1_000_000, 100_000)


def test_the_counters_are_read_at_most_twice_a_second_until_the_end() -> None:
    clocks = Clocks()
    meter = clocks.meter(energy=True)
    meter.begin("a")
    clocks.pass_(0.1, watts=100)
    assert meter.used("a") == Measured(100_000, 0)
    assert meter.used("a", at_end=True) == Measured(100_000, 10_000)


def test_a_clock_that_was_set_is_told_from() -> None:
    clocks = Clocks()
    meter = clocks.meter(energy=False)
    meter.begin("a")
    clocks.pass_(10)
    clocks.wall += 3_600_000_000
    assert meter.used("a", at_end=True) == Measured(10_000_000, None)


def test_reports_bring_along_how_busy_the_gpus_are_but_not_every_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml, now = FakeNvml(3), [0.0]
    gauge = GpuGauge(nvml=nvml, gpus=["0", "2"], clock=lambda: now[0])
    monkeypatch.setattr("hopaas_p2p.storage.handle.gpu_gauge", lambda: gauge)
    study = hopaas_p2p.open_study("memory://gauge", "s")
    trial, other = study.ask(), study.ask()
    for step, (seconds, percent, gigabytes) in enumerate([(0, 50, 1.5), (5, 99, 9.0), (10, 80, 2.0)]):
        now[0] = seconds
        nvml.percent, nvml.gigabytes = [percent, 0, 100], [gigabytes, 70.0, 0.5]
        trial.report(0.5, step)
    other.report(0.5, 0)
    other.log(1, gpu_percent=7.0)
    other.report(0.5, 1)
    assert trial.metrics == {"gpu_percent": {0: 75.0, 2: 90.0}, "gpu_memory_gb": {0: 2.0, 2: 2.5}}
    assert other.metrics == {"gpu_percent": {0: 90.0, 1: 7.0}, "gpu_memory_gb": {0: 2.5}}
    study.tell(trial, 1.0)
    assert study.state.trials[0].metrics == trial.metrics
    study.close()


def test_gpus_that_cannot_be_asked_bring_nothing() -> None:
    assert GpuGauge(nvml=FakeNvml(1), gpus=["7"]).handles == []
    nvml = FakeNvml(1)
    gauge = GpuGauge(nvml=nvml, gpus=None)

    def fails(_handle: int) -> SimpleNamespace:
        raise nvml.NVMLError

    nvml.nvmlDeviceGetMemoryInfo = fails  # type: ignore[method-assign]
    assert gauge("trial") == {}
