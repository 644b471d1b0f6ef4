"""What stands before Streamlit's server: its own files compressed, and headers that keep a page to this server.

Streamlit sends its JavaScript as it is, some 4 MB for a first visit. Here each file is compressed once, at first
request, and kept: about a quarter. The policy forbids a browser to fetch anything from anywhere else, so a picture in
somebody's note or a name that is a script reaches nobody.

Streamlit brings who signed in to the first page. Here the browser keeps the address that was asked for meanwhile, in a
cookie, and is sent there.
"""

from __future__ import annotations

import gzip
import mimetypes
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import Response

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_COMPRESSED: Final = frozenset({".js", ".css", ".html", ".svg", ".json"})
_LEVEL: Final = 6  # 4 MB take 0.2 s, once
_YEAR: Final = 365 * 86400
_POLICY: Final = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self' {sockets} data: blob:; object-src 'none'; "
    "base-uri 'self'; frame-ancestors 'self'"
)
_ASKED: Final = "hopaas_asked"  # the cookie
_WAY: Final = re.compile(r"/(?![/\\])[!-\[\]-~]{0,2000}")  # a path here: neither //host nor a control character
_HOST: Final = re.compile(r"[A-Za-z0-9.:\[\]-]{1,255}")


class Front:
    """ASGI middleware; see the top of this file.

    Args:
        app: what is behind.
        base_path: the path this server is under.
        folder: where Streamlit keeps its files; only what is there at the start is served from here.

    """

    def __init__(self, app: ASGIApp, *, base_path: str = "", folder: Path | None = None) -> None:
        self._app = app
        root = _streamlits_files() if folder is None else folder
        prefix = f"/{base_path.strip('/')}" if base_path.strip("/") else ""
        self._files = {
            f"{prefix}/{path.relative_to(root).as_posix()}": path
            for path in (root / "static").rglob("*")
            if path.suffix in _COMPRESSED and path.is_file()
        }
        self._kept: dict[str, bytes] = {}
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        asked = Headers(scope=scope)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("Content-Security-Policy", policy(asked.get("host", "")))
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.setdefault("Referrer-Policy", "same-origin")
                self._keep_the_way(scope["path"], asked, headers)
            await send(message)

        path = scope["path"]
        takes = "gzip" in asked.get("accept-encoding", "")
        if path in self._files and takes and scope["method"] == "GET":
            response = await self._file(path)
            await response(scope, receive, with_headers)
        else:
            await self._app(scope, receive, with_headers)

    def _keep_the_way(self, path: str, asked: Headers, headers: MutableHeaders) -> None:
        """Through the sign-in: where the browser came from when it left, and when it comes back, there."""
        cookie = f"Path={self._prefix or '/'}; HttpOnly; SameSite=Lax"
        if path == f"{self._prefix}/auth/login":
            way = _way(asked, self._prefix)
            if way:
                headers.append("Set-Cookie", f"{_ASKED}={quote(way, safe='/')}; Max-Age=900; {cookie}")
        elif path == f"{self._prefix}/oauth2callback" and "location" in headers:
            way = unquote(cookie_parser(asked.get("cookie", "")).get(_ASKED, ""))
            if _WAY.fullmatch(way):
                headers["location"] = way
                headers.append("Set-Cookie", f"{_ASKED}=; Max-Age=0; {cookie}")

    async def _file(self, path: str) -> Response:
        body = self._kept.get(path)
        if body is None:
            body = self._kept[path] = await run_in_threadpool(_compressed, self._files[path])
        headers = {
            "Content-Encoding": "gzip",
            "Vary": "Accept-Encoding",
            "Cache-Control": f"public, immutable, max-age={_YEAR}",
        }
        kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
        return Response(body, headers=headers, media_type=kind)


def policy(host: str) -> str:
    """The Content-Security-Policy of a page of this host. Not every browser takes 'self' for its web sockets too."""
    sockets = f"ws://{host} wss://{host}" if _HOST.fullmatch(host) else ""
    return _POLICY.format(sockets=sockets)


def _way(asked: Headers, prefix: str) -> str:
    """Path and query of the page of ours that this request comes from; empty if it comes from elsewhere."""
    page = urlsplit(asked.get("referer", ""))
    way = f"{page.path}?{page.query}" if page.query else page.path
    ours = page.netloc == asked.get("host", "") and f"{page.path}/".startswith(f"{prefix}/")
    return way if ours and _WAY.fullmatch(way) else ""


def _compressed(path: Path) -> bytes:
    return gzip.compress(path.read_bytes(), _LEVEL, mtime=0)


def _streamlits_files() -> Path:
    import streamlit

    return Path(streamlit.__file__).parent / "static"
