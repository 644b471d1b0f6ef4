"""Training loops that report, can be pruned, keep checkpoints, and continue where a pre-empted job stopped.

Optuna's own callbacks (`optuna-integration`) work with our trials unchanged, but keep no checkpoints, so the trial of a
pre-empted job starts over. In your own loop, use `Training`:

    def objective(trial):
        model = Model(**trial.params)
        training = Training(trial, save=model.save, load=model.load, report_every=5, checkpoint_every=20)
        for epoch in training.steps(200):       # begins after the checkpoint, if there is one
            loss = model.train_one_epoch()
            training.report(loss)               # may end the trial here
        return loss

`hopaas_p2p.training.lightning` and `.keras` offer the same as callbacks.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Self, SupportsFloat

import optuna

from hopaas_p2p.errors import InvalidInput, LeaseLost, StoreUnreachable
from hopaas_p2p.runtime.atomic import scratch
from hopaas_p2p.runtime.interrupts import TERMINATIONS, handled
from hopaas_p2p.runtime.logs import LOG
from hopaas_p2p.study.ranks import MpiRanks, RankedTrial, Ranks, ranks
from hopaas_p2p.study.trial import Trial

__all__ = ["MpiRanks", "Preemption", "RankedTrial", "Training", "ranks"]


def keep(
    trial: Trial | RankedTrial, save: Callable[[Path], Any], step: int, *, name: str = "checkpoint", **how: Any
) -> None:
    """Store the checkpoint that `save` writes; `how` is passed on to `trial.checkpoint`.

    Training continues without the checkpoint if the store does not answer within the `patience` of `open_study`.

    Raises:
        optuna.TrialPruned: another peer has taken the trial over.

    """
    with scratch(name) as path:
        save(path)
        try:
            trial.checkpoint(path, step=step, wait=False, **how)
        except LeaseLost:
            trial.prune()
        except StoreUnreachable as error:
            LOG.warning("the checkpoint of step %d was not stored: %s", step, error)


class Reporting:
    """Decides when a training run reports and keeps checkpoints."""

    def __init__(self, trial: Trial | RankedTrial, report_every: int, checkpoint_every: int | None) -> None:
        super().__init__()  # the `__init__` of a library's callback
        if report_every < 1 or (checkpoint_every is not None and checkpoint_every < 1):
            given = f"got {report_every} and {checkpoint_every}"
            raise InvalidInput(f"report_every and checkpoint_every must be at least 1, {given}")
        self._trial, self._report_every, self._checkpoint_every = trial, report_every, checkpoint_every

    def _judged(self, value: SupportsFloat, step: int, *, last: bool = False) -> bool:
        """Report this value if a report is due; returns whether to give up. A stop request takes effect at every
        step.
        """
        if not last and (step + 1) % self._report_every and self._trial.stop_requested is None:
            return False
        self._trial.report(float(value), step)  # only when due, because reading a number from a GPU waits for the GPU
        return self._trial.should_prune()

    def _is_due(self, step: int) -> bool:
        """Whether a checkpoint is due after this step."""
        return self._checkpoint_every is not None and (step + 1) % self._checkpoint_every == 0


class EpochCallback(Reporting):
    """The base of the callbacks of training libraries. Pass the trial of `study.ask()` or of `optimize`.

    Args:
        trial: the trial.
        monitor: the name of the metric to report.
        report_every: epochs between two reports.
        checkpoint_every: epochs between two checkpoints; None for checkpoints only when the job is pre-empted.

    """

    def __init__(
        self,
        trial: Trial | RankedTrial,
        monitor: str = "val_loss",
        *,
        report_every: int = 1,
        checkpoint_every: int | None = None,
    ) -> None:
        super().__init__(trial, report_every, checkpoint_every)
        self._monitor, self._pruned = monitor, False

    def _measured(self, measured: Mapping[str, Any]) -> float:
        """The monitored value."""
        if measured.get(self._monitor) is None:
            raise InvalidInput(f"{self._monitor!r} was not measured; the metrics are {', '.join(measured)}")
        return float(measured[self._monitor])


class Preemption(contextlib.ExitStack):
    """A context manager that records SIGTERM instead of letting it end the program.

    It works only in the main thread, because Python requires this, and does nothing in other threads.
    """

    signal: int = 0
    """The received signal, or 0."""

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self.enter_context(handled(TERMINATIONS, self._note))
        return self

    def leave(self) -> NoReturn:
        """Exit because of the signal, so that `optimize` or `with study.trial()` returns the trial, to be run again."""
        raise SystemExit(128 + (self.signal or signal.SIGTERM))

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number


class Training(Reporting):
    """The training loop of one trial. In distributed training every rank creates one with its `RankedTrial`.

    Args:
        trial: from `study.ask()` or `optimize`.
        save: writes the state of the training to a path. Without it there are no checkpoints. It is called on every
            rank, and the file of the first rank is kept.
        load: reads such a file back, on every rank.
        report_every: steps between two reports; the last step is always reported.
        checkpoint_every: steps between two checkpoints; None for checkpoints only when the job is pre-empted.
        save_each_rank: whether the file of every rank is kept, so that each rank reads back its own.

    """

    def __init__(
        self,
        trial: Trial | RankedTrial,
        *,
        save: Callable[[Path], Any] | None = None,
        load: Callable[[Path], Any] | None = None,
        report_every: int = 1,
        checkpoint_every: int | None = None,
        save_each_rank: bool = False,
    ) -> None:
        super().__init__(trial, report_every, checkpoint_every)
        if (save is None) != (load is None):
            raise InvalidInput("checkpoints need both save and load")
        self._save, self._load = save, load
        self._ranks = trial.ranks if isinstance(trial, RankedTrial) else Ranks()
        self._how: dict[str, Any] = {"each_rank": True} if save_each_rank and self._ranks.size > 1 else {}
        self._step = self._end = 0

    def steps(self, end: int) -> Iterator[int]:
        """The remaining steps of 0, 1, …, end - 1.

        After SIGTERM, the current step is finished, a checkpoint is saved, and SystemExit returns the trial. With
        several ranks, the first rank must get the signal.
        """
        found = None if self._load is None else self._trial.resume
        first, self._end = 0, end
        if found is not None and self._load is not None:
            self._load(found[1])
            first = found[0] + 1
        with Preemption() as preemption:
            for self._step in range(first, end):
                yield self._step
                leaving = self._ranks.broadcast(f"step {self._step} of training.steps", preemption.signal)
                if leaving or (self._is_due(self._step) and self._step < end - 1):
                    self._checkpoint()
                if leaving:
                    preemption.leave()

    def report(self, value: float) -> None:
        """Report the current step's value, if a report is due. With several ranks, it is the value of the first.

        Raises:
            optuna.TrialPruned: the trial should end; raised on every rank.

        """
        if self._judged(value, self._step, last=self._step == self._end - 1):
            if self._trial.at_rung:
                self._checkpoint()
            raise optuna.TrialPruned

    def _checkpoint(self) -> None:
        if self._save is not None:
            keep(self._trial, self._save, self._step, **self._how)
