"""Runs a command for each trial inside a batch job, which may end at any time.

    ask -> start the command -> pass on signals and requests -> tell, or return the trial -> ask

A job that is pre-empted, or that nears its time limit, returns its trial with the last checkpoint; nothing failed, so
no attempt is used up. A trial that would not fit into the rest of the job is not started. The exit code informs the
batch system: 0 the study needs no more work from here, 75 run this job again, 1 too many trials failed, 130 Ctrl-C.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from hopaas_p2p.analysis.facts import best, count, reason_line
from hopaas_p2p.core.admission import finished, next_start
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.spending import configuration_seconds
from hopaas_p2p.errors import (
    ConfigurationError,
    HopaasError,
    InvalidInput,
    LeaseLost,
    NoWork,
    StoreUnreachable,
    explained,
    waits_for,
)
from hopaas_p2p.files import checkpoints
from hopaas_p2p.files.artifacts import OUTPUT
from hopaas_p2p.net.backoff import Backoff
from hopaas_p2p.ports import command as commands
from hopaas_p2p.ports.child import Child, signal_name
from hopaas_p2p.ports.socket import TrialSocketServer
from hopaas_p2p.ports.verbs import PRUNE, TrialVerbs, numbers
from hopaas_p2p.runtime import credentials, metering
from hopaas_p2p.runtime.arguments import shortened, shown
from hopaas_p2p.runtime.atomic import open_regular, scratch
from hopaas_p2p.runtime.interrupts import PREEMPTIONS, handled
from hopaas_p2p.runtime.ownership import own_folder
from hopaas_p2p.spec.space import spec
from hopaas_p2p.study.study import as_values, infer_space

if TYPE_CHECKING:
    from hopaas_p2p.study import Study
    from hopaas_p2p.study.trial import Trial

DONE: Final = 0
FAILED: Final = 1
AGAIN: Final = os.EX_TEMPFAIL
"""75: the batch system should run this job again."""

_ASK_TIMEOUT: Final = 1.0  # seconds; between two attempts the worker checks for signals and the time limit
_MARGIN: Final = 1.25  # a trial may take a quarter longer than the median one
LOOK: Final = 0.2  # seconds between checks for signals and requests
_KILL_AFTER: Final = 5.0  # seconds at most from SIGTERM to SIGKILL, when the grace is over
_OUT_OF_TIME: Final = "out of time"
_QUICK: Final = 10.0  # seconds; a trial that fails sooner is followed by a pause, which doubles from 0.1 s
_LONGEST_BACKOFF: Final = 5.0  # seconds
_MOST_OUTPUTS: Final = 100  # failed trials whose output is kept, as outputs must not fill the store
_LONGEST_LINE: Final = 500  # characters of the parameters in a line for people


def _shown(value: object) -> str:
    """A value for people, with six digits."""
    return f"{value:.6g}" if isinstance(value, float) else shortened(commands.text_of(value))


class _Ending(NamedTuple):
    """Why a command has to end early, and when it was informed."""

    why: str
    since: float
    gives_back: bool
    """Whether its trial is returned; otherwise it is pruned."""


def _interruption(number: int) -> str:
    return f"{'interrupted' if number == signal.SIGINT else 'pre-empted'}: {signal_name(number)}"


def _as_folder(name: str) -> str:
    """A study's name as a folder's name, a different one for each study."""
    plain = re.sub(r"[^\w.-]", "_", name)[:55]  # file systems take 255 bytes, and a character may have four
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:32]}"


class Worker:
    """One process that runs commands as trials, one after another, or several at a time.

    Use it in the main thread, because it handles signals. The outcome of a trial is its state, or WAITING if it was
    returned, LOST if it was taken over, or RUNNING if it could not be returned now.

    Args:
        study: opened, with the sampler and pruner to use; it must have a search space.
        command: the program and its arguments, with `{name}` where a parameter goes.
        max_trials: the maximum number of trials to run.
        parallel: how many trials to run at a time. Each gets its share of the GPUs and cores (`metering.shares`).
        time_limit: seconds from now until this process will be ended.
        grace: seconds that a command has to save its work after a signal, before it is ended.
        logs: directory for the commands' output, one file per trial; it is made private to this user.
        passed: the names of the credentials in the environment that the command gets.
        keep_output: whether the last 64 KiB of a failed command's output go into the store, as a file of its trial.
        stay: wait until the study is finished, to take over the trials of workers that die.
        no_wait: exit when no trial can start now, even if one may later.
        say: called with lines for people.

    Raises:
        InvalidInput: a `{name}` that is not a parameter, or a string that is not allowed in a command; no search space;
            no such program; `logs` is not this user's folder.

    """

    def __init__(
        self,
        study: Study,
        command: Sequence[str],
        *,
        max_trials: int | None = None,
        parallel: int = 1,
        time_limit: float | None = None,
        grace: float = 300.0,
        logs: Path = Path("hopaas-logs"),
        passed: Sequence[str] = (),
        keep_output: bool = True,
        stay: bool = False,
        no_wait: bool = False,
        say: Callable[[str], None] = print,
    ) -> None:
        self.study, self.command = study, tuple(command)
        self._max_trials, self._grace = max_trials, grace
        self._stay, self._no_wait = stay, no_wait
        self._say = say
        self._inherited, withheld = credentials.without_credentials(passed)
        self._shares = metering.shares(parallel, self._inherited)
        self._logs = logs, _as_folder(study.name)
        self._began = time.monotonic()
        self._deadline = None if time_limit is None else self._began + time_limit
        self._reserve = grace + min(15.0, 1.0 + 0.1 * grace)
        """How many seconds before the limit a command is asked to save its work: its grace, plus time for the store."""
        self._received: list[int] = []
        self._backoff = Backoff(0.1, _LONGEST_BACKOFF, jitter=(1.0, 1.0))
        self._next_line_at: dict[str, float] = {}
        self._offered = False
        """Whether the next Ctrl-C ends the commands at once."""
        self.reason = ""
        """Why the worker left, what it waited for last, or how the last trial failed."""
        self._keep_output, self._outputs_kept = keep_output, 0
        self._lock = threading.Lock()
        self._running = 0
        """The number of trials that are running or being requested."""
        self._broken = False
        """Whether a thread had an error, so that the others start no more trials."""
        self.ran: list[tuple[int, str]] = []
        """The number and outcome of each trial."""
        study.storage.peer.store_wait = _ASK_TIMEOUT
        withheld = [name for name in withheld if not name.startswith("HOPAAS_")]  # of no use to the command
        if withheld:
            names = " ".join(f"--pass {name}" for name in withheld)
            self._say(f"the command does not get these credentials unless you add: {names}")
        if not study.space:
            why = infer_space(study)
            if not study.space:
                cure = f"hopaas-p2p study set {shlex.quote(study.name)} --space 'lr=float(1e-5,1e-1,log)'"
                raise InvalidInput(f"the study {study.name!r} has no search space: {why}. To set it: {cure}")
            said = ", ".join(f"{name}={spec(one)}" for name, one in study.space.items())
            self._say(f"the study has no search space; this worker takes it from the trials: {said}")
        commands.check(self.command, study.space)
        program = self.command[0]
        if "{" not in program and shutil.which(program) is None:
            raise InvalidInput(f"there is no program {program!r}; put the command after --, as you would run it here")
        with self._log_folder():
            pass  # refused now rather than at each trial

    def work(self) -> int:
        """Run trials until there is a reason to stop; returns the exit code. Blocks for hours."""

        def note(number: int, _frame: FrameType | None) -> None:
            self._received.append(number)
            if number == signal.SIGINT and self._offered:  # the second one
                self._grace = 0.0
            self.study.storage.peer.hurry_from_now_on()

        codes: list[int] = []
        try:
            with (
                handled((*PREEMPTIONS, signal.SIGINT), note),
                ThreadPoolExecutor(len(self._shares), "hopaas-worker") as pool,  # this thread stays free for signals
            ):
                lanes = [pool.submit(self._run_trials, share, codes) for share in self._shares]
                while wait(lanes, LOOK).not_done:
                    pass  # an unlimited wait might not be interruptible
                for lane in lanes:
                    lane.result()
        except StoreUnreachable as error:
            self._say(f"{str(error).rstrip('.')}. Run this job again later.")
            return AGAIN
        if self.ran and self._max_trials != 1:
            words = {"FAIL": "failed", "WAITING": "returned", "LOST": "taken over"}
            counts = Counter(words.get(state, state.lower()) for _, state in self.ran)
            said = [count(len(self.ran), "trial")]
            said += [f"{many} {word}" for word, many in counts.items()]
            top = best(self.study.state)
            if top is not None and top.values is not None:
                said.append(f"best of the study #{top.number} = {top.values[0]:.6g}")
            self._say(", ".join(said))
        if not self._received:  # this process is not about to be ended
            with contextlib.suppress(HopaasError):  # leftover checkpoints do no harm
                checkpoints.collect(self.study.handle)
        code = codes[-1]  # the last thread to stop saw the latest state
        return FAILED if code == DONE and self._only_failures() else code

    def _run_trials(self, share: metering.Share, codes: list[int]) -> None:
        """Run one trial after another; adds the exit code when there is a reason to stop."""
        try:
            while not isinstance(found := self._next(), int):
                began = time.monotonic()
                state = self._run(found, share)
                with self._lock:
                    self.ran.append((found.number, state))
                    self._running -= 1
                if time.monotonic() - began < _QUICK:
                    self._back_off(state)
            codes.append(found)
        except BaseException:
            self._broken = True
            raise

    def _only_failures(self) -> bool:
        """Whether trials have run here and all failed."""
        return bool(self.ran) and all(state == "FAIL" for _, state in self.ran)

    def _has_its_trials(self) -> bool:
        """Whether `max_trials` trials have run, or are running."""
        return self._max_trials is not None and len(self.ran) + self._running >= self._max_trials

    def _back_off(self, state: str) -> None:
        """Wait after a quick failure, longer after each one in a row."""
        if state != "FAIL":
            self._backoff.reset()
            return
        over = time.monotonic() + self._backoff.pause()
        while not self._received and (left := over - time.monotonic()) > 0:
            time.sleep(min(left, LOOK))

    # --- the next trial ---

    def _next(self) -> Trial | int:
        """The next trial, or the exit code when there is a reason to stop."""
        while True:
            if self._received or self._broken:
                return 130 if signal.SIGINT in self._received else AGAIN
            state = self.study.state
            if len(self.ran) >= state.policy.hopeless_after and self._only_failures():
                last = self.ran[-1][0]
                why = f"{reason_line(state.trials[last].reason or '')} · log {self._log(last)}"
                every = "the only trial" if len(self.ran) == 1 else f"all {len(self.ran)} trials"
                said = f"{every} that ran here failed, so this worker stops. The last one: {why}"
                self._say_each_minute("hopeless", said)
                return FAILED
            # if the study starts no trial, `_leave` chooses the exit code
            if next_start(state).why is None and not self._has_its_trials() and not self._fits():
                return AGAIN
            with self._lock:
                if self._has_its_trials():
                    return DONE
                self._running += 1
            try:
                return self.study.ask()
            except (NoWork, StoreUnreachable) as error:
                with self._lock:
                    self._running -= 1
                if (code := self._leave(error)) is not None:
                    return code
            if self._deadline is not None and time.monotonic() >= self._deadline - self._reserve:
                self._say_each_minute("late", "no trial could start in the remaining time; run this job again")
                return AGAIN
            time.sleep(LOOK if self._received else min(1.0, state.policy.ttl / 8))

    def _say_each_minute(self, topic: str, line: str) -> None:
        with self._lock:  # only one of several threads prints it
            now = time.monotonic()
            self.reason = line
            if now >= self._next_line_at.get(topic, now):
                self._next_line_at[topic] = now + 60.0
                self._say(line)

    def _leave(self, error: NoWork | StoreUnreachable) -> int | None:
        """The exit code; None if this worker waits for its store, or for a trial that may come."""
        if isinstance(error, StoreUnreachable):
            self._say_each_minute("away", f"{str(error).rstrip('.')}. Waiting for the store.")
        elif error.waits and not self._no_wait:
            self._say_each_minute(error.refusal, f"Waiting: {error.reason}. To leave instead: --no-wait")
        elif not (self._stay and error.refusal == "budget" and not finished(self.study.state)):
            self._say_each_minute("no work", str(error))
            return AGAIN if error.waits else FAILED if error.refusal == "failing" else DONE
        return None

    def _fits(self) -> bool:
        """Whether another trial fits into the remaining time.

        A trial is assumed to take the median duration of the complete ones, or else the pruned ones, over all jobs.
        Imported trials do not count, because they ran elsewhere, and anybody who may queue trials can claim any
        duration.

        Raises:
            ConfigurationError: a trial would not even fit into a whole job, and there are no checkpoints.

        """
        if self._deadline is None:
            return True
        state, typical = self.study.state, None
        for wanted in (TrialState.PRUNED, TrialState.COMPLETE):
            leased = (one for one in state.trials if one.state is wanted and one.owner is not None)
            ended = [configuration_seconds(one, state) for one in leased]
            typical = statistics.median(spans) if (spans := [one for one in ended if one is not None]) else typical
        needed = self._reserve + (0.0 if typical is None else typical * _MARGIN)
        left, whole = self._deadline - time.monotonic(), self._deadline - self._began
        if left >= needed:
            return True
        if self._reserve >= whole:
            why = f"this job has {whole:.0f} s, of which {self._reserve:.0f} s are kept for a command to save its work"
            raise ConfigurationError(f"{why}: ask for more time, or use a shorter --grace")
        if typical is not None and needed > whole:
            if any(trial.checkpoints for trial in state.trials):
                return not self.ran and left > self._reserve  # it continues from job to job
            why = f"a trial takes {typical:.0f} s (median), and this job has only {whole:.0f} s"
            raise ConfigurationError(f"{why}: ask for more time, or let the command write checkpoints")
        room = f"{max(left - self._reserve, 0):.0f} s that are left before --grace"
        self._say_each_minute("late", f"no trial fits into the {room}; run this job again")
        return False

    # --- one trial ---

    def _log(self, number: int) -> Path:
        return Path(*self._logs, f"{number}.log")

    @contextlib.contextmanager
    def _log_folder(self) -> Iterator[Path]:
        cure, place = ". Name a directory of your own: --logs", Path(*self._logs)
        with (
            explained(f"the output of trials cannot be written to {place}", cure, kind=InvalidInput),
            waits_for(str(place)),
            own_folder(*self._logs, mode=0o755) as folder,
        ):
            yield folder

    def _run(self, trial: Trial, share: metering.Share) -> str:
        """Run one trial with this share of the devices; returns its outcome."""
        log, handle = self._log(trial.number), self.study.handle
        params = {name: value for name, value in trial.params.items() if name in self.study.space}
        given = shortened(" ".join(f"{name}={_shown(value)}" for name, value in params.items()), _LONGEST_LINE)
        self._say(f"trial {trial.number}: {given} · log {log}")
        began = time.monotonic()
        state = self._execute(trial, params, share)
        with handle.lock:  # from the local replica, without asking the store
            known = handle.state.trials[trial.number]
        values = f" {', '.join(map(_shown, known.values))}" if state == "COMPLETE" and known.values else ""
        why = f": {reason_line(known.reason)}" if state in ("FAIL", "PRUNED") and known.reason else ""
        shown = "PAUSED" if known.paused else state
        line = f"trial {trial.number}: {shown}{values} after {time.monotonic() - began:.1f} s{why}"
        self.reason = line if state == "FAIL" else self.reason
        self._say(line)
        return state

    def _execute(self, trial: Trial, params: dict[str, Any], share: metering.Share) -> str:
        """Run the command of a trial with these parameters; returns the outcome."""
        verbs = TrialVerbs(self.study, trial)
        with contextlib.ExitStack() as stack:
            given, cores = share
            named = {"HOPAAS_TRIAL": str(trial.number), "HOPAAS_SEED": str(trial.seed)}
            env = self._inherited | given | commands.variables(params) | named | {"HOPAAS_PARAMS": json.dumps(params)}
            try:
                words = commands.fill_in(self.command, params, trial.number)
                if trial.resume is not None:
                    step, checkpoint = trial.resume
                    env |= {"HOPAAS_RESUME_STEP": str(step), "HOPAAS_CHECKPOINT": str(checkpoint)}
                with waits_for("this node"):
                    env["HOPAAS_TICKET"] = stack.enter_context(contextlib.closing(TrialSocketServer(verbs))).ticket
                    with self._log_folder() as folder:
                        name = self._log(trial.number).name
                        output_to = open_regular(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                    child = Child(words, env, output_to, cores)
            except commands.DoesNotFit as error:
                return self._tell(trial, None, state="fail", reason=str(error), output=b"")
            except (HopaasError, OSError) as error:  # the latter as on a full disk
                self._give_back(trial, f"never begun: {error}")
                raise
            try:
                end = self._attend(child, verbs)
            finally:
                child.close()
        if end is not None and end.gives_back:  # together with the job, which may soon be killed
            self.study.storage.peer.hurry_from_now_on()
        return self._conclude(verbs, child, end)

    def _attend(self, child: Child, verbs: TrialVerbs) -> _Ending | None:
        """Wait for the command to end, passing on signals. Returns why it was made to end early, if it was."""
        passed_on = killed = 0
        end: _Ending | None = None
        asked: _Ending | None = None  # how a trial that was asked to stop ends after the grace
        while child.wait_for(LOOK) is None:
            now = time.monotonic()
            for number in self._received[passed_on:]:
                child.signal_all(number)
                passed_on += 1
                if end is None or not end.gives_back:
                    end = _Ending(_interruption(number), now, gives_back=True)
                    if number == signal.SIGINT:
                        self._offer()
            if end is None and self._deadline is not None and now >= self._deadline - self._reserve:
                end = _Ending(_OUT_OF_TIME, now, gives_back=True)
                child.signal_all(signal.SIGTERM)
            if end is None and asked is None and verbs.told is None:
                with contextlib.suppress(StoreUnreachable):
                    why = verbs.trial.stop_requested
                    asked = None if why is None else _Ending(f"did not stop when asked: {why}", now, gives_back=False)
            if end is None and asked is not None and now - asked.since >= self._grace:
                end = asked
            verbs.preempted = end is not None and end.gives_back
            if end is not None:  # after the grace, SIGTERM, and a little later SIGKILL
                over = now - end.since - self._grace
                due = signal.SIGKILL if over >= min(_KILL_AFTER, self._grace) else signal.SIGTERM if over >= 0.0 else 0
                if due != killed:
                    child.signal_all(due)
                    killed = due
        # a batch system signals all processes of a job, so the command may die before this process gets the signal
        code, deadline = child.poll() or 0, time.monotonic() + 1.0
        if end is None and (-code if code < 0 else code - 128) in PREEMPTIONS:
            while not self._received and time.monotonic() < deadline:
                time.sleep(0.02)
        if end is None and self._received:
            end = _Ending(_interruption(self._received[0]), time.monotonic(), gives_back=True)
        return end

    def _offer(self) -> None:
        """Say, once, that the next Ctrl-C ends the commands at once."""
        with self._lock:
            offers, self._offered = not self._offered, True
        if offers:
            self._say(f"a command has {self._grace:.0f} s to save its work; Ctrl-C again ends it at once")

    def _conclude(self, verbs: TrialVerbs, child: Child, end: _Ending | None) -> str:
        """Tell the trial's end, unless the command did so itself; returns the outcome."""
        trial, code, values, reason = verbs.trial, child.poll() or 0, None, None
        printed = child.printed if code == 0 else None
        back = verbs.released if end is None or not end.gives_back else end.why
        objectives = len(self.study.directions)
        print_it = f"print {json.dumps({'value': [0.5] * objectives if objectives > 1 else 0.5})} as the last line"
        if verbs.told is not None:
            if verbs.told == "fail":
                self._keep(trial, child.output)
            return verbs.told.upper()
        if printed is not None:
            try:
                values, state = as_values(numbers(printed), expected=objectives), "complete"
            except InvalidInput as error:
                state, reason = "fail", f"{error}: {print_it}" if objectives > 1 else str(error)
        elif back is not None:
            if back != _OUT_OF_TIME:
                return self._give_back(trial, back)
            state, known = "fail", self.study.state.trials[trial.number]
            tries = 1 + sum(tenure.why == _OUT_OF_TIME for tenure in known.history)
            if tries < self.study.state.policy.attempts or known.checkpoints:
                return self._give_back(trial, back)
            reason = f"did not end within the time limit of its job, {tries} times; it writes no checkpoints"
        elif end is not None:
            state = "pruned" if trial.intermediate_values else "fail"
            reason = end.why if state == "pruned" else f"{end.why}; it had reported nothing"
        elif verbs.pruned is not None and code in (0, PRUNE):
            state = "pruned"
        else:
            said = f" but {shown(child.last_line)}" if child.last_line and self._keep_output else ""
            no_value = f"the command gave no value{said}: {print_it}, or call hopaas-p2p trial tell"
            state, reason = "fail", child.failure(code) if code else no_value
        return self._tell(trial, values, state=state, reason=reason, output=child.output)

    def _tell(
        self, trial: Trial, values: Sequence[float] | None, *, state: str, reason: str | None, output: bytes
    ) -> str:
        if state == "fail":
            self._keep(trial, output)
        try:
            self.study.tell(trial, values, state=state, reason=reason)
        except LeaseLost as lost:
            self._say(str(lost))
            return "LOST"
        return state.upper()

    def _keep(self, trial: Trial, output: bytes) -> None:
        """Store the end of a failed command's output, before the trial is told, because it is a file of the trial."""
        full = self._outputs_kept >= _MOST_OUTPUTS
        if not self._keep_output or full or not output.strip() or self.study.storage.peer.away:
            return  # during an outage of the store, the result must not wait for this
        self._outputs_kept += 1
        try:
            with scratch(OUTPUT) as path:
                path.write_bytes(output)
                trial.upload(path, mimetype="text/plain")
        except (HopaasError, OSError) as error:  # the result is told anyway
            self._say(f"the output of trial {trial.number} is only in {self._log(trial.number)}: {error}")

    def _give_back(self, trial: Trial, why: str) -> str:
        self._say(f"trial {trial.number} is returned: {why}")
        try:
            trial.handle.release(trial.number, reason=why)
        except StoreUnreachable as error:  # its lease will expire, and others take it over
            self._say(f"trial {trial.number} could not be returned now; others take it over later: {error}")
            return TrialState.RUNNING.name
        return self.study.state.trials[trial.number].state.name  # PRUNED if it was asked to stop
