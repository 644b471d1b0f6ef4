"""A command of ours that serves until it is killed, in a process of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Self

from tests.support.processes import CLI, environment, until


class ServiceProcess:
    """Starts it, and again if need be. Its messages go to a file; `begins` is what it says when it serves."""

    begins: str

    def __init__(self, *words: str, log: Path, env: dict[str, str]) -> None:
        self.words = words
        self._log, self._env = log, env
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        begun = self.log().count(self.begins)
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [*CLI, *self.words], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment(**self._env)
            )
        until(lambda: self.log().count(self.begins) > begun or self._died(), 60, what=self.log)
        return self

    def _died(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"{self.words[0]} ended with {self.process.returncode}: {self.log()}")
        return False

    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def kill(self) -> None:
        """SIGKILL, and wait."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(30)
