"""The REST interface of Hopaas on a LocalPeer, so that a script that spoke to the service needs another address only.

    GET  /api/version
    POST /api/ask/KEY             {"hopaas_config": {…}, NAME: VALUE or "optuna#…", …}  -> {"hopaas_trial": "ID:N", …}
    POST /api/should_prune/KEY    {"hopaas_trial": "ID:N", "loss": …, "step": …}          -> true or false
    POST /api/tell/KEY            {"hopaas_trial": "ID:N", "loss": …}
    POST /api/mark_as_failed/KEY  {"hopaas_trial": "ID:N", "error": …}
    GET  /api/get_best_trial/KEY?hopaas_trial=ID:N                                        -> ID:N

The interface was read from hopaas_client 0.2. The service's scripts tell nothing after they were told to prune, so a
trial of which a script asks twice for the same step, and is told to prune, ends as PRUNED.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from optuna.exceptions import UpdateFinishedTrialError

import hopaas_p2p
from hopaas_p2p.errors import HopaasError, InvalidInput, NotYourTrial
from hopaas_p2p.hopaas import exceptions, pruners, samplers
from hopaas_p2p.hopaas.client import Client
from hopaas_p2p.hopaas.study import Study
from hopaas_p2p.local.peer import LocalPeer, is_gone
from hopaas_p2p.storage import Storage

_TEXT: Final = "text/plain"
_JSON: Final = "application/json"
Reply = tuple[int, bytes, str]
"""Status, body, content type."""


class _OpenStore(Client):
    """A client of a store that is open already."""

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage.url)
        self._opened = storage

    def storage(self) -> Storage:
        return self._opened


class HopaasRest:
    """Answers requests of Hopaas's scripts. Thread-safe."""

    def __init__(self, peer: LocalPeer) -> None:
        self._peer = peer
        self._lock = threading.Lock()
        self._studies: dict[str, Study] = {}
        self._told_to_prune: dict[tuple[str, int], int] = {}
        """The step at which each trial was told to end."""

    def answer(self, method: str, path: str, body: bytes, key_matches: Callable[[str], bool]) -> Reply:
        """The reply to a request below /api/."""
        parts = urlsplit(path)
        verb, _, key = parts.path.removeprefix("/api/").partition("/")
        try:
            if method == "GET" and verb == "version":
                return 200, hopaas_p2p.__version__.encode(), _TEXT
            if not key_matches(key):
                return 401, b"the token is not this server's key", _TEXT
            if method == "GET" and verb == "get_best_trial":
                return self._best(parse_qs(parts.query).get("hopaas_trial", [""])[0])
            carry_out = {
                "ask": self._ask,
                "tell": self._tell,
                "mark_as_failed": self._mark_as_failed,
                "should_prune": self._should_prune,
            }.get(verb)
            if method != "POST" or carry_out is None:
                return 404, b"there is no such request", _TEXT
            request = json.loads(body or b"{}")
            if not isinstance(request, dict):
                raise InvalidInput("the body is not a JSON object")
            return carry_out(request)
        except (HopaasError, exceptions.HopaasError) as error:
            unknown = isinstance(error, NotYourTrial | exceptions.HopaasConsistencyError)
            return 404 if unknown else 400 if isinstance(error, InvalidInput) else 503, str(error).encode(), _TEXT
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            return 400, f"the request is malformed: {error}".encode(errors="replace"), _TEXT
        except UpdateFinishedTrialError as error:  # others took the trial over
            return 404, str(error).encode(), _TEXT

    def _ask(self, request: dict[str, Any]) -> Reply:
        config = request.pop("hopaas_config")
        special = {name: request.pop(name) for name in list(request) if name.startswith("_")}
        study = Study(
            str(config["title"]),
            request,
            special,
            direction=config.get("direction", "minimize"),
            sampler=_named(samplers, config.get("sampler") or {"name": "TPESampler"}),
            pruner=_named(pruners, config.get("pruner") or {"name": "NopPruner"}),
            client=_OpenStore(self._peer.storage),
        )
        with self._lock:
            kept = self._studies.setdefault(study.setup_id, study)
        if is_gone(kept.join()):
            with self._lock:
                self._studies[study.setup_id] = study
        else:
            study = kept
        self._peer.adopt(study.join())
        asked = self._peer.ask(study.store_name, user_attrs=study.special_properties)
        values = study.values(asked["params"])
        return 200, json.dumps({"hopaas_trial": f"{study.setup_id}:{asked['trial']}", **values}).encode(), _JSON

    def _should_prune(self, request: dict[str, Any]) -> Reply:
        study, number = self._trial(request["hopaas_trial"])
        key, step = (study.setup_id, number), int(request["step"])
        if self._told_to_prune.pop(key, None) == step:  # the script's last question; it tells nothing afterwards
            self._peer.request(study.store_name, number, "tell", state="pruned")
            return 200, b"true", _TEXT
        reply = self._peer.request(study.store_name, number, "report", value=float(request["loss"]), step=step)
        if reply["prune"]:
            self._told_to_prune[key] = step
        return 200, b"true" if reply["prune"] else b"false", _TEXT

    def _tell(self, request: dict[str, Any]) -> Reply:
        study, number = self._trial(request["hopaas_trial"])
        loss = float(request["loss"])
        self._told_to_prune.pop((study.setup_id, number), None)
        self._peer.request(study.store_name, number, "tell", values=[loss])
        return 200, b"", _TEXT

    def _mark_as_failed(self, request: dict[str, Any]) -> Reply:
        study, number = self._trial(request["hopaas_trial"])
        self._told_to_prune.pop((study.setup_id, number), None)
        self._peer.request(study.store_name, number, "tell", state="fail", reason=str(request.get("error", "")))
        return 200, b"", _TEXT

    def _best(self, trial: str) -> Reply:
        study, _ = self._trial(trial)
        return 200, f"{study.setup_id}:{study.best_trial_id}".encode(), _TEXT

    def _trial(self, text: str) -> tuple[Study, int]:
        setup_id, _, number = str(text).partition(":")
        with self._lock:
            study = self._studies.get(setup_id)
        if study is None:
            raise NotYourTrial(f"{text!r} was not requested here")
        return study, int(number)


def _named(module: Any, config: dict[str, Any]) -> Any:
    """The sampler or pruner that a request names."""
    if config["name"] not in module.testables:
        raise InvalidInput(f"{config['name']!r} is not known; choose from {', '.join(module.testables)}")
    return getattr(module, config["name"])(**config.get("args") or {})
