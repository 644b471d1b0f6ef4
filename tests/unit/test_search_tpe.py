"""Our TPE suggests what Optuna's suggests, to the last bit, over 10,000 asks; and it falls back where it cannot."""

from __future__ import annotations

import copy
import math
import pickle
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

import hopaas_p2p
from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.samplers import TPESampler
from hopaas_p2p.search import samplers, tpe
from hopaas_p2p.search.optuna_internals import mixture_of
from hopaas_p2p.search.tpe import Comparison, KernelDensity, Kernels

STARTUP = 120
Objective = Callable[[Trial], float]


def floats(trial: Trial) -> float:
    x, rate = trial.suggest_float("x", -3.0, 3.0), trial.suggest_float("rate", 1e-5, 1.0, log=True)
    return (x - 1) ** 2 + math.log10(rate) ** 2 / 10


def whole(trial: Trial) -> float:
    width, depth = trial.suggest_int("width", 1, 500, log=True), trial.suggest_int("depth", 1, 9)
    return (math.log(width) - 3) ** 2 + abs(depth - 4)


def stepped(trial: Trial) -> float:
    dropout, batch = trial.suggest_float("dropout", 0.0, 0.9, step=0.05), trial.suggest_int("batch", 16, 512, step=16)
    return (dropout - 0.3) ** 2 + (batch / 512 - 0.2) ** 2


def wide_integer(trial: Trial) -> float:
    return abs(trial.suggest_int("seedling", 1, 1_000_000) - 3e5) / 1e6


def choices(trial: Trial) -> float:
    kind, depth = trial.suggest_categorical("kind", ["a", "b", None, 3]), trial.suggest_float("y", 0.0, 1.0)
    return (0.0 if kind == "b" else 0.4) + depth


def mixed(trial: Trial) -> float:
    return floats(trial) + whole(trial) / 10 + choices(trial)


def conditional(trial: Trial) -> float:
    if trial.suggest_categorical("kind", ["net", "forest"]) == "net":
        return 0.5 + floats(trial)
    return trial.suggest_int("trees", 10, 300) / 300


def moving_range(trial: Trial) -> float:
    top = trial.suggest_int("top", 2, 5)
    return trial.suggest_float("share", 0.0, float(top)) / top


def pruned(trial: Trial) -> float:
    value = floats(trial)
    for step in range(trial.number % 4):
        trial.report(math.nan if trial.number % 29 == 3 else value + step, step)
    if trial.number % 3 > 0:
        raise optuna.TrialPruned
    return value


def mostly_pruned(trial: Trial) -> float:
    value = pruned(trial) if trial.number % 50 else floats(trial)
    raise optuna.TrialPruned if trial.number % 50 else optuna.TrialPruned(str(value))


def failing(trial: Trial) -> float:
    value = floats(trial)
    if trial.number % 5 == 2:
        raise RuntimeError
    return value


def constrained(trial: Trial) -> float:
    value = floats(trial)
    trial.set_constraint("bound", trial.params["x"] - 0.2)
    trial.set_constraint("other", trial.params["x"] - 0.9)
    return value


def equal_values(trial: Trial) -> float:
    return float(round(floats(trial)))


def infinite(trial: Trial) -> float:
    return math.inf if trial.number % 11 == 0 else floats(trial)


def repeated(trial: Trial) -> float:
    """Every fifth trial has the parameters of an earlier one, as a retry has."""
    if trial.number % 5 == 0:
        trial.study.enqueue_trial(trial.params or {"x": 0.5, "rate": 0.01})
    return floats(trial)


def two_values(trial: Trial) -> tuple[float, float]:
    return floats(trial), trial.params["x"] ** 2


class Case(NamedTuple):
    objective: Callable[[Trial], Any]
    asks: int
    arguments: dict[str, Any] = {}
    directions: Sequence[str] = ("minimize",)
    models: bool = True
    """Whether the faster model is used."""


