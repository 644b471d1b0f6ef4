"""Runs a command for each trial, in a place that may end at any time: a batch job.

    ask -> start the command -> pass on what comes from outside -> tell, or give the trial back -> ask

A job that is pre-empted, or that nears its time limit, gives its trial back with the last checkpoint; nothing failed,
so no attempt is used up. No trial is started that would not fit into what is left of the job. What the batch system
reads is the exit code: 0 the study needs no more from here, 75 run me again.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final

from hopaas_p2p.core.records import TrialState
from hopaas_p2p.errors import ConfigurationError, InvalidInput, NoWork, StoreUnreachable
from hopaas_p2p.worker.child import ending, fill_in
from hopaas_p2p.worker.running import LOOK, Running

if TYPE_CHECKING:
    from hopaas_p2p.study import Study
    from hopaas_p2p.trial import Trial

DONE: Final = 0
FAILED: Final = 1
NO_WORK: Final = 3
AGAIN: Final = os.EX_TEMPFAIL
"""75: the batch system should run this job again."""

_CODES: Final = {"budget": DONE, "stopped": DONE, "draining": DONE, "failing": FAILED, "paused": AGAIN}
_MARGIN: Final = 1.25  # a trial may take a quarter longer than the median one


class Worker(Running):
    """One process that runs commands as trials, one after the other. Call it from the main thread: it takes signals.

    Args:
        study: opened, with the sampler and pruner to use; it must have a search space.
        command: the program and its arguments, with `{name}` where a parameter goes.
        max_trials: how many trials to run at most.
        time_limit: seconds from now until this process will be ended.
        grace: seconds that a command has to save its work after a signal, before it is ended.
        signals: what the batch system sends before it ends a job.
        logs: directory for what the commands print, one file a trial.
        stay: wait until the study is finished, to take over the trials of workers that die.
        say: takes a line for people.

    Raises:
        InvalidInput: a `{name}` that is no parameter, no search space, or no such program.

    """

    def __init__(
        self,
        study: Study,
        command: Sequence[str],
        *,
        max_trials: int | None = None,
        time_limit: float | None = None,
        grace: float = 300.0,
        signals: Sequence[int] = (signal.SIGTERM, signal.SIGUSR1),
        logs: Path = Path("hopaas-logs"),
        stay: bool = False,
        say: Callable[[str], None] = print,
    ) -> None:
        self.study, self.command = study, tuple(command)
        self._max_trials, self._grace, self._signals, self._stay = max_trials, grace, tuple(signals), stay
        self._say = say
        self._logs = logs / re.sub(r"[^\w.-]", "_", study.name)
        self._began = time.monotonic()
        self._deadline = None if time_limit is None else self._began + time_limit
        self._received: list[int] = []
        self.last: str | None = None
        """How the last trial ended: a trial's state, WAITING when it was given back, LOST when it was taken over."""
        self.ran: list[tuple[int, str]] = []
        """The number and `last` of each trial."""
        self._check()

    def _check(self) -> None:
        space = self.study.space
        if not space:
            raise InvalidInput(
                f"the study {self.study.name!r} has no search space, so there is nothing to give to a command. "
                "Say it when the study is created: hopaas-p2p study create NAME --space 'lr=float(1e-5,1e-1,log)'"
            )
        program = fill_in(self.command, dict.fromkeys(space, ""), 0)[0]
        if program == self.command[0] and shutil.which(program) is None:
            raise InvalidInput(f"there is no program {program!r}; after -- comes the command, as you would run it here")

    def work(self) -> int:
        """Run trials until there is a reason to leave; returns the exit code. Blocks for hours."""
        with self._taking_signals():
            try:
                while True:
                    found = self._next()
                    if isinstance(found, int):
                        return found
                    self._run(found)
                    self.ran.append((found.number, self.last or "?"))
            except StoreUnreachable as error:
                self._say(f"{error} Run me again later.")
                return AGAIN

    @contextlib.contextmanager
    def _taking_signals(self) -> Iterator[None]:
        def note(number: int, _frame: FrameType | None) -> None:
            self._received.append(number)

        before = {number: signal.signal(number, note) for number in {*self._signals, signal.SIGINT}}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # --- the next trial ---

    def _next(self) -> Trial | int:
        """The next trial, or the exit code when there is a reason to leave."""
        while True:
            if self._received:
                return self._interrupted_code()
            if self._max_trials is not None and len(self.ran) >= self._max_trials:
                return DONE
            gives_out = self.study.state.closed_because() is None  # else `ask` says whether another job is needed
            if gives_out and not self._fits():
                return AGAIN
            try:
                return self.study.ask()
            except NoWork as none:
                if self._may_leave(none):
                    self._say(str(none))
                    return _CODES.get(none.refusal, DONE)
            if self._deadline is not None and time.monotonic() >= self._deadline - self._reserve:
                self._say("no work came in the time that was left; run me again")
                return AGAIN
            time.sleep(LOOK if self._received else min(1.0, self.study.state.policy.ttl / 8))

    def _interrupted_code(self) -> int:
        return 130 if signal.SIGINT in self._received else AGAIN

    def _may_leave(self, none: NoWork) -> bool:
        if self._stay and none.refusal in ("budget", "paused"):
            return self.study.state.finished()
        return not self.study._may_come_back(none)

    def _fits(self) -> bool:
        """Whether one more trial fits into what is left of the time.

        Raises:
            ConfigurationError: it would not even fit into the whole of it, and no checkpoint lets it go on later.

        """
        if self._deadline is None:
            return True
        typical = self._typical()
        needed = self._reserve if typical is None else typical * _MARGIN + self._reserve
        left = self._deadline - time.monotonic()
        if left >= needed:
            return True
        whole = self._deadline - self._began
        if self._reserve >= whole:
            raise ConfigurationError(
                f"this job has {whole:.0f} s, of which {self._reserve:.0f} s are kept for a command to save its work: "
                "ask for more time, or say a shorter --grace"
            )
        if typical is not None and needed > whole:
            if any(trial.checkpoints for trial in self.study.state.trials):
                return not self.ran and left > self._reserve  # it goes on from job to job
            raise ConfigurationError(
                f"a trial of {self.study.name!r} takes {typical:.0f} s (median), and this job has only {whole:.0f} s: "
                "ask for more time, or let the command write checkpoints"
            )
        self._say(f"no trial fits into the {max(left, 0.0):.0f} s that are left; run me again")
        return False

    def _typical(self) -> float | None:
        """Median duration of the study's trials: of those that are complete, or else pruned."""
        trials = self.study.state.trials
        for wanted in (TrialState.COMPLETE, TrialState.PRUNED):
            spans = [(one.end - one.start) / 1e6 for one in trials if one.state is wanted and one.end and one.start]
            if spans:
                return statistics.median(spans)
        return None

    # --- one trial ---


__all__ = ["AGAIN", "DONE", "FAILED", "NO_WORK", "Worker", "ending"]
