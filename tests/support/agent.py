"""The first process of a small machine. It runs what the host asks for, and hands back every line as it is said.

The host writes `{"job": 1, "run": "a command of bash"}`, `{"job": 1, "fork": ["words", "for the workers"]}` or
`{"job": 1, "signal": 9}`, a line each, to a virtio port; the answers are `{"job": 1, "line": "..."}` and, at the end,
`{"job": 1, "status": 0}`. Standard library only.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import IO

WORKERS = "/run/workers"
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
}


def _port() -> Path:
    """The only port there is; the kernel makes it a moment after its bus."""
    while not (found := list(Path("/dev").glob("vport*p*"))):
        time.sleep(0.02)
    return found[0]


class Agent:
    def __init__(self) -> None:
        self._port = os.open(_port(), os.O_RDWR)
        self._sending = threading.Lock()
        self._running: dict[int, int] = {}  # job -> process group

    def serve(self) -> None:
        self._send({"ready": True})
        rest = b""
        while data := os.read(self._port, 65536):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                asked = json.loads(line)
                if "run" in asked:
                    threading.Thread(target=self._run, args=(asked["job"], asked["run"])).start()
                elif "fork" in asked:
                    threading.Thread(target=self._fork, args=(asked["job"], asked["fork"])).start()
                elif asked["job"] in self._running:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(self._running[asked["job"]], asked["signal"])

    def _run(self, job: int, command: str) -> None:
        process = subprocess.Popen(
            ["bash", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=ENVIRONMENT,
            cwd="/",
            start_new_session=True,
        )
        assert process.stdout is not None
        self._follow(job, process.pid, process.stdout)
        self._send({"job": job, "status": process.wait()})

    def _fork(self, job: int, words: list[str]) -> None:
        """Ask the process that has imported everything for a child of it: importing takes this machine 5 to 15 s."""
        with socket.socket(socket.AF_UNIX) as server:
            server.connect(WORKERS)
            mine, theirs = os.pipe()
            socket.send_fds(server, [json.dumps(words).encode()], [theirs])
            os.close(theirs)
            answers = server.makefile("r")
            pid = int(answers.readline())
            with os.fdopen(mine, errors="replace") as output:
                self._follow(job, pid, output)
            self._send({"job": job, "status": int(answers.readline())})

    def _follow(self, job: int, group: int, output: IO[str]) -> None:
        self._running[job] = group
        for line in output:
            self._send({"job": job, "line": line.rstrip("\n")})
        del self._running[job]

    def _send(self, message: object) -> None:
        data = json.dumps(message).encode() + b"\n"
        with self._sending:
            while data:
                data = data[os.write(self._port, data) :]


if __name__ == "__main__":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    Agent().serve()
