"""Makes TCP connections to a host: directly, through an HTTP proxy's CONNECT, or through SOCKS5.

`HTTPS_PROXY` (for http://, `HTTP_PROXY`), else `ALL_PROXY`, names the proxy; `NO_PROXY` lists the hosts that are
reached without one. A proxy sees only the server's name and encrypted bytes. An error shows the proxy's answer.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import ipaddress
import os
import socket
import time
from collections.abc import Collection, Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

from hopaas_p2p.errors import ConfigurationError, StoreUnreachable
from hopaas_p2p.runtime.redaction import foreign
from hopaas_p2p.runtime.settings import Secret

if TYPE_CHECKING:
    from asyncio.trsock import TransportSocket

_SOCKS: Final = ("socks5", "socks5h")
_PORTS: Final = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
TUNNELLING: Final = ("http", *_SOCKS)
"""The kinds of proxies that `connect` supports."""
_UNANSWERED: Final = 30_000  # milliseconds until an unacknowledged packet ends the connection


class ServerAddress(NamedTuple):
    """Where a server listens."""

    host: str
    port: int = 443

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @classmethod
    def parse(cls, text: str, port: int = 443) -> ServerAddress:
        """Parse a host with or without a port; an IPv6 address with a port is in brackets.

        Raises:
            ConfigurationError: the text after the colon is not a port.

        """
        host, colon, own = text.rpartition(":")
        if not colon or "]" in own or (":" in host.strip("[]") and not host.startswith("[")):
            host, own = text, ""
        if own and not (own.isdecimal() and 0 < int(own) < 65536):
            raise ConfigurationError(f"{text!r}: {own!r} is not a port")
        return cls(host.strip("[]"), int(own or port))


def server_of(url: str) -> ServerAddress:
    """The server of an http or https URL."""
    parts = urlsplit(url)
    return ServerAddress(parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 80))


class Proxy(NamedTuple):
    """A proxy of this environment."""

    scheme: str
    """http, https, socks5 or socks5h."""
    address: ServerAddress
    login: Secret | None
    """`user:password`."""
    origin: str = "HTTPS_PROXY"
    """The variable that names it."""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.address}"

    @property
    def headers(self) -> dict[str, str]:
        """The login for an HTTP proxy, if there is one."""
        if self.login is None:
            return {}
        return {"Proxy-Authorization": f"Basic {base64.b64encode(self.login.reveal().encode()).decode()}"}


def is_loopback(host: str) -> bool:
    """Whether this is a loopback name or address, where no third party can intercept the connection."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    return host == "localhost"


def proxy_for(server: ServerAddress, *, scheme: str = "https", kinds: Collection[str] = TUNNELLING) -> Proxy | None:
    """The proxy that the environment names for this server, or None for a direct connection.

    Args:
        server: the server to reach.
        scheme: the scheme of the URL, https or http.
        kinds: the kinds of proxies that the caller can use.

    Raises:
        ConfigurationError: the value of HTTPS_PROXY, or of the variable used instead, cannot be parsed.

    """
    proxies = getproxies_environment()
    kind = scheme if proxies.get(scheme) else "all"
    given, origin = proxies.get(kind), f"{kind}_proxy"
    inside = scheme == "http" and is_loopback(server.host)  # allowed without TLS because it stays on this machine
    if not given or inside or proxy_bypass_environment(str(server), proxies):
        return None
    return parse_proxy(given, kinds=kinds, origin=origin if os.environ.get(origin) else origin.upper())


def parse_proxy(text: str, *, kinds: Collection[str] = TUNNELLING, origin: str = "HTTPS_PROXY") -> Proxy:
    """The proxy in a value of the variable `origin`; raises like `proxy_for`."""
    parts = urlsplit(text if "://" in text else f"http://{text}")
    number: int | None = -1
    with contextlib.suppress(ValueError):
        number = parts.port
    unclear = not text.isprintable() or " " in (parts.hostname or "") or number == -1  # `urlsplit` drops line breaks
    if parts.scheme not in kinds or not parts.hostname or unclear:
        raise ConfigurationError(
            f"{origin} cannot be parsed; write http://user:password@host:port"
            + (", or socks5h://host:port" if "socks5h" in kinds else "")
        )
    login = Secret(f"{unquote(parts.username)}:{unquote(parts.password or '')}") if parts.username else None
    return Proxy(parts.scheme, ServerAddress(parts.hostname, number or _PORTS[parts.scheme]), login, origin)


def connect(server: ServerAddress, *, timeout: float) -> socket.socket:
    """A TCP connection to this server, through the environment's proxy if there is one. Blocks for at most `timeout`.

    Raises:
        StoreUnreachable: the name does not resolve now, nothing answers, or the proxy cannot reach the server.
        ConfigurationError: the proxy refuses the connection; the message names it and the reason.

    """
    return connect_through(proxy_for(server), server, timeout=timeout)


