"""The checks of `hopaas-p2p doctor` on the route to a server: its name, the site's proxy, the certificate.

Each step is tried just as a store does it, with the same trust, and the first step that fails is named.
A certificate that expires soon counts as a failure while there is still time to renew it.
"""

from __future__ import annotations

import datetime
import socket
import ssl
import time
from collections.abc import Callable, Generator
from typing import Any, Final

from hopaas_p2p.errors import HopaasError
from hopaas_p2p.net import proxies, trust
from hopaas_p2p.net.findings import AGAIN, Finding
from hopaas_p2p.net.proxies import Proxy, ServerAddress

SOON: Final = 21
"""A certificate that expires within this many days counts as a failure."""
_TIMEOUT: Final = 10.0  # seconds for each step


def checks(
    server: ServerAddress,
    context: ssl.SSLContext | None = None,
    proxy: Proxy | None = None,
    request_tls: Callable[[socket.socket], bool] | None = None,
) -> Generator[Finding, None, bool]:
    """The findings about a route, step by step; returns whether it leads to the server.

    Args:
        server: the target.
        context: verifies the server; None if there is no TLS.
        proxy: the proxy to use, or None.
        request_tls: asks a server whose protocol begins unencrypted for TLS; returns whether it agrees.

    """
    host = proxy.address.host if proxy else server.host  # the first hop
    shown = f"{host} (the proxy)" if proxy else host
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        cure = "check the spelling, and that this node can query a name server; compute nodes often cannot"
        yield Finding("name", f"{shown} has no address: {error.strerror or error}", passed=False, cure=cure)
        return False
    addresses = ", ".join(sorted({str(entry[4][0]) for entry in found}))
    yield Finding("name", shown if addresses == host else f"{shown} is {addresses}")
    began = time.monotonic()
    try:
        connection = proxies.connect_through(proxy, server, timeout=_TIMEOUT)
    except HopaasError as error:
        cure = "check that the server is up, and that this node may connect to it"
        if proxy:
            cure = f"fix {proxy.origin}, or ask your site to let the proxy connect to this server"
        cure += "; if only a login node may connect, use: hopaas-p2p serve relay"
        yield Finding("proxy" if proxy else "connect", str(error), passed=False, cure=cure)
        return False
    with connection:
        if proxy:
            login = ", with a login" if proxy.login else ""
            yield Finding("proxy", f"{proxy} connects to {server}{login}")
        else:
            yield Finding("connect", f"{server} answers in {(time.monotonic() - began) * 1000:.1f} ms")
        if context is None:
            return True
        if request_tls is not None and not request_tls(connection):
            detail = "the server does not speak TLS, so anybody in between could read and change everything"
            cure = "enable TLS on that server; if it serves the store over HTTPS, write https://"
            yield Finding("tls", detail, passed=False, cure=cure)
            return False
        try:
            deadline = time.monotonic() + _TIMEOUT
            with trust.secure(connection, server.host, deadline=deadline, context=context) as secured:
                yield lifetime(secured.getpeercert() or {}, str(secured.version()))
        except HopaasError as error:
            yield Finding("tls", str(error), passed=False, cure=AGAIN)
            return False
    return True


def lifetime(certificate: Any, version: str = "TLS") -> Finding:
    """The finding about how long a verified certificate, in `getpeercert`'s form, remains valid."""
    days = trust.days_left(certificate)
    until = (datetime.datetime.now(tz=datetime.UTC) + datetime.timedelta(days=days)).date()
    names = {key: value for part in certificate.get("issuer", ()) for key, value in part}
    issuer = names.get("commonName") or names.get("organizationName") or "an unnamed authority"
    detail = f"{version}, issued by {issuer}, verified, {days:.0f} days left (until {until})"
    if days < SOON:
        detail = f"THE CERTIFICATE EXPIRES IN {days:.0f} DAYS: {detail}"
    return Finding("tls", detail, passed=days >= SOON, cure="renew it now; after that day, no peer can connect")
