"""Training libraries on our trials: Optuna's own callbacks as they are, and ours where those know too little.

Each library runs in a process of its own, as training does, with its own warnings.
"""

from __future__ import annotations

import importlib.util
import signal
import subprocess
from pathlib import Path

import optuna
import pytest

import hopaas_p2p
from hopaas_p2p.study import Study
from tests.support.postgres_fixtures import missing
from tests.support.processes import campaign, environment, script, states, until

SETTING = {"PYTHONWARNINGS": "ignore", "KERAS_BACKEND": "torch", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
HEAD = """
import sys
import numpy as np
import optuna
import hopaas_p2p

study = hopaas_p2p.open_study("store", "s", pruner=optuna.pruners.ThresholdPruner(upper=50.0))
generator = np.random.default_rng(0)
x = generator.normal(size=(64, 3)).astype("float32")
y = x @ np.array([1.0, -2.0, 0.5], dtype="float32")
scale = [1.0, 100.0]  # the second trial's target is hopeless
"""
KERAS = """
import keras

def fit(trial, callback, epochs=4, scale=1.0, **options):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.05), "mse")
    history = model.fit(x, y * scale, epochs=epochs, verbose=0, callbacks=[callback], **options)
    return history.history["loss"][-1]
"""
LIGHTNING = """
import logging, torch, lightning
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
    def training_step(self, batch, _):
        return torch.nn.functional.mse_loss(self.layer(batch[0])[:, 0], batch[1])
    def validation_step(self, batch, _):
        self.log("val_loss", self.training_step(batch, 0), sync_dist=True)
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.05)

def fit(trial, callback, epochs=4, scale=1.0, ckpt_path=None, **options):
    torch.manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(y * scale))
    loader = torch.utils.data.DataLoader(data, batch_size=16)
    options = {"devices": 1, "logger": False, "enable_checkpointing": False, **options}
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", callbacks=[callback], enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, log_every_n_steps=1, **options,
    )
    trainer.fit(Module(), loader, loader, ckpt_path=ckpt_path, weights_only=False)
    return float(trainer.callback_metrics["val_loss"])
"""
BODIES = {
    "keras": KERAS
    + """
from optuna_integration import KerasPruningCallback

study.optimize(lambda trial: fit(trial, KerasPruningCallback(trial, "loss"), scale=scale[trial.number]))
""",
    "lightning": LIGHTNING
    + """
from optuna_integration import PyTorchLightningPruningCallback

def objective(trial):
    return fit(trial, PyTorchLightningPruningCallback(trial, "val_loss"), scale=scale[trial.number])

study.optimize(objective)
""",
    "xgboost": """
import xgboost
from optuna_integration import XGBoostPruningCallback

def objective(trial):
    data = xgboost.DMatrix(x, y * scale[trial.number])
    history = {}
    xgboost.train(
        {"nthread": 1, "eta": trial.params["lr"]}, data, 4, evals=[(data, "validation")], evals_result=history,
        verbose_eval=False, callbacks=[XGBoostPruningCallback(trial, "validation-rmse")],
    )
    return history["validation"]["rmse"][-1]

study.optimize(objective)
""",
    "lightgbm": """
import lightgbm
from optuna_integration import LightGBMPruningCallback

def objective(trial):
    data = lightgbm.Dataset(x, y * scale[trial.number])
    model = lightgbm.train(
        {"num_threads": 1, "verbose": -1, "metric": "rmse", "min_data_in_leaf": 2}, data, 4, valid_sets=[data],
        valid_names=["validation"], callbacks=[LightGBMPruningCallback(trial, "rmse", "validation")],
    )
    return model.best_score["validation"]["rmse"]

study.optimize(objective)
""",
}


def needs(*modules: str) -> None:
    """Skip, or fail where everything has to be there."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            missing(f"{module} (pip install 'hopaas-p2p[integrations]')")


def run(tmp_path: Path, body: str) -> None:
    """Run a training program to its end."""
    done = subprocess.run(
        script(tmp_path, HEAD + body), cwd=tmp_path, env=environment(**SETTING), capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def judged(tmp_path: Path, **options: object) -> Study:
    """A study for two trials, of which the second will be pruned."""
    return campaign(tmp_path, budget=2, lease_ttl=60.0, **options)


@pytest.mark.parametrize("library", BODIES)
def test_optunas_callback_reports_and_prunes_on_our_trials(tmp_path: Path, library: str) -> None:
    needs("optuna_integration", library, *(["torch"] if library in ("keras", "lightning") else []))
    study = judged(tmp_path)

    run(tmp_path, BODIES[library])

    good, hopeless = study.trials
    assert states(study) == ["COMPLETE", "PRUNED"]
    assert sorted(good.intermediate_values) == [0, 1, 2, 3]
    assert good.value == pytest.approx(good.intermediate_values[3])
    assert len(hopeless.intermediate_values) == 1
    study.close()


def test_optunas_trial_of_distributed_pytorch_works_on_ours(tmp_path: Path) -> None:
    needs("optuna_integration", "torch")
    study = judged(tmp_path)
    run(
        tmp_path,
        """
import multiprocessing, os
import torch.distributed as dist
from optuna_integration import TorchDistributedTrial

def joined(trial):  # what every rank does for a trial
    both = TorchDistributedTrial(trial)
    lr = both.suggest_float("lr", 1e-4, 1e-1, log=True)
    both.report(scale[both.number] * 2 + dist.get_rank(), 0)  # that of rank 0 counts
    both.set_user_attr("seen", lr)
    pruned = both.should_prune()
    both.set_user_attr("pruned", pruned)
    return pruned

def meet(rank):
    dist.init_process_group("gloo", init_method="file://" + os.path.abspath("meeting"), rank=rank, world_size=2)

def rank_1():
    meet(1)
    for _ in range(2):
        joined(None)
    dist.destroy_process_group()

def objective(trial):
    if joined(trial):
        trial.prune()
    return trial.params["lr"]

other = multiprocessing.get_context("fork").Process(target=rank_1)
other.start()
meet(0)
study.optimize(objective)
""",
    )

    good, hopeless = study.trials
    assert states(study) == ["COMPLETE", "PRUNED"]
    assert (good.intermediate_values, hopeless.intermediate_values) == ({0: 2.0}, {0: 200.0})
    assert good.user_attrs["seen"] == pytest.approx(good.params["lr"], rel=1e-6)  # it travels as a float32
    assert hopeless.user_attrs["pruned"]
    study.close()


OURS = {
    "keras": (
        "keras",
        KERAS
        + """
from hopaas_p2p.training.keras import KerasCallback

class Slow(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        open(f"epoch-{epoch}", "a").write("x")
        if "wait" in sys.argv and epoch >= 5:
            import time; time.sleep(0.1)

def objective(trial):
    callback = KerasCallback(trial, "loss", report_every=2, checkpoint_every=3)
    options = {"epochs": 400 if "wait" in sys.argv else 8, "initial_epoch": callback.initial_epoch}
    return fit_all(trial, [callback, Slow()], scale=scale[trial.number % 2], **options)

def fit_all(trial, callbacks, **options):
    return fit_list(trial, callbacks, **options)

def fit_list(trial, callbacks, epochs, scale, initial_epoch):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.05), "mse")
    history = model.fit(
        x, y * scale, epochs=epochs, initial_epoch=initial_epoch, verbose=0, callbacks=callbacks, batch_size=16
    )
    return history.history["loss"][-1]

