"""Trainings whose parameters may change between epochs, small enough to be run in seconds: for `bench_populations`.

A model is one array, which is its checkpoint, too. `sphere` is the example of the paper on populations
(arXiv 1711.09846, figure 2); `noise` is a quadratic with noisy slopes, where a constant rate is too fast at the end or
too slow at the beginning; the others are small networks on scikit-learn's data. All are trained for real.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np

import hopaas_p2p
from hopaas_p2p.core.records import Distribution

Array = np.ndarray[Any, np.dtype[np.float64]]
Params = Mapping[str, float]
WORST: Final = 10.0
"""What a network that diverged is worth."""
_WIDTH: Final = 32
_BATCH: Final = 32
_STEPS: Final = 20  # per epoch of the problems that are made
_CURVATURES: Final = np.logspace(0, -2, 20)


class Task(NamedTuple):
    """Something to train, and what may be chosen."""

    space: dict[str, Distribution]
    epochs: int
    """Of a whole training."""
    begin: Callable[[np.random.Generator], Array]
    epoch: Callable[[Array, Params, np.random.Generator], Array]
    """The model after one more epoch."""
    losses: Callable[[Array], tuple[float, float]]
    """To minimise: what is reported, and what a model is judged by in the end."""


def task(name: str) -> Task:
    """The task of this name: `sphere`, `noise`, `digits` or `breast_cancer`."""
    if name == "sphere":
        weight = hopaas_p2p.Float(0.0, 1.0)
        return Task({"first": weight, "second": weight}, 40, lambda _: np.full(2, 0.9), _sphere, _square)
    if name == "noise":
        rate: dict[str, Distribution] = {"rate": hopaas_p2p.Float(1e-3, 1.0, log=True)}
        return Task(rate, 40, lambda numbers: numbers.standard_normal(len(_CURVATURES)), _noise, _quadratic)
    space: dict[str, Distribution] = {
        "rate": hopaas_p2p.Float(1e-3, 1.0, log=True),
        "momentum": hopaas_p2p.Float(0.0, 0.98),
        "decay": hopaas_p2p.Float(1e-5, 1e-1, log=True),
        "dropout": hopaas_p2p.Float(0.0, 0.6),
    }
    network = _Network(name)
    return Task(space, 40, network.begin, network.epoch, network.losses)


def _sphere(model: Array, params: Params, _numbers: np.random.Generator) -> Array:
    """Steps down a surrogate, in which the parameters weigh the two squares."""
    return model * (1 - 0.002 * np.array([params["first"], params["second"]])) ** _STEPS


def _square(model: Array) -> tuple[float, float]:
    loss = float(model @ model)
    return loss, loss


def _noise(model: Array, params: Params, numbers: np.random.Generator) -> Array:
    for noise in numbers.standard_normal((_STEPS, len(model))):
        model = np.clip(model - params["rate"] * (_CURVATURES * model + noise), -1e3, 1e3)
    return model


def _quadratic(model: Array) -> tuple[float, float]:
    loss = 0.5 * float(_CURVATURES @ model**2)
    return loss, loss


class _Data(NamedTuple):
    inputs: Array
    classes: np.ndarray[Any, np.dtype[np.int64]]


@cache
def _thirds(name: str) -> tuple[_Data, _Data, _Data]:
    """To train with, to report, and to judge by."""
    import sklearn.datasets

    bunch = getattr(sklearn.datasets, f"load_{name}")()
    order = np.random.default_rng(20_261).permutation(len(bunch.target))
    parts = [order[start::3] for start in range(3)]
    mean, spread = bunch.data[parts[0]].mean(0), bunch.data[parts[0]].std(0)
    inputs = ((bunch.data - mean) / np.where(spread > 0, spread, 1)).clip(-5, 5)
    first, second, third = (_Data(inputs[part], bunch.target[part]) for part in parts)
    return first, second, third


class _Network:
    """One hidden layer, stochastic gradient descent with momentum; the model holds the momentum, too."""

    def __init__(self, name: str) -> None:
        self._train, *self._judges = _thirds(name)
        inputs, classes = self._train.inputs.shape[1], int(self._train.classes.max()) + 1
        self._shapes = [(inputs, _WIDTH), (1, _WIDTH), (_WIDTH, classes), (1, classes)]
        self._ends = np.cumsum([math.prod(shape) for shape in self._shapes])

    def _parts(self, flat: Array) -> list[Array]:
        parts = np.split(flat[: self._ends[-1]], self._ends[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def begin(self, numbers: np.random.Generator) -> Array:
        weights = [numbers.standard_normal(shape) * math.sqrt(2 / shape[0]) * (shape[0] > 1) for shape in self._shapes]
        return np.concatenate([*(weight.ravel() for weight in weights), np.zeros(self._ends[-1])])

    def epoch(self, model: Array, params: Params, numbers: np.random.Generator) -> Array:
        weights, speed = model[: self._ends[-1]].copy(), model[self._ends[-1] :].copy()
        parts, keep = self._parts(weights), 1 - params["dropout"]
        order = numbers.permutation(len(self._train.classes))
        for start in range(0, len(order) - _BATCH + 1, _BATCH):
            rows = order[start : start + _BATCH]
            dropped = (numbers.random((_BATCH, _WIDTH)) < keep) / keep
            slopes = self._slopes(parts, self._train.inputs[rows], self._train.classes[rows], dropped)
            speed = params["momentum"] * speed - params["rate"] * (slopes + params["decay"] * weights)
            weights += speed  # in place: `parts` are views of it
            np.clip(weights, -1e3, 1e3, out=weights)
            np.clip(speed, -1e3, 1e3, out=speed)
        return np.concatenate([weights, speed])

    def _slopes(self, parts: list[Array], inputs: Array, classes: Any, dropped: Array) -> Array:
        weight, bias, last, offset = parts
        hidden = np.maximum(inputs @ weight + bias, 0) * dropped
        error = _probabilities(hidden @ last + offset)
        error[np.arange(len(classes)), classes] -= 1
        error /= len(classes)
        back = (error @ last.T) * (hidden > 0) * dropped
        slopes = inputs.T @ back, back.sum(0), hidden.T @ error, error.sum(0)
        return np.concatenate([slope.ravel() for slope in slopes])

    def losses(self, model: Array) -> tuple[float, float]:
        """The cross-entropies."""
        weight, bias, last, offset = self._parts(model)
        found = []
        for data in self._judges:
            outputs = np.maximum(data.inputs @ weight + bias, 0) @ last + offset
            right = _probabilities(outputs)[np.arange(len(data.classes)), data.classes]
            found.append(min(float(-np.log(np.maximum(right, 1e-30)).mean()), WORST))
        return found[0], found[1]


def _probabilities(outputs: Array) -> Array:
    shares: Array = np.exp(outputs - outputs.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)
