"""Serves optuna-dashboard on this dashboard's storage, for `--optuna`. It is read-only if this dashboard is."""

from __future__ import annotations

import contextvars
import re
import threading
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna.artifacts.exceptions import ArtifactNotFound

from dashboard_app.access_guard import AccessGuard, Wsgi, guarded
from dashboard_app.options import DashboardOptions
from dashboard_app.replica_cache import cache_of
from hopaas_p2p.errors import explained
from hopaas_p2p.files.artifacts import StudyArtifacts
from hopaas_p2p.net.listening import FewStrangers
from hopaas_p2p.runtime.logs import LOG
from hopaas_p2p.storage import Storage


class _Server(FewStrangers, WSGIServer):
    daemon_threads = True


class _SilentRequestHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the standard library's name
        LOG.debug(format, *args)


def serve_optuna_dashboard(opts: DashboardOptions, guard: AccessGuard) -> _Server:
    """Serve optuna-dashboard from a thread, which the result's `shutdown()` ends. The guard checks each request.

    Raises:
        ConfigurationError: the port is taken.

    """
    from optuna_dashboard import wsgi

    assert opts.optuna_port is not None
    storage = cache_of(opts.store).storage()
    if opts.actions:
        storage = storage.as_operator()  # so that people can end trials that peers run
    app = confined(wsgi(storage, artifact_store=RequestedFiles(storage)), actions=opts.actions)
    with explained(f"optuna-dashboard cannot listen at {opts.host}:{opts.optuna_port}", "; choose another --port"):
        server = make_server(
            opts.host, opts.optuna_port, guarded(app, guard), _Server, handler_class=_SilentRequestHandler
        )
    threading.Thread(target=server.serve_forever, name="optuna-dashboard", daemon=True).start()
    return server


_STUDY_OF_PATH: Final = re.compile(r"/(?:artifacts|api/artifacts|api/studies)/(\d{1,9})(?:/|$)")
_asked: Final = contextvars.ContextVar[int | None]("study", default=None)


class RequestedFiles:
    """The artifact store given to optuna-dashboard. It has only the files of the study that the request's path
    names.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def _files(self, artifact_id: str) -> StudyArtifacts:
        study_id = _asked.get()
        try:
            if study_id is not None:
                self._storage.handle(study_id)
                return StudyArtifacts(self._storage, study_id)
        except KeyError:
            pass
        raise ArtifactNotFound(f"there is no file {artifact_id}")

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """See `optuna.artifacts`."""
        return self._files(artifact_id).open_reader(artifact_id)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """See `optuna.artifacts`."""
        self._files(artifact_id).write(artifact_id, content_body)

    def remove(self, artifact_id: str) -> None:
        """See `optuna.artifacts`."""
        self._files(artifact_id).remove(artifact_id)


_AS_DOWNLOAD: Final = [
    ("Content-Disposition", "attachment"),
    ("X-Content-Type-Options", "nosniff"),
    ("Content-Security-Policy", "sandbox; default-src 'none'"),
]
"""Headers that make a browser save a peer's file and not show it, because its scripts would act as the page's user."""


def confined(app: Wsgi, *, actions: bool) -> Wsgi:
    """Wrap the application. It then remembers which study a request is about, sends files as downloads, and refuses
    changes unless `actions` is set.

    CSV tables are refused, too, because a spreadsheet would run text that peers wrote as formulas.
    """

    def confine(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if not actions and environ.get("REQUEST_METHOD") not in ("GET", "HEAD"):
            start_response("403 Forbidden", [("Content-Type", "application/json")])
            return [b'{"reason": "read-only: to allow changes, start the dashboard with --allow-actions"}']
        found = _STUDY_OF_PATH.match(path)
        _asked.set(int(found[1]) if found is not None else None)  # each request is served in a thread of its own

        refused: list[bytes] = []

        def begin(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            if any(value.startswith("text/csv") for _, value in headers):
                refused.append(b"The monitor's page Trials has this table, without formulas.\n")
                return start_response("403 Forbidden", [("Content-Type", "text/plain")], *rest)
            more = _AS_DOWNLOAD if path.startswith("/artifacts/") else []
            return start_response(status, [*headers, *more], *rest)

        body = app(environ, begin)
        return refused or body

    return confine
