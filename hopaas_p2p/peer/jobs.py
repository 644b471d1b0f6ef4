"""The threads that talk to a store, so that no caller blocks in a call that a dead server never answers.

A job is a recurring task, such as the exchanges of one log, or the heartbeats. It runs when it is due, in one thread at
a time; a slow job does not delay others. A caller that needs an answer wakes the job and waits for it, and a signal can
interrupt that wait at any moment.

Threads are started when a job is due, at most eight. A thread that finds nothing to do for a while ends.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from hopaas_p2p.errors import HopaasError
from hopaas_p2p.runtime.logs import LOG

_MOST: Final = 8  # threads
AFTER_TROUBLE: Final = 5.0  # seconds until a job that failed runs again
_NOTHING_DUE: Final = 10.0  # seconds without anything to do after which a thread ends
_SPARE: Final = 1.0  # the same for a thread while another one is idle

P = TypeVar("P")


class Job(Generic[P]):
    """A recurring task. `run` takes the owner of the jobs, and returns the seconds until the job is due again."""

    __slots__ = ("due", "run", "running")

    def __init__(self, run: Callable[[P], float]) -> None:
        self.run = run
        self.due = math.inf
        """When the job runs next, on this machine's monotonic clock; infinite while it runs, unless it is woken."""
        self.running = False


_LOG_AGAIN: Final = 60.0
"""Seconds until the same error of a job is logged again."""


class Jobs(Generic[P]):
    """The jobs of one owner. Methods may be called from any thread.

    Args:
        owner: passed to each job. The threads hold a reference to it only while they run a job, and end when it is
            collected.
        allowed: whether threads may be used. If not, callers do what they need, and nothing else runs.

    """

    def __init__(self, owner: P, *, allowed: bool) -> None:
        self.allowed = allowed
        self._owner = weakref.ref(owner)
        self._jobs: list[Job[P]] = []
        self._changed = threading.Condition(threading.Lock())
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._logged = "", 0.0
        """The error that was logged last, and when."""

    def add(self, run: Callable[[P], float]) -> Job[P]:
        """Add a job. It does not run until it is woken."""
        job = Job(run)
        with self._changed:
            self._jobs.append(job)
        return job

    def remove(self, job: Job[P]) -> None:
        """Do not start this job any more; if it is running, it ends by itself."""
        with self._changed:
            self._jobs.remove(job)

    def wake(self, job: Job[P], *, after: float = 0.0) -> bool:
        """Make the job run within `after` seconds. Returns False if no thread can run it."""
        due = time.monotonic() + after
        if self.allowed and (after == 0.0 or due < job.due):
            with self._changed:
                job.due = min(job.due, due)
                if not job.running:  # otherwise its thread checks when the job is done
                    self._rouse()
        return self.allowed

    def _rouse(self) -> None:
        """Let a thread check what is due. If no thread can be started, callers do everything from now on."""
        if self._idle:
            self._changed.notify()
            return
        self._threads = [one for one in self._threads if one.is_alive()]
        if len(self._threads) < _MOST:
            thread = threading.Thread(target=self._work, name="hopaas-store", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no thread is left, or the interpreter is about to end
                self.allowed = bool(self._threads)
            else:
                self._threads.append(thread)

    def _work(self) -> None:
        job, pause = None, 0.0
        while (job := self._next(job, pause)) is not None:
            owner = self._owner()
            if owner is None:
                return
            pause = AFTER_TROUBLE  # an error must not end the thread, since leases depend on it
            try:
                pause = job.run(owner)
            except HopaasError as error:
                text, now = str(error), time.monotonic()
                if text != self._logged[0] or now > self._logged[1] + _LOG_AGAIN:  # several jobs meet the same error
                    self._logged = text, now
                    LOG.warning("%s", text)
            except BaseException:  # noqa: BLE001  # any error is logged
                LOG.exception("a background job failed, and will run again")
            del owner

    def _next(self, done: Job[P] | None, pause: float) -> Job[P] | None:
        """Record when the finished job is due again, and wait for the next one; None if this thread should end."""
        with self._changed:
            if done is not None:
                done.running, done.due = False, min(done.due, time.monotonic() + pause)
            while self.allowed:
                now, idle = time.monotonic(), [job for job in self._jobs if not job.running]
                due = sorted([job for job in idle if job.due <= now], key=lambda job: job.due)
                if due:
                    due[0].running, due[0].due = True, math.inf
                    if len(due) > 1:
                        self._rouse()
                    return due[0]
                pause = min([job.due for job in idle], default=math.inf) - now
                longest = _SPARE if self._idle else pause if pause < math.inf else _NOTHING_DUE
                self._idle += 1
                roused = self._changed.wait(min(pause, longest))
                self._idle -= 1
                if not roused and longest < pause and (self._idle or pause == math.inf):
                    self._changed.notify()  # a thread that still waits may not know yet what has become due since
                    return None
        return None

    def stop(self, *, within: float) -> None:
        """Start no more jobs; wait up to `within` seconds for those that are running."""
        self.allowed = False
        with self._changed:
            self._changed.notify_all()
            threads = self._threads.copy()
        over = time.monotonic() + within
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(timeout=max(0.0, over - time.monotonic()))
