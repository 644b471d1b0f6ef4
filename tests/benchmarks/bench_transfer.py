"""What a study gains that begins with what earlier ones taught, and what it costs if that is wrong.

Evaluations until one of the best 0.1 % of all configurations is found, on a virtual clock where all peers know
everything at once, beside the default sampler that learns from nothing, with the same seeds. Earlier studies are 100
trials of the default sampler. TRANSFER_SEEDS, TRANSFER_MINUTES, TRANSFER_PEERS and TRANSFER_PROCESSES say how much,
and TRANSFER_ROWS="related,belief" takes the rows whose names contain one of these.
HPOBench and NAS-Bench-201 are kept for judging, and are not here.

Other programs take part where TRANSFER_OPENBOX (0.9.0), TRANSFER_SYNE_TUNE (0.13.0 with scikit-learn, statsmodels and
xgboost) and TRANSFER_NEPS (neural-pipeline-search 0.17.0) name Pythons that have them, with TRANSFER_RIVAL_SEEDS.
"""

from __future__ import annotations

import heapq
import itertools
import json
import math
import os
import random
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from hopaas_p2p import Categorical, Float, Int, Prior
from hopaas_p2p.samplers import default_sampler
from tests.benchmarks.bench_search import _HPOLIB, paired, read_table
from tests.benchmarks.search_picture import histories

_EVALUATIONS: Final = 200
_EARLIER: Final = 100
_TIMED: Final = 140  # trials of the studies whose asks are timed
_SAMPLES: Final = 20_000  # of a made-up problem, whose best 0.1 % is estimated
_RELATED: Final = 8
_FAMILIES: Final = ("reals", "choices", "mixed")
_RESAMPLED: Final = 1000
_NOTHING: Final = "nothing"
_PICTURE: Final = Path("docs/assets/learn-from.svg")
_SCENARIOS: Final = {
    "the other three tables": ("tables", 0.25),
    "the best three of each enqueued, no model": ("tables", None),
    "the other three, results shuffled": ("tables", None),
    "eight related": ("families", 0.5),
    "one related, seven unrelated": ("families", 0.4),
    "eight unrelated": ("families", 1.08),
    "eight related, half of the parameters": ("families", 0.6),
    "eight related, ranges shifted by half": ("families", 0.6),
    "a belief near the best": ("families", 0.5),
    "a belief at the wrong end": ("families", 1.15),
    "OpenBox's RGPE: the other three tables": ("tables", None),
    "Syne Tune's quantiles: the other three tables": ("tables", None),
    "NePS's piBO: a belief near the best": ("families", None),
    "NePS's piBO: a belief at the wrong end": ("families", None),
}
"""What is learned -> on which problems, and what was asked for with 8 peers."""
_RIVALS: Final = {"OpenBox": "openbox", "Syne Tune": "syne_tune", "NePS": "neps"}


class Problem(NamedTuple):
    """What a study tunes."""

    name: str
    space: dict[str, BaseDistribution]
    loss: Callable[[dict[str, Any]], float]
    seconds: Callable[[dict[str, Any], random.Random], float]


class Case(NamedTuple):
    """What is searched, having learned what."""

    problem: str
    learned: str
    peers: int


