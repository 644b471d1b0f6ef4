"""A Lightning callback: reports, prunes, keeps checkpoints, and saves one more when the job is pre-empted.

    callback = LightningCallback(trial, "val_loss", report_every=5, checkpoint_every=10)
    trainer = lightning.Trainer(max_epochs=100, callbacks=[callback])
    trainer.fit(model, data, ckpt_path=callback.resume_path)

With several ranks the first alone talks to the trial, and all of them stop together; say `callback.check_pruned()`
after `fit` then. Optuna's own callback needs its RDB storage for that.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import Callback

from hopaas_p2p.errors import InvalidInput, LeaseLost
from hopaas_p2p.storage.optuna_internals import study_id_of
from hopaas_p2p.training import judged, keep

if TYPE_CHECKING:
    from hopaas_p2p.trial import Trial

_PRUNED = "hopaas:pruned"


class LightningCallback(Callback):  # type: ignore[misc]  # the same verdict whether Lightning is installed or not
    """Give it the trial of `study.ask()` or of `optimize`.

    Args:
        trial: the trial.
        monitor: which of the values that the module logs.
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
        self._pruned = False
        self._pauses = False

    @property
    def resume_path(self) -> str | None:
        """What `fit` takes as `ckpt_path`, to go on where an earlier attempt stopped."""
        return None if self._trial.resume is None else str(self._trial.resume[1])

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: D102
        if trainer.sanity_checking:
            return
        value = trainer.callback_metrics.get(self._monitor)
        if value is None:
            raise InvalidInput(f"{self._monitor!r} was not logged; logged are {', '.join(trainer.callback_metrics)}")
        epoch = trainer.current_epoch
        prune = trainer.is_global_zero and judged(self._trial, value, epoch, report_every=self._report_every)
        pauses = bool(prune) and self._trial.at_rung
        prune, self._pauses = trainer.strategy.broadcast((bool(prune), pauses))
        self._pruned = self._pruned or prune
        trainer.should_stop = trainer.should_stop or self._pruned

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: D102
        every = self._checkpoint_every
        due = every is not None and not self._pruned and (trainer.current_epoch + 1) % every == 0
        if due or self._pauses:
            self._checkpoint(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:  # noqa: D102
        """SIGTERM and Ctrl-C: with one rank, what there is is saved; several can no longer meet to save together."""
        ended = not isinstance(exception, Exception) or type(exception).__name__ == "SIGTERMException"
        if ended and trainer.world_size == 1:
            self._checkpoint(trainer)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: D102
        if trainer.world_size > 1:
            if trainer.is_global_zero:
                self._leave_word()
        elif self._pruned:
            self._trial.prune()

    def check_pruned(self) -> None:
        """After a `fit` on several ranks: raises `optuna.TrialPruned` if they stopped for that."""
        trial = self._trial
        said = trial.storage.state(study_id_of(trial.study)).trials[trial.number].system
        if self._pruned or _PRUNED in said:
            trial.prune()

    def _leave_word(self) -> None:
        """Tell the log, for the ranks' processes end, and what this object knows ends with them."""
        with contextlib.suppress(LeaseLost):  # the result is kept as a late one
            self._trial.handle.settle(self._trial.number, {_PRUNED: True} if self._pruned else {})

    def _checkpoint(self, trainer: Any) -> None:
        epoch = trainer.fit_loop.epoch_progress.current.processed - 1  # the last that is in it as a whole
        if epoch < 0:
            return
        with tempfile.TemporaryDirectory(prefix="hopaas-checkpoint-") as directory:
            path = Path(directory, "checkpoint.ckpt")
            trainer.save_checkpoint(path)  # all ranks take part, the first one writes
            if trainer.is_global_zero:
                keep(self._trial, path, epoch)