CASES = {
    "reals": Case(floats, 1500),
    "reals, to be maximized": Case(floats, 800, {}, ("maximize",)),
    "whole numbers": Case(whole, 250),
    "steps": Case(stepped, 250),
    "a million integers": Case(wide_integer, 120),
    "choices": Case(choices, 700),
    "all kinds": Case(mixed, 150),
    "one by one": Case(mixed, 80, {"multivariate": False}),
    "one by one, no liar": Case(choices, 400, {"multivariate": False, "constant_liar": False}),
    "no liar": Case(choices, 600, {"constant_liar": False}),
    "conditional, joint": Case(conditional, 400),
    "conditional, in groups": Case(conditional, 250, {"group": True}),
    "conditional, one by one": Case(conditional, 300, {"multivariate": False}),
    "no better trials": Case(mixed, 60, {"gamma": lambda _: 0}),
    "a range that moves": Case(moving_range, 400, {"multivariate": False}),
    "pruned": Case(pruned, 500),
    "pruned, to be maximized": Case(pruned, 300, {}, ("maximize",)),
    "mostly pruned": Case(mostly_pruned, 300),
    "failing": Case(failing, 400),
    "constrained": Case(constrained, 400),
    "equal values": Case(equal_values, 900),
    "infinite values": Case(infinite, 400),
    "repeated": Case(repeated, 400),
    "other weights": Case(choices, 300, {"weights": lambda n: np.linspace(0.1, 1.0, n)}),
    "other gamma": Case(floats, 300, {"gamma": lambda n: n // 4}),
    "another prior": Case(choices, 300, {"prior_weight": 0.3}),
    "with endpoints": Case(floats, 300, {"consider_endpoints": True}),
    "many candidates": Case(floats, 200, {"n_ei_candidates": 100}),
    "no limits of bandwidths": Case(floats, 200, {"consider_magic_clip": False}, ("minimize",), models=False),
    "two objectives": Case(two_values, 150, {}, ("minimize", "minimize"), models=False),
}  # fmt: skip


def suggested(sampler: optuna.samplers.BaseSampler, case: Case, storage: Any = None) -> list[dict[str, Any]]:
    study = optuna.create_study(sampler=sampler, directions=list(case.directions), storage=storage)
    study.optimize(case.objective, n_trials=STARTUP + case.asks, catch=(RuntimeError,))
    return [trial.params for trial in study.trials]


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many trials were in the model at each use of it."""
    used: list[int] = []
    original = KernelDensity.compare

    def counted(self: KernelDensity, below: Any, above: Kernels, *arguments: Any, **more: Any) -> Any:
        used.append(len(above.rows))
        return original(self, below, above, *arguments, **more)

    monkeypatch.setattr(KernelDensity, "compare", counted)
    return used


def pair(case: Case, seed: int = 7) -> tuple[optuna.samplers.TPESampler, TPESampler]:
    arguments = {"seed": seed, "n_startup_trials": STARTUP, **case.arguments}
    return optuna.samplers.TPESampler(**arguments), TPESampler(fewest=100, **arguments)


def test_the_cases_make_ten_thousand_asks() -> None:
    assert sum(case.asks for case in CASES.values()) >= 10_000


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:divide by zero", "ignore:invalid value")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_suggestions_are_optunas(case: Case, models: list[int], request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--short"):
        case = case._replace(asks=min(case.asks, 250))  # Optuna's asks grow slower with each trial
    theirs, ours = pair(case)
    assert suggested(ours, case) == suggested(theirs, case)
    assert (len(models) > case.asks // 2) == case.models


@pytest.mark.parametrize(
    "case",
    [
        Case(mixed, 40),
        Case(mixed, 10, {"multivariate": False}),
        Case(conditional, 40, {"group": True}),
        Case(pruned, 40, {}, ("maximize",)),
        Case(constrained, 40),
        Case(failing, 90),
        Case(repeated, 40),
    ],
    ids=["all kinds", "one by one", "groups", "pruned", "constrained", "failing", "repeated"],
)
def test_suggestions_are_optunas_on_our_storage(case: Case, models: list[int]) -> None:
    theirs, ours = pair(case)
    storage = hopaas_p2p.open_storage(f"memory://{secrets.token_hex(8)}")
    assert suggested(ours, case, storage) == suggested(theirs, case)
    storage.close()
    assert len(models) > case.asks // 2


def test_the_faster_model_works_in_our_own_study(tmp_path: Path, models: list[int]) -> None:
    storage = hopaas_p2p.open_storage(tmp_path)
    study = hopaas_p2p.open_study(storage, "s", sampler=TPESampler(seed=7, n_startup_trials=STARTUP, fewest=100))
    study.optimize(lambda trial: floats(trial), n_trials=STARTUP + 5)
    storage.close()
    assert len(models) == 5


@pytest.mark.parametrize("liar", [True, False])
def test_suggestions_are_optunas_while_others_run(models: list[int], *, liar: bool) -> None:
    """Eight trials run at a time, told out of order, some with parameters drawn and not suggested yet."""
    found = []
    for sampler in pair(Case(mixed, 0, {"constant_liar": liar})):
        study = optuna.create_study(sampler=sampler)
        running: list[Trial] = []
        params = []
        for number in range(STARTUP + 150):
            trial = study.ask()
            value = mixed(trial) if number % 4 else 1.0
            params.append(dict(trial.params))
            running.append(trial)
            trial.set_user_attr("value", value)
            if len(running) > 8:
                done = running.pop(number * 5 % len(running))
                study.tell(done, done.user_attrs["value"])
        found.append(params)
    assert found[0] == found[1]
    assert len(models) > 75


def test_suggestions_are_optunas_under_hyperband() -> None:
    case = Case(pruned, 60)
    theirs, ours = pair(case)
    found = []
    for sampler in (theirs, ours):
        pruner = optuna.pruners.HyperbandPruner(max_resource=9)
        study = optuna.create_study(sampler=sampler, pruner=pruner, study_name="s")
        study.optimize(case.objective, n_trials=200)
        found.append([trial.params for trial in study.trials])
    assert found[0] == found[1]


@pytest.mark.parametrize("cut", [100, tpe._CUT], ids=["near kernels only", "all kernels"])
def test_thousands_of_trials_make_optunas_suggestions(
    models: list[int], monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    monkeypatch.setattr(tpe, "_CUT", cut)
    distributions = {
        "x": FloatDistribution(0.0, 1.0),
        "rate": FloatDistribution(1e-4, 1.0, log=True),
        "width": IntDistribution(1, 300),
        "kind": CategoricalDistribution(("a", "b", "c")),
    }
    random = np.random.default_rng(3)
    trials = [
        optuna.trial.create_trial(
            params={
                "x": random.random(),
                "rate": float(np.exp(random.uniform(np.log(1e-4), 0))),
                "width": int(random.integers(1, 301)),
                "kind": "abc"[random.integers(3)],
            },
            distributions=distributions,
            value=random.random(),
        )
        for _ in range(4000)
    ]
    found = []
    for sampler in (optuna.samplers.TPESampler(seed=5), TPESampler(seed=5)):
        study = optuna.create_study(sampler=sampler)
        study.add_trials(trials)
        study.optimize(lambda trial: mixed_4000(trial, distributions), n_trials=15)
        found.append([trial.params for trial in study.trials[4000:]])
    assert found[0] == found[1]
    assert min(models) > 3900


def mixed_4000(trial: Trial, distributions: dict[str, Any]) -> float:
    for name, one in distributions.items():
        trial._suggest(name, one)
    return trial.params["x"] + trial.params["width"] / 300


@pytest.mark.parametrize("cut", [100, tpe._CUT], ids=["near kernels only", "all kernels"])
@pytest.mark.parametrize("objective", [mixed, wide_integer])
def test_scores_are_optunas_but_for_rounding(
    monkeypatch: pytest.MonkeyPatch, cut: int, objective: Callable[[Trial], float]
) -> None:
    """Also no bound is below the score that it bounds, and the best comes first."""
    monkeypatch.setattr(tpe, "_CUT", cut)
    differences, belows = [], []
    original = KernelDensity.compare

    def noted(estimator: Any) -> Any:
        belows.append(estimator)
        return mixture_of(estimator)

    def compared(self: KernelDensity, below: Any, above: Kernels, candidates: Any, **more: Any) -> Any:
        comparison = original(self, below, above, candidates, **more)
        scores = np.array([comparison.score(place) for place in range(24)])
        observed = {name: self._columns.params[name][above.rows] for name in self.names}
        optunas = belows[-1].log_pdf(candidates) - ours.estimator(observed, space).log_pdf(candidates)
        differences.append(np.abs(scores - optunas).max())
        assert (comparison.bounds >= scores).all()
        assert list(comparison.ranked()) == np.argsort(-scores, kind="stable").tolist()
        return comparison

    monkeypatch.setattr(samplers, "mixture_of", noted)
    monkeypatch.setattr(KernelDensity, "compare", compared)
    _, ours = pair(Case(objective, 0))
    study = optuna.create_study(sampler=ours)
    study.optimize(objective, n_trials=STARTUP)
    space = ours.infer_relative_search_space(study, study.trials[0])
    study.optimize(objective, n_trials=100)
    assert len(differences) > 75
    assert max(differences) < 1e-9


def test_few_candidates_of_a_large_study_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where trials are spread, most candidates cannot be the best, whatever is near them."""
    monkeypatch.setattr(tpe, "_CUT", 100)
    scored = []
    original = Comparison.score

    def counted(self: Comparison, place: int) -> float:
        scored.append(place)
        return original(self, place)

    monkeypatch.setattr(Comparison, "score", counted)
    study = optuna.create_study(sampler=TPESampler(seed=1, fewest=100))
    study.sampler, ours = optuna.samplers.RandomSampler(seed=1), study.sampler
    study.optimize(floats, n_trials=500)
    study.sampler = ours
    study.optimize(floats, n_trials=20)
    assert 20 <= len(scored) < 20 * 16


def test_another_study_is_noticed(models: list[int]) -> None:
    """One sampler may serve several studies, one after the other, also of the same id in another storage."""
    _, ours = pair(Case(floats, 0))
    for objective in (floats, whole):
        study = optuna.create_study(sampler=ours)
        study.optimize(objective, n_trials=STARTUP + 20)
    assert set(study.trials[-1].params) == {"width", "depth"}
    assert models[-1] < STARTUP + 20


def test_a_pickled_sampler_goes_on_with_the_same_numbers() -> None:
    _, ours = pair(Case(floats, 0))
    study = optuna.create_study(sampler=ours)
    study.optimize(floats, n_trials=STARTUP + 30)
    found = []
    for sampler in (pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours)):
        study.sampler = sampler
        trial = study.ask()
        floats(trial)
        found.append(trial.params)
        study.tell(trial, state=TrialState.FAIL)
    assert found[0] == found[1]


def test_threads_may_share_a_sampler() -> None:
    _, ours = pair(Case(floats, 0))
    study = optuna.create_study(sampler=ours)
    study.optimize(floats, n_trials=STARTUP + 60, n_jobs=4)
    assert all(trial.state is TrialState.COMPLETE for trial in study.trials)


def few(trial: Trial) -> float:
    return trial.suggest_int("a", 0, 5) + abs(trial.suggest_int("b", 0, 7) - 4) + trial.suggest_categorical("c", [0, 1])


def test_repeats_are_avoided_until_the_space_is_used_up() -> None:
    """Of 96 configurations, the start-up trials may repeat some; the others are all new while there are any."""
    study = optuna.create_study(sampler=TPESampler(seed=1, repeats="avoid"))
    study.optimize(few, n_trials=90)
    configurations = [tuple(trial.params.values()) for trial in study.trials]
    assert len(set(configurations[10:])) == 80
    assert not set(configurations[:10]) & set(configurations[10:])
    study.optimize(few, n_trials=20)
    assert len({tuple(trial.params.values()) for trial in study.trials}) >= 95


def test_what_runs_elsewhere_is_not_proposed_again() -> None:
    study = optuna.create_study(sampler=TPESampler(seed=1, repeats="avoid"))
    study.optimize(few, n_trials=10)
    running = []
    for _ in range(40):
        trial = study.ask()
        few(trial)
        running.append(tuple(trial.params.values()))
    assert len(set(running)) == 40


def test_avoiding_repeats_changes_nothing_where_there_are_none() -> None:
    case = Case(floats, 30)
    theirs, _ = pair(case)
    ours = TPESampler(seed=7, n_startup_trials=STARTUP, repeats="avoid")
    assert suggested(ours, case) == suggested(theirs, case)


@pytest.mark.parametrize("arguments", [{"repeats": "no"}, {"model": "forest"}])
def test_words_that_are_not_known_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(arguments))):
        TPESampler(**arguments)


