"""Connections to an S3 server: through the site's proxy, with the site's certificates, and watched.

The SDK knows neither `HTTPS_PROXY` nor a CA of ours, retries by itself, and keeps the headers of a refusal to itself.
So it gets pools from here: retries off, time-outs short, and a note of every answer's status and `Date`.
"""

from __future__ import annotations

import email.utils
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

import urllib3
from urllib3.util import Timeout, make_headers

from hopaas_p2p import settings
from hopaas_p2p.errors import ConfigurationError

CONNECT: Final = 3.0
"""Seconds to wait for a connection."""
READ: Final = 4.0
"""Seconds of silence after which a small request counts as lost; the log finds out what became of it."""
_CONNECTIONS: Final = 17  # a window of 16 and a beat


class Answer(threading.local):
    """What the server last said to this thread: the SDK's exceptions keep only a part of it."""

    status: int | None = None
    headers: Mapping[str, str] = {}


class Watch:
    """Counts requests by kind, remembers answers, and knows the server's clock."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.answer = Answer()
        self.ahead = 0.0
        """Seconds by which the server's clock is ahead of this machine's."""
        self.heard = False

    def asked(self, method: str, url: str) -> None:
        listing = method == "GET" and "list-type=" in url
        self.requests["LIST" if listing else method] += 1
        self.answer.status, self.answer.headers = None, {}

    def answered(self, response: Any) -> None:
        self.answer.status, self.answer.headers = response.status, response.headers
        date = parse_date(response.headers.get("Date"))
        if date is not None:
            self.ahead, self.heard = date - time.time(), True

    def server_now(self) -> float | None:
        """The server's time in seconds since 1970, as far as its answers tell."""
        return time.time() + self.ahead if self.heard else None


def parse_date(text: str | None) -> float | None:
    """An HTTP date as seconds since 1970."""
    try:
        return email.utils.parsedate_to_datetime(text).timestamp() if text else None
    except ValueError:
        return None


class _Pool(urllib3.PoolManager):
    watch: Watch | None = None

    def urlopen(self, method: str, url: str, redirect: bool = True, **kw: Any) -> Any:  # type: ignore[override]
        return _watched(self.watch, super().urlopen, method, url, redirect, kw)


class _ProxyPool(urllib3.ProxyManager):
    watch: Watch | None = None

    def urlopen(self, method: str, url: str, redirect: bool = True, **kw: Any) -> Any:  # type: ignore[override]
        return _watched(self.watch, super().urlopen, method, url, redirect, kw)


def _watched(
    watch: Watch | None, send: Callable[..., Any], method: str, url: str, redirect: bool, kw: dict[str, Any]
) -> Any:
    if watch is None:
        return send(method, url, redirect=redirect, **kw)
    watch.asked(method, url)
    response = send(method, url, redirect=redirect, **kw)
    watch.answered(response)
    return response


def pool(
    url: str,
    *,
    watch: Watch | None = None,
    read: float = READ,
    connect: float = CONNECT,
    retries: urllib3.Retry | bool = False,
    direct: bool = False,
    env: Mapping[str, str] = os.environ,
) -> urllib3.PoolManager:
    """Connections to the server of this URL.

    Args:
        url: where to; decides about the proxy.
        watch: who takes note of what goes on.
        read, connect: seconds.
        retries: for requests that may be sent twice; off by default.
        direct: never through a proxy, as for a machine's own metadata.
        env: where settings are found.

    Raises:
        ConfigurationError: the proxy or the certificate file cannot be used.

    """
    options: dict[str, Any] = {
        "timeout": Timeout(connect=connect, read=read),
        "retries": retries,
        "maxsize": _CONNECTIONS,
        "cert_reqs": "CERT_REQUIRED",
        "ca_certs": certificates(env),
    }
    proxy = None if direct else proxy_for(url)
    made: _Pool | _ProxyPool
    if proxy is None:
        made = _Pool(**options)
    else:
        address, login = proxy
        headers = make_headers(proxy_basic_auth=login) if login else None
        try:
            made = _ProxyPool(address, proxy_headers=headers, **options)
        except (urllib3.exceptions.HTTPError, ValueError):
            raise ConfigurationError(
                f"the proxy {address!r} of HTTPS_PROXY cannot be used; write http://host:port"
            ) from None
    made.watch = watch
    return made


def proxy_for(url: str) -> tuple[str, str] | None:
    """(address, "user:password" or "") of the proxy that the environment has for this URL, or None."""
    parts = urlsplit(url)
    proxies = getproxies_environment()
    given = proxies.get(parts.scheme) or proxies.get("all")
    if not given or proxy_bypass_environment(parts.netloc, proxies):
        return None
    proxy = urlsplit(given if "://" in given else f"http://{given}")
    if proxy.scheme not in ("http", "https") or not proxy.hostname:
        raise ConfigurationError("the proxy in HTTPS_PROXY is not understood; write http://user:password@host:port")
    host = f"[{proxy.hostname}]" if ":" in proxy.hostname else proxy.hostname
    address = f"{proxy.scheme}://{host}" + (f":{proxy.port}" if proxy.port else "")
    login = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}" if proxy.username else ""
    return address, login


def certificates(env: Mapping[str, str] = os.environ) -> str:
    """The file of the authorities to trust.

    Raises:
        ConfigurationError: a setting names a file that is not there.

    """
    given = settings.ca_file(env) or env.get("AWS_CA_BUNDLE") or env.get("SSL_CERT_FILE")
    if given is None or given == "":
        import certifi

        return certifi.where()
    if not os.path.isfile(given):  # noqa: PTH113  # a setting, as it was written
        raise ConfigurationError(f"the certificate file {given!r} is not there; see HOPAAS_CA_FILE")
    return given
