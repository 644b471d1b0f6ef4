"""Serves `/metrics` for Prometheus, and `/healthz` for a supervisor that restarts this process.

`/metrics` names studies, so it needs a separate token, in the file that HOPAAS_METRICS_TOKEN_FILE names. A scraper
sends it as a Bearer token. Without that file, `/metrics` needs the key (see `access_guard.py`), and is closed where
people sign in. `/healthz` is open, because it reveals nothing about studies.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from dashboard_app import options
from dashboard_app.replica_cache import ReplicaCache
from dashboard_app.views.metrics import CONTENT_TYPE, exposition
from hopaas_p2p.analysis.table import TrialTable
from hopaas_p2p.core.state import State
from hopaas_p2p.errors import ConfigurationError
from hopaas_p2p.runtime import credentials

_STALE: Final = 120.0  # seconds without a read of the store after which the monitor counts as down


def routes(opened: Callable[[], ReplicaCache]) -> list[BaseRoute]:
    """The routes, below the path under which a proxy serves this server."""

    def seen() -> Iterator[tuple[str, str, State, TrialTable, float]]:
        cache = opened()
        for listing in sorted(cache.studies(), key=lambda one: one.name):
            frame = cache.frame(listing.uuid)
            if frame is not None:
                yield cache.url, listing.name, frame.state, frame.columns, cache.freshness(listing.uuid).lag

    def metrics(request: Request) -> Response:  # not async: Starlette runs it in a thread, where it can wait
        if options.current().auth != "none" and not may_scrape(request.headers.get("authorization", "")):
            return PlainTextResponse("send the token in HOPAAS_METRICS_TOKEN_FILE\n", status_code=401)
        return PlainTextResponse(exposition(seen()), media_type=CONTENT_TYPE)

    def healthz(_request: Request) -> Response:
        opened().studies()  # starts the reads if no session has done so yet
        lag = opened().freshness().lag
        answer = {"ok": lag < _STALE, "lag_seconds": round(lag, 1) if lag < 1e9 else None}
        return JSONResponse(answer, status_code=200 if lag < _STALE else 503)

    prefix = options.current().prefix
    return [Route(f"{prefix}/metrics", metrics), Route(f"{prefix}/healthz", healthz)]


def may_scrape(authorization: str) -> bool:
    """Whether this header contains the token for metrics."""
    try:
        token = credentials.of_monitor("metrics")
    except ConfigurationError:
        return False
    return token is not None and hmac.compare_digest(authorization.encode(), f"Bearer {token.reveal()}".encode())
