"""Parameter importance: the figures of Optuna's PED-ANOVA for one objective of a study."""

from __future__ import annotations

import functools
import random
import threading
import time
import warnings
from typing import Any

import optuna
import pytest

import hopaas_p2p
from hopaas_p2p.analysis.importance import importance
from hopaas_p2p.analysis.table import TrialTable


def objective(trial: optuna.Trial) -> tuple[float, float]:
    """Every kind of parameter, one that only some have, one whose range moves, and one that is always the same."""
    kind = trial.suggest_categorical("kind", ["a", "b", "c"])
    value = trial.suggest_float("rate", 1e-5, 1e-1, log=True) * 10 + trial.suggest_int("layers", 1, 7)
    value += trial.suggest_float("drop", 0.0, 0.9, step=0.15) ** 2 + trial.suggest_int("width", 8, 512, log=True) / 99
    value += trial.suggest_int("far", 0, 1000, step=5) / 1000 + trial.suggest_float("same", 2.0, 2.0)
    if kind == "a":
        value += trial.suggest_float("only-a", -1, 1)
    moving = 1.0 if trial.number % 3 else 2.0
    value -= trial.suggest_float("moving", 0.0, moving)
    return value, -value * trial.params["layers"]


def _loss(trial: optuna.trial.FrozenTrial, *, at: int, direction: str) -> float:
    return (1.0 if direction == "minimize" else -1.0) * float(trial.values[at])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [10, 23, 400])
def test_the_shares_are_those_of_optuna(seed: int, count: int) -> None:
    storage = hopaas_p2p.open_storage(f"memory://importance-{seed}-{count}")
    sampler = optuna.samplers.RandomSampler(seed=seed)
    directions = random.Random(seed).choices(["minimize", "maximize"], k=2)
    study = optuna.create_study(storage=storage, study_name="s", sampler=sampler, directions=directions)  # type: ignore[arg-type]
    study.optimize(objective, n_trials=count)
    state = storage.state(study._study_id)
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    for at, direction in enumerate(directions):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = optuna.importance.get_param_importances(
                study, evaluator=evaluator, target=functools.partial(_loss, at=at, direction=direction)
            )
        assert dict(importance(state, TrialTable.of(state), objective=at).shares) == pytest.approx(
            theirs, rel=1e-6, abs=1e-12
        )
    storage.close()


def test_where_all_are_alike_nothing_is_important() -> None:
    study = hopaas_p2p.open_study("memory://alike", "s", space={"x": hopaas_p2p.Float(0, 1)})
    study.optimize(lambda _: 1.0, n_trials=20)
    found = importance(study.state, TrialTable.of(study.state))
    assert found.shares == ()
    assert "clearly separates" in found.note
    study.close()


def test_of_very_many_trials_an_even_sample_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hopaas_p2p.analysis.importance._MOST", 12)
    study = hopaas_p2p.open_study("memory://many", "s", space={"x": hopaas_p2p.Float(0, 1)})
    study.optimize(lambda trial: trial.params["x"], n_trials=40)
    found = importance(study.state, TrialTable.of(study.state))
    assert found.shares == (("x", 1.0),)
    assert "over 12 of 40 complete trials" in found.note
    study.close()


def test_two_threads_leave_the_filters_for_warnings_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    study = hopaas_p2p.open_study("memory://threads", "s", space={"x": hopaas_p2p.Float(0, 1)})
    study.optimize(lambda trial: trial.params["x"], n_trials=20)
    table, before = TrialTable.of(study.state), list(warnings.filters)
    evaluator = optuna.importance.PedAnovaImportanceEvaluator
    evaluate, inside = evaluator.evaluate, threading.Event()

    def evaluated(*given: Any, **named: Any) -> dict[str, float]:
        first = not inside.is_set()
        inside.set()
        time.sleep(0.2 if first else 0.5)  # who began first is done first
        return evaluate(*given, **named)

    monkeypatch.setattr(evaluator, "evaluate", evaluated)
    threads = [threading.Thread(target=importance, args=(study.state, table)) for _ in range(2)]
    for thread in threads:
        thread.start()
        inside.wait(10.0)
    for thread in threads:
        thread.join()
    assert warnings.filters == before
    study.close()
