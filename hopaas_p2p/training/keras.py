"""A Keras callback: reports, prunes, keeps checkpoints, and saves one more when the job is pre-empted.

callback = KerasCallback(trial, "val_loss", report_every=5, checkpoint_every=10)
model.fit(x, y, epochs=100, callbacks=[callback], initial_epoch=callback.initial_epoch)
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras.callbacks import Callback

from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.training import Preemption, judged, keep

if TYPE_CHECKING:
    from hopaas_p2p.trial import Trial

_FILE = "checkpoint.weights.h5"


class KerasCallback(Callback):  # type: ignore[misc]  # Keras brings no types
    """Give it the trial of `study.ask()` or of `optimize`.

    Args:
        trial: the trial.
        monitor: which of the values that Keras measures.
        report_every: epochs between two reports.
        checkpoint_every: epochs between two checkpoints. None: only when the job is pre-empted.

    """

    def __init__(
        self, trial: Trial, monitor: str = "val_loss", *, report_every: int = 1, checkpoint_every: int | None = None
    ) -> None:
        super().__init__()
        self._trial = trial
        self._monitor = monitor
        self._report_every = report_every
        self._checkpoint_every = checkpoint_every
        self._preemption = Preemption()
        self._pruned = False
        self._epoch = self.initial_epoch - 1

    @property
    def initial_epoch(self) -> int:
        """What `fit` has to be told so that it goes on where an earlier attempt stopped."""
        return 0 if self._trial.resume is None else self._trial.resume[0] + 1

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:  # noqa: D102
        if self._trial.resume is not None:
            with tempfile.TemporaryDirectory(prefix="hopaas-checkpoint-") as directory:
                path = Path(directory, _FILE)  # Keras knows a file by its name
                path.write_bytes(self._trial.resume[1].read_bytes())
                self.model.load_weights(path)
        self._preemption.start()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: D102
        if self._preemption.signal:
            self._checkpoint(self._epoch)  # this epoch will be begun again
            self._preemption.stop()
            self._preemption.leave()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: D102
        self._epoch = epoch
        value = (logs or {}).get(self._monitor)
        if value is None:
            raise InvalidInput(f"{self._monitor!r} is not among the metrics that Keras logs: {', '.join(logs or {})}")
        self._pruned = judged(self._trial, value, epoch, report_every=self._report_every)
        if self._pruned:
            self.model.stop_training = True
            if self._trial.at_rung:
                self._checkpoint(epoch)
        elif self._checkpoint_every is not None and (epoch + 1) % self._checkpoint_every == 0:
            self._checkpoint(epoch)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:  # noqa: D102
        self._preemption.stop()
        if self._pruned:
            self._trial.prune()

    def _checkpoint(self, epoch: int) -> None:
        if epoch < 0:  # nothing is done yet
            return
        with tempfile.TemporaryDirectory(prefix="hopaas-checkpoint-") as directory:
            path = Path(directory, _FILE)
            self.model.save_weights(path)
            keep(self._trial, path, epoch)
