"""Where the command of a trial talks to its worker: a Unix socket, one JSON object a line, one reply a line.

    {"do": "report", "value": 0.3, "step": 4}    -> {"ok": true, "prune": false, "why": null, "preempted": false}
    {"do": "should-prune"}                       -> the same
    {"do": "tell", "values": [0.3]}              -> {"ok": true}       or "state": "pruned" | "fail", "reason": …
    {"do": "checkpoint", "path": "…", "step": 4} -> {"ok": true}       when the store has it
    {"do": "renew"}                              -> {"ok": true}
    {"do": "release", "reason": "…"}             -> {"ok": true}       the worker gives the trial back when it ends

What goes wrong is {"ok": false, "error": "…", "code": 11}, with the exit code of the command line. The socket lies in
a private directory (0700); its path is short, since the system allows 107 characters.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from hopaas_p2p.errors import Denied, HopaasError, InvalidInput, LeaseLost, NotYourTrial, StoreUnreachable

if TYPE_CHECKING:
    from hopaas_p2p.core.records import TrialState
    from hopaas_p2p.study import Study
    from hopaas_p2p.trial import Trial

PREFIX: Final = "unix:"
_LONGEST_PATH: Final = 100
_LONGEST_LINE: Final = 1 << 20


class Desk:
    """Serves one trial's command, from threads of its own, until `close`."""

    def __init__(self, study: Study, trial: Trial) -> None:
        self._study, self._trial = study, trial
        self._lock = threading.Lock()
        self.told: str | None = None
        """The state that the command told, which is in the store or on disk; or "lost"."""
        self.pruned: str | None = None
        """Why the command was told to end, if it was."""
        self.released: str | None = None
        """Why the command wants its trial to be given back."""
        self.preempted = False
        """Whether the command should save itself: it is shown in replies."""
        self.directory = _private_directory()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.directory / "s"))
        self._listener.listen(16)
        self._closed = False
        threading.Thread(target=self._accept, name="hopaas-desk", daemon=True).start()

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
        with self._lock:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), name="hopaas-desk", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rwb") as lines, contextlib.suppress(OSError):
            while line := lines.readline(_LONGEST_LINE):
                lines.write(json.dumps(self.answer(line)).encode() + b"\n")
                lines.flush()

    def answer(self, line: bytes) -> dict[str, Any]:
        """The reply to one request."""
        try:
            request = json.loads(line)
            answer = _ANSWERS.get(str(request.get("do"))) if isinstance(request, dict) else None
            if answer is None:
                raise InvalidInput(f"no such request; there are {', '.join(_ANSWERS)}")
            with self._lock:
                if self._closed:
                    raise NotYourTrial("the trial is over")
                place = {"trial": self._trial.number, "study": self._study.name}
                return {"ok": True, **place, **answer(self, request)}
        except HopaasError as error:
            return {"ok": False, "error": str(error), "code": error.exit_code}
        except KeyError as error:
            return {"ok": False, "error": f"the request has no {error.args[0]!r}", "code": InvalidInput.exit_code}
        except (ValueError, TypeError, NotImplementedError) as error:
            return {"ok": False, "error": str(error), "code": InvalidInput.exit_code}
        except Exception as error:  # noqa: BLE001  # the command is told, and the desk stays open
            return {"ok": False, "error": f"{type(error).__name__}: {error}", "code": 1}

    # --- the requests, one at a time ---

    def _report(self, request: dict[str, Any]) -> dict[str, Any]:
        self._refuse_after_the_end()
        self._trial.report(float(request["value"]), int(request["step"]))
        return self._should_prune(request)

    def _should_prune(self, _request: dict[str, Any]) -> dict[str, Any]:
        if self.pruned is None and self.told is None:
            self.pruned = self._why_to_end()
        return {"prune": self.pruned is not None, "why": self.pruned, "preempted": self.preempted}

    def _why_to_end(self) -> str | None:
        asked = self._trial.stop_requested
        if len(self._study.optuna.directions) > 1:
            if asked is not None:
                self._study.storage.acknowledge_stop(self._trial._trial_id)
            return asked
        if not self._trial.should_prune():
            return None
        if not self._trial.lease_held:
            return "another peer took the trial over"
        return asked or f"{type(self._study.optuna.pruner).__name__} says so"

    def _tell(self, request: dict[str, Any]) -> dict[str, Any]:
        self._refuse_after_the_end()
        values = request.get("values")
        state = str(request.get("state") or ("complete" if values else "fail")).lower()
        if state not in ("complete", "pruned", "fail"):
            raise InvalidInput(f"state {state!r}; there are complete, pruned, fail")
        told = values if state == "complete" else None
        try:
            self._study.tell(self._trial, told, state=state, reason=request.get("reason"))
        except LeaseLost:
            self.told = "lost"
            raise
        except Denied:  # it is kept on disk
            self.told = state
            raise
        self.told = state
        return {}

    def _checkpoint(self, request: dict[str, Any]) -> dict[str, Any]:
        self._refuse_after_the_end()
        self._trial.checkpoint(str(request["path"]), step=int(request["step"]))
        return {}

    def _renew(self, _request: dict[str, Any]) -> dict[str, Any]:
        self._refuse_after_the_end()
        if not self._trial.lease_held:
            raise LeaseLost(f"trial {self._trial.number} was taken over by another peer")
        return {}

    def _release(self, request: dict[str, Any]) -> dict[str, Any]:
        self._refuse_after_the_end()
        self.released = str(request.get("reason") or "given back by the command")
        return {}

    def _refuse_after_the_end(self) -> None:
        if self.told is not None:
            raise NotYourTrial(f"trial {self._trial.number} is finished already, and stays as it is")


_ANSWERS: Final[dict[str, Callable[[Desk, dict[str, Any]], dict[str, Any]]]] = {
    "report": Desk._report,
    "should-prune": Desk._should_prune,
    "tell": Desk._tell,
    "checkpoint": Desk._checkpoint,
    "renew": Desk._renew,
    "release": Desk._release,
}


def _private_directory() -> Path:
    """A new directory that only this user may enter, with a short path: batch systems set TMPDIR to long ones."""
    for base in (tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR"), "/tmp", "/var/tmp"):  # noqa: S108
        if base and len(base) + 24 <= _LONGEST_PATH and os.access(base, os.W_OK):
            return Path(tempfile.mkdtemp(prefix="hopaas-", dir=base))
    raise InvalidInput("no directory for a socket with a path short enough; set TMPDIR to one, such as /tmp")


class _Place(NamedTuple):
    number: int
    study: str


class SocketTrial:
    """The trial of a worker's command, for the commands of the shell: the same verbs as `ticket.CarriedTrial`.

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
    kinds = (InvalidInput, StoreUnreachable, LeaseLost)
    kind = next((kind for kind in kinds if kind.exit_code == code), HopaasError)
    return kind(message)
