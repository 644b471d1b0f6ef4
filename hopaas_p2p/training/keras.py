"""A Keras callback that reports, prunes, keeps checkpoints, and saves one more when the job is pre-empted.

callback = KerasCallback(trial, "val_loss", report_every=5, checkpoint_every=10)
model.fit(x, y, epochs=100, callbacks=[callback], initial_epoch=callback.initial_epoch)
"""

from __future__ import annotations

from typing import Any

from keras.callbacks import Callback

from hopaas_p2p.runtime.atomic import scratch
from hopaas_p2p.training import EpochCallback, Preemption, keep

_FILE = "checkpoint.weights.h5"


class KerasCallback(EpochCallback, Callback):  # type: ignore[misc]  # Keras has no type annotations
    """A callback for the trial of `study.ask()` or `optimize`; see `EpochCallback` for the arguments."""

    @property
    def initial_epoch(self) -> int:
        """The argument of `fit` for continuing where an earlier attempt stopped."""
        return 0 if self._trial.resume is None else self._trial.resume[0] + 1

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:  # noqa: D102
        if self._trial.resume is not None:
            with scratch(_FILE) as path:  # Keras recognises the format by the file's name
                path.write_bytes(self._trial.resume[1].read_bytes())
                self.model.load_weights(path)
        self._epoch = self.initial_epoch - 1
        self._preemption = Preemption().__enter__()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: D102
        if self._preemption.signal:
            self._checkpoint(self._epoch)  # this epoch will be repeated
            self._preemption.close()
            self._preemption.leave()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: D102
        self._epoch = epoch
        self._pruned = self._judged(self._measured(logs or {}), epoch)
        if self._pruned:
            self.model.stop_training = True
            if self._trial.at_rung:
                self._checkpoint(epoch)
        elif self._is_due(epoch):
            self._checkpoint(epoch)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:  # noqa: D102
        self._preemption.close()
        if self._pruned:
            self._trial.prune()

    def _checkpoint(self, epoch: int) -> None:
        if epoch >= 0:  # otherwise no epoch is complete
            keep(self._trial, self.model.save_weights, epoch, name=_FILE)
