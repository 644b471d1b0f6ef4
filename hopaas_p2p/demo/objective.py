"""The code that a user would write: it trains neural networks on scikit-learn's hand-written digits.

1,437 digits are for tuning by five-fold cross-validation. Each epoch reports the mean accuracy of the five networks,
each on the digits that it was not trained on. Another 360 digits are held out from all trials.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from hopaas_p2p.core.records import Categorical, Distribution, Float, Int

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from hopaas_p2p.study.trial import Trial

    Array = NDArray[np.generic]

EPOCHS: Final = 30
FOLDS: Final = 5
SPACE: Final[dict[str, Distribution]] = {
    "units": Int(16, 256, log=True),
    "activation": Categorical(("relu", "tanh", "logistic")),
    "solver": Categorical(("adam", "sgd")),
    "learning_rate": Float(1e-4, 1e-1, log=True),
    "batch_size": Int(16, 256, log=True),
    "alpha": Float(1e-6, 1e-1, log=True),
}


def load() -> list[Array]:
    """The images for tuning, the images held out, and then the labels of each."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    parts: list[Array] = train_test_split(images / 16.0, labels, test_size=0.2, random_state=0, stratify=labels)
    return parts


def make_objective(alive: Callable[[], object] = lambda: None) -> Callable[[Trial], float]:
    """The objective, with its data loaded. `alive` is called after every epoch and may raise to end the program."""
    from sklearn.model_selection import StratifiedKFold

    images, _, labels, _ = load()
    folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(images, labels))

    def objective(trial: Trial) -> float:
        networks = [_network(trial.params, seed=fold) for fold in range(FOLDS)]
        accuracy = 0.0
        for epoch in range(1, EPOCHS + 1):
            scores = []
            for network, (fit, check) in zip(networks, folds, strict=True):
                network.partial_fit(images[fit], labels[fit], classes=range(10))
                scores.append(network.score(images[check], labels[check]))
            accuracy = float(sum(scores) / FOLDS)
            alive()
            trial.report(accuracy, epoch)
            if trial.should_prune():
                trial.prune()
        return accuracy

    return objective


def held_out_accuracy(params: Mapping[str, Any]) -> float:
    """Train again with these parameters on all the digits for tuning; returns the accuracy on those held out."""
    tune_x, test_x, tune_y, test_y = load()
    network = _network(params, seed=0)
    for _ in range(EPOCHS):
        network.partial_fit(tune_x, tune_y, classes=range(10))
    return float(network.score(test_x, test_y))


def _network(params: Mapping[str, Any], *, seed: int) -> Any:
    from sklearn.neural_network import MLPClassifier

    return MLPClassifier(
        hidden_layer_sizes=(params["units"],),
        activation=params["activation"],
        solver=params["solver"],
        learning_rate_init=params["learning_rate"],
        batch_size=params["batch_size"],
        alpha=params["alpha"],
        random_state=seed,
    )
