"""Chooses the next parameters by pure functions over the columns of a study, behind Optuna's interface."""
