"""A Lightning callback: reports after each validation, and ends the training of a trial that should be given up.

trainer = lightning.Trainer(callbacks=[ReportToTrial(trial, "val_loss")])
"""

try:
    from lightning.pytorch.callbacks import Callback
except ImportError:  # Lightning is not installed: the class can be read and tested all the same
    Callback = object


class ReportToTrial(Callback):
    """Give it the trial of `study.ask()` or of `optimize`. Only the first of several ranks talks to the trial."""

    def __init__(self, trial, monitor="val_loss"):
        super().__init__()
        self.trial, self.monitor, self.pruned = trial, monitor, False

    def on_validation_end(self, trainer, module):
        if trainer.sanity_checking:
            return
        value = trainer.callback_metrics.get(self.monitor)
        if value is None:
            raise KeyError(f"{self.monitor!r} was not logged; there are {', '.join(trainer.callback_metrics)}")
        prune = False
        if trainer.is_global_zero:
            self.trial.report(float(value), trainer.current_epoch)
            prune = self.trial.should_prune()
        prune = trainer.strategy.broadcast(prune)
        trainer.should_stop = trainer.should_stop or prune
        self.pruned = self.pruned or prune

    def on_fit_end(self, trainer, module):
        if self.pruned:
            self.trial.prune()
