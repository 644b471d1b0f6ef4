"""What a study keeps of its sampler and pruner, and what it does not take from a store."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import optuna
import pytest

import hopaas_p2p.pruners
import hopaas_p2p.samplers
from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.search import registry

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning", "ignore::FutureWarning")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    MULTIVARIATE = hopaas_p2p.samplers.TPESampler(multivariate=True)
    FUNCTIONS = [
        optuna.samplers.TPESampler(gamma=lambda count: count),
        optuna.samplers.TPESampler(weights=lambda count: np.ones(count)),
        optuna.samplers.NSGAIISampler(constraints_func=lambda _: [0.0]),
        optuna.samplers.NSGAIISampler(crossover=optuna.samplers.nsgaii.SBXCrossover()),
        optuna.samplers.GridSampler({"x": [1]}),
    ]
SAMPLERS: list[Any] = [
    (hopaas_p2p.samplers.TPESampler(), {}),
    (hopaas_p2p.samplers.TPESampler(repeats="avoid", seed=3), {"repeats": "avoid"}),
    (MULTIVARIATE, {"multivariate": True}),
    (hopaas_p2p.samplers.CmaEsSampler(population_size=64), {"population_size": 64}),
    (optuna.samplers.RandomSampler(seed=1), {}),
    (optuna.samplers.TPESampler(n_startup_trials=3, n_ei_candidates=9), {"n_startup_trials": 3, "n_ei_candidates": 9}),
    (optuna.samplers.NSGAIISampler(), {}),
    (
        optuna.samplers.NSGAIISampler(population_size=8, crossover_prob=0.5),
        {"population_size": 8, "crossover_prob": 0.5},
    ),
    (optuna.samplers.NSGAIIISampler(), {}),
]
PRUNERS: list[Any] = [
    (optuna.pruners.NopPruner(), {}),
    (optuna.pruners.MedianPruner(n_warmup_steps=3), {"n_warmup_steps": 3}),
    (optuna.pruners.PercentilePruner(50.0), {"percentile": 50.0}),
    (optuna.pruners.HyperbandPruner(max_resource=27), {"max_resource": 27}),
    (optuna.pruners.ThresholdPruner(upper=2.0), {"lower": None, "upper": 2.0}),
    (optuna.pruners.SuccessiveHalvingPruner(), {}),
    (hopaas_p2p.pruners.MedianPruner(2), {"n_startup_trials": 2}),
    (hopaas_p2p.pruners.PercentilePruner(10.0, 1), {"percentile": 10.0, "n_startup_trials": 1}),
    (hopaas_p2p.pruners.SuccessiveHalvingPruner("auto", 3), {"reduction_factor": 3}),
    (hopaas_p2p.pruners.SuccessiveHalvingPruner(2), {"min_resource": 2}),
]
BOTH = [("sampler", *one) for one in SAMPLERS] + [("pruner", *one) for one in PRUNERS]


@pytest.mark.parametrize(("kind", "given", "arguments"), BOTH)
def test_it_is_kept_as_its_class_and_the_arguments_that_are_not_the_default(
    kind: Any, given: Any, arguments: dict[str, Any]
) -> None:
    method = registry.describe(kind, given)
    assert method["arguments"] == arguments
    again = registry.make(kind, method)
    assert type(again) is type(given)
    assert registry.describe(kind, again) == method


@pytest.mark.parametrize("given", FUNCTIONS)
def test_what_cannot_be_kept_is_known_by_its_class_only(given: Any) -> None:
    method = registry.describe("sampler", given)
    assert method["class"].endswith(type(given).__name__)
    assert method["arguments"] is None
    with pytest.raises(InvalidInput):
        registry.make("sampler", method)


@pytest.mark.parametrize(
    "method",
    [
        {"class": "os.system", "arguments": {"command": "true"}},
        {"class": "optuna.pruners.MedianPruner", "arguments": {}},  # is no sampler
        {"class": "optuna.samplers.CmaEsSampler", "arguments": {}},  # unpickles
        {"class": "optuna.samplers.TPESampler", "arguments": {"gamma": "os.system"}},
        {"class": "optuna.samplers.TPESampler", "arguments": {"n_startup_trials": 10**12}},
        {"class": "optuna.samplers.TPESampler", "arguments": {"n_ei_candidates": [1]}},
        {"class": "optuna.samplers.TPESampler", "arguments": {"seed": 1}},
        {"class": "optuna.samplers.TPESampler", "arguments": {"self": 1}},
        {"class": "optuna.samplers.NSGAIISampler", "arguments": {"population_size": 1}},
        {"class": ["optuna.samplers.TPESampler"], "arguments": {}},
        {"class": "optuna.samplers.TPESampler"},
        {},
    ],
)
def test_nothing_else_is_made(method: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        registry.make("sampler", method)


def test_every_class_can_be_made_and_described() -> None:
    """A new argument of Optuna's, or of ours, that is not found in the object would be lost without a word."""
    kinds: tuple[registry.Kind, ...] = ("sampler", "pruner")
    for name in [name for kind in kinds for name in registry._CLASSES[kind]]:
        cls = registry._class(name)
        default = registry._made(cls, registry._REQUIRED.get(cls.__name__, {}))
        for key in registry._parameters(cls):
            assert registry._argument(default, key) is not registry._MISSING, (name, key)
