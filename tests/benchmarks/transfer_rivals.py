"""OpenBox's RGPE, Syne Tune's quantile-based transfer and NePS's piBO, asked by `bench_transfer`.

Runs in a Python of its own, without this project. The first line of standard input is a request as JSON; then each line
is a list [number, loss] of a trial that ended, or null, which asks for the next configuration. It is answered with a
line: the choices by their place.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import sys
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

Ask = Callable[[], dict[str, Any]]
Tell = Callable[[int, dict[str, Any], float], None]


def _theirs(asked: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
    return {
        name: str(int(params[name])) if kind == "choice" else params[name] for name, (kind, _) in asked["space"].items()
    }


def _ours(asked: dict[str, Any], params: Any) -> dict[str, Any]:
    return {name: (float if kind == "real" else int)(params[name]) for name, (kind, _) in asked["space"].items()}


def openbox(asked: dict[str, Any]) -> tuple[Ask, Tell]:
    """Its asynchronous advisor with the surrogate tlbo_rgpe_gp (Feurer, Letham and Bakshy, arXiv:1802.02219)."""
    from openbox import AsyncBatchAdvisor, History, Observation, space

    def observed(params: dict[str, Any], loss: float) -> Any:
        return Observation(config=space.Configuration(whole, _theirs(asked, params)), objectives=[loss])

    whole = space.Space()
    for name, (kind, high) in asked["space"].items():
        made = {
            "real": lambda name, high: space.Real(name, 0.0, high),
            "int": lambda name, high: space.Int(name, 0, high),
            "choice": lambda name, high: space.Categorical(name, [*map(str, range(high + 1))]),
        }[kind]
        whole.add_variable(made(name, high))
    earlier = []
    for place, trials in enumerate(asked["earlier"]):
        one = History(task_id=f"earlier {place}", config_space=whole)
        one.update_observations([observed(*trial) for trial in trials])
        earlier.append(one)
    advisor = AsyncBatchAdvisor(
        whole,
        batch_size=asked["peers"],
        surrogate_type="tlbo_rgpe_gp",
        transfer_learning_history=earlier,
        random_state=asked["seed"],
        output_dir=tempfile.mkdtemp(),
        logger_kwargs={"stream": False, "logdir": None},
    )
    return (
        lambda: _ours(asked, advisor.get_suggestion().get_dictionary()),
        lambda _, params, loss: advisor.update_observation(observed(params, loss)),
    )


def syne_tune(asked: dict[str, Any]) -> tuple[Ask, Tell]:
    """Its quantile-based searcher (Salinas, Shen and Perrone, ICML 2020), which does not look at the study's own."""
    import numpy as np
    import pandas as pd
    from syne_tune.config_space import choice, randint, uniform
    from syne_tune.optimizer.schedulers.transfer_learning import TransferLearningTaskEvaluations
    from syne_tune.optimizer.schedulers.transfer_learning.quantile_based.quantile_based_searcher import (
        QuantileBasedSurrogateSearcher,
    )

    made = {
        "real": lambda high: uniform(0.0, high),
        "int": lambda high: randint(0, high),
        "choice": lambda high: choice([*map(str, range(high + 1))]),
    }
    whole = {name: made[kind](high) for name, (kind, high) in asked["space"].items()}
    earlier = {
        str(place): TransferLearningTaskEvaluations(
            whole,
            pd.DataFrame([_theirs(asked, params) for params, _ in trials]),
            ["loss"],
            np.array([loss for _, loss in trials])[:, None, None, None],
        )
        for place, trials in enumerate(asked["earlier"])
    }
    searcher = QuantileBasedSurrogateSearcher(whole, "loss", earlier, mode="min", random_seed=asked["seed"])
    return lambda: _ours(asked, searcher.get_config(trial_id="")), lambda *_: None


def neps(asked: dict[str, Any]) -> tuple[Ask, Tell]:
    """Its piBO, that is Bayesian optimization with a belief (Hvarfner et al., ICLR 2022), through its AskAndTell."""
    import numpy as np
    import torch
    from neps import AskAndTell, HPOCategorical, HPOFloat, SearchSpace, algorithms

    random.seed(asked["seed"])
    np.random.seed(asked["seed"])
    torch.manual_seed(asked["seed"])
    torch.set_num_threads(1)
    best = _theirs(asked, asked["belief"])
    whole = {
        name: HPOFloat(0.0, high, prior=best[name], prior_confidence="medium")
        if kind == "real"
        else HPOCategorical([*map(str, range(high + 1))], prior=best[name], prior_confidence="medium")
        for name, (kind, high) in asked["space"].items()
    }
    # by default it searches from the best 20 of 256 points: an ask takes seconds, and twelve searches took 1.6 hours
    restarts = {"num_restarts": 5, "n_initial_start_points": 64}
    study, trials = AskAndTell(algorithms.pibo(SearchSpace(whole), sample_prior_first=True, **restarts)), []

    def ask() -> dict[str, Any]:
        trials.append(study.ask())
        return _ours(asked, trials[-1].config)

    return ask, lambda number, _, loss: study.tell(trials[number], loss)


def main() -> None:
    """One search, until standard input ends."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    said = os.fdopen(os.dup(1), "w")
    asked = json.loads(sys.stdin.readline())
    asks: list[dict[str, Any]] = []
    with contextlib.redirect_stdout(sys.stderr):
        ask, tell = {"openbox": openbox, "syne_tune": syne_tune, "neps": neps}[asked["rival"]](asked)
        for line in sys.stdin:
            told = json.loads(line)
            if told is not None:
                tell(told[0], asks[told[0]], told[1])
                continue
            asks.append(ask())
            print(json.dumps(asks[-1]), file=said, flush=True)


if __name__ == "__main__":
    main()
