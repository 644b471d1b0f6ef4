"""Where the command of a trial talks to its worker: a Unix socket, one JSON object per line, one reply per line.

The requests are those of `trial_requests`. The socket is in a private directory (0700). Its path is short, because the
system allows 107 characters.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from hopaas_p2p.errors import (
    ConfigurationError,
    Denied,
    HopaasError,
    InvalidInput,
    LeaseLost,
    StoreAway,
    StoreUnreachable,
)
from hopaas_p2p.trial_requests import TrialRequests, failure

if TYPE_CHECKING:
    from hopaas_p2p.core.records import TrialState
    from hopaas_p2p.study import Study
    from hopaas_p2p.trial import Trial

PREFIX: Final = "unix:"
_LONGEST_PATH: Final = 100
_LONGEST_LINE: Final = 1 << 20


class TrialSocketServer:
    """Serves one trial's command, from threads of its own, until `close`."""

    def __init__(self, study: Study, trial: Trial) -> None:
        self.requests = TrialRequests(study, trial)
        self.directory = _private_directory()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.directory / "s"))
        self._listener.listen(16)
        self._closed = False
        threading.Thread(target=self._accept, name="hopaas-trial-socket", daemon=True).start()

    @property
    def ticket(self) -> str:
        """What the command finds in HOPAAS_TICKET."""
        return f"{PREFIX}{self.directory / 's'}"

    def close(self) -> None:
        """Answer no more. A request under way is finished first."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.requests.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), name="hopaas-trial-socket", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rwb") as lines, contextlib.suppress(OSError):
            while line := lines.readline(_LONGEST_LINE):
                lines.write(json.dumps(self.answer(line)).encode() + b"\n")
                lines.flush()

    def answer(self, line: bytes) -> dict[str, Any]:
        """The reply to one line."""
        try:
            request = json.loads(line)
        except (ValueError, RecursionError) as error:
            return failure(error)
        return self.requests.answer(request)


def _private_directory() -> Path:
    """A new directory that only this user may enter, with a short path: batch systems set TMPDIR to long ones."""
    for base in (tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR"), "/tmp", "/var/tmp"):  # noqa: S108
        if base and len(base) + 24 <= _LONGEST_PATH and os.access(base, os.W_OK):
            return Path(tempfile.mkdtemp(prefix="hopaas-", dir=base))
    raise InvalidInput(
        "no temporary directory has a path short enough for a socket; set TMPDIR to a short one, such as /tmp"
    )


class _Place(NamedTuple):
    number: int
    study: str


class SocketTrialClient:
    """The trial of a worker's command, for the commands of the shell: the same verbs as `ticket.TicketTrial`.

    Raises:
        HopaasError: what the worker said, of the same kind as it would be without a worker.
        StoreUnreachable: the worker is gone.

    """

    def __init__(self, ticket: str) -> None:
        self._path = ticket.removeprefix(PREFIX)
        self.ticket = _Place(int(os.environ.get("HOPAAS_TRIAL", "-1")), "")

    def _ask(self, do: str, **said: Any) -> dict[str, Any]:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(self._path)
                connection.sendall(json.dumps({"do": do, **said}).encode() + b"\n")
                with connection.makefile("rb") as replies:
                    reply = json.loads(replies.readline() or b"{}")
        except (OSError, ValueError) as error:
            raise StoreUnreachable(f"the worker of this trial does not answer at {self._path}: {error}") from None
        if not reply.get("ok"):
            raise _as_error(str(reply.get("error", "the worker is gone")), int(reply.get("code", 69)))
        self.ticket = _Place(int(reply["trial"]), str(reply["study"]))
        return dict(reply)

    def report(self, value: float, *, step: int) -> None:
        """Add an intermediate value."""
        self._ask("report", value=float(value), step=step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add metrics of one step."""
        self._ask("log", step=step, metrics=dict(metrics))

    def should_prune(self, _pruner: object = None) -> str | None:
        """Why to give this trial up now, or None; the worker's own pruner judges."""
        why = self._ask("should-prune")["why"]
        return None if why is None else str(why)

    def tell(
        self, values: Sequence[float] | None = None, *, state: TrialState | None = None, reason: str | None = None
    ) -> None:
        """End the trial: COMPLETE with values, else PRUNED or FAIL."""
        self._ask("tell", values=list(values or ()), state=state.name if state is not None else None, reason=reason)

    def renew(self) -> None:
        """Look whether the lease still holds; the worker keeps it."""
        self._ask("renew")

    def release(self, reason: str | None = None) -> None:
        """Let the worker give the trial back when this command has ended."""
        self._ask("release", reason=reason)


def _as_error(message: str, code: int) -> HopaasError:
    kinds = (InvalidInput, StoreUnreachable, StoreAway, LeaseLost, Denied, ConfigurationError)
    kind = next((kind for kind in kinds if kind.exit_code == code), HopaasError)
    return kind(message)
