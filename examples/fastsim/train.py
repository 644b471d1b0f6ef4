"""Trains a small conditional normalizing flow on a detector's response (fast simulation), tuned by batch jobs.

    hopaas-p2p study create fastsim -s ./campaign --budget 50 --space 'lr=float(1e-4,1e-2,log)' \
        --space 'layers=int(2,6)' --space 'width=int(16,128,log)'
    hopaas-p2p worker -s ./campaign --study fastsim -- python train.py --lr {lr} --layers {layers} --width {width}

The script makes its own data. A particle of energy E and angle A gives a calorimeter's measured energy and a shower
width, with noise that depends on both. The flow learns p(response | E, A). Its loss is the mean negative log-likelihood
of responses that it has not seen. It uses affine coupling as in RealNVP (Dinh et al., 2017), conditioned by
concatenation.
"""

import argparse
import math
import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from hopaas_p2p.ports.client import Trial


def detector(number: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The particles' energies and angles, and the detector's responses, both of shape (number, 2)."""
    draw = torch.Generator().manual_seed(seed)
    energy, angle = torch.rand(number, generator=draw), torch.rand(number, generator=draw)
    noise = torch.randn(number, 2, generator=draw)
    measured = energy * (1 - 0.2 * angle) + (0.02 + 0.1 * energy.sqrt()) * noise[:, 0]
    spread = 0.3 + 0.2 * torch.log1p(5 * energy) + 0.05 * (1 + angle) * noise[:, 1].exp()
    return torch.stack([energy, angle], 1), torch.stack([measured, spread], 1)


class Flow(nn.Module):
    """Layers of affine coupling. Each transforms one of the two numbers, depending on the other number and the
    condition."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))
            for _ in range(layers)
        )

    def loss(self, condition: torch.Tensor, response: torch.Tensor) -> torch.Tensor:
        """Mean negative log-likelihood."""
        parts, log_volume = list(response.unbind(1)), torch.zeros(())
        for index, layer in enumerate(self.layers):
            moved, kept = index % 2, 1 - index % 2
            scale, shift = layer(torch.cat([parts[kept][:, None], condition], 1)).unbind(1)
            scale = 3 * torch.tanh(scale / 3)
            parts[moved] = parts[moved] * scale.exp() + shift
            log_volume = log_volume + scale
        squares = parts[0] ** 2 + parts[1] ** 2
        return (0.5 * squares + math.log(2 * math.pi) - log_volume).mean()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--events", type=int, default=20_000)
    given = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    trial, flow, epoch = Trial(), Flow(given.layers, given.width), 0
    optimizer = torch.optim.Adam(flow.parameters(), lr=given.lr)
    if "HOPAAS_CHECKPOINT" in os.environ:
        saved = torch.load(os.environ["HOPAAS_CHECKPOINT"], weights_only=True)
        flow.load_state_dict(saved["flow"])
        optimizer.load_state_dict(saved["optimizer"])
        epoch = saved["epoch"]

    leave: list[int] = []
    for name in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(name, lambda number, _frame: leave.append(number))

    condition, response = detector(given.events, seed=1)
    check = detector(given.events // 4, seed=2)
    while epoch < given.epochs:
        epoch += 1
        for rows in torch.randperm(given.events, generator=torch.Generator().manual_seed(epoch)).split(512):
            optimizer.zero_grad()
            flow.loss(condition[rows], response[rows]).backward()
            nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
            optimizer.step()
        with torch.no_grad():
            value = flow.loss(*check).item()
        print("epoch", epoch, "loss", value, flush=True)
        prune = trial.report(value, epoch)
        if leave:
            file = Path(f"checkpoint-{os.getpid()}.pt")
            torch.save({"flow": flow.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}, file)
            trial.checkpoint(file, epoch)
            file.unlink()
            sys.exit(f"the job has to end; a checkpoint was saved after epoch {epoch}")
        if prune:
            trial.tell(state="pruned")
            return
    trial.tell(value)


if __name__ == "__main__":
    main()