def connect_through(proxy: Proxy | None, server: ServerAddress, *, timeout: float) -> socket.socket:
    """Like `connect`, through this proxy or directly."""
    deadline = time.monotonic() + timeout
    try:
        hurried = _dial(server if proxy is None else proxy.address, deadline)
        if proxy is not None:
            with closed_on_error(hurried):
                (_ask_socks if proxy.scheme in _SOCKS else _request_tunnel)(hurried, proxy, server)
    except http.client.HTTPException as error:
        said = str(error) or type(error).__name__
        raise StoreUnreachable(f"the proxy {proxy} answered {said}: it cannot reach {server} now") from None
    except OSError as error:
        if proxy is not None:
            raise StoreUnreachable(f"the proxy {proxy} cannot be reached ({error.strerror or error})") from None
        if isinstance(error, socket.gaierror):
            raise StoreUnreachable(
                f"the name {server.host!r} cannot be resolved on this node ({error.strerror}). Check the URL; if only "
                "a proxy can be reached, set HTTPS_PROXY=http://host:port"
            ) from None
        raise StoreUnreachable(
            f"{server} cannot be reached from here ({error.strerror or error}). Check the address, and whether this "
            "site needs HTTPS_PROXY"
        ) from None
    made = socket.socket(fileno=hurried.detach())
    made.settimeout(max(0.001, deadline - time.monotonic()))
    configure(made)
    return made


@contextlib.contextmanager
def closed_on_error(connection: socket.socket) -> Iterator[None]:
    """Close this connection if the block fails."""
    try:
        yield
    except BaseException:
        connection.close()
        raise


def remaining(deadline: float) -> float:
    """Seconds until the deadline, for a socket's timeout.

    Raises:
        TimeoutError: the deadline has passed.

    """
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("timed out")
    return seconds


class _Hurried(socket.socket):
    """A socket whose reads end at a deadline, even if the other side sends a byte now and then."""

    deadline: float

    def recv(self, size: int, flags: int = 0) -> bytes:
        self.settimeout(remaining(self.deadline))
        return super().recv(size, flags)

    def recv_into(self, buffer: Any, size: int = 0, flags: int = 0) -> int:
        self.settimeout(remaining(self.deadline))
        return super().recv_into(buffer, size, flags)


def _dial(server: ServerAddress, deadline: float) -> _Hurried:
    """A connection to one of a name's addresses, tried in order; each gets its share of the remaining time."""
    failure: OSError = OSError("no address")
    addresses = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
    for number, (family, kind, protocol, _, address) in enumerate(addresses):
        made = _Hurried(family, kind, protocol)
        made.deadline = deadline
        try:
            with closed_on_error(made):
                made.settimeout(remaining(deadline) / (len(addresses) - number))
                made.connect(address)
        except OSError as error:
            failure = error
        else:
            return made
    raise failure


def _ask_socks(made: socket.socket, proxy: Proxy, server: ServerAddress) -> None:
    from python_socks import ProxyError, ProxyType
    from python_socks.sync import Proxy as Dialler

    user, _, password = proxy.login.reveal().partition(":") if proxy.login else ("", "", "")
    way: Any = SimpleNamespace(connect=lambda **_: made)
    rdns = proxy.scheme == "socks5h"
    dialler = Dialler(
        ProxyType.SOCKS5, *proxy.address, user or None, password if user else None, rdns=rdns, forward=way
    )
    try:
        dialler.connect(*server)
    except ProxyError as error:
        said = str(error)
        if "uthentication" in said or "login" in said.lower():
            raise _wrong_login(proxy, said) from None
        raise StoreUnreachable(f"the proxy {proxy} answered {said}: it cannot reach {server} now") from None


def _request_tunnel(made: socket.socket, proxy: Proxy, server: ServerAddress) -> None:
    """Ask an HTTP proxy for a tunnel, and read the head of its answer, after which all bytes are the server's."""
    lines = [f"{name}: {value}" for name, value in {"Host": str(server), **proxy.headers}.items()]
    made.sendall("\r\n".join([f"CONNECT {server} HTTP/1.1", *lines, "", ""]).encode())
    with contextlib.closing(http.client.HTTPResponse(made, method="CONNECT")) as answer:
        answer.begin()
    said = foreign(f"{answer.status} {answer.reason}")
    if answer.status == http.client.PROXY_AUTHENTICATION_REQUIRED:
        raise _wrong_login(proxy, said)
    if answer.status in (502, 503, 504):
        raise StoreUnreachable(f"the proxy {proxy} answered {said}: it cannot reach {server} now")
    if answer.status != http.client.OK:
        raise ConfigurationError(f"the proxy {proxy} answered {said}: ask the site to let it connect to {server}")


def _wrong_login(proxy: Proxy, said: str) -> ConfigurationError:
    have = f"the login in {proxy.origin} is wrong" if proxy.login else "it requires a login"
    return ConfigurationError(
        f"the proxy {proxy} answered {said}: {have}; set {proxy.origin}=http://user:password@host:port"
    )


def configure(made: socket.socket | TransportSocket) -> None:
    """Make a TCP socket send small packets at once, and detect dead connections."""
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": _UNANSWERED}
    for name, value in options.items():
        if hasattr(socket, name):
            with contextlib.suppress(OSError):
                made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
