"""optuna-dashboard beside ours, on the same storage: `--optuna`. Read-only when we are."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from dashboard_app import actor
from dashboard_app.options import Options
from hopaas_p2p.artifacts import StudyArtifacts
from hopaas_p2p.errors import ConfigurationError

_log: Final = logging.getLogger("hopaas_p2p.dashboard")
Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the standard library's name
        _log.debug(format, *args)


def serve_optunas(told: Options) -> _Server:
    """Serve optuna-dashboard for the first store from a thread; `shutdown()` ends it.

    Raises:
        ConfigurationError: the port is taken.

    """
    from optuna_dashboard import wsgi

    assert told.optuna_port is not None
    storage = actor.storage_of(told.stores[0])
    app: Wsgi = wsgi(storage, artifact_store=StudyArtifacts(storage, 0))
    try:
        server = make_server(
            told.host, told.optuna_port, app if told.actions else _read_only(app), _Server, handler_class=_Quiet
        )
    except OSError as error:
        raise ConfigurationError(
            f"optuna-dashboard cannot listen at {told.host}:{told.optuna_port}: {error.strerror}; choose another --port"
        ) from None
    threading.Thread(target=server.serve_forever, name="optuna-dashboard", daemon=True).start()
    return server


def _read_only(app: Wsgi) -> Wsgi:
    """What optuna-dashboard would change is refused: it asks nobody who they are."""

    def guarded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ.get("REQUEST_METHOD") in ("GET", "HEAD"):
            return app(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "application/json")])
        return [b'{"reason": "read-only: start it with --allow-actions to change things"}']

    return guarded
