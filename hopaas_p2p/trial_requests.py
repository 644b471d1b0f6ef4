"""What a program may ask about a trial that another process of its user runs: one set of requests for all ways to ask.

The worker's socket, the local HTTP server and the MCP server all answer by `TrialRequests`. A request and a reply are
plain JSON:

    {"do": "report", "value": 0.3, "step": 4}    -> {"ok": true, "prune": false, "why": null, "preempted": false}
    {"do": "log", "step": 4, "metrics": {"auc": 0.9}} -> {"ok": true}
    {"do": "should-prune"}                       -> the same
    {"do": "tell", "values": [0.3]}              -> {"ok": true}       or "state": "pruned" | "fail", "reason": …
    {"do": "checkpoint", "path": "…", "step": 4} -> {"ok": true}       when the store has it
    {"do": "renew"}                              -> {"ok": true}
    {"do": "release", "reason": "…"}             -> {"ok": true}       the trial is returned when its program ends

An error is {"ok": false, "error": "…", "code": 11}, with the exit code of the command line.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from hopaas_p2p.core.rungs import AT_RUNG
from hopaas_p2p.errors import Denied, HopaasError, InvalidInput, LeaseLost, NotYourTrial

if TYPE_CHECKING:
    from hopaas_p2p.study import Study
    from hopaas_p2p.trial import Trial


def failure(error: Exception) -> dict[str, Any]:
    """The reply that says what went wrong."""
    if isinstance(error, HopaasError):
        return {"ok": False, "error": str(error), "code": error.exit_code}
    if isinstance(error, KeyError):
        return {"ok": False, "error": f"the request has no {error.args[0]!r}", "code": InvalidInput.exit_code}
    if isinstance(error, ValueError | TypeError | OverflowError | NotImplementedError):
        return {"ok": False, "error": str(error), "code": InvalidInput.exit_code}
    return {"ok": False, "error": f"{type(error).__name__}: {error}", "code": 1}


class TrialRequests:
    """Answers requests about one trial of this process, one at a time. Methods may be called from any thread."""

    def __init__(self, study: Study, trial: Trial) -> None:
        self._study, self._trial = study, trial
        self._lock = threading.Lock()
        self._closed = False
        self.told: str | None = None
        """The state that was told, which is in the store or on disk; or "lost"."""
        self.pruned: str | None = None
        """Why the program was told to end the trial, if it was."""
        self.released: str | None = None
        """Why the program wants the trial to be returned."""
        self.preempted = False
        """Whether the program should save its state: it is shown in replies."""

    def close(self) -> None:
        """Answer no more. A request that is under way is finished first."""
        with self._lock:
            self._closed = True

    def answer(self, request: object) -> dict[str, Any]:
        """The reply to a request."""
        try:
            return {"ok": True, **self.carry_out(request)}
        except Exception as error:  # noqa: BLE001  # the program is told, and the connection stays open
            return failure(error)

    def carry_out(self, request: object) -> dict[str, Any]:
        """What `answer` replies, but errors are raised.

        Raises:
            HopaasError: the store refused it, or the trial is over.
            KeyError, TypeError, ValueError: the request is malformed.

        """
        carry_out = _REQUESTS.get(str(request.get("do"))) if isinstance(request, dict) else None
        if carry_out is None:
            raise InvalidInput(f"there is no such request; choose from {', '.join(_REQUESTS)}")
        with self._lock:
            if self._closed:
                raise NotYourTrial("the trial is over")
            if self.told is not None and carry_out is not TrialRequests._should_prune:
                raise NotYourTrial(f"trial {self._trial.number} has already finished, and stays as it is")
            place = {"trial": self._trial.number, "study": self._study.name}
            return {**place, **carry_out(self, request)}

    # --- the requests, one at a time ---

    def _report(self, request: dict[str, Any]) -> dict[str, Any]:
        self._trial.report(float(request["value"]), int(request["step"]))
        return self._should_prune(request)

    def _log(self, request: dict[str, Any]) -> dict[str, Any]:
        metrics = request["metrics"]
        if not isinstance(metrics, dict):
            raise InvalidInput(f"metrics must be an object of numbers by name, got {str(metrics)[:40]!r}")
        self._trial.log(int(request["step"]), **metrics)
        return {}

    def _should_prune(self, _request: dict[str, Any]) -> dict[str, Any]:
        if self.pruned is None and self.told is None:
            self.pruned = self._why_to_end()
        return {"prune": self.pruned is not None, "why": self.pruned, "preempted": self.preempted}

    def _why_to_end(self) -> str | None:
        asked = self._trial.stop_requested
        if len(self._study.optuna.directions) > 1:
            if asked is not None:
                self._trial.handle.acknowledge_stop(self._trial.number)
            return asked
        if not self._trial.should_prune():
            return None
        if not self._trial.lease_held:
            return "another peer took the trial over"
        if asked is None and self._trial.at_rung:
            return AT_RUNG
        return asked or f"{type(self._study.optuna.pruner).__name__} says so"

    def _tell(self, request: dict[str, Any]) -> dict[str, Any]:
        values, given, reason = request.get("values"), request.get("state"), request.get("reason")
        has_values = values is not None and values != []
        if not has_values and given is None and reason is None:  # for example with `value`, as a report has it
            raise InvalidInput("tell takes values, a list of numbers, or state: pruned or fail")
        state = str(given or ("complete" if has_values else "fail")).lower()
        if state not in ("complete", "pruned", "fail"):
            raise InvalidInput(f"state {state!r}; choose from complete, pruned, fail")
        told = values if state == "complete" else None
        try:
            self._study.tell(self._trial, told, state=state, reason=reason)
        except LeaseLost:
            self.told = "lost"
            raise
        except Denied:  # it is kept on disk
            self.told = state
            raise
        self.told = state
        return {}

    def _checkpoint(self, request: dict[str, Any]) -> dict[str, Any]:
        self._trial.checkpoint(str(request["path"]), step=int(request["step"]))
        return {}

    def _renew(self, _request: dict[str, Any]) -> dict[str, Any]:
        if not self._trial.lease_held:
            raise LeaseLost(f"trial {self._trial.number} was taken over by another peer")
        return {}

    def _release(self, request: dict[str, Any]) -> dict[str, Any]:
        self.released = str(request.get("reason") or "returned by its program")
        return {}


_REQUESTS: Final[dict[str, Callable[[TrialRequests, Any], dict[str, Any]]]] = {
    "report": TrialRequests._report,
    "log": TrialRequests._log,
    "should-prune": TrialRequests._should_prune,
    "tell": TrialRequests._tell,
    "checkpoint": TrialRequests._checkpoint,
    "renew": TrialRequests._renew,
    "release": TrialRequests._release,
}
