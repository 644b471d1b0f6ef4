"""What rungs save: recorded curves, a virtual clock, the same sampler on all sides; see `fidelity_clock` and `curves`.

Seeds are taken one after another, each with every table, method and number of peers, until there are enough of them or
no time is left for one more; only whole ones count. FIDELITY_SEEDS, FIDELITY_MINUTES, FIDELITY_PEERS, FIDELITY_SAMPLERS
and FIDELITY_TABLES say what is measured; the tables of `bench_search` may be named, too. Syne Tune 0.13 is measured
where FIDELITY_SYNE_TUNE names a Python that has it (`pip install syne-tune==0.13.0 scikit-learn statsmodels` in an
environment of its own: it needs NumPy 1, and later versions do not promote).
"""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import statistics
import subprocess
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import optuna
from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler

from hopaas_p2p.core.fidelity import Rungs
from hopaas_p2p.samplers import TPESampler, default_sampler
from tests.benchmarks.bench_search import paired, read_table
from tests.benchmarks.curves import DATA_SETS, EPOCHS, Curves, drawn, late_bloomers, recorded
from tests.benchmarks.fidelity_clock import Searched, promote, prune

Method = Callable[..., Searched]

NONE: Final = "no pruning"
_OURS: Final[dict[str, Method]] = {
    f"`Rungs(1, {EPOCHS}, brackets={count})`": partial(promote, policy=Rungs(min=1, max=EPOCHS, brackets=count))
    for count in (1, 3)
}
_THEIRS: Final[dict[str, Method]] = {
    "Optuna's `MedianPruner`": partial(prune, pruner=MedianPruner()),
    "Optuna's `SuccessiveHalvingPruner`": partial(prune, pruner=SuccessiveHalvingPruner(1, 3)),
    "Optuna's `HyperbandPruner`": partial(prune, pruner=HyperbandPruner(1, EPOCHS, 3)),
}
METHODS: Final[dict[str, Method]] = {NONE: partial(prune, pruner=NopPruner()), **_THEIRS, **_OURS}
_SYNE: Final = "Syne Tune's ASHA (promotion, random)"
_SAMPLERS: Final[dict[str, Callable[[int], BaseSampler]]] = {
    "Optuna's TPE": lambda seed: TPESampler(seed=seed),  # the same suggestions, sooner
    "`default_sampler()`": default_sampler,
    "random": lambda seed: RandomSampler(seed=seed),
}
_SHORT: Final = dict(zip(("tpe", "default", "random"), _SAMPLERS, strict=True))
_TARGETS: Final = (0.01, 0.001)
_LATE: Final = (5, 15, 40)
_LONGEST: Final = {1: 150.0, 16: 20.0, 64: 10.0, 256: 5.0}
"""For so many peers, how long to search, in whole trainings."""
_DAY: Final = 86400.0  # seconds
_FIRST_WAVE: Final = 256
_RESAMPLED: Final = 1000
_METHOD: Final = """\
Times are in full training runs: how long a configuration takes on average, to the last epoch. A peer asks, trains for
as long as was recorded, and sees at once what others told. Loading a checkpoint takes no time. A target is reached when
a configuration that was fully trained has that value: the last cross-entropy, as good as the best 1 % or 0.1 % of all
configurations. Figures are medians over the seeds. Ratios are to the best of Optuna's three pruners with the same
number of peers, with 90 % bootstrap intervals over the seeds."""


class Case(NamedTuple):
    """What is searched how."""

    table: str
    sampler: str
    peers: int
    method: str


class Run(NamedTuple):
    """Until the targets, in whole trainings (infinity, where it was not reached); the regret at the end."""

    times: tuple[float, ...]
    regret: float


Runs = dict[Case, list[Run]]
"""By seed, the same seeds in each."""


