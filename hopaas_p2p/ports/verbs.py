"""A program's requests about a trial that another process of its user runs, with the same verbs for all carriers.

The worker's socket, the local server, MCP and the tickets of the shell carry requests; `TrialVerbs` carries them out. A
request and a reply are plain JSON:

    {"do": "report", "value": 0.3, "step": 4}    -> {"ok": true, "prune": false, "why": null, "preempted": false}
    {"do": "log", "step": 4, "metrics": {"auc": 0.9}} -> {"ok": true}
    {"do": "should-prune"}                       -> like report
    {"do": "tell", "values": [0.3]}              -> {"ok": true}       or "state": "pruned" | "fail", "reason": …
    {"do": "checkpoint", "path": "…", "step": 4} -> {"ok": true}       when the store has it
    {"do": "renew"}                              -> {"ok": true}
    {"do": "release", "reason": "…"}             -> {"ok": true}       the trial is returned when its program ends

A reply also names the trial and its study. An error is {"ok": false, "error": "…", "code": 11}, with the exit code of
the command line.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from hopaas_p2p.analysis.facts import json_number
from hopaas_p2p.core.fidelity import AT_RUNG
from hopaas_p2p.errors import Denied, HopaasError, InvalidInput, LeaseLost, NotYourTrial
from hopaas_p2p.runtime.arguments import shortened, shown

if TYPE_CHECKING:
    from hopaas_p2p.study import Study
    from hopaas_p2p.study.trial import Trial

Reply = dict[str, Any]
VERBS: Final = ("report", "log", "should-prune", "tell", "checkpoint", "renew", "release")
FIELDS: Final[dict[str, tuple[type, str]]] = {
    **dict.fromkeys(("study", "state", "order", "text", "path"), (str, "a string")),
    **dict.fromkeys(("trial", "step", "limit", "offset"), (int, "a whole number")),
    **dict.fromkeys(("metrics", "params"), (dict, "an object of values by name")),
    "value": (float, "a number"),
}
"""Kinds of the fields of a request in JSON, and their names in messages. A number may also be given as a string."""
_LONGEST: Final = 1000  # characters of an error that may repeat a request
PRUNE: Final = 10
"""Exit code of `hopaas-p2p trial should-prune`; a shell script that exits there passes it on."""


def parsed(body: bytes) -> Reply:
    """A request in JSON.

    Raises:
        InvalidInput: it is not a JSON object.

    """
    try:
        request = json.loads(body or b"{}")
    except RecursionError:
        raise InvalidInput("the request is nested too deeply") from None
    except ValueError as error:
        raise InvalidInput(f"the request is not JSON: {error}") from None
    if not isinstance(request, dict):
        raise InvalidInput("the request is not a JSON object")
    return request


def numbers(given: Any) -> list[Any]:
    """The values that a program gave in JSON, with true and false as words, because they are not numbers."""
    values = given if isinstance(given, list | tuple) else [given]
    return [str(one).lower() if isinstance(one, bool) else one for one in values]


def answered(body: bytes, carry_out: Callable[[dict[str, Any]], Reply]) -> Reply:
    """The reply to a request in JSON, or an error reply, so that no request ends its carrier."""
    try:
        return {"ok": True, **carry_out(_checked(parsed(body)))}
    except (HopaasError, ValueError, TypeError, OverflowError, NotImplementedError, RecursionError) as error:
        return {"ok": False, "error": str(error), "code": getattr(error, "exit_code", InvalidInput.exit_code)}
    except KeyError as error:
        return {"ok": False, "error": f"the request has no {error.args[0]!r}", "code": InvalidInput.exit_code}
    except Exception as error:  # noqa: BLE001  # reported to the program
        return {"ok": False, "error": shortened(f"{type(error).__name__}: {error}", _LONGEST), "code": 1}


def _checked(request: Reply) -> Reply:
    """The request without nulls, its fields of the kinds that FIELDS names. Raises InvalidInput."""
    said = {name: value for name, value in request.items() if value is not None}
    for name, (kind, words) in FIELDS.items():
        if name in said:
            try:
                if kind in (int, float) and isinstance(value := said[name], str):
                    said[name] = kind(value)  # also " 7", "007" and ".5", as scripts write them
                else:
                    said[name] = msgspec.convert(said[name], kind, strict=False)
            except ValueError:
                raise InvalidInput(f"{name} must be {words}, got {shown(said[name])}") from None
    return said


class TrialVerbs:
    """Carries out requests about one trial of this process, one at a time. Methods may be called from any thread."""

    def __init__(self, study: Study, trial: Trial) -> None:
        self.study, self.trial = study, trial
        self._lock = threading.Lock()
        self._closed = False
        self.told: str | None = None
        """The state that the program sent, which is in the store or on disk; or "lost"."""
        self.pruned: str | None = None
        """Why a reply asked the program to end the trial, if one did."""
        self.released: str | None = None
        """The program's reason for returning the trial, which its carrier does when the program has ended."""
        self.preempted = False
        """Whether the program should save its state; included in replies."""
        self.heard_at = 0.0
        """When the program last sent a request, by the carrier's clock."""

    def close(self) -> None:
        """Accept no more requests, once a request in progress is finished."""
        with self._lock:
            self._closed = True

    def do(self, verb: str, /, **said: Any) -> Reply:
        """Carry out one request.

        Raises:
            HopaasError: the store refused the request, or the trial is over.
            KeyError, TypeError, ValueError: the request is malformed.

        """
        from optuna.exceptions import UpdateFinishedTrialError

        if verb not in VERBS:
            raise InvalidInput(f"there is no such request; choose from {', '.join(VERBS)}")
        number = self.trial.number
        with self._lock:
            if self._closed:
                raise NotYourTrial("the trial is over")
            try:
                if self.told is not None and verb != "should-prune":
                    raise UpdateFinishedTrialError
                return {"trial": number, "study": self.study.name, **self._carry_out(verb, said)}
            except UpdateFinishedTrialError:
                raise NotYourTrial(f"trial {number} has already finished, and stays as it is") from None

    def _carry_out(self, verb: str, said: dict[str, Any]) -> Reply:
        trial = self.trial
        match verb:
            case "report":
                trial.report(said["value"], said["step"])
                kept = json_number(trial.intermediate_values[said["step"]])  # the first report at a step
                return {"value": kept, **self._should_prune()}
            case "should-prune":
                return self._should_prune()
            case "log":
                trial.log(said["step"], **said["metrics"])
            case "tell":
                self._tell(said)
            case "checkpoint":
                trial.checkpoint(said["path"], step=said["step"])
            case "renew":
                if not trial.lease_held:
                    raise LeaseLost(f"trial {trial.number} was {trial.handle.how_lost(trial.number)}")
            case "release":
                self.released = str(said.get("reason") or "returned by its program")
        return {}

    def _should_prune(self) -> Reply:
        trial = self.trial
        if self.pruned is None and self.told is None:
            asked = trial.stop_requested
            if len(self.study.directions) > 1:  # Optuna's pruners support one objective
                self.pruned = asked
                if asked is not None:
                    trial.handle.acknowledge_stop(trial.number)
            elif trial.should_prune():
                pruner = AT_RUNG if trial.at_rung else f"requested by {type(self.study.pruner).__name__}"
                self.pruned = asked or pruner if trial.lease_held else trial.handle.how_lost(trial.number)
        return {"prune": self.pruned is not None, "why": self.pruned, "preempted": self.preempted}

    def _tell(self, said: dict[str, Any]) -> None:
        values, given, reason = said.get("values"), said.get("state"), said.get("reason")
        values = None if values in (None, [], ()) else numbers(values)
        if values is None and given is None and reason is None:  # for example with `value`, as in a report
            raise InvalidInput("tell takes values, a list of numbers, or state: pruned or fail")
        state = str(given or ("fail" if values is None else "complete")).lower()
        try:
            self.study.tell(self.trial, values, state=state, reason=reason)
        except (LeaseLost, Denied) as error:  # a denied result is kept on disk
            self.told = "lost" if isinstance(error, LeaseLost) else state
            raise
        self.told = state
