"""From a host's name to a TCP connection: directly, through an HTTP proxy's CONNECT, or through SOCKS5.

`HTTPS_PROXY` (for http://, `HTTP_PROXY`), else `ALL_PROXY`, names the proxy; `NO_PROXY` lists the hosts that are
reached without one. A proxy sees the name of the server and encrypted bytes, no more. What it answers, and who it says
it is, is part of the error.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import socket
import time
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

from hopaas_p2p.errors import ConfigurationError, HopaasError, StoreUnreachable
from hopaas_p2p.runtime.settings import Secret

if TYPE_CHECKING:
    from asyncio.trsock import TransportSocket

_SOCKS: Final = ("socks5", "socks5h")
_PORTS: Final = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
TUNNELLING: Final = ("http", *_SOCKS)
"""The kinds of proxies that `connect` knows."""
_unroutable: Final[set[int]] = set()
"""Families of addresses by which the last connection of this process could not be made."""
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
        """From a host, with or without a port; an IPv6 address with a port is in brackets.

        Raises:
            ConfigurationError: the port is not a port.

        """
        host, colon, own = text.rpartition(":")
        if not colon or "]" in own or (":" in host.strip("[]") and not host.startswith("[")):
            host, own = text, ""
        if own and not (own.isdecimal() and 0 < int(own) < 65536):
            raise ConfigurationError(f"{text!r}: {own!r} is not a port")
        return cls(host.strip("[]"), int(own or port))


class Proxy(NamedTuple):
    """A proxy of this environment."""

    scheme: str
    """http, https, socks5 or socks5h."""
    address: ServerAddress
    login: Secret | None
    """`user:password`."""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.address}"


def proxy_for(server: ServerAddress, *, scheme: str = "https", kinds: Collection[str] = TUNNELLING) -> Proxy | None:
    """The proxy that the environment names for this server, or None to go without.

    Args:
        server: what is to be reached.
        scheme: of the URL: https or http.
        kinds: the kinds of proxies that the caller can use.

    Raises:
        ConfigurationError: the value of HTTPS_PROXY is not understood.

    """
    proxies = getproxies_environment()
    given = proxies.get(scheme) or proxies.get("all")
    if not given or proxy_bypass_environment(str(server), proxies):
        return None
    return parse_proxy(given, kinds=kinds)


def parse_proxy(text: str, *, kinds: Collection[str] = TUNNELLING) -> Proxy:
    """The proxy in a value of HTTPS_PROXY; raises as `proxy_for` does."""
    parts = urlsplit(text if "://" in text else f"http://{text}")
    try:
        number = parts.port
    except ValueError:
        number = -1
    if parts.scheme not in kinds or not parts.hostname or " " in parts.hostname or number == -1:
        raise ConfigurationError(
            "HTTPS_PROXY cannot be parsed; write http://user:password@host:port"
            + (", or socks5h://host:port" if "socks5h" in kinds else "")
        )
    login = Secret(f"{unquote(parts.username)}:{unquote(parts.password or '')}") if parts.username else None
    return Proxy(parts.scheme, ServerAddress(parts.hostname, number or _PORTS[parts.scheme]), login)


def connect(server: ServerAddress, *, timeout: float) -> socket.socket:
    """A TCP connection to this server, through the environment's proxy if there is one. Blocks for `timeout` at most.

    Raises:
        StoreUnreachable: no such name for now, nobody there, or the proxy cannot reach it.
        ConfigurationError: the proxy refuses us; the message says which one, and why.

    """
    return connect_through(proxy_for(server), server, timeout=timeout)


def connect_through(proxy: Proxy | None, server: ServerAddress, *, timeout: float) -> socket.socket:
    """As `connect`, through this proxy or none."""
    deadline = time.monotonic() + timeout
    if proxy is None:
        made = _connect_directly(server, deadline, str(server))
    elif proxy.scheme in _SOCKS:
        made = _through_socks(proxy, server, deadline)
    else:
        made = _through_connect(proxy, server, deadline)
    configure(made)
    return made


@contextlib.contextmanager
def closed_on_error(connection: socket.socket) -> Iterator[None]:
    """Close this connection if what follows fails."""
    try:
        yield
    except BaseException:
        connection.close()
        raise


def remaining(deadline: float) -> float:
    """Seconds until the deadline, for a socket's timeout.

    Raises:
        TimeoutError: it has passed.

    """
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("timed out")
    return seconds


def _connect_directly(server: ServerAddress, deadline: float, shown: str) -> socket.socket:
    try:
        return _connect_to_any(socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM), deadline)
    except socket.gaierror as error:
        raise StoreUnreachable(
            f"the name {server.host!r} cannot be resolved on this node ({error.strerror}). Check the URL; if only a "
            "proxy can be reached, set HTTPS_PROXY=http://host:port"
        ) from None
    except OSError as error:
        raise StoreUnreachable(
            f"{shown} cannot be reached from here ({error.strerror or error}). Check the address, and whether this "
            "site needs HTTPS_PROXY"
        ) from None


def _connect_to_any(addresses: list[Any], deadline: float) -> socket.socket:
    """A connection to one of a name's addresses, in their order; each gets its share of the time that is left.

    Where a family cannot be routed, as IPv6 at some sites, its addresses are tried last from then on.
    """
    addresses = sorted(addresses, key=lambda address: address[0] in _unroutable)
    failure: OSError = OSError("no address")
    for number, (family, kind, protocol, _, address) in enumerate(addresses):
        made = socket.socket(family, kind, protocol)
        try:
            with closed_on_error(made):
                made.settimeout(remaining(deadline) / (len(addresses) - number))
                made.connect(address)
        except OSError as error:
            failure = error
            _unroutable.add(family)
        else:
            _unroutable.discard(family)
            return made
    raise failure


def _through_socks(proxy: Proxy, server: ServerAddress, deadline: float) -> socket.socket:
    from python_socks import ProxyError, ProxyType
    from python_socks.sync import Proxy as Socks

    user, _, password = proxy.login.reveal().partition(":") if proxy.login else ("", "", "")
    dialler = Socks(ProxyType.SOCKS5, *proxy.address, user or None, password or None, rdns=proxy.scheme == "socks5h")
    try:
        return dialler.connect(*server, timeout=remaining(deadline))
    except ProxyError as error:
        said = str(error)
        if "uthentication" in said or "login" in said.lower():
            raise ConfigurationError(f"the proxy {proxy} refuses this login: {said}. See HTTPS_PROXY") from None
        raise StoreUnreachable(f"the proxy {proxy} did not connect to {server}: {said}") from None
    except OSError as error:
        raise StoreUnreachable(f"the proxy {proxy} cannot be reached ({error.strerror or error})") from None


def _through_connect(proxy: Proxy, server: ServerAddress, deadline: float) -> socket.socket:
    made = _connect_directly(proxy.address, deadline, f"the proxy {proxy}")
    lines = [f"CONNECT {server} HTTP/1.1", f"Host: {server}"]
    if proxy.login is not None:
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(proxy.login.reveal().encode()).decode()}")
    try:
        with closed_on_error(made):
            made.settimeout(remaining(deadline))
            made.sendall("\r\n".join([*lines, "", ""]).encode())
            with contextlib.closing(http.client.HTTPResponse(made, method="CONNECT")) as answer:
                answer.begin()
                if answer.status != http.client.OK:
                    raise _refused(proxy, server, answer)
            return made
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise StoreUnreachable(f"the proxy {proxy} closed the connection ({why})") from None


def _refused(proxy: Proxy, server: ServerAddress, answer: http.client.HTTPResponse) -> HopaasError:
    """Which proxy refused, and what to do."""
    who = answer.getheader("Via") or answer.getheader("Server") or "it did not identify itself"
    answered = f"the proxy {proxy} ({who}) answered {answer.status} {answer.reason}"
    if answer.status == http.client.PROXY_AUTHENTICATION_REQUIRED:
        asks = answer.getheader("Proxy-Authenticate", "")
        have = "the login in HTTPS_PROXY is wrong" if proxy.login else "it requires a login"
        cure = "set HTTPS_PROXY=http://user:password@host:port"
        if asks and not asks.lower().startswith("basic"):
            cure = f"it asks for {asks.split()[0]}, but only Basic is supported here; ask the site about that"
        return ConfigurationError(f"{answered}: {have}; {cure}")
    if answer.status in (http.client.BAD_GATEWAY, http.client.SERVICE_UNAVAILABLE, http.client.GATEWAY_TIMEOUT):
        return StoreUnreachable(f"{answered}: it cannot reach {server} now")
    return ConfigurationError(f"{answered}: ask the site to let it connect to {server}")


def configure(made: socket.socket | TransportSocket) -> None:
    """Make a TCP socket send small packets at once, and end a connection that is dead."""
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            with contextlib.suppress(OSError):
                made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        with contextlib.suppress(OSError):
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNANSWERED)