def first_wave(curves: Curves, method: Method, seed: int) -> tuple[float, float]:
    """The share of epochs that 256 peers save, each of which begins one configuration; and the regret of the best."""
    done = method(curves, RandomSampler(seed=seed), peers=_FIRST_WAVE, until=math.inf, budget=_FIRST_WAVE)
    return 1 - done.epochs / (_FIRST_WAVE * EPOCHS), curves.regret(done.best(math.inf))


def run(case: Case, seed: int) -> Run:
    """One search, until its last target is reached."""
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    curves = _table(case.table)
    targets, whole = [curves.best(share) for share in _TARGETS], curves.training
    until = _LONGEST[case.peers] * whole
    if case.method == _SYNE:
        done = _syne_tune(curves, peers=case.peers, until=until, seed=seed)
    else:
        last = targets[0] if case.table.startswith("late") else targets[-1]
        done = METHODS[case.method](curves, _SAMPLERS[case.sampler](seed), peers=case.peers, until=until, target=last)
    firsts = [done.first(target) for target in targets]
    best = curves.regret(done.best(math.inf)) if done.found else math.inf
    return Run(tuple(math.inf if at is None else at / whole for at in firsts), best)


def _table(name: str) -> Curves:
    kind, _, which = name.rpartition(" ")
    if kind == "drawn":
        return drawn(read_table(which))
    return late_bloomers(int(which)) if kind else recorded(name)


def _syne_tune(curves: Curves, *, peers: int, until: float, seed: int) -> Searched:
    """Run in the Python that has it; see `tests/benchmarks/syne_tune_asha.py`.

    Its simulated reports and starts take 50 ms each, so a whole training is said to take a day.
    """
    scale = _DAY / curves.training
    asked = {"sizes": curves.sizes, "peers": peers, "until": until * scale, "seed": seed}
    words = [os.environ["FIDELITY_SYNE_TUNE"], str(Path(__file__).with_name("syne_tune_asha.py"))]
    given = json.dumps(asked | {"values": curves.values.tolist(), "seconds": (curves.seconds * scale).tolist()})
    said = subprocess.run(words, input=given, stdout=subprocess.PIPE, text=True, check=True).stdout
    done = Searched.of(json.loads(said.splitlines()[-1]))
    return done._replace(found=[one._replace(at=one.at / scale) for one in done.found], until=done.until / scale)


def _words(name: str, default: str) -> list[str]:
    return os.environ.get(f"FIDELITY_{name}", default).split()


def _tables() -> list[str]:
    given = _words("TABLES", " ".join(DATA_SETS))
    return [one if one in DATA_SETS else f"drawn {one}" for one in given]


def main() -> str:
    """The tables as Markdown."""
    seeds, minutes = int(_words("SEEDS", "20")[0]), float(_words("MINUTES", "60")[0])
    peers = [int(word) for word in _words("PEERS", "1 16 64 256")]
    samplers = [_SHORT[word] for word in _words("SAMPLERS", "tpe default")]
    cases = [Case(*one) for one in itertools.product(_tables(), samplers, peers, METHODS)]
    syne = bool(os.environ.get("FIDELITY_SYNE_TUNE"))
    if syne:
        cases += [Case(table, "its own", count, _SYNE) for table, count in itertools.product(_tables(), peers)]
    late = [f"late bloomers, {latest}" for latest in _LATE]
    crossing = [Case(*one) for one in itertools.product(late, ("random",), (16, 64), METHODS)]
    runs = paired(run, cases + crossing, seeds=seeds, minutes=minutes)
    lines = [*_summary(runs, samplers, peers), "", *_waves(seeds), "", *_crossing(runs, late)]
    return "\n".join(lines if syne else [*lines, "", "Syne Tune was not installed."])


