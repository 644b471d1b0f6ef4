"""Trainings on several ranks: by torchrun, by Slurm, in a process group that the program makes, under a worker."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hopaas_p2p import Float
from hopaas_p2p.study import Study
from tests.support.pages import ROOT, blocks
from tests.support.processes import campaign, cli, environment, patient, script, states, until
from tests.support.slurm_fixtures import Slurm, slurm

__all__ = ["slurm"]
pytest.importorskip("torch")
TORCHRUN = [str(Path(sys.executable).with_name("torchrun")), "--standalone"]
EACH_RANK = """
import os, sys, time
import hopaas_p2p
import torch, torch.distributed as dist
from hopaas_p2p.training import Training

def objective(trial):
    x = torch.tensor([trial.params["x"]])
    dist.all_reduce(x)                       # all have the same parameters
    assert abs(float(x) / dist.get_world_size() - trial.params["x"]) < 1e-6
    for step in Training(trial).steps(3):
        trial.report(float(step), step)
        AT_STEP
    return trial.params["x"]

dist.init_process_group("gloo")
study = hopaas_p2p.open_study("store", "s")
study.optimize(objective)
print("rank", dist.get_rank(), "has ended", flush=True)
"""


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Study]:
    made = campaign(tmp_path, space={"x": Float(0, 1)}, budget=3)
    yield made
    made.close()


def torchrun(directory: Path, ranks: int, at_step: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    train = script(directory, EACH_RANK.replace("AT_STEP", at_step or "pass"))[-1]
    return subprocess.run(
        [*TORCHRUN, f"--nproc-per-node={ranks}", train],
        cwd=directory,
        env=environment(OMP_NUM_THREADS="1", **env),
        capture_output=True,
        text=True,
        timeout=patient(240),
        check=False,
    )


@pytest.mark.parametrize("ranks", [2, 4])
def test_every_rank_calls_the_same_line_and_one_trial_runs_on_all(study: Study, tmp_path: Path, ranks: int) -> None:
    done = torchrun(tmp_path, ranks, HOPAAS_GPUS="1", HOPAAS_CORES="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("has ended") == ranks
    assert states(study) == ["COMPLETE"] * 3
    assert [sorted(trial.intermediate_values) for trial in study.trials] == [[0, 1, 2]] * 3
    about = study.provenance(0)
    assert about["ranks"] == str(ranks)
    assert len({study.provenance(number)["pid"] for number in range(3)}) == 1, "one peer"


def test_a_rank_that_dies_ends_the_trial_for_all_with_its_reason(study: Study, tmp_path: Path) -> None:
    done = torchrun(tmp_path, 2, "if dist.get_rank() == 1 and step == 1: raise ValueError('no memory left here')")
    assert done.returncode != 0
    assert states(study) == ["FAIL"]
    assert "rank 1: ValueError: no memory left here" in (study.state.trials[0].reason or "")


def test_a_pruned_trial_ends_on_every_rank(study: Study, tmp_path: Path) -> None:
    stop = "number = trial.number; dist.get_rank() or study.stop_trial(number); trial.should_prune() and trial.prune()"
    done = torchrun(tmp_path, 2, stop)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("has ended") == 2
    assert states(study) == ["PRUNED"] * 3


def test_sigterm_gives_the_trial_back_from_all_ranks(study: Study, tmp_path: Path) -> None:
    train = script(
        tmp_path, EACH_RANK.replace("AT_STEP", "time.sleep(1 if step < 2 else 0); step or open('begun', 'w')")
    )
    both = subprocess.Popen(
        [*TORCHRUN, "--nproc-per-node=2", train[-1]], cwd=tmp_path, env=environment(OMP_NUM_THREADS="1"), text=True
    )
    until(lambda: (tmp_path / "begun").exists(), 60)
    both.terminate()
    assert both.wait(patient(60)) != 0
    assert "RUNNING" not in states(study)
    assert "WAITING" in states(study)


def test_several_trials_at_a_time_are_refused(study: Study, tmp_path: Path) -> None:
    train = script(
        tmp_path, EACH_RANK.replace("AT_STEP", "pass").replace("optimize(objective", "optimize(objective, n_jobs=2")
    )
    done = subprocess.run(
        [*TORCHRUN, "--nproc-per-node=2", train[-1]],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=patient(240),
        check=False,
    )
    assert done.returncode != 0
    assert "this program runs on 2 ranks, which run one trial at a time" in done.stderr
    assert states(study) == []


UNDER_A_WORKER = """
import torch, torch.distributed as dist
from hopaas_p2p.ports.client import Trial
from hopaas_p2p.training import RankedTrial, ranks

