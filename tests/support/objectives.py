"""What trials run where only the number of calls matters."""

from __future__ import annotations

import optuna


def five_parameters(trial: optuna.Trial) -> float:
    """A trial of 5 parameters and 10 reports."""
    xs = [trial.suggest_float(name, 0, 1) for name in "abcde"]
    for step in range(10):
        trial.report(sum(xs) / (step + 1), step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return sum(xs)
