"""Connections to an S3 server: through the site's proxy, with the site's certificates, and watched.

The SDK knows neither `HTTPS_PROXY` nor a CA of ours, retries by itself, and keeps the headers of a refusal to itself.
So it gets pools from here: retries off, time-outs short, and a note of every answer's status and `Date`.
"""

from __future__ import annotations

import contextlib
import copy
import email.utils
import functools
import os
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import urllib3
import urllib3.connection
from urllib3.util import Timeout, make_headers

from hopaas_p2p.net import proxies, trust
from hopaas_p2p.net.proxies import Proxy, ServerAddress

CONNECT: Final = 3.0
"""Seconds to wait for a connection."""
READ: Final = 4.0
"""Seconds of silence after which a small request counts as lost; the log finds out what became of it."""
_CONNECTIONS: Final = 17  # a window of 16 and a beat


class Answer(threading.local):
    """What the server last said to this thread: the SDK's exceptions keep only a part of it."""

    status: int | None = None
    headers: Mapping[str, str] = {}


class ResponseObserver:
    """Counts requests by kind, remembers answers, and knows the server's clock."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.interruptions = 0
        """How often there was no answer, or one that says that the server is not ready."""
        self.answer = Answer()
        self.ahead = 0.0
        """Seconds by which the server's clock is ahead of this machine's."""
        self.heard = False

    def copy(self) -> ResponseObserver:
        """With what it knows, for a child of a fork."""
        made = copy.copy(self)
        made.answer = Answer()
        return made

    def send(self, urlopen: Callable[..., Any], method: str, url: str, *args: Any, **kw: Any) -> Any:
        """Send a request, and take note of it and of its answer."""
        listing = method == "GET" and "list-type=" in url
        self.requests["LIST" if listing else method] += 1
        self.answer.status, self.answer.headers = None, {}
        response = urlopen(method, url, *args, **kw)
        self.answer.status, self.answer.headers = response.status, response.headers
        date = parse_date(response.headers.get("Date"))
        if date is not None:
            self.ahead, self.heard = date - time.time(), True
        return response

    def server_now(self) -> float | None:
        """The server's time in seconds since 1970, as far as its answers tell."""
        return time.time() + self.ahead if self.heard else None


def parse_date(text: str | None) -> float | None:
    """An HTTP date as seconds since 1970."""
    try:
        return email.utils.parsedate_to_datetime(text).timestamp() if text else None
    except ValueError:
        return None


_QUICKACK: Final[int | None] = getattr(socket, "TCP_QUICKACK", None)


class _Prompt:
    """A connection that acknowledges what it gets at once.

    A server that sends an answer's head and body apart, and waits for the first to be acknowledged before it sends the
    second (Nagle's algorithm, as Ceph RGW by default), meets a kernel that acknowledges 40 ms later, in the hope of
    data to go along: 44 ms for each GET there, and peers that read were starved by those that only write.
    """

    sock: Any

    def getresponse(self) -> Any:
        if _QUICKACK is not None:
            with contextlib.suppress(OSError, AttributeError):  # TLS within TLS is not a socket
                self.sock.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
        return super().getresponse()  # type: ignore[misc]


class _Plain(_Prompt, urllib3.connection.HTTPConnection):
    pass


class _Secure(_Prompt, urllib3.connection.HTTPSConnection):
    pass


class _PlainPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Plain


class _SecurePool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _Secure


class _Observed:
    observer: ResponseObserver | None = None

    def urlopen(self, method: str, url: str, redirect: bool = True, **kw: Any) -> Any:
        send = super().urlopen  # type: ignore[misc]
        send = send if self.observer is None else functools.partial(self.observer.send, send)
        return send(method, url, redirect=redirect, **kw)


class _Pool(_Observed, urllib3.PoolManager):  # type: ignore[misc]
    pass


class _ProxyPool(_Observed, urllib3.ProxyManager):  # type: ignore[misc]
    pass


def pool(
    url: str,
    *,
    observer: ResponseObserver | None = None,
    read: float = READ,
    connect: float = CONNECT,
    retries: urllib3.Retry | bool = False,
    direct: bool = False,
    env: Mapping[str, str] = os.environ,
) -> urllib3.PoolManager:
    """Connections to the server of this URL.

    Args:
        url: where to; decides about the proxy.
        observer: takes note of requests and answers.
        read, connect: seconds.
        retries: for requests that may be sent twice; off by default.
        direct: never through a proxy, as for a machine's own metadata.
        env: where settings are found.

    Raises:
        ConfigurationError: the proxy or the certificate file cannot be used.

    """
    proxy = None if direct else proxy_of(url)
    in_tls = url.startswith("https:") or (proxy is not None and proxy.scheme == "https")
    options: dict[str, Any] = {
        "timeout": Timeout(connect=connect, read=read),
        "retries": retries,
        "maxsize": _CONNECTIONS,
        "ssl_context": context(env) if in_tls else None,
    }
    made: _Pool | _ProxyPool
    if proxy is None:
        made = _Pool(**options)
    else:
        headers = make_headers(proxy_basic_auth=proxy.login.reveal()) if proxy.login else None
        made = _ProxyPool(str(proxy), proxy_headers=headers, proxy_ssl_context=options["ssl_context"], **options)
    made.pool_classes_by_scheme = {"http": _PlainPool, "https": _SecurePool}
    made.observer = observer
    return made


def proxy_of(url: str) -> Proxy | None:
    """The proxy that the environment names for this URL, or None to go without; raises as `proxies.proxy_for`."""
    return proxies.proxy_for(server_of(url), scheme=url.partition("://")[0], kinds=("http", "https"))


def server_of(url: str) -> ServerAddress:
    """The server of this URL."""
    parts = urlsplit(url)
    return ServerAddress(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))


def context(env: Mapping[str, str] = os.environ) -> ssl.SSLContext:
    """What verifies the server; raises as `trust.client_context`."""
    return trust.new_context(trust.authorities(aws=True, env=env))
