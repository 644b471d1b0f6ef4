"""`hopaas-p2p relay` in a process of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.processes import CLI, environment, until


class RelayProcess:
    """A relay on a free port of 127.0.0.1, with its login in a file."""

    def __init__(self, target: str, folder: Path, *, listen: str = "127.0.0.1:0", **env: str) -> None:
        self.file = folder / "relay.login"
        self._log = folder / "relay.log"
        words = [*CLI, "relay", "--listen", listen, "--to", target]
        words += [] if "/" in listen else ["--login-file", str(self.file)]
        self._words, self._env = words, env
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> RelayProcess:
        begun = self.log().count("Relay listening")
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._words, stdout=log, stderr=log, env=environment(**self._env))
        until(lambda: self.log().count("Relay listening") > begun or self._died(), 60, what=self.log)
        return self

    def _died(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"the relay ended with {self.process.returncode}: {self.log()}")
        return False

    @property
    def proxy(self) -> str:
        """What goes into HTTPS_PROXY."""
        return self.file.read_text().strip()

    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(30)
