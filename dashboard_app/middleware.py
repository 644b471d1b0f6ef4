"""Middleware before Streamlit's server: its own files compressed, and headers that confine a page to this server.

Streamlit sends its JavaScript uncompressed, some 4 MB for a first visit. Here each file is compressed once, at its
first request, and kept: about a quarter. The policy forbids a browser to fetch anything from anywhere else, so a
picture in somebody's note, or a name that is a script, reaches nobody.

Streamlit sends people who signed in to the first page. Here the browser keeps the address that was asked for in a
cookie meanwhile, and is sent there.
"""

from __future__ import annotations

import gzip
import mimetypes
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote, urlsplit

import streamlit
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import Response

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_COMPRESSED: Final = frozenset({".js", ".css", ".html", ".svg", ".json"})
_LEVEL: Final = 6  # 4 MB take 0.2 s, once
_FOR_A_YEAR: Final = {
    "Content-Encoding": "gzip",
    "Vary": "Accept-Encoding",
    "Cache-Control": f"public, immutable, max-age={365 * 86400}",
}
_POLICY: Final = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self' {sockets} data: blob:; object-src 'none'; "
    "base-uri 'self'; frame-ancestors 'self'"
)
_COOKIE: Final = "hopaas_asked"
_PATH: Final = re.compile(r"/(?![/\\])[!-\[\]-~]{0,2000}")  # a path here: neither //host nor a control character
_HOST: Final = re.compile(r"[A-Za-z0-9.:\[\]-]{1,255}")


class DashboardMiddleware:
    """ASGI middleware; see the top of this file.

    Args:
        app: what is behind.
        prefix: the path that this server is served under.
        folder: where Streamlit keeps its files; only what is there at the start is served from here.

    """

    def __init__(self, app: ASGIApp, *, prefix: str = "", folder: Path | None = None) -> None:
        self._app = app
        root = folder or Path(streamlit.__file__).parent / "static"
        self._files = {
            f"{prefix}/{path.relative_to(root).as_posix()}": path
            for path in (root / "static").rglob("*")
            if path.suffix in _COMPRESSED and path.is_file()
        }
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request, path = Headers(scope=scope), scope["path"]

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("Content-Security-Policy", policy(request.get("host", "")))
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.setdefault("Referrer-Policy", "same-origin")
                self._return_after_sign_in(path, request, headers)
            await send(message)

        app = self._app
        if path in self._files and "gzip" in request.get("accept-encoding", "") and scope["method"] == "GET":
            body = await run_in_threadpool(_compressed, self._files[path])
            kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
            app = Response(body, headers=_FOR_A_YEAR, media_type=kind)
        await app(scope, receive, with_headers)

    def _return_after_sign_in(self, path: str, request: Headers, headers: MutableHeaders) -> None:
        """Keep the address that the browser left for the sign-in, and send it back there afterwards."""
        cookie = f"Path={self._prefix or '/'}; HttpOnly; SameSite=Lax"
        if path == f"{self._prefix}/auth/login":
            left = _address_left(request, self._prefix)
            if left:
                headers.append("Set-Cookie", f"{_COOKIE}={quote(left, safe='/')}; Max-Age=900; {cookie}")
        elif path == f"{self._prefix}/oauth2callback" and "location" in headers:
            left = unquote(cookie_parser(request.get("cookie", "")).get(_COOKIE, ""))
            if _PATH.fullmatch(left):
                headers["location"] = left
                headers.append("Set-Cookie", f"{_COOKIE}=; Max-Age=0; {cookie}")


def policy(host: str) -> str:
    """The Content-Security-Policy of a page of this host. Not every browser applies 'self' to web sockets too."""
    sockets = f"ws://{host} wss://{host}" if _HOST.fullmatch(host) else ""
    return _POLICY.format(sockets=sockets)


def _address_left(request: Headers, prefix: str) -> str:
    """Path and query of the page of ours that this request comes from; empty if it comes from elsewhere."""
    page = urlsplit(request.get("referer", ""))
    address = f"{page.path}?{page.query}" if page.query else page.path
    ours = page.netloc == request.get("host", "") and f"{page.path}/".startswith(f"{prefix}/")
    return address if ours and _PATH.fullmatch(address) else ""


@cache
def _compressed(path: Path) -> bytes:
    return gzip.compress(path.read_bytes(), _LEVEL, mtime=0)