study.optimize(objective)
""",
    ),
    "lightning": (
        "lightning",
        LIGHTNING
        + """
from hopaas_p2p.training.lightning import LightningCallback

class Mine(LightningCallback):
    def on_train_epoch_end(self, trainer, module):
        super().on_train_epoch_end(trainer, module)
        open(f"epoch-{trainer.current_epoch}", "a").write("x")
        if "wait" in sys.argv and trainer.current_epoch >= 5:
            import time; time.sleep(0.1)

def objective(trial):
    callback = Mine(trial, "val_loss", report_every=2, checkpoint_every=3)
    epochs = 400 if "wait" in sys.argv else 8
    return fit(trial, callback, epochs=epochs, scale=scale[trial.number % 2], ckpt_path=callback.resume_path)

study.optimize(objective)
""",
    ),
    "torch": (
        "torch",
        """
import torch
from hopaas_p2p.training import Training

def objective(trial):
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 1)
    optimizer = torch.optim.Adam(layer.parameters(), 0.05)

    def save(path):
        torch.save([layer.state_dict(), optimizer.state_dict()], path)

    def load(path):
        for one, state in zip((layer, optimizer), torch.load(path)):
            one.load_state_dict(state)

    training = Training(trial, save=save, load=load, report_every=2, checkpoint_every=3)
    for epoch in training.steps(400 if "wait" in sys.argv else 8):
        loss = torch.nn.functional.mse_loss(layer(torch.tensor(x))[:, 0], torch.tensor(y * scale[trial.number % 2]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        open(f"epoch-{epoch}", "a").write("x")
        if "wait" in sys.argv and epoch >= 5:
            import time; time.sleep(0.1)
        training.report(float(loss))
    return float(loss)

study.optimize(objective)
""",
    ),
}


@pytest.mark.parametrize("library", OURS)
def test_ours_reports_every_few_epochs_and_prunes(tmp_path: Path, library: str) -> None:
    module, body = OURS[library]
    needs(module, "torch")
    study = judged(tmp_path)

    run(tmp_path, body)

    good, hopeless = study.trials
    assert states(study) == ["COMPLETE", "PRUNED"]
    assert sorted(good.intermediate_values) == [1, 3, 5, 7]
    assert sorted(hopeless.intermediate_values) == [1]
    study.close()


@pytest.mark.parametrize("library", OURS)
def test_a_preempted_training_goes_on_where_it_was(tmp_path: Path, library: str) -> None:
    module, body = OURS[library]
    needs(module, "torch")
    study = campaign(tmp_path, budget=1, lease_ttl=60.0)
    words = script(tmp_path, HEAD + body)
    with (tmp_path / "first.log").open("w") as log:
        first = subprocess.Popen(
            [*words, "wait"], cwd=tmp_path, env=environment(**SETTING), stdout=log, stderr=log
        )  # fmt: skip
    until(
        lambda: (tmp_path / "epoch-6").exists() or first.poll() is not None, 240,
        what=lambda: (tmp_path / "first.log").read_text(),
    )  # fmt: skip

    first.send_signal(signal.SIGTERM)

    assert first.wait(120) == 128 + signal.SIGTERM, (tmp_path / "first.log").read_text()
    assert states(study) == ["WAITING"]
    (saved,) = [one.step for one in study.state.trials[0].checkpoints[-1:]]
    assert saved >= 5
    ran = {int(path.name.partition("-")[2]) for path in tmp_path.glob("epoch-*")}
    for path in tmp_path.glob("epoch-*"):
        path.unlink()

    run(tmp_path, body.replace("else 8", f"else {saved + 4}"))

    assert states(study) == ["COMPLETE"]
    again = {int(path.name.partition("-")[2]) for path in tmp_path.glob("epoch-*")}
    assert again == {saved + 1, saved + 2, saved + 3}
    assert max(ran) - saved in (0, 1)  # at most the epoch that was under way is run again
    reports = study.trials[0].intermediate_values
    assert min(reports) == 1
    assert reports[max(reports)] < reports[1]  # it has learnt from where it was
    study.close()


@pytest.mark.parametrize("library", OURS)
def test_ours_pauses_at_a_rung_and_a_continuation_trains_on_from_there(tmp_path: Path, library: str) -> None:
    module, body = OURS[library]
    needs(module, "torch")
    study = campaign(tmp_path, budget=4, lease_ttl=60.0, fidelity=hopaas_p2p.Rungs(min=2, max=8, eta=2))

    run(tmp_path, body.replace("scale[trial.number % 2]", "1.0"))

    continued = [trial for trial in study.state.trials if trial.continues is not None]
    assert continued
    assert "COMPLETE" in states(study)
    assert len((tmp_path / "epoch-0").read_text()) == 4, "each configuration begins once, whatever is continued"
    assert sum(len(path.read_text()) for path in tmp_path.glob("epoch-*")) < 4 * 8
    study.close()


def test_lightning_refuses_ranks_that_have_no_trial(tmp_path: Path) -> None:
    needs("lightning", "torch")
    study = judged(tmp_path)
    body = (
        LIGHTNING
        + """
from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.training.lightning import LightningCallback

def objective(trial):
    return fit(trial, LightningCallback(trial, "val_loss"), scale=1, devices=2, strategy="ddp_fork")

study.optimize(objective, n_trials=1, catch=(Exception,))
"""
    )

    run(tmp_path, body)

    assert "torchrun --nproc-per-node 2 train.py" in str(study.state.trials[0].reason)
    study.close()


def test_the_pruners_decision_is_optunas(tmp_path: Path) -> None:
    """What the libraries above rely on: our trial is a trial of Optuna's."""
    study = judged(tmp_path)

    assert isinstance(study.ask(), optuna.trial.Trial)

    study.close()
