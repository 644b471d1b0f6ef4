"""One trial as a command: started, attended to while it runs, ended as it told or as the batch system wants it."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from hopaas_p2p.core.records import TrialState
from hopaas_p2p.errors import HopaasError, InvalidInput, LeaseLost, StoreUnreachable
from hopaas_p2p.trial import as_values
from hopaas_p2p.worker.child import Child, fill_in, signal_name, text_of
from hopaas_p2p.worker.desk import Desk

if TYPE_CHECKING:
    from hopaas_p2p.study import Study
    from hopaas_p2p.trial import Trial

PRUNE: Final = 10
"""Exit code of `hopaas-p2p should-prune`, which a shell script passes on when it ends there."""

LOOK: Final = 0.2  # seconds between looks at what comes from outside
_KILL_AFTER: Final = 5.0  # seconds at most from SIGTERM to SIGKILL, when the grace is over
_OUT_OF_TIME: Final = "out of time"
_NO_VALUE: Final = 'the command told no value: print {"value": 0.5} last, or tell it through HOPAAS_TICKET'


class _Ending(NamedTuple):
    """Why a command has to end before it is ready, and since when it knows."""

    why: str
    since: float
    gives_back: bool
    """Whether its trial is given back; else it is pruned."""


class Running:
    """The side of a worker that runs one trial."""

    study: Study
    command: tuple[str, ...]
    last: str | None
    _grace: float
    _deadline: float | None
    _received: list[int]
    _signals: tuple[int, ...]
    _logs: Path
    _say: Callable[[str], None]

    @property
    def _reserve(self) -> float:
        """Seconds before the limit at which the command is told to save its work: its grace, and some for the store."""
        return self._grace + min(15.0, 1.0 + 0.1 * self._grace)

    def _run(self, trial: Trial) -> None:
        """Run one trial to its end, whatever that is."""
        log = self._logs / f"{trial.number}.log"
        given = " ".join(f"{name}={text_of(value)}" for name, value in trial.params.items())
        self._say(f"trial {trial.number}: {given} · log {log}")
        desk = Desk(self.study, trial)
        try:
            child = Child(
                fill_in(self.command, trial.params, trial.number), self._environment(trial, desk), log.absolute()
            )
        except HopaasError as error:
            desk.close()
            self._give_back(trial, f"never begun: {error}")
            raise
        try:
            end = self._attend(child, desk, trial)
        finally:
            child.close()
            desk.close()
        self._conclude(trial, child, desk, end)
        taken = time.monotonic() - child.began
        self._say(f"trial {trial.number}: {self.last} after {taken:.1f} s")

    @staticmethod
    def _environment(trial: Trial, desk: Desk) -> dict[str, str]:
        found = trial.resume
        env = {
            "HOPAAS_TICKET": desk.ticket,
            "HOPAAS_TRIAL": str(trial.number),
            "HOPAAS_PARAMS": json.dumps(trial.params),
        }
        if found is not None:
            env |= {"HOPAAS_RESUME_STEP": str(found[0]), "HOPAAS_CHECKPOINT": str(found[1])}
        return env

    def _attend(self, child: Child, desk: Desk, trial: Trial) -> _Ending | None:
        """Wait for the command's end and pass on what comes from outside. Why it was made to end, if it was."""
        passed_on = 0
        end: _Ending | None = None
        asked: float | None = None
        killed = 0
        while child.wait(LOOK) is None:
            now = time.monotonic()
            for number in self._received[passed_on:]:
                child.send(number)
                passed_on += 1
                if end is None or not end.gives_back:
                    end = _Ending(f"pre-empted: {signal_name(number)}", now, gives_back=True)
            if end is None and self._deadline is not None and now >= self._deadline - self._reserve:
                end = _Ending(_OUT_OF_TIME, now, gives_back=True)
                child.send(self._signals[0] if self._signals else signal.SIGTERM)
            asked = asked or (now if desk.told is None and self._stop_requested(trial) else None)
            if end is None and asked is not None and now - asked >= self._grace:
                end = _Ending("asked to stop, and did not", now - self._grace, gives_back=False)
            desk.preempted = end is not None and end.gives_back
            if end is not None:
                killed = self._end_by_force(child, end, now, killed)
        return end or self._late_signal(child)

    @staticmethod
    def _stop_requested(trial: Trial) -> bool:
        with contextlib.suppress(StoreUnreachable):
            return trial.stop_requested is not None
        return False

    def _end_by_force(self, child: Child, end: _Ending, now: float, killed: int) -> int:
        """When the grace is over, SIGTERM, and a little later SIGKILL; returns the last one sent."""
        over = now - end.since - self._grace
        due = signal.SIGKILL if over >= min(_KILL_AFTER, self._grace) else signal.SIGTERM if over >= 0.0 else 0
        if due != killed:
            child.send(due)
        return due

    def _late_signal(self, child: Child) -> _Ending | None:
        """A batch system signals all processes of a job: the command may die of what this process is yet to get."""
        code = child.poll() or 0
        number = -code if code < 0 else code - 128
        if number in self._signals:
            deadline = time.monotonic() + 1.0
            while not self._received and time.monotonic() < deadline:
                time.sleep(0.02)
        if not self._received:
            return None
        return _Ending(f"pre-empted: {signal_name(self._received[0])}", time.monotonic(), gives_back=True)

    def _conclude(self, trial: Trial, child: Child, desk: Desk, end: _Ending | None) -> None:
        """Tell how the trial ended, unless the command did that itself."""
        code = child.poll() or 0
        printed = child.printed if code == 0 else None
        if desk.told is not None:
            self.last = desk.told.upper()
        elif printed is not None:
            self._tell_printed(trial, printed)
        elif end is not None and end.gives_back:
            self._give_back_or_fail(trial, end.why)
        elif desk.released is not None:
            self._give_back(trial, desk.released)
        elif end is not None:
            self._tell_stopped(trial, end.why)
        elif desk.pruned is not None and code in (0, PRUNE):
            self._tell(trial, state="pruned")
        elif code == 0:
            self._tell(trial, state="fail", reason=_NO_VALUE)
        else:
            self._tell(trial, state="fail", reason=child.failure(code))

    def _tell_printed(self, trial: Trial, printed: dict[str, object]) -> None:
        result = printed.get("values", printed.get("value"))
        try:
            values = as_values(result, expected=len(self.study.optuna.directions))  # type: ignore[arg-type]
        except InvalidInput as error:
            self._tell(trial, state="fail", reason=str(error))
            return
        self._tell(trial, values, state="complete")

    def _tell_stopped(self, trial: Trial, why: str) -> None:
        if trial.intermediate_values:
            self._tell(trial, state="pruned", reason=why)
        else:
            self._tell(trial, state="fail", reason=f"{why}; it had reported nothing")

    def _tell(
        self, trial: Trial, values: tuple[float, ...] | None = None, *, state: str, reason: str | None = None
    ) -> None:
        try:
            self.study.tell(trial, values, state=state, reason=reason)
        except LeaseLost as lost:
            self._say(str(lost))
            self.last = "LOST"
            return
        self.last = state.upper()
        if reason and state == "fail":
            self._say(f"trial {trial.number} failed: {reason.splitlines()[0]}")

    def _give_back_or_fail(self, trial: Trial, why: str) -> None:
        """Give the trial back, unless it ran out of time again and again without a checkpoint to go on from."""
        state = self.study.state
        known = state.trials[trial.number]
        tries = 1 + sum(tenure.why == _OUT_OF_TIME for tenure in known.history)
        if why == _OUT_OF_TIME and tries >= state.policy.attempts and not known.checkpoints:
            reason = f"did not end within the time limit of its job, {tries} times; it writes no checkpoints"
            self._tell(trial, state="fail", reason=reason)
            return
        self._give_back(trial, why)

    def _give_back(self, trial: Trial, why: str) -> None:
        self.last = TrialState.WAITING.name
        self._say(f"trial {trial.number} is given back: {why}")
        try:
            self.study.storage.release(trial._trial_id, reason=why)
        except StoreUnreachable as error:  # its lease ends by itself, and others take it over
            self._say(f"trial {trial.number} could not be given back now: {error}")
