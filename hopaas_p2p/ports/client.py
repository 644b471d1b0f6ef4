"""The child's side of `hopaas-p2p worker`: standard library only, made to be copied into a project.

The protocol, for other languages: connect to the Unix socket that HOPAAS_TICKET names, write one JSON object a line,
read one JSON object a line. {"do": "report", "value": 0.3, "step": 4} gives {"ok": true, "prune": false, …}.
"""

import json
import os
import socket
from typing import Any


def request(path: str, said: dict[str, Any]) -> dict[str, Any]:
    """The reply of the worker at this socket. OSError: there is none any more."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)  # anew, since a signal's handler may ask while another call does
        connection.sendall(json.dumps(said, default=float).encode() + b"\n")  # numpy's numbers, too
        with connection.makefile("rb") as replies:
            reply: dict[str, Any] = json.loads(replies.readline() or b'{"ok": false, "error": "the worker is gone"}')
    return reply


class Trial:
    """The trial that this process was started for. `trial.params` has its parameters."""

    def __init__(self) -> None:
        if "HOPAAS_PARAMS" not in os.environ:
            raise RuntimeError("this program runs no trial; start it with: hopaas-p2p worker -- python train.py")
        self.params: dict[str, Any] = json.loads(os.environ["HOPAAS_PARAMS"])
        self._path = os.environ["HOPAAS_TICKET"].removeprefix("unix:")

    def ask(self, do: str, **said: Any) -> dict[str, Any]:
        """One request: report, log, should-prune, tell, checkpoint, renew or release. Gives the reply.

        Raises:
            RuntimeError: the worker refused it, for the reason given, or has ended.

        """
        try:
            reply = request(self._path, {"do": do, **said})
        except OSError:
            raise RuntimeError("the worker is gone") from None
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
