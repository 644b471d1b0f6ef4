"""Trains the learning curves that `bench_fidelity` searches, once: `python -m tests.benchmarks.train_curves`.

Small networks on two data sets that scikit-learn brings along, every configuration of `SPACE` for 50 epochs with its
cross-entropy on the validation half after each. Configurations of one shape are trained together, as matrices with one
dimension more. How long an epoch takes is measured apart, with a single network of each shape, in CPU time. It takes
about a quarter of an hour of one core. The values are the same on every machine but for rounding; the durations are
those of the machine. The file is kept, so that a search of it is the same everywhere.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from tests.benchmarks.curves import DATA_SETS, EPOCHS, SHAPE, SPACE, keep

Array = np.ndarray[Any, np.dtype[np.float32]]
_SEED: Final = 20_261
_WORST: Final = 10.0
"""What a network that diverged is recorded with."""


class Data(NamedTuple):
    """Inputs, and which class each is."""

    inputs: Array
    classes: np.ndarray[Any, np.dtype[np.int64]]


class Shape(NamedTuple):
    """What networks that are trained together have in common."""

    batch: int
    width: int
    depth: int


class Rest(NamedTuple):
    """What they differ in, a number for each network."""

    rate: Array
    momentum: Array
    decay: Array
    cosine: np.ndarray[Any, np.dtype[np.bool_]]


class Networks:
    """Networks of one shape, and how they learn: stochastic gradient descent with momentum on mini-batches."""

    def __init__(self, shape: Shape, rest: Rest, *, inputs: int, classes: int, seed: int) -> None:
        numbers = np.random.default_rng(seed)
        self._rest, self._batch = rest, shape.batch
        sizes = [inputs, *[shape.width] * shape.depth, classes]
        count = len(rest.rate)
        self._weights = [
            (numbers.standard_normal((count, fan, out)) * math.sqrt(2 / fan)).astype(np.float32)
            for fan, out in itertools.pairwise(sizes)
        ]
        self._biases = [np.zeros((count, 1, out), np.float32) for out in sizes[1:]]
        self._speed = [np.zeros_like(one) for one in (*self._weights, *self._biases)]

    def epoch(self, data: Data, done: int, numbers: np.random.Generator) -> None:
        """Go once through the data, in an order that all networks share."""
        factor = np.where(self._rest.cosine, 0.5 + 0.5 * math.cos(math.pi * done / EPOCHS), 1.0)
        rate = (self._rest.rate * factor).astype(np.float32)[:, None, None]
        momentum, decay = self._rest.momentum[:, None, None], self._rest.decay[:, None, None]
        order = numbers.permutation(len(data.classes))
        for start in range(0, len(order) - self._batch + 1, self._batch):
            rows = order[start : start + self._batch]
            slopes = self._slopes(data.inputs[rows], data.classes[rows])
            for place, one in enumerate((*self._weights, *self._biases)):
                speed = self._speed[place]
                slope = slopes[place] + decay * one if place < len(self._weights) else slopes[place]
                speed *= momentum
                speed -= rate * slope
                one += speed
                np.clip(one, -1e3, 1e3, out=one)  # a network that diverges stays a number

    def _slopes(self, inputs: Array, classes: Any) -> list[Array]:
        layers: list[Array] = [inputs[None]]
        for weight, bias in zip(self._weights, self._biases, strict=True):
            ahead = layers[-1] @ weight + bias
            layers.append(np.maximum(ahead, 0) if len(layers) < len(self._weights) else ahead)
        error = _probabilities(layers.pop())
        error[:, np.arange(len(classes)), classes] -= 1
        error /= len(classes)
        weights: list[Array] = []
        biases: list[Array] = []
        for weight, layer in zip(reversed(self._weights), reversed(layers), strict=True):
            weights.insert(0, layer.transpose(0, 2, 1) @ error)
            biases.insert(0, error.sum(1, keepdims=True))
            if layer is not layers[0]:
                error = (error @ weight.transpose(0, 2, 1)) * (layer > 0)
        return [*weights, *biases]

    def losses(self, data: Data) -> Array:
        """The cross-entropy of each network."""
        layer: Array = data.inputs[None]
        for place, (weight, bias) in enumerate(zip(self._weights, self._biases, strict=True), 1):
            layer = layer @ weight + bias
            layer = np.maximum(layer, 0) if place < len(self._weights) else layer
        right = _probabilities(layer)[:, np.arange(len(data.classes)), data.classes]
        losses = -np.log(np.maximum(right, 1e-30)).mean(1)
        return np.minimum(np.nan_to_num(losses, nan=_WORST), _WORST)


def _probabilities(outputs: Array) -> Array:
    shares: Array = np.exp(outputs - outputs.max(2, keepdims=True))
    shares /= shares.sum(2, keepdims=True)
    return shares


def _halves(name: str) -> tuple[Data, Data]:
    """One half to train with, the other to validate with."""
    import sklearn.datasets

    bunch = getattr(sklearn.datasets, f"load_{name}")()
    order = np.random.default_rng(_SEED).permutation(len(bunch.target))
    train, validate = order[::2], order[1::2]
    mean, spread = bunch.data[train].mean(0), bunch.data[train].std(0)
    inputs = ((bunch.data - mean) / np.where(spread > 0, spread, 1)).clip(-5, 5).astype(np.float32)
    return Data(inputs[train], bunch.target[train]), Data(inputs[validate], bunch.target[validate])


def _groups() -> Iterator[tuple[Shape, list[int], Rest]]:
    """The configurations by shape, as places in the list of all."""
    everything = list(itertools.product(*SPACE.values()))
    names = list(SPACE)
    for shape in itertools.product(*(SPACE[name] for name in SHAPE)):
        places = [place for place, one in enumerate(everything) if tuple(one[names.index(n)] for n in SHAPE) == shape]
        columns = {name: [everything[place][names.index(name)] for place in places] for name in names}
        numbers = (np.array(columns[name], np.float32) for name in ("rate", "momentum", "decay"))
        yield Shape(*map(int, shape)), places, Rest(*numbers, np.array(columns["schedule"]) == "cosine")


def _seconds(shape: Shape, train: Data, validate: Data, classes: int) -> list[float]:
    """What each epoch of one network takes, the least of three runs."""
    half = np.full(1, 0.01, np.float32)
    runs = []
    for _ in range(3):
        network = Networks(
            shape, Rest(half, half, half, half > 0), inputs=train.inputs.shape[1], classes=classes, seed=0
        )
        numbers, ends = np.random.default_rng(_SEED), [time.process_time()]
        for done in range(EPOCHS):
            network.epoch(train, done, numbers)
            network.losses(validate)
            ends.append(time.process_time())
        runs.append(np.diff(ends))
    return list(np.min(runs, axis=0))


def main() -> None:
    """Train all, and keep the file."""
    count = math.prod(map(len, SPACE.values()))
    losses = np.zeros((len(DATA_SETS), count, EPOCHS), np.float32)
    seconds = np.zeros((len(DATA_SETS), count, EPOCHS), np.float32)
    for row, name in enumerate(DATA_SETS):
        train, validate = _halves(name)
        classes = int(train.classes.max()) + 1
        for shape, places, rest in _groups():
            seconds[row, places] = _seconds(shape, train, validate, classes)
            size = train.inputs.shape[1]
            networks = Networks(shape, rest, inputs=size, classes=classes, seed=_SEED + places[0])
            numbers = np.random.default_rng(_SEED)
            for done in range(EPOCHS):
                networks.epoch(train, done, numbers)
                losses[row, places, done] = networks.losses(validate)
            print(f"{name} {shape}: {time.process_time():.0f} s", file=sys.stderr, flush=True)
    keep(losses, seconds)


if __name__ == "__main__":
    main()
