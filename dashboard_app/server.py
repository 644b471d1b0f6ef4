"""Streamlit's own server, with our routes and settings."""

from __future__ import annotations

import atexit
import contextlib
import html
import shutil
import socket
import tempfile
import threading
import webbrowser
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from streamlit import config
from streamlit.starlette import App

from dashboard_app import options, optuna_server, sign_in, theme, version_poll
from dashboard_app.access_guard import AccessGuard, AccessMiddleware, key_to_use
from dashboard_app.middleware import DashboardMiddleware
from dashboard_app.options import DashboardOptions
from dashboard_app.replica_cache import cache_of
from dashboard_app.routes import may_scrape, routes
from hopaas_p2p.errors import explained
from hopaas_p2p.net.listening import bound_strangers
from hopaas_p2p.runtime.logs import LOG

SCRIPT: Final = Path(__file__).parent / "entry" / "app.py"
"""The script that Streamlit executes."""
_LARGEST_UPLOAD: Final = 32  # MiB; Streamlit keeps it in memory. `hopaas-p2p trial artifact put` takes any size
_LEVEL: Final = 4  # of compression; a first visit takes 0.15 s to compress 4 MB to 1.3 MB
_SOON: Final = 0.5  # seconds until the port is surely open


def settings(opts: DashboardOptions) -> dict[str, Any]:
    """Streamlit's settings, as its `config.toml` would name them."""
    return {
        "server.address": opts.host,
        "server.port": opts.port,
        "server.baseUrlPath": opts.base_path.strip("/"),
        "server.headless": True,  # the browser is opened here; Streamlit would ask for an e-mail address
        "server.fileWatcherType": "none",
        "server.runOnSave": False,
        "runner.postScriptGC": False,  # the cache collects garbage; after every run, it would cost more than the run
        "server.maxUploadSize": _LARGEST_UPLOAD,
        "server.enableWebsocketCompression": True,
        "browser.gatherUsageStats": False,
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
        "client.showSidebarNavigation": True,
        "logger.level": "warning",
        "logger.hideWelcomeMessage": True,  # its address lacks the key
        "theme.base": theme.CONFIG,
    }


def serve(opts: DashboardOptions) -> None:
    """Serve until Ctrl-C. The store is opened first, so that an unusable store is reported at once.

    Raises:
        ConfigurationError: the store or the settings of the sign-in cannot be used, or a port is taken.
        StoreUnreachable: the store does not answer.

    """
    _check_port(opts.host, opts.port)
    auth = sign_in.provider() if opts.auth == "oidc" else {}
    guard = AccessGuard(opts, None, sign_in.hosts(auth)) if auth else AccessGuard(opts, key_to_use(opts))
    if opts.optuna_port is not None:
        opts = replace(opts, optuna_address=guard.address("/", opts.optuna_port))
    options.use(opts)
    cache = cache_of(opts.store)
    beside = optuna_server.serve_optuna_dashboard(opts, guard) if opts.optuna_port is not None else None
    bound_strangers()
    try:
        app(opts, guard, auth).run(config=settings(opts))
    finally:
        if beside is not None:
            beside.shutdown()
        cache.close()


def _check_port(host: str, port: int) -> None:
    """Check that the port is free. Otherwise Streamlit would silently use another port, and the printed address would
    be wrong.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with explained(f"cannot listen at {host}:{port}", "; choose another --port"):
            probe.bind((host, port))


def app(opts: DashboardOptions, guard: AccessGuard, auth: dict[str, Any]) -> App:
    """The application, for any ASGI server."""

    @contextlib.asynccontextmanager
    async def opening(_app: App) -> AsyncIterator[None]:
        """Print the address, and open a browser if asked to, as soon as the server answers."""
        address = guard.address(opts.prefix or "/", opts.port)
        click.echo(f"open {address}", err=True)
        if opts.optuna_address:
            click.echo(f"optuna-dashboard: {opts.optuna_address}", err=True)
        if opts.open_browser:
            timer = threading.Timer(_SOON, _open_browser, [address])  # a text browser blocks until it is closed
            timer.daemon = True
            timer.start()
        yield

    # Streamlit would also read `.streamlit/` in the current folder, where somebody else's repository could decide who
    # may sign in
    config.get_config_files = lambda file_name: []  # noqa: ARG005  # Streamlit's name for it
    return App(
        SCRIPT,
        secrets={"auth": auth} if auth else None,
        lifespan=opening,
        routes=[*routes(partial(cache_of, opts.store)), version_poll.route(opts.prefix)],
        middleware=[
            Middleware(AccessMiddleware, guard=guard, scrapes=may_scrape),
            Middleware(DashboardMiddleware, prefix=opts.prefix),
            Middleware(GZipMiddleware, compresslevel=_LEVEL),  # Streamlit does not compress its own 4 MB of files
        ],
        on_script_error=lambda error: LOG.error("a page failed", exc_info=error),
    )


def _open_browser(address: str) -> None:
    """Open a browser on a private file that redirects to the address, because other users can see command lines."""
    folder = tempfile.mkdtemp(prefix="hopaas-open-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    page = Path(folder, "open.html")
    shown = html.escape(address)
    page.write_text(
        f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={shown}">'
        f'<a href="{shown}">hopaas-p2p</a>\n',
        encoding="utf-8",
    )
    webbrowser.open(page.as_uri())