class _Rival:
    """A study of another program, in a Python of its own; see `transfer_rivals`."""

    def __init__(self, rival: str, **asked: Any) -> None:
        words = [os.environ[f"TRANSFER_{rival.upper()}"], str(Path(__file__).with_name("transfer_rivals.py"))]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._asks = itertools.count()
        self._say({"rival": rival, **asked})

    def _say(self, what: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()

    def ask(self, _: object) -> Any:
        assert self._process.stdout is not None
        self._say(None)
        return SimpleNamespace(number=next(self._asks), params=json.loads(self._process.stdout.readline()))

    def tell(self, trial: Any, value: float) -> None:
        self._say([trial.number, value])

    def close(self) -> None:
        self._process.communicate()


def _search(problem: Problem, study: Any, peers: int, seed: int, evaluations: int, target: float) -> int:
    """How many evaluations it takes to get the target; one more than all if it is not reached."""
    numbers, ties = random.Random(seed), itertools.count()
    running: list[tuple[float, int, Any]] = []
    now, done = 0.0, 0
    while done < evaluations:
        while len(running) < min(peers, evaluations - done):
            trial = study.ask(problem.space)
            heapq.heappush(running, (now + problem.seconds(trial.params, numbers), next(ties), trial))
        now, _, trial = heapq.heappop(running)
        value = problem.loss(trial.params)
        study.tell(trial, value)
        done += 1
        if value <= target:
            return done
    return evaluations + 1


@cache
def _problem(name: str) -> Problem:
    kind, _, rest = name.partition("/")
    if kind == "table":
        table = read_table(rest)

        def recorded(params: dict[str, Any]) -> Any:
            return table.records[tuple([int(params[one]) for one in table.space])]

        return Problem(
            name,
            table.space,
            lambda params: float(recorded(params).value),
            lambda params, _: float(recorded(params).seconds),
        )
    family, task = map(int, rest.split("."))
    return _made_up(name, kind, family, task)


def _made_up(name: str, kind: str, family: int, task: int) -> Problem:
    """A problem of a family: the same shape, with a centre, weights and interactions that are a little different."""
    shape = np.random.default_rng((family, _FAMILIES.index(kind)))
    own = np.random.default_rng((family, task, 77))
    reals, choices = {"reals": (5, 0), "choices": (0, 7), "mixed": (3, 4)}[kind]
    space: dict[str, BaseDistribution] = {f"x{place}": FloatDistribution(0, 1) for place in range(reals)}
    space |= {f"c{place}": CategoricalDistribution(range(4)) for place in range(choices)}
    centre = np.clip(shape.uniform(0.1, 0.9, reals) + own.normal(0, 0.08, reals), 0, 1)
    weights = np.exp(shape.normal(0, 0.8, reals) + own.normal(0, 0.3, reals))
    mixing = shape.normal(0, 0.4, (reals, reals))
    gains = shape.normal(0, 1, (choices, 4)) + own.normal(0, 0.25, (choices, 4))
    pairs = [
        (one, other, 0.5 * shape.normal(0, 0.5, (4, 4)) + own.normal(0, 0.1, (4, 4)))
        for one in range(choices)
        for other in range(one)
        if shape.random() < 0.4
    ]

    def loss(params: dict[str, Any]) -> float:
        far = np.array([params[f"x{place}"] for place in range(reals)]) - centre
        chosen = [params[f"c{place}"] for place in range(choices)]
        value = float((weights * np.abs(far) ** 1.5).sum() + far @ mixing @ far) if reals else 0.0
        value += 0.5 * sum(gains[place, one] for place, one in enumerate(chosen))
        return value + sum(table[chosen[one], chosen[other]] for one, other, table in pairs)

    return Problem(name, space, loss, lambda _, clock: math.exp(clock.gauss(0, 0.4)))


@cache
def _target(name: str) -> float:
    """The value that the best 0.1 % of all configurations have."""
    if name.startswith("table/"):
        return read_table(name.removeprefix("table/")).best(0.001)
    problem, numbers = _problem(name), random.Random(5)
    return sorted(problem.loss(_drawn(problem.space, numbers)) for _ in range(_SAMPLES))[_SAMPLES // 1000 - 1]


def _drawn(space: dict[str, BaseDistribution], numbers: random.Random) -> dict[str, Any]:
    return {
        name: numbers.choice(one.choices) if isinstance(one, CategoricalDistribution) else numbers.random()
        for name, one in space.items()
    }


@cache
def _earlier(name: str, seed: int, *, shifted: bool = False) -> optuna.Study:
    """A study of 100 trials by one peer; `shifted`: of the lower half of each range, and as much below."""
    study = optuna.create_study(sampler=default_sampler(seed + 1000), study_name=name)
    problem = _problem(name)
    if shifted:
        real = FloatDistribution(-0.5, 0.5)
        space = {key: real if isinstance(one, FloatDistribution) else one for key, one in problem.space.items()}
        problem = problem._replace(space=space)
    _search(problem, study, 1, seed, _EARLIER, -math.inf)
    return study


def _changed(study: optuna.Study, seed: int, learned: str) -> optuna.Study:
    """The same study with its results shuffled, or half of its parameters left out."""
    trials = study.get_trials(deepcopy=False)
    names = sorted(trials[0].params)
    values = [trial.value for trial in trials]
    if learned.endswith("shuffled"):
        random.Random(seed).shuffle(values)
    kept = names[::2] if learned.endswith("half of the parameters") else names
    made = optuna.create_study(study_name=study.study_name)
    for trial, value in zip(trials, values, strict=True):
        params = {name: trial.params[name] for name in kept}
        dists = {name: trial.distributions[name] for name in kept}
        made.add_trial(optuna.trial.create_trial(params=params, distributions=dists, value=value))
    return made


def _believed(problem: Problem, seed: int, *, right: bool) -> list[Any]:
    """A belief within a tenth of the range of the best of many configurations, or at the wrong end."""
    numbers = random.Random(seed)
    best = min((_drawn(problem.space, random.Random(place)) for place in range(4000)), key=problem.loss)
    space: dict[str, Float | Int | Categorical] = {}
    for name, one in problem.space.items():
        if isinstance(one, CategoricalDistribution):
            others = [choice for choice in one.choices if choice != best[name]]
            space[name] = Categorical(one.choices, prior=best[name] if right else numbers.choice(others))
        else:
            near = min(1.0, max(0.0, best[name] + numbers.uniform(-0.1, 0.1)))
            space[name] = Float(0, 1, prior=near if right else float(best[name] < 0.5))
    return [Prior.believed(space)]


def _other_tables(name: str) -> list[str]:
    return [f"table/{one}" for one in _HPOLIB if f"table/{one}" != name]


def _rival(case: Case, seed: int) -> int:
    rival = next(word for start, word in _RIVALS.items() if case.learned.startswith(start))
    problem, asked = _problem(case.problem), {"seed": seed, "peers": case.peers}
    asked["space"] = {
        name: ["choice", len(one.choices) - 1]
        if isinstance(one, CategoricalDistribution)
        else ["int" if isinstance(one, IntDistribution) else "real", one.high]
        for name, one in problem.space.items()
    }
    if rival == "neps":
        (believed,) = _believed(problem, seed, right="near" in case.learned)
        asked["belief"] = {name: column[0] for name, column in believed.params.items()}
    else:
        earlier = [_earlier(one, seed).get_trials(deepcopy=False) for one in _other_tables(case.problem)]
        asked["earlier"] = [[[trial.params, trial.value] for trial in trials] for trials in earlier]
    study = _Rival(rival, **asked)
    try:
        return _search(problem, study, case.peers, seed, _EVALUATIONS, _target(case.problem))
    finally:
        study.close()


def _priors(case: Case, seed: int) -> list[Any]:
    problem = _problem(case.problem)
    kind, _, rest = case.problem.partition("/")
    if case.learned.startswith("a belief"):
        return _believed(problem, seed, right="near" in case.learned)
    if kind == "table":
        names = _other_tables(case.problem)
    else:
        family = int(rest.split(".")[0])
        related = [f"{kind}/{family}.{task}" for task in range(1, _RELATED + 1)]
        others = [f"{kind}/{family + 50 + one}.0" for one in range(_RELATED)]
        names = {"one related, seven unrelated": [*others[:7], related[0]], "eight unrelated": others}.get(
            case.learned, related
        )
    shifted = case.learned.endswith("shifted by half")
    return [Prior.from_study(_changed(_earlier(one, seed, shifted=shifted), seed, case.learned)) for one in names]


def _run(case: Case, seed: int) -> int:
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if case.learned.startswith(tuple(_RIVALS)):
        return _rival(case, seed)
    problem = _problem(case.problem)
    if case.learned == _NOTHING:
        study = optuna.create_study(sampler=default_sampler(seed))
    elif case.learned.startswith("the best three"):
        study = optuna.create_study(sampler=default_sampler(seed))
        for rank in range(3):
            for one in _other_tables(case.problem):
                trials = sorted(_earlier(one, seed).get_trials(deepcopy=False), key=lambda trial: trial.value or 0.0)
                study.enqueue_trial(trials[rank].params, skip_if_exists=True)
    else:
        sampler = default_sampler(seed)
        sampler.learn_from(_priors(case, seed), problem.space)
        study = optuna.create_study(sampler=sampler)
    return _search(problem, study, case.peers, seed, _EVALUATIONS, _target(case.problem))


class _Timed:
    """A study that adds up the CPU time of its asks."""

    def __init__(self, study: optuna.Study) -> None:
        self._study = study
        self.tell = study.tell
        self.spent = 0.0

    def ask(self, space: dict[str, BaseDistribution]) -> optuna.Trial:
        began = time.process_time()
        trial = self._study.ask(space)
        self.spent += time.process_time() - began
        return trial


def _cost(case: Case, seeds: int = 3) -> str:
    """The CPU time of all asks of a study, divided by that of the default's without priors."""
    problem, spent = _problem(case.problem), []
    for seed in range(seeds):
        for priors in ([], _priors(case, seed)):
            sampler = default_sampler(seed)
            sampler.learn_from(priors, problem.space)
            study = _Timed(optuna.create_study(sampler=sampler))
            _search(problem, study, case.peers, seed, _TIMED, -math.inf)
            spent.append(study.spent)
    return f"{sum(spent[1::2]) / sum(spent[::2]):.1f}"


def _digits(best: float, sampler: optuna.samplers.BaseSampler, trials: int) -> optuna.Study:
    """The study of docs/search.md."""
    space: dict[str, BaseDistribution] = {
        "lr": FloatDistribution(1e-5, 1e-1, log=True),
        "dropout": FloatDistribution(0, 0.6),
        "optimizer": CategoricalDistribution(("adam", "sgd", "lion")),
    }
    study = optuna.create_study(sampler=sampler, study_name="digits-2025")
    for _ in range(trials):
        trial = study.ask(space)
        loss = 0.2 * math.log10(trial.params["lr"] / best) ** 2 + (trial.params["dropout"] - 0.2) ** 2
        study.tell(trial, loss + {"adam": 0.1, "sgd": 0.3, "lion": 0.0}[trial.params["optimizer"]])
    return study


def picture(seeds: int = 21) -> str:
    """The best loss after each trial of that page's second study, with and without the first: medians."""
    found: dict[str, list[list[float]]] = {"with what last year taught": [], "without": []}
    for seed, (name, runs) in itertools.product(range(seeds), found.items()):
        priors = [] if name == "without" else [Prior.from_study(_digits(1e-3, default_sampler(seed + 1000), 40))]
        study = _digits(2e-3, default_sampler(seed, priors=priors), 15)
        runs.append(list(itertools.accumulate([trial.value or 0.0 for trial in study.trials], min)))
    return histories(
        {name: [statistics.median(one) for one in zip(*runs, strict=True)] for name, runs in found.items()}
    )


def main() -> str:
    """The table as Markdown."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    _PICTURE.write_text(picture())
    words = {key: os.environ.get(f"TRANSFER_{key}", default) for key, default in _DEFAULTS.items()}
    peers = [int(one) for one in words["PEERS"].split()]
    problems = {
        "tables": [f"table/{one}" for one in _HPOLIB],
        "families": [f"{kind}/{family}.0" for kind in _FAMILIES for family in (101, 102)],
    }
    here = tuple(start for start, rival in _RIVALS.items() if f"TRANSFER_{rival.upper()}" in os.environ)
    scenarios = {
        one: of
        for one, of in _SCENARIOS.items()
        if (not one.startswith(tuple(_RIVALS)) or one.startswith(here))
        and any(part in one for part in words["ROWS"].split(","))
    }
    kinds = tuple({kind for kind, _ in scenarios.values()})
    cases = [
        Case(problem, learned, count)
        for count in peers
        for learned, on in [(_NOTHING, kinds), *[(one, (of[0],)) for one, of in scenarios.items()]]
        for kind in on
        for problem in problems[kind]
    ]
    others = [one for one in cases if one.learned.startswith(tuple(_RIVALS))]
    minutes, processes = float(words["MINUTES"]), int(words["PROCESSES"])
    ours = [one for one in cases if one not in others]
    found = paired(_run, ours, seeds=int(words["SEEDS"]), minutes=minutes, processes=processes)
    found |= paired(_run, others, seeds=int(words["RIVAL_SEEDS"]), minutes=minutes, processes=processes)
    seeds = len(next(iter(found.values())))
    lines = [
        f"{seeds} paired seeds. {__doc__.partition(chr(10) * 2)[2].partition('TRANSFER')[0].strip()}".replace(
            "\n", " "
        ),
        "Ratios are medians over the problems of ratios of medians over the seeds, with 90 % bootstrap intervals.",
        f"Where the target was not reached, {_EVALUATIONS + 1} counts.",
        "",
        "| learned from | problems | asked, 8 peers | " + " | ".join(f"{one} peers" for one in peers) + " |",
        "|---|---|--:|" + "--:|" * len(peers),
    ]
    for learned, (kind, asked) in scenarios.items():
        cells = [_ratio(found, problems[kind], learned, count) for count in peers]
        lines.append(f"| {learned} | {kind} | {'' if asked is None else f'≤ {asked}'} | {' | '.join(cells)} |")
    lines += ["", "Medians of the evaluations on each problem, with and without, 8 peers:", ""]
    lines += ["| learned from | evaluations |", "|---|---|"]
    for learned, (kind, _) in scenarios.items():
        shown = [
            " and ".join(f"{statistics.median(found[Case(one, what, 8)]):.0f}" for what in (learned, _NOTHING))
            for one in problems[kind]
            if Case(one, learned, 8) in found
        ]
        lines.append(f"| {learned} | {', '.join(shown)} |")
    costs = [f"{one} peers: {_cost(Case('mixed/102.0', 'eight related', one))}" for one in peers]
    lines += [
        "",
        f"CPU time of an ask with eight related studies, {_TIMED} trials, to the default's: {', '.join(costs)}.",
    ]
    return "\n".join(lines)


_DEFAULTS: Final = {"SEEDS": "20", "MINUTES": "24", "PEERS": "1 8 64", "PROCESSES": "1", "RIVAL_SEEDS": "3", "ROWS": ""}


def _ratio(found: dict[Case, list[int]], problems: list[str], learned: str, peers: int) -> str:
    runs = [(one, found[Case(one, learned, peers)]) for one in problems]
    pairs = [(mine, found[Case(one, _NOTHING, peers)][: len(mine)]) for one, mine in runs]
    numbers, drawn = random.Random(1), []
    for _ in range(_RESAMPLED):
        seeds = [numbers.choices(range(len(mine)), k=len(mine)) for mine, _ in pairs]
        drawn.append(
            _middle([([m[s] for s in some], [o[s] for s in some]) for (m, o), some in zip(pairs, seeds, strict=True)])
        )
    drawn.sort()
    return f"{_middle(pairs):.2f} ({drawn[_RESAMPLED // 20]:.2f} to {drawn[-_RESAMPLED // 20]:.2f})"


def _middle(pairs: list[tuple[list[int], list[int]]]) -> float:
    return statistics.median(statistics.median(mine) / statistics.median(other) for mine, other in pairs)
