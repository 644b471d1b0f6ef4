"""Train with Keras, with reports, pruning, and continuation after a pre-empted job.

Needs keras and scikit-learn. Start it as often as you like: python keras_callback.py ./campaign
"""

import sys

import keras
from sklearn.datasets import load_digits

import hopaas_p2p
from hopaas_p2p.training.keras import KerasCallback

SPACE = {"lr": hopaas_p2p.Float(1e-4, 1e-1, log=True), "width": hopaas_p2p.Int(16, 128)}


def objective(trial: hopaas_p2p.Trial, epochs: int = 10) -> float:
    x, y = load_digits(return_X_y=True)
    model = keras.Sequential(
        [keras.Input((64,)), keras.layers.Dense(trial.params["width"], "relu"), keras.layers.Dense(10, "softmax")]
    )
    model.compile(keras.optimizers.Adam(trial.params["lr"]), "sparse_categorical_crossentropy")
    callback = KerasCallback(trial, "val_loss", checkpoint_every=5)
    history = model.fit(
        x / 16,
        y,
        validation_split=0.2,
        epochs=epochs,
        initial_epoch=callback.initial_epoch,
        callbacks=[callback],
        verbose=0,
    )
    return float(history.history["val_loss"][-1])


def main(store: str, budget: int = 20, epochs: int = 10) -> None:
    study = hopaas_p2p.open_study(store, "keras", space=SPACE, budget=budget)
    study.optimize(lambda trial: objective(trial, epochs))
    print(f"best: {study.best_trial.value:.4f} with {study.best_trial.params}")
    study.close()


if __name__ == "__main__":
    main(sys.argv[1])
