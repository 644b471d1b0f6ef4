"""Many peers train recorded curves on a virtual clock: what is given up, paused or promoted when, and what is found.

A peer asks, trains epoch by epoch for as long as the curve says, and leaves when it is told to. It sees everything that
was told by then. What takes time in a store (a checkpoint, an exchange) takes none here.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import Trial, TrialState

from hopaas_p2p.core.fidelity import Rungs
from tests.benchmarks.curves import EPOCHS, Curves
from tests.support.ladder import EventLadder

_MOST: Final = (1500, 1 / 16)
"""Configurations, or a share of them if that is more, after which a search counts as one that found nothing more."""


class Found(NamedTuple):
    """A configuration that was trained to the end."""

    at: float
    value: float


class Searched(NamedTuple):
    """What a search did."""

    found: list[Found]
    epochs: int
    configurations: int
    until: float

    @classmethod
    def of(cls, said: dict[str, Any]) -> Searched:
        """From another simulator, which said it as JSON."""
        return cls([Found(*one) for one in said["found"]], said["epochs"], said["configurations"], said["until"])

    def first(self, value: float) -> float | None:
        """When that value was found; None, if it was not."""
        return next((one.at for one in self.found if one.value <= value), None)

    def best(self, at: float) -> float:
        """The best value that was found by then; infinity, if there was none."""
        return min((one.value for one in self.found if one.at <= at), default=float("inf"))


class _Crowd:
    """The peers, the clock, and what was found."""

    def __init__(self, curves: Curves, sampler: BaseSampler, pruner: optuna.pruners.BasePruner | None) -> None:
        self.curves, self.space = curves, curves.space()
        self.study = optuna.create_study(sampler=sampler, pruner=pruner, storage=optuna.storages.InMemoryStorage())
        self.now, self.epochs, self.configurations = 0.0, 0, 0
        self.found: list[Found] = []
        self._most = max(_MOST[0], round(_MOST[1] * len(curves.values)))
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (self.now + seconds, self._count, what))

    def ask(self) -> tuple[Trial, int]:
        trial = self.study.ask(self.space)
        self.configurations += 1
        return trial, self.curves.row(trial.params)

    def complete(self, trial: Trial, row: int) -> None:
        value = float(self.curves.values[row, -1])
        self.study.tell(trial, value)
        self.found.append(Found(self.now, value))

    def run(self, *, until: float, target: float | None) -> Searched:
        while self._events and self._events[0][0] <= until and self.configurations < self._most:
            self.now, _, what = heapq.heappop(self._events)
            what()
            if target is not None and self.found and self.found[-1].value <= target:
                break
        return Searched(self.found, self.epochs, self.configurations, self.now)


def prune(
    curves: Curves,
    sampler: BaseSampler,
    pruner: optuna.pruners.BasePruner,
    *,
    peers: int,
    until: float,
    target: float | None = None,
    budget: int | None = None,
) -> Searched:
    """Let that many peers search with a pruner of Optuna's, which is asked after each epoch."""
    crowd = _Crowd(curves, sampler, pruner)
    asks = not isinstance(pruner, optuna.pruners.NopPruner)

    def begin() -> None:
        if budget is None or crowd.configurations < budget:
            trial, row = crowd.ask()
            train(trial, row, 0)

    def train(trial: Trial, row: int, done: int) -> None:
        ends = done + 1 if asks else EPOCHS
        seconds = float(curves.seconds[row, done:ends].sum())
        crowd.after(seconds, lambda: trained(trial, row, done, ends))

    def trained(trial: Trial, row: int, began: int, done: int) -> None:
        crowd.epochs += done - began
        if done == EPOCHS:
            crowd.complete(trial, row)
            return begin()
        trial.report(float(curves.values[row, done - 1]), done)
        if trial.should_prune():
            crowd.study.tell(trial, state=TrialState.PRUNED)
            return begin()
        return train(trial, row, done)

    for _ in range(peers):
        crowd.after(0, begin)
    return crowd.run(until=until, target=target)


def promote(
    curves: Curves,
    sampler: BaseSampler,
    policy: Rungs,
    *,
    peers: int,
    until: float,
    target: float | None = None,
    budget: int | None = None,
) -> Searched:
    """Let that many peers search with rungs: trials pause there, and a free peer goes on with the best that waits."""
    crowd, ladder = _Crowd(curves, sampler, None), EventLadder(policy)
    rows: dict[int, int] = {}
    trained: dict[int, int] = {}
    running: set[int] = set()
    idle = 0

    def ask() -> None:
        nonlocal idle
        closing = budget is not None and crowd.configurations >= budget
        number = ladder.best(closing=closing and not running)
        if number is not None:
            ladder.promote(number)
            train(_again(crowd, rows[number]), number)
        elif closing:
            idle += 1
        else:
            trial, row = crowd.ask()
            number = len(rows)
            rows[number], trained[number] = row, 0
            ladder.admit(number)
            train(trial, number)

    def train(trial: Trial, number: int) -> None:
        row, began = rows[number], trained[number]
        ends = began + 1 if policy.brackets > 2 else ladder.pauses_at(number) or EPOCHS  # see `Rungs.whole`
        running.add(number)
        crowd.after(float(curves.seconds[row, began:ends].sum()), lambda: stop(trial, number, ends))

    def stop(trial: Trial, number: int, ends: int) -> None:
        nonlocal idle
        row = rows[number]
        running.remove(number)
        crowd.epochs += ends - trained[number]
        for level in ladder.policy.levels:
            if trained[number] < level <= ends:
                ladder.report(number, level, float(curves.values[row, level - 1]))
        trained[number] = ends
        if ends == EPOCHS:
            ladder.end(number, float(curves.values[row, -1]))
            crowd.complete(trial, row)
        elif (pauses_at := ladder.pauses_at(number)) is None or ends < pauses_at:
            return train(trial, number)
        else:
            trial.report(float(curves.values[row, ends - 1]), ends)
            ladder.pause(number)
            crowd.study.tell(trial, state=TrialState.PRUNED)
        waited, idle = idle, 0
        for _ in range(1 + waited):
            ask()
        return None

    for _ in range(peers):
        crowd.after(0, ask)
    return crowd.run(until=until, target=target)


def _again(crowd: _Crowd, row: int) -> Trial:
    """The trial that goes on: a new one with the parameters of the one that paused."""
    params = dict(zip(crowd.space, crowd.curves.places(row), strict=True))
    running = optuna.trial.create_trial(state=TrialState.RUNNING, params=params, distributions=crowd.space)
    return Trial(crowd.study, crowd.study._storage.create_new_trial(crowd.study._study_id, running))
