"""One peer of the demo, started as `HOPAAS_STORE=… python -m hopaas_p2p.demo.peer STUDY SEED`.

To take part, a process only opens the study and optimizes. It connects only to the store.
"""

from __future__ import annotations

import os
import sys

import optuna

import hopaas_p2p
from hopaas_p2p.demo import objective


def run(store: str, study_name: str, seed: int) -> None:
    """Take part until the study has no more trials."""
    parent = os.getppid()

    def leave_if_orphaned() -> None:
        if os.getppid() != parent:
            raise SystemExit("the demo's first process is gone")

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = hopaas_p2p.open_study(
        hopaas_p2p.open_storage(store, create=False, linger=0.25),  # seconds; the screen shows epochs as they end
        study_name,
        create=False,
        sampler=optuna.samplers.TPESampler(seed=seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=8, n_warmup_steps=4),
    )
    study.optimize(objective.make_objective(leave_if_orphaned), catch=ValueError)
    study.close()


if __name__ == "__main__":
    run(os.environ["HOPAAS_STORE"], sys.argv[1], int(sys.argv[2]))
