"""`optimize(on=executor)`, where each worker of an executor is a separate peer, watched over by this process.

An executor is anything whose `submit(function, *args)` gives a future with `done`, `exception`, `result` and `cancel`:
concurrent.futures, submitit, dask.distributed, parsl. A worker that cannot be cancelled before it begins finds that the
study is over, and ends. The executor carries only one call per worker and its answer: trials, reports and results go
through the study's log, like those of every peer.

This process runs no trial. It reads the log, shows how each trial ended, replaces lost workers, and reclaims a lost
worker's trial at once. The worker's future shows that it has ended, so nobody has to wait for its lease to expire. When
this process is interrupted, it releases the trials of all workers, and asks them to take no more.

One lost process breaks a ProcessPoolExecutor. Give `on=` a function that creates one, and it is created again.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from hopaas_p2p.analysis.facts import trial_word
from hopaas_p2p.core.admission import next_start
from hopaas_p2p.core.records import PeerDrain, TrialReclaim, TrialRelease
from hopaas_p2p.core.records import TrialState as LoggedState
from hopaas_p2p.core.state import State, Trial
from hopaas_p2p.errors import (
    ConfigurationError,
    Denied,
    HopaasError,
    InvalidInput,
    NothingSucceeded,
    StoreUnreachable,
    StudyDeleted,
    WorkersLost,
)
from hopaas_p2p.runtime.arguments import shown, whole
from hopaas_p2p.runtime.interrupts import INTERRUPTIONS, describe, interruptions
from hopaas_p2p.runtime.logs import LOG
from hopaas_p2p.runtime.process import new_uuid
from hopaas_p2p.runtime.settings import variable
from hopaas_p2p.storage.options import StorageOptions, open_peer
from hopaas_p2p.storage.storage import Storage
from hopaas_p2p.study.progress import ProgressLog

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from hopaas_p2p.peer.session import LogClient
    from hopaas_p2p.study.trial import Objective
    from hopaas_p2p.study_like import StudyLike

_LOOK: Final = 0.25  # seconds between checks of futures and log
_LOSSES: Final = 5  # workers lost in a row, beyond their number, without an ended trial in between
_CREW, _WORKER = "crew", "worker"
"""Keys of a worker's introduction: the call of `optimize` to which it belongs, and its number there."""
_NUMBER: Final = re.compile(r"[0-9]{1,9}")
_PASSED_ON: Final = ("token_file", "token_host", "ca_file", "proxy_file", "joined", "artifacts")


class WorkOrder(NamedTuple):
    """A worker's instructions."""

    open_study: Callable[..., Any]
    options: StorageOptions
    study: str
    uuid: str
    objective: Objective
    own: tuple[optuna.samplers.BaseSampler | None, optuna.pruners.BasePruner | None]
    """The sampler and pruner; None for the study's."""
    catch: tuple[type[Exception], ...]


def take_part(
    order: WorkOrder, about: dict[str, str], n_trials: int | None, timeout: float | None, env: dict[str, str]
) -> BaseException | None:
    """Run trials as a separate peer, in a worker of an executor, until the study has no more for it.

    Returns the objective's error if one ended the worker, or NothingSucceeded if it gave up. Any other HopaasError is
    raised.
    """
    for name, value in env.items():
        os.environ.setdefault(name, value)
    sampler, pruner = order.own
    if sampler is not None:
        sampler.reseed_rng()  # all workers received the same sampler
    study = order.open_study(
        Storage(order.options, open_peer(order.options)), order.study, sampler=sampler, pruner=pruner, create=False
    )
    try:
        if study.handle.uuid != order.uuid:  # the executor started this worker late
            raise StudyDeleted
        study._be_worker(about)
        study.optimize(order.objective, n_trials, timeout, catch=order.catch)
    except NothingSucceeded as error:
        return error
    except HopaasError:
        raise
    except Exception as error:  # noqa: BLE001  # the objective's; a HopaasError is the worker's own
        try:
            pickle.loads(pickle.dumps(error))  # noqa: S301  # its bytes were made here, just now
        except Exception:  # noqa: BLE001  # a class of the user's code may raise anything
            return HopaasError(describe(error))
        return error
    finally:
        study.close()
    return None


