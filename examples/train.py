"""Trains in a batch job: reports every epoch, saves a checkpoint when the job has to end, and continues from it.

    hopaas-p2p study create demo -s ./campaign --budget 40 --space 'lr=float(1e-3,1,log)' --space 'depth=int(1,9)'
    hopaas-p2p worker -s ./campaign --study demo -- python train.py --lr {lr} --depth {depth}

It fits a polynomial of degree `depth` to noisy points of a sine by gradient descent, in plain Python. To use the
script for your own training, replace `Model`.
"""

import argparse
import json
import math
import os
import random
import signal
import sys
import time
from pathlib import Path

from hopaas_p2p.ports.client import Trial  # standard library only, so you can also copy client.py beside this file

Points = list[tuple[float, float]]


class Model:
    """Weights of a polynomial, with momentum."""

    def __init__(self, depth: int) -> None:
        self.epoch = 0
        self.weights, self.speed = [0.0] * (depth + 1), [0.0] * (depth + 1)

    def predict(self, x: float) -> float:
        return sum(weight * x**power for power, weight in enumerate(self.weights))

    def fit(self, points: Points, lr: float) -> None:
        for x, y in points:
            error = self.predict(x) - y
            for power in range(len(self.weights)):
                self.speed[power] = 0.8 * self.speed[power] - 0.1 * lr * error * x**power
                self.weights[power] += self.speed[power]
        self.epoch += 1

    def loss(self, points: Points) -> float:
        total = sum((self.predict(x) - y) ** 2 for x, y in points) / len(points)
        return total if math.isfinite(total) and total < 1e3 else 1e3

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(vars(self)))

    def load(self, path: Path) -> None:
        vars(self).update(json.loads(path.read_text()))


def points(number: int, seed: int) -> Points:
    draw = random.Random(seed)
    xs = [draw.uniform(-1, 1) for _ in range(number)]
    return [(x, math.sin(3 * x) + draw.gauss(0, 0.05)) for x in xs]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--depth", type=int, required=True)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=0.0, help="the minimum duration of an epoch")
    given = parser.parse_args()

    trial, model = Trial(), Model(given.depth)
    if "HOPAAS_CHECKPOINT" in os.environ:  # an earlier attempt was interrupted; continue from its checkpoint
        model.load(Path(os.environ["HOPAAS_CHECKPOINT"]))
        print("continuing after epoch", model.epoch, flush=True)

    leave: list[int] = []  # received signals; the checkpoint is saved at the end of the epoch
    for name in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(name, lambda number, _frame: leave.append(number))

    train, check = points(200, seed=1), points(100, seed=2)
    while model.epoch < given.epochs:
        model.fit(train, given.lr)
        time.sleep(given.seconds)
        print("epoch", model.epoch, "loss", model.loss(check), flush=True)
        prune = trial.report(model.loss(check), model.epoch)
        if leave:
            file = Path(f"checkpoint-{os.getpid()}.json")
            model.save(file)
            trial.checkpoint(file, model.epoch)
            file.unlink()
            sys.exit("the job has to end; a checkpoint was saved after epoch " + str(model.epoch))
        if prune:
            trial.tell(state="pruned")
            return
    trial.tell(model.loss(check))


if __name__ == "__main__":
    main()
