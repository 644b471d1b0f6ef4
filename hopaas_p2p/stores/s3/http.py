"""Connections to an S3 server: through the site's proxy, with the site's certificates and short timeouts."""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import socket
import ssl
from typing import Any, Final

import urllib3
from urllib3.util import Timeout, make_headers

from hopaas_p2p.net import proxies, trust
from hopaas_p2p.net.answers import AnswerBytes
from hopaas_p2p.net.proxies import Proxy
from hopaas_p2p.runtime import credentials

CONNECT: Final = 3.0
"""Seconds to wait for a connection."""
READ: Final = 4.0
"""Seconds of silence after which a small request counts as lost; its caller then reads the key to learn the outcome."""
_LARGEST_ANSWER: Final = 16 << 20  # bytes of a completely read answer; a page of a listing has at most 4 MB
_LAST_DATE: Final = 1 << 32  # seconds since 1970; in the year 2106
_CONNECTIONS: Final = 17  # a window of 16 and a beat


def parse_date(text: str | None) -> float | None:
    """An HTTP date as seconds since 1970; None if the text is not a date, or a date that no signature could have."""
    try:
        seconds = email.utils.parsedate_to_datetime(text).timestamp() if text else -1.0
    except (ValueError, OverflowError):
        return None
    return seconds if 0.0 <= seconds < _LAST_DATE else None


_QUICKACK: Final[int | None] = getattr(socket, "TCP_QUICKACK", None)


def _prompt(connection: Any) -> Any:
    """Connections of this kind that acknowledge data at once, and end an answer that arrives too slowly.

    A server may send an answer's head and body separately, and wait for an acknowledgement of the first before it sends
    the second (Nagle's algorithm, as in Ceph RGW by default). The kernel here acknowledges only 40 ms later, to combine
    the acknowledgement with data. Each GET then took 44 ms, and peers that only write starved those that read.
    """

    class Prompt(connection):  # type: ignore[misc]
        def getresponse(self) -> Any:
            if _QUICKACK is not None:
                with contextlib.suppress(OSError, AttributeError):  # TLS within TLS is not a socket
                    self.sock.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
            answer = super().getresponse()
            self.coming.room = None
            return answer

        def response_class(self, sock: Any, **options: Any) -> http.client.HTTPResponse:
            raw = sock.makefile("rb", buffering=0)  # keeps the socket open if the connection is closed earlier
            self.coming = AnswerBytes(raw.readinto, self.timeout or READ, end=raw.close)
            return http.client.HTTPResponse(self.coming, **options)  # type: ignore[arg-type]

    return Prompt


_POOLS: Final[dict[str, Any]] = {
    scheme: type(kind.__name__, (kind,), {"ConnectionCls": _prompt(kind.ConnectionCls)})
    for scheme, kind in (("http", urllib3.HTTPConnectionPool), ("https", urllib3.HTTPSConnectionPool))
}


def pool(url: str, *, read: float = READ, direct: bool = False) -> urllib3.PoolManager:
    """Connections to the server of this URL, without automatic retries.

    Args:
        url: the server; also determines the proxy.
        read: seconds of silence.
        direct: never use a proxy, as for a machine's own metadata.

    Raises:
        ConfigurationError: the proxy or the certificate file cannot be used.

    """
    proxy = None if direct else proxy_of(url)
    in_tls = url.startswith("https:") or (proxy is not None and proxy.scheme == "https")
    options: dict[str, Any] = {
        "timeout": Timeout(connect=min(CONNECT, read), read=read),
        "retries": False,
        "maxsize": _CONNECTIONS,
        "ssl_context": context() if in_tls else None,
    }
    made = urllib3.PoolManager(**options)
    if proxy is not None:
        headers = None
        if proxy.login:
            headers = make_headers(proxy_basic_auth=proxy.login.reveal())
            credentials.check_authority([proxy.address] if proxy.scheme == "https" else [])
        made = urllib3.ProxyManager(
            str(proxy), proxy_headers=headers, proxy_ssl_context=options["ssl_context"], **options
        )
    made.pool_classes_by_scheme = _POOLS
    return made


def read(answer: Any, limit: int) -> bytes:
    """The bytes of an answer, not decompressed, because compressed ones could grow to any size; raises like urllib3.

    If there are more than `limit` bytes, the first `limit` + 1 are returned.
    """
    data = b""
    try:
        while piece := answer.read(limit + 1 - len(data), decode_content=False):
            data += piece
    except ValueError as error:  # a chunk of a negative size
        raise urllib3.exceptions.ProtocolError(str(error)) from None
    return data


def whole(answer: Any, most: int = _LARGEST_ANSWER) -> urllib3.HTTPResponse:
    """This answer with all its bytes; raises like urllib3, also if there are more bytes than `most`."""
    data = read(answer, most)
    if len(data) > most:
        answer.close()
        raise urllib3.exceptions.HTTPError("the answer is longer than allowed")
    answer.release_conn()
    return urllib3.HTTPResponse(data, headers=answer.headers, status=answer.status, preload_content=False)


def proxy_of(url: str) -> Proxy | None:
    """The proxy that the environment names for this URL, or None for a direct connection; raises like `proxy_for`."""
    return proxies.proxy_for(proxies.server_of(url), scheme=url.partition("://")[0], kinds=("http", "https"))


def context() -> ssl.SSLContext:
    """The context that verifies the server; raises like `trust.client_context`."""
    return trust.new_context(trust.authorities(aws=True))