def _summary(runs: Runs, samplers: list[str], peers: list[int]) -> list[str]:
    seeds = len(next(iter(runs.values())))
    lines = [
        f"{seeds} paired seeds. {_METHOD}",
        "",
        "| table | sampler | peers | method | to the best 1 % | to 0.1 % | … ratio | reached | regret | asked |",
        "|---|---|--:|---|--:|--:|--:|--:|--:|---|",
    ]
    methods = [*METHODS, _SYNE]
    for table, sampler, count in itertools.product(_tables(), [*samplers, "its own"], peers):
        theirs = [runs.get(Case(table, sampler, count, method), []) for method in _THEIRS]
        for method in methods:
            mine = runs.get(Case(table, sampler, count, method))
            if not mine:
                continue
            percent, permille = (statistics.median(one.times[place] for one in mine) for place in (0, 1))
            cells = [table, sampler, str(count), method, _trainings(percent), _trainings(permille)]
            cells.append(ratio(mine, theirs, count) if method not in _THEIRS and all(theirs) else "")
            reached = sum(one.times[1] < math.inf for one in mine)
            cells += [f"{reached} of {len(mine)}", f"{statistics.median(one.regret for one in mine):.3f}"]
            cells.append("0.6" if method in _OURS and count in (16, 64) else "")
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _waves(seeds: int) -> list[str]:
    told = (
        f"In a first wave, {_FIRST_WAVE} random configurations start at once. The table shows the share of their "
        f"{_FIRST_WAVE * EPOCHS:,} epochs that is saved,\nand the regret of the best that was fully trained:"
    )
    lines = [
        told,
        "",
        f"| method | {' | '.join(f'{table}: saved | regret' for table in DATA_SETS)} | asked |",
        "|---|" + "--:|--:|" * len(DATA_SETS) + "--:|",
    ]
    for name, method in METHODS.items():
        cells = [name]
        for table in DATA_SETS:
            waves = [first_wave(recorded(table), method, seed) for seed in range(seeds)]
            saved, regret = (statistics.median(one[place] for one in waves) for place in (0, 1))
            cells += [f"{100 * saved:.0f} %", f"{regret:.3f}"]
        lines.append(f"| {' | '.join(cells)} | {'40 %' if name in _OURS else ''} |")
    return lines


def _crossing(runs: Runs, late: list[str]) -> list[str]:
    told = (
        "Late bloomers are synthetic curves that cross: the better a configuration is in the end, the longer it looks "
        f"like the\nworst; the best one does so for {', '.join(map(str, _LATE[:-1]))} or {_LATE[-1]} epochs. The table "
        "shows the time to the best 1 % with a random sampler, and\nthe ratio to no pruning; ∞ means that the median "
        "seed did not reach it:"
    )
    lines = [
        told,
        "",
        f"| peers | method | {' | '.join(f'{table}: time | ratio' for table in late)} | asked |",
        "|--:|---|" + "--:|--:|" * len(late) + "--:|",
    ]
    for count, method in itertools.product((16, 64), METHODS):
        cells = [str(count), method]
        for table in late:
            mine, none = (runs[Case(table, "random", count, one)] for one in (method, NONE))
            cells += [_trainings(statistics.median(one.times[0] for one in mine)), ratio(mine, [none], count, place=0)]
        lines.append(f"| {' | '.join(cells)} | {'1.1' if 'brackets=3' in method else ''} |")
    return lines


def _trainings(count: float) -> str:
    return "∞" if count == math.inf else f"{count:.2f}"


def ratio(mine: Sequence[Run], others: Sequence[Sequence[Run]], peers: int, *, place: int = 1) -> str:
    """The median time divided by the least of the others' medians, with its interval; what was not reached counts as
    one search's whole length."""

    def medians(seeds: Sequence[int]) -> float:
        def median(runs: Sequence[Run]) -> float:
            return statistics.median(min(runs[seed].times[place], _LONGEST[peers]) for seed in seeds)

        return median(mine) / min(map(median, others))

    numbers, everyone = random.Random(1), range(len(mine))
    drawn = np.quantile([medians(numbers.choices(everyone, k=len(mine))) for _ in range(_RESAMPLED)], [0.05, 0.95])
    return f"{medians(everyone):.2f} ({drawn[0]:.2f} to {drawn[1]:.2f})"
