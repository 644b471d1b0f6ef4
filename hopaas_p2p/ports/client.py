"""The child's side of `hopaas-p2p worker`. It needs only the standard library, and may be copied into a project.

In another language, connect to the Unix socket that HOPAAS_TICKET names after `unix:`, write one JSON object per line,
and read one JSON object per line. {"do": "report", "value": 0.3, "step": 4} gives {"ok": true, "prune": false, …}.
"""

import json
import os
import socket
from typing import Any


def request(path: str, said: dict[str, Any]) -> dict[str, Any]:
    """The reply of the worker at this socket. Raises OSError or ValueError if no worker answers there."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)  # a new connection, because a signal handler may interrupt another request
        connection.sendall(json.dumps(said, default=float).encode() + b"\n")  # numpy's numbers, too
        with connection.makefile("rb") as replies:
            reply = json.loads(replies.readline(1 << 20) or b'{"ok": false, "error": "the worker is gone"}')
    if not isinstance(reply, dict):
        raise OSError("the worker's reply is not a JSON object")
    return reply


class Trial:
    """The trial that this process was started for. `trial.params` has its parameters."""

    def __init__(self) -> None:
        if "HOPAAS_PARAMS" not in os.environ:
            raise RuntimeError("this program runs no trial; start it with: hopaas-p2p worker -- python train.py")
        self.params: dict[str, Any] = json.loads(os.environ["HOPAAS_PARAMS"])
        self._path = os.environ["HOPAAS_TICKET"].removeprefix("unix:")

    def ask(self, do: str, **said: Any) -> dict[str, Any]:
        """Send a request: report, log, should-prune, tell, checkpoint, renew or release. Returns the reply.

        Raises:
            RuntimeError: the worker refused the request, for the reason given, or has ended.

        """
        try:
            reply = request(self._path, {"do": do, **said})
        except (OSError, ValueError):
            raise RuntimeError("the worker is gone") from None
        if not reply.get("ok"):
            raise RuntimeError(reply.get("error"))
        return reply

    def report(self, value: float, step: int) -> bool:
        """Report an intermediate value. If it returns True, end now, by `tell(state="pruned")` or simply by exiting."""
        return bool(self.ask("report", value=value, step=step)["prune"])

    def log(self, step: int, /, **metrics: float) -> None:
        """Log further metrics of this step, which are shown and exported, but do not affect pruning."""
        self.ask("log", step=step, metrics=metrics)

    def tell(self, *values: float, state: str | None = None, reason: str | None = None) -> None:
        """Send the result, or state="pruned" or "fail". It is in the store, or on disk, when this returns."""
        self.ask("tell", values=values, state=state, reason=reason)

    def checkpoint(self, path: str | os.PathLike[str], step: int) -> None:
        """Store this file for the process that continues the trial, which finds its path in HOPAAS_CHECKPOINT."""
        self.ask("checkpoint", path=os.path.abspath(path), step=step)  # noqa: PTH100
