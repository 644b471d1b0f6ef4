"""Trains on several ranks. Each rank runs the same lines, and all ranks run one trial together.

torchrun --nproc-per-node 4 examples/torchrun/train.py --store ./campaign
"""

import argparse

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import hopaas_p2p
from hopaas_p2p.training import Training


def objective(trial: hopaas_p2p.Trial) -> float:
    torch.manual_seed(dist.get_rank())  # each rank has data of its own
    x = torch.randn(256, 3)
    y = x @ torch.tensor([1.0, -2.0, 0.5])
    model = DistributedDataParallel(torch.nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=trial.params["lr"])
    training = Training(
        trial,
        save=lambda path: torch.save(model.state_dict(), path),
        load=lambda path: model.load_state_dict(torch.load(path, weights_only=True)),
        checkpoint_every=5,
    )
    loss = torch.tensor(0.0)
    for _ in training.steps(10):
        optimizer.zero_grad()
        loss = ((model(x).squeeze() - y) ** 2).mean()
        loss.backward()  # the ranks exchange gradients here
        optimizer.step()
        loss = loss.detach()
        dist.all_reduce(loss, dist.ReduceOp.SUM)
        loss /= dist.get_world_size()
        training.report(float(loss))  # may end the trial, on every rank
    return float(loss)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", default="./campaign")
    parser.add_argument("--trials", type=int, default=8)
    options = parser.parse_args()
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    space = {"lr": hopaas_p2p.Float(1e-3, 0.5, log=True)}
    study = hopaas_p2p.open_study(options.store, "several-ranks", space=space, budget=options.trials)
    study.optimize(objective)
    if dist.get_rank() == 0:
        print(f"best: {study.best_value:.4f} with {study.best_params}")
    study.close()
    dist.destroy_process_group()
