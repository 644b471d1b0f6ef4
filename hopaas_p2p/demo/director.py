"""Starts the peers, kills one of them while it runs a trial, and sees that none outlives the demo."""

from __future__ import annotations

import contextlib
import os
import signal
import string
import subprocess
import sys
from pathlib import Path
from typing import Final, NamedTuple

from hopaas_p2p.core.state import RUNNING, State, Trial
from hopaas_p2p.errors import HopaasError
from hopaas_p2p.study import Study

_FAREWELL: Final = 5.0  # seconds a peer has to release its trial when the demo is interrupted
_ONE_THREAD: Final = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
}
"""Several peers share the cores; each with as many threads as there are cores would only get in the others' way."""


class DemoFailed(HopaasError):
    """The demo did not end as it should."""


class Kill(NamedTuple):
    """What was done to whom: the trial is the one that the log says the peer ran when it was stopped for good."""

    peer: str
    pid: int
    number: int
    epoch: int


class _Process(NamedTuple):
    name: str
    popen: subprocess.Popen[bytes]
    log: Path


class Director:
    """The processes of one demo. Use as a context manager: all have ended when it is left."""

    def __init__(self, study: Study, *, store: str, folder: Path, seed: int) -> None:
        self._study = study
        self._store = store
        self._folder = folder
        self._seed = seed
        self._processes: list[_Process] = []
        self.killed: Kill | None = None

    def __enter__(self) -> Director:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_all()

    def start(self, peers: int) -> None:
        """Start that many peers, named A, B, C, …"""
        for index in range(peers):
            self._start_one(string.ascii_uppercase[index], self._seed + index)

    def _start_one(self, name: str, seed: int) -> None:
        log = self._folder / f"peer-{name}.log"
        environment = {**os.environ, **_ONE_THREAD, "HOPAAS_STORE": self._store, "HOPAAS_SITE": f"peer {name}"}
        command = [sys.executable, "-m", "hopaas_p2p.demo.peer", self._study.name, str(seed)]
        with log.open("wb") as output:
            popen = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        self._processes.append(_Process(name, popen, log))

    @property
    def names(self) -> dict[int, str]:
        """Pid -> name."""
        return {process.popen.pid: process.name for process in self._processes}

    def statuses(self) -> list[tuple[str, int, str]]:
        """(name, pid, status) of every peer."""
        return [(process.name, process.popen.pid, self._status(process)) for process in self._processes]

    def _status(self, process: _Process) -> str:
        if self.killed is not None and process.popen.pid == self.killed.pid:
            return "killed"
        return "running" if process.popen.poll() is None else "done"

    def running(self) -> bool:
        """Whether any peer is still at work.

        Raises:
            DemoFailed: a peer ended with an error that nobody meant it to have.

        """
        at_work = False
        for process in self._processes:
            code = process.popen.poll()
            if code is None:
                at_work = True
            elif code != 0 and self._status(process) != "killed":
                tail = process.log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
                raise DemoFailed(f"peer {process.name} ended with {code}: {tail[0]} (all of it: {process.log})")
        return at_work

    def kill_one(self, state: State, *, epochs: int) -> Kill | None:
        """Kill a peer that is in the middle of a trial, if there is one; None if not.

        What the log shows may be over by the time the signal arrives. So the peer is first stopped, where it can do
        nothing more, then the log is read again, and only a peer that still runs that trial is killed.
        """
        for process in self._processes:
            trial = self._trial_of(process, state)
            if trial is None or not epochs // 10 <= len(trial.reports) <= epochs * 2 // 3:
                continue
            if not _stop(process.popen.pid):
                continue
            now = self._trial_of(process, self._study.state)
            if now is None or now.number != trial.number:
                os.kill(process.popen.pid, signal.SIGCONT)
                continue
            process.popen.kill()
            process.popen.wait()
            self.killed = Kill(process.name, process.popen.pid, now.number, len(now.reports))
            return self.killed
        return None

    @staticmethod
    def _trial_of(process: _Process, state: State) -> Trial | None:
        pid = str(process.popen.pid)
        for number in state.running:
            trial = state.trials[number]
            if trial.state is RUNNING and state.peers.get(trial.owner or "", {}).get("pid") == pid:
                return trial
        return None

    def _end_all(self) -> None:
        """SIGTERM lets a peer release its trial; who does not listen is killed."""
        for process in self._processes:
            if process.popen.poll() is None:
                process.popen.terminate()
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.popen.wait(_FAREWELL)
        for process in self._processes:
            if process.popen.poll() is None:
                process.popen.kill()
                process.popen.wait()


def _stop(pid: int) -> bool:
    """Stop a child and wait until it stands still; False if it ended before."""
    try:
        os.kill(pid, signal.SIGSTOP)
        result = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    except (ProcessLookupError, ChildProcessError):
        return False
    return result is not None and result.si_code == os.CLD_STOPPED
