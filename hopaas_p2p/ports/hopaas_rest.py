"""The REST interface of Hopaas on a LocalPeer, so that a script written for the service needs only another address.

    GET  /api/version
    POST /api/ask/KEY             {"hopaas_config": {…}, NAME: VALUE or "optuna#…", …}  -> {"hopaas_trial": "ID:N", …}
    POST /api/should_prune/KEY    {"hopaas_trial": "ID:N", "loss": …, "step": …}          -> true or false
    POST /api/tell/KEY            {"hopaas_trial": "ID:N", "loss": …}
    POST /api/mark_as_failed/KEY  {"hopaas_trial": "ID:N", "error": …}
    GET  /api/get_best_trial/KEY?hopaas_trial=ID:N                                        -> ID:N

The interface was taken from hopaas_client 0.2. The service's scripts send no result after a reply to prune, so a trial
ends as PRUNED if its script asks twice for the same step and both replies are to prune.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import hopaas_p2p
from hopaas_p2p.errors import HopaasError, InvalidInput, NotYourTrial
from hopaas_p2p.hopaas import exceptions, pruners, samplers
from hopaas_p2p.hopaas.study import Study
from hopaas_p2p.ports.local import LocalPeer, is_gone
from hopaas_p2p.ports.verbs import parsed

_TEXT: Final = "text/plain"
Reply = tuple[int, bytes, str]
"""Status, body, content type."""


class HopaasRest:
    """Answers requests of scripts for Hopaas. Thread-safe."""

    def __init__(self, peer: LocalPeer) -> None:
        self._peer = peer
        self._studies: dict[str, Study] = {}
        self._told_to_prune: dict[str, int] = {}
        """Trial -> the step at which a reply told it to end."""

    def answer(self, method: str, path: str, body: bytes, key_matches: Callable[[str], bool]) -> Reply:
        """The reply to a request below /api/."""
        parts = urlsplit(path)
        verb, _, key = parts.path.removeprefix("/api/").partition("/")
        if (method, verb) == ("GET", "version"):
            return 200, hopaas_p2p.__version__.encode(), _TEXT
        if not key_matches(key):
            return 401, b"the token is not this server's key", _TEXT
        try:
            request = parsed(body) if body else {name: one[0] for name, one in parse_qs(parts.query).items()}
            if (method, verb) == ("POST", "ask"):
                return 200, json.dumps(self._ask(request)).encode(), "application/json"
            return 200, self._carry_out(method, verb, request).encode(), _TEXT
        except (HopaasError, exceptions.HopaasError, KeyError, TypeError, ValueError, OverflowError) as error:
            unknown, own = (NotYourTrial, exceptions.HopaasConsistencyError), (HopaasError, exceptions.HopaasError)
            wrong = isinstance(error, InvalidInput) or not isinstance(error, own)
            status = 404 if isinstance(error, unknown) else 400 if wrong else 503
            said = str(error) if isinstance(error, own) else f"the request is malformed: {error}"
            return status, said.encode(errors="replace"), _TEXT

    def _carry_out(self, method: str, verb: str, request: dict[str, Any]) -> str:
        match method, verb:
            case "POST", "should_prune":
                return self._should_prune(request)
            case "POST", "tell":
                self._say(request["hopaas_trial"], "tell", values=[request["loss"]])
                return ""
            case "POST", "mark_as_failed":
                self._say(request["hopaas_trial"], "tell", state="fail", reason=str(request.get("error", "")))
                return ""
            case "GET", "get_best_trial":
                study, _ = self._trial(request.get("hopaas_trial"))
                return f"{study.setup_id}:{study.best_trial_id}"
        raise NotYourTrial("there is no such request")

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        config = request.pop("hopaas_config")
        special = {name: request.pop(name) for name in list(request) if name.startswith("_")}
        study = Study(
            str(config["title"]),
            request,
            special,
            direction=config.get("direction", "minimize"),
            sampler=_named(samplers, config.get("sampler") or {"name": "TPESampler"}),
            pruner=_named(pruners, config.get("pruner") or {"name": "NopPruner"}),
            client=SimpleNamespace(storage=lambda: self._peer.storage),  # type: ignore[arg-type]  # all that is used
        )
        kept = self._studies.setdefault(study.setup_id, study)
        if is_gone(kept.join()):
            kept = self._studies[study.setup_id] = study
        asked = self._peer.start(kept.join(), study.special_properties)
        return {"hopaas_trial": f"{kept.setup_id}:{asked['trial']}", **kept.values(asked["params"])}

    def _should_prune(self, request: dict[str, Any]) -> str:
        trial, step = request["hopaas_trial"], int(request["step"])
        if self._told_to_prune.pop(trial, None) == step:  # the script's last question; it sends no result afterwards
            self._say(trial, "tell", state="pruned")
            return "true"
        prune = self._say(trial, "report", value=float(request["loss"]), step=step)["prune"]
        if prune:
            self._told_to_prune[trial] = step
        return "true" if prune else "false"

    def _say(self, trial: str, verb: str, **said: Any) -> dict[str, Any]:
        self._told_to_prune.pop(trial, None)
        study, number = self._trial(trial)
        return self._peer.request(study.store_name, number, verb, **said)

    def _trial(self, text: object) -> tuple[Study, int]:
        setup_id, _, number = str(text).partition(":")
        study = self._studies.get(setup_id)
        if study is None:
            raise NotYourTrial(f"{text!r} is not a trial of this server; ask for one first")
        return study, int(number)


def _named(module: Any, config: dict[str, Any]) -> Any:
    """The sampler or pruner named in a request."""
    if config["name"] not in module.testables:
        raise InvalidInput(f"{config['name']!r} is not known; choose from {', '.join(module.testables)}")
    return getattr(module, config["name"])(**config.get("args") or {})