class WatchedWorkers:
    """One call of `optimize(on=…)`. Used by one thread."""

    def __init__(
        self,
        study: StudyLike,
        order: WorkOrder,
        on: Any,
        workers: int | None,
        n_trials: int | None,
        timeout: float | None,
    ) -> None:
        if study.storage.url.startswith("memory:"):
            raise InvalidInput(
                f"{study.storage.url} exists in this process only; give the workers a directory or a URL"
            )
        self._study, self._order = study, order
        self._make: Callable[[], Any] | None = None if hasattr(on, "submit") and not isinstance(on, type) else on
        if self._make is not None and not callable(on):
            raise InvalidInput(f"on= needs an executor, which has `submit`, or a function that creates one; got {on!r}")
        self._executor = on if self._make is None else on()
        if not hasattr(self._executor, "submit"):
            raise InvalidInput(f"the function in on= must create an executor, but returned {shown(self._executor)}")
        self._wanted = _size(self._executor) if workers is None else whole("workers", workers)
        self._n_trials = None if n_trials is None else whole("n_trials", n_trials)
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._crew = new_uuid()
        self._numbers = 0
        self._futures: dict[int, Any] = {}
        self._shares: dict[int, int | None] = {}
        self._ended: Counter[int] = Counter()
        """Trials that each worker has ended."""
        self._losses = 0
        self._gave_up: NothingSucceeded | None = None
        """The error of the last worker whose trials all failed; the others continue, since its node may be at fault."""
        self._succeeded = False
        """Whether any trial of these workers has ended without failing."""
        self._lost: set[int] = set()
        """Workers that were lost, and whose trials may still be running in the log."""
        self._changed = self._study.handle.log.session.cursor()
        self._shown: set[int] = set()
        if isinstance(self._executor, ProcessPoolExecutor):
            _check_travels(order.objective)

    def run(self, callbacks: Sequence[Callable[[FrozenTrial], object]], *, quiet: bool) -> None:
        """Run to the end; raise what the objective raised, or what interrupted this process, or WorkersLost."""
        with ProgressLog(self._study.name, self._study.handle, quiet=quiet) as progress:
            try:
                count = min(self._wanted, self._n_trials or self._wanted)
                for one in range(count):
                    self._send(None if self._n_trials is None else (self._n_trials + one) // count)
                while self._futures:
                    time.sleep(_LOOK)
                    over = [(number, future) for number, future in self._futures.items() if future.done()]
                    if over:  # their last results are in the log, perhaps not yet in this replica
                        self._read_log(within=_LOOK)
                    self._look(progress, callbacks)
                    for number, future in over:
                        del self._futures[number]
                        self._conclude(number, future)
                    self._reclaim_lost()
                    self._drop_needless()
                self._read_log(within=None)
                self._look(progress, callbacks)
                progress.stopped("all workers are done")
            except BaseException as error:
                self._give_back(error)
                raise
            finally:
                if self._make is not None:
                    self._executor.shutdown(wait=False, cancel_futures=True)
        if self._gave_up is not None and not self._succeeded:
            raise self._gave_up

    # --- sending workers ---

    def _send(self, share: int | None) -> None:
        """Start a worker for this many trials, on another executor if this one is broken and can be created again."""
        number, self._numbers = self._numbers, self._numbers + 1
        self._shares[number] = share
        left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        env = {variable(name): os.environ[variable(name)] for name in _PASSED_ON if os.environ.get(variable(name))}
        given = self._order, {_CREW: self._crew, _WORKER: str(number)}, share, left, env
        options = {"pure": False} if type(self._executor).__module__.partition(".")[0] == "distributed" else {}
        try:
            future = self._executor.submit(take_part, *given, **options)
        except BrokenExecutor as broken:
            if self._make is None:
                raise WorkersLost(
                    "a worker was lost, and with it the executor, which cannot start another. Give a function that "
                    "creates one: optimize(…, on=lambda: ProcessPoolExecutor(4))"
                ) from broken
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = self._make()
            future = self._executor.submit(take_part, *given)
        except RuntimeError as error:  # it was shut down
            raise WorkersLost(f"the executor takes no more workers: {error}") from error
        if isinstance(self._executor, ProcessPoolExecutor):
            # it watches only the processes that it had when it last woke up, and `submit` wakes it before it starts one
            with contextlib.suppress(AttributeError, OSError), self._executor._shutdown_lock:
                self._executor._executor_manager_thread_wakeup.wakeup()
        self._futures[number] = future

    # --- what happens to them ---

    def _conclude(self, number: int, future: Any) -> None:
        """Handle the end of a worker: it finished, its objective raised, or it was lost and is replaced."""
        error = _error_of(future)
        if error is None:
            raised: BaseException | None = future.result()
            if isinstance(raised, NothingSucceeded):
                self._gave_up = raised
            elif raised is not None:
                raise raised
            return
        if isinstance(error, Denied | ConfigurationError | InvalidInput):  # another worker would fare no better
            raise error
        self._lost.add(number)
        self._reclaim_lost()
        self._losses += 1
        if self._losses > self._wanted + _LOSSES:
            raise WorkersLost(
                f"{self._losses} workers were lost in a row without finishing a trial; the last one: "
                f"{type(error).__name__}: {error}. Try the objective in this process first, without on="
            ) from error
        share = self._shares[number]
        if share is not None:
            share = max(0, share - self._ended[number])  # a late result is an extra trial
        more = "" if share == 0 else "; another one is started"
        LOG.warning("worker %d was lost (%s)%s", number, str(error).strip().split("\n")[0] or error, more)
        if share != 0:
            self._send(share)

    def _reclaim_lost(self) -> None:
        """Reclaim the trials of lost workers, after reading the log, which may have trials not known here yet."""
        if self._lost and self._read_log(within=_LOOK):
            with _warned():
                for trial in self._running():
                    if self._worker_of(trial) in self._lost:
                        self._write(TrialReclaim(trial.number, trial.epoch, "its worker was lost"))
                self._lost.clear()

    def _read_log(self, *, within: float | None) -> bool:
        """Read the log to its end; return whether the store answered within `within` seconds, or else `patience`."""
        with _warned():
            self._study.storage.peer.catch_up(self._log, within=within)
            return True
        return False

    def _cancel(self) -> None:
        """Cancel the workers that have not begun, if the executor can."""
        for future in self._futures.values():
            with contextlib.suppress(NotImplementedError):  # parsl's cannot be cancelled
                future.cancel()

    def _drop_needless(self) -> None:
        """When the study is over, cancel the workers that have not begun, and stop waiting for them."""
        if next_start(self._study.state).why is not None and not self._study.state.running:
            self._cancel()
            for number, future in list(self._futures.items()):
                if getattr(future, "cancelled", lambda: True)():  # so it never began
                    del self._futures[number]

    def _look(self, progress: ProgressLog, callbacks: Sequence[Callable[[FrozenTrial], object]]) -> None:
        """Log the trials of these workers that have ended since the last call, and pass them to the callbacks."""
        with _warned():
            self._study.handle.refresh()
        state = self._log.state
        with self._log.lock:  # another thread may be reading the log
            numbers = sorted(self._changed - self._shown)
            self._changed.clear()
        for number in numbers:
            if number >= len(state.trials):
                continue
            trial = state.trials[number]
            worker = self._worker_of(trial)
            if trial.end is None or worker is None:
                continue
            self._shown.add(number)
            if not (trial.history and trial.history[-1].end == trial.end):  # ended by its worker, not lost with it
                self._losses = 0
            self._ended[worker] += 1
            self._succeeded = self._succeeded or trial.state is not LoggedState.FAIL
            progress.ended(number, trial_word(trial), trial.values, trial.reason)
            for callback in callbacks:
                callback(self._study.handle.trial(number))

    def _worker_of(self, trial: Trial) -> int | None:
        """Which of these workers runs the trial, or ran it last; None for another peer's trial."""
        info = self._log.state.peers.get(trial.owner or "", {})
        number = info.get(_WORKER, "") if info.get(_CREW) == self._crew else ""
        return int(number) if _NUMBER.fullmatch(number) else None  # any peer may have made such an introduction

    def _running(self) -> list[Trial]:
        state: State = self._study.state
        found = [state.trials[number] for number in state.running]
        return [trial for trial in found if self._worker_of(trial) is not None]

    # --- an early end ---

    def _give_back(self, error: BaseException) -> None:
        """Ask all workers, including later ones, to take no more trials. If interrupted, also release their trials."""
        self._cancel()
        why = f"interrupted: {type(error).__name__}"
        try:
            with self._study.storage.peer.in_a_hurry():
                self._study.storage.peer.catch_up(self._log)
                running = self._running()
                self._study.handle.say(PeerDrain(peer=self._crew))
                if isinstance(error, interruptions()):
                    for trial in running:
                        self._write(TrialRelease(trial.number, trial.epoch, reason=why), owner=trial.owner)
        except HopaasError as trouble:
            LOG.warning(
                "the workers could not be told to stop, and will start more trials (%s). End their jobs, or run "
                "`hopaas-p2p peers drain PEER --study %s` for each peer in `hopaas-p2p peers list`",
                *(trouble, shlex.quote(self._study.name)),
            )

    def _write(self, record: TrialReclaim | TrialRelease, *, owner: str | None = None) -> None:
        """Write this record about a trial. If it is refused, the trial has ended meanwhile."""
        _ = self._study.storage.peer.commit(self._log, record, owner=owner)

    @property
    def _log(self) -> LogClient[State]:
        return self._study.handle.log


@contextlib.contextmanager
def _warned() -> Iterator[None]:
    """End this block with a warning, without an error, if the store does not answer."""
    try:
        yield
    except StoreUnreachable as error:
        LOG.warning("%s", error)


def _size(executor: Any) -> int:
    """How many workers an executor reports."""
    if isinstance(getattr(executor, "_max_workers", None), int):  # of concurrent.futures
        return int(executor._max_workers)
    if callable(getattr(executor, "nthreads", None)):  # a client of dask.distributed
        return sum(executor.nthreads().values()) or 1
    raise InvalidInput("give the number of workers: optimize(…, on=executor, workers=20)")


def _error_of(future: Any) -> BaseException | None:
    """Why a finished future has no result; None if it has one."""
    try:
        error: BaseException | None = future.exception()
    except BaseException as raised:  # noqa: BLE001  # a cancelled one raises it
        if isinstance(raised, INTERRUPTIONS):
            raise
        return raised
    return error


def _check_travels(objective: Objective) -> None:
    """Raise InvalidInput if this function cannot be sent to a process of concurrent.futures."""
    try:
        pickle.dumps(objective)
    except Exception as error:  # noqa: BLE001  # each kind of object raises a different one
        raise InvalidInput(
            f"the objective cannot be sent to another process: {error}. Define it in a module, not in a function or a "
            "notebook, and not as a lambda"
        ) from None
