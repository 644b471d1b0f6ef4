"""How the next parameters are found: pure functions over the columns of a study, and Optuna's interface to them."""
