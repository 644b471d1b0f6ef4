"""Many peers search a recorded table on a virtual clock: who knows what, when, without a machine that trains.

A peer asks, trains for as long as the table says, tells, and asks again. It sees everything that was told by then, and
the parameters of what is running: the best that any store can do. Results that come at one instant are told before
anybody asks.
"""

from __future__ import annotations

import heapq
import itertools
import statistics
from typing import Any, NamedTuple, Protocol

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler

Configuration = tuple[int, ...]
"""For each parameter, in the order of the space, which of its values."""


class Recorded(NamedTuple):
    """What training gave, once for all."""

    value: float  # to minimise
    seconds: float


class Table(NamedTuple):
    """All configurations of a space, trained."""

    space: dict[str, BaseDistribution]
    records: dict[Configuration, Recorded]

    def best(self, share: float) -> float:
        """The value that this share of all configurations reaches, at least one of them."""
        values = sorted(record.value for record in self.records.values())
        return values[max(1, round(share * len(values))) - 1]

    def median_seconds(self) -> float:
        """How long a trial lasts in the middle."""
        return statistics.median(record.seconds for record in self.records.values())


class Evaluation(NamedTuple):
    """A trial that ended."""

    at: float
    peer: int
    configuration: Configuration
    value: float


class Search(NamedTuple):
    """What a search did."""

    proposed: list[Configuration]  # in the order of asking
    told: list[Evaluation]

    def first(self, value: float) -> int | None:
        """How many evaluations it took to get that value; None, if it was not reached."""
        return next((count for count, one in enumerate(self.told, 1) if one.value <= value), None)

    @property
    def repeated(self) -> float:
        """The share of the proposals that somebody had made before."""
        return 1 - len(set(self.proposed)) / len(self.proposed)


class Tuner(Protocol):
    """A study that peers share."""

    def ask(self) -> tuple[Any, Configuration]:
        """A trial, and what it tries."""

    def tell(self, trial: Any, value: float) -> None:
        """What came of it."""


class _OptunaTuner:
    def __init__(self, space: dict[str, BaseDistribution], sampler: BaseSampler) -> None:
        self._space = space
        self._study = optuna.create_study(sampler=sampler, storage=optuna.storages.InMemoryStorage())

    def ask(self) -> tuple[Any, Configuration]:
        trial = self._study.ask(self._space)
        return trial.number, tuple(int(trial.params[name]) for name in self._space)

    def tell(self, trial: Any, value: float) -> None:
        self._study.tell(trial, value)


def search(table: Table, sampler: BaseSampler | Tuner, *, peers: int, evaluations: int) -> Search:
    """Let that many peers share one study, until so many evaluations are told."""
    study = _OptunaTuner(table.space, sampler) if isinstance(sampler, BaseSampler) else sampler
    ties = itertools.count()
    running: list[tuple[float, int, int, Any, Configuration]] = []  # end, peer, a tie, trial
    done, now, free = Search([], []), 0.0, list(range(peers))
    while len(done.told) < evaluations:
        for peer in free[: evaluations - len(done.proposed)]:
            trial, configuration = study.ask()
            done.proposed.append(configuration)
            ends = now + table.records[configuration].seconds
            heapq.heappush(running, (ends, peer, next(ties), trial, configuration))
        now, free = running[0][0], []
        while running and running[0][0] == now:
            _, peer, _, trial, configuration = heapq.heappop(running)
            value = table.records[configuration].value
            study.tell(trial, value)
            done.told.append(Evaluation(now, peer, configuration, value))
            free.append(peer)
    return done
