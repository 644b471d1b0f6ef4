"""`hopaas-p2p bridge` in a process of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.processes import CLI, environment, until


class BridgeProcess:
    """`hopaas-p2p bridge`, restarted at will."""

    def __init__(self, near: Path | str, far: str, folder: Path, *, pace: float | None = 0.1, **env: str) -> None:
        self._words = [*CLI, "bridge", str(near), far, *(["--pace", str(pace)] if pace else [])]
        self._log = folder / "bridge.log"
        self._env = env
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> BridgeProcess:
        begun = self.log().count("Carrying between")
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._words, stdout=log, stderr=log, env=environment(**self._env))
        until(lambda: self.log().count("Carrying between") > begun, 60, what=self.log)
        return self

    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def kill(self) -> None:
        """SIGKILL, and wait."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(30)
