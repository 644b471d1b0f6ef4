"""Decides whether a request is allowed, before any other code sees the request. This covers pages, web sockets,
metrics, uploads, and optuna-dashboard on its own port.

Other users of the node can reach its loopback address, and so can every web page in the user's browser. So the server
makes a random key when it starts, like Jupyter, and prints an address that contains the key. A browser that opens this
address gets a cookie and is redirected to the address without the key. A program sends `Authorization: Bearer KEY`.
Where people sign in (`--auth oidc`), the sign-in replaces the key.

`Host` must be a name of this server, because a page of another site whose name was rebound to our address ("DNS
rebinding") sends that site's name. `Origin` must be the requested host, because other users may run servers on other
ports of this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import html
import ipaddress
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

from starlette.requests import HTTPConnection
from starlette.responses import HTMLResponse, Response
from streamlit import runtime
from streamlit.runtime.stats import CacheStat

from dashboard_app import sign_in
from dashboard_app.options import DashboardOptions
from hopaas_p2p.errors import ConfigurationError
from hopaas_p2p.net.listening import MOST_STRANGERS
from hopaas_p2p.net.proxies import is_loopback
from hopaas_p2p.runtime import credentials

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

_SAFE: Final = ("GET", "HEAD", "OPTIONS")
_UPLOAD: Final = "/_stcore/upload_file"
_MOST_UPLOADED: Final = 128 << 20  # bytes beyond which no further file is taken
_LONGEST_MESSAGE: Final = 64 << 10  # bytes on a web socket before a sign-in; messages of our pages take a few hundred
_PEOPLES: Final = (_UPLOAD, "/_stcore/metrics", "/media/")  # Streamlit's paths that nobody needs before a sign-in
_SHORTEST_KEY: Final = 16  # characters of a key that somebody chose
_HOST: Final = re.compile(r"(?P<name>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")
_PAGE: Final = (
    "<!doctype html><html lang=en><meta charset=utf-8><title>hopaas-p2p</title>"
    "<body style='font: 16px/1.5 sans-serif; max-width: 36em; margin: 4em auto; padding: 0 1em'>"
    "<h1>hopaas-p2p</h1><p>{why}</p>{form}</body></html>"
)
_FORM: Final = (
    "<form><label>Key <input name=key type=password autocomplete=off autofocus></label> <button>Open</button></form>"
)
_NO_KEY: Final = "Open the address that <code>hopaas-p2p dashboard</code> printed when it started; it contains the key."
_HEADERS: Final = {
    "Connection": "close",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class AccessGuard:
    """Allows or refuses requests. Immutable; any thread may use it.

    Args:
        opts: how the dashboard was started.
        key: the key that opens the dashboard; None where people sign in.
        hosts: further names under which this server is reachable.

    """

    def __init__(self, opts: DashboardOptions, key: str | None, hosts: Iterable[str] = ()) -> None:
        self._opts = opts
        self._key = key
        self._prefix = opts.prefix
        self._loopback_only = is_loopback(_name(opts.host))
        self._hosts = {_name(one) for one in ("localhost", opts.host, *opts.allowed_hosts, *hosts)}
        if not self._loopback_only:
            self._hosts |= {_name(socket.gethostname()), _name(socket.getfqdn())}
        self._cookie = f"hopaas_key_{opts.port}"  # browsers send cookies to all ports of a host
        self._proof = hmac.new((key or "").encode(), b"cookie", hashlib.sha256).hexdigest()

    def judge(self, request: HTTPConnection, *, scrapes: Callable[[str], bool] | None = None) -> Response | None:
        """The response that refuses the request; None if it may proceed.

        Args:
            request: the request; only its scope is read.
            scrapes: tells whether an `Authorization` header gives access to `/metrics`.

        """
        host = ",".join(request.headers.getlist("host"))
        if not self._serves(host):
            return _refusal(
                f"This dashboard is not served as {host[:200]!r}; if it should be, start it with --allow-host NAME."
            )
        if not _same_origin(request, host):
            return _refusal("This request came from another site's page.")
        path, bearer = request.scope["path"], request.headers.get("authorization", "")
        if path == f"{self._prefix}/healthz" or (scrapes and path == f"{self._prefix}/metrics" and scrapes(bearer)):
            return None
        refused = self._without_key(request, bearer)
        if refused is not None or not path.startswith(tuple(self._prefix + one for one in _PEOPLES)):
            return refused
        if path.startswith(self._prefix + _UPLOAD) and not self._opts.actions:
            return _refusal("This dashboard is read-only; start it with --allow-actions to change things.")
        if path.startswith(self._prefix + _UPLOAD) and _uploaded() > _MOST_UPLOADED:
            return _refusal("The dashboard holds too many uploaded files; try again when other people have left.")
        return _refusal("Sign in first.") if self.is_stranger(request) else None

    def is_stranger(self, request: HTTPConnection) -> bool:
        """Whether people sign in here, and the sender of this request has not."""
        return self._opts.auth == "oidc" and not sign_in.person_of_cookies(request.cookies, now=time.time())

    def address(self, path: str, port: int) -> str:
        """The address that opens the dashboard, for the user who started it."""
        host = "127.0.0.1" if self._opts.host in ("0.0.0.0", "::") else self._opts.host  # noqa: S104  # compared, not bound
        key = "" if self._key is None else f"?key={quote(self._key)}"
        return f"http://{f'[{host}]' if ':' in host else host}:{port}{path or '/'}{key}"

    def _serves(self, host: str) -> bool:
        found = _HOST.fullmatch(host)
        if found is None:
            return False
        name = _name(found["name"])
        if name in self._hosts:
            return True
        with contextlib.suppress(ValueError):  # an address, unlike a name, cannot be bound to another address
            return ipaddress.ip_address(name).is_loopback or not self._loopback_only
        return False

    def _without_key(self, request: HTTPConnection, bearer: str) -> Response | None:
        """Refuse a request without the key, or answer an address that contains the key with a cookie."""
        if self._key is None:
            return None
        query = request.query_params
        if "key" in query and request.scope.get("method") == "GET" and _same(query.getlist("key")[0], self._key):
            rest = urlencode([(name, value) for name, value in query.multi_items() if name != "key"])
            path = "/" + quote(request.scope["path"].lstrip("/"))
            cookie = f"{self._cookie}={self._proof}; Path={self._prefix or '/'}; HttpOnly; SameSite=Lax"
            headers = {"Location": f"{path}?{rest}" if rest else path, "Set-Cookie": cookie}
            return HTMLResponse("", 303, {**_HEADERS, **headers})
        if _same(request.cookies.get(self._cookie, ""), self._proof) or _same(bearer, f"Bearer {self._key}"):
            return None
        return HTMLResponse(_PAGE.format(why=_NO_KEY, form=_FORM), 403, _HEADERS)


def _uploaded() -> int:
    """Bytes of uploaded files, which Streamlit keeps in memory until their sessions end, whoever sent them."""
    if not runtime.exists():
        return 0
    kept = runtime.get_instance().uploaded_file_mgr.get_stats()
    return sum(one.byte_length for some in kept.values() for one in some if isinstance(one, CacheStat))


class AccessMiddleware:
    """ASGI middleware that answers the requests that the guard refuses."""

    def __init__(self, app: ASGIApp, *, guard: AccessGuard, scrapes: Callable[[str], bool]) -> None:
        self._app = app
        self._guard = guard
        self._scrapes = scrapes
        self._strangers: dict[asyncio.Event, None] = {}
        """For each web socket of somebody who has not signed in, the event that closes it; the oldest first."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or one web socket."""
        answer, request = None, HTTPConnection(scope) if scope["type"] in ("http", "websocket") else None
        if request is not None:
            answer = self._guard.judge(request, scrapes=self._scrapes)
        if answer is None and request is not None and scope["type"] == "websocket" and self._guard.is_stranger(request):
            await self._serve_stranger(scope, receive, send)
        elif answer is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})  # RFC 6455; the client gets a 403
        else:
            await answer(scope, receive, send)

    async def _serve_stranger(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the web socket of a person who has not signed in.

        It is closed if it is the oldest of many, or sends a message that is too long.
        """
        over = asyncio.Event()
        for oldest in list(self._strangers)[: 1 - MOST_STRANGERS]:
            del self._strangers[oldest]
            oldest.set()
        self._strangers[over] = None

        async def bounded() -> Message:
            coming, ending = asyncio.ensure_future(receive()), asyncio.ensure_future(over.wait())
            try:
                await asyncio.wait((coming, ending), return_when=asyncio.FIRST_COMPLETED)
                if coming.done() and len(coming.result().get("bytes") or b"") <= _LONGEST_MESSAGE:
                    return coming.result()
                return {"type": "websocket.disconnect", "code": 1008}
            finally:
                coming.cancel()
                ending.cancel()

        try:
            await self._app(scope, bounded, send)
        finally:
            self._strangers.pop(over, None)


def guarded(app: Wsgi, guard: AccessGuard) -> Wsgi:
    """WSGI middleware that answers the requests that the guard refuses."""

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        scope = {
            "type": "http",
            "method": environ.get("REQUEST_METHOD", "GET"),
            "path": environ.get("PATH_INFO", ""),
            "query_string": environ.get("QUERY_STRING", "").encode("latin-1"),
            "headers": [
                (name[5:].replace("_", "-").lower().encode(), str(value).encode("latin-1"))
                for name, value in environ.items()
                if name.startswith("HTTP_")
            ],
        }
        answer = guard.judge(HTTPConnection(scope))
        if answer is None:
            return app(environ, start_response)
        headers = [(name.title(), value) for name, value in answer.headers.items() if name != "connection"]
        start_response(f"{answer.status_code} {HTTPStatus(answer.status_code).phrase}", headers)
        return [bytes(answer.body)]

    return application


def key_to_use(opts: DashboardOptions) -> str | None:
    """The key of this process, from the file that HOPAAS_DASHBOARD_KEY_FILE names, or else a new one; None with
    sign-in.

    Raises:
        ConfigurationError: the file cannot be read, or its key can be guessed.

    """
    if opts.auth != "none":
        return None
    given = credentials.of_monitor("dashboard")
    if given is None:
        return secrets.token_urlsafe(32)
    key = given.reveal()
    if len(key) < _SHORTEST_KEY or not key.isascii() or not key.isprintable():
        raise ConfigurationError(
            f"HOPAAS_DASHBOARD_KEY_FILE: the file has to hold {_SHORTEST_KEY} printable ASCII characters or more"
        )
    return key


def _same_origin(request: HTTPConnection, host: str) -> bool:
    """Whether the request comes from one of our pages, or from no page at all."""
    origins, site = request.headers.getlist("origin"), request.headers.get("sec-fetch-site", "")
    if origins:
        return ",".join(origins).lower() in (f"http://{host}".lower(), f"https://{host}".lower())
    if site in ("cross-site", "same-site"):  # same-site includes other ports of this machine and sibling domains
        return request.scope.get("method") in _SAFE and request.headers.get("sec-fetch-mode") == "navigate"
    return True


def _refusal(why: str) -> Response:
    return HTMLResponse(_PAGE.format(why=html.escape(why), form=""), 403, _HEADERS)


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), wanted.encode())


def _name(host: str) -> str:
    """A host's name in lower case, without brackets or a trailing dot, for comparison."""
    return host.strip("[]").lower().rstrip(".")
