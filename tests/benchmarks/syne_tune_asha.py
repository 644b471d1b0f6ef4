"""Syne Tune's asynchronous successive halving with promotion, on its simulator, for `bench_fidelity`.

Runs in a Python of its own, without this project: a request as JSON on standard input, the answer as the last line of
standard output.
"""

from __future__ import annotations

import itertools
import json
import logging
import sys
import warnings
from typing import Any

import numpy as np
import pandas as pd
from syne_tune import StoppingCriterion, Tuner
from syne_tune.backend.simulator_backend.simulator_callback import SimulatorCallback
from syne_tune.blackbox_repository.blackbox_tabular import BlackboxTabular
from syne_tune.blackbox_repository.simulated_tabular_backend import UserBlackboxBackend
from syne_tune.config_space import randint
from syne_tune.optimizer.schedulers import HyperbandScheduler


class Finished(SimulatorCallback):
    """Notes each configuration that is trained to its end."""

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self.epochs, self.found, self.reports, self.begun = epochs, [], 0, 0

    def on_trial_result(self, trial: Any, status: str, result: dict[str, Any], decision: str) -> None:
        super().on_trial_result(trial, status, result, decision)
        self.reports += 1
        self.begun += int(result["epoch"]) == 1
        if int(result["epoch"]) == self.epochs:
            self.found.append((float(result["st_tuner_time"]), float(result["loss"])))


def main() -> None:
    """One search."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    asked = json.load(sys.stdin)
    values, seconds = np.array(asked["values"]), np.array(asked["seconds"])
    epochs, sizes = values.shape[1], asked["sizes"]
    rows = pd.DataFrame(list(itertools.product(*map(range, sizes.values()))), columns=list(sizes))
    space = {name: randint(0, size - 1) for name, size in sizes.items()}
    objectives = np.stack([values, seconds.cumsum(1)], axis=-1)[:, None]
    table = BlackboxTabular(
        rows, space, {"epoch": randint(1, epochs)}, objectives, objectives_names=["loss", "elapsed"]
    )
    backend = UserBlackboxBackend(table, elapsed_time_attr="elapsed", max_resource_attr="epochs", seed=0)
    scheduler = HyperbandScheduler(
        {**space, "epochs": epochs},
        searcher="random",
        type="promotion",
        metric="loss",
        mode="min",
        resource_attr="epoch",
        max_resource_attr="epochs",
        grace_period=1,
        reduction_factor=3,
        brackets=1,
        random_seed=asked["seed"],
    )
    callback = Finished(epochs)
    tuner = Tuner(
        backend,
        scheduler,
        StoppingCriterion(max_wallclock_time=asked["until"]),
        n_workers=asked["peers"],
        sleep_time=0,
        callbacks=[callback],
        results_update_interval=1e9,
        print_update_interval=1e9,
        save_tuner=False,
        suffix_tuner_name=False,
    )
    sys.stdout, said = sys.stderr, sys.stdout
    tuner.run()
    answer = {"found": callback.found, "epochs": callback.reports, "configurations": callback.begun}
    print(json.dumps(answer | {"until": asked["until"]}), file=said)


if __name__ == "__main__":
    main()
