"""The child's side of `hopaas-p2p worker`: standard library only, made to be copied into a project.

The protocol, for other languages: connect to the Unix socket that HOPAAS_TICKET names, write one JSON object a line,
read one JSON object a line. {"do": "report", "value": 0.3, "step": 4} gives {"ok": true, "prune": false, …}.
"""

import json
import os
import socket
import weakref
from typing import Any


class Trial:
    """The trial that this process was started for. `trial.params` has its parameters."""

    def __init__(self) -> None:
        self.params: dict[str, Any] = json.loads(os.environ["HOPAAS_PARAMS"])
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(os.environ["HOPAAS_TICKET"].removeprefix("unix:"))
        self._replies = self._socket.makefile("r", encoding="utf-8")
        for file in (self._socket, self._replies):
            weakref.finalize(self, file.close)

    def ask(self, do: str, **said: Any) -> dict[str, Any]:
        """One request: report, log, should-prune, tell, checkpoint, renew or release. Gives the reply.

        Raises:
            RuntimeError: the worker refused it, for the reason given, or has ended.

        """
        self._socket.sendall(json.dumps({"do": do, **said}, default=float).encode() + b"\n")  # numpy's numbers, too
        reply: dict[str, Any] = json.loads(self._replies.readline() or '{"ok": false, "error": "the worker is gone"}')
        if not reply["ok"]:
            raise RuntimeError(reply["error"])
        return reply

    def report(self, value: float, step: int) -> bool:
        """Report an intermediate value. True: end now, by `tell(state="pruned")` or simply by leaving."""
        return bool(self.ask("report", value=value, step=step)["prune"])

    def log(self, step: int, /, **metrics: float) -> None:
        """Keep numbers of this step beside the report: they are shown and exported, and decide nothing."""
        self.ask("log", step=step, metrics=metrics)

    def tell(self, *values: float, state: str | None = None, reason: str | None = None) -> None:
        """The result, or state="pruned" or "fail". It is safe when this returns."""
        self.ask("tell", values=values, state=state, reason=reason)

    def checkpoint(self, path: str | os.PathLike[str], step: int) -> None:
        """Keep this file for the process that continues the trial; it finds it in HOPAAS_CHECKPOINT."""
        self.ask("checkpoint", path=os.path.abspath(path), step=step)  # noqa: PTH100
