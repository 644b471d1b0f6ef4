"""Peers train the tasks of `schedules` on a virtual clock, with a study in memory: `apply` decides who goes on.

The peers are trials of one process that take turns, epoch by epoch. An epoch takes the last peer a quarter longer than
the first. What takes time in a store takes none here.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import optuna
from optuna.samplers import BaseSampler

import hopaas_p2p
from hopaas_p2p.core.fidelity import Fidelity
from hopaas_p2p.errors import NoWork
from hopaas_p2p.study import Schedule, Study
from tests.benchmarks.schedules import Array, Params, Task

_SLOWEST = 0.25
_names = itertools.count()


class Way(NamedTuple):
    """A way to search."""

    sampler: Callable[[int], BaseSampler]
    fidelity: Fidelity | None = None
    peers: int = 16
    share: float = 1.0
    """Of the epochs that a population trains."""
    cosine: bool = False
    """Whether each training lets its rate fall, from what was chosen to 0, as half a cosine."""


class Trained(NamedTuple):
    """What came of it."""

    best: list[float]
    """The best loss that was reported, after each epoch of any peer."""
    judged: float
    """What the model with that loss is worth on other data."""
    schedule: Schedule | None
    """Of the best complete trial, where parameters change."""


class _Peer:
    """A trial, and the model that it trains."""

    def __init__(self, trial: hopaas_p2p.Trial, task: Task, seed: int, *, cosine: bool) -> None:
        self.trial, self._task, self._seed, self._cosine = trial, task, seed, cosine
        found = trial.resume
        self.done = 0 if found is None else found[0] + 1
        self.model = self._begun() if found is None else np.frombuffer(found[1].read_bytes(), np.float64)

    def _begun(self) -> Array:
        return self._task.begin(np.random.default_rng((self._seed, self.trial.number)))

    def epoch(self) -> tuple[float, float]:
        numbers = np.random.default_rng((self._seed, self.trial.number, self.done))
        params = _cosine(self._task, self.trial.params, self.done) if self._cosine else self.trial.params
        self.model = self._task.epoch(self.model, params, numbers)
        self.done += 1
        return self._task.losses(self.model)


def _cosine(task: Task, params: Params, done: int) -> Params:
    return {**params, "rate": params["rate"] * (0.5 + 0.5 * math.cos(math.pi * done / task.epochs))}


def search(task: Task, way: Way, *, size: int, seed: int) -> Trained:
    """Train as many epochs as a population of this size does."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = hopaas_p2p.open_study(
        f"memory://{next(_names)}",
        f"seed {seed}",
        space=task.space,
        sampler=way.sampler(seed),
        pruner=optuna.pruners.NopPruner() if way.fidelity is None else None,
        fidelity=way.fidelity,
        policy=hopaas_p2p.StudyPolicy(repeats="allow"),
    )
    try:
        return _searched(study, task, way, math.ceil(way.share * size * task.epochs), seed)
    finally:
        study.close()


def _searched(study: Study, task: Task, way: Way, epochs: int, seed: int) -> Trained:
    clock: list[tuple[float, int]] = []
    working: dict[int, _Peer] = {}
    idle = list(range(way.peers))
    best, lowest, judged = [], math.inf, math.inf
    now = 0.0

    def take_on() -> None:
        while idle:
            try:
                trial = study.ask()
            except NoWork:
                return
            name = idle.pop(0)
            working[name] = _Peer(trial, task, seed, cosine=way.cosine)
            heapq.heappush(clock, (now + 1 + _SLOWEST * name / way.peers, name))

    take_on()
    while clock and len(best) < epochs:
        now, name = heapq.heappop(clock)
        peer = working[name]
        loss, other = peer.epoch()
        if loss < lowest:
            lowest, judged = loss, other
        best.append(lowest)
        peer.trial.report(loss, peer.done - 1)
        if peer.done < task.epochs and not peer.trial.should_prune():
            heapq.heappush(clock, (now + 1 + _SLOWEST * name / way.peers, name))
            continue
        if peer.done == task.epochs:
            study.tell(peer.trial, loss)
        else:
            peer.trial.checkpoint(peer.model.tobytes(), step=peer.done - 1)
            study.tell(peer.trial, state="pruned")
        del working[name]
        idle.append(name)
        take_on()
    for peer in working.values():
        study.tell(peer.trial, state="fail")
    changes = isinstance(way.fidelity, hopaas_p2p.Population)
    return Trained(best, judged, study.schedule() if changes else None)


def replayed(task: Task, schedule: Schedule, *, seed: int) -> Trained:
    """Train one model from the beginning by a schedule that was found."""
    numbers = np.random.default_rng((seed, 1 << 20))
    model, best, lowest, judged = task.begin(numbers), [], math.inf, math.inf
    for done in range(task.epochs):
        model = task.epoch(model, schedule.at(done), numbers)
        loss, other = task.losses(model)
        if loss < lowest:
            lowest, judged = loss, other
        best.append(lowest)
    return Trained(best, judged, None)
