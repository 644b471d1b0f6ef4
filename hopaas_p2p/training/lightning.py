"""A Lightning callback that reports, prunes, keeps checkpoints, and saves one more when the job is pre-empted.

    callback = LightningCallback(trial, "val_loss", report_every=5, checkpoint_every=10)
    trainer = lightning.Trainer(max_epochs=100, callbacks=[callback])
    trainer.fit(model, data, ckpt_path=callback.resume_path)

Several ranks train one trial if torchrun starts the program; all of them stop together.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import Callback

from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.study.ranks import RankedTrial
from hopaas_p2p.training import EpochCallback, keep


class LightningCallback(EpochCallback, Callback):  # type: ignore[misc]  # Lightning may not be installed
    """A callback for the trial of `study.ask()` or `optimize`; see `EpochCallback` for the arguments."""

    _pauses = False

    @property
    def resume_path(self) -> str | None:
        """The `ckpt_path` for `fit`, to continue where an earlier attempt stopped; None without a checkpoint."""
        return None if self._trial.resume is None else str(self._trial.resume[1])

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:  # noqa: D102
        if trainer.world_size > 1 and not isinstance(self._trial, RankedTrial):
            raise InvalidInput(
                f"{trainer.world_size} ranks train one trial only if torchrun starts them: torchrun --nproc-per-node "
                f"{trainer.num_devices} train.py"
            )

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: D102
        if trainer.sanity_checking:
            return
        if self._judged(self._measured(trainer.callback_metrics), trainer.current_epoch):
            self._pruned = trainer.should_stop = True
            self._pauses = self._trial.at_rung

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: D102
        if self._pauses or (not self._pruned and self._is_due(trainer.current_epoch)):
            self._checkpoint(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:  # noqa: D102
        """On SIGTERM or Ctrl-C, save the current state if there is one rank. Several ranks cannot save together at this
        point.
        """
        ended = not isinstance(exception, Exception) or type(exception).__name__ == "SIGTERMException"
        if ended and trainer.world_size == 1:
            self._checkpoint(trainer)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: D102
        if self._pruned:
            self._trial.prune()

    def _checkpoint(self, trainer: Any) -> None:
        epoch = trainer.fit_loop.epoch_progress.current.processed - 1  # the last complete epoch in the checkpoint
        if epoch >= 0:
            keep(self._trial, trainer.save_checkpoint, epoch, name="checkpoint.ckpt")
