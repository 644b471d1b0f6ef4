"""The server: Streamlit's own, with our routes and settings."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import webbrowser
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from starlette.middleware import Middleware
from streamlit.starlette import App

from dashboard_app import actor, feed, options, optunas, pulse, theme
from dashboard_app.front import Front
from dashboard_app.options import Options
from dashboard_app.routes import routes
from hopaas_p2p.errors import ConfigurationError

SCRIPT: Final = Path(__file__).parent / "entry" / "app.py"
"""What Streamlit executes."""
_SOON: Final = 0.5  # seconds from here to when the port is open
_log: Final = logging.getLogger("hopaas_p2p.dashboard")


def settings(told: Options) -> dict[str, Any]:
    """Streamlit's settings, as its `config.toml` would name them."""
    return {
        "server.address": told.host,
        "server.port": told.port,
        "server.baseUrlPath": told.base_path.strip("/"),
        "server.headless": True,  # the browser is opened by us; else Streamlit asks for an e-mail address
        "server.fileWatcherType": "none",
        "server.runOnSave": False,
        "runner.postScriptGC": False,  # the feed collects: after every run it would cost more than the run
        "server.maxUploadSize": 500,
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
    _check_port(told.host, told.port)
    if told.auth == "oidc":
        _check_sign_in()
    for url in told.stores:
        feed.feed_of(url)
    beside = optunas.serve_optunas(told) if told.optuna_port is not None else None
    try:
        app(told).run(config=settings(told))
    finally:
        if beside is not None:
            beside.shutdown()
        feed.close_all()
        actor.close_all()


def _check_port(host: str, port: int) -> None:
    """Streamlit would take the next free port without a word, and the address given to others would be wrong."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen at {host}:{port}: {error.strerror}; choose another --port"
            ) from None


def _check_sign_in() -> None:
    import streamlit as st

    try:
        known = "auth" in st.secrets
    except FileNotFoundError:
        known = False
    if not known:
        raise ConfigurationError(
            "--auth oidc needs [auth] in .streamlit/secrets.toml: redirect_uri, cookie_secret, client_id, "
            "client_secret and server_metadata_url of your provider"
        )


def app(told: Options) -> App:
    """The application, for any ASGI server."""
    front = Middleware(Front, base_path=told.base_path)
    return App(
        SCRIPT,
        lifespan=_opening,
        routes=[*routes(feed.feeds), pulse.route(told.base_path)],
        middleware=[front],
        on_script_error=_noted,
    )


@contextlib.asynccontextmanager
async def _opening(_app: App) -> AsyncIterator[None]:
    """Open the browser, if that was asked for, as soon as the server answers."""
    told = options.current()
    if told.open_browser:
        host = "127.0.0.1" if told.host in ("0.0.0.0", "::") else told.host  # noqa: S104  # compared, not bound
        base = told.base_path.strip("/")
        address = f"http://{f'[{host}]' if ':' in host else host}:{told.port}/{base}"
        opening = threading.Timer(_SOON, webbrowser.open, [address])  # a text browser blocks until it is left
        opening.daemon = True
        opening.start()
    yield


def _noted(error: Exception) -> None:
    _log.error("a page failed", exc_info=error)
