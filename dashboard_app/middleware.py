"""The headers of every response, and the redirect after a sign-in.

The content security policy lets a browser fetch only from this server, so a picture in a note, or a study name that
contains a script, cannot send data elsewhere. After a sign-in, Streamlit opens the first page. This middleware
therefore keeps the requested address in a cookie during the sign-in, and then redirects the browser to it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_POLICY: Final = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self' {sockets} data: blob:; object-src 'none'; "
    "base-uri 'self'; frame-ancestors 'self'"
)
_COOKIE: Final = "hopaas_asked"
_PATH: Final = re.compile(r"/(?![/\\])[!-\[\]-~]{0,2000}")  # a path on this server: no //host, no control characters
_HOST: Final = re.compile(r"[A-Za-z0-9.:\[\]-]{1,255}")


class DashboardMiddleware:
    """ASGI middleware that adds these headers and redirects. `prefix` is the path under which this server is served."""

    def __init__(self, app: ASGIApp, *, prefix: str = "") -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                request, headers = HTTPConnection(scope), MutableHeaders(scope=message)
                headers.setdefault("Content-Security-Policy", policy(request.headers.get("host", "")))
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.setdefault("Referrer-Policy", "same-origin")
                self._return_after_sign_in(request, headers)
            await send(message)

        await self._app(scope, receive, with_headers)

    def _return_after_sign_in(self, request: HTTPConnection, headers: MutableHeaders) -> None:
        """Remember the address from which the sign-in was started, and redirect the browser to it afterwards."""
        path, cookie = request.scope["path"], f"Path={self._prefix or '/'}; HttpOnly; SameSite=Lax"
        if path == f"{self._prefix}/auth/login":
            try:
                page = urlsplit(request.headers.get("referer", ""))
            except ValueError:  # from a program, because no browser sends such a header
                return
            left = f"{page.path}?{page.query}" if page.query else page.path
            ours = page.netloc == request.headers.get("host", "") and f"{page.path}/".startswith(f"{self._prefix}/")
            if ours and _PATH.fullmatch(left):
                headers.append("Set-Cookie", f"{_COOKIE}={quote(left, safe='/')}; Max-Age=900; {cookie}")
        elif path == f"{self._prefix}/oauth2callback" and "location" in headers:
            left = unquote(request.cookies.get(_COOKIE, ""))
            if _PATH.fullmatch(left):
                headers["location"] = left
                headers.append("Set-Cookie", f"{_COOKIE}=; Max-Age=0; {cookie}")


def policy(host: str) -> str:
    """The Content-Security-Policy of this host's pages. It lists web sockets, because in some browsers 'self' excludes
    them.
    """
    return _POLICY.format(sockets=f"ws://{host} wss://{host}" if _HOST.fullmatch(host) else "")