dist.init_process_group("gloo")
trial = RankedTrial(Trial() if dist.get_rank() == 0 else None, ranks())
x = torch.tensor([trial.params["x"]])
dist.all_reduce(x)
for step in range(3):
    if trial.report(float(x), step):
        break
if dist.get_rank() == 0:
    print('{"value": %r}' % (float(x) / dist.get_world_size()))
"""


def test_a_worker_runs_torchrun_and_the_first_rank_speaks_for_all(study: Study, tmp_path: Path) -> None:
    train = script(tmp_path, UNDER_A_WORKER)[-1]
    command = [*TORCHRUN, "--nproc-per-node=2", train]
    done = cli("worker", "--store", "store", "--study", "s", "--", *command, cwd=tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert states(study) == ["COMPLETE"] * 3
    assert all(abs(trial.value - trial.params["x"]) < 1e-6 for trial in study.trials)
    assert sorted(study.trials[0].intermediate_values) == [0, 1, 2]


PRELUDE = """
import types

def build(lr):
    model = types.SimpleNamespace(save=lambda path: path.write_text("x"), load=lambda path: None)
    model.train_one_epoch = train_one_epoch = lambda: 0.5
    return model

train_one_epoch = lambda lr: 0.5
"""


def test_the_programs_of_the_page_run(tmp_path: Path) -> None:
    first, second = [
        PRELUDE + block.text.replace('"nccl"', '"gloo"').replace("several-ranks", "s").replace("./campaign", "store")
        for block in blocks(ROOT / "docs/several-gpus.md")
    ]
    study = campaign(tmp_path, space={"lr": Float(1e-3, 0.5, log=True)}, budget=1)
    train = script(tmp_path, second)[-1]
    done = cli("worker", "--store", "store", "--study", "s", "--", *TORCHRUN, "--nproc-per-node=2", train, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    study.set_budget(2)
    train = script(tmp_path, first)[-1]
    subprocess.run([*TORCHRUN, "--nproc-per-node=2", train], cwd=tmp_path, env=environment(), timeout=240, check=True)
    assert states(study) == ["COMPLETE"] * 2
    study.close()


def test_two_tasks_of_slurm_are_two_ranks(slurm: Slurm, study: Study, tmp_path: Path) -> None:
    script(tmp_path, EACH_RANK.replace("AT_STEP", "pass"))
    (tmp_path / "job.sh").write_text(
        "#!/bin/bash\n#SBATCH --ntasks=2\n"
        "export MASTER_ADDR=127.0.0.1 MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000)) WORLD_SIZE=2 OMP_NUM_THREADS=1\n"
        f"srun --ntasks=2 --overlap bash -c 'RANK=$SLURM_PROCID exec {sys.executable} train.py'\n"
    )
    job = slurm.submit("--ntasks=2", "--overcommit", str(tmp_path / "job.sh"), cwd=tmp_path)
    until(lambda: not set(slurm.states(job)) - {"COMPLETED"}, 120, what=lambda: slurm.show(job) + slurm.logs())
    assert states(study) == ["COMPLETE"] * 3
    assert study.provenance(0)["ranks"] == "2"


def test_the_example_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [*TORCHRUN, "--nproc-per-node=2", str(ROOT / "examples" / "torchrun" / "train.py"), "--trials=2"],
        cwd=tmp_path,
        env=environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=patient(240),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "best: " in done.stdout
