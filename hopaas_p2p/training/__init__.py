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

import contextlib
import logging
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn, Self, SupportsFloat

import optuna

from hopaas_p2p.errors import InvalidInput, LeaseLost, StoreUnreachable
from hopaas_p2p.study.ranks import MpiRanks, RankedTrial, Ranks, ranks
from hopaas_p2p.study.trial import Trial

__all__ = ["MpiRanks", "Preemption", "RankedTrial", "Training", "ranks"]

_log: Final = logging.getLogger("hopaas_p2p")


@contextlib.contextmanager
def scratch(name: str = "checkpoint") -> Iterator[Path]:
    """A path for a checkpoint on its way, in a directory of its own that goes with the block."""
    with tempfile.TemporaryDirectory(prefix="hopaas-checkpoint-") as directory:
        yield Path(directory, name)


def keep(
    trial: Trial | RankedTrial, save: Callable[[Path], Any], step: int, *, name: str = "checkpoint", **how: Any
) -> None:
    """Store what `save` writes, as `how` says.

    Training goes on without it if the store does not answer within `patience`.

    Raises:
        optuna.TrialPruned: another peer runs the trial now.

    """
    with scratch(name) as path:
        save(path)
        try:
            trial.checkpoint(path, step=step, wait=False, **how)
        except LeaseLost:
            trial.prune()
        except StoreUnreachable as error:
            _log.warning("the checkpoint of step %d was not stored: %s", step, error)


class Reporting:
    """When a training reports and keeps checkpoints: after so many steps each, and whenever it has to."""

    _trial: Trial | RankedTrial
    _report_every: int
    _checkpoint_every: int | None

    def _judged(self, value: SupportsFloat, step: int, *, last: bool = False) -> bool:
        """Report this value if that is due; whether to give the trial up. A request to stop is seen at every step."""
        if not last and (step + 1) % self._report_every and self._trial.stop_requested is None:
            return False
        self._trial.report(float(value), step)  # only now: a number of a GPU is waited for
        return self._trial.should_prune()

    def _is_due(self, step: int) -> bool:
        """Whether a checkpoint is due after this step."""
        return self._checkpoint_every is not None and (step + 1) % self._checkpoint_every == 0


class EpochCallback(Reporting):
    """What the callbacks of training libraries share. Give it the trial of `study.ask()` or of `optimize`.

    Args:
        trial: the trial.
        monitor: which of the values that the library measures.
        report_every: epochs between two reports.
        checkpoint_every: epochs between two checkpoints. None: only when the job is pre-empted.

    """

    def __init__(
        self,
        trial: Trial | RankedTrial,
        monitor: str = "val_loss",
        *,
        report_every: int = 1,
        checkpoint_every: int | None = None,
    ) -> None:
        super().__init__()
        self._trial, self._monitor = trial, monitor
        self._report_every, self._checkpoint_every = report_every, checkpoint_every
        self._pruned = False

    def _measured(self, measured: Mapping[str, Any]) -> float:
        """The value that is monitored."""
        if measured.get(self._monitor) is None:
            raise InvalidInput(f"{self._monitor!r} was not measured; measured are {', '.join(measured)}")
        return float(measured[self._monitor])


class Preemption:
    """`with Preemption() as preemption:` notes SIGTERM instead of ending the program.

    In the main thread only, where Python lets a program do that; elsewhere nothing changes.
    """

    signal: int = 0
    """The signal that came, or 0."""
    _before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        """Let SIGTERM do what it did before."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def leave(self) -> NoReturn:
        """End as the signal wants: `optimize` and `with study.trial()` give the trial back, to be run again."""
        raise SystemExit(128 + (self.signal or signal.SIGTERM))

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number


class Training(Reporting):
    """One trial's loop. In distributed training every rank makes one, with the `RankedTrial` that it got.

    Args:
        trial: of `study.ask()` or of `optimize`.
        save: writes the state of the training to a path. Without it there are no checkpoints. Called on every rank; the
            first one's file is kept.
        load: reads it back, on every rank.
        report_every: steps between two reports; the last step is always reported.
        checkpoint_every: steps between two checkpoints. None: only when the job is pre-empted.
        save_each_rank: whether every rank's file is kept, and each reads back its own.

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
        if report_every < 1 or (checkpoint_every is not None and checkpoint_every < 1):
            given = f"got {report_every} and {checkpoint_every}"
            raise InvalidInput(f"report_every and checkpoint_every must be at least 1, {given}")
        if (save is None) != (load is None):
            raise InvalidInput("checkpoints need both save and load")
        self._trial, self._save, self._load = trial, save, load
        self._report_every, self._checkpoint_every = report_every, checkpoint_every
        self._ranks = trial.ranks if isinstance(trial, RankedTrial) else Ranks()
        self._how: dict[str, Any] = {"each_rank": True} if save_each_rank and self._ranks.size > 1 else {}
        self._step = self._end = 0

    def steps(self, end: int) -> Iterator[int]:
        """The steps that are left of 0, 1, …, end - 1.

        After SIGTERM, the present step is finished, a checkpoint is saved, and SystemExit returns the trial. Of several
        ranks, the first has to get the signal.
        """
        found = None if self._load is None else self._trial.resume
        first, self._end = 0, end
        if found is not None and self._load is not None:
            self._load(found[1])
            first = found[0] + 1
        with Preemption() as preemption:
            for self._step in range(first, end):
                yield self._step
                leaving = self._ranks.broadcast(preemption.signal)
                if leaving or (self._is_due(self._step) and self._step < end - 1):
                    self._checkpoint()
                if leaving:
                    preemption.leave()

    def report(self, value: float) -> None:
        """Report the present step's value (the first rank's), where it is due.

        Raises:
            optuna.TrialPruned: the trial is to be given up, on every rank.

        """
        if self._judged(value, self._step, last=self._step == self._end - 1):
            if self._trial.at_rung:
                self._checkpoint()
            raise optuna.TrialPruned

    def _checkpoint(self) -> None:
        if self._save is not None:
            keep(self._trial, self._save, self._step, **self._how)
