"""The server: Streamlit's own, with our routes and settings."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Final

from starlette.middleware import Middleware
from streamlit.starlette import App

from dashboard_app import actor, feed, options, pulse, theme
from dashboard_app.front import Front
from dashboard_app.options import Options
from dashboard_app.routes import routes

SCRIPT: Final = Path(__file__).parent / "entry" / "app.py"
"""What Streamlit executes."""
_log: Final = logging.getLogger("hopaas_p2p.dashboard")


def settings(told: Options) -> dict[str, Any]:
    """Streamlit's settings, as its `config.toml` would name them."""
    return {
        "server.address": told.host,
        "server.port": told.port,
        "server.baseUrlPath": told.base_path.strip("/"),
        "server.headless": not told.open_browser,
        "server.fileWatcherType": "none",
        "server.runOnSave": False,
        "server.maxUploadSize": 512,
        "server.enableWebsocketCompression": True,
        "browser.gatherUsageStats": False,
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
        "client.showSidebarNavigation": True,
        "logger.level": "warning",
        **theme.CONFIG,
    }


def serve(told: Options) -> None:
    """Serve until Ctrl-C. Opens the stores first, so that one that cannot be used is said at once.

    Raises:
        ConfigurationError: a store cannot be used.
        StoreUnreachable: a store does not answer.

    """
    options.use(told)
    for url in told.stores:
        feed.feed_of(url)
    try:
        app(told).run(config=settings(told))
    finally:
        feed.close_all()
        actor.close_all()


def app(told: Options) -> App:
    """The application, for any ASGI server."""
    front = Middleware(Front, base_path=told.base_path)
    return App(
        SCRIPT, routes=[*routes(feed.feeds), pulse.route(told.base_path)], middleware=[front], on_script_error=_noted
    )


def _noted(error: Exception) -> None:
    _log.error("a page failed", exc_info=error)
