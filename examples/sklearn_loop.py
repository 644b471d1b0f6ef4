"""Tunes a scikit-learn model. Run it as often as you like, on all machines that can access the directory.

Needs scikit-learn. Start it with: python sklearn_loop.py ./campaign
"""

import sys

import optuna
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import train_test_split

import hopaas_p2p

SPACE = {
    "alpha": hopaas_p2p.Float(1e-6, 1e-1, log=True),
    "loss": hopaas_p2p.Categorical(("hinge", "log_loss", "modified_huber")),
}


def main(store: str, budget: int = 10, epochs: int = 5) -> None:
    images, labels = load_digits(return_X_y=True)
    train_x, check_x, train_y, check_y = train_test_split(images / 16, labels, random_state=0)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = hopaas_p2p.open_study(store, "digits", space=SPACE, directions="maximize", budget=budget)

    def objective(trial: hopaas_p2p.Trial) -> float:
        model = SGDClassifier(alpha=trial.params["alpha"], loss=trial.params["loss"], random_state=0)
        for epoch in range(1, epochs + 1):
            model.partial_fit(train_x, train_y, classes=range(10))
            trial.report(model.score(check_x, check_y), epoch)
            if trial.should_prune():
                trial.prune()
        return float(model.score(check_x, check_y))

    study.optimize(objective)
    print(f"best: {study.best_trial.value:.3f} with {study.best_trial.params}")
    study.close()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "./campaign")
