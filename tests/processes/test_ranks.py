"""Trainings on several ranks: by torchrun, by Slurm, in a process group that the program makes, under a worker."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from hopaas_p2p import Float, open_study
from hopaas_p2p.study import Study
from hopaas_p2p.study.ranks import _ENDING
from tests.support.pages import ROOT, blocks
from tests.support.processes import alive, campaign, cli, environment, patient, script, states, until
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


def test_a_trial_whose_rank_was_killed_is_run_again_and_has_used_an_attempt(study: Study, tmp_path: Path) -> None:
    killed = "dist.all_reduce(x); dist.get_rank() == 1 and step == 1 and os.kill(os.getpid(), 9)"
    done = torchrun(tmp_path, 2, killed)
    assert done.returncode != 0
    assert states(study) == ["FAIL", "WAITING"]
    first, again = study.state.trials
    assert (again.retry_of, again.attempt) == (0, 2)
    assert "RuntimeError" in (first.reason or "")


def test_an_error_that_only_the_first_rank_can_have_caused_fails_the_trial_at_once(
    study: Study, tmp_path: Path
) -> None:
    done = torchrun(tmp_path, 2, "if dist.get_rank() == 0: raise torch.OutOfMemoryError('no memory left')")
    assert done.returncode != 0
    assert states(study) == ["FAIL"]
    assert "OutOfMemoryError: no memory left" in (study.state.trials[0].reason or "")
    assert (study.trials[0].duration or timedelta.max) < timedelta(seconds=_ENDING)


def test_a_call_on_one_rank_only_fails_the_trial_with_both_names(study: Study, tmp_path: Path) -> None:
    torchrun(tmp_path, 2, "if dist.get_rank() == 1: trial.should_prune()")
    assert states(study) == ["FAIL"]
    reason = study.state.trials[0].reason or ""
    assert "the first rank is at step 0 of training.steps, and rank 1 at trial.should_prune" in reason


def test_ranks_end_when_their_launcher_was_killed_and_the_trial_is_run_again(study: Study, tmp_path: Path) -> None:
    write = "open(f'rank{dist.get_rank()}', 'w').write(f'{os.getpid()} '); time.sleep(1)"
    train = script(tmp_path, EACH_RANK.replace("AT_STEP", write).replace("steps(3)", "steps(300)"))
    env = environment(OMP_NUM_THREADS="1")
    agent = subprocess.Popen([*TORCHRUN, "--nproc-per-node=2", train[-1]], cwd=tmp_path, env=env)
    ranks = [tmp_path / "rank0", tmp_path / "rank1"]
    until(lambda: all(one.exists() and one.read_text().endswith(" ") for one in ranks), 60)
    agent.kill()
    agent.wait()
    until(lambda: not any(alive(int(one.read_text())) for one in ranks), 60)
    assert states(study) == ["FAIL", "WAITING"]


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


LIGHTNING = """
import hopaas_p2p, lightning, torch, warnings
from hopaas_p2p.training.lightning import LightningCallback

class Line(lightning.LightningModule):
    def __init__(self, lr):
        super().__init__()
        self.layer, self.lr = torch.nn.Linear(1, 1), lr

    def training_step(self, batch, _):
        return ((self.layer(batch[0]) - batch[1]) ** 2).mean()

    def validation_step(self, batch, _):
        self.log("val_loss", self.training_step(batch, _), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)

def objective(trial):
    x = torch.randn(32, 1)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, 2 * x), batch_size=8)
    callback = LightningCallback(trial, checkpoint_every=2)
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = lightning.Trainer(
        max_epochs=3, accelerator="cpu", devices=2, strategy="ddp", callbacks=[callback], **quiet
    )
    trainer.fit(Line(0.05 + trial.params["x"] / 10), data, data, ckpt_path=callback.resume_path)
    return float(trainer.callback_metrics["val_loss"])

hopaas_p2p.open_study("store", "s").optimize(objective)
"""


def test_lightning_trains_one_trial_on_all_ranks(study: Study, tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    study.set_budget(2)
    command = [*TORCHRUN, "--nproc-per-node=2", script(tmp_path, LIGHTNING)[-1]]
    env = environment(OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore")  # Lightning has many
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert states(study) == ["COMPLETE"] * 2
    assert [sorted(trial.intermediate_values) for trial in study.trials] == [[0, 1, 2]] * 2
    assert study.state.trials[0].checkpoints


def test_a_first_rank_that_alone_calls_optimize_runs_its_trials_alone(study: Study, tmp_path: Path) -> None:
    """As programs do with Optuna's TorchDistributedTrial."""
    alone = """
    import os, datetime, hopaas_p2p
    from hopaas_p2p.study import ranks
    ranks._MEETING = datetime.timedelta(seconds=1)
    if os.environ["RANK"] == "0":
        hopaas_p2p.open_study("store", "s").optimize(lambda trial: trial.params["x"])
    """
    command = [*TORCHRUN, "--nproc-per-node=2", script(tmp_path, alone)[-1]]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True)
    assert "the first rank runs its trials alone" in done.stderr
    assert states(study) == ["COMPLETE"] * 3


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
    assert "this program runs one trial at a time on 2 ranks; leave out on= and n_jobs=" in done.stderr
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
        PRELUDE + block.text.replace('"nccl"', '"gloo"').replace("several-ranks", "page").replace("./campaign", "store")
        for block in blocks(ROOT / "docs/several-gpus.md")
    ]
    space = {"lr": Float(1e-3, 0.5, log=True)}
    with contextlib.closing(open_study(tmp_path / "store", "page", space=space, budget=1)) as study:
        train = script(tmp_path, second)[-1]
        words = ["worker", "--store", "store", "--study", "page", "--", *TORCHRUN, "--nproc-per-node=2", train]
        done = cli(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        study.set_budget(2)
        train = script(tmp_path, first)[-1]
        command = [*TORCHRUN, "--nproc-per-node=2", train]
        subprocess.run(command, cwd=tmp_path, env=environment(), timeout=patient(240), check=True)
        assert states(study) == ["COMPLETE"] * 2


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
