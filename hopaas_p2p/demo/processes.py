"""Starts the demo's peers, kills one of them while it runs a trial, and ends them all with the demo."""

from __future__ import annotations

import contextlib
import os
import signal
import string
import subprocess
import sys
from pathlib import Path
from typing import Final, NamedTuple

from hopaas_p2p.core.state import State, Trial
from hopaas_p2p.errors import HopaasError
from hopaas_p2p.runtime import credentials
from hopaas_p2p.runtime.atomic import open_regular
from hopaas_p2p.study import Study

_SHUTDOWN_TIMEOUT: Final = 5.0  # seconds that a peer has to release its trial when the demo ends early
_THREAD_COUNTS: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
"""Variables set to 1. The peers share the cores, and would slow each other down if each had one thread per core."""


class KilledPeer(NamedTuple):
    """A peer that was killed, and the trial that it ran at that moment according to the log.

    `epoch` is the last epoch that it reported.
    """

    name: str
    pid: int
    number: int
    epoch: int


class PeerProcesses:
    """The peers of one demo, as a context manager. When its block is left, all peers have ended."""

    def __init__(self, study: Study, *, store: str, folder: Path) -> None:
        self._study, self._store, self._folder = study, store, folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.killed: KilledPeer | None = None

    def __enter__(self) -> PeerProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        """End all peers. SIGTERM lets a peer release its trial; a peer that does not end is killed."""
        running = [popen for popen in self._processes.values() if popen.poll() is None]
        for popen in running:
            popen.terminate()
        for popen in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                popen.wait(_SHUTDOWN_TIMEOUT)
        for popen in running:
            popen.kill()  # no effect if it has ended
            popen.wait()

    def start(self, peers: int) -> None:
        """Start that many peers, named A, B, C, …"""
        inherited = credentials.environment(store=self._store)
        one_thread = dict.fromkeys(_THREAD_COUNTS, "1")
        for seed, name in enumerate(string.ascii_uppercase[:peers], start=1):
            environment = {**inherited, **one_thread, "HOPAAS_STORE": self._store, "HOPAAS_SITE": f"peer {name}"}
            command = [sys.executable, "-P", "-m", "hopaas_p2p.demo.peer", self._study.name, str(seed)]
            log = open_regular(self._log(name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            with open(log, "wb") as file:  # noqa: PTH123
                self._processes[name] = subprocess.Popen(
                    command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
                )

    def _log(self, name: str) -> Path:
        return self._folder / f"peer-{name}.log"

    def statuses(self) -> list[tuple[str, int, str]]:
        """(name, pid, status) of every peer."""
        killed = "" if self.killed is None else self.killed.name
        return [
            (name, popen.pid, "killed" if name == killed else "running" if popen.poll() is None else "done")
            for name, popen in self._processes.items()
        ]

    def any_running(self) -> bool:
        """Whether any peer is still running.

        Raises:
            HopaasError: a peer ended with an error by itself.

        """
        for name, _, status in self.statuses():
            code = self._processes[name].poll()
            if code and status != "killed":
                path = self._log(name)
                last = path.read_text(errors="replace").strip().splitlines()[-1:] or ["it printed nothing"]
                raise HopaasError(f"peer {name} ended with exit code {code}: {last[0]} (whole output: {path})")
        return any(popen.returncode is None for popen in self._processes.values())

    def kill_one(self, state: State, *, epochs: int) -> KilledPeer | None:
        """Kill a peer that is in the middle of a trial of this many epochs; None if there is none.

        The trial that the log shows could end before a signal arrives. So the peer is first stopped (SIGSTOP), then the
        log is read again, and the peer is killed only if it still runs that trial.
        """
        for name, popen in self._processes.items():
            trial = _trial_of(popen.pid, state)
            if trial is None or not epochs // 10 <= len(trial.reports) <= epochs * 2 // 3:
                continue
            popen.send_signal(signal.SIGSTOP)
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, popen.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            now = _trial_of(popen.pid, self._study.state)
            if now is not None and now.number == trial.number and popen.poll() is None:
                popen.kill()
                popen.wait()
                self.killed = KilledPeer(name, popen.pid, now.number, len(now.reports))
                return self.killed
            popen.send_signal(signal.SIGCONT)
        return None


def _trial_of(pid: int, state: State) -> Trial | None:
    """The trial that this process runs, or None."""
    for number in state.running:
        trial = state.trials[number]
        if state.peers.get(trial.owner or "", {}).get("pid") == str(pid):
            return trial
    return None
