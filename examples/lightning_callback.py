"""Train with Lightning, with reports, pruning, and continuation after a pre-empted job.

Needs lightning and scikit-learn. Start it as often as you like: python lightning_callback.py ./campaign
"""

import sys

import lightning
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset, random_split

import hopaas_p2p
from hopaas_p2p.training.lightning import LightningCallback

SPACE = {"lr": hopaas_p2p.Float(1e-4, 1e-1, log=True), "width": hopaas_p2p.Int(16, 128)}


class Digits(lightning.LightningModule):
    def __init__(self, lr: float, width: int) -> None:
        super().__init__()
        self.lr = lr
        self.layers = torch.nn.Sequential(torch.nn.Linear(64, width), torch.nn.ReLU(), torch.nn.Linear(width, 10))

    def training_step(self, batch: list[torch.Tensor], _: object) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self.layers(batch[0]), batch[1])

    def validation_step(self, batch: list[torch.Tensor], _: object) -> None:
        self.log("val_loss", self.training_step(batch, None))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.lr)


def objective(trial: hopaas_p2p.Trial, epochs: int = 10) -> float:
    x, y = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y))
    train, valid = random_split(data, [0.8, 0.2], torch.Generator().manual_seed(0))
    callback = LightningCallback(trial, "val_loss", checkpoint_every=5)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    loaders = DataLoader(train, 64, shuffle=True), DataLoader(valid, 360)
    trainer.fit(Digits(**trial.params), *loaders, ckpt_path=callback.resume_path)
    return float(trainer.callback_metrics["val_loss"])


def main(store: str, budget: int = 20, epochs: int = 10) -> None:
    study = hopaas_p2p.open_study(store, "lightning", space=SPACE, budget=budget)
    study.optimize(lambda trial: objective(trial, epochs))
    print(f"best: {study.best_trial.value:.4f} with {study.best_trial.params}")
    study.close()


if __name__ == "__main__":
    main(sys.argv[1])
