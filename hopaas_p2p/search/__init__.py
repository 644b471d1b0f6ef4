"""The choice of the next parameters: pure functions over the columns of a study, and Optuna's interface to them."""