def test_a_trial_that_is_not_what_others_are_leaves_the_asking_peer_alone() -> None:
    _, ours = pair(Case(choices, 0))
    study = optuna.create_study(sampler=ours)
    study.optimize(choices, n_trials=STARTUP + 20)
    other = optuna.trial.create_trial(
        params={"kind": 0.5, "y": 0.5}, value=1.0,
        distributions={"kind": FloatDistribution(0, 1), "y": FloatDistribution(0.0, 1.0)},
    )  # fmt: skip
    study._storage._studies[study._study_id].trials.append(_numbered(other, len(study.trials)))
    study._storage._trial_id_to_study_id_and_number[other._trial_id] = (study._study_id, other.number)
    trial = study.ask()
    assert 0 <= trial.suggest_float("y", 0.0, 1.0) <= 1


@pytest.mark.parametrize(
    "announced",
    ["[1]", "7", "{", '{"x": "abc"}', '{"x": 1e300, "rate": -5}', '{"x": Infinity, "rate": 1%s}' % ("0" * 400)],
)
@pytest.mark.filterwarnings("error")
def test_nothing_that_another_peer_announces_stops_an_ask(announced: str) -> None:
    _, ours = pair(Case(floats, 0))
    study = optuna.create_study(sampler=ours)
    study.optimize(floats, n_trials=STARTUP + 20)
    other = study.ask()
    study._storage.set_trial_system_attr(other._trial_id, "tpe:relative_params:0", announced)
    trial = study.ask()
    assert math.isfinite(floats(trial))


def _numbered(trial: FrozenTrial, number: int) -> FrozenTrial:
    trial.number, trial._trial_id = number, 10_000 + number
    return trial
