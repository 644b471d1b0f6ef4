"""What `hopaas-p2p doctor` checks on the way to a server: its name, the site's proxy, the certificate.

Everything is tried as a store would try it, with the same trust, but step by step, so that the first step that fails is
named. A certificate that expires soon is a failure while there is still time to renew it.
"""

from __future__ import annotations

import datetime
import socket
import ssl
import time
from collections.abc import Callable, Generator
from typing import Any, Final, NamedTuple

from hopaas_p2p.errors import HopaasError
from hopaas_p2p.net import proxies, trust
from hopaas_p2p.net.findings import AGAIN, Finding
from hopaas_p2p.net.proxies import Proxy, ServerAddress

SOON: Final = 21
"""Days before a certificate expires from which on that is a failure."""
_TIMEOUT: Final = 10.0  # seconds for each step


class Route(NamedTuple):
    """How a server is reached."""

    server: ServerAddress
    context: ssl.SSLContext | None = None
    """Verifies the server; None where there is no TLS."""
    proxy: Proxy | None = None
    request_tls: Callable[[socket.socket], bool] | None = None
    """Asks a server that begins in the clear for TLS; returns whether it agrees."""


class _CheckFailed(Exception):
    """A step did not work; the rest cannot be tried."""

    def __init__(self, check: str, detail: str, cure: str) -> None:
        super().__init__(detail)
        self.finding = Finding(check, passed=False, detail=detail, cure=cure)


def checks(route: Route) -> Generator[Finding, None, bool]:
    """The findings about a route, step by step; returns whether it leads to the server."""
    connection: socket.socket | None = None
    try:
        yield _check_name(route)
        connection, finding = _connect(route)
        yield finding
        if route.context is not None:
            connection, finding = _secure(route, connection, route.context)
            yield finding
        return True
    except _CheckFailed as failed:
        yield failed.finding
        return False
    finally:
        if connection is not None:
            connection.close()


def _check_name(route: Route) -> Finding:
    """Whether the host that is connected to first, which may be the proxy's, has an address."""
    host = route.proxy.address.host if route.proxy else route.server.host
    shown = f"{host} (the proxy)" if route.proxy else host
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        cure = "check the spelling, and that this node can query a name server; compute nodes often cannot"
        raise _CheckFailed("name", f"{shown} has no address: {error.strerror or error}", cure) from None
    addresses = ", ".join(sorted({str(entry[4][0]) for entry in found}))
    return Finding("name", passed=True, detail=shown if addresses == host else f"{shown} is {addresses}")


def _connect(route: Route) -> tuple[socket.socket, Finding]:
    began = time.monotonic()
    check = "proxy" if route.proxy else "connect"
    try:
        connection = proxies.connect_through(route.proxy, route.server, timeout=_TIMEOUT)
    except HopaasError as error:
        cure = "check that the server is up, and that this node may connect to it"
        if route.proxy:
            cure = "fix HTTPS_PROXY, or ask your site to let the proxy connect to this server"
        raise _CheckFailed(
            check, str(error), f"{cure}; if only a login node may connect, use: hopaas-p2p serve relay"
        ) from None
    taken = (time.monotonic() - began) * 1000
    if route.proxy is None:
        return connection, Finding(check, passed=True, detail=f"{route.server} answers in {taken:.1f} ms")
    login = ", with a login" if route.proxy.login else ""
    return connection, Finding(check, passed=True, detail=f"{route.proxy} connects to {route.server}{login}")


def _secure(route: Route, connection: socket.socket, context: ssl.SSLContext) -> tuple[socket.socket, Finding]:
    if route.request_tls is not None and not route.request_tls(connection):
        detail = "the server does not speak TLS, so anybody in between could read and change everything"
        raise _CheckFailed("tls", detail, "enable TLS there; or if the store is served there, write https://")
    try:
        secured = trust.secure(connection, route.server.host, deadline=time.monotonic() + _TIMEOUT, context=context)
    except HopaasError as error:
        connection.close()
        raise _CheckFailed("tls", str(error), AGAIN) from None
    return secured, lifetime(secured.getpeercert() or {}, str(secured.version()))


def lifetime(certificate: Any, version: str = "TLS") -> Finding:
    """Whether a verified certificate, as `getpeercert` shows it, remains valid for some time."""
    days = trust.days_left(certificate)
    until = (datetime.datetime.now(tz=datetime.UTC) + datetime.timedelta(days=days)).date()
    detail = f"{version}, issued by {_issuer(certificate)}, verified, {days:.0f} days left (until {until})"
    if days >= SOON:
        return Finding("tls", passed=True, detail=detail)
    return Finding(
        "tls",
        passed=False,
        detail=f"THE CERTIFICATE EXPIRES IN {days:.0f} DAYS: {detail}",
        cure="renew it now: on that day every peer stops",
    )


def _issuer(certificate: Any) -> str:
    names = {key: value for part in certificate.get("issuer", ()) for key, value in part}
    return str(names.get("commonName") or names.get("organizationName") or "an unnamed authority")
