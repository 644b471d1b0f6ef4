"""Training loops that report, are pruned, keep checkpoints, and go on where a pre-empted one stopped.

Optuna's own callbacks (`optuna-integration`) work on our trials as they are. What they do not know is that a job may be
pre-empted and its trial go on elsewhere. For loops of one's own:

    def objective(trial):
        model = Model(**trial.params)
        training = Training(trial, save=model.save, load=model.load, report_every=5, checkpoint_every=20)
        for epoch in training.steps(200):       # begins after the checkpoint, if there is one
            loss = model.train_one_epoch()
            training.report(loss)               # may end the trial here
        return loss

`hopaas_p2p.training.lightning` and `.keras` have it as callbacks.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import optuna

from hopaas_p2p import checkpoints
from hopaas_p2p.errors import InvalidInput, LeaseLost, StoreUnreachable
from hopaas_p2p.training.preemption import Preemption

if TYPE_CHECKING:
    from hopaas_p2p.trial import Trial

__all__ = ["Preemption", "Training", "keep"]

_log: Final = logging.getLogger("hopaas_p2p")


def keep(trial: Trial, path: Path, step: int) -> None:
    """Store a checkpoint, unless the store does not answer within `patience`: training goes on without it then.

    Raises:
        optuna.TrialPruned: another peer runs the trial now.

    """
    try:
        checkpoints.save(trial.handle, trial.number, path, step, within=trial.storage.peer.patience)
    except LeaseLost:
        trial.prune()
    except StoreUnreachable as error:
        _log.warning("the checkpoint of step %d was not stored: %s", step, error)


def judged(trial: Trial, value: float, step: int, *, report_every: int) -> bool:
    """Report this value if that is due; whether to give the trial up. A request to stop is seen at every step."""
    if (step + 1) % report_every == 0:
        trial.report(float(value), step)
    elif trial.stop_requested is None:
        return False
    return trial.should_prune()


class Training:
    """One trial's loop. In distributed training every rank makes one; rank 0 alone has the trial.

    Args:
        trial: of `study.ask()` or of `optimize`; None on ranks above 0.
        save: writes the state of the training to a path. Without it there are no checkpoints.
        load: reads it back.
        report_every: steps between two reports; the last step is always reported.
        checkpoint_every: steps between two checkpoints. None: only when the job is pre-empted.
        broadcast: gives rank 0's object to all ranks; with PyTorch, by `torch.distributed.broadcast_object_list`.

    """

    def __init__(
        self,
        trial: Trial | None,
        *,
        save: Callable[[Path], Any] | None = None,
        load: Callable[[Path], Any] | None = None,
        report_every: int = 1,
        checkpoint_every: int | None = None,
        broadcast: Callable[[Any], Any] | None = None,
    ) -> None:
        if report_every < 1 or (checkpoint_every is not None and checkpoint_every < 1):
            raise InvalidInput(
                f"report_every and checkpoint_every must be at least 1, got {report_every} and {checkpoint_every}"
            )
        if trial is None and broadcast is None:
            raise InvalidInput("without a trial this is a rank above 0, which needs broadcast")
        if (save is None) != (load is None):
            raise InvalidInput("checkpoints need both save and load")
        self._trial = trial
        self._save = save
        self._load = load
        self._report_every = report_every
        self._checkpoint_every = checkpoint_every
        self._broadcast = broadcast or (lambda value: value)
        self._step = 0
        self._end = 0

    def steps(self, end: int) -> Iterator[int]:
        """The steps that are left of 0, 1, …, end - 1.

        SIGTERM is acted upon between two steps: a checkpoint, then SystemExit, which gives the trial back.
        """
        first, self._end = self._resume(), end
        with Preemption() as preemption:
            for self._step in range(first, end):
                yield self._step
                leaving = self._broadcast(preemption.signal)
                if leaving or self._is_due():
                    self._checkpoint()
                if leaving:
                    preemption.leave()

    def report(self, value: float) -> None:
        """Report the present step's value, where it is due.

        Raises:
            optuna.TrialPruned: the trial is to be given up, on every rank.

        """
        last = self._step == self._end - 1
        if not last and (self._step + 1) % self._report_every and not self._asked_to_stop():
            return
        over = False
        if self._trial is not None:
            self._trial.report(float(value), self._step)
            over = self._trial.should_prune()
        if self._broadcast(over):
            if self._trial is not None and self._trial.at_rung:
                self._checkpoint()
            self._prune()

    def _asked_to_stop(self) -> bool:
        return bool(self._broadcast(self._trial is not None and self._trial.stop_requested is not None))

    @staticmethod
    def _prune() -> NoReturn:
        raise optuna.TrialPruned

    def _is_due(self) -> bool:
        every = self._checkpoint_every
        return every is not None and (self._step + 1) % every == 0 and self._step < self._end - 1

    def _checkpoint(self) -> None:
        if self._save is None or self._trial is None:
            return
        with tempfile.TemporaryDirectory(prefix="hopaas-checkpoint-") as directory:
            path = Path(directory, "checkpoint")
            self._save(path)
            keep(self._trial, path, self._step)

    def _resume(self) -> int:
        """Load the newest checkpoint on every rank; returns the first step that is left."""
        if self._load is None:
            return 0
        found = self._trial.resume if self._trial is not None else None
        told = self._broadcast(None if found is None else (found[0], found[1].read_bytes()))
        if told is None:
            return 0
        step, content = told
        with tempfile.TemporaryDirectory(prefix="hopaas-checkpoint-") as directory:
            path = Path(directory, "checkpoint")
            path.write_bytes(content)
            self._load(path)
        return int(step) + 1
