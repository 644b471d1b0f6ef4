"""What an ask costs in a large study: our TPE beside Optuna's and beside rustuna's, in one run, in CPU time.

All three have the same space of five parameters, trials from a random search in memory, no liar, and their defaults
otherwise. An ask is `study.ask` and five suggestions; the first one, which reads all trials, is said apart.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import random
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any, Final

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler

from hopaas_p2p.samplers import TPESampler

_REALS: Final[dict[str, BaseDistribution]] = {f"x{index}": FloatDistribution(0.0, 1.0) for index in range(5)}
_MIXED: Final[dict[str, BaseDistribution]] = {
    "x": FloatDistribution(-3.0, 3.0),
    "rate": FloatDistribution(1e-5, 1.0, log=True),
    "width": IntDistribution(1, 200),
    "depth": IntDistribution(1, 8),
    "kind": CategoricalDistribution(("a", "b", "c", "d")),
}
_SIZES: Final = (300, 1_000, 10_000, 50_000, 100_000)
_BARS: Final = {10_000: 4, 50_000: 12, 100_000: 25}  # milliseconds
_ASKS: Final = 15


def main() -> str:
    """The table as Markdown."""
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    lines = [
        "| trials | space | Optuna 5 | rustuna 0.2 | ours | bar | ours, first ask |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, space in (("5 reals", _REALS), ("2 reals, 2 integers, 1 choice", _MIXED)):
        study, rustunas = optuna.create_study(), _Rustuna(space) if importlib.util.find_spec("rustuna") else None
        for size in _SIZES:
            _fill(study, size, space)
            ours = TPESampler(seed=1, constant_liar=False)
            theirs = optuna.samplers.TPESampler(seed=1, constant_liar=False)
            first = _ask(study, ours, space)
            mine, others, rusts = [], [], rustunas.fill(size) if rustunas else None
            for turn in range(_ASKS):  # by turns: what else the machine does then meets all alike
                mine.append(_ask(study, ours, space))
                if turn < 3 or size <= 1_000:
                    others.append(_ask(study, theirs, space))
                if rusts is not None:
                    rusts.append(rustunas.ask())
            bar = f"{_BARS[size]} ms" if size in _BARS else ""
            row = [_shown(others), _shown((rusts or [])[1:]), _shown(mine), bar, _shown([first])]
            lines.append(f"| {size:,} | {name} | {' | '.join(row)} |")
    return "\n".join(lines)


def _shown(times: list[float]) -> str:
    return f"{1e3 * statistics.median(times):.1f} ms" if times else "-"


def _cpu(what: Callable[[], Any]) -> float:
    began = time.process_time()
    what()
    return time.process_time() - began


def _fill(study: optuna.Study, size: int, space: dict[str, BaseDistribution]) -> None:
    """Make it a study of that many trials, the new ones at random places."""
    numbers = random.Random(size)
    for _ in range(size - len(study.get_trials(deepcopy=False))):
        params = {name: _anywhere(one, numbers) for name, one in space.items()}
        trial = optuna.trial.create_trial(params=params, distributions=space, value=numbers.random())
        study._storage.create_new_trial(study._study_id, template_trial=trial)


def _anywhere(one: BaseDistribution, numbers: random.Random) -> Any:
    if isinstance(one, CategoricalDistribution):
        return numbers.choice(one.choices)
    assert isinstance(one, FloatDistribution | IntDistribution)
    if isinstance(one, IntDistribution):
        return numbers.randint(one.low, one.high)
    if one.log:
        return math.exp(numbers.uniform(math.log(one.low), math.log(one.high)))
    return numbers.uniform(one.low, one.high)


def _ask(study: optuna.Study, sampler: BaseSampler, space: dict[str, BaseDistribution]) -> float:
    study.sampler = sampler
    began = time.process_time()
    trial = study.ask(space)
    spent = time.process_time() - began
    study.tell(trial, 1.0)
    return spent


class _Rustuna:
    """The same study in rustuna."""

    def __init__(self, space: dict[str, BaseDistribution]) -> None:
        rustuna: Any = importlib.import_module("rustuna")
        self._space = space
        self._numbers = random.Random(1)
        self._random = rustuna.create_study(sampler=rustuna.samplers.RandomSampler(seed=1), study_name="s")
        sampler = rustuna.samplers.TPESampler(seed=1)
        self._study = rustuna.load_study(study_name="s", storage=self._random._storage, sampler=sampler)
        self._size = 0

    def fill(self, size: int) -> list[float]:
        self._random.optimize(self._suggest, n_trials=size - self._size)
        self._size = size
        return []

    def ask(self) -> float:
        asked: list[Any] = []
        spent = _cpu(lambda: self._suggest(asked.append(self._study.ask()) or asked[0]))
        self._study.tell(asked[0].number, 1.0)
        self._size += 1
        return spent

    def _suggest(self, trial: Any) -> float:
        for name, one in self._space.items():
            if isinstance(one, CategoricalDistribution):
                trial.suggest_categorical(name, list(one.choices))
            elif isinstance(one, IntDistribution):
                trial.suggest_int(name, one.low, one.high)
            elif isinstance(one, FloatDistribution):
                trial.suggest_float(name, one.low, one.high, log=one.log)
        return self._numbers.random()
