"""A Keras callback: reports after each epoch, and ends the training of a trial that should be given up.

model.fit(x, y, callbacks=[ReportToTrial(trial, "val_loss")])
"""

try:
    from keras.callbacks import Callback
except ImportError:  # Keras is not installed: the class can be read and tested all the same
    Callback = object


class ReportToTrial(Callback):
    """Give it the trial of `study.ask()` or of `optimize`."""

    def __init__(self, trial, monitor="val_loss"):
        super().__init__()
        self.trial, self.monitor, self.pruned = trial, monitor, False

    def on_epoch_end(self, epoch, logs=None):
        value = (logs or {}).get(self.monitor)
        if value is None:
            raise KeyError(f"{self.monitor!r} is not among what Keras measures: {', '.join(logs or {})}")
        self.trial.report(float(value), epoch)
        if self.trial.should_prune():
            self.pruned = True
            self.model.stop_training = True

    def on_train_end(self, logs=None):
        if self.pruned:
            self.trial.prune()  # `optimize` and `with study.trial()` end the trial as PRUNED
