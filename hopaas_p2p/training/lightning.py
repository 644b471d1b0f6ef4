"""A Lightning callback: reports, prunes, keeps checkpoints, and saves one more when the job is pre-empted.

    callback = LightningCallback(trial, "val_loss", report_every=5, checkpoint_every=10)
    trainer = lightning.Trainer(max_epochs=100, callbacks=[callback])
    trainer.fit(model, data, ckpt_path=callback.resume_path)

With several ranks that Lightning starts, only the first uses the trial, and all of them stop together; call
`callback.check_pruned()` after `fit` in that case. Optuna's own callback needs its RDB storage for that.
"""

from __future__ import annotations

import contextlib
from typing import Any

from lightning.pytorch.callbacks import Callback

from hopaas_p2p.errors import LeaseLost
from hopaas_p2p.storage.optuna_internals import study_id_of
from hopaas_p2p.study.ranks import RankedTrial
from hopaas_p2p.training import EpochCallback, keep, scratch

_PRUNED = "hopaas:pruned"


class LightningCallback(EpochCallback, Callback):  # type: ignore[misc]  # the same without Lightning
    """Give it the trial of `study.ask()` or of `optimize`; see `EpochCallback` for the arguments."""

    _pauses = False

    @property
    def _ranked(self) -> bool:
        """Whether every rank has the trial, as under torchrun, and uses it together with the others."""
        return isinstance(self._trial, RankedTrial)

    @property
    def resume_path(self) -> str | None:
        """The `ckpt_path` for `fit`, to continue where an earlier attempt stopped."""
        return None if self._trial.resume is None else str(self._trial.resume[1])

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: D102
        if trainer.sanity_checking:
            return
        value, epoch = self._measured(trainer.callback_metrics), trainer.current_epoch
        prune = bool((self._ranked or trainer.is_global_zero) and self._judged(value, epoch))
        prune, self._pauses = trainer.strategy.broadcast((prune, prune and self._trial.at_rung))
        self._pruned = self._pruned or prune
        trainer.should_stop = trainer.should_stop or self._pruned

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: D102
        if self._pauses or (not self._pruned and self._is_due(trainer.current_epoch)):
            self._checkpoint(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:  # noqa: D102
        """SIGTERM and Ctrl-C: with one rank, the current state is saved; several ranks can no longer save together."""
        ended = not isinstance(exception, Exception) or type(exception).__name__ == "SIGTERMException"
        if ended and trainer.world_size == 1:
            self._checkpoint(trainer)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: D102
        if trainer.world_size > 1 and not self._ranked:
            if trainer.is_global_zero:  # writes to the log, because this object's state ends with its process
                with contextlib.suppress(LeaseLost):  # the result is kept as a late one
                    self._trial.handle.settle(self._trial.number, {_PRUNED: True} if self._pruned else {})
        elif self._pruned:
            self._trial.prune()

    def check_pruned(self) -> None:
        """After a `fit` on several ranks: raises `optuna.TrialPruned` if they stopped for that."""
        trial = self._trial
        told = not self._ranked and trial.storage.state(study_id_of(trial.study)).trials[trial.number].system
        if self._pruned or (told and _PRUNED in told):
            trial.prune()

    def _checkpoint(self, trainer: Any) -> None:
        epoch = trainer.fit_loop.epoch_progress.current.processed - 1  # the last complete epoch in it
        if epoch < 0:
            return
        if self._ranked or trainer.is_global_zero:
            keep(self._trial, trainer.save_checkpoint, epoch, name="checkpoint.ckpt")
        else:
            with scratch("checkpoint.ckpt") as path:
                trainer.save_checkpoint(path)  # all ranks take part, the first one writes
