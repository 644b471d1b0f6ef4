"""From a host's name to a TCP connection: directly, through an HTTP proxy's CONNECT, or through SOCKS5.

Which proxy is said by `HTTPS_PROXY`, else `ALL_PROXY`; `NO_PROXY` lists what is reached without. A proxy sees the name
of the gateway and encrypted bytes, no more. What it answers, and who it says it is, stands in the error.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import socket
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

from hopaas_p2p.errors import ConfigurationError, HopaasError, StoreUnreachable
from hopaas_p2p.settings import Secret

if TYPE_CHECKING:
    from asyncio.trsock import TransportSocket

_SOCKS: Final = ("socks5", "socks5h")
_PORTS: Final = {"http": 3128, "socks5": 1080, "socks5h": 1080}
_leads_nowhere: Final[set[int]] = set()
"""Families of addresses by which the last connection of this process could not be made."""
_UNANSWERED: Final = 30_000  # milliseconds until an unacknowledged packet ends the connection


class Proxy(NamedTuple):
    """A proxy of this environment."""

    scheme: str
    """http, socks5 or socks5h."""
    host: str
    port: int
    login: Secret | None
    """`user:password`."""

    def __str__(self) -> str:
        return f"{self.scheme}://{bracketed(self.host)}:{self.port}"


def proxy_for(host: str, port: int) -> Proxy | None:
    """The proxy that the environment names for this host, or None to go without.

    Raises:
        ConfigurationError: what HTTPS_PROXY says is not understood.

    """
    proxies = getproxies_environment()
    given = proxies.get("https") or proxies.get("all")
    if not given or proxy_bypass_environment(f"{bracketed(host)}:{port}", proxies):
        return None
    parts = urlsplit(given if "://" in given else f"http://{given}")
    try:
        number = parts.port
    except ValueError:
        number = -1
    if parts.scheme not in _PORTS or not parts.hostname or number == -1:
        raise ConfigurationError(
            "the proxy in HTTPS_PROXY is not understood; write http://user:password@host:port, or socks5h://host:port"
        )
    login = Secret(f"{unquote(parts.username)}:{unquote(parts.password or '')}") if parts.username else None
    return Proxy(parts.scheme, parts.hostname, number or _PORTS[parts.scheme], login)


def reach(host: str, port: int, *, timeout: float) -> socket.socket:
    """A TCP connection to this host, through the environment's proxy if there is one. Blocks for `timeout` at most.

    Raises:
        StoreUnreachable: no such name for now, nobody there, or the proxy cannot reach it.
        ConfigurationError: the proxy refuses us; the message says who did, and why.

    """
    return through(proxy_for(host, port), host, port, timeout=timeout)


def through(proxy: Proxy | None, host: str, port: int, *, timeout: float) -> socket.socket:
    """As `reach`, through this proxy or none."""
    deadline = time.monotonic() + timeout
    if proxy is None:
        made = _connect(host, port, deadline, f"{bracketed(host)}:{port}")
    elif proxy.scheme in _SOCKS:
        made = _through_socks(proxy, host, port, deadline)
    else:
        made = _through_connect(proxy, host, port, deadline)
    tune(made)
    return made


def bracketed(host: str) -> str:
    """The host as it stands before a colon and a port."""
    return f"[{host}]" if ":" in host else host


def left(deadline: float) -> float:
    """Seconds until the deadline, for a socket's timeout.

    Raises:
        TimeoutError: it has passed.

    """
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("timed out")
    return seconds


def _connect(host: str, port: int, deadline: float, shown: str) -> socket.socket:
    try:
        return _first_that_answers(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM), deadline)
    except socket.gaierror as error:
        raise StoreUnreachable(
            f"the name {host!r} is not known on this node ({error.strerror}). Check the URL; where only a proxy is "
            "reached, set HTTPS_PROXY=http://host:port"
        ) from None
    except OSError as error:
        raise StoreUnreachable(
            f"{shown} cannot be reached from here ({error.strerror or error}). Check the address, and whether this "
            "site needs HTTPS_PROXY"
        ) from None


def _first_that_answers(found: list[Any], deadline: float) -> socket.socket:
    """A connection to one of a name's addresses, in their order; each gets its share of the time that is left.

    Where one family leads nowhere, as IPv6 does at some sites, its addresses are tried last from then on.
    """
    found = sorted(found, key=lambda one: one[0] in _leads_nowhere)
    failure: OSError = OSError("no address")
    for number, (family, kind, protocol, _, address) in enumerate(found):
        made = socket.socket(family, kind, protocol)
        try:
            made.settimeout(left(deadline) / (len(found) - number))
            made.connect(address)
        except OSError as error:
            made.close()
            failure = error
            _leads_nowhere.add(family)
            continue
        _leads_nowhere.discard(family)
        return made
    raise failure


def _through_socks(proxy: Proxy, host: str, port: int, deadline: float) -> socket.socket:
    from python_socks import ProxyError, ProxyType
    from python_socks.sync import Proxy as Socks

    user, _, password = proxy.login.reveal().partition(":") if proxy.login else ("", "", "")
    dialler = Socks(
        ProxyType.SOCKS5, proxy.host, proxy.port, user or None, password or None, rdns=proxy.scheme == "socks5h"
    )
    try:
        return dialler.connect(host, port, timeout=left(deadline))
    except ProxyError as error:
        said = str(error)
        if "uthentication" in said or "login" in said.lower():
            raise ConfigurationError(f"the proxy {proxy} refuses this login: {said}. See HTTPS_PROXY") from None
        raise StoreUnreachable(f"the proxy {proxy} did not connect to {host}:{port}: {said}") from None
    except OSError as error:
        raise StoreUnreachable(f"the proxy {proxy} cannot be reached ({error.strerror or error})") from None


def _through_connect(proxy: Proxy, host: str, port: int, deadline: float) -> socket.socket:
    made = _connect(proxy.host, proxy.port, deadline, f"the proxy {proxy}")
    try:
        target = f"{bracketed(host)}:{port}"
        lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
        if proxy.login is not None:
            lines.append(f"Proxy-Authorization: Basic {base64.b64encode(proxy.login.reveal().encode()).decode()}")
        made.settimeout(left(deadline))
        made.sendall("\r\n".join([*lines, "", ""]).encode())
        with contextlib.closing(http.client.HTTPResponse(made, method="CONNECT")) as answer:
            answer.begin()
            if answer.status != http.client.OK:
                raise _refused(proxy, target, answer)
        return made
    except (OSError, http.client.HTTPException) as error:
        made.close()
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise StoreUnreachable(f"the proxy {proxy} broke off ({why})") from None
    except BaseException:
        made.close()
        raise


def _refused(proxy: Proxy, target: str, answer: http.client.HTTPResponse) -> HopaasError:
    """Say who refused, and what to do."""
    who = answer.getheader("Via") or answer.getheader("Server") or "it did not say who it is"
    answered = f"the proxy {proxy} ({who}) answered {answer.status} {answer.reason}"
    if answer.status == http.client.PROXY_AUTHENTICATION_REQUIRED:
        asks = answer.getheader("Proxy-Authenticate", "")
        have = "the login in HTTPS_PROXY is wrong" if proxy.login else "it wants a login"
        cure = "set HTTPS_PROXY=http://user:password@host:port"
        if asks and not asks.lower().startswith("basic"):
            cure = f"it asks for {asks.split()[0]}, and only Basic is spoken here; ask the site about that"
        return ConfigurationError(f"{answered}: {have}; {cure}")
    if answer.status in (http.client.BAD_GATEWAY, http.client.SERVICE_UNAVAILABLE, http.client.GATEWAY_TIMEOUT):
        return StoreUnreachable(f"{answered}: it cannot reach {target} now")
    return ConfigurationError(f"{answered}: ask the site to let it connect to {target}")


def tune(made: socket.socket | TransportSocket) -> None:
    """On a TCP socket: no waiting for more to send, and an end to a link that is dead."""
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            with contextlib.suppress(OSError):
                made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        with contextlib.suppress(OSError):
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNANSWERED)
