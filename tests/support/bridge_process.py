"""`hopaas-p2p bridge` in a process of its own."""

from __future__ import annotations

from pathlib import Path

from tests.support.service_process import ServiceProcess


class BridgeProcess(ServiceProcess):
    """`hopaas-p2p bridge`, restarted at will."""

    begins = "Carrying between"

    def __init__(self, near: Path | str, far: str, folder: Path, *, pace: float | None = 0.1, **env: str) -> None:
        options = ["--pace", str(pace)] if pace else []
        super().__init__("bridge", str(near), far, *options, log=folder / "bridge.log", env=env)
