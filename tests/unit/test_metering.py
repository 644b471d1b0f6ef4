"""What a process costs: its devices by the batch system, its energy by counters, shared among the trials it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from hopaas_p2p.core.records import Used
from hopaas_p2p.errors import ConfigurationError
from hopaas_p2p.peer.peer import Meter
from hopaas_p2p.ports.limits import time_left
from hopaas_p2p.runtime.metering import devices, gpu_energy, shares
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
        ({"HOPAAS_WATTS": "", "HOPAAS_CORES": "", "CUDA_VISIBLE_DEVICES": "", "NSLOTS": "3"}, {"cores": "3"}),
    ],
)
def test_devices_are_what_the_job_was_given_or_the_user_says(env: dict[str, str], found: dict[str, str]) -> None:
    assert devices(env) == found


@pytest.mark.parametrize("text", ["much", "-3", "1,5", "inf"])
@pytest.mark.parametrize("name", ["HOPAAS_GPUS", "HOPAAS_CORES", "HOPAAS_WATTS"])
def test_devices_that_are_no_number_are_not_taken_for_none(name: str, text: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} = '{text}'"):
        devices({name: text, "NSLOTS": "3"})


def test_an_htcondor_job_has_the_cores_and_gpus_of_its_ad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hopaas_p2p.runtime.metering._NVIDIA", tmp_path)  # a node with a GPU, which others use
    (tmp_path / "ad").write_bytes(
        b'RequestCpus = 2\nCpusProvisioned = 3\nNote = "caf\xe9"\nHuge = %s\n' % (b"9" * 9999)
    )
    env = {"_CONDOR_JOB_AD": str(tmp_path / "ad"), "SLURM_CPUS_ON_NODE": "64", "OMP_NUM_THREADS": "1"}
    assert devices(env) == {"cores": "3"}
    assert devices(env | {"CUDA_VISIBLE_DEVICES": "10000"}) == {"cores": "3"}, "as HTCondor writes none"
    assert time_left(env) is None
    (tmp_path / "ad").write_text("RequestCpus = 2\nGPUsProvisioned = 1\n")
    assert devices(env) == {"cores": "2", "gpus": "1"}


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
    assert [one for one, _ in found] == [one | {"OMP_NUM_THREADS": "2"} for one in given]
    assert [set(cores) for _, cores in found] == [{1, 2}, {3, 6, 7}]
    assert [one for one, _ in shares(2, env | {"OMP_NUM_THREADS": "9"})] == given
    assert {cores for _, cores in shares(6, env)} == {frozenset()}, "there are too few to have one each"


def test_without_a_batch_system_the_cores_that_may_be_used_count() -> None:
    assert float(devices({"CUDA_VISIBLE_DEVICES": ""})["cores"]) > 0


def test_energy_is_that_of_the_own_gpus() -> None:
    nvml = FakeNvml(3)
    counter = gpu_energy(nvml, ["0", "2"])
    assert counter is not None
    for index, millijoules in enumerate((1000, 50_000, 2000)):
        nvml.millijoules[index] += millijoules
    assert counter() == pytest.approx(1.0 + 2.0)


def test_gpus_that_cannot_be_asked_are_not_counted() -> None:
    assert gpu_energy(FakeNvml(1), ["7"]) is None
    assert gpu_energy(FakeNvml(0)) is None


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
    assert meter.used("b", at_end=True) == Used(10_000_000, 1_000_000)
    clocks.pass_(5, watts=100)
    assert meter.used("a", at_end=True) == Used(25_000_000, 2_500_000)


def test_nothing_is_charged_for_the_time_between_trials() -> None:
    clocks = Clocks()
    meter = clocks.meter(energy=True)
    clocks.pass_(50, watts=100)
    meter.begin("a")
    clocks.pass_(1, watts=100)
    assert meter.used("a", at_end=True) == Used(1_000_000, 100_000)


def test_the_counters_are_read_at_most_twice_a_second_until_the_end() -> None:
    clocks = Clocks()
    meter = clocks.meter(energy=True)
    meter.begin("a")
    clocks.pass_(0.1, watts=100)
    assert meter.used("a") == Used(100_000, 0)
    assert meter.used("a", at_end=True) == Used(100_000, 10_000)


def test_a_clock_that_was_set_is_told_from() -> None:
    clocks = Clocks()
    meter = clocks.meter(energy=False)
    meter.begin("a")
    clocks.pass_(10)
    clocks.wall += 3_600_000_000
    assert meter.used("a", at_end=True) == Used(10_000_000, None)
