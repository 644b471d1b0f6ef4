"""`/metrics` for Prometheus, and `/healthz` for whoever restarts this process.

With sign-in, `/metrics` wants a token of its own, for it names studies: whoever may scrape sends it as a Bearer, and
the file that HOPAAS_METRICS_TOKEN_FILE names holds it. Without that file it is closed. `/healthz` says nothing of
studies and is open.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from dashboard_app import options
from dashboard_app.feed import Feed
from dashboard_app.views.metrics import CONTENT_TYPE, Seen, exposition

_STALE: Final = 120.0  # seconds without a look at the store after which this is no monitor any more


def routes(feeds: Callable[[], list[Feed]]) -> list[BaseRoute]:
    """The routes, under the path that a proxy serves this under."""
    base = options.current().base_path.strip("/")
    prefix = f"/{base}" if base else ""

    def metrics(request: Request) -> Response:  # not async: Starlette runs it in a thread, and it may wait for a store
        if not _may_scrape(request):
            return PlainTextResponse("a token is needed, see HOPAAS_METRICS_TOKEN_FILE\n", status_code=401)
        return PlainTextResponse(exposition(_seen(feeds())), media_type=CONTENT_TYPE)

    def healthz(_request: Request) -> Response:
        lags = []
        for feed in feeds():
            feed.studies()  # begins to read, if nobody has looked yet
            lags.append(feed.freshness().lag)
        well = all(lag < _STALE for lag in lags)
        said = {"ok": well, "lag_seconds": [_finite(lag) for lag in lags]}
        return JSONResponse(said, status_code=200 if well else 503)

    return [Route(f"{prefix}/metrics", metrics), Route(f"{prefix}/healthz", healthz)]


def _may_scrape(request: Request) -> bool:
    if options.current().auth == "none":
        return True
    file = os.environ.get("HOPAAS_METRICS_TOKEN_FILE")
    try:
        token = Path(file).read_text(encoding="utf-8").strip() if file else ""
    except OSError:
        return False
    sent = request.headers.get("authorization", "")
    return bool(token) and hmac.compare_digest(sent.encode(), f"Bearer {token}".encode())


def _seen(feeds: list[Feed]) -> Iterator[Seen]:
    for feed in feeds:
        for listing in sorted(feed.studies(), key=lambda one: one.name):
            frame = feed.frame(listing.uuid)
            if frame is not None:
                lag = feed.freshness(listing.uuid).lag
                yield Seen(feed.url, listing.name, frame.state, frame.columns, lag)


def _finite(seconds: float) -> float | None:
    return round(seconds, 1) if seconds < 1e9 else None
