"""`hopaas-p2p serve relay` in a process of its own."""

from __future__ import annotations

from pathlib import Path

from tests.support.service_process import ServiceProcess


class RelayProcess(ServiceProcess):
    """A relay on a free port of 127.0.0.1, with its login in a file."""

    begins = "Relay listening"

    def __init__(self, target: str, folder: Path, *, listen: str = "127.0.0.1:0", **env: str) -> None:
        self.file = folder / "relay.login"
        words = ["--listen", listen, "--to", target, "--login-file", str(self.file)]
        super().__init__("serve", "relay", *words, log=folder / "relay.log", env=env)

    @property
    def proxy(self) -> str:
        """What goes into HTTPS_PROXY."""
        return self.file.read_text().strip()
